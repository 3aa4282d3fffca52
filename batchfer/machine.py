"""What this machine has, and TensorFlow's settings that follow from it.

Only what chooses a device loads TensorFlow: all other settings must stand before it is imported.
"""

import ctypes
import gc
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchfer.errors import MachineError

logger = logging.getLogger(__name__)

DEFAULT_CACHE_BYTES = 1024**2
"""Second-level cache of a core where the system does not tell."""


def prepare_tensorflow() -> None:
    """Set what TensorFlow reads while it is imported; what a user has set stays.

    Its oneDNN kernels are on by themselves only where the processor has AVX-512 with VNNI. Without
    it they are half again to three times as fast as the others all the same, and a frame's numbers
    do not depend on what is computed together with it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if is_x86 and "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


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


# By the numbers of malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD, which comes to
# frames of up to 32 MiB; glibc takes no more.
_KEPT_MEMORY = {-1: 2**30, -2: 2**26, -3: 2**25}
_MOST_HEAPS = -8  # M_ARENA_MAX


def count_cores(most: int | None = None) -> int:
    """Return how many cores this process may use, ``most`` at most."""
    if hasattr(os, "sched_getaffinity"):
        n_cores = len(os.sched_getaffinity(0))
    else:  # macOS tells no such thing
        n_cores = os.cpu_count() or 1
    return n_cores if most is None else min(max(most, 1), n_cores)


def measure_memory(pid: int) -> int:
    """Return the bytes of memory that a process and those below it hold, as Linux tells; else 0."""
    n_bytes = 0
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        n_bytes = pages * os.sysconf("SC_PAGE_SIZE")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            n_bytes += sum(map(measure_memory, map(int, (thread / "children").read_text().split())))
    except (OSError, ValueError, IndexError):  # it has ended meanwhile
        pass
    return n_bytes


def keep_memory(cores: int | None = None) -> None:
    """Let the C library keep the memory of frames that are done with for the frames to come.

    glibc gives memory at the end of a heap back and has it faulted in anew, page by page: 600 a
    frame of 360p, 2,000 one of 720p, a twentieth of all processor time. The heaps may keep 64 MiB
    each here, and are two a core, not eight, so that threads use again what others have left and
    memory stops growing soon. Other C libraries do as they do.

    Args:
        cores: How many are used; all that this process may if None.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for parameter, value in _KEPT_MEMORY.items():
            mallopt(parameter, value)
        mallopt(_MOST_HEAPS, 2 * count_cores(cores))


@contextmanager
def pause_collector() -> Iterator[None]:
    """Do not look for garbage in cycles meanwhile.

    Loading TensorFlow and a network makes half a million objects that stay, and a fifth of the time
    goes to looking at them again and again. Afterwards they are old: looked at rarely.
    """
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # unfreezing would free what others have frozen
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
        if is_on:
            gc.enable()


@contextmanager
def hide_stderr() -> Iterator[None]:
    """Drop what libraries in C write to stderr meanwhile: TensorFlow's start has no setting."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _leave_keras_out() -> Iterator[None]:
    """Have TensorFlow loaded without Keras meanwhile, which it otherwise loads at its end.

    It does so by this module, and goes on without; who asks for Keras later gets it. Networks that
    are files need none, and it takes a third of the time.
    """
    name = "keras.src.optimizers"
    if "keras" in sys.modules or "tensorflow" in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def configure_tensorflow(device: str = "auto", workers: int = 1) -> str:
    """Set TensorFlow up for a device and return the device's TensorFlow name, as ``/GPU:0``.

    Whole sub-batches are expected to run side by side, so that operations use one thread each and
    ``workers`` of them, of any sub-batch, compute at a time. Takes effect once per process, before
    TensorFlow's first operation.

    Args:
        device: ``auto`` (the first GPU, else the CPU), ``cpu``, ``gpu`` or ``gpu:N``.
        workers: Operations that compute at a time; 1 counts as 2.

    Raises:
        UsageError: The device is none of these.
        MachineError: The GPU asked for is not there.
    """
    with _leave_keras_out():
        import tensorflow as tf

    name = choose_device(device)
    gpus = tf.config.list_physical_devices("GPU")
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(max(workers, 2))
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        # On a GPU, products of float32 stay float32, so that boxes equal those of a CPU.
        tf.config.experimental.enable_tensor_float_32_execution(False)
    except RuntimeError:
        logger.debug("TensorFlow runs already: its threads and memory stay as they are")
    return name


def choose_device(device: str) -> str:
    """Return TensorFlow's name of a device: ``auto``, ``cpu``, ``gpu`` or ``gpu:N``.

    ``auto`` is the first GPU, else the CPU.

    Raises:
        UsageError: The device is none of these.
        MachineError: The GPU asked for is not there.
    """
    import tensorflow as tf

    from batchfer.options import parse_device  # here, since importing the package is free

    kind, _, number = parse_device(device).partition(":")
    with hide_stderr():
        gpus = tf.config.list_physical_devices("GPU")
    index = int(number or 0)
    if kind == "gpu" and index >= len(gpus):
        raise MachineError(
            f"device {device} is not there (GPUs that TensorFlow sees: {len(gpus)}); "
            "use --device cpu or auto"
        )
    return f"/GPU:{index}" if gpus and kind != "cpu" else "/CPU:0"
