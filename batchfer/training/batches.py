"""Training batches: augmented pictures, in an order that the seed decides."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats, Images
from batchfer.faces.crops import resize_crop
from batchfer.training.compression import compress
from batchfer.training.face_sets import FaceSet
from batchfer.training.occlusions import KINDS, N_NUMBERS, paint

QUALITIES = (15.0, 70.0)
"""The JPEG qualities that pictures are compressed to, least and most."""


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied; zero switches a variation off.

    ``rotation`` is in degrees; ``scale``, ``shift`` and ``shear`` are shares of the side, each the
    largest to either side; ``flip`` mirrors one half. ``crop`` is the share of the side that is
    shown, from anywhere in the picture and enlarged to its size; 1 shows all. What a picture does
    not show is filled by reflection, for the share ``border`` with one grey, as around a picture on
    a page.
    ``brightness`` moves and ``contrast`` spreads the values. ``grey`` is the share of pictures
    turned grey, ``coarse`` the share that is shrunk and enlarged as a small face would be,
    ``erase`` the share that loses a rectangle (Zhong et al. 2020). On the share ``occlude``
    something is painted that hides part of the face (`batchfer.training.occlusions`), and the share
    ``compress`` goes through JPEG of low quality. ``mixup`` is the alpha of Zhang et al. 2018.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    shear: float = 0.0
    crop: float = 1.0
    flip: bool = False
    border: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    grey: float = 0.0
    coarse: float = 0.0
    erase: float = 0.0
    occlude: float = 0.0
    compress: float = 0.0
    mixup: float = 0.0

    @property
    def is_none(self) -> bool:
        """Whether pictures pass unchanged."""
        return self == Augmentation()


def augment(image: Images, how: Augmentation, rng: np.random.Generator) -> Images:
    """Return a varied copy of one picture ``(S,S,3)``."""
    import cv2

    size_px = image.shape[0]
    if rng.random() < how.coarse:
        small_px = max(int(rng.uniform(0.25, 0.7) * size_px), 8)
        image = resize_crop(resize_crop(image, small_px), size_px)
    image = _warp(image, how, rng)
    if rng.random() < how.grey:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
    if how.brightness or how.contrast:
        spread = 1 + rng.uniform(-how.contrast, how.contrast)
        move = 255 * rng.uniform(-how.brightness, how.brightness)
        mean = float(image.mean())
        levels = np.clip((np.arange(256) - mean) * spread + mean + move, 0, 255).astype(np.uint8)
        image = levels[image]
    if rng.random() < how.erase:
        image = _erase(image, rng)
    return image


def _warp(image: Images, how: Augmentation, rng: np.random.Generator) -> Images:
    if not (how.rotation or how.scale or how.shift or how.shear or how.flip or how.crop < 1):
        return image
    import cv2

    size_px = image.shape[0]
    angle = np.deg2rad(rng.uniform(-how.rotation, how.rotation))
    zoom = (1 + rng.uniform(-how.scale, how.scale)) / how.crop
    shear = rng.uniform(-how.shear, how.shear)
    shift = rng.uniform(-how.shift, how.shift, 2) * size_px
    if how.crop < 1:
        shift += rng.uniform(-1, 1, 2) * (1 / how.crop - 1) / 2 * size_px
    mirror = -1.0 if how.flip and rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = zoom * turn @ np.array([[mirror, shear], [0.0, 1.0]])
    centre = np.full(2, (size_px - 1) / 2)
    plain = how.border > 0 and rng.random() < how.border
    grey = float(rng.integers(0, 256)) if plain else 0.0
    matrix = np.column_stack([linear, centre + shift - linear @ centre])
    warped = cv2.warpAffine(
        image,
        matrix,
        (size_px, size_px),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT if plain else cv2.BORDER_REFLECT_101,
        borderValue=(grey, grey, grey),
    )
    return np.asarray(warped, np.uint8)


def _erase(image: Images, rng: np.random.Generator) -> Images:
    size_px = image.shape[0]
    area, ratio = rng.uniform(0.02, 0.2), np.exp(rng.uniform(-1, 1) * np.log(3))
    height = min(size_px, round(size_px * np.sqrt(area * ratio)))
    width = min(size_px, round(size_px * np.sqrt(area / ratio)))
    top = int(rng.integers(0, size_px - height + 1))
    left = int(rng.integers(0, size_px - width + 1))
    image = image.copy()
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    image[top : top + height, left : left + width] = noise
    return image


class TrainingBatches:
    """Shuffled, augmented batches, each a function of the seed, the epoch and its index.

    ``targets`` are ``(N,7)``, or ``(N,R,7)`` for R read-outs; a row of less than 1 in all counts
    less. ``teach`` makes of the pictures and targets of a batch other targets.

    With ``even`` each data set is drawn equally often: an epoch keeps its length, shows the faces
    of a small one several times and leaves some of a large one to the next epochs.
    ``augmentation`` may be replaced between epochs.
    """

    def __init__(
        self,
        faces: FaceSet,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        even: bool = False,
        targets: Floats | None = None,
        teach: Callable[[Images, Floats], Floats] | None = None,
    ) -> None:
        """Keep the faces and what they aim at, by default their own; nothing is drawn yet."""
        import cv2

        # Pictures are too small for OpenCV's threads, which would spin beside the training.
        cv2.setNumThreads(0)
        self.faces = faces
        self.targets = faces.targets if targets is None else targets
        total = self.targets.sum(axis=0, dtype=np.float64)
        self.mean_target = (total / total.sum(axis=-1, keepdims=True)).astype(np.float32)
        self._teach = teach
        self.batch_size = min(batch_size, len(faces))
        self.seed = seed
        self.augmentation = augmentation
        self.even = even
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        """Return the number of batches of an epoch; faces that fill none wait for the next."""
        return len(self.faces) // self.batch_size

    def _shuffle(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng((self.seed, epoch))
        if not self.even:
            return rng.permutation(len(self.faces))
        sources = self.faces.sources
        sets = [np.flatnonzero(sources == source) for source in np.unique(sources)]
        share = -(-len(self.faces) // len(sets))
        drawn = [
            np.concatenate([rng.permutation(rows) for _ in range(-(-share // len(rows)))])[:share]
            for rows in sets
        ]
        return rng.permutation(np.concatenate(drawn))[: len(self.faces)]

    def batch(self, number: int) -> tuple[Images, Floats]:
        """Return pictures ``(B,S,S,3)`` and their targets of a batch, counted over epochs."""
        epoch, index = divmod(number, len(self))
        rows = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        images, targets = self.faces.images(rows), self.targets[rows]
        if not self.augmentation.is_none:
            images, targets = self._vary(images, targets, (self.seed, epoch, index))
        return images, targets if self._teach is None else self._teach(images, targets)

    def _vary(
        self, images: Images, targets: Floats, seed: tuple[int, ...]
    ) -> tuple[Images, Floats]:
        how = self.augmentation
        rng = np.random.default_rng(seed)
        images, targets = self._spoil(images, targets, rng)
        images = np.stack([augment(image, how, rng) for image in images])
        if how.mixup:
            share = rng.beta(how.mixup, how.mixup)
            other = rng.permutation(len(images))
            images = np.rint(share * images + (1 - share) * images[other]).astype(np.uint8)
            targets = (share * targets + (1 - share) * targets[other]).astype(np.float32)
        return images, targets

    def _spoil(
        self, images: Images, targets: Floats, rng: np.random.Generator
    ) -> tuple[Images, Floats]:
        """Paint on some pictures and compress some; what is hidden is not asked for."""
        how = self.augmentation
        if how.occlude:
            rows = rng.permutation(len(images))[: round(how.occlude * len(images))]
            kinds = rng.integers(0, len(KINDS), len(rows))
            numbers = rng.random((len(rows), N_NUMBERS), np.float32)
            painted, hidden = paint(images[rows].astype(np.float32), kinds, numbers, np)
            images[rows] = np.rint(painted)
            share = hidden.reshape(-1, *(1,) * (targets.ndim - 1)).astype(np.float32)
            whole = targets[rows].sum(axis=-1, keepdims=True)
            targets[rows] = (1 - share) * targets[rows] + share * whole * self.mean_target
        if how.compress:
            rows = rng.permutation(len(images))[: round(how.compress * len(images))]
            qualities = rng.uniform(*QUALITIES, len(rows)).astype(np.float32)
            images[rows] = np.rint(compress(images[rows].astype(np.float32), qualities, np))
        return images, targets

    def _part(self, targets: Any) -> Any:
        """Return the targets of each read-out, as Keras takes them."""
        if self.targets.ndim == 2:
            return targets
        return tuple(targets[:, one] for one in range(self.targets.shape[1]))

    def feed(self, first: int, end: int) -> Any:
        """Return the batches ``first`` to ``end``, counted over epochs, as ``fit`` takes them.

        Made ahead by ``tf.data`` where Keras runs on TensorFlow, else by a
        ``keras.utils.PyDataset``.
        """
        import keras

        if keras.backend.backend() == "tensorflow":
            return self._feed_tensorflow(first, end)
        return self._feed_python(first, end)

    def _feed_tensorflow(self, first: int, end: int) -> Any:
        import tensorflow as tf

        def draw(number: Any) -> Any:
            return self.batch(int(number))

        @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
        def as_tensors(number: Any) -> tuple[Any, Any]:
            store, targets = self.faces.store, self.targets
            images, aims = tf.numpy_function(draw, [number], (store.dtype, targets.dtype))
            images.set_shape((self.batch_size, *store.shape[1:]))
            aims.set_shape((self.batch_size, *targets.shape[1:]))
            return images, self._part(aims)

        numbers = tf.data.Dataset.range(first, end)
        dataset = numbers.map(as_tensors, num_parallel_calls=2, deterministic=True).prefetch(8)
        options = tf.data.Options()
        # Several devices share each batch by its rows: there are no files to share out.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        # Without autotuning: there is nothing to tune, and its thread at times holds up the end of
        # an epoch until it wakes next, up to a minute later.
        options.autotune.enabled = False
        return dataset.with_options(options)

    def _feed_python(self, first: int, end: int) -> Any:
        import keras

        batches = self

        class Feed(keras.utils.PyDataset):  # type: ignore[misc]
            def __len__(self) -> int:
                return end - first

            def __getitem__(self, index: int) -> tuple[Images, Any]:
                images, targets = batches.batch(first + index)
                return images, batches._part(targets)

        return Feed(workers=2, use_multiprocessing=False, max_queue_size=8)


def spread_over_gpus() -> AbstractContextManager[Any]:
    """Return a scope in which a network is built on all devices that TensorFlow shows.

    One device, or another backend, needs none: the scope then does nothing.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        return nullcontext()
    names = [device.name for device in devices]
    scope: AbstractContextManager[Any] = tf.distribute.MirroredStrategy(names).scope()
    return scope
