"""A Keras model and its card: face crops in, emotion probabilities out.

A model file is untrusted input: `batchfer.model_file` reads it, Keras never does.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.emotions.card import ModelCard, find_model, read_card
from batchfer.emotions.folding import fold_layers
from batchfer.emotions.legacy import load_legacy_h5
from batchfer.emotions.model_file import check_size, load_network_file
from batchfer.errors import ModelError
from batchfer.faces.crops import align_faces, crop_faces
from batchfer.files import display_name, hash_file
from batchfer.machine import hide_stderr
from batchfer.schema import EMOTIONS, FaceDetections, Floats, Images

logger = logging.getLogger(__name__)

BATCH_MULTIPLE = 4
"""Batches of more than two are padded to a multiple of this, so that kernels are prepared for few
shapes, and one face to two: for a single picture other kernels round differently, so that a face's
last bits would depend on its company.
"""
FACES_AT_ONCE = 16
GPU_FACTOR = 16
"""Bounds the memory of a crowd's activations; a GPU wants more work at a time."""


@dataclass(frozen=True)
class ReadOut:
    """A network's last layer: features to logits, one for each of the card's labels.

    In double precision and face by face. TensorFlow's product of matrices, its softmax and its
    logarithm compute the last rows of a batch in another way than the others. ``weights`` are
    ``(C,F)``, ``biases`` ``(C,)``.
    """

    weights: npt.NDArray[np.float64]
    biases: npt.NDArray[np.float64]

    def __call__(self, features: Floats) -> npt.NDArray[np.float64]:
        """Return logits ``(N,C)`` of features ``(N,F)``."""
        logits: npt.NDArray[np.float64] = (features[:, None] * self.weights).sum(axis=-1)
        return logits + self.biases


def _take_logarithms(probabilities: Floats) -> npt.NDArray[np.float64]:
    """Return what the softmax makes the same probabilities of: the read-out of other networks."""
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-30))


def _soften(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the softmax of each row."""
    powers: npt.NDArray[np.float64] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


@dataclass(frozen=True)
class Classifier:
    """A loaded model.

    ``network`` maps crops ``(N,S,S,3)`` uint8 to what ``read_out`` makes logits of, ``(V,N,F)``:
    once for each view of a face, which are the crop and, where the card says so, its mirror image.
    Made by `load_classifier`. Thread-safe: several threads may predict at once.
    """

    card: ModelCard
    sha256: str
    network: Any
    read_out: Callable[[Floats], npt.NDArray[np.float64]]
    device: str

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
        at_once = FACES_AT_ONCE * (GPU_FACTOR if "GPU" in self.device.upper() else 1)
        parts = [self._halve(crops[i : i + at_once]) for i in range(0, len(crops), at_once)]
        return np.concatenate([np.zeros((0, len(EMOTIONS)), np.float32), *parts])

    def _halve(self, crops: Images) -> Floats:
        """Predict in halves where the device's memory is too small for the whole."""
        import tensorflow as tf

        try:
            return self._predict(crops)
        except tf.errors.ResourceExhaustedError as error:
            if len(crops) == 1:
                raise MemoryError(f"too little memory on {self.device} for a face") from error
            _log_shrinking(self.device)
            half = len(crops) // 2
            return np.concatenate([self._halve(crops[:half]), self._halve(crops[half:])])

    def _predict(self, crops: Images) -> Floats:
        n_faces = len(crops)
        padding = -n_faces % (BATCH_MULTIPLE if n_faces > 2 else 2)
        if padding:
            crops = np.concatenate([crops, np.zeros((padding, *crops.shape[1:]), np.uint8)])
        import tensorflow as tf

        with tf.device(self.device):
            views: Floats = self.network(tf.constant(crops)).numpy()[:, :n_faces]
        probabilities = np.mean([_soften(self.read_out(view)) for view in views], axis=0)
        # Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks").
        calibrated = _soften(_take_logarithms(probabilities) / self.card.temperature)
        order = [self.card.labels.index(emotion) for emotion in EMOTIONS]
        return np.asarray(calibrated[:, order], np.float32)


@cache
def _log_shrinking(device: str) -> None:
    logger.warning("%s is short of memory: faces go through it in smaller batches", device)


def load_classifier(
    model: str | Path,
    labels: Sequence[str] | None = None,
    rescale: float | None = None,
    device: str = "/CPU:0",
) -> Classifier:
    """Return the classifier that a model file and its card describe.

    Args:
        model: A shipped name such as ``mobilenetv2``, or a path to ``.keras`` (with its card
            beside it, or ``labels``) or to an old whole-model ``.h5`` (with ``labels``).
        labels: Names of the outputs in order, for a model without a card.
        rescale: Factor on pixel values 0-255 for a model that does not scale its own input.
        device: TensorFlow device that runs it.

    Raises:
        ModelError: The model is unknown, unsafe, has no card and no labels, or does not map a
            picture to one finite probability per label.
    """
    path = find_model(str(model))
    with hide_stderr():  # the first operation of a process looks for devices, aloud
        return _load_classifier(path, labels, rescale, device)


def _load_classifier(
    path: Path, labels: Sequence[str] | None, rescale: float | None, device: str
) -> Classifier:
    card, keras_model, sha256 = load_network(path, labels)
    try:
        folded = fold_layers(keras_model)
        _check_output(path, card, folded)
        features, read_out = split_read_out(folded)
        network = _trace(features, card, rescale, device)
    except ModelError:
        raise
    except Exception as error:  # Keras raises whatever its layers raise
        detail = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{display_name(path)}: cannot be run ({detail[0][:200]})") from error
    return Classifier(card, sha256, network, read_out, device)


def load_network(
    model: str | Path, labels: Sequence[str] | None = None
) -> tuple[ModelCard, Any, str]:
    """Return the card, the Keras model and the SHA-256 of a model that is given by name or file.

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
    sha256 = hash_file(path)
    if card.sha256 and card.sha256 != sha256:
        raise ModelError(f"{display_name(path)}: its SHA-256 is not the one in its card")
    return _check_shape(path, card, keras_model), keras_model, sha256


def _check_shape(path: Path, card: ModelCard, model: Any) -> ModelCard:
    """Return the card with the model's own input size; refuse shapes that do not fit it."""
    name = display_name(path)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ModelError(f"{name}: a classifier has one input and one output")
    shape, outputs = model.inputs[0].shape, model.outputs[0].shape
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] not in (1, 3):
        raise ModelError(f"{name}: its input is {shape}, not (n, size, size, 1 or 3)")
    if tuple(outputs) != (None, len(card.labels)):
        raise ModelError(f"{name}: {outputs[-1]} outputs for {len(card.labels)} labels")
    return card.with_input(size=int(shape[1]), channels=int(shape[3]))


