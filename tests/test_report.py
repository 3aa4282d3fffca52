"""Reports: what is chosen and thinned for them, the pages, and how they work in a browser."""

import base64
import hashlib
import io
import re
import subprocess
import sys
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from batchfer import media
from batchfer.errors import InputError, OutputError, Reason
from batchfer.media import VideoReader, read_frames
from batchfer.report import (
    DRAWN_INTERVALS,
    LANES,
    MOMENTS_PER_EMOTION,
    THUMBNAIL_PX,
    choose_thumbnails,
    cut_thumbnails,
    format_clock,
    merge_intervals,
    render_images_report,
    render_report,
    select_peaks,
    write_images_report,
    write_index,
    write_report,
)
from batchfer.schema import EMOTIONS, TIMELINE_COLUMNS, Job, JobResult, MediaInfo, Timeline

CLIPS = Path(__file__).parent.parent / "samples" / "clips"
STILLS = Path(__file__).parent.parent / "samples" / "stills"
EVIL = "<script>alert(1)</script>\"'&.mp4"


def make_table(n_frames: int, n_people: int = 1, fps: float = 25, seed: int = 0) -> pd.DataFrame:
    """Faces that go from emotion to emotion over seconds; every tenth second shows nobody."""
    rng = np.random.default_rng(seed)
    times = np.arange(n_frames) / fps
    seen = (times % 10 < 9) if n_people else np.zeros(n_frames, bool)
    parts = []
    for person in range(n_people):
        knots = rng.normal(0, 2.5, (int(times[-1] / 2) + 3, 7)) if n_frames else np.zeros((2, 7))
        at = times / 2
        low = at.astype(int)
        part = (at - low)[:, None]
        values = np.exp(knots[low] * (1 - part) + knots[low + 1] * part)
        values /= values.sum(1, keepdims=True)
        faces = pd.DataFrame(
            {
                "frame": np.arange(n_frames),
                "timestamp": times,
                "face_id": person,
                "x": 60.0 + 120 * person,
                "y": 40.0,
                "width": 70.0,
                "height": 90.0,
                "face_score": 0.99,
                **{name: values[:, index] for index, name in enumerate(EMOTIONS)},
                "emotion": np.array(EMOTIONS, object)[values.argmax(1)],
                "emotion_confidence": values.max(1),
                "blur": 300 + 200 * np.sin(times + person),
                "yaw": 50 * np.sin(times / 3 + person),
                "entropy": 0.5,
                "uncertain": values.max(1) < 0.4,
            }
        )
        parts.append(faces[seen])
    empty = pd.DataFrame({"frame": np.arange(n_frames), "timestamp": times})[~seen]
    table = pd.concat([*parts, empty], ignore_index=True)
    table = table.reindex(columns=[*TIMELINE_COLUMNS, *(["blur", "yaw", "entropy", "uncertain"])])
    table = table.sort_values(["frame", "face_id"], kind="stable", ignore_index=True)
    return table.astype({**TIMELINE_COLUMNS, "uncertain": "boolean"})


def make_timeline(n_frames: int, n_people: int = 1, name: str = "clip.mp4") -> Timeline:
    info = MediaInfo(Path(name), 640, 360, Fraction(25), n_frames, n_frames / 25)
    return Timeline(info, make_table(n_frames, n_people))


FACTS: dict[str, Any] = {
    "batchfer": "0.1.0",
    "input": "clip.mp4",
    "media": {"width": 640, "height": 360, "fps": "30000/1001", "duration_s": 40.0,
              "rotation": 90, "variable_rate": True, "codec": "h264", "has_audio": True},
    "frames": {"declared": 1234, "decoded": 1200, "analyzed": 1000, "corrupt": 3,
               "first_bad_s": 12.5},
    "options": {"every": 1, "min_face_px": 40, "fps": None},
    "model": {"name": "mobilenetv2", "sha256": "ab" * 32},
    "status": "partial", "reason": "truncated", "detail": "the file ends early",
    "seconds": 12.0,
}  # fmt: skip


