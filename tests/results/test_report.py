"""Reports: what is chosen and thinned for them, the pages, and how they work in a browser."""

import base64
import hashlib
import io
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor

from batchfer.batch.outcomes import add_time, recall_result, skip_result
from batchfer.errors import InputError, OutputError, Reason
from batchfer.media import reader as media
from batchfer.media.reader import VideoReader, read_frames_at
from batchfer.results.facts import FrameFacts, MediaFacts, ModelFacts, RunFacts
from batchfer.results.journal import Entry
from batchfer.results.painter import DrawnFaces
from batchfer.results.report.bands import stack_events
from batchfer.results.report.charts import (
    DRAWN_INTERVALS,
    _thin_lane,
    merge_intervals,
    select_peaks,
)
from batchfer.results.report.index import write_index
from batchfer.results.report.page import format_clock
from batchfer.results.report.pictures import render_images_report, write_images_report
from batchfer.results.report.thumbnails import (
    LANES,
    MOMENTS_PER_EMOTION,
    THUMBNAIL_PX,
    choose_thumbnails,
    cut_thumbnails,
)
from batchfer.results.report.video import render_report, write_report
from batchfer.schema import (
    EMOTION_COLORS,
    EMOTIONS,
    TIMELINE_COLUMNS,
    EventWindow,
    Job,
    JobResult,
    MediaInfo,
)
from batchfer.timeline.segments import PersonLines
from batchfer.timeline.summaries import summarize_people
from batchfer.timeline.table import name_persons
from batchfer.timeline.timeline import Timeline

draw = PersonLines.draw
CLIPS = Path(__file__).parents[2] / "samples" / "clips"
STILLS = Path(__file__).parents[2] / "samples" / "stills"
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


FACTS = RunFacts(
    batchfer="0.1.0",
    input="clip.mp4",
    source="clip.mp4",
    media=MediaFacts(640, 360, Fraction(30000, 1001), True, 40.0, 40.0, 90, None, True, "h264"),
    frames=FrameFacts(declared=1234, decoded=1200, analyzed=1000, corrupt=3, first_bad_s=12.5),
    options={"every": 1, "min_face_px": 40, "fps": None},
    model=ModelFacts("mobilenetv2", "ab" * 32),
    status="partial",
    reason="truncated",
    detail="the file ends early",
)
NO_FACTS = RunFacts()


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
    read = list(read_frames_at(CLIPS / name, reversed(list(wanted))))
    assert [time_s for time_s, _ in read] == sorted(wanted)
    assert all(np.array_equal(image, wanted[time_s]) for time_s, image in read)


def test_a_time_without_a_frame_is_left_out() -> None:
    assert list(read_frames_at(CLIPS / "portrait.mp4", [])) == []
    read = [time_s for time_s, _ in read_frames_at(CLIPS / "portrait.mp4", [0.0, 0.0123, 1e6])]
    assert read == [0.0]


def test_frames_of_a_file_that_is_gone() -> None:
    with pytest.raises(InputError):
        list(read_frames_at(CLIPS / "gone.mp4", [0.0]))


# --- faces worth showing ------------------------------------------------------------------------


def test_uncertain_time_is_told_as_such() -> None:
    timeline = make_timeline(100)

    def tell(uncertain: Any) -> tuple[str, bool]:
        table = timeline.table.assign(uncertain=uncertain).astype({"uncertain": "boolean"})
        page = check_page(render_report(Timeline(timeline.media, table), NO_FACTS))
        return " ".join(page.text.split()), "right_diagonal_line" in "".join(page.json)

    text, is_hatched = tell(True)
    assert "unclear, uncertain for 100% of it" in text and "mostly" not in text
    assert is_hatched
    assert re.search(r"Longest\s*[a-z]+\?, 0:0", text)
    moments = re.findall(r"0:0\d\.\d \d+%(, uncertain)?", text)
    assert moments and all(moments)
    text, is_hatched = tell(timeline.table["frame"] < 50)
    assert "mostly" in text and "uncertain for" in text
    assert is_hatched
    text, is_hatched = tell(False)
    assert not is_hatched
    assert not re.search(r"Longest\s*[a-z]+\?", text) and ", uncertain" not in text


