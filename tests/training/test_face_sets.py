import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_faces import draw_face, fer_row, write_class_folders, write_fer_csv

from batchfer.errors import DataError, UsageError
from batchfer.schema import EMOTIONS
from batchfer.training.batches import Augmentation, TrainingBatches, augment
from batchfer.training.face_sets import FaceSet, check_classes, load_faces
from batchfer.training.layouts import list_faces, read_votes, recognize
from batchfer.training.targets import (
    draw_per_class,
    find_near_duplicates,
    keep_frequencies,
    relabel_by_majority,
    soften_targets,
    split_validation,
)

VOTE_HEADER = (
    "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
)


def make_faces(images: np.ndarray, labels: list[int] | np.ndarray) -> FaceSet:
    labels = np.asarray(labels, np.int64)
    n = len(labels)
    return FaceSet(
        images,
        np.arange(n),
        labels,
        np.eye(7, dtype=np.float32)[labels],
        np.array([f"{i}.png" for i in range(n)], dtype=np.str_),
        np.full(n, "toy"),
        np.full(n, "train"),
        np.arange(n, dtype=np.uint32),
    )


def load(root: Path, tmp_path: Path, part: str = "all", size_px: int = 24, **options) -> FaceSet:
    return load_faces([list_faces(root).select_part(part)], size_px, tmp_path / "cache", **options)


# --- layouts ----------------------------------------------------------------------------------


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected class folders"):
        list_faces(tmp_path)


def test_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        list_faces(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "names",
    [
        EMOTIONS,
        ("anger", "Disgust", "FEAR", "happiness", "sadness", "surprised", "Neutral"),
        ("6", "3", "2", "4", "5", "1", "7"),
    ],
)
def test_spellings_of_class_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    faces = list_faces(write_class_folders(tmp_path, {"": 2}, names))
    for name, label in zip(faces.names, faces.labels, strict=True):
        assert names[label] == name.split("/")[0]
    assert np.bincount(faces.labels).tolist() == [2] * 7
    assert len(faces.select_part("train")) == len(faces.select_part("test")) == 14


@pytest.mark.parametrize("second", ["test", "val", "validation"])
def test_parts_of_a_tree(tmp_path: Path, second: str) -> None:
    faces = list_faces(write_class_folders(tmp_path, {"train": 3, second: 1}))
    part = "test" if second == "test" else "val"
    assert len(faces.select_part("train")) == 21
    assert len(faces.select_part(part)) == 7
    assert len(faces.select_part("all")) == 28


def test_folder_of_another_class_is_refused(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"": 1})
    (tmp_path / "contempt").mkdir()
    with pytest.raises(DataError, match="contempt"):
        list_faces(tmp_path)


def test_class_folders_beside_parts_are_refused(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"train": 1})
    (tmp_path / "angry").mkdir()
    with pytest.raises(DataError, match="mixes"):
        list_faces(tmp_path)


def test_missing_and_single_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="single class, happy"):
        check_classes(np.array([3, 3, 3, 3]), "here")
    with pytest.raises(DataError, match=r"no picture of angry.*neutral"):
        check_classes(np.array([3, 3, 4, 4]), "here")
    write_class_folders(tmp_path, {"": 1})
    (tmp_path / "fear" / "0.png").unlink()
    with pytest.raises(DataError, match="no picture of fear"):
        check_classes(load(tmp_path, tmp_path / ".c").labels, "here")


