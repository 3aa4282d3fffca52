"""The networks, as functional Keras 3 models, and the cards that describe trained ones.

Every network takes RGB pictures ``(N,S,S,3)`` with values 0 to 255, scales them inside its graph
and returns softmax probabilities ``(N,C)`` in float32. The ImageNet layers are one nested model
named ``base``, so that a recipe can freeze it and a file of base weights can be loaded into it.

Keras is imported inside the functions: reading a card needs none of it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.errors import ModelError
from batchfer.schema import EMOTIONS
from batchfer.weights_file import (
    read_arrays,
    read_named_arrays,
    set_named_weights,
    set_weights,
)

CLASS_NAMES: Mapping[str, str] = {
    **{name: name for name in EMOTIONS},
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "scared": "fear",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "neutrality": "neutral",
}
"""Spellings of the seven classes in lower case, each with the emotion that it names."""

IMAGENET_RGB_MEAN = (123.68, 116.779, 103.939)
"""Channel means that the VGG release subtracts (Simonyan & Zisserman 2015)."""

MAX_CARD_BYTES = 4 * 1024**2

# --- cards ------------------------------------------------------------------------------------


def _full_face() -> dict[str, float]:
    return {"margin": 1.0, "shift_x": 0.0, "shift_y": 0.0}


@dataclass(frozen=True)
class ModelCard:
    """What a model file does not say about itself: the JSON beside it.

    ``labels`` name the outputs in order, each one of `EMOTIONS`. ``input_size`` is the side of the
    input in px, ``channels`` 3 or 1. ``crop`` holds ``margin``, the crop's side in units of the
    face box's longer side, and ``shift_x``, ``shift_y``, the move of its centre in the same unit.
    ``landmarks`` are five pairs x, y: where eyes, nose and corners of the mouth lie in a crop, in
    units of its side, for a model of upright faces; without them crops are cut by the box alone.
    Probabilities are softmax(log p / ``temperature``), averaged with those of the mirrored face
    before if ``flip_average``; below ``uncertain_below`` a prediction was wrong more often than
    right on validation data. ``runs`` are the training runs behind the model, by which they can be
    repeated (`batchfer.recipes.PastRun`). The rest is for people: where the weights come from, how
    they can be made again, and what they reach.
    """

    name: str
    labels: tuple[str, ...]
    input_size: int
    channels: int = 3
    crop: Mapping[str, float] = field(default_factory=_full_face)
    landmarks: Sequence[Sequence[float]] = ()
    temperature: float = 1.0
    flip_average: bool = False
    uncertain_below: float = 0.0
    sha256: str = ""
    architecture: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    runs: Sequence[Mapping[str, Any]] = ()
    base_weights: Mapping[str, Any] = field(default_factory=dict)
    training_data: Sequence[Mapping[str, Any]] = ()
    licence: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a card that cannot be applied."""
        if not isinstance(self.name, str) or not self.name:
            raise ModelError("a card needs a name")
        known = [CLASS_NAMES.get(str(label).lower()) for label in self.labels]
        if sorted(map(str, known)) != sorted(EMOTIONS):
            raise ModelError(
                f"{self.name}: labels {', '.join(map(str, self.labels))} are not the seven "
                f"emotions {', '.join(EMOTIONS)}, each one once"
            )
        object.__setattr__(self, "labels", tuple(known))
        object.__setattr__(self, "training_data", tuple(self.training_data))
        object.__setattr__(self, "runs", tuple(self.runs))
        if not isinstance(self.input_size, int) or not 8 <= self.input_size <= 4096:
            raise ModelError(f"{self.name}: input size {self.input_size} is not 8 to 4096 px")
        if self.channels not in (1, 3):
            raise ModelError(f"{self.name}: {self.channels} channels are neither 1 nor 3")
        if not isinstance(self.crop, Mapping) or not set(self.crop) <= set(_full_face()):
            raise ModelError(f"{self.name}: a crop has margin, shift_x and shift_y only")
        object.__setattr__(self, "crop", {**_full_face(), **self.crop})
        numbers = [*self.crop.values(), self.temperature, self.uncertain_below]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ModelError(f"{self.name}: crop, temperature and uncertain_below are numbers")
        try:
            points = tuple((float(x), float(y)) for x, y in self.landmarks)
        except (TypeError, ValueError):
            points = ((math.nan, math.nan),)
        if len(points) not in (0, 5) or not all(
            math.isfinite(n) for point in points for n in point
        ):
            raise ModelError(f"{self.name}: landmarks are five pairs of numbers")
        object.__setattr__(self, "landmarks", points)
        if self.crop["margin"] <= 0 or self.temperature <= 0:
            raise ModelError(f"{self.name}: crop margin and temperature are above 0")

    def with_input(self, size: int, channels: int) -> "ModelCard":
        """Return the card with the input of the model itself.

        Raises:
            ModelError: The card was written for another size.
        """
        if self.sha256 and (size, channels) != (self.input_size, self.channels):
            raise ModelError(
                f"{self.name}: takes {size} px and {channels} channels, its card says "
                f"{self.input_size} px and {self.channels}"
            )
        return replace(self, input_size=size, channels=channels)


