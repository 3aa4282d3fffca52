"""Processes that work beside this one: what becomes of them, and their memory."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from batchfer.machine import pause_collector
from batchfer.processes import Helper, HelperDiedError, HelperError

ROOT = Path(__file__).parent.parent

DRAWING = """
from batchfer.results.drawing_process import DrawingPool
pool = DrawingPool()
process = pool._idle[0]._helper.process
"""
WRITING = """
import time
from pathlib import Path
from batchfer.results.writing import ResultsProcess
from endless import Timeline
owner = ResultsProcess()
process = owner._helper.process
owner._helper.ask((Path(), Timeline(), None, None, None))
while not Path("begun").exists():
    time.sleep(0.05)
"""
ENDLESS = """
import time
from pathlib import Path

class Timeline:
    @property
    def table(self):
        Path("begun").touch()
        time.sleep(300)
"""
DIE = """
import os, signal
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("code", [DRAWING, WRITING], ids=["drawing", "writing"])
def test_the_process_does_not_outlive_the_one_that_started_it(code: str, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    parent = subprocess.run(
        [sys.executable, "-c", code + DIE],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        timeout=100,
        check=False,
    )
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout)
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return
        if state == "Z":  # nobody has asked for its exit status
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("it is still there")


class Node:
    """Something that can refer to itself."""


def test_garbage_of_a_pause_is_found_afterwards() -> None:
    with pause_collector():
        assert not gc.isenabled()
        garbage = Node()
        garbage.itself = garbage  # type: ignore[attr-defined]
        gone = weakref.ref(garbage)
        del garbage
        kept = [Node() for _ in range(10_000)]  # many times what sets the collector off
    assert gc.isenabled()
    assert any(item is kept for item in gc.get_objects(generation=2)), "it is looked at at once"
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError), pause_collector():
            raise ZeroDivisionError
        assert not gc.isenabled()
        gc.enable()
        with pytest.raises(ZeroDivisionError), pause_collector():
            raise ZeroDivisionError
        assert gc.isenabled()
    finally:
        gc.enable()


def test_a_process_ends_with_its_owner_though_it_is_still_loading(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(
        "import sys, time; sys.stderr.write('loading\\n'); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c",
         "import time; from batchfer.processes import Helper\n"
         "helper = Helper('toy'); print(helper.process.pid, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stderr is not None
    child = int(owner.stdout.readline())
    assert owner.stderr.readline() == "loading\n"
    owner.kill()
    owner.wait()
    end = time.monotonic() + 5
    while is_running(child):
        assert time.monotonic() < end, "it outlives its owner"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    listed = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


# --- a helper ---------------------------------------------------------------------------------

TOY = """
import logging, os, signal, sys, time

def serve(owner):
    def handle(request):
        what, value = request
        if what == "raise":
            raise value
        elif what == "print":
            print("chatter", flush=True)
            os.write(1, b"chatter")
        elif what == "log":
            logging.getLogger("batchfer.toy").warning("so %s", value)
        elif what == "kill":
            os.kill(os.getpid(), value)
        elif what == "pause":
            time.sleep(value)
        elif what == "spoil":
            owner._pipe.send_bytes(b"no pickle")
        owner.tell(("done", value))
    owner.answer(handle, ValueError)
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    with closing(Helper("toy")) as helper:
        yield helper


def test_a_helper_answers_in_turn(helper: Helper) -> None:
    for number in range(3):
        helper.ask(("add", number))
    assert [helper.hear() for _ in range(3)] == [("done", number) for number in range(3)]
    large = np.arange(3_000_000)
    helper.ask(("echo", large))
    np.testing.assert_array_equal(helper.hear(20)[1], large)


def test_what_a_helper_raises_is_raised_by_the_one_who_asked(helper: Helper) -> None:
    helper.ask(("raise", ValueError("known")))
    with pytest.raises(ValueError, match=r"^known$"):
        helper.hear()
    helper.ask(("raise", KeyError("unknown")))
    with pytest.raises(HelperError, match=r"^KeyError: 'unknown'$"):
        helper.hear()
    helper.ask(("go on", 1))
    assert helper.hear() == ("done", 1), "it is asked for more"


def test_what_a_helper_logs_and_prints_spoils_nothing(
    helper: Helper, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    helper.ask(("log", "be it"))
    assert helper.hear() == ("done", "be it")
    assert "so be it" in caplog.messages
    with closing(Helper("toy")) as other:
        other.ask(("print", 0))
        assert other.hear() == ("done", 0)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "chatter\nchatter")


def test_a_helper_that_is_slow_is_waited_for_no_longer_than_asked(helper: Helper) -> None:
    helper.ask(("start", 0))
    helper.hear()
    helper.ask(("pause", 1.0))
    with pytest.raises(TimeoutError):
        helper.hear(0.1)
    assert helper.hear(20) == ("done", 1.0), "nothing is lost"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_helper_that_dies_tells_of_what(helper: Helper, number: signal.Signals) -> None:
    helper.ask(("kill", number))
    with pytest.raises(HelperDiedError) as died:
        helper.hear()
    assert died.value.code == -number
    assert not helper.is_alive
    with pytest.raises(HelperDiedError):
        helper.ask(("more", 0))


def test_a_helper_that_cannot_be_understood_is_ended(helper: Helper) -> None:
    helper.ask(("spoil", 0))
    with pytest.raises(HelperDiedError, match="the process is gone: UnpicklingError"):
        helper.hear()
    assert not helper.is_alive


def test_ctrl_c_of_the_terminal_is_for_the_one_who_started_it(helper: Helper) -> None:
    helper.process.send_signal(signal.SIGINT)
    helper.ask(("go on", 0))
    assert helper.hear() == ("done", 0)
    helper.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert helper.is_alive
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