def test_fer_csv(tmp_path: Path) -> None:
    usages = ["Training", "PublicTest", "PrivateTest"]
    rows = [fer_row(label, usages[label % 3]) for label in range(7)]
    faces = list_faces(write_fer_csv(tmp_path / "fer2013.csv", rows))
    assert faces.labels.tolist() == list(range(7))
    assert faces.names[3] == "fer0000003.png"
    assert faces.select_part("train").labels.tolist() == [0, 3, 6]
    assert faces.select_part("test").labels.tolist() == [1, 2, 4, 5]
    assert faces.select_part("PublicTest").labels.tolist() == [1, 4]
    decoded = load_faces([faces], 48, tmp_path / "cache")
    grey = np.array(rows[5][1].split(), int).reshape(48, 48)
    assert (decoded.images(5) == grey[:, :, None]).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("0", "1 2 3", "Training"), "line 3: 3 pixels instead of 2304"),
        (("9", fer_row(0, "")[1], "Training"), "line 3: label '9'"),
        (("", fer_row(0, "")[1], "Training"), "line 3: label ''"),
        (("0", fer_row(0, "")[1], "Practice"), "line 3: usage 'Practice'"),
        (("0", fer_row(0, "")[1].replace(" ", " x", 1), "Training"), "not numbers"),
        (("0", "300" + " 1" * 2303, "Training"), "outside 0 to 255"),
        (("0", "9" * 30 + " 1" * 2303, "Training"), "not numbers"),
        (("0", "1\0" + " 1" * 2303, "Training"), "line 3: its cells"),
        (("0", fer_row(0, "")[1]), "line 3: its cells"),
    ],
)
def test_broken_csv_rows_are_skipped_named_and_counted_or_refused(
    tmp_path: Path, row: tuple[str, ...], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[Any] = [fer_row(0, "Training"), row, fer_row(2, "Training")]
    faces = list_faces(write_fer_csv(tmp_path / "fer2013.csv", rows))
    # Votes are joined by the number of the row.
    assert faces.names == ("fer0000000.png", "fer0000002.png")
    decoded = load_faces([faces.select_part("train")], 48, tmp_path / "cache")
    assert decoded.broken == ("fer0000001.png",) and len(decoded) == 2
    assert "skipped fer0000001.png" in caplog.text and message in caplog.text
    with pytest.raises(DataError, match=rf"{message}.*\(1 broken pictures; --strict"):
        load_faces([faces], 48, tmp_path / "cache", strict=True)


def test_a_csv_of_broken_rows_is_refused(tmp_path: Path) -> None:
    path = write_fer_csv(tmp_path / "fer2013.csv", [("9", "1", "Training")])
    with pytest.raises(DataError, match=r"holds no picture: .*line 2: label '9'"):
        list_faces(path)


def test_fer2013_as_kaggle_hands_it_out_later(tmp_path: Path) -> None:
    path = tmp_path / "icml_face_data.csv"
    rows = [fer_row(3, "Training"), fer_row(4, "PrivateTest")]
    lines = ["emotion, Usage, pixels", *(f"{label},{usage},{text}" for label, text, usage in rows)]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    faces = list_faces(path)
    assert faces.labels.tolist() == [3, 4] and faces.parts == ("train", "PrivateTest")
    assert faces.names == ("fer0000000.png", "fer0000001.png")


def test_csv_without_its_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="needs the columns emotion, pixels"):
        list_faces(path)


