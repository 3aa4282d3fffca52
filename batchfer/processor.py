"""What the processor of this machine has, and what TensorFlow makes of it."""

import os
import platform
from pathlib import Path

DEFAULT_CACHE_BYTES = 1024**2
"""Second-level cache of a core where the system does not tell."""


def uses_onednn() -> bool:
    """Return whether TensorFlow computes with oneDNN's kernels, by its settings."""
    setting = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    if setting is None:  # TensorFlow's own rule
        return not _read_instructions().isdisjoint({"avx512_vnni", "avx_vnni", "amx_tile"})
    return setting.lower() in ("1", "true")


def find_bfloat16_unit() -> str | None:
    """Return what multiplies bfloat16 here: ``tiles`` (AMX), ``vectors`` (AVX-512), or None.

    None as well where TensorFlow would not use it: without oneDNN's kernels, or where these are
    held back to older instructions (``ONEDNN_MAX_CPU_ISA``).
    """
    if not uses_onednn():
        return None
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    instructions = _read_instructions()
    for unit, name, allowing in (
        ("tiles", "amx_bf16", ("ALL", "DEFAULT", "AMX")),
        ("vectors", "avx512_bf16", ("ALL", "DEFAULT", "AMX", "BF16", "FP16", "AVX10")),
    ):
        if name in instructions and any(part in most for part in allowing):
            return unit
    return None


def describe_processor() -> dict[str, str | bool]:
    """Return what decides the last digits of results: processor, vectors, TensorFlow's kernels."""
    instructions = _read_instructions()
    known = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    return {
        "processor": _read_processor(),
        "instructions": next((name for key, name in known.items() if key in instructions), ""),
        "onednn": uses_onednn(),
    }


def measure_cache() -> int:
    """Return the bytes of a core's second-level cache."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    try:
        return int(path.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return DEFAULT_CACHE_BYTES


def _read_instructions() -> frozenset[str]:
    """Return the instruction sets of this processor as Linux names them; none elsewhere."""
    return frozenset(_read_cpuinfo("flags").split())


def _read_processor() -> str:
    return _read_cpuinfo("model name") or platform.processor() or platform.machine()


def _read_cpuinfo(name: str) -> str:
    """Return what Linux says of the first core under a name, else nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
