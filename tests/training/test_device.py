"""Training that stays on the device: batch augmentation, and steps without Keras' ``fit``."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from test_face_sets import make_faces
from toy_faces import draw_face

from batchfer.training.augmentation import draw_tables, vary
from batchfer.training.batches import Augmentation

ROOT = Path(__file__).parents[2]
ALL = Augmentation(
    rotation=12, scale=0.15, shift=0.08, shear=0.1, crop=0.9, flip=True, border=0.3, brightness=0.1,
    contrast=0.2, grey=0.3, coarse=0.3, erase=0.25, occlude=0.25, compress=0.2, mixup=0.2,
)  # fmt: skip


@pytest.fixture
def pictures() -> np.ndarray:
    return np.stack([draw_face(label % 7, label, 48) for label in range(24)])


def apply(how: Augmentation, pictures: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    targets = np.eye(7, dtype=np.float32)[np.arange(len(pictures)) % 7]
    tables = draw_tables(how, len(pictures), pictures.shape[1], np.random.default_rng(seed))
    images, aims = vary(pictures, targets, np.full(7, 1 / 7, np.float32), tables, how)
    return np.asarray(images), np.asarray(aims)


def test_all_variations_together_stay_pictures(pictures: np.ndarray) -> None:
    images, aims = apply(ALL, pictures)
    assert images.shape == pictures.shape and images.min() >= 0 and images.max() <= 255
    assert np.abs(images - pictures).mean() > 10
    np.testing.assert_allclose(aims.sum(axis=1), 1, rtol=1e-4)
    again, _ = apply(ALL, pictures)
    np.testing.assert_array_equal(images, again)
    assert np.abs(apply(ALL, pictures, seed=1)[0] - images).mean() > 5


def test_nothing_asked_for_changes_nothing(pictures: np.ndarray) -> None:
    images, aims = apply(Augmentation(), pictures)
    assert np.abs(images - pictures).max() < 0.01
    assert aims.max() == 1


def test_pictures_are_warped_as_one_at_a_time(pictures: np.ndarray) -> None:
    how = Augmentation(rotation=12, scale=0.15, shift=0.08, shear=0.1, flip=True)
    tables = draw_tables(how, 24, 48, np.random.default_rng(0))
    smooth = np.stack([cv2.GaussianBlur(one, (0, 0), 2) for one in pictures])
    images = np.asarray(vary(smooth, np.zeros((24, 7), np.float32), 0.0, tables, how)[0])
    mirrored = 0
    for image, row, matrix in zip(images, smooth, tables["matrices"], strict=True):
        back = matrix[:6].reshape(2, 3)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        truth = cv2.warpAffine(row, back, (48, 48), flags=flags, borderMode=cv2.BORDER_REFLECT)
        assert np.abs(image - truth)[8:40, 8:40].mean() < 1.5
        mirrored += np.linalg.det(back[:, :2]) < 0
    assert 4 < mirrored < 20


def test_each_variation_reaches_its_share(pictures: np.ndarray) -> None:
    shares = {"grey": 0.5, "erase": 0.25, "occlude": 0.5, "compress": 0.25, "coarse": 0.25}
    for name, share in shares.items():
        images, _ = apply(replace(Augmentation(), **{name: share}), pictures)
        changed = np.abs(images - pictures).mean(axis=(1, 2, 3)) > 0.05
        assert changed.sum() == round(share * 24), name
    images, _ = apply(Augmentation(shift=0.4, border=0.5), pictures)
    corner = np.ptp(images[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=-1), axis=1)
    assert len(corner) == 24 and np.ptp(images[12:], axis=0).mean() > 0
    images, aims = apply(Augmentation(mixup=5.0), pictures)
    assert (np.sort(aims, axis=1)[:, -2] > 0.01).sum() > 12


SCRIPT = r"""
import json, os, sys
sys.path[:0] = ["tests/training", "tests"]
from toy_faces import hide_tensorflow; hide_tensorflow(("av", "mtcnn"))
from dataclasses import replace
from pathlib import Path
import numpy as np
import keras
from conftest import build_quick_learner
from toy_faces import write_class_folders
from batchfer.training import run as runs
from batchfer.training.batches import Augmentation
from batchfer.training.options import TrainOptions
from batchfer.training.recipes import Recipe
from batchfer.training.train import train
from batchfer.training.layouts import list_faces