@pytest.mark.parametrize("smooth_s", [0.0, 0.5])
def test_the_page_says_what_is_smoothed(smooth_s: float) -> None:
    timeline = make_timeline(100)
    lines = PersonLines.draw(timeline.table, smooth_s)
    text = " ".join(check_page(render_report(timeline, NO_FACTS, lines=lines)).text.split())
    how = "0.5 s;" if smooth_s else "0 s (not at all);"
    assert "Curves, moments, episodes and changes, and what stands under the video, are " in text
    assert f"smoothed over {how} shares of time and the overview come from the frames as" in text


@pytest.mark.parametrize("n_missed", [5, 6])
def test_a_line_breaks_where_a_segment_ends(n_missed: int) -> None:
    """However long the smoothing: 0.2 s are bridged, more are not."""
    table = make_table(100)
    is_gone = table["frame"].between(40, 39 + n_missed)
    faces = [name for name in table if name not in ("frame", "timestamp")]
    table[faces] = table[faces].mask(is_gone)
    lines = PersonLines.draw(table, 3.0)
    rows = _thin_lane(lines.faces.assign(flags=np.uint8(0)), 3.0, 1000)
    n_drawn = (rows["frame"] < 0).sum() / 2
    assert n_drawn == lines.rows["stretch"].nunique() == (2 if n_missed > 5 else 1)


def test_no_face_gives_no_thumbnail() -> None:
    assert choose_thumbnails(draw(make_table(0))) == []
    assert choose_thumbnails(draw(make_table(50, 0))) == []


def test_the_best_face_is_sharp_and_turned_to_the_camera() -> None:
    table = make_table(1000, 2)
    best = {
        item.person: item for item in choose_thumbnails(draw(table)) if item.purpose == "person"
    }
    assert set(best) == {"face 0", "face 1"}
    for item in best.values():
        row = table[(table["frame"] == item.frame) & (table["face_id"] == item.face_id)].iloc[0]
        assert abs(row["yaw"]) < 15
        assert row["blur"] > 200
        assert item.box == (row["x"], row["y"], row["x"] + 70, row["y"] + 90)


def test_moments_are_peaks_apart_from_each_other() -> None:
    table = make_table(3000)
    moments = [item for item in choose_thumbnails(draw(table)) if item.purpose != "person"]
    assert {item.purpose for item in moments} <= set(EMOTIONS)
    assert len({item.purpose for item in moments}) > 3
    for emotion in EMOTIONS:
        times = [item.time_s for item in moments if item.purpose == emotion]
        assert len(times) <= MOMENTS_PER_EMOTION
        assert np.all(np.diff(times) >= 1)
    # The very top of a smoothed emotion is among them, unless the face was hard to see.
    clear = table.assign(blur=500.0, yaw=0.0, uncertain=False)
    strongest = [item for item in choose_thumbnails(draw(clear, 0)) if item.purpose == "happy"]
    top = clear[clear["emotion"] == "happy"]["happy"].idxmax()
    assert table["frame"][top] in [item.frame for item in strongest]


def test_thumbnails_are_cut_from_the_clip() -> None:
    table = make_table(100)
    chosen = choose_thumbnails(draw(table))
    pictures = cut_thumbnails(CLIPS / "portrait.mp4", chosen)
    assert set(pictures) == {item.key for item in chosen}
    for jpeg in pictures.values():
        assert Image.open(io.BytesIO(jpeg)).size == (THUMBNAIL_PX, THUMBNAIL_PX)


def test_a_clip_that_is_gone_gives_no_thumbnails(caplog: pytest.LogCaptureFixture) -> None:
    assert cut_thumbnails(CLIPS / "gone.mp4", choose_thumbnails(draw(make_table(50)))) == {}
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
    page = check_page(render_report(make_timeline(n_frames, n_people), NO_FACTS))
    assert bool(page.json) == (n_frames > 0)
    assert page.text.count("Over time") == 1
    assert ("No face was found" in page.text) == (n_people == 0)


def test_a_page_is_a_function_of_its_input() -> None:
    timeline = make_timeline(300, 2)
    assert render_report(timeline, FACTS) == render_report(timeline, FACTS)


