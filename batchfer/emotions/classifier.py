"""A Keras model and its card: face crops in, emotion probabilities out.

A model file is untrusted input: `batchfer.model_file` reads it, Keras never does.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from batchfer.arrays import FaceDetections, Floats, Images
from batchfer.emotions.card import Calibration, ModelCard, choose_name, find_model, read_card
from batchfer.emotions.folding import fold_layers
from batchfer.emotions.legacy import load_legacy_h5
from batchfer.emotions.model_file import check_size, load_network_file
from batchfer.emotions.read_outs import (
    LastLayer,
    ReadOut,
    follow_prior,
    keep_read_out,
    name_read_outs,
    split_read_outs,
)
from batchfer.engines import TENSORFLOW
from batchfer.errors import ModelError
from batchfer.faces.crops import align_faces, crop_faces
from batchfer.files import display_name, hash_file
from batchfer.machine import hide_stderr
from batchfer.schema import EMOTIONS

logger = logging.getLogger(__name__)

BATCH_MULTIPLE = 4
"""Batches of more than two are padded to a multiple of this for TensorFlow, so that kernels are
prepared for few shapes, and one face to two: for a single picture other kernels round differently,
so that a face's last bits would depend on its company.
"""
FACES_AT_ONCE = 16
GPU_FACTOR = 16
"""Bounds the memory of a crowd's activations; a GPU wants more work at a time."""


Network = Callable[[Images], Floats]
"""A model on an engine, without its last layers: crops ``(N,S,S,3)`` uint8 to features ``(V,N,F)``.

Once for each view of a face (`batchfer.emotions.views`). It raises `MemoryError` where the device's
memory is too small.
"""


@dataclass(frozen=True)
class Classifier:
    """A loaded model.

    ``read_outs`` make probabilities of the features that ``network`` gives; ``read_out`` is the
    name of the one that `predict` answers by. Made by `load_classifier`. Thread-safe: several
    threads may predict at once.
    """

    card: ModelCard
    sha256: str
    network: Network
    read_outs: Mapping[str, ReadOut]
    read_out: str
    device: str

    @property
    def calibration(self) -> Calibration:
        """What the card says of the read-out in use."""
        return self.read_outs[self.read_out].calibration

    def crop(self, images: Images, faces: FaceDetections) -> Images:
        """Return the square crops ``(N,S,S,3)`` that this model was trained to see.

        Args:
            images: Upright frames ``(B,H,W,3)``.
            faces: The faces in them. By their landmarks they are turned upright, if the card says
                where these shall lie.
        """
        size_px, crop = self.card.input_size, self.card.crop
        if self.card.landmarks:
            return align_faces(images, faces, size_px, self.card.landmarks)
        crops = np.empty((len(faces), size_px, size_px, 3), np.uint8)
        margin, shift = crop["margin"], (crop["shift_x"], crop["shift_y"])
        for row, index in enumerate(faces.image_index.tolist()):
            box = faces.boxes[row : row + 1]
            crops[row] = crop_faces(images[index], box, size_px, margin, shift)[0]
        return crops

    def predict(self, crops: Images) -> Floats:
        """Return probabilities ``(N,7)`` in the order of `EMOTIONS`, each row summing to 1.

        Args:
            crops: ``(N,S,S,3)`` uint8 RGB, S being the card's input size. N may be 0.
        """
        return self._answer(self._look(crops), self.read_out)

    def predict_each(self, crops: Images) -> dict[str, Floats]:
        """Return the probabilities of each read-out, as `predict`; the network runs once."""
        views = self._look(crops)
        return {name: self._answer(views, name) for name in self.read_outs}

    def _answer(self, parts: Sequence[Floats], name: str) -> Floats:
        order = [self.card.labels.index(emotion) for emotion in EMOTIONS]
        answers = [self.read_outs[name](views)[:, order].astype(np.float32) for views in parts]
        return np.concatenate([np.zeros((0, len(EMOTIONS)), np.float32), *answers])

    def _look(self, crops: Images) -> list[Floats]:
        """Return the features ``(V,N,F)`` of one part of the crops after the other."""
        at_once = FACES_AT_ONCE * (GPU_FACTOR if "GPU" in self.device.upper() else 1)
        parts = (self._halve(crops[i : i + at_once]) for i in range(0, len(crops), at_once))
        return [views for part in parts for views in part]

    def _halve(self, crops: Images) -> list[Floats]:
        """Look at halves where the device's memory is too small for the whole."""
        try:
            return [self.network(crops)]
        except MemoryError as error:
            if len(crops) == 1:
                raise MemoryError(f"too little memory on {self.device} for a face") from error
            _log_shrinking(self.device)
            half = len(crops) // 2
            return [*self._halve(crops[:half]), *self._halve(crops[half:])]


