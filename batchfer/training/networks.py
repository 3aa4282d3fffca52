"""A recipe's network: built, split at a frozen base, and asked."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from batchfer.arrays import Floats, Images
from batchfer.emotions.architectures import ARCHITECTURES, load_base_weights
from batchfer.emotions.card import choose_name
from batchfer.emotions.classifier import load_network
from batchfer.emotions.model_file import load_network_file
from batchfer.emotions.read_outs import (
    LABELS,
    PEOPLE,
    LastLayer,
    join_read_outs,
    keep_read_out,
    name_read_outs,
    split_read_outs,
)
from batchfer.emotions.views import iterate_views
from batchfer.errors import ModelError
from batchfer.machine import find_bfloat16_unit
from batchfer.schema import EMOTIONS
from batchfer.training.evaluate import Progress
from batchfer.training.face_sets import FaceSet
from batchfer.training.kernels import has_bfloat16_gpu, has_gpu
from batchfer.training.options import TrainOptions, goes_on
from batchfer.training.recipes import Recipe, trains_people


def draw_sample(faces: FaceSet, seed: int, n_faces: int = 768) -> Images:
    """Return up to so many seeded pictures ``(N,S,S,3)`` of a set."""
    return faces.images(np.random.default_rng(seed).permutation(len(faces))[:n_faces])


def build_network(options: TrainOptions, recipe: Recipe) -> Any:
    """Return the recipe's network on its base weights.

    It has the read-outs `PEOPLE` and `LABELS` where both are trained. `PEOPLE` begins as that of
    the model which the run goes on from, or as the labels' where that has none.

    Raises:
        ModelError: The base weights are missing or do not fit.
    """
    download = options.base_weights == "imagenet"
    settings = {"size_px": recipe.size_px, **recipe.settings}
    try:
        model = ARCHITECTURES[recipe.architecture].build(
            weights="imagenet" if download else None, **settings
        )
    except Exception as error:
        if not download:
            raise
        raise ModelError(
            "the ImageNet weights cannot be downloaded; give them with --base-weights FILE "
            f"({str(error).splitlines()[0][:120]})"
        ) from error
    lasts: Mapping[str, LastLayer | None] = {}
    if goes_on(options):
        lasts = _take_weights(model, options, recipe)
    elif options.base_weights not in ("imagenet", "none"):
        load_base_weights(model, Path(options.base_weights))
    if not trains_people(options, recipe):
        return model
    (labels,) = split_read_outs(model)[1].values()
    if labels is None:
        raise ModelError(f"{recipe.architecture} does not end in a dense layer and a softmax")
    return join_read_outs(model, {PEOPLE: lasts.get(PEOPLE) or labels, LABELS: labels})


def _take_weights(
    model: Any, options: TrainOptions, recipe: Recipe
) -> Mapping[str, LastLayer | None]:
    """Give a network the weights of a trained model; return all its last layers, by name."""
    card, whole, _ = load_network(options.base_weights)
    names = name_read_outs(whole)
    trained = keep_read_out(whole, choose_name(card, names, LABELS if len(names) > 1 else None))
    shapes, others = ([weight.shape for weight in one.weights] for one in (model, trained))
    if shapes != others or card.labels != EMOTIONS:
        raise ModelError(f"{options.base_weights} is no {recipe.architecture} to go on from")
    model.set_weights(trained.get_weights())
    return split_read_outs(whole)[1]


def load_in_float32(path: Path, options: TrainOptions, recipe: Recipe) -> Any:
    """Return the network of a file in single precision, however it was trained."""
    saved = load_network_file(path)
    model = build_network(replace(options, base_weights="none"), recipe)
    for layer in model.layers:  # whose order may be another one
        layer.set_weights(saved.get_layer(layer.name).get_weights())
    return model


def freeze_normalization(model: Any) -> None:
    """Keep the batch normalizations of a network as they are, in place."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def choose_precision(options: TrainOptions, recipe: Recipe) -> str:
    """Return Keras' name of the arithmetic: bfloat16 where asked for, or where it pays.

    It pays on GPUs that have it, and on processors with bfloat16 units for plain convolutions;
    depthwise ones become slower there.
    """
    if options.precision != "auto":
        return "mixed_bfloat16" if options.precision == "bfloat16" else "float32"
    if has_gpu():
        return "mixed_bfloat16" if has_bfloat16_gpu() else "float32"
    fast = recipe.half_precision_pays and find_bfloat16_unit()
    return "mixed_bfloat16" if fast else "float32"


def build_optimizer(recipe: Recipe, head_only: bool = False) -> Any:
    """Return the recipe's optimizer; biases and normalizations do not decay, nor a head alone."""
    if head_only:
        return keras.optimizers.Adam(recipe.learning_rate)
    decay = recipe.weight_decay or None
    if recipe.momentum:
        optimizer = keras.optimizers.SGD(
            recipe.learning_rate, recipe.momentum, nesterov=True, weight_decay=decay
        )
    elif decay:
        optimizer = keras.optimizers.AdamW(recipe.learning_rate, weight_decay=decay)
    else:
        return keras.optimizers.Adam(recipe.learning_rate)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _is_fixed(layer: Any) -> bool:
    """Whether a layer after a frozen base gives the same output in every epoch."""
    return not layer.weights and not isinstance(layer, keras.layers.Dropout)


def split_network(model: Any) -> tuple[Any, Any]:
    """Return a network with a frozen base as two: one that never changes, and the trained rest.

    The layers are shared, so that training the second trains the whole.
    """
    layers = model.layers
    cut = layers.index(model.get_layer("base")) + 1
    while _is_fixed(layers[cut]):
        cut += 1
    fixed = keras.Model(model.input, layers[cut - 1].output)
    features = inputs = keras.Input(fixed.output_shape[1:])
    for layer in layers[cut:]:
        features = layer(features)
    return fixed, keras.Model(inputs, features)


def compute_features(fixed: Any, faces: FaceSet, progress: Progress | None) -> FaceSet:
    """Return the faces with the outputs of a network that never changes in place of pictures."""
    if progress:
        progress.begin_file("features", len(faces), "face")
    parts = []
    for images in faces.batches(512):
        parts.append(np.asarray(fixed.predict(images, batch_size=64, verbose=0), np.float32))
        if progress:
            progress.advance(len(images))
    if progress:
        progress.end_file()
    return replace(faces, store=np.concatenate(parts), rows=np.arange(len(faces)))


def predict_each(model: Any, faces: FaceSet, n_views: int = 1) -> dict[str, Floats]:
    """Return probabilities ``(N,7)`` of each read-out, the mean over so many views of a face."""

    def ask(images: Images) -> list[Floats]:
        answers = model.predict(images, batch_size=128, verbose=0)
        return answers if isinstance(answers, list) else [answers]

    parts: list[list[Floats]] = []
    for images in faces.batches(2048):
        said = [ask(np.asarray(view)) for view in iterate_views(images, n_views)]
        parts.append([np.mean(views, axis=0) for views in zip(*said, strict=True)])
    columns = (np.concatenate(some).astype(np.float32) for some in zip(*parts, strict=True))
    return dict(zip(name_read_outs(model), columns, strict=True))


def predict(model: Any, faces: FaceSet, n_views: int = 1) -> Floats:
    """Return what `predict_each` does of a network with a single read-out."""
    (probabilities,) = predict_each(model, faces, n_views).values()
    return probabilities
