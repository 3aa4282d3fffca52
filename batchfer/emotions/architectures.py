"""The networks, as functional Keras 3 models, and the cards that describe trained ones.

Every network takes RGB pictures ``(N,S,S,3)`` with values 0 to 255, scales them inside its graph
and returns softmax probabilities ``(N,C)`` in float32. The ImageNet layers are one nested model
named ``base``, so that a recipe can freeze it and a file of base weights can be loaded into it.

Keras is imported inside the functions: reading a card needs none of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.emotions.weights_file import (
    read_arrays,
    read_named_arrays,
    set_named_weights,
    set_weights,
)
from batchfer.errors import ModelError
from batchfer.schema import EMOTIONS

IMAGENET_RGB_MEAN = (123.68, 116.779, 103.939)
"""Channel means that the VGG release subtracts (Simonyan & Zisserman 2015)."""


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
    sets it to the data, and `folding.fold_layers` takes it away again.
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


def _fill(base: Any, weights: Path) -> None:
    """Fill a network from a ``.weights.h5`` file, or from an old ``.h5``."""
    if weights.name.endswith(".weights.h5"):
        set_weights(base, read_arrays(weights, "the file"))
    else:
        set_named_weights(base, read_named_arrays(weights, "the file")[0])


def _fill_normalized(base: Any, weights: Path) -> None:
    """Fill a VGG19 with normalizations from a file of the release, which has none."""
    import keras

    release = keras.applications.VGG19(
        input_shape=base.input_shape[1:], include_top=False, weights=None
    )
    _fill(release, weights)
    _take_kernels(base, release)


@dataclass(frozen=True)
class Architecture:
    """A network that a recipe can name.

    ``build`` returns it, ``licence`` is that of its ImageNet weights, and ``load_base`` fills the
    layers named ``base`` from a file of those.
    """

    build: Callable[..., Any]
    licence: str
    load_base: Callable[[Any, Path], None] = _fill


_GOOGLE = "ImageNet weights by Google: Apache-2.0"
_OXFORD = "ImageNet weights by Oxford VGG: CC BY 4.0"

ARCHITECTURES: Mapping[str, Architecture] = {
    "mobilenetv2": Architecture(build_mobilenetv2, _GOOGLE),
    "mobilenetv2_baseline": Architecture(build_mobilenetv2_baseline, _GOOGLE),
    "vgg19": Architecture(build_vgg19, _OXFORD, _fill_normalized),
    "vgg19_baseline": Architecture(build_vgg19_baseline, _OXFORD),
}
"""The networks that a recipe can name, as each calls itself."""


def load_base_weights(model: Any, weights: Path) -> None:
    """Fill the ImageNet base of a network from a ``.weights.h5`` file, or from an old ``.h5``.

    Raises:
        ModelError: The file is missing or does not fit the network.
    """
    if not weights.is_file():
        raise ModelError(f"base weights {weights} do not exist")
    try:
        ARCHITECTURES[model.name].load_base(model.get_layer("base"), weights)
    except (ValueError, ModelError) as error:
        raise ModelError(f"base weights {weights} do not fit {model.name}: {error}") from error


def _reverse_input_channels(base: Any) -> None:
    first = base.get_layer("block1_conv1")
    kernel, bias = first.get_weights()
    first.set_weights([kernel[:, :, ::-1], bias])