@dataclass(frozen=True)
class TensorFlowNetwork:
    """A `Network` that is a graph of TensorFlow on one of its devices.

    ``model`` holds the weights that the graph reads, which nothing else keeps.
    """

    graph: Any
    device: str
    model: Any

    def __call__(self, crops: Images) -> Floats:
        """Return the features of crops."""
        import tensorflow as tf

        n_faces = len(crops)
        padding = -n_faces % (BATCH_MULTIPLE if n_faces > 2 else 2)
        if padding:
            crops = np.concatenate([crops, np.zeros((padding, *crops.shape[1:]), np.uint8)])
        try:
            with tf.device(self.device):
                views: Floats = self.graph(tf.constant(crops)).numpy()[:, :n_faces]
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(f"too little memory on {self.device}") from error
        return views


@cache
def _log_shrinking(device: str) -> None:
    logger.warning("%s is short of memory: faces go through it in smaller batches", device)


class Loaded(NamedTuple):
    """A model on an engine: its card and SHA-256, `Classifier.network`, and the layers behind it.

    ``lasts`` has the last layer of each read-out by its name, the first one first.
    """

    card: ModelCard
    sha256: str
    network: Network
    lasts: Mapping[str, LastLayer | None]


def load_classifier(
    model: str | Path,
    labels: Sequence[str] | None = None,
    rescale: float | None = None,
    device: str = "/CPU:0",
    read_out: str | None = None,
    prior: Sequence[float] | None = None,
    engine: str = TENSORFLOW,
    views: int | None = None,
) -> Classifier:
    """Return the classifier that a model file and its card describe.

    Args:
        model: A shipped name such as ``mobilenetv2``, or a path to ``.keras`` (with its card
            beside it, or ``labels``) or to an old whole-model ``.h5`` (with ``labels``).
        labels: Names of the outputs in order, for a model without a card.
        rescale: Factor on pixel values 0-255 for a model that does not scale its own input.
        device: TensorFlow device that runs it.
        read_out: Name of the output to answer by; None for the model's first.
        prior: The share of each of `EMOTIONS` that the user expects; None for the model's own.
        engine: What computes it.
        views: How many views of a face are averaged, one of `VIEWS`; None for as many as the card
            says.

    Raises:
        ModelError: The model is unknown, unsafe, has no card and no labels, does not map a
            picture to one finite probability per label, or has no such read-out.
    """
    from batchfer.emotions.classifier_files import Model, load_from_files

    request = Model(find_model(str(model)), labels, rescale, views, device, engine)
    # TensorFlow's first operation reports devices on stderr.
    with hide_stderr() if engine == TENSORFLOW else nullcontext():
        loaded = load_from_files(request)
    card = loaded.card
    name = choose_name(card, tuple(loaded.lasts), read_out)
    read_outs = {
        one: ReadOut(
            last, card.calibrate(one), follow_prior(card, one, prior if one == name else None)
        )
        for one, last in loaded.lasts.items()
    }
    return Classifier(card, loaded.sha256, loaded.network, read_outs, name, device)


def load_from_keras(
    path: Path,
    labels: Sequence[str] | None,
    rescale: float | None,
    views: int | None,
    device: str,
) -> Loaded:
    """Return a model as a graph of TensorFlow.

    Raises:
        ModelError: As `load_classifier`.
    """
    card, keras_model, sha256 = load_network(path, labels)
    card = card if views is None else replace(card, views=views)
    try:
        folded = fold_layers(keras_model)
        _check_outputs(path, card, folded)
        features, lasts = split_read_outs(folded)
        graph = _trace(features, card, rescale, device)
    except ModelError:
        raise
    except Exception as error:  # Keras raises whatever its layers raise
        detail = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{display_name(path)}: cannot be run ({detail[0][:200]})") from error
    return Loaded(card, sha256, TensorFlowNetwork(graph, device, features), lasts)