class Page(HTMLParser):
    """Elements, links, scripts and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.json: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script" and self.get_starttag_text() is not None and self.cdata_elem:
            (self.json if "type" in attributes else self.scripts).append(data)
        elif not self.cdata_elem:
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


# --- frames out of a video ----------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [0.1, 10.0])
@pytest.mark.parametrize("name", ["portrait.mp4", "variable_rate.mp4", "rotated.mp4"])
def test_frames_are_read_by_their_times(
    name: str, jump_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "SEEK_BEYOND_S", jump_s)
    wanted = {}
    with VideoReader(CLIPS / name) as reader:
        for batch in reader.batches():
            for image, frame, time_s in zip(batch.images, batch.frames, batch.times_s, strict=True):
                if frame % 17 == 3:
                    wanted[float(time_s)] = image.copy()
    read = list(read_frames(CLIPS / name, reversed(list(wanted))))
    assert [time_s for time_s, _ in read] == sorted(wanted)
    assert all(np.array_equal(image, wanted[time_s]) for time_s, image in read)


def test_a_time_without_a_frame_is_left_out() -> None:
    assert list(read_frames(CLIPS / "portrait.mp4", [])) == []
    read = [time_s for time_s, _ in read_frames(CLIPS / "portrait.mp4", [0.0, 0.0123, 1e6])]
    assert read == [0.0]


def test_frames_of_a_file_that_is_gone() -> None:
    with pytest.raises(InputError):
        list(read_frames(CLIPS / "gone.mp4", [0.0]))


# --- faces worth showing ------------------------------------------------------------------------


def test_no_face_gives_no_thumbnail() -> None:
    assert choose_thumbnails(make_table(0)) == []
    assert choose_thumbnails(make_table(50, 0)) == []


def test_the_best_face_is_sharp_and_turned_to_the_camera() -> None:
    table = make_table(1000, 2)
    best = {item.person: item for item in choose_thumbnails(table) if item.purpose == "person"}
    assert set(best) == {"face 0", "face 1"}
    for item in best.values():
        row = table[(table["frame"] == item.frame) & (table["face_id"] == item.face_id)].iloc[0]
        assert abs(row["yaw"]) < 15
        assert row["blur"] > 200
        assert item.box == (row["x"], row["y"], row["x"] + 70, row["y"] + 90)


def test_moments_are_peaks_apart_from_each_other() -> None:
    table = make_table(3000)
    moments = [item for item in choose_thumbnails(table) if item.purpose != "person"]
    assert {item.purpose for item in moments} <= set(EMOTIONS)
    assert len({item.purpose for item in moments}) > 3
    for emotion in EMOTIONS:
        times = [item.time_s for item in moments if item.purpose == emotion]
        assert len(times) <= MOMENTS_PER_EMOTION
        assert np.all(np.diff(times) >= 1)
    # The very top of a smoothed emotion is among them, unless the face was hard to see.
    clear = table.assign(blur=500.0, yaw=0.0, uncertain=False)
    strongest = [item for item in choose_thumbnails(clear, 0) if item.purpose == "happy"]
    top = clear[clear["emotion"] == "happy"]["happy"].idxmax()
    assert table["frame"][top] in [item.frame for item in strongest]


def test_thumbnails_are_cut_from_the_clip() -> None:
    table = make_table(100)
    chosen = choose_thumbnails(table)
    pictures = cut_thumbnails(CLIPS / "portrait.mp4", chosen)
    assert set(pictures) == {item.key for item in chosen}
    for jpeg in pictures.values():
        assert Image.open(io.BytesIO(jpeg)).size == (THUMBNAIL_PX, THUMBNAIL_PX)


def test_a_clip_that_is_gone_gives_no_thumbnails(caplog: pytest.LogCaptureFixture) -> None:
    assert cut_thumbnails(CLIPS / "gone.mp4", choose_thumbnails(make_table(50))) == {}
    assert "no thumbnails" in caplog.text


# --- thinning -----------------------------------------------------------------------------------


def test_thinning_keeps_every_peak() -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 7200, 200_000))
    values = rng.random((len(times), 7), np.float32)
    values[123_456, 3] = 9.0
    values[7, 5] = -9.0
    rows = select_peaks(times, values, 5000)
    assert 1000 < len(rows) <= 5000
    assert np.all(np.diff(rows) > 0)
    assert {0, 7, 123_456, len(times) - 1} <= set(rows)
    assert np.array_equal(values[rows].max(0), values.max(0))
    assert np.array_equal(values[rows].min(0), values.min(0))
    # Of every tenth part of the clip too.
    for low in range(0, 7200, 720):
        inside = (times >= low) & (times < low + 720)
        kept = np.isin(np.arange(len(times)), rows) & inside
        assert np.allclose(values[kept].max(0), values[inside].max(0), atol=1e-3)


def test_short_series_are_not_thinned() -> None:
    times = np.arange(10.0)
    assert select_peaks(times, np.zeros((10, 7)), 100).tolist() == list(range(10))
    assert len(select_peaks(times[:0], np.zeros((0, 7)), 100)) == 0


def test_intervals_are_merged_and_bounded() -> None:
    times, durations = np.arange(6.0), np.ones(6)
    starts, ends = merge_intervals(times, durations, np.array([1, 1, 0, 1, 0, 1], bool))
    assert starts.tolist() == [0, 3, 5]
    assert ends.tolist() == [2, 4, 6]
    many = np.arange(200_000) / 25
    starts, ends = merge_intervals(many, np.full(len(many), 1 / 25), np.arange(len(many)) % 2 == 0)
    assert len(starts) <= DRAWN_INTERVALS
    assert np.all(ends > starts)
    nothing = merge_intervals(times, durations, np.zeros(6, bool))
    assert len(nothing[0]) == len(nothing[1]) == 0


# --- pages --------------------------------------------------------------------------------------


def check_page(text: str) -> Page:
    """Nothing comes from elsewhere, and only the scripts that the policy names may run."""
    page = Page(text)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv", "").startswith("Cont"))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    named = re.findall(r"'(sha256-[^']+)'", policy)
    digests = [hashlib.sha256(script.encode()).digest() for script in page.scripts]
    assert named == ["sha256-" + base64.b64encode(digest).decode() for digest in digests]
    assert sum(len(script.encode()) for script in page.scripts) <= 1_500_000
    for attribute in ("src", "href"):
        for link in page.values(attribute):
            assert not re.match(r"[a-z+]+:|//", link) or link.startswith("data:"), link
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert "alert(1)" not in "".join(page.scripts)
    return page


@pytest.mark.parametrize(
    ("n_frames", "n_people"), [(0, 0), (1, 0), (1, 1), (60, 0), (60, 1), (500, 3)]
)
def test_any_timeline_makes_a_page(n_frames: int, n_people: int) -> None:
    page = check_page(render_report(make_timeline(n_frames, n_people), {}))
    assert bool(page.json) == (n_frames > 0)
    assert page.text.count("Over time") == 1
    assert ("No face was found" in page.text) == (n_people == 0)


def test_a_page_is_a_function_of_its_input() -> None:
    timeline = make_timeline(300, 2)
    assert render_report(timeline, FACTS) == render_report(timeline, FACTS)


def test_the_header_tells_what_happened_to_the_frames() -> None:
    page = check_page(render_report(make_timeline(1000, 1), FACTS))
    text = " ".join(page.text.split())
    for told in (
        "1,234", "1,200", "1,000", "3 damaged", "truncated", "the file ends early", "0:12.5",
        "29.97 frames/s, variable", "upright by 90°", "640 × 360", "h264", "mobilenetv2",  # noqa: RUF001
    ):  # fmt: skip
        assert told in text, told


def test_names_are_text_wherever_they_stand() -> None:
    timeline = make_timeline(100, 1)
    table = timeline.table.assign(person=pd.array([EVIL] * 100, "string"))
    facts = FACTS | {"input": EVIL, "detail": EVIL, "options": {EVIL: EVIL}}
    page = check_page(render_report(Timeline(timeline.media, table), facts))
    assert EVIL in page.text
    assert "</script" not in "".join(page.json)


def test_a_two_hour_clip_makes_a_page_of_bounded_size() -> None:
    timeline = make_timeline(2 * 3600 * 10, 2)
    timeline = Timeline(timeline.media, timeline.table.assign(timestamp=lambda t: t.frame / 10))
    text = render_report(timeline, FACTS)
    assert len(text) < 4_500_000
    assert "2:00:00" in text


def test_many_people_stand_in_a_table() -> None:
    page = check_page(render_report(make_timeline(100, 150), {}))
    lanes = [a["id"] for t, a in page.tags if t == "article"]
    assert len(lanes) == LANES
    assert "Other people" in page.text
    assert "and 42 more" in page.text


def test_a_report_with_faces_and_a_player(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(
        path, make_timeline(100), FACTS, source=CLIPS / "portrait.mp4", video_href="annotated.mp4"
    )
    page = check_page(path.read_text(encoding="utf-8"))
    images = [link for link in page.values("src") if link.startswith("data:image/jpeg")]
    assert len(images) == len(choose_thumbnails(make_timeline(100).table))
    assert "annotated.mp4" in page.values("src")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_report_without_thumbnails_shows_nobody(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, make_timeline(100), FACTS)
    page = check_page(path.read_text(encoding="utf-8"))
    assert page.values("src") == []
    assert not [tag for tag, _ in page.tags if tag in ("video", "img")]


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_report(tmp_path / "gone" / "report.html", make_timeline(10), {})


def test_reports_need_no_network_libraries() -> None:
    code = (
        "import sys, batchfer.report as report\n"
        "assert 'bokeh' not in sys.modules and 'jinja2' not in sys.modules\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "sys.path.insert(0, 'tests')\n"
        "import test_report\n"
        "assert report.render_report(test_report.make_timeline(50), {})\n"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=root)


# --- pictures and the index ---------------------------------------------------------------------


def make_pictures() -> pd.DataFrame:
    faces = make_table(3, 2).query("frame < 2").assign(frame=0, timestamp=np.nan)
    nobody = make_table(1, 0).assign(timestamp=np.nan)
    names = [*["two/two_people.webp"] * 2, *["admiral.png"] * 2, EVIL]
    table = pd.concat([faces, nobody], ignore_index=True)
    table.insert(0, "input", pd.array(names, "string"))
    return table


def test_pictures_make_a_gallery(tmp_path: Path) -> None:
    table = make_pictures()
    results = [
        JobResult(
            Job(STILLS / Path(name).name, name, tmp_path / "annotated" / name), "ok", n_frames=1
        )
        for name in ("two/two_people.webp", "admiral.png")
    ]
    broken = Job(STILLS / "broken.jpg", "broken.jpg", tmp_path / "annotated" / "broken.jpg")
    results.append(JobResult(broken, "failed", Reason.CORRUPT, "the picture is cut off"))
    annotated = results[0].job.destination
    annotated.parent.mkdir(parents=True)
    annotated.write_bytes(b"a picture")
    write_images_report(tmp_path / "report.html", table, FACTS, results)
    page = check_page((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert "4 faces in 2 of 3 pictures." in text
    assert "the picture is cut off" in text
    assert EVIL in page.text
    assert "annotated/two/two_people.webp" in page.values("href")
    assert len([link for link in page.values("src") if link.startswith("data:image/jpeg")]) == 4
    write_images_report(tmp_path / "report.html", table, FACTS, results, thumbnails=False)
    page = check_page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.values("src") == []


def test_no_pictures_make_a_page() -> None:
    page = check_page(render_images_report(make_pictures().head(0), {}))
    assert "0 faces in 0 of 0 pictures" in " ".join(page.text.split())


def test_the_index_links_every_report_and_tells_every_failure(tmp_path: Path) -> None:
    names = ["a/plain.mp4", "100% #1?.mp4", "c:odd.mp4", "b\udcffad.mp4", "häh.mp4"]
    results = []
    for name in names:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "report.html").write_text("a report", encoding="utf-8")
        job = Job(Path(name), name, folder)
        results.append(JobResult(job, "ok", n_frames=10, n_people=1, emotion="sad", seconds=2.0))
    for name, status, reason in (
        ("gone.mp4", "failed", Reason.VANISHED), (EVIL, "skipped", Reason.NOT_MEDIA),
    ):  # fmt: skip
        job = Job(Path(name), name, tmp_path / "nowhere")
        results.append(JobResult(job, status, reason, f"what happened to {name}"))
    write_index(tmp_path / "index.html", results)
    page = check_page((tmp_path / "index.html").read_text(encoding="utf-8"))
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert len(links) == len(names)
    for link in links:
        assert (tmp_path / unquote(link, errors="surrogateescape")).is_file()
    text = " ".join(page.text.split())
    assert "6 recordings: 5 ok, 1 failed, 1 skipped." in text
    assert "what happened to gone.mp4" in text
    assert r"b\xffad.mp4" in text
    assert EVIL in page.text
    assert "50" in text


def test_the_index_reads_the_facts_of_finished_folders(tmp_path: Path) -> None:
    folder = tmp_path / "done.mp4"
    folder.mkdir()
    (folder / "run.json").write_text(
        '{"media": {"duration_s": 75.0}, "frames": {"analyzed": 40, "with_face": 30},'
        ' "shares": {"happy": 0.75, "sad": 0.25}}'
    )
    job = Job(Path("done.mp4"), "done.mp4", folder)
    write_index(tmp_path / "index.html", [JobResult(job, "skipped", Reason.UP_TO_DATE)])
    page = check_page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "1:15" in page.text
    assert "75%" in page.text
    assert "happy 75%" in page.values("title")


def test_an_empty_index(tmp_path: Path) -> None:
    write_index(tmp_path / "index.html", [])
    assert "0 recordings" in check_page((tmp_path / "index.html").read_text()).text


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [(0, 0, "0:00"), (59.96, 1, "1:00.0"), (61.25, 2, "1:01.25"), (3725, 0, "1:02:05"),
     (-1.5, 1, "-0:01.5"), (-0.01, 0, "0:00")],
)  # fmt: skip
def test_clocks(seconds: float, decimals: int, text: str) -> None:
    assert format_clock(seconds, decimals) == text
