"""The dry run: what it finds in files, and estimates that come from real work."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
from running import run_jobs

from batchfer import analyze_video
from batchfer.analysis.analyzer import Analyzer
from batchfer.batch.estimate import Plan, make_plan, time_encoding, time_pictures, time_video
from batchfer.cli.output import format_plan
from batchfer.errors import NothingToDoError
from batchfer.media.reader import VideoReader
from batchfer.media.sampling import estimate_frames
from batchfer.media.writer import VideoWriter
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.schema import Job, MediaInfo

SAMPLES = Path(__file__).parents[2] / "samples"
MACHINE = Machine("cpu", None, 2)


def test_a_folder_without_media_is_nothing_to_do(tmp_path: Path, toy_model: Path) -> None:
    options = AnalyzeOptions(model=str(toy_model))
    with pytest.raises(NothingToDoError):
        make_plan([tmp_path], tmp_path / "out", options, OutputOptions(), MACHINE)


def test_a_plan_tells_what_is_there_and_what_it_takes(
    tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchfer.batch.estimate.TIMED_S", 0.3)
    folder = tmp_path / "in"
    for name in ("clips", "stills"):
        shutil.copytree(SAMPLES / name, folder / name)
    whole = (folder / "clips" / "portrait.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[:3000])
    options = AnalyzeOptions(model=str(toy_model), every=2)
    plan = make_plan([folder], tmp_path / "out", options, OutputOptions(), MACHINE)
    found = {video.name: video for video in plan.videos}
    assert found["torn.mp4"].problem.startswith("truncated")
    assert found["clips/portrait.mp4"].n_frames == 75
    assert [name for name, video in found.items() if video.variable_rate] == [
        "clips/variable_rate.mp4"
    ]
    assert plan.n_pictures == 4
    assert 0 < plan.seconds < 600
    annotated = sum(path.stat().st_size for path in (folder / "clips").iterdir())
    assert annotated / 10 < plan.disk_bytes - 4 * 1_500_000 < annotated * 10
    assert plan.memory_bytes > 100e6
    assert not (tmp_path / "out").exists()
    text = "\n".join(format_plan(plan))
    assert "broken: 1\n  torn.mp4" in text
    assert "clips/rotated.mp4  90 degrees" in text


@pytest.mark.slow
def test_what_is_done_is_left_out(
    tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchfer.batch.estimate.TIMED_S", 0.1)
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("clips/rotated.mp4", "clips/variable_rate.mp4", "stills/admiral.png"):
        shutil.copy(SAMPLES / name, folder)
    options = AnalyzeOptions(model=str(toy_model))
    few = OutputOptions(annotate=False, report=False)

    def tell(options: AnalyzeOptions = options, **changes: bool) -> tuple[list[str], int, int]:
        plan = make_plan([folder], output, options, replace(few, **changes), MACHINE)
        assert plan.n_done == 3 or plan.seconds > 0
        return [video.name for video in plan.videos], plan.n_pictures, plan.n_done

    both = ["rotated.mp4", "variable_rate.mp4"]
    assert tell() == (both, 1, 0)
    still = AnalyzeOptions(model=str(toy_model))
    for kind, path, own in (("video", folder / both[0], options), ("image", folder, still)):
        list(run_jobs(kind, [path], output, own, few, MACHINE))  # type: ignore[arg-type]
    assert tell() == (both[1:], 0, 2)
    plan = make_plan([folder], output, options, few, MACHINE)
    assert "analyzed already, and not counted here: 2" in list(format_plan(plan))
    assert tell(overwrite=True) == (both, 1, 0)
    assert tell(replace(options, every=2)) == (both, 0, 1)
    list(run_jobs("video", [folder], output, options, few, MACHINE))
    monkeypatch.setattr("batchfer.batch.estimate.Analyzer", None)  # nothing is left to be timed
    plan = make_plan([folder], output, options, few, MACHINE)
    assert plan.n_done == 3
    assert list(format_plan(plan)) == ["nothing to do: 3 inputs are analyzed already"]
    shutil.rmtree(output / both[0])
    monkeypatch.undo()
    assert tell() == (both[:1], 0, 2)


HOUR = MediaInfo(Path("hour.mp4"), 640, 360, Fraction(25), 90_000, 3600.0)


@pytest.mark.parametrize(
    ("info", "options", "n_frames"),
    [
        (HOUR, AnalyzeOptions(), 90_000),
        (HOUR, AnalyzeOptions(every=10), 9_000),
        (HOUR, AnalyzeOptions(fps=5), 18_000),
        (HOUR, AnalyzeOptions(fps=100), 90_000),
        (HOUR, AnalyzeOptions(start_s=600, end_s=1200, fps=5), 3_000),
        (HOUR, AnalyzeOptions(start_s=3000, end_s=7200), 15_000),
        (HOUR, AnalyzeOptions(start_s=4000), 0),
        (replace(HOUR, n_frames=None), AnalyzeOptions(every=2), 45_000),
        (replace(HOUR, duration_s=None), AnalyzeOptions(start_s=600), 90_000),
        (replace(HOUR, n_frames=None, fps=None), AnalyzeOptions(), None),
        (replace(HOUR, n_frames=None, duration_s=None), AnalyzeOptions(), None),
    ],
)
def test_the_frames_to_come_are_estimated(
    info: MediaInfo, options: AnalyzeOptions, n_frames: float | None
) -> None:
    assert estimate_frames(info, options) == n_frames


@pytest.mark.parametrize(
    "options",
    [
        {"detect_every": 5},
        *(pytest.param(o, marks=pytest.mark.slow) for o in ({"every": 5}, {"every": 20})),
    ],
    ids=str,
)
def test_a_clip_is_timed_as_it_will_be_analyzed(
    options: dict[str, int], toy_model: Path, count_searched: Callable[..., list[int]]
) -> None:
    analyzer = Analyzer(AnalyzeOptions(model=str(toy_model), **options), "cpu", None, 2)
    path = SAMPLES / "clips" / "portrait.mp4"
    with VideoReader(path) as reader:
        info = reader.info
    searched = count_searched(analyzer)
    rate, nothing = time_video(info, analyzer, False)
    assert sum(searched) < 2 * 75, "not every frame of 150 is searched for faces"
    assert nothing == 0
    started = time.monotonic()
    n_frames = len(analyze_video(path, analyzer=analyzer).table["frame"].unique())
    taken_s = time.monotonic() - started
    assert 0.2 < taken_s * rate / n_frames < 5
    slower, bytes_a_pixel = time_video(info, analyzer, True)
    assert slower < 1.2 * rate
    # Whatever is analyzed, all frames are drawn.
    assert bytes_a_pixel == pytest.approx(time_encoding(info, AnalyzeOptions())[1], rel=0.1)
    assert 0 < bytes_a_pixel < 0.05


@pytest.mark.parametrize("rotate", [0, 270])
def test_a_clip_that_lies_on_its_side_is_told(
    rotate: int, toy_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turned = tmp_path / "a.mp4"
    clip = SAMPLES / "clips" / "portrait.mp4"
    with VideoReader(clip, rotate=90) as reader, VideoWriter(turned, reader.info) as writer:
        for batch in islice(reader.batches(8), 4):
            for image, time_s in zip(batch.images, batch.times_s.tolist(), strict=True):
                writer.write(image, time_s)
    options = AnalyzeOptions(model=str(toy_model), rotate=rotate)
    with VideoReader(turned, rotate=rotate) as reader:
        time_video(reader.info, Analyzer(options, "cpu", None, 1), False)
    assert caplog.text.count("with --rotate 270") == (0 if rotate else 1)


def test_pictures_are_timed_as_they_will_be_analyzed(
    toy_model: Path, count_searched: Callable[..., list[int]]
) -> None:
    analyzer = Analyzer(AnalyzeOptions(model=str(toy_model)), "cpu", None, 2)
    looked = count_searched(analyzer, "detect_in_stills")
    jobs = [Job(path, path.name, path) for path in sorted((SAMPLES / "stills").iterdir())]
    assert 0 < time_pictures(jobs, analyzer) < 60
    assert looked == [1] * len(jobs)


@pytest.mark.parametrize(("seconds", "text"), [(16.4, "16 seconds"), (600, "10.0 minutes")])
def test_short_estimates_are_in_seconds(seconds: float, text: str) -> None:
    assert f": {text}," in "\n".join(format_plan(Plan([], 3, seconds, 0.0, 0.0)))
