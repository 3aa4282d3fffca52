import subprocess
import sys
from pathlib import Path

import pytest

from batchfer import machine

FULL = "amx_bf16 amx_tile avx2 avx512_bf16 avx512_vnni avx512f"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Let this processor have other instructions, and TensorFlow other settings."""

    def pretend(instructions: str, **settings: str) -> None:
        known = {"flags": instructions, "model name": "Test 1"}
        monkeypatch.setattr(machine, "_read_cpuinfo", lambda name: known[name])
        for name in ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    return pretend


@pytest.mark.parametrize(
    ("instructions", "most", "unit"),
    [
        ("", None, None),
        ("avx2 avx512f avx512_vnni", None, None),
        ("avx512_bf16 avx512f", None, "vectors"),
        (FULL, None, "tiles"),
        (FULL, "DEFAULT", "tiles"),
        (FULL, "avx512_core_amx", "tiles"),
        (FULL, "AVX512_CORE_BF16", "vectors"),
        (FULL, "AVX512_CORE_VNNI", None),
        (FULL, "AVX2_VNNI", None),
        (FULL, "AVX2", None),
    ],
)
def test_what_multiplies_bfloat16(pretend, instructions, most, unit) -> None:  # type: ignore[no-untyped-def]
    held_back = {} if most is None else {"ONEDNN_MAX_CPU_ISA": most}
    pretend(instructions, TF_ENABLE_ONEDNN_OPTS="1", **held_back)
    assert machine.find_bfloat16_unit() == unit
    pretend(instructions, TF_ENABLE_ONEDNN_OPTS="0", **held_back)
    assert machine.find_bfloat16_unit() is None, "Eigen would emulate it"


def test_the_processor_is_told(pretend) -> None:  # type: ignore[no-untyped-def]
    for instructions, named in (
        (FULL, "AMX"),
        ("avx2 avx512f", "AVX-512"),
        ("avx2", "AVX2"),
        ("", ""),
    ):
        pretend(instructions, TF_ENABLE_ONEDNN_OPTS="1")
        facts = {"processor": "Test 1", "instructions": named, "onednn": True}
        assert machine.describe_processor() == facts
    assert machine.measure_cache() > 100_000


@pytest.mark.parametrize(
    "setting", [None, *(pytest.param(s, marks=pytest.mark.slow) for s in "01")]
)
def test_tensorflow_follows_the_setting(setting: str | None) -> None:
    """What is told of oneDNN is what TensorFlow itself says, and a user's setting stays."""
    code = (
        "import batchfer\n"
        "from batchfer.machine import uses_onednn\n"
        "import tensorflow\n"
        "from tensorflow.python.util import _pywrap_util_port\n"
        "print(uses_onednn(), _pywrap_util_port.IsMklEnabled())"
    )
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parent.parent)}
    if setting is not None:
        env["TF_ENABLE_ONEDNN_OPTS"] = setting
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    expected = str(setting != "0")
    assert done.stdout.split() == [expected, expected]


def test_cores_are_counted_where_the_system_binds_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 6)
    assert (machine.count_cores(), machine.count_cores(4), machine.count_cores(0)) == (6, 4, 1)
