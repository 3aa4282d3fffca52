"""Lets Atheris search for input on which our readers of tables and cards raise a bug."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["batchfer"]):
    from batchfer.emotions.card import locate_card, read_card
    from batchfer.errors import BatchferError
    from batchfer.results.journal import Journal
    from batchfer.timeline.files import read_timeline
    from batchfer.timeline.stimuli import read_events
    from batchfer.timeline.user_tables import read_participants, read_people
    from batchfer.training.layouts import list_faces, read_votes

HOME = Path(tempfile.mkdtemp())

SEEDS = (
    b"frame,timestamp,face_id,x,y,width,height,face_score,angry,disgust,fear,happy,sad,surprise,"
    b"neutral,emotion,emotion_confidence\n0,0.0,0,1,2,3,4,0.9,0,0,0,1,0,0,0,happy,1\n0,0.1,,,,,,,,,,"
    b",,,,,\n",
    b'{"name": "a", "labels": ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"], '
    b'"input_size": 32, "sha256": "0"}',
    b"emotion,pixels,Usage\n0," + b"7 " * 2304 + b",Training\n",
    b"Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
    b"Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0\n",
    b"file,name,start,end\na.mp4,intro,0,00:01:30.5\n",
    b"face_id,name\n0,Ada\n",
    b"file,group,age\na.mp4,x,33\n",
    b'{"input": "a.mp4", "status": "ok", "settings": "x", "size": 1, "mtime_ns": 2}\n',
)


def write(name: str, data: bytes) -> Path:
    path = HOME / name
    path.write_bytes(data)
    return path


def read_as_card(data: bytes) -> None:
    model = write("a.keras", b"")
    locate_card(model).write_bytes(data)
    read_card(model)


def read_as_journal(data: bytes) -> None:
    write("run.jsonl", data)
    Journal(HOME).finished("a.mp4", HOME / "run.jsonl", "x")


READERS = (
    lambda data: read_timeline(write("a.csv", data)),
    read_as_card,
    lambda data: list_faces(write("fer.csv", data)),
    lambda data: read_votes(write("votes.csv", data)),
    lambda data: read_events(write("events.csv", data)),
    lambda data: read_people(write("people.csv", data)),
    lambda data: read_participants(write("participants.csv", data)),
    read_as_journal,
    lambda data: read_timeline(write("a.parquet", data)),
)


def read(data: bytes) -> None:
    """Give the data to the reader that its first byte picks; our own errors are fine."""
    if data:
        try:
            READERS[data[0] % len(READERS)](data[1:])
        except BatchferError as error:
            assert "\n" not in str(error), error


def main(seconds: str) -> None:
    """Fuzz for some seconds from one seed a reader."""
    corpus, findings = HOME / "corpus", Path("fuzz-findings")
    corpus.mkdir()
    findings.mkdir(exist_ok=True)
    for index, seed in enumerate(SEEDS):
        (corpus / str(index)).write_bytes(bytes([index]) + seed)
    options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=20", "-rss_limit_mb=2048"]
    options += [f"-artifact_prefix={findings}/", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), *options], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1])
