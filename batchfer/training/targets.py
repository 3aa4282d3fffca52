"""What a network is taught: softened labels, class frequencies, the validation split."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats, Images
from batchfer.errors import DataError
from batchfer.faces.crops import resize_crop
from batchfer.schema import EMOTIONS
from batchfer.training.face_sets import FaceSet
from batchfer.training.layouts import FaceList

DUPLICATE_CORRELATION = 0.97


def join_votes(faces: FaceSet, votes: Mapping[str, Floats]) -> Floats:
    """Return the votes ``(N,7)`` of each face, by the names of the pictures; zeros for none.

    Raises:
        DataError: There are none for any of the faces.
    """
    none = np.zeros(len(EMOTIONS), np.float32)
    joined = np.array([votes.get(name.rsplit("/", 1)[-1], none) for name in faces.names])
    if not joined.any():
        raise DataError("the votes name none of the pictures")
    return joined


def soften_targets(
    faces: FaceSet, votes: Mapping[str, Floats], vote_share: float, smoothing: float
) -> FaceSet:
    """Return the faces with soft targets.

    The target of a face with votes is ``(1 - vote_share)`` of its label and ``vote_share`` of the
    votes; with a share of 1 it is the vote distribution. Other faces get label smoothing
    (Szegedy et al. 2016).

    Raises:
        DataError: There are votes, but for none of the faces.
    """
    targets = np.eye(len(EMOTIONS), dtype=np.float32)[faces.labels]
    smooth = (1 - smoothing) * targets + np.float32(smoothing / len(EMOTIONS))
    n_joined = 0
    for row, name in enumerate(faces.names):
        vote = votes.get(name.rsplit("/", 1)[-1])
        if vote is None:
            targets[row] = smooth[row]
        else:
            targets[row] = (1 - vote_share) * targets[row] + vote_share * vote / vote.sum()
            n_joined += 1
    if votes and not n_joined:
        raise DataError("the votes name none of the pictures")
    return replace(faces, targets=targets)


def keep_frequencies(faces: FaceSet) -> FaceSet:
    """Return the faces with targets whose mean is the frequency of the labels, in each data set.

    Votes and teachers prefer some classes (FER+ sees neutral faces where FER2013 sees fear), and a
    network would learn that with what it is to learn. Columns and rows of the targets are scaled in
    turn until both fit (Sinkhorn 1967).
    """
    targets = faces.targets.astype(np.float64)
    for source in np.unique(faces.sources):
        rows = faces.sources == source
        counts = np.bincount(faces.labels[rows], minlength=len(EMOTIONS))
        own = targets[rows]
        for _ in range(50):
            own *= counts / np.maximum(own.sum(axis=0), 1e-9)
            own /= np.maximum(own.sum(axis=1, keepdims=True), 1e-9)
        targets[rows] = own
    return replace(faces, targets=targets.astype(np.float32))


def relabel_by_majority(faces: FaceSet, votes: Mapping[str, Floats]) -> FaceSet:
    """Return the faces labelled as most FER+ annotators who chose one of the seven did.

    Of emotions with equally many votes it is the first; a face without votes keeps its label.

    Raises:
        DataError: There are votes, but for none of the faces.
    """
    labels = faces.labels.copy()
    found = [votes.get(name.rsplit("/", 1)[-1]) for name in faces.names]
    for row, vote in enumerate(found):
        if vote is not None:
            labels[row] = int(vote.argmax())
    if votes and all(vote is None for vote in found):
        raise DataError("the votes name none of the pictures")
    return replace(faces, labels=labels, targets=np.eye(len(EMOTIONS), dtype=np.float32)[labels])


def split_validation(faces: FaceSet, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which faces validate: a seeded share of each class of each data set.

    Raises:
        DataError: A class is too small to give one face to each side.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(faces), bool)
    for source in np.unique(faces.sources):
        for label, emotion in enumerate(EMOTIONS):
            rows = np.flatnonzero((faces.sources == source) & (faces.labels == label))
            if len(rows) == 1:
                raise DataError(f"{source}: one picture of {emotion} cannot be split")
            n_chosen = max(round(share * len(rows)), 1) if share and len(rows) else 0
            chosen[rng.permutation(rows)[:n_chosen]] = True
    return chosen


def draw_per_class(lists: Sequence[FaceList], limit: int, seed: int) -> list[FaceList]:
    """Return the lists with at most ``limit`` training pictures of a class in all of them together.

    The draw is seeded; pictures of other parts are kept.
    """
    rng = np.random.default_rng(seed)
    labels = np.concatenate([one.labels for one in lists])
    trains = np.array([part in ("train", "") for one in lists for part in one.parts])
    kept = ~trains
    for label in range(len(EMOTIONS)):
        kept[rng.permutation(np.flatnonzero(trains & (labels == label)))[:limit]] = True
    ends = np.cumsum([len(one) for one in lists])[:-1]
    return [
        one.select(np.flatnonzero(mask))
        for one, mask in zip(lists, np.split(kept, ends), strict=True)
    ]


def find_near_duplicates(faces: FaceSet, others: FaceSet) -> npt.NDArray[np.bool_]:
    """Return for each of ``faces`` whether nearly the same picture is among ``others``.

    Near-duplicates are pictures, or mirrored copies, whose equalised grey values at 48 px
    correlate by more than 0.97.
    """
    found = np.zeros(len(faces), bool)
    other_prints = [_fingerprint(images) for images in others.batches(2048)]
    if not other_prints or not len(faces):
        return found
    mirrored = [prints.reshape(-1, 48, 48)[:, :, ::-1].reshape(len(prints), -1)
                for prints in other_prints]  # fmt: skip
    start = 0
    for images in faces.batches(2048):
        prints = _fingerprint(images)
        closest = np.full(len(prints), -1.0, np.float32)
        for block in (*other_prints, *mirrored):
            np.maximum(closest, (prints @ block.T).max(axis=1), out=closest)
        found[start : start + len(prints)] = closest > DUPLICATE_CORRELATION
        start += len(prints)
    return found


def _fingerprint(images: Images) -> Floats:
    """Return equalised grey 48x48 pictures with zero mean and unit length, ``(N,2304)``."""
    import cv2

    prints = np.empty((len(images), 48 * 48), np.float32)
    for row, image in zip(prints, images, strict=True):
        grey = resize_crop(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)), 48)
        flat = cv2.equalizeHist(grey).astype(np.float32).ravel()
        flat -= flat.mean()
        row[:] = flat / max(float(np.linalg.norm(flat)), 1e-6)
    return prints
