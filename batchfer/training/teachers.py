"""Trained models that share in what another one aims at (Hinton et al. 2015)."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np

from batchfer.arrays import Floats, Images
from batchfer.emotions.classifier import load_network
from batchfer.emotions.read_outs import LABELS, PEOPLE, name_read_outs
from batchfer.schema import EMOTIONS
from batchfer.training.figures import apply_temperature
from batchfer.training.options import TrainOptions
from batchfer.training.recipes import Recipe, trains_people


class Teachers:
    """Teachers who see the very pictures that are trained on, augmented as they are.

    A consistent view teaches better than one answer a face (Beyer et al. 2022). Each teaches the
    read-outs that it has; one with a single output teaches the labels. Several threads may ask.
    """

    def __init__(self, models: Sequence[str], read_outs: Sequence[str], share: float) -> None:
        """Load the teachers.

        Args:
            models: Names or files.
            read_outs: What is taught, in the order of the targets.
            share: The share of the targets that is theirs.

        Raises:
            ModelError: A teacher is refused.
        """
        self._lock = Lock()
        self._share = share
        self._read_outs = read_outs
        self._asked = [_load(model) for model in models]

    def __call__(self, images: Images, targets: Floats) -> Floats:
        """Return the targets ``(B,7)`` or ``(B,R,7)`` of pictures ``(B,S,S,3)``, so taught."""
        with self._lock:
            answers = [ask(images) for ask in self._asked]
        taught = targets.copy()
        for row, name in enumerate(self._read_outs):
            said = [one[name] for one in answers if name in one]
            if not said:
                continue
            own = taught if targets.ndim == 2 else taught[:, row]
            own *= 1 - self._share
            own += self._share * np.mean(said, axis=0, dtype=np.float32)
        return taught


def choose_teachers(options: TrainOptions, recipe: Recipe) -> Teachers | None:
    """Return those that a run asks about each picture; None where there are none."""
    if not (options.teachers and recipe.same_view):
        return None
    read_outs = (PEOPLE, LABELS) if trains_people(options, recipe) else (LABELS,)
    return Teachers(options.teachers, read_outs, recipe.teacher_share)


def _load(model: str) -> Callable[[Images], dict[str, Floats]]:
    """Return what answers with calibrated probabilities ``(B,7)`` by the names of read-outs."""
    import keras

    card, network, _ = load_network(model)
    own = name_read_outs(network)
    names = own if len(own) > 1 else (LABELS,)
    order = [card.labels.index(emotion) for emotion in EMOTIONS]
    size = (card.input_size, card.input_size)

    def ask(images: Images) -> dict[str, Floats]:
        pixels: Any = images.astype(np.float32)
        if images.shape[1:3] != size:
            pixels = np.asarray(keras.ops.image.resize(pixels, size, antialias=True))
        raw = network.predict_on_batch(pixels)
        answers = raw if isinstance(raw, list) else [raw]
        return {
            name: apply_temperature(np.asarray(one), card.calibrate(source).temperature)[:, order]
            for name, source, one in zip(names, own, answers, strict=True)
        }

    return ask
