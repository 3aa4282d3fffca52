"""A study from its folder to a figure and a text for the paper: two commands, and no script."""

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import pandas as pd
import pytest

from batchfer.cli.commands import app
from batchfer.cli.main import run_command
from batchfer.schema import EMOTIONS, MEASURES

CLIPS = Path(__file__).parent.parent / "samples" / "clips"
RATE = 10
STIMULI = ("cats", "rain", "exam")
PARTICIPANTS = [f"p{number:02d}" for number in range(1, 13)]
BROKEN = ("p03_film.mp4", "p07_rest.mp4")
MEANS = [f"mean_{name}" for name in EMOTIONS]


@cache
def decode(source: str) -> Sequence[av.VideoFrame]:
    """Return the frames of a sample, small."""
    with av.open(str(CLIPS / source)) as clip:
        return [frame.reformat(320, 180, "yuv420p") for frame in clip.decode(video=0)]


def cut(source: str, first: int, n_frames: int, path: Path) -> None:
    """Write each second frame of a sample from one on, at 10 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for index, picture in enumerate(decode(source)[first : first + 2 * n_frames : 2]):
            picture.pts, picture.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 recordings: a film with three stimuli and a neutral face of each of 12 participants."""
    folder = tmp_path_factory.mktemp("study")
    recordings = folder / "recordings"
    recordings.mkdir()
    rows, events = ["file,participant,condition,neutral"], ["file,onset,duration,trial_type"]
    for index, name in enumerate(PARTICIPANTS):
        source = ("portrait.mp4", "two_people.mp4")[index % 2]
        cut(source, 3 * index, 30, recordings / f"{name}_film.mp4")
        cut("portrait.mp4", 60 + 2 * index, 15, recordings / f"{name}_rest.mp4")
        condition = ("alone", "together")[index // 6]
        rows += [f"{name}_film,{name},{condition},{name}_rest", f"{name}_rest,{name},neutral,"]
        events += [f"{name}_film,{start},1,{what}" for start, what in enumerate(STIMULI)]
    for name in BROKEN:
        path = recordings / name
        path.write_bytes(path.read_bytes()[:700])
    (folder / "participants.csv").write_text("\n".join(rows) + "\n")
    (folder / "stimuli.csv").write_text("\n".join(events) + "\n")
    return folder


def run(*words: object) -> int:
    return run_command(lambda: app([str(word) for word in words]))


def read_means(page: str, title: str) -> dict[str, list[float]]:
    """Return the means in percent that a page tells under a title, by group."""
    part = page.split(f">{title}<", 1)[1].split("</table>", 1)[0]
    rows = re.findall(r"<tr><td>([^<]*)</td><td class=\"number\">\d+</td>(.*?)</tr>", part)
    return {name: [float(x) for x in re.findall(r">([\d.]+) %", row)] for name, row in rows}


def check_means(page: str, title: str, expected: pd.DataFrame) -> None:
    told = read_means(page, title)
    assert set(told) == set(expected.index), title
    for name, means in expected.iterrows():
        assert told[str(name)] == pytest.approx((100 * means).tolist(), abs=0.051), (title, name)


@pytest.mark.slow
def test_a_study_takes_two_commands(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = study / "results"
    words = ["--participants", study / "participants.csv", "--events", study / "stimuli.csv"]
    words += ["--bin", "1s", "--baseline", "neutral", "--main-face", "longest", "--every", 2]
    words += ["--no-annotate", "--device", "cpu", "-q"]
    assert run("video", study / "recordings", "-o", output, *words) == 3, "two files are broken"
    capsys.readouterr()
    assert run("methods", output, "--plain") == 0
    text = capsys.readouterr().out

    summary = pd.read_csv(output / "summary.csv").set_index("file")
    events = pd.read_csv(output / "events.csv")
    assert len(summary) == 24 and sorted(summary.index[summary["status"] == "failed"]) == [*BROKEN]
    whole = summary[summary["status"] == "ok"]
    assert whole["person"].notna().all() and len(events) == 3 * 11
    check_neutral(summary, events)

    page = (output / "index.html").read_text(encoding="utf-8")
    check_means(page, "By condition", whole.groupby("condition")[MEANS].mean())
    check_means(page, "By event", events.groupby("name")[MEANS].mean())
    both = events.assign(group=events["name"] + ", " + events["condition"])
    check_means(page, "By event and condition", both.groupby("group")[MEANS].mean())
    assert all(name in page for name in BROKEN)
    for name in ("summary", "segments", "bins", "events"):
        told = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
        assert list(told) == list(pd.read_csv(output / f"{name}.csv", nrows=0))
        assert "Units" not in told["neutral"], "a column of the user's"
    check_methods(text, output)


def check_neutral(summary: pd.DataFrame, events: pd.DataFrame) -> None:
    """See that each film's means less those of its participant's neutral face are told."""
    for name in PARTICIPANTS:
        film, rest = summary.loc[f"{name}_film.mp4"], summary.loc[f"{name}_rest.mp4"]
        mine = events[events["file"] == f"{name}_film.mp4"]
        if {f"{name}_film.mp4", f"{name}_rest.mp4"} & {*BROKEN}:
            assert pd.isna(film["delta_happy"]) and mine["delta_happy"].isna().all()
            continue
        assert film["neutral_seconds"] == rest["seconds_on_screen"] > 1
        for measure in MEASURES:
            neutral = rest[f"mean_{measure}"]
            assert film[f"delta_{measure}"] == pytest.approx(
                film[f"mean_{measure}"] - neutral, abs=2e-6
            )
            assert mine[f"delta_{measure}"].tolist() == pytest.approx(
                (mine[f"mean_{measure}"] - neutral).tolist(), abs=2e-6
            )
    assert summary.filter(like="_rest.mp4", axis=0)["delta_happy"].isna().all()


def check_methods(text: str, output: Path) -> None:
    """See that the text for the paper tells what the timelines and the journal hold."""
    tables = [pd.read_csv(path) for path in output.glob("*/timeline.csv")]
    n_frames = sum(table["frame"].nunique() for table in tables)
    n_faces = sum(table["frame"][table["face_id"].notna()].nunique() for table in tables)
    assert f"22 recordings ({n_frames:,} analyzed frames)" in text and "every 2nd frame" in text
    rows = dict(re.findall(r"^(given|analyzed|with a face|compared[a-z ]+?) {2,}(.*)$", text, re.M))
    assert [row.split() for row in rows.values()] == [
        ["24"], [f"{n_frames}", "22"], [f"{n_faces}", "22"], ["10"],
    ]  # fmt: skip
    assert "From the means of 10 of 11 recordings" in text and "(10 of these, 1.6 s" in text
    for key in ("batchfer", "zhang2016mtcnn", "sandler2018", "goodfellow2013", "li2017rafdb"):
        assert f"{{{key}" in text