def test_the_header_tells_what_happened_to_the_frames() -> None:
    timeline = Timeline(FACTS.describe_media(), make_table(1000, 1))
    text = " ".join(check_page(render_report(timeline, FACTS)).text.split())
    for told in (
        "1,234", "1,200", "1,000", "34 fewer, 3 damaged", "truncated", "the file ends early",
        "29.97 frames/s, variable", "upright by 90°", "640 × 360", "h264", "mobilenetv2",  # noqa: RUF001
    ):  # fmt: skip
        assert told in text, told


def test_the_footer_tells_licences() -> None:
    facts = replace(FACTS, licences={"code": "MIT", "a <model>": "for research only"})
    page = render_report(make_timeline(5), facts)
    assert "<b>code</b> MIT; <b>a &lt;model&gt;</b> for research only." in page
    pictures = render_images_report(make_timeline(5).table.assign(input="a.png"), facts)
    assert "for research only." in pictures
    assert "Licences" not in render_report(make_timeline(5), FACTS), "of an older version"


def test_frames_that_were_not_asked_for_are_not_lost() -> None:
    facts = replace(FACTS, options={**FACTS.options, "start_s": None, "end_s": 1.0})
    text = check_page(render_report(make_timeline(1000, 1), facts)).text
    assert "3 damaged" in text
    assert "fewer" not in text


def test_a_lone_frame_without_a_face_is_told() -> None:
    text = " ".join(check_page(render_report(make_timeline(1, 0), NO_FACTS)).text.split())
    assert "no face" in text
    assert "Nothing to mark" not in text


def test_names_are_text_wherever_they_stand() -> None:
    timeline = make_timeline(100, 1)
    table = timeline.table.assign(person=pd.array([EVIL] * 100, "string"))
    facts = replace(FACTS, input=EVIL, detail=EVIL, options={EVIL: EVIL})
    page = check_page(render_report(Timeline(timeline.media, table), facts))
    assert EVIL in page.text
    assert "</script" not in "".join(page.json)


def test_beside_a_person_stand_the_tracks_that_the_video_shows() -> None:
    timeline = make_timeline(120, 2)
    table = timeline.table.assign(person=timeline.table["face_id"].map({0: "P2", 1: "P1"}))
    table.loc[table["frame"] >= 60, "face_id"] += 7
    page = check_page(render_report(Timeline(timeline.media, table), FACTS))
    assert re.search(r"P1\s+#1, #8", page.text) and re.search(r"P2\s+#0, #7", page.text)
    drawn = set(DrawnFaces.from_rows(table).names)
    assert drawn == {"#0", "#1", "#7", "#8"}


FILMS = (
    EventWindow("calm", 0.5, 2.0),
    EventWindow(EVIL, 1.5, 1.8),
    EventWindow("funny", 2.5, 6.5),
    EventWindow("after the end", 700, 800),
)


def test_events_are_bands_on_the_axis_of_time() -> None:
    page = check_page(render_report(make_timeline(175, 1), FACTS, events=FILMS))
    assert page.values("data-seek")[:3] == ["0.5", "1.5", "2.5"]
    assert "after the end" not in page.text and EVIL in page.text
    (charts,) = page.json
    assert "chart-events" in charts and "after the end" not in charts
    assert stack_events(FILMS).tolist() == [0, 1, 0, 0], "what overlaps stands in rows"
    many = [EventWindow("x", 0, 10)] * 50
    assert max(stack_events(many)) == 5
    without = check_page(render_report(make_timeline(175, 1), FACTS))
    assert "chart-events" not in without.json[0] and "Events" not in without.text


def test_numbers_on_the_page_are_those_of_the_summary() -> None:
    timeline = make_timeline(500, 3)
    lines = draw(timeline.table.assign(person=name_persons(timeline.table)))
    summary = summarize_people(lines).set_index("person")
    text = " ".join(render_report(timeline, FACTS, lines=lines).split())
    articles = text.split("<article ")[1:]
    assert len(articles) == len(summary) == 3
    for article, (person, row) in zip(articles, summary.iterrows(), strict=True):
        assert f"<h3>{person} " in article
        assert f"{format_clock(row['seconds_on_screen'], 1)} on screen" in article
        for name, value in (
            ("Episodes", row["episodes"]), ("Changes", row["transitions"]),
            ("Uncertain", f"{row['share_uncertain']:.0%}"),
            ("Longest", f"{row['longest_episode_emotion']}, "
                        f"{format_clock(row['longest_episode'], 1)}"),
        ):  # fmt: skip
            assert f"<dt>{name}</dt><dd>{value}</dd>" in article, (person, name)
        told = dict(re.findall(r"</i>(\w+) <b>(\d+%)</b>", article))
        certain = 1 - row["share_uncertain"]
        parts = {name: certain * row[f"share_certain_{name}"] for name in EMOTIONS}
        parts["uncertain"] = row["share_uncertain"]
        assert told == {name: f"{part:.0%}" for name, part in parts.items() if part >= 0.005}