folder = Path(sys.argv[1])
root = write_class_folders(folder / "toy", {"train": 16})
names = [Path(name).name for name in list_faces(root).names]
header = "Image name,anger,disgust,fear,happiness,sadness,surprise,neutral,contempt,unknown,NF"
(folder / "votes.csv").write_text("\n".join([header, *(f"{n},1,0,0,0,0,0,9,0,0,0" for n in names)]))
how = Augmentation(
    shift=0.05, flip=True, mixup=0.2, occlude=0.25, compress=0.2, coarse=0.2, erase=0.2
)
recipe = Recipe(
    "mobilenetv2", 32, epochs=6, batch_size=12, learning_rate=3e-3, schedule="cosine",
    head_epochs=1, weight_decay=0.01, average=0.9, smoothing=0.1, augmentation=how, label_loss=0.5,
    settings={"width": 0.35, "dropout": 0.1, "momentum": 0.5},
)
options = TrainOptions(
    (root,), folder / "out", base_weights="none", validation=0.25, votes=folder / "votes.csv",
    cache=folder / "cache",
)
runs.trains_on_device = lambda: True
rates = []
make = runs.DeviceLoop.train

def spy(self, batch, numbers, rate, goes_on, check):
    def note():
        more = goes_on()
        optimizer = self._network.optimizer
        at = [id(one) for one in optimizer.variables].index(id(optimizer.learning_rate))
        rates.append((asked[-1], float(self._state[2][at])))
        return more
    asked = []
    return make(self, batch, numbers, lambda: asked.append(rate()) or asked[-1], note, check)

runs.DeviceLoop.train = spy
class Killer:
    n = 0
    def begin_file(self, name, total, unit="frame"): pass
    def end_file(self): pass
    def message(self, line): pass
    def advance(self, n_units):
        self.n += 1
        if self.n == 17:
            os.kill(os.getpid(), 2)

keras.applications.MobileNetV2 = build_quick_learner
done = train(options, None, recipe)
try:
    train(replace(options, output=folder / "two"), Killer(), recipe)
    raise SystemExit("not interrupted")
except KeyboardInterrupt:
    pass
again = train(replace(options, output=folder / "two"), None, recipe)
assert "tensorflow" not in sys.modules
print(json.dumps({
    "losses": [row["loss"] for row in done.history],
    "majority": done.card.figures["validation"]["agreement"]["people"]["majority"]["value"],
    "again": [row["val_loss"] for row in again.history],
    "val": [row["val_loss"] for row in done.history],
    "gap": max(abs(one - other) for one, other in rates),
    "spread": max(one for one, _ in rates) / min(one for one, _ in rates),
}))
"""


@pytest.mark.slow
def test_a_run_on_the_device_learns_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["losses"][-1] < 0.8 * told["losses"][0]
    assert told["majority"] == 1
    assert told["gap"] < 1e-7 and told["spread"] > 5, "each step has the rate that was asked for"
    np.testing.assert_allclose(told["again"], told["val"], rtol=2e-2)


def test_the_same_tables_on_every_backend(pictures: np.ndarray) -> None:
    faces = make_faces(pictures, np.arange(24) % 7)
    one, two = (draw_tables(ALL, len(faces), 48, np.random.default_rng((0, 3))) for _ in range(2))
    for name, table in one.items():
        np.testing.assert_array_equal(table, two[name])
    assert keras.backend.backend() == "tensorflow"
