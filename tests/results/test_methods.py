"""What a paper tells of an analysis."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import batchfer
from batchfer.emotions.card import find_model, read_card
from batchfer.options import OutputOptions
from batchfer.results.facts import FrameFacts, ModelFacts, OutputFacts, RunFacts
from batchfer.results.methods import describe_methods
from batchfer.schema import MEASURES, EventWindow, NeutralRecording

FACTS = RunFacts(
    batchfer="0.1.0",
    input="a.mp4",
    frames=FrameFacts(declared=110, decoded=105, analyzed=100, with_face=80),
    options={"every": 5, "fps": None, "face_threshold": 0.8, "min_face_px": 40},
    model=ModelFacts("mobilenetv2", "ab" * 32, "people", 0.484),
    versions={"tensorflow": "2.20.0", "mtcnn": "1.0.0"},
    outputs=OutputFacts(
        main_face="longest", baseline="rest", events=(EventWindow("x", 1, 2, 3.0),)
    ),
)


def write(folder: Path, facts: RunFacts) -> Path:
    folder.mkdir(parents=True)
    facts.write(folder)
    return folder


def test_every_number_is_one_of_the_results(tmp_path: Path) -> None:
    folders = [write(tmp_path / "a.mp4", FACTS)]
    nobody = replace(FACTS, input="b.mp4", frames=FrameFacts(decoded=50, analyzed=10, with_face=0))
    folders.append(write(tmp_path / "b.mp4", nobody))
    failed = [{"input": name, "status": status} for name, status in
              (("a.mp4", "ok"), ("b.mp4", "ok"), ("c.mp4", "failed"))]  # fmt: skip
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(one) + "\n" for one in failed))
    text = " ".join(describe_methods(folders).split())
    for told in (
        "2 recordings (110 analyzed frames)", "batchfer 0.1.0 (TensorFlow 2.20.0, mtcnn 1.0.0)",
        "every 5th frame", "at least 0.8 and", "at least 40 px", "SHA-256 abababababababab",
        "read-out people", "below 0.484", "smoothed over 0.5 s",
        "one face a recording: the one longest",
        "means in rest were taken off", "the 3.0 s before", "| given | | 3 |",
        "| could be decoded | 155 | 2 |", "| analyzed | 110 | 2 |", "| with a face | 80 | 1 |",
        "zhang2016mtcnn", "sandler2018mobilenetv2", "goodfellow2013fer", "li2017rafdb",
    ):  # fmt: skip
        assert told in text, told
    assert "simonyan" not in text and "licence" not in text, "of another model of that name"


def test_the_training_data_of_a_model_at_hand_are_told(tmp_path: Path) -> None:
    card = read_card(find_model("mobilenetv2"))
    facts = replace(FACTS, model=ModelFacts("mobilenetv2", card.sha256, "people", 0.484))
    text = describe_methods([write(tmp_path / "a.mp4", facts)])
    n_faces = sum(one.get("training_faces", 0) for one in card.training_data)
    assert f"It was trained on {n_faces:,} faces of RAF-DB (Li, Deng and Du 2017), FER2013" in text
    assert f"Its licence: {card.licence}." in text and "teacher" not in text


def test_neutral_recordings_are_counted(tmp_path: Path) -> None:
    def compare(name: str, neutral: NeutralRecording) -> Path:
        told = OutputFacts(baseline="neutral", neutral=neutral)
        return write(tmp_path / name, replace(FACTS, input=name, outputs=told))

    means = dict.fromkeys(MEASURES, 0.2)
    folders = [
        compare("a", NeutralRecording("a_rest", 12.34, means)),
        compare("a2", NeutralRecording("a_rest", 12.34, means)),
        compare("a_rest", NeutralRecording("a_rest")),
        compare("b", NeutralRecording("b_rest", 8.0, means)),
        compare("c", NeutralRecording()),
        compare("d", NeutralRecording("d_rest", 0.4, means)),
    ]
    text = describe_methods(folders)
    assert "From the means of 3 of 5 recordings those of" in text
    assert "(2 of these, 8.0 to 12.3 s on screen); the others have none" in text
    assert "Each person's means" not in text
    assert "| compared with a neutral recording |  | 3 |" in text


@pytest.mark.parametrize(
    ("every", "told"), [(2, "2nd"), (3, "3rd"), (11, "11th"), (21, "21st"), (25, "25th")]
)
def test_frames_are_counted_as_in_english(every: int, told: str, tmp_path: Path) -> None:
    facts = replace(FACTS, options={**FACTS.options, "every": every})
    text = describe_methods([write(tmp_path / "a.mp4", facts)])
    assert f"analyzing every {told} frame." in text


def test_plain_text_tells_the_same(tmp_path: Path) -> None:
    folders = [write(tmp_path / "a.mp4", FACTS)]
    markdown, plain = describe_methods(folders), describe_methods(folders, plain=True)
    assert not re.search(r"^#|[|`]", plain, re.MULTILINE)
    table = plain.split("----------\n\n")[1].split("\n\n")[0]
    assert table.splitlines() == [
        "rule              frames kept  recordings kept",
        "given                                        1",
        "could be decoded          105                1",
        "analyzed                  100                1",
        "with a face                80                1",
    ]
    words = re.sub(r"[-#|`:]|bibtex", " ", markdown).split()
    assert words == re.sub(r"[-:]", " ", plain.replace("bibtex", "")).split()


def test_what_was_not_done_alike_is_named(tmp_path: Path) -> None:
    other = replace(
        FACTS,
        options={**FACTS.options, "every": 1, "fps": 2.0, "start_s": 5.0},
        model=ModelFacts("mine", "cd" * 32),
        outputs=OutputFacts.describe(OutputOptions(), (), {}),
    )
    folders = [write(tmp_path / "a", FACTS), write(tmp_path / "b", other)]
    text = describe_methods(folders)
    assert "every 5th frame or about 2.0 frames a second from 5 s to the end" in text
    assert re.search(r"mobilenetv2 \(.*\) or mine \(", text)
    assert "an unknown limit" in text


def test_the_citation_names_this_version() -> None:
    text = (Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {batchfer.__version__}\n" in text