def write_rafdb(root: Path, n_train: int = 20) -> Path:
    aligned = root / "Image" / "aligned"
    aligned.mkdir(parents=True)
    lines = []
    for number in range(1, n_train + 1):
        lines.append(f"train_{number:05d}.jpg {number % 7 + 1}")
    lines += [f"test_{number:04d}.jpg {number}" for number in range(1, 8)]
    for line in lines:
        name = line.split(".")[0]
        Image.fromarray(draw_face(0, 0)).save(aligned / f"{name}_aligned.jpg")
    (root / "list_patition_label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def test_official_rafdb(tmp_path: Path) -> None:
    faces = list_faces(write_rafdb(tmp_path))
    assert len(faces.select_part("train")) == 18
    assert faces.select_part("heldout").names == ("train_00010_aligned.jpg",
                                                  "train_00020_aligned.jpg")  # fmt: skip
    test = faces.select_part("test")
    expected = ["surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"]
    assert [EMOTIONS[label] for label in test.labels] == expected


def test_label_file_that_names_missing_files_is_refused(tmp_path: Path) -> None:
    write_rafdb(tmp_path)
    (tmp_path / "Image/aligned/train_00003_aligned.jpg").unlink()
    with pytest.raises(DataError, match=r"names 1 pictures that are not in .*train_00003\.jpg"):
        list_faces(tmp_path)


def test_rafdb_labels_that_are_broken_are_skipped_and_named(tmp_path: Path) -> None:
    write_rafdb(tmp_path)
    with (tmp_path / "list_patition_label.txt").open("a") as stream:
        stream.write("train_00021.jpg 8\ntrain_00022.jpg\n")
    faces = list_faces(tmp_path)
    assert len(faces) == 27
    assert [name for name, _ in faces.skipped] == ["train_00021.jpg", "train_00022.jpg"]
    assert "line 28" in faces.skipped[0][1]
    with pytest.raises(DataError, match="line 28"):
        load_faces([faces], 24, tmp_path / "cache", strict=True)


def test_further_columns_in_rafdbs_list(tmp_path: Path) -> None:
    write_rafdb(tmp_path)
    path = tmp_path / "list_patition_label.txt"
    rows = path.read_text().splitlines()
    path.write_text("\r\n".join(f"{row} 0.9" for row in rows).replace(" ", "\t"), "utf-16")
    faces = list_faces(tmp_path)
    assert len(faces) == 27 and not faces.skipped
    assert faces.labels.tolist()[:2] == [EMOTIONS.index("fear"), EMOTIONS.index("disgust")]


def test_what_programs_leave_beside_pictures_is_no_data(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", {"train": 2})
    for place in (".ipynb_checkpoints", "train/.ipynb_checkpoints", "train/sad/.ipynb_checkpoints",
                  "__MACOSX", "train/__MACOSX", "train/sad/__MACOSX"):  # fmt: skip
        (root / place).mkdir()
        shutil.copy(root / "train/sad/0.png", root / place / "0-checkpoint.png")
    assert len(list_faces(root)) == 14


def test_held_out_tenth_of_rafdb_folders_is_the_test_part(tmp_path: Path) -> None:
    for number in (9, 10, 11, 20, 100):
        folder = tmp_path / "train" / str(number % 7 + 1)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"train_{number:05d}_aligned.jpg"
        Image.fromarray(draw_face(0, number)).save(path)
    faces = list_faces(tmp_path)
    numbers = [int(name[-17:-12]) for name in faces.select_part("test").names]
    assert sorted(numbers) == [10, 20, 100]
    assert len(faces.select_part("train")) == 2


@pytest.mark.parametrize("folder", ["train/1", "1"])
def test_unaligned_pictures_of_rafdb_are_held_out_too(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    for number in (9, 10, 11, 20):
        path = tmp_path / folder / f"train_{number:05d}.jpg"
        Image.fromarray(draw_face(0, number)).save(path)
    faces = list_faces(tmp_path)
    assert len(faces.select_part("test")) == len(faces.select_part("train")) == 2
    assert all(name.endswith("0.jpg") for name in faces.select_part("test").names)


def test_pictures_are_known_by_their_names_wherever_they_lie() -> None:
    assert "RAF-DB" in recognize(["1/train_00001_aligned.jpg"]).licence
    assert "FER2013" in recognize(["train/angry/fer0000007.png"]).licence
    # The stricter licence holds for all that lies together.
    mixed = recognize(["angry/fer0000007.png", "angry/train_00001.jpg"])
    assert "non-commercial" in mixed.model_licence
    assert recognize(["angry/1.png"]).licence == "as its owner says"


def test_votes(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text(
        f"{VOTE_HEADER}\nTraining,a.png,5,0,0,0,5,0,0,0,0,0\n"
        "Training,b.png,0,0,0,0,0,0,0,8,2,0\nTraining,c.png,0,6,2,0,0,0,0,2,0,0\n",
        encoding="utf-8",
    )
    votes = read_votes(path)
    assert set(votes) == {"a.png", "c.png"}
    assert votes["a.png"][EMOTIONS.index("angry")] == votes["a.png"][6] == 5
    assert votes["c.png"][EMOTIONS.index("happy")] == 6
    images = np.zeros((3, 24, 24, 3), np.uint8)
    faces = replace(make_faces(images, [0, 1, 4]), names=np.array(["x/a.png", "b.png", "c.png"]))
    soft = soften_targets(faces, votes, vote_share=0.4, smoothing=0.07).targets
    assert np.allclose(soft.sum(axis=1), 1)
    assert np.isclose(soft[0, 0], 0.8) and np.isclose(soft[0, 6], 0.2)
    assert np.isclose(soft[1, 1], 0.94) and np.isclose(soft[1, 0], 0.01)
    assert relabel_by_majority(faces, votes).labels.tolist() == [0, 1, 3]
    with pytest.raises(DataError, match="name none of the pictures"):
        relabel_by_majority(faces, {"another.png": votes["a.png"]})
    strangers = replace(faces, names=np.array(["1.png", "2.png", "3.png"]))
    with pytest.raises(DataError, match="none of the pictures"):
        soften_targets(strangers, votes, 0.4, 0.1)


def test_broken_rows_of_votes_are_skipped_and_named_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["Training,a.png,5,0,0,0,5,0,0,0,0,0", "Training,b.png,x,0,0,0,1,0,0,0,0,0",
            "Training,c.png,-1,0,0,0,2,0,0,0,0,0", "Training,d.png,1,0,0",
            "Training,e.png,0,\"2,5\",0,0,2.5,0,0,0,0,0"]  # fmt: skip
    path = tmp_path / "votes.csv"
    path.write_text("\n".join([VOTE_HEADER.upper(), *rows]), encoding="utf-16")
    votes = read_votes(path)
    assert set(votes) == {"a.png", "e.png"} and votes["e.png"][3] == 2.5
    for line in (3, 4, 5):
        assert f"votes.csv line {line}" in caplog.text
    with pytest.raises(DataError, match=r"line 3.*\(3 broken"):
        read_votes(path, strict=True)


def test_table_that_is_not_of_votes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("image,label\na.png,3\n", encoding="utf-8")
    with pytest.raises(DataError, match="lacks Image name"):
        read_votes(path)


# --- decoding ---------------------------------------------------------------------------------


def test_broken_picture_is_skipped_and_named_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_class_folders(tmp_path / "data", {"": 2})
    whole = (root / "sad" / "1.png").read_bytes()
    (root / "sad" / "1.png").write_bytes(whole[: len(whole) // 2])
    faces = load(root, tmp_path)
    assert len(faces) == 13
    assert faces.broken == ("sad/1.png",)
    assert "sad/1.png" in caplog.text
    assert "sad/1.png" not in faces.names
    with pytest.raises(DataError, match=r"sad/1\.png"):
        load(root, tmp_path, strict=True)


def test_decoded_once_and_again_after_a_change(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", {"": 2})
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    first = load(root, tmp_path)
    cached = sorted((tmp_path / "cache").glob("*.npy"))
    stamp = cached[0].stat().st_mtime_ns
    again = load(root, tmp_path)
    assert sorted((tmp_path / "cache").glob("*.npy")) == cached
    assert cached[0].stat().st_mtime_ns == stamp
    assert (first.images() == again.images()).all()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    Image.fromarray(draw_face(2, 99)).save(root / "fear" / "0.png")
    changed = load(root, tmp_path)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
    row = changed.names.tolist().index("fear/0.png")
    assert not (changed.images(row) == first.images(row)).all()


def test_several_data_sets_in_one(tmp_path: Path) -> None:
    trees = [write_class_folders(tmp_path / name, {"": 2}) for name in ("one", "two")]
    faces = load_faces([list_faces(tree) for tree in trees], 24, tmp_path / "cache")
    assert len(faces) == 28
    assert np.unique(faces.sources).tolist() == ["one", "two"]
    assert faces.count_classes() == dict.fromkeys(EMOTIONS, 4)


# --- choosing ---------------------------------------------------------------------------------


def test_validation_is_stratified_and_seeded(tmp_path: Path) -> None:
    faces = load(write_class_folders(tmp_path / "data", {"": 10}), tmp_path)
    chosen = split_validation(faces, 0.2, seed=3)
    assert faces.select(chosen).count_classes() == dict.fromkeys(EMOTIONS, 2)
    assert (split_validation(faces, 0.2, seed=3) == chosen).all()
    assert (split_validation(faces, 0.2, seed=4) != chosen).any()


def test_class_of_one_picture_cannot_be_split(tmp_path: Path) -> None:
    faces = load(write_class_folders(tmp_path / "data", {"": 1}), tmp_path)
    with pytest.raises(DataError, match="cannot be split"):
        split_validation(faces, 0.2, seed=0)


def test_draw_per_class(tmp_path: Path) -> None:
    lists = [
        list_faces(write_class_folders(tmp_path / name, {"train": 3, "test": 2}))
        for name in ("one", "two")
    ]
    drawn = draw_per_class(lists, 4, seed=1)
    labels = np.concatenate([one.select_part("train").labels for one in drawn])
    assert np.bincount(labels).tolist() == [4] * 7
    assert [len(one.select_part("test")) for one in drawn] == [14, 14]
    assert [one.names for one in draw_per_class(lists, 4, seed=1)] == [one.names for one in drawn]


def test_near_duplicates_are_found() -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (6, 12, 12, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    brighter = np.clip(originals[0] * 0.7 + 40, 0, 255).astype(np.uint8)
    mirrored = originals[1][:, ::-1]
    others = np.stack([brighter, mirrored, originals[5]])
    found = find_near_duplicates(make_faces(originals[:5], [0] * 5), make_faces(others, [0] * 3))
    assert found.tolist() == [True, True, False, False, False]
    none = make_faces(others[:0], [])
    assert not find_near_duplicates(make_faces(originals, [0] * 6), none).any()


# --- augmentation and batches -----------------------------------------------------------------

EVERYTHING = Augmentation(
    rotation=15, scale=0.2, shift=0.1, shear=0.1, flip=True, brightness=0.2, contrast=0.3,
    grey=0.5, coarse=0.5, erase=0.5, mixup=0.4,
)  # fmt: skip


def test_augmentation_keeps_the_face_in_place() -> None:
    image = np.zeros((48, 48, 3), np.uint8)
    image[20:28, 20:28] = 255
    rng = np.random.default_rng(0)
    how = Augmentation(rotation=12, scale=0.15, shift=0.08)
    centres = []
    for _ in range(200):
        varied = augment(image, how, rng)
        rows, columns = np.nonzero(varied[:, :, 0] > 128)
        centres.append((rows.mean(), columns.mean()))
    spread = np.abs(np.array(centres) - 23.5)
    assert spread.max() < 0.08 * 48 + 1.5
    assert spread.max() > 2


def test_flip_mirrors_one_half() -> None:
    image = draw_face(0, 0, 24)
    image[:, :8] = 0
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(200):
        varied = augment(image, Augmentation(flip=True), rng)
        is_mirrored = np.array_equal(varied, image[:, ::-1])
        assert is_mirrored or np.array_equal(varied, image)
        mirrored += is_mirrored
    assert 70 < mirrored < 130


def test_soft_targets_keep_the_frequencies_of_the_labels() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(7, 400, p=[0.1, 0.05, 0.15, 0.3, 0.1, 0.1, 0.2])
    faces = make_faces(np.zeros((400, 8, 8, 3), np.uint8), labels)
    faces = replace(faces, sources=np.repeat(["one", "other"], 200))
    doubtful = 0.6 * np.eye(7)[labels] + 0.4 * np.eye(7)[6]  # all that is not sure is neutral
    kept = keep_frequencies(replace(faces, targets=doubtful.astype(np.float32))).targets
    assert np.abs(kept.sum(axis=1) - 1).max() < 1e-5
    for rows in (slice(0, 200), slice(200, 400)):
        frequencies = np.eye(7)[labels[rows]].mean(axis=0)
        assert np.abs(kept[rows].mean(axis=0) - frequencies).max() < 0.005
    unsure = kept[labels != 6, 6]
    assert 0 < unsure.max() < 0.4


def test_a_border_is_plain_for_its_share_of_the_pictures() -> None:
    image = draw_face(3, 0)
    how = Augmentation(shift=0.4)
    rng = np.random.default_rng(0)
    n_plain = 0
    for _ in range(60):
        varied = augment(image, replace(how, border=0.5), rng)
        edges = (varied[0], varied[-1], varied[:, 0], varied[:, -1])
        n_plain += any(np.ptp(edge) == 0 for edge in edges)
    assert 15 <= n_plain <= 45
    assert not any(
        np.ptp(augment(image, how, rng)[edge]) == 0 for edge in (0, -1) for _ in range(20)
    )


def test_no_augmentation_passes_pictures_unchanged() -> None:
    images = np.stack([draw_face(label, 0, 24) for label in range(7)])
    batches = TrainingBatches(make_faces(images, range(7)), 7, 0, Augmentation())
    drawn, targets = batches.batch(0)
    assert (drawn == images[targets.argmax(axis=1)]).all()


def test_a_batch_is_a_function_of_seed_epoch_and_index() -> None:
    images = np.stack([draw_face(label % 7, label, 24) for label in range(20)])
    faces = make_faces(images, np.arange(20) % 7)
    one, two = (TrainingBatches(faces, 4, 5, EVERYTHING) for _ in range(2))
    late = two.batch(7)
    for number in range(10):
        pictures, targets = one.batch(number)
        assert pictures.dtype == np.uint8 and pictures.shape == (4, 24, 24, 3)
        assert np.allclose(targets.sum(axis=1), 1, atol=1e-6)
        if number == 7:
            assert (late[0] == pictures).all() and (late[1] == targets).all()
    assert not (one.batch(0)[0] == one.batch(5)[0]).all()
    other_seed = TrainingBatches(faces, 4, 6, EVERYTHING)
    assert not (one.batch(0)[0] == other_seed.batch(0)[0]).all()


def test_an_epoch_shows_each_face_once() -> None:
    images = np.stack([np.full((24, 24, 3), value, np.uint8) for value in range(20)])
    batches = TrainingBatches(make_faces(images, [0] * 20), 5, 0, Augmentation())
    assert len(batches) == 4
    for epoch in range(2):
        shown = [batches.batch(4 * epoch + i)[0][:, 0, 0, 0] for i in range(4)]
        assert sorted(np.concatenate(shown).tolist()) == list(range(20))


def test_data_sets_of_any_size_can_be_drawn_equally_often() -> None:
    images = np.stack([np.full((24, 24, 3), value, np.uint8) for value in range(20)])
    faces = make_faces(images, [0] * 20)
    sources = np.where(np.arange(20) < 16, "large", "small")
    batches = TrainingBatches(replace(faces, sources=sources), 5, 0, Augmentation(), even=True)
    assert len(batches) == 4
    epochs = [
        np.concatenate([batches.batch(4 * epoch + i)[0][:, 0, 0, 0] for i in range(4)]).tolist()
        for epoch in range(2)
    ]
    for shown in epochs:
        counts = np.bincount(shown, minlength=20)
        assert counts[:16].sum() == 10 and counts[:16].max() == 1
        assert counts[16:].sum() == 10 and set(counts[16:].tolist()) <= {2, 3}
    assert epochs[0] != epochs[1]


def test_tf_data_feeds_the_same_batches() -> None:
    images = np.stack([draw_face(label % 7, label, 24) for label in range(20)])
    batches = TrainingBatches(make_faces(images, np.arange(20) % 7), 4, 5, EVERYTHING)
    feed = batches.feed(3, 9)
    fed = list(feed.as_numpy_iterator())
    assert len(fed) == 6
    assert not feed.options().autotune.enabled, "the tuner holds up the end of epochs"
    for number, (pictures, targets) in enumerate(fed, 3):
        expected = batches.batch(number)
        assert (pictures == expected[0]).all() and (targets == expected[1]).all()


def test_python_feeds_the_same_batches_without_tensorflow() -> None:
    pytest.importorskip("jax")
    code = """
import sys
sys.path[:0] = ["tests", "tests/training"]
from toy_faces import hide_tensorflow; hide_tensorflow()
import numpy as np
from test_face_sets import EVERYTHING, make_faces
from toy_faces import draw_face
from batchfer.training.batches import TrainingBatches
images = np.stack([draw_face(label % 7, label, 24) for label in range(20)])
batches = TrainingBatches(make_faces(images, np.arange(20) % 7), 4, 5, EVERYTHING)
feed = batches.feed(3, 9)
assert len(feed) == 6
for index in range(6):
    for one, other in zip(feed[index], batches.batch(3 + index)):
        assert (one == other).all()
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=root, env=environment)
