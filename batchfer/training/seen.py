"""Which faces a model has seen in training: kept in its card, so that an evaluation can tell."""

import base64
import binascii
import logging
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from batchfer.emotions.card import ModelCard
from batchfer.errors import ModelError, UsageError
from batchfer.training.face_sets import FaceSet

logger = logging.getLogger(__name__)

Hashes = npt.NDArray[np.uint32]

MOST_FACES = 500_000
"""A card of more hashes would be too large to be read."""


def format_seen(sets: Iterable[FaceSet], earlier: Iterable[ModelCard]) -> str:
    """Return the faces of sets, and those that earlier models have seen, as a card keeps them.

    Base64 of sorted 32-bit hashes, least significant byte first; empty where there are more than a
    card can hold. Earlier models whose cards do not tell are left out.
    """
    known = []
    for card in earlier:
        try:
            known.append(read_seen(card))
        except (UsageError, ModelError) as error:
            logger.debug("%s", error)  # a card that does not tell ends no training
    hashes = np.unique(np.concatenate([*(faces.hashes for faces in sets), *known]))
    if len(hashes) > MOST_FACES:
        return ""
    return base64.b64encode(hashes.astype("<u4").tobytes()).decode()


def read_seen(card: ModelCard) -> Hashes:
    """Return the hashes ``(N,)`` of the faces that a model has seen.

    Raises:
        UsageError: Its card does not tell.
        ModelError: What it tells is broken.
    """
    if not card.seen_faces:
        raise UsageError(f"the card of {card.name} does not tell which faces it was trained on")
    try:
        content = base64.b64decode(card.seen_faces, validate=True)
        return np.frombuffer(content, "<u4").astype(np.uint32)
    except (binascii.Error, ValueError) as error:
        raise ModelError(f"{card.name}: its seen_faces are broken") from error


def find_seen(faces: FaceSet, card: ModelCard) -> npt.NDArray[np.bool_]:
    """Return which faces ``(N,)`` a model has seen, to train on or to validate on.

    They are known by the bytes of their files, or by the pixels of a row of a table, wherever they
    lie by now. One in 100,000 others is taken for one of 40,000 that were seen.

    Raises:
        UsageError, ModelError: As `read_seen`.
    """
    return np.isin(faces.hashes, read_seen(card))