def locate_card(model: Path) -> Path:
    """Return where the card of a model file lies: beside it, with the suffix ``.json``."""
    return model.with_suffix(".json")


def read_card(model: Path, labels: Sequence[str] | None = None) -> ModelCard:
    """Return the card of a model file; ``labels`` stand in for a missing one, and override it.

    A whole model in HDF5 has none: a card of its name belongs to the ``.keras`` file beside it.

    Raises:
        ModelError: There is neither card nor labels, or the card is broken.
    """
    path = locate_card(model)
    if model.suffix == ".h5" or not path.is_file():
        if labels is None:
            raise ModelError(
                f"{model} has no card ({path.name} beside it); name its outputs in order with "
                "--labels a,b,..."
            )
        return ModelCard(model.stem, tuple(labels), input_size=48)
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {one.name for one in fields(ModelCard)}
        card = ModelCard(**{key: value for key, value in content.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is not the card of a model: {error}") from error
    return card if labels is None else replace(card, labels=tuple(labels))


def format_card(card: ModelCard) -> str:
    """Return the card as JSON text."""
    return json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n"


# --- networks ---------------------------------------------------------------------------------


def _assemble(
    name: str, base: Any, before: Any, after: Sequence[Any], n_classes: int, head: str = "zeros"
) -> Any:
    import keras

    base.name = "base"
    inputs = keras.Input(base.input_shape[1:], name="faces")
    features = base(before(inputs))
    for layer in after:
        features = layer(features)
    # Half precision in the layers before is fine; probabilities are made in full. A head of zeros
    # lets the first steps teach the head alone: random numbers on features as large as VGG19's send
    # gradients back that undo what the base has learnt.
    logits = keras.layers.Dense(n_classes, kernel_initializer=head, dtype="float32", name="logits")
    outputs = keras.layers.Softmax(dtype="float32", name="probabilities")(logits(features))
    return keras.Model(inputs, outputs, name=name)


def build_mobilenetv2(
    size_px: int = 96,
    n_classes: int = len(EMOTIONS),
    weights: str | None = None,
    width: float = 1.0,
    dropout: float = 0.3,
    momentum: float = 0.99,
) -> Any:
    """Return MobileNetV2 (Sandler et al. 2018), globally average-pooled, for fine-tuning.

    ``weights`` is None for random ones or ``"imagenet"`` for Keras' own download; ``width``
    multiplies the number of channels; ``momentum`` is that of the normalization statistics, whose
    released 0.999 forgets those of ImageNet too slowly for a short training.
    """
    import keras

    base = keras.applications.MobileNetV2(
        input_shape=(size_px, size_px, 3), alpha=width, include_top=False, weights=weights
    )
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
    layers = keras.layers
    before = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")
    after = [layers.GlobalAveragePooling2D(name="pool"), layers.Dropout(dropout, name="dropout")]
    return _assemble("mobilenetv2", base, before, after, n_classes)


def build_mobilenetv2_baseline(
    size_px: int = 224,
    n_classes: int = len(EMOTIONS),
    weights: str | None = None,
    width: float = 1.0,
) -> Any:
    """Return the original MobileNetV2 recipe's network: pixels / 255, pool, Dense 128, softmax."""
    import keras

    base = keras.applications.MobileNetV2(
        input_shape=(size_px, size_px, 3), alpha=width, include_top=False, weights=weights
    )
    layers = keras.layers
    before = layers.Rescaling(1 / 255, name="scale")
    after = [
        layers.GlobalAveragePooling2D(name="pool"),
        layers.Dense(128, activation="relu", name="hidden"),
    ]
    return _assemble("mobilenetv2_baseline", base, before, after, n_classes, "glorot_uniform")


def build_vgg19(
    size_px: int = 48,
    n_classes: int = len(EMOTIONS),
    weights: str | None = None,
    dropout: float = 0.5,
) -> Any:
    """Return VGG19 (Simonyan & Zisserman 2015), globally average-pooled, for fine-tuning.

    The release expects blue, green, red; `load_base_weights` turns its first kernels around
    instead, so that the network takes RGB like every other. A batch normalization follows each
    convolution, which the release has none of: it changes nothing at first, `fit_normalization`
    sets it to the data, and `classifier.fold_layers` takes it away again.
    """
    import keras

    release = keras.applications.VGG19(
        input_shape=(size_px, size_px, 3), include_top=False, weights=weights
    )
    base = _normalize_convolutions(release)
    if weights is not None:
        _take_kernels(base, release)
    layers = keras.layers
    before = layers.Rescaling(1.0, offset=[-mean for mean in IMAGENET_RGB_MEAN], name="scale")
    after = [layers.GlobalAveragePooling2D(name="pool"), layers.Dropout(dropout, name="dropout")]
    return _assemble("vgg19", base, before, after, n_classes)


def _normalize_convolutions(release: Any) -> Any:
    """Return a chain of convolutions and poolings with a normalization before each ReLU."""
    import keras

    layers = keras.layers
    identity = {"momentum": 0.9, "moving_variance_initializer": keras.initializers.Constant(0.999)}
    features = inputs = keras.Input(release.input_shape[1:])
    for layer in release.layers[1:]:
        if not isinstance(layer, layers.Conv2D):
            features = type(layer).from_config(layer.get_config())(features)
            continue
        config = {**layer.get_config(), "activation": "linear"}
        features = layers.Conv2D.from_config(config)(features)
        features = layers.BatchNormalization(name=f"{layer.name}_bn", **identity)(features)
        features = layers.ReLU(name=f"{layer.name}_relu")(features)
    return keras.Model(inputs, features)


def _take_kernels(base: Any, release: Any) -> None:
    """Copy the kernels of the release into its normalized twin, turned from BGR to RGB."""
    for layer in release.layers:
        if layer.weights:
            base.get_layer(layer.name).set_weights(layer.get_weights())
    _reverse_input_channels(base)


def fit_normalization(model: Any, pictures: npt.NDArray[np.uint8]) -> None:
    """Set the normalizations of a VGG19 to the statistics of pictures ``(N,S,S,3)``, in place.

    Mean and spread are taken away and given back by each, so that the network computes the same as
    before, and trains as a normalized one does (Mishkin & Matas 2016 start from data likewise).
    """
    import keras

    base = model.get_layer("base")
    features = model.get_layer("scale")(pictures)
    for layer in base.layers[1:]:
        if not isinstance(layer, keras.layers.BatchNormalization):
            features = layer(features)
            continue
        values = keras.ops.convert_to_numpy(features).astype(np.float32)
        mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
        layer.set_weights([np.sqrt(variance + layer.epsilon), mean, mean, variance])


def build_vgg19_baseline(
    size_px: int = 48, n_classes: int = len(EMOTIONS), weights: str | None = None
) -> Any:
    """Return the original VGG19 recipe's network: pixels / 255, Flatten, Dense 256, softmax.

    Its author fed RGB to kernels that were trained on blue, green, red; so does this.
    """
    import keras

    base = keras.applications.VGG19(
        input_shape=(size_px, size_px, 3), include_top=False, weights=weights
    )
    layers = keras.layers
    after = [
        layers.Flatten(name="flatten"),
        layers.Dense(256, activation="relu", name="hidden"),
        layers.Dropout(0.5, name="dropout"),
    ]
    before = layers.Rescaling(1 / 255, name="scale")
    return _assemble("vgg19_baseline", base, before, after, n_classes, "glorot_uniform")


ARCHITECTURES: Mapping[str, Callable[..., Any]] = {
    "mobilenetv2": build_mobilenetv2,
    "mobilenetv2_baseline": build_mobilenetv2_baseline,
    "vgg19": build_vgg19,
    "vgg19_baseline": build_vgg19_baseline,
}
"""The networks that a recipe can name."""


def load_base_weights(model: Any, weights: Path) -> None:
    """Fill the ImageNet base of a network from a ``.weights.h5`` file, or from an old ``.h5``.

    Raises:
        ModelError: The file is missing or does not fit the network.
    """
    if not weights.is_file():
        raise ModelError(f"base weights {weights} do not exist")
    base = model.get_layer("base")
    if model.name == "vgg19":
        import keras

        release = keras.applications.VGG19(
            input_shape=base.input_shape[1:], include_top=False, weights=None
        )
    else:
        release = base
    try:
        if weights.name.endswith(".weights.h5"):
            set_weights(release, read_arrays(weights, "the file"))
        else:
            set_named_weights(release, read_named_arrays(weights, "the file")[0])
    except (ValueError, ModelError) as error:
        raise ModelError(f"base weights {weights} do not fit {model.name}: {error}") from error
    if release is not base:
        _take_kernels(base, release)


def _reverse_input_channels(base: Any) -> None:
    first = base.get_layer("block1_conv1")
    kernel, bias = first.get_weights()
    first.set_weights([kernel[:, :, ::-1], bias])


# --- whole models in HDF5 ---------------------------------------------------------------------


def load_legacy_h5(path: Path, n_classes: int) -> Any:
    """Return the network of an old whole-model ``.h5`` of the VGG19 recipe.

    The network is built here and only arrays are taken from the file, by the names of its layers;
    nothing that the file describes is executed. Its input is what its author fed it, pixels that
    were divided by 255 outside of the model (``rescale`` does so here).

    Raises:
        ModelError: The file is not HDF5, or its arrays are not those of the VGG19 recipe.
    """
    import keras

    named, text = read_named_arrays(path, f"{path} is not a whole Keras model in HDF5")
    first, last = _find_dense(named)
    if not first:
        raise ModelError(f"{path} does not hold the VGG19 recipe (Flatten, Dense 256, softmax)")
    n_inputs, n_hidden = named[first]["kernel"].shape
    # Five poolings halve the side; the Dense layer sees what is left of it in 512 channels.
    size_px = find_size(text) or 32 * math.isqrt(n_inputs // 512)
    if (size_px // 32) ** 2 * 512 != n_inputs or not 32 <= size_px <= 1024:
        raise ModelError(f"{path}: its input size {size_px} px does not fit its Dense layer")
    layers = keras.layers
    base = keras.applications.VGG19(
        input_shape=(size_px, size_px, 3), include_top=False, weights=None
    )
    features = layers.Flatten()(base.output)
    features = layers.Dense(n_hidden, activation="relu", name="hidden")(features)
    outputs = layers.Dense(n_classes, activation="softmax", name="probabilities")(features)
    model = keras.Model(base.input, outputs, name="vgg19_baseline")
    named["hidden"], named["probabilities"] = named.pop(first), named.pop(last)
    try:
        set_named_weights(model, named)
    except ValueError as error:
        raise ModelError(
            f"{path}: its arrays are not those of VGG19 with {n_classes} outputs ({error})"
        ) from error
    return model


def _find_dense(named: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> tuple[str, str]:
    """Return the names of the two Dense layers, empty where there are not two, one on the other.

    Their names depend on what their author had built before.
    """
    shapes = {
        name: arrays["kernel"].shape
        for name, arrays in named.items()
        if "kernel" in arrays and arrays["kernel"].ndim == 2
    }
    for first, last in permutations(shapes, 2) if len(shapes) == 2 else ():
        n_inputs, n_hidden = shapes[first]
        if n_inputs and n_inputs % 512 == 0 and n_hidden and n_hidden == shapes[last][0]:
            return first, last
    return "", ""


def find_size(text: str) -> int | None:
    """Return the input side that the description of an old model declares, None for none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    while isinstance(value, dict):
        config = value.get("config")
        config = config if isinstance(config, dict) else {}
        shape = config.get("batch_shape") or config.get("batch_input_shape")
        if isinstance(shape, list) and len(shape) > 1:
            return shape[1] if type(shape[1]) is int else None
        layers = config.get("layers")
        value = layers[0] if isinstance(layers, list) and layers else None
    return None