def test_a_two_hour_clip_makes_a_page_of_bounded_size() -> None:
    timeline = make_timeline(2 * 3600 * 10, 2)
    timeline = Timeline(timeline.media, timeline.table.assign(timestamp=lambda t: t.frame / 10))
    text = render_report(timeline, FACTS)
    assert len(text) < 4_500_000
    assert "2:00:00" in text


def test_a_short_piece_from_late_in_a_clip() -> None:
    timeline = make_timeline(3)
    late = timeline.table.assign(timestamp=36_000 + timeline.table["timestamp"])
    assert "0:00" in check_page(render_report(Timeline(timeline.media, late), NO_FACTS)).text


def test_frames_that_all_have_one_time() -> None:
    timeline = make_timeline(40_000)
    still = Timeline(timeline.media, timeline.table.assign(timestamp=0.0))
    assert check_page(render_report(still, NO_FACTS)).json


def test_many_people_stand_in_a_table() -> None:
    page = check_page(render_report(make_timeline(100, 150), NO_FACTS))
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
    assert len(images) == len(choose_thumbnails(draw(make_timeline(100).table)))
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
        write_report(tmp_path / "gone" / "report.html", make_timeline(10), NO_FACTS)


def test_reports_need_no_network_libraries() -> None:
    code = (
        "import sys, batchfer.results.report.video as report\n"
        "assert 'bokeh' not in sys.modules and 'jinja2' not in sys.modules\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "sys.path[:0] = ['tests', 'tests/results']\n"
        "import test_report\n"
        "assert report.render_report(test_report.make_timeline(50), test_report.NO_FACTS)\n"
    )
    root = Path(__file__).parents[2]
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
    assert "1 picture could not be read; see below." in text
    assert "in part; see" not in text
    assert EVIL in page.text
    assert "annotated/two/two_people.webp" in page.values("href")
    # The picture and each of its faces, which lie side by side in one file.
    sources = page.values("src")
    assert len(sources) == 6 and len(set(sources)) == 4
    assert all((tmp_path / link).is_file() for link in sources)
    write_images_report(tmp_path / "report.html", table, FACTS, results, thumbnails=False)
    page = check_page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.values("src") == []
    assert not (tmp_path / "report_files").exists(), "nobody is shown beside the page either"


def test_what_is_known_of_a_picture_with_doubt_is_told_with_doubt(tmp_path: Path) -> None:
    table = make_pictures()
    n_faces = int(table["emotion"].notna().sum())
    table["uncertain"] = pd.array([True] * (n_faces - 1) + [False, None], "boolean")
    job = Job(STILLS / "admiral.png", "admiral.png", tmp_path / "annotated" / "admiral.png")
    lost = "the file is incomplete: about 9 of 90 rows are missing"
    partial = JobResult(job, "partial", Reason.TRUNCATED, lost, n_frames=1)
    for result in (partial, skip_result(partial)):
        path = tmp_path / "report.html"
        write_images_report(path, table, NO_FACTS, [result], thumbnails=False)
        page = check_page(path.read_text(encoding="utf-8"))
        assert "1 picture could be read in part; see below." in page.text
        assert lost in page.text
        told = " ".join(page.text.split())
        assert f"uncertain{n_faces - 1}" in told.replace(" ", "")
        assert f"uncertain {(n_faces - 1) / n_faces:.0%}" in page.values("title")


def test_somebody_seen_too_briefly_is_not_nobody() -> None:
    timeline = make_timeline(50, 1)
    table = timeline.table.assign(person=pd.array([None] * len(timeline.table), "string"))
    page = check_page(render_report(Timeline(timeline.media, table), NO_FACTS))
    assert "A face was seen in 0:02, but nobody for long enough" in page.text
    assert "No face was found" not in page.text


