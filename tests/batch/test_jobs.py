"""Inputs to jobs, models by name, and files that are complete or not there."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchfer import files
from batchfer.batch.jobs import Kind, plan_jobs
from batchfer.emotions.card import find_model
from batchfer.errors import (
    ModelError,
    NothingToDoError,
    OutputError,
    PlaceError,
    Reason,
    UsageError,
)
from batchfer.files import (
    atomic_write,
    display_name,
    fold_name,
    hash_file,
    locate_parts,
    prepare_output,
    publish_folder,
)
from batchfer.locks import lock_output


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode(errors="surrogateescape"))


def list_names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def plan(*paths: str, kind: Kind = "video", output: str = "out") -> dict[str, str]:
    """The destinations below the output, by source."""
    jobs, _ = plan_jobs([Path(path) for path in paths], Path(output), kind)
    return {str(job.source): str(job.destination.relative_to(output)) for job in jobs}


# --- inputs to jobs -------------------------------------------------------------------------------


def test_a_folder_is_walked_in_sorted_order(home: Path) -> None:
    touch("in/b.mp4", "in/a.MOV", "in/s/t/c.mkv", "in/notes.txt", "in/p.jpg")
    jobs, skipped = plan_jobs([Path("in")], Path("out"), "video")
    assert [job.name for job in jobs] == ["a.MOV", "b.mp4", "s/t/c.mkv"]
    assert [str(job.destination) for job in jobs] == ["out/a.MOV", "out/b.mp4", "out/s/t/c.mkv"]
    assert not any(job.named for job in jobs)
    assert [(r.job.name, r.status, r.reason) for r in skipped] == [
        ("notes.txt", "skipped", Reason.NOT_MEDIA),
        ("p.jpg", "skipped", Reason.NOT_MEDIA),
    ]


def test_what_programs_leave_beside_media_is_not_walked(home: Path) -> None:
    touch(
        "in/a.mp4", "in/.ipynb_checkpoints/a-checkpoint.mp4", "in/s/__MACOSX/._b.mp4", "in/.c.mp4",
        "in/._a.mp4",
    )  # fmt: skip
    jobs, skipped = plan_jobs([Path("in")], Path("out"), "video")
    assert [job.name for job in jobs] == [".c.mp4", "a.mp4"]
    assert [(one.job.name, one.reason) for one in skipped] == [("._a.mp4", Reason.NOT_MEDIA)]
    assert list(plan("in/._a.mp4")) == ["in/._a.mp4"], "who names it means it"


def test_a_named_file_is_taken_whatever_its_suffix(home: Path) -> None:
    touch("in/clip", "in/notes.txt")
    jobs, skipped = plan_jobs([Path("in/clip"), Path("in/notes.txt")], Path("out"), "video")
    assert [(job.name, job.named) for job in jobs] == [("clip", True), ("notes.txt", True)]
    assert not skipped


def test_what_does_not_exist_is_a_usage_error(home: Path) -> None:
    Path("nowhere.mp4").symlink_to("gone")
    for name in ("missing.mp4", "nowhere.mp4", "a" * 300, "null\0byte"):
        with pytest.raises(UsageError):
            plan(name)


def test_a_folder_without_media_is_nothing_to_do(home: Path) -> None:
    touch("in/notes.txt")
    with pytest.raises(NothingToDoError, match="in"):
        plan("in")
    Path("empty").mkdir()
    with pytest.raises(NothingToDoError):
        plan("empty", kind="image")


def test_clashing_names_keep_the_shortest_parents_that_tell_them_apart(home: Path) -> None:
    touch("x/a/clip.mp4", "x/b/clip.mp4", "y/b/clip.mp4", "x/a/other.mp4")
    assert plan("x/a/clip.mp4", "x/b/clip.mp4", "x/a/other.mp4") == {
        "x/a/clip.mp4": "a/clip.mp4",
        "x/b/clip.mp4": "b/clip.mp4",
        "x/a/other.mp4": "other.mp4",
    }
    assert plan("x/b/clip.mp4", "y/b/clip.mp4") == {
        "x/b/clip.mp4": "x/b/clip.mp4",
        "y/b/clip.mp4": "y/b/clip.mp4",
    }


def test_clashing_folders_keep_their_trees(home: Path) -> None:
    touch("x/s/clip.mp4", "y/s/clip.mp4", "y/s/own.mp4")
    assert plan("x", "y") == {
        "x/s/clip.mp4": "x/s/clip.mp4",
        "y/s/clip.mp4": "y/s/clip.mp4",
        "y/s/own.mp4": "s/own.mp4",
    }


def test_a_name_that_is_a_folder_of_another_clashes(home: Path) -> None:
    touch("x/clip.mp4", "y/clip.mp4/inner.mp4")
    destinations = plan("x/clip.mp4", "y")
    first, second = destinations["x/clip.mp4"], destinations["y/clip.mp4/inner.mp4"]
    assert not f"{second}/".startswith(f"{first}/")


def test_names_that_the_output_needs_are_avoided(home: Path) -> None:
    touch("logs/run.jsonl", "in/annotated/a.mp4")
    assert plan("logs/run.jsonl") == {"logs/run.jsonl": "logs/run.jsonl"}
    assert plan("in") == {"in/annotated/a.mp4": "in/annotated/a.mp4"}
    touch("pictures/annotated/a.png")
    assert plan("pictures", kind="image") == {
        "pictures/annotated/a.png": "annotated/annotated/a.png"
    }


@pytest.mark.parametrize("name", ["summary.csv", "index.html", "Report.HTML", "faces.csv"])
def test_folders_named_like_our_own_files_are_told_from_them(name: str, home: Path) -> None:
    touch(f"in/{name}/a.mp4")
    assert plan("in") == {f"in/{name}/a.mp4": f"in/{name}/a.mp4"}


def test_a_name_that_nothing_can_tell_from_our_own_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch("run.json/a.mp4")
    absolute = os.path.abspath
    # As for a folder below the root.
    monkeypatch.setattr(os.path, "abspath", lambda p: str(absolute(p)).replace(str(home), ""))
    with pytest.raises(OutputError, match="rename it"):
        plan(".")


def test_names_that_a_disk_may_take_for_the_same_are_told_apart(home: Path) -> None:
    composed, decomposed = "é.mp4", "e\u0301.mp4"
    touch("in/Talk.mp4", "in/talk.mp4", "in/TALK.MP4~2", f"in/{composed}", f"in/{decomposed}")
    touch("x/a/clip.mp4", "x/A/Clip.mp4", "y/Day/a.mp4", "y/day/b.mp4")
    every = ("in/Talk.mp4", "in/talk.mp4", "in/TALK.MP4~2", f"in/{composed}", f"in/{decomposed}")
    expected = {
        "in/Talk.mp4": "Talk.mp4",
        "in/talk.mp4": "talk.mp4~3",
        "in/TALK.MP4~2": "TALK.MP4~2",
        f"in/{decomposed}": decomposed,
        f"in/{composed}": f"{composed}~2",
    }
    assert plan(*every) == expected
    assert plan(*reversed(every)) == expected, "whatever their order"
    jobs, _ = plan_jobs([Path("in")], Path("out"), "video")
    assert [job.name for job in jobs] == ["Talk.mp4", decomposed, "talk.mp4~2", f"{composed}~2"]
    assert plan("x/a/clip.mp4", "in/Talk.mp4", "x/A/Clip.mp4") == {
        "x/A/Clip.mp4": "Clip.mp4",
        "x/a/clip.mp4": "clip.mp4~2",
        "in/Talk.mp4": "Talk.mp4",
    }, "their parents would not tell them apart"
    assert plan("y") == {"y/Day/a.mp4": "Day/a.mp4", "y/day/b.mp4": "day/b.mp4"}
    touch("p/one.mp4", "q/ONE.mp4", "r/v.mp4", "r/V.MP4/w.mp4")
    assert plan("p", "q") == {"p/one.mp4": "p/one.mp4", "q/ONE.mp4": "q/ONE.mp4"}
    names = list(plan("r").values())
    assert not names[0].casefold().startswith(names[1].casefold() + "/")
    assert not names[1].casefold().startswith(names[0].casefold() + "/")


def test_copies_that_a_disk_may_take_for_the_same_are_told_apart(home: Path) -> None:
    long = "n" * 251
    touch("in/a.jpg", "in/A.JPG", "in/b.gif", "in/B.gif.JPG", f"in/{long}.jpg", f"in/{long}.JPG")
    copies = list(plan("in", kind="image").values())
    assert len({copy.casefold() for copy in copies}) == 6
    assert all(len(Path(copy).name) <= 255 for copy in copies)
    assert all(Path(copy).suffix.lower() == ".jpg" for copy in copies)


def test_a_file_met_twice_is_a_duplicate(home: Path) -> None:
    touch("in/a.mp4", "in/b.mp4")
    Path("in/c.mp4").symlink_to("a.mp4")
    jobs, skipped = plan_jobs(
        [Path("in"), Path("./in/../in/b.mp4"), Path("in/b.mp4")], Path("out"), "video"
    )
    assert [(job.name, job.named) for job in jobs] == [("a.mp4", False), ("b.mp4", True)]
    assert [result.reason for result in skipped] == [Reason.DUPLICATE] * 3
    assert "in/a.mp4" in skipped[0].detail


def test_a_file_that_is_passed_over_and_named_is_done(home: Path) -> None:
    touch("in/b.mp4", "in/odd.bin", "in/notes.txt")
    jobs, skipped = plan_jobs([Path("in"), Path("in/odd.bin")], Path("out"), "video")
    assert [job.name for job in jobs] == ["b.mp4", "odd.bin"]
    assert [(result.job.name, result.reason) for result in skipped] == [("notes.txt", "not_media")]


def test_raw_streams_and_rarer_kinds_are_walked(home: Path) -> None:
    videos = {f"in/a.{kind}" for kind in "264 h264 265 h265 hevc apng mj2 mod TOD".split()}
    touch(*videos, "in/b.mpo")
    assert set(plan("in")) == videos
    assert set(plan("in", kind="image")) == {"in/a.apng", "in/b.mpo"}


def test_links_are_followed_but_never_in_circles(home: Path) -> None:
    touch("in/a.mp4", "elsewhere/b.mp4", "elsewhere/deep/c.mp4")
    Path("in/linked").symlink_to("../elsewhere")
    Path("in/self").symlink_to(".")
    Path("in/up").symlink_to("..")
    Path("in/root").symlink_to("/")
    Path("elsewhere/back").symlink_to("../in")
    Path("elsewhere/deep/again").symlink_to("..")
    Path("in/knot.mp4").symlink_to("knot.mp4")
    assert sorted(plan("in")) == [
        "in/a.mp4",
        "in/knot.mp4",
        "in/linked/b.mp4",
        "in/linked/deep/c.mp4",
    ]


def test_own_results_are_no_inputs(home: Path) -> None:
    touch("in/a.mp4")
    touch("in/out/a.mp4/annotated.mp4", "in/out/a.mp4/run.json", "in/out/a.mp4/timeline.csv")
    assert list(plan("in", output="in/out")) == ["in/a.mp4"]
    # A folder of an earlier run under another name is known by what lies in it.
    assert list(plan("in", output="in/second")) == ["in/a.mp4"]
    touch("in/old/run.jsonl", "in/old/annotated/p.jpg", "in/p.jpg")
    assert list(plan("in", output="out", kind="image")) == ["in/p.jpg"]
    Path("in/older/.batchfer").mkdir(parents=True)
    touch("in/older/x/y.mp4")
    assert list(plan("in", output="out")) == ["in/a.mp4"]


def test_pictures_beside_their_own_annotated_copies(home: Path) -> None:
    touch("in/p.jpg", "in/annotated/p.jpg")
    assert plan("in", output="in", kind="image") == {"in/p.jpg": "annotated/p.jpg"}


@pytest.mark.parametrize(
    ("given", "output"), [("in", "in"), ("in/a.mp4", "in"), ("in/s/b.mp4", "in/s"), (".", ".")]
)
def test_a_result_never_replaces_an_input(given: str, output: str, home: Path) -> None:
    touch("in/a.mp4", "in/s/b.mp4")
    with pytest.raises(OutputError, match="input"):
        plan(given, output=output)


def test_an_annotated_copy_never_replaces_its_picture(home: Path) -> None:
    touch("annotated/p.jpg")
    with pytest.raises(OutputError, match="input"):
        plan("annotated", kind="image", output=".")


def test_a_folder_that_holds_an_input_is_not_replaced(home: Path) -> None:
    touch("out/clip.mp4/clip.mp4")
    with pytest.raises(OutputError, match="input"):
        plan("out/clip.mp4/clip.mp4")


def test_copies_of_pictures_have_a_format_that_can_be_written(home: Path) -> None:
    long = "n" * 250 + ".heic"
    touch("in/a.png", "in/b.gif", "in/b.gif.jpg", "in/c.HEIC", "in/s/d.webp", f"in/{long}")
    destinations = plan("in", kind="image")
    assert destinations["in/a.png"] == "annotated/a.png"
    assert destinations["in/b.gif.jpg"] == "annotated/b.gif.jpg"
    assert destinations["in/b.gif"] == "annotated/b.gif.jpg.jpg"
    assert destinations["in/c.HEIC"] == "annotated/c.HEIC.jpg"
    assert destinations["in/s/d.webp"] == "annotated/s/d.webp"
    assert destinations[f"in/{long}"].endswith(".jpg")
    assert len(Path(destinations[f"in/{long}"]).name) == 255
    assert len(set(destinations.values())) == 6


def test_ten_thousand_files_are_planned_quickly(home: Path) -> None:
    for index in range(100):
        Path(f"in/{index:03}").mkdir(parents=True)
    for index in range(10_000):
        Path(f"in/{index // 100:03}/{index:05}.jpg").touch()
    assert len(plan("in", kind="image")) == 10_000


# --- names ----------------------------------------------------------------------------------------


def test_any_name_is_shown_on_one_line_as_utf8() -> None:
    assert display_name("Grüße/漢字.mp4") == "Grüße/漢字.mp4"
    assert display_name(os.fsdecode(b"a\xff.mp4")) == "a\\xff.mp4"
    assert display_name("a\nb\x1b[31m\x07.mp4") == "a\\nb\\x1b[31m\\x07.mp4"
    assert display_name(Path("=1+1.mp4")) == "=1+1.mp4"
    display_name(os.fsdecode(bytes(range(1, 256)))).encode()


def test_printable_unicode_is_shown_as_it_is() -> None:
    blanks = "\u00a0\u1680\u2003\u2009\u202f\u205f\u3000"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467\ufe0f"
    for text in (blanks, family, "e\u0301", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"):
        assert display_name(f"{text}.mp4") == f"{text}.mp4"
    turns = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
    others = "\u2028\u2029\x85\x00\x7f\x9b\u00ad\ufeff\u200b\ue000\U000e0041\uffff"
    for char in turns + others:
        assert display_name(f"a{char}b") == f"a{char.encode('unicode_escape').decode()}b"
    assert display_name(os.fsdecode(b"a\xed\xa0\x80")) == "a\\xed\\xa0\\x80", "a lone surrogate"


def test_names_that_look_the_same_are_folded_to_one() -> None:
    names = ("Café a\u202fb", "Cafe\u0301 a\u00a0b", "\u200eCafé a b", "Caf\u00e9\u2003a\u3000b")
    assert {fold_name(name) for name in names} == {"Café a b"}
    assert len({fold_name(name) for name in ("a b", "ab", "A b", "a  b")}) == 4


def test_odd_names_become_jobs(home: Path) -> None:
    names = [
        b"\xff.mp4",
        b"a\nb.mp4",
        b"-rf.mp4",
        b"%03d.mp4",
        b"<b>.mp4",
        b"=1.mp4",
        b"n" * 251 + b".mp4",
    ]
    for name in names:
        touch(f"in/{os.fsdecode(name)}")
    jobs, _ = plan_jobs([Path("in")], Path("out"), "video")
    assert [os.fsencode(job.source.name) for job in jobs] == sorted(names)
    assert [job.name for job in jobs] == [display_name(os.fsdecode(n)) for n in sorted(names)]
    assert [os.fsencode(job.destination.name) for job in jobs] == sorted(names)
    assert len({locate_parts(Path("out"), job.name) for job in jobs}) == len(names)
    assert all(len(locate_parts(Path("out"), job.name).name) < 40 for job in jobs)


# --- models ---------------------------------------------------------------------------------------


def test_a_model_is_found_by_path_and_by_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch("own.keras", "shelf/small.keras")
    monkeypatch.setenv("BATCHFER_MODELS", "shelf")
    assert find_model("own.keras") == Path("own.keras")
    assert find_model(Path("shelf/small.keras")) == Path("shelf/small.keras")
    assert find_model("small") == Path("shelf/small.keras")
    assert find_model("small.keras") == Path("shelf/small.keras")


def test_an_unknown_model_lists_every_place_searched(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHFER_MODELS", "shelf")
    with pytest.raises(ModelError) as caught:
        find_model("unheard")
    package = Path(files.__file__).parent
    for folder in ("shelf", package.parent / "models", package / "models"):
        assert str(Path(folder) / "unheard.keras") in str(caught.value)
    with pytest.raises(ModelError):
        find_model("../unheard")


def test_a_folder_that_is_given_for_a_model_says_what_is_in_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch("runs/b.keras", "runs/a.h5", "runs/a.json", "empty/notes.txt", "shelf/empty.keras")
    with pytest.raises(ModelError, match=r"runs is a folder; .*: it holds a\.h5, b\.keras$"):
        find_model("runs")
    touch(*(f"many/{number}.keras" for number in range(9)))
    with pytest.raises(ModelError, match=r"0\.keras, .*4\.keras \.\.\.$"):
        find_model("many/")
    with pytest.raises(ModelError, match=r"without a \.keras or \.h5 file"):
        find_model("empty")
    # A model that is found by its name goes before a folder that happens to lie here.
    monkeypatch.setenv("BATCHFER_MODELS", "shelf")
    assert find_model("empty") == Path("shelf/empty.keras")


def test_a_file_is_known_by_its_content(home: Path) -> None:
    touch("a")
    assert hash_file(Path("a")) == (
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    )


# --- outputs --------------------------------------------------------------------------------------


def test_the_output_folder_is_made(home: Path) -> None:
    prepare_output(Path("a/b"))
    prepare_output(Path("a/b"))
    assert [path.name for path in Path("a/b").iterdir()] == [".batchfer"]


def test_an_output_that_is_a_file_is_refused(home: Path) -> None:
    touch("a.txt")
    for path in ("a.txt", "a.txt/below"):
        with pytest.raises(OutputError, match="a file is in the way"):
            prepare_output(Path(path))


def test_an_output_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(OutputError):
        prepare_output(Path("/proc/batchfer"))


def test_no_link_among_the_parts_is_followed(home: Path) -> None:
    """A shared output folder in which somebody else has put links that lead to our files."""
    touch("victim", "elsewhere/result/a", "elsewhere/part-0.npz")
    parts = Path("out/.batchfer")
    parts.mkdir(parents=True)
    for name in ("trial", "lock", "pictures"):
        (parts / name).symlink_to(Path("victim").absolute())
    locate_parts(Path("out"), "a.mp4").symlink_to(Path("elsewhere").absolute())
    prepare_output(Path("out"))
    with lock_output(Path("out")):
        with files.work_folder(Path("out"), "a.mp4") as folder:
            assert not folder.is_symlink()
            (folder / "part").touch()
        locate_parts(Path("out"), "b.mp4").symlink_to(Path("elsewhere").absolute())
        with files.work_folder(Path("out"), "b.mp4") as folder:
            (folder / "part").touch()
    assert Path("victim").read_bytes() == b"victim"
    assert sorted(p.name for p in Path("elsewhere").iterdir()) == ["part-0.npz", "result"]
    assert Path("elsewhere/result/a").exists()


def test_a_folder_of_parts_that_is_a_link_is_refused(home: Path) -> None:
    touch("elsewhere/lock")
    Path("out").mkdir()
    Path("out/.batchfer").symlink_to(Path("elsewhere").absolute())
    with pytest.raises(OutputError, match=r"\.batchfer is a link"):
        prepare_output(Path("out"))
    assert list_names("elsewhere") == ["lock"]
    with atomic_write(Path("out/a.csv")) as path:
        assert path.parent == Path("out")
        path.touch()
    Path("real").mkdir()
    Path("linked").symlink_to("real")
    prepare_output(Path("linked"))
    assert list_names("real") == [".batchfer"]


def test_nobody_can_guess_where_a_file_is_written(home: Path) -> None:
    names = set()
    for _ in range(2):
        with atomic_write(Path("a.csv")) as path:
            path.touch()
            names.add(path.name)
    assert len(names) == 2


def test_two_runs_do_not_share_an_output(home: Path) -> None:
    prepare_output(Path("out"))
    code = (
        "import sys; from pathlib import Path; from batchfer.locks import lock_output\n"
        "with lock_output(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, home / "out"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another run"), lock_output(Path("out")):
            pass
        other.kill()
    with lock_output(Path("out")):
        pass


def test_a_file_appears_whole_or_not_at_all(home: Path) -> None:
    with atomic_write(Path("a.csv")) as path:
        path.write_text("done")
        assert path.suffix == ".csv"
        assert not Path("a.csv").exists()
    assert Path("a.csv").read_text() == "done"
    with pytest.raises(ZeroDivisionError), atomic_write(Path("a.csv")) as path:
        path.write_text("half")
        _ = 1 / 0
    assert Path("a.csv").read_text() == "done"
    assert [path.name for path in Path().iterdir()] == ["a.csv"]


def test_unfinished_files_of_an_output_lie_among_its_parts(home: Path) -> None:
    prepare_output(Path("out"))
    Path("out/annotated/s").mkdir(parents=True)
    with atomic_write(Path("out/annotated/s/a.jpg")) as path:
        path.touch()
        assert path.parent == Path("out/.batchfer")
    assert Path("out/annotated/s/a.jpg").exists()


def test_a_file_that_cannot_be_written_is_an_output_error(home: Path) -> None:
    with pytest.raises(OutputError), atomic_write(Path("missing/a.csv")) as path:
        path.write_text("x")
    Path("a.csv").mkdir()
    with pytest.raises(OutputError), atomic_write(Path("a.csv")) as path:
        path.write_text("x")


def make_result(folder: str, text: str) -> Path:
    touch(f"{folder}/run.json", f"{folder}/deep/x")
    Path(f"{folder}/timeline.csv").write_text(text)
    return Path(folder)


def test_a_result_folder_is_published_and_replaced_whole(home: Path) -> None:
    final = Path("out/s/a.mp4")
    publish_folder(make_result("out/.batchfer/1", "first"), final)
    assert (final / "timeline.csv").read_text() == "first"
    touch("out/s/a.mp4/stale.html")
    publish_folder(make_result("out/.batchfer/1", "second"), final)
    assert (final / "timeline.csv").read_text() == "second"
    assert not (final / "stale.html").exists()
    assert not list(Path("out/.batchfer").iterdir())


def test_a_folder_that_is_no_result_is_not_replaced(home: Path) -> None:
    touch("out/a.mp4/precious.txt", "out/b.mp4")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(OutputError):
            publish_folder(make_result("out/.batchfer/1", "new"), Path("out") / name)
    assert Path("out/a.mp4/precious.txt").exists()
    assert Path("out/b.mp4").is_file()


def test_a_result_that_cannot_have_its_name_leaves_the_older_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = Path("out/12:30.mp4")
    publish_folder(make_result("out/.batchfer/1", "first"), final)
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "1":
            raise OSError(errno.EINVAL, "Invalid argument")
        return replace(self, target)

    new = make_result("out/.batchfer/1", "second")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PlaceError, match="Invalid argument"):
        publish_folder(new, final)
    assert (new / "timeline.csv").read_text() == "second"
    assert (final / "timeline.csv").read_text() == "first"


def test_a_link_at_the_place_of_a_result_is_not_followed(home: Path) -> None:
    make_result("elsewhere", "theirs")
    Path("out").mkdir()
    Path("out/a.mp4").symlink_to(Path("elsewhere").absolute())
    with pytest.raises(PlaceError):
        publish_folder(make_result("out/.batchfer/1", "new"), Path("out/a.mp4"))
    assert Path("elsewhere/timeline.csv").read_text() == "theirs"


@pytest.mark.timeout(20)
def test_what_others_keep_in_a_result_is_not_opened(home: Path) -> None:
    folder = make_result("out/.batchfer/1", "new")
    os.mkfifo(folder / "pipe")
    (folder / "gone").symlink_to("nowhere")
    publish_folder(folder, Path("out/a.mp4"))
    assert list_names("out/a.mp4") == ["deep", "gone", "pipe", "run.json", "timeline.csv"]


def test_what_is_written_among_unfinished_parts_lies_beside_it(tmp_path: Path) -> None:
    """A kill leaves it where the attempt it belongs to is removed."""
    folder = tmp_path / "out" / ".batchfer" / "0123" / "result"
    folder.mkdir(parents=True)
    with atomic_write(folder / "run.json") as path:
        assert path.parent == folder
        path.write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["run.json"]
