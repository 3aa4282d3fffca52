"""Child processes with the rights of an ordinary user, whoever runs the tests."""

import ctypes
import os
import sys

import pytest

_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def _is_root() -> bool:
    return os.geteuid() == 0


def obey_permissions() -> None:
    """Let permissions of files hold in the program that is started next, a `preexec_fn`.

    Root keeps its name, and with it the way to the interpreter, but not its right to pass them by.
    """
    if _is_root():
        libc = ctypes.CDLL(None, use_errno=True)
        for right in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            if libc.prctl(_PR_CAPBSET_DROP, right, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "a right of root stays")


needs_permissions = pytest.mark.skipif(
    _is_root() and sys.platform != "linux", reason="root passes permissions by"
)