def test_no_pictures_make_a_page() -> None:
    page = check_page(render_images_report(make_pictures().head(0), NO_FACTS))
    assert "0 faces in 0 of 0 pictures" in " ".join(page.text.split())


def test_the_index_links_every_report_and_tells_every_failure(tmp_path: Path) -> None:
    names = ["a/plain.mp4", "100% #1?.mp4", "c:odd.mp4", "b\udcffad.mp4", "häh.mp4"]
    results = []
    for name in names:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "report.html").write_text("a report", encoding="utf-8")
        (folder / "run.json").write_text("{}", encoding="utf-8")
        job = Job(Path(name), name, folder)
        results.append(JobResult(job, "ok", n_frames=10, n_people=1, emotion="sad"))
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
    assert "time taken" not in text, "nobody knows it"


def test_the_index_reads_what_lies_in_finished_folders(tmp_path: Path) -> None:
    folder = tmp_path / "done.mp4"
    folder.mkdir()
    (folder / "run.json").write_text(
        '{"media": {"duration_s": 75.0}, "frames": {"analyzed": 40, "with_face": 30}}'
    )
    shares = {f"share_{emotion}": [0.0, 0.0] for emotion in EMOTIONS}
    shares |= {"share_happy": [1.0, 0.0], "share_sad": [0.0, 1.0]}
    summary = pd.DataFrame({"seconds_on_screen": [30.0, 10.0], **shares})
    summary.to_csv(folder / "summary.csv", index=False)
    job = Job(Path("done.mp4"), "done.mp4", folder)
    damaged = Job(Path("odd.mp4"), "odd.mp4", tmp_path / "odd.mp4")
    damaged.destination.mkdir()
    (damaged.destination / "run.json").write_text("{")
    (damaged.destination / "summary.csv").write_text("a,b")
    results = [JobResult(job, "skipped", Reason.UP_TO_DATE), JobResult(damaged, "ok")]
    write_index(tmp_path / "index.html", results)
    page = check_page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "1:15" in page.text
    assert "75%" in page.text
    assert {"happy 75%", "sad 25%"} <= set(page.values("title"))
    assert "Shares of time come from the frames as they are, without smoothing." in page.text


def read_index(tmp_path: Path, results: Sequence[JobResult]) -> Page:
    write_index(tmp_path / "index.html", results)
    return check_page((tmp_path / "index.html").read_text(encoding="utf-8"))


def test_the_time_in_the_index_is_that_of_the_runs_which_made_the_results(tmp_path: Path) -> None:
    jobs = [Job(Path(name), name, tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mp4")]
    day_s = 1_700_000_000.0
    # Two were worked on side by side, for 70 s together; the third on another day, in two goes.
    spans = ((day_s, day_s + 50),), ((day_s + 30, day_s + 70),)
    later = (day_s + 90_000, day_s + 90_010), (day_s + 95_000, day_s + 95_020)
    results = [
        JobResult(jobs[0], "skipped", Reason.UP_TO_DATE, n_frames=500, spans=spans[0]),
        JobResult(jobs[1], "ok", n_frames=400, seconds=40.0, spans=spans[1]),
        JobResult(jobs[2], "ok", n_frames=600, seconds=20.0, spans=later),
    ]
    page = read_index(tmp_path, results)
    assert "time taken1:4015.0 frames/s" in page.text
    # 500 in 50 s, 400 in 40 s, 600 in 30 s.
    rates = [float(text) for text in page.values("data-sort") if text.endswith(".0")]
    assert [rate for rate in rates if rate] == [10.0, 10.0, 20.0]
    unknown = [*results[:2], replace(results[2], spans=())]
    page = read_index(tmp_path, unknown)
    assert "1,500" in page.text
    assert "time taken" not in page.text


def test_a_run_that_finds_all_done_tells_the_time_of_the_run_before(tmp_path: Path) -> None:
    """The whole way: a run writes down when it worked, the next one tells that."""
    job = Job(tmp_path / "a.mp4", "a.mp4", tmp_path / "out" / "a.mp4")
    result = add_time(JobResult(job, "ok", n_frames=75), 7.5)
    entry = replace(Entry.of(result), spans=result.spans)
    done = skip_result(recall_result(job, entry))
    assert "time taken0:0810.0 frames/s" in read_index(tmp_path, [done]).text
    old = skip_result(recall_result(job, Entry("a.mp4", "ok", frames=75)))
    assert "time taken" not in read_index(tmp_path, [old]).text, "an older version did not tell it"


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


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium without a network of its own."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}", "window-size=1360,900",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options, webdriver.ChromeService(driver))
    session.set_page_load_timeout(60)
    session.set_script_timeout(30)
    yield session
    session.quit()


def open_page(browser: Any, path: Path) -> None:
    """Open a page and wait until its charts are drawn."""
    browser.get_log("browser")
    browser.get(path.as_uri())
    wait_for(browser, "return !document.getElementById('charts') || document.documentElement"
                      ".dataset.charts")  # fmt: skip


def wait_for(browser: Any, script: str) -> Any:
    for _ in range(200):
        if value := browser.execute_script(script):
            return value
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}")


