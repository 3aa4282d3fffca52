"""Processes that work beside this one: what becomes of them, and their memory."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from batchfer.machine import pause_collector
from batchfer.processes import start_python

DRAWING = """
from batchfer.results.drawing_process import DrawingPool
pool = DrawingPool()
process = pool._idle[0]._process
"""
WRITING = """
import time
from pathlib import Path
from batchfer.results.writing import ResultsProcess
from endless import Timeline
owner = ResultsProcess()
process = owner._process
process.ask(Path(), Timeline(), None, None, None)
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
print(process.popen.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("code", [DRAWING, WRITING], ids=["drawing", "writing"])
def test_the_process_does_not_outlive_the_one_that_started_it(code: str, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    parent = subprocess.run(
        [sys.executable, "-c", code + DIE],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
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


def test_a_process_ends_with_its_owner_though_it_is_still_loading() -> None:
    # Nothing reads its stdin; as where libraries are loaded before somebody does.
    loading = "import time; print('loading', flush=True); time.sleep(60)"
    owner = subprocess.Popen(
        [sys.executable, "-c",
         "import time; from batchfer.processes import start_python\n"
         f"child = start_python({loading!r}); child.stdout.readline()\n"
         "print(child.pid, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    os.kill(child, 0)
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


def test_ctrl_c_of_the_terminal_is_for_the_one_who_started_it() -> None:
    process = start_python("print('ready', flush=True); input(); print('done')")
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stdout.read() == b"done\n"
    assert process.wait(10) == 0
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
