"""The report of a folder of pictures: small pictures beside it, filters, folders compared."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor
from test_report import STILLS, browser, check_page, complaints, make_table, open_page  # noqa: F401

from batchfer.results.facts import RunFacts
from batchfer.results.folder import REPORT_FOLDER
from batchfer.results.report.picture_files import (
    FACE_PX,
    MOST_FACES,
    PICTURE_PX,
    remove_small_files,
    write_small_files,
)
from batchfer.results.report.pictures import render_images_report
from batchfer.schema import EMOTION_COLORS, EMOTIONS

PICTURE = STILLS / "two_people.webp"


def make_rows(names: list[str], n_faces: int = 2) -> pd.DataFrame:
    """A table of pictures with the same number of faces each; of 0 faces, a row of nulls."""
    parts = []
    for seed, name in enumerate(names):
        table = make_table(1, n_faces, seed=seed).assign(timestamp=np.nan)
        table.insert(0, "input", pd.array([name] * len(table), "string"))
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def test_small_pictures_show_faces_in_the_colour_of_their_emotion(tmp_path: Path) -> None:
    rows = make_rows(["a.webp"])
    with Image.open(PICTURE) as whole:
        size = whole.size
    (files,) = write_small_files(tmp_path / REPORT_FOLDER, rows, {"a.webp": PICTURE}).values()
    with Image.open(tmp_path / files.picture) as small:
        assert small.size == (files.width, files.height) and max(small.size) <= PICTURE_PX
        assert small.width / small.height == pytest.approx(size[0] / size[1], abs=0.02)
        pixels = np.asarray(small.convert("RGB")).astype(int)
    for emotion in set(rows["emotion"]):
        far = np.abs(pixels - ImageColor.getrgb(EMOTION_COLORS[emotion])).max(axis=2)
        assert (far < 60).sum() > 20, emotion
    with Image.open(tmp_path / files.faces) as strip:
        assert strip.size == (2 * FACE_PX, FACE_PX)


def test_small_pictures_stay_as_long_as_they_are_right(tmp_path: Path) -> None:
    folder, rows = tmp_path / REPORT_FOLDER, make_rows(["a.webp"])
    sources = {"a.webp": PICTURE}
    (first,) = write_small_files(folder, rows, sources).values()
    (folder / "mine.jpg").write_text("mine")
    (tmp_path / first.picture).write_bytes((tmp_path / first.picture).read_bytes())
    before = (tmp_path / first.picture).stat().st_mtime_ns
    assert list(write_small_files(folder, rows, sources).values()) == [first]
    assert (tmp_path / first.picture).stat().st_mtime_ns == before
    moved = rows.assign(x=rows["x"] + 20)
    (second,) = write_small_files(folder, moved, sources).values()
    names = {path.name for path in folder.iterdir()}
    assert names == {Path(second.picture).name, Path(second.faces).name, "mine.jpg"}
    assert second != first
    remove_small_files(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.jpg"]


def test_small_pictures_are_not_written_through_a_link(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / REPORT_FOLDER).symlink_to(tmp_path / "elsewhere")
    rows = make_rows(["a.webp"])
    assert write_small_files(tmp_path / REPORT_FOLDER, rows, {"a.webp": PICTURE}) == {}
    assert not any((tmp_path / "elsewhere").iterdir()) and "it is a link" in caplog.text
    (tmp_path / "file").write_text("mine")
    assert write_small_files(tmp_path / "file", rows, {"a.webp": PICTURE}) == {}


def test_a_picture_that_is_gone_has_no_small_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows(["gone.png", "a.webp", "none.webp"], 1)
    rows.loc[2, rows.columns.drop(["input", "frame"])] = None
    sources = {"gone.png": tmp_path / "gone.png", "a.webp": PICTURE, "none.webp": PICTURE}
    files = write_small_files(tmp_path / REPORT_FOLDER, rows.astype(rows.dtypes), sources)
    assert list(files) == ["a.webp", "none.webp"] and "no thumbnails of gone.png" in caplog.text
    assert (tmp_path / files["none.webp"].picture).is_file(), "a picture without a face is shown"
    assert not (tmp_path / files["none.webp"].faces).exists()


def test_many_faces_stand_in_a_row_and_are_counted(tmp_path: Path) -> None:
    rows = pd.concat([make_rows(["few.webp"], 3), make_rows(["many.webp"], 30)], ignore_index=True)
    rows["uncertain"] = pd.array([False] * 3 + [index % 3 == 0 for index in range(30)], "boolean")
    sources = dict.fromkeys(("few.webp", "many.webp"), PICTURE)
    files = write_small_files(tmp_path / REPORT_FOLDER, rows, sources)
    text = render_images_report(rows, RunFacts(), files)
    few, many = text.split('<figure class="card picture"')[1:]
    assert few.count('class="face"') == 3 and "strip many" not in few
    crops = re.findall(
        r'<img class="crop[^>]*object-position:([\d.]+)% 0"[^>]*title="([^"]*)"', many
    )
    assert len(crops) == MOST_FACES and 'class="face"' not in many and "and 6 more" in many
    assert [float(place) for place, _ in crops[:2]] == pytest.approx([0, 100 / 23], abs=0.01)
    first = rows[rows["input"] == "many.webp"].iloc[0]
    assert f"happy {first['happy']:.0%}" in crops[0][1] and crops[0][1].endswith("uncertain")
    told = dict(re.findall(r"</i>(\w+) <b>(\d+)</b>", many))
    sure = rows[(rows["input"] == "many.webp") & ~rows["uncertain"].astype(bool)]
    expected = sure["emotion"].value_counts().to_dict() | {"uncertain": 10}
    assert {name: int(count) for name, count in told.items()} == expected


def test_numbers_on_the_page_are_those_of_the_table() -> None:
    rows = make_rows([f"{index}.png" for index in range(40)], 3)
    text = " ".join(render_images_report(rows, RunFacts()).split())
    assert "120 faces in 40 of 40 pictures." in text
    told = re.findall(r"</i>(\w+) <b>(\d+)</b> <small>(\d+%)</small>", text)
    is_sure = ~rows["uncertain"].astype(bool)
    expected = rows["emotion"][is_sure].value_counts().to_dict() | {"uncertain": (~is_sure).sum()}
    assert {name: (int(n), part) for name, n, part in told} == {
        name: (n, f"{n / 120:.0%}") for name, n in expected.items() if n
    }
    first = text.split('<figure class="card picture"')[1].split("</figure>")[0]
    faces = re.findall(r'title="([^"]*)".*?</i>(\w+)</b> <small>(\d+%)(, uncertain)?<', first)
    for (title, emotion, part, doubt), (_, row) in zip(faces, rows.head(3).iterrows(), strict=True):
        assert (emotion, part) == (row["emotion"], f"{row['emotion_confidence']:.0%}")
        assert bool(doubt) == row["uncertain"]
        probabilities = ", ".join(f"{name} {row[name]:.0%}" for name in EMOTIONS)
        assert title.startswith(probabilities)


def test_folders_are_compared_as_conditions() -> None:
    names = [f"{folder}/{i}.png" for folder in ("film", "text") for i in range(6)]
    rows = make_rows(names)
    page = check_page(render_images_report(rows, RunFacts()))
    assert "By folder" in page.text and "chart-comparison-0" in page.values("id")
    folder = rows["input"].str.split("/").str[0]
    means = rows.groupby([folder, "input"])[list(EMOTIONS)].mean().groupby(level=0).mean()
    for name in ("film", "text"):
        assert f"{100 * means.loc[name, 'happy']:.1f} %" in page.text
    one = check_page(render_images_report(make_rows(names[:6]), RunFacts()))
    assert "By folder" not in one.text


@pytest.mark.browser
def test_pictures_are_filtered_and_sorted(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    from selenium.webdriver.common.by import By

    names = [f"{folder}/{i:04d}.png" for folder in ("film", "text") for i in range(2500)]
    rows = make_rows(names[:1], 1)
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.full(7, 0.4), len(names)).astype(np.float32)
    rows = pd.concat([rows] * len(names), ignore_index=True)
    rows["input"] = pd.array(names, "string")
    rows[list(EMOTIONS)] = values
    best = values.argmax(1)
    rows["emotion"] = pd.array(np.array(EMOTIONS, object)[best], "string")
    rows["emotion_confidence"] = values.max(1)
    rows["uncertain"] = pd.array(values.max(1) < 0.5, "boolean")
    facts = replace(RunFacts(), batchfer="1")
    (files,) = write_small_files(
        tmp_path / REPORT_FOLDER, rows.head(1), {names[0]: PICTURE}
    ).values()
    page = tmp_path / "report.html"
    small = dict.fromkeys(names, files)
    page.write_text(render_images_report(rows, facts, small), encoding="utf-8")
    open_page(browser, page)
    shown = "return [...document.querySelectorAll('.picture')].filter((one) => !one.hidden)"

    def choose(selector: str, value: str) -> None:
        select = browser.find_element(By.CSS_SELECTOR, selector)
        browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))",
            select, value,
        )  # fmt: skip

    assert browser.execute_script(f"{shown}.length") == 5000
    choose("[data-filter=emotion]", "happy")
    is_happy = (rows["emotion"] == "happy").to_numpy()
    assert browser.execute_script(f"{shown}.length") == is_happy.sum()
    choose("[data-filter=certainty]", "uncertain")
    unsure = is_happy & rows["uncertain"].to_numpy(bool)
    assert browser.execute_script(f"{shown}.length") == unsure.sum()
    choose("[data-filter=folder]", "text/")
    in_text = np.arange(5000) >= 2500
    assert browser.execute_script(f"{shown}.length") == (unsure & in_text).sum()
    count = browser.find_element(By.ID, "count").text
    assert count == f"{(unsure & in_text).sum()} of 5,000"
    for selector in ("emotion", "certainty", "folder"):
        choose(f"[data-filter={selector}]", "")
    choose("#order", "p-sad")
    first = f"{shown}[0].querySelector('figcaption').textContent"
    assert browser.execute_script(first) == names[int(values[:, EMOTIONS.index("sad")].argmax())]
    choose("#order", "")
    assert browser.execute_script(first) == names[0]
    loaded = "return document.querySelector('img.whole').naturalWidth"
    assert browser.execute_script(loaded) == files.width
    assert complaints(browser) == []
