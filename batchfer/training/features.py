"""Features of faces, computed once and kept face by face."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from batchfer.arrays import Floats, Images
from batchfer.files import atomic_write
from batchfer.training.evaluate import Progress
from batchfer.training.face_sets import FaceSet

PIECE = 1024
"""Faces whose features are written together: what an interruption loses at most."""


class FeatureCache:
    """What a network without its last layer makes of faces, on disk."""

    def __init__(self, body: Any, folder: Path) -> None:
        """Read what is known.

        Args:
            body: A Keras network from pictures to features ``(N,F)``.
            folder: Where features lie, those of other networks, too.
        """
        key = hashlib.sha256()
        for weight in body.get_weights():
            key.update(np.ascontiguousarray(weight).tobytes())
        self._body = body
        self._stem = f"features-{key.hexdigest()[:32]}"
        self._folder = folder
        self._known: dict[bytes, Floats] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{self._stem}-*.npz"):
            with np.load(path) as piece:
                self._remember(piece["faces"], piece["features"])

    def compute_views(self, faces: FaceSet, progress: Progress | None) -> Iterator[Floats]:
        """Yield the features ``(N,F)`` of the faces, then those of their mirror images."""
        for mirrored in (False, True):
            if progress:
                progress.begin_file("features", len(faces), "face")
            parts = []
            for images in faces.batches(PIECE):
                parts.append(self._look_up(images[:, :, ::-1] if mirrored else images))
                if progress:
                    progress.advance(len(images))
            if progress:
                progress.end_file()
            yield np.concatenate(parts)

    def _look_up(self, images: Images) -> Floats:
        prints = [hashlib.sha256(image.tobytes()).digest()[:16] for image in images]
        new = [row for row, face in enumerate(prints) if face not in self._known]
        if new:
            digests = np.array([list(prints[row]) for row in new], np.uint8)
            answers = self._body.predict(images[new], batch_size=64, verbose=0)
            features = np.asarray(answers, np.float32)
            name = f"{self._stem}-{hashlib.sha256(digests.tobytes()).hexdigest()[:16]}.npz"
            with (
                atomic_write(self._folder / name) as unfinished,
                unfinished.open("wb") as file,
            ):
                np.savez(file, faces=digests, features=features)
            self._remember(digests, features)
        return np.array([self._known[face] for face in prints])

    def _remember(self, digests: Images, features: Floats) -> None:
        rows = (digest.tobytes() for digest in digests)
        self._known.update(zip(rows, features, strict=True))
