"""What Python calls."""

import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from running import run_jobs

import batchfer
from batchfer import (
    AnalyzeOptions,
    Analyzer,
    InputError,
    analyze_images,
    analyze_live,
    analyze_video,
    read_result,
)
from batchfer.arrays import Images
from batchfer.errors import Reason, UsageError
from batchfer.options import Machine, OutputOptions
from batchfer.schema import PEOPLE_COLUMNS
from batchfer.timeline.files import read_timeline

SAMPLES = Path(__file__).parent.parent / "samples"
CLIP = SAMPLES / "clips" / "rotated.mp4"


@pytest.fixture(scope="module")
def options(toy_model: Path) -> AnalyzeOptions:
    return AnalyzeOptions(model=str(toy_model), every=4)


@pytest.fixture(scope="module")
def analyzer(options: AnalyzeOptions) -> Analyzer:
    return Analyzer(options, device="cpu", workers=2)


def decode(path: Path) -> Iterator[tuple[float, Images]]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.time, frame.to_ndarray(format="rgb24")


def test_every_public_name_is_there() -> None:
    assert {"Analyzer", "InputError", "Timeline", "analyze_live", "read_result"} <= set(
        batchfer.__all__
    )
    for name in batchfer.__all__:
        assert getattr(batchfer, name) is not None


def test_a_missing_file_is_named_before_a_network_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a network is loaded")

    monkeypatch.setattr("batchfer.analysis.analyzer.Analyzer.__init__", load)
    for call in (analyze_video, lambda path: analyze_images([path])):
        with pytest.raises(InputError, match=r"missing\.mp4: there is no such file") as caught:
            call(tmp_path / "missing.mp4")
        assert caught.value.reason is Reason.VANISHED


def test_a_broken_file_is_named(analyzer: Analyzer, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"empty\.mp4: the file is empty"):
        analyze_video(tmp_path / "empty.mp4", analyzer=analyzer)
    with pytest.raises(InputError, match=r"text\.png: "):
        analyze_images([SAMPLES / "stills/admiral.png", tmp_path / "text.png"], analyzer=analyzer)


def test_progress_is_told_on_stderr(analyzer: Analyzer, capsys: pytest.CaptureFixture[str]) -> None:
    timeline = analyze_video(CLIP, analyzer=analyzer)
    assert capsys.readouterr().err == ""
    analyze_video(CLIP, analyzer=analyzer, progress=True)
    told = capsys.readouterr()
    assert told.out == ""
    assert "rotated.mp4: 100%" in told.err
    assert f"{timeline.table['frame'].nunique()}/" in told.err
    analyze_images([SAMPLES / "stills/admiral.png"], analyzer=analyzer, progress=True)
    assert "1/1" in capsys.readouterr().err


@pytest.mark.same_bytes
def test_live_frames_have_the_rows_of_their_timeline(analyzer: Analyzer) -> None:
    clip = SAMPLES / "clips" / "two_people.mp4"
    timeline = analyze_video(clip, analyzer=analyzer)
    taken = []

    def camera() -> Iterator[tuple[float, Images]]:
        for time_s, image in decode(clip):
            taken.append(time_s)
            yield time_s, image

    rows = []
    for table in analyze_live(camera(), analyzer=analyzer):
        assert table["timestamp"].iloc[0] == taken[-1], "rows are there before the next frame"
        rows.append(table)
    expected = timeline.table.drop(columns=list(PEOPLE_COLUMNS))
    pd.testing.assert_frame_equal(pd.concat(rows, ignore_index=True), expected)


def test_live_frames_are_checked(analyzer: Analyzer, toy_model: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    assert list(analyze_live([], analyzer=analyzer)) == []
    assert [len(rows) for rows in analyze_live([(0.0, image)], analyzer=analyzer)] == [1]
    for frames, problem in [
        ([(0.0, image), (0.0, image)], "lies behind"),
        ([(float("nan"), image)], "lies behind"),
        ([(0.0, image[..., 0])], "height x width x 3"),
        ([(0.0, image.astype(np.float32))], "height x width x 3"),
    ]:
        with pytest.raises(UsageError, match=problem):
            list(analyze_live(frames, analyzer=analyzer))
    sparse = Analyzer(AnalyzeOptions(model=str(toy_model), detect_every=2), device="cpu")
    with pytest.raises(UsageError, match="detect_every"):
        list(analyze_live([(0.0, image)], analyzer=sparse))


def test_a_finished_result_is_read_again(options: AnalyzeOptions, tmp_path: Path) -> None:
    outputs = OutputOptions(annotate=False, report=False)
    machine = Machine("cpu", None, 2)
    list(run_jobs("video", [CLIP], tmp_path / "videos", options, outputs, machine))
    timeline = read_result(tmp_path / "videos" / "rotated.mp4")
    assert timeline.clip.path == CLIP and timeline.clip.height > timeline.clip.width
    for name, own in {"summary": timeline.summary(), "segments": timeline.segments()}.items():
        written = pd.read_csv(tmp_path / "videos/rotated.mp4" / f"{name}.csv")
        assert list(written.columns) == list(own.columns)
        number = written.select_dtypes("number").columns
        np.testing.assert_allclose(written[number], own[number].astype(float), atol=1e-5)
    pictures = [SAMPLES / "stills" / "admiral.png"]
    list(run_jobs("image", pictures, tmp_path / "pictures", options, outputs, machine))
    for folder in ("videos/rotated.mp4", "pictures"):
        told = json.loads((tmp_path / folder / "run.json").read_text())["licences"]
        assert told["batchfer (code)"] == "MIT" and len(told) == 3
    table = read_result(str(tmp_path / "pictures")).table
    pd.testing.assert_frame_equal(table, read_timeline(tmp_path / "pictures" / "faces.csv"))
    with pytest.raises(UsageError, match=r"not the result.*below it are .*rotated\.mp4"):
        read_result(tmp_path / "videos")
    with pytest.raises(UsageError, match="gone: there is no such folder"):
        read_result(tmp_path / "gone")