def complaints(browser: Any) -> list[str]:
    return [e["message"] for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]


def count_colors(browser: Any, selector: str) -> dict[str, int]:
    """Return how many pixels of an element's picture have the colour of each emotion."""
    from selenium.webdriver.common.by import By

    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    picture = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")
    pixels = np.asarray(picture).astype(int)
    return {
        emotion: int((np.abs(pixels - ImageColor.getrgb(color)).max(axis=2) <= 3).sum())
        for emotion, color in EMOTION_COLORS.items()
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sample clip with two persons, beside a copy of it in the player's place."""
    folder = tmp_path_factory.mktemp("a report #1")
    shutil.copy(CLIPS / "two_people.mp4", folder / "annotated.mp4")
    timeline = make_timeline(175, 2)
    write_report(
        folder / "report.html",
        timeline,
        FACTS,
        source=CLIPS / "two_people.mp4",
        video_href="annotated.mp4",
    )
    return folder / "report.html"


@pytest.mark.browser
def test_charts_are_drawn_without_a_complaint(browser: Any, report: Path) -> None:
    open_page(browser, report)
    assert browser.execute_script("return document.documentElement.dataset.charts") == "4"
    table = make_timeline(175, 2).table
    for index in range(2):
        mine = table[table["face_id"] == index]
        drawn = count_colors(browser, f"#chart-lane-{index}")
        area = sum(drawn.values())
        assert area > 20_000
        for emotion in EMOTIONS:
            assert drawn[emotion] / area == pytest.approx(mine[emotion].mean(), abs=0.05)
    assert sum(count_colors(browser, "#chart-overview").values()) > 5_000
    loaded = "return [...document.images].every((image) => image.naturalWidth > 0)"
    assert browser.execute_script(loaded)
    assert complaints(browser) == []


@pytest.mark.browser
def test_hovering_tells_frame_time_and_probabilities(browser: Any, report: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    open_page(browser, report)
    chart = browser.find_element(By.ID, "chart-lane-0")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(browser).move_to_element(chart).perform()
    told = wait_for(
        browser,
        "const tip = document.querySelector('.bk-Tooltip');"
        "return tip && tip.shadowRoot.querySelector('.bk-tooltip-content').innerText",
    )
    clock, frame = re.search(r"0:(\d\d\.\d\d), frame (\d+)", told).groups()
    table = make_timeline(175, 2).table
    row = table[(table["frame"] == int(frame)) & (table["face_id"] == 0)].iloc[0]
    assert float(clock) == pytest.approx(row["timestamp"], abs=0.006)
    for emotion in EMOTIONS:
        percent = int(re.search(rf"{emotion}\s+(\d+)%", told).group(1))
        assert percent == pytest.approx(100 * row[emotion], abs=6)
    assert complaints(browser) == []


@pytest.mark.browser
def test_a_click_jumps_the_video(browser: Any, report: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    open_page(browser, report)
    wait_for(browser, "return document.querySelector('video').readyState >= 1")
    chart = browser.find_element(By.ID, "chart-lane-1")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(browser).move_to_element_with_offset(chart, 100, 0).click().perform()
    time_s = wait_for(browser, "return document.querySelector('video').currentTime")
    left, width = 70, chart.size["width"] - 70 - 24
    expected = 7 * (chart.size["width"] / 2 + 100 - left) / width
    assert time_s == pytest.approx(expected, abs=0.15)
    cursors = (
        "return Bokeh.documents[0].roots().map((figure) =>"
        " figure.center.find((model) => model.type === 'Span').location / 1000)"
    )
    assert browser.execute_script(cursors) == pytest.approx([time_s] * 4, abs=0.05)
    now = browser.find_elements(By.CSS_SELECTOR, "#now li > span:last-child")
    assert all(re.fullmatch(r"[a-z]+\?? \d+%", item.text) for item in now)
    moment = browser.find_element(By.CSS_SELECTOR, "[data-seek]")
    browser.execute_script("arguments[0].click()", moment)
    wanted = float(moment.get_attribute("data-seek"))
    wait_for(
        browser, f"return Math.abs(document.querySelector('video').currentTime - {wanted}) < .01"
    )
    assert complaints(browser) == []


@pytest.mark.browser
def test_an_event_is_named_and_jumped_to(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    page = tmp_path / "report.html"
    write_report(page, make_timeline(175, 2), FACTS, events=FILMS)
    open_page(browser, page)
    chart = browser.find_element(By.ID, "chart-events")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(browser).move_to_element_with_offset(chart, 0, -20).perform()
    told = wait_for(
        browser,
        "const tip = document.querySelector('.bk-Tooltip');"
        "return tip && tip.shadowRoot.querySelector('.bk-tooltip-content').innerText",
    )
    assert told.split() == ["funny", "2.5", "to", "6.5", "s"]
    button = browser.find_element(By.CSS_SELECTOR, "[data-seek='2.5']")
    browser.execute_script("arguments[0].click()", button)
    cursors = (
        "return Bokeh.documents[0].roots().map((figure) =>"
        " figure.center.find((model) => model.type === 'Span').location / 1000)"
    )
    assert browser.execute_script(cursors) == [2.5] * 5
    ActionChains(browser).move_to_element_with_offset(chart, 20, -20).click().perform()
    clicked = 7 * (chart.size["width"] / 2 + 20 - 70) / (chart.size["width"] - 70 - 24)
    wait_for(browser, f"{cursors}.every((time) => Math.abs(time - {clicked}) < 0.05)")
    assert complaints(browser) == []


@pytest.mark.browser
def test_bands_are_named_as_far_as_there_is_room(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    events = [EventWindow("a name that is longer", 0, 0.6), EventWindow("short", 1, 6)]
    write_report(page, make_timeline(175, 1), FACTS, events=events)
    open_page(browser, page)
    labels = "return Bokeh.documents[0].roots()[0].renderers[0].data_source.data.label.join('|')"
    cut, whole = wait_for(browser, labels).split("|")
    assert whole == "short" and cut.endswith("…") and "a name that is longer".startswith(cut[:-1])
    for _ in range(2):
        browser.execute_script("document.querySelector('[data-zoom=in]').click()")
    at = "return Bokeh.documents[0].roots()[0].renderers[0].data_source.data.label_at[1]"
    start = browser.execute_script("return Bokeh.documents[0].roots()[0].x_range.start")
    assert start > 1000, "the band begins before what is shown"
    wait_for(browser, f"{at} === {start}")
    assert complaints(browser) == []


@pytest.mark.browser
def test_charts_are_made_small_enough_for_paper(browser: Any, report: Path) -> None:
    open_page(browser, report)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        sizes = browser.execute_script(
            "return [...document.querySelectorAll('.chart')].map((chart) =>"
            " [Number(getComputedStyle(chart).zoom),"
            "  chart.style.getPropertyValue('--on-paper') * 1])"
        )
        assert all(zoom == pytest.approx(told, abs=1e-4) for zoom, told in sizes)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    width = browser.execute_script("return document.querySelector('.chart').clientWidth")
    assert width > 680 and sizes[0][0] == pytest.approx(680 / width, abs=0.01)


@pytest.mark.browser
def test_zooming_and_the_legend(browser: Any, report: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    open_page(browser, report)
    span = "const r = Bokeh.documents[0].roots()[1].x_range; return (r.end - r.start) / 1000"
    assert browser.execute_script(span) == pytest.approx(7)
    browser.find_element(By.CSS_SELECTOR, "[data-zoom=in]").click()
    assert browser.execute_script(span) == pytest.approx(3.5)
    browser.find_element(By.CSS_SELECTOR, "[data-zoom=all]").click()
    assert browser.execute_script(span) == pytest.approx(7)
    chart = browser.find_element(By.ID, "chart-lane-0")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    mouse = ActionChains(browser).move_to_element(chart).click_and_hold()
    mouse.move_by_offset(60, 5).move_by_offset(60, 5).release().perform()
    assert 0.5 < browser.execute_script(span) < 2.5
    browser.find_element(By.CSS_SELECTOR, "[data-zoom=all]").click()
    before = count_colors(browser, "#chart-lane-0")
    top = max(before, key=before.__getitem__)
    browser.find_element(By.CSS_SELECTOR, f"[data-emotion={top}]").click()
    time.sleep(0.5)
    after = count_colors(browser, "#chart-lane-0")
    assert after[top] > 0.7 * before[top]
    assert sum(after.values()) - after[top] < 0.1 * (sum(before.values()) - before[top])
    assert complaints(browser) == []


@pytest.mark.browser
def test_a_long_clip_stays_fluid(browser: Any, tmp_path: Path) -> None:
    timeline = make_timeline(2 * 3600 * 10, 3)
    timeline = Timeline(timeline.media, timeline.table.assign(timestamp=lambda t: t.frame / 10))
    write_report(tmp_path / "report.html", timeline, FACTS)
    open_page(browser, tmp_path / "report.html")
    rows = (
        "return Bokeh.documents[0].roots().slice(1, 4).map((figure) =>"
        " figure.renderers[0].data_source.data.x.length)"
    )
    assert max(browser.execute_script(rows)) < 8_000
    for _ in range(4):
        browser.execute_script("document.querySelector('[data-zoom=in]').click()")
        time.sleep(0.3)
    # Zoomed in, every row that the page holds is drawn.
    assert 100 < min(browser.execute_script(rows)) < 3_000
    assert complaints(browser) == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1360, 390])
def test_every_page_fits_its_screen(
    browser: Any, report: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    job = Job(Path("gone.mp4"), "a_long_name_" * 12, tmp_path / "gone")
    failed = JobResult(job, "failed", Reason.CORRUPT, "a long story " * 20)
    write_index(tmp_path / "index.html", [failed])
    write_images_report(tmp_path / "images.html", make_pictures(), FACTS, [failed])
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    media_feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [media_feature]})
    try:
        for path in (report, tmp_path / "index.html", tmp_path / "images.html"):
            open_page(browser, path)
            wide = "return document.documentElement.scrollWidth"
            assert browser.execute_script(wide) <= width, path.name
            paper = (
                "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
            )
            assert (sum(browser.execute_script(paper)) > 380) == (scheme == "light")
            assert complaints(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.browser
def test_a_page_without_its_video_says_so(browser: Any, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", make_timeline(100), NO_FACTS, video_href="annotated.mp4")
    open_page(browser, tmp_path / "report.html")
    wait_for(browser, "return document.body.innerText.includes('not beside this page')")
    assert not browser.execute_script("return document.querySelector('video').offsetHeight")


@pytest.mark.browser
def test_tables_sort_by_a_click_on_their_heads(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    results = []
    for name, n_frames in (("b10.mp4", 9), ("b9.mp4", 1000), ("a.mp4", 80)):
        job = Job(Path(name), name, tmp_path / name)
        results.append(JobResult(job, "ok", n_frames=n_frames, n_people=1, seconds=1.0))
    write_index(tmp_path / "index.html", results)
    open_page(browser, tmp_path / "index.html")

    def names() -> list[str]:
        return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "tbody td.name")]

    heads = {head.text: head for head in browser.find_elements(By.CSS_SELECTOR, "th button")}
    heads["Recording"].click()
    assert names() == ["a.mp4", "b9.mp4", "b10.mp4"]
    heads["Frames"].click()
    assert names() == ["b10.mp4", "a.mp4", "b9.mp4"]
    browser.find_elements(By.CSS_SELECTOR, "th[aria-sort] button")[0].click()
    assert names() == ["b9.mp4", "a.mp4", "b10.mp4"]
    assert complaints(browser) == []