def load_network(
    model: str | Path, labels: Sequence[str] | None = None, read_out: str | None = None
) -> tuple[ModelCard, Any, str]:
    """Return the card, the Keras model and the SHA-256 of a model that is given by name or file.

    Of a model with several read-outs ``read_out`` keeps one, in network and card.

    Raises:
        ModelError: As `load_classifier`, but for the outputs, which are not tried.
    """
    path = find_model(str(model))
    check_size(path)
    if path.suffix == ".h5":
        if labels is None:
            raise ModelError(f"{display_name(path)}: a .h5 model needs --labels a,b,... in order")
        card = read_card(path, labels)
        keras_model = load_legacy_h5(path, len(card.labels))
    else:
        card = read_card(path, labels)
        keras_model = load_network_file(path)
    sha256 = check_hash(path, card)
    card = _check_shape(path, card, keras_model)
    if read_out is not None and len(keras_model.outputs) > 1:
        name = choose_name(card, name_read_outs(keras_model), read_out)
        own = asdict(card.calibrate(name))
        return replace(card, read_outs={}, **own), keep_read_out(keras_model, name), sha256
    return card, keras_model, sha256


def check_hash(path: Path, card: ModelCard) -> str:
    """Return the SHA-256 of a model file.

    Raises:
        ModelError: Its card tells another one.
    """
    sha256 = hash_file(path)
    if card.sha256 and card.sha256 != sha256:
        raise ModelError(f"{display_name(path)}: its SHA-256 is not the one in its card")
    return sha256


def _check_shape(path: Path, card: ModelCard, model: Any) -> ModelCard:
    """Return the card with the model's own input size; refuse shapes that do not fit it."""
    name = display_name(path)
    if len(model.inputs) != 1:
        raise ModelError(f"{name}: a classifier has one input")
    shape, names = model.inputs[0].shape, name_read_outs(model)
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] not in (1, 3):
        raise ModelError(f"{name}: its input is {shape}, not (n, size, size, 1 or 3)")
    for outputs in (output.shape for output in model.outputs):
        if tuple(outputs) != (None, len(card.labels)):
            raise ModelError(f"{name}: {outputs[-1]} outputs for {len(card.labels)} labels")
    if len(names) > 1 and sorted(names) != sorted(card.read_outs):
        raise ModelError(f"{name}: {len(names)} outputs that its card does not name as read-outs")
    return card.with_input(size=int(shape[1]), channels=int(shape[3]))


def _check_outputs(path: Path, card: ModelCard, model: Any) -> None:
    """Show the model a trial picture."""
    size, channels = card.input_size, card.channels
    ramp = np.linspace(0, 1, BATCH_MULTIPLE * size * size * channels, dtype=np.float32)
    answers = model(ramp.reshape(BATCH_MULTIPLE, size, size, channels), training=False)
    for answer in answers if isinstance(answers, list | tuple) else [answers]:
        outputs = np.asarray(answer)
        fine = np.isfinite(outputs).all() and (outputs >= 0).all()
        if not fine or not np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
            raise ModelError(f"{display_name(path)}: its outputs are not probabilities")


def _trace(model: Any, card: ModelCard, rescale: float | None, device: str) -> Any:
    """Return the graph of a `Network`."""
    import tensorflow as tf

    from batchfer.emotions.views import iterate_views

    size = card.input_size
    # No Python here depends on a tensor: rewriting it would take time and leave files in the
    # temporary folder. As a function of its own the model is traced once, not once a pass.
    trace = partial(tf.function, autograph=False)

    @trace
    def run(pixels: Any) -> Any:
        return tf.cast(model(pixels, training=False), tf.float32)

    def network(crops: Any) -> Any:
        pixels = tf.cast(crops, tf.float32)
        if card.channels == 1:
            pixels = tf.image.rgb_to_grayscale(pixels)
        if rescale is not None:
            pixels *= rescale
        views = list(iterate_views(pixels, card.views))
        return tf.stack(tf.split(run(tf.concat(views, axis=0)), card.views))

    with tf.device(device):
        return trace(network).get_concrete_function(tf.TensorSpec((None, size, size, 3), tf.uint8))