def _check_output(path: Path, card: ModelCard, model: Any) -> None:
    """Show the model a trial picture."""
    size, channels = card.input_size, card.channels
    ramp = np.linspace(0, 1, BATCH_MULTIPLE * size * size * channels, dtype=np.float32)
    outputs = np.asarray(model(ramp.reshape(BATCH_MULTIPLE, size, size, channels), training=False))
    fine = np.isfinite(outputs).all() and (outputs >= 0).all()
    if not fine or not np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        raise ModelError(f"{display_name(path)}: its outputs are not probabilities")


def split_read_out(model: Any) -> tuple[Any, Callable[[Floats], npt.NDArray[np.float64]]]:
    """Return a network up to its features, and what makes logits of them.

    The features of one that does not end in a dense layer and a softmax are its probabilities.
    """
    import keras

    last, inputs = _find_source(model.outputs[0])
    wanted = "softmax"
    if isinstance(last, keras.layers.Softmax) and last.axis in (-1, 1):
        last, inputs = _find_source(inputs[0])
        wanted = "linear"
    if not isinstance(last, keras.layers.Dense) or last.activation.__name__ != wanted:
        return model, _take_logarithms
    weights, *biases = (np.asarray(one, np.float64) for one in last.get_weights())
    read_out = ReadOut(np.ascontiguousarray(weights.T), biases[0] if biases else np.zeros(1))
    return keras.Model(model.inputs, inputs[0]), read_out


def _find_source(tensor: Any) -> tuple[Any, Any]:
    """Return the layer that a symbolic tensor comes from, and what it was called with there."""
    history = tensor._keras_history
    return history.operation, history.operation._inbound_nodes[history.node_index].input_tensors


def _trace(model: Any, card: ModelCard, rescale: float | None, device: str) -> Any:
    """Return the graph of `Classifier.network`."""
    import tensorflow as tf

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
        if not card.flip_average:
            return run(pixels)[None]
        both = run(tf.concat([pixels, tf.reverse(pixels, axis=[2])], axis=0))
        return tf.stack(tf.split(both, 2))

    with tf.device(device):
        return trace(network).get_concrete_function(tf.TensorSpec((None, size, size, 3), tf.uint8))
