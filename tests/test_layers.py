"""The house rules that imports can show: arrows point down, heavy libraries stay in their rooms."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "batchfer"
FLOORS = [
    {"__main__"},
    {"cli"},
    {"pipeline", "library"},
    {"batch"},
    {"results", "analysis", "training"},
    {"timeline", "emotions"},
    {"faces", "media"},
    {"store_locks"},
    {"stores"},
    {"locks", "network_files", "scratch"},
    {"processes", "machine"},
    {"spread"},
    {"options"},
    {"formats", "engines", "priors"},
    {"arrays"},
    {"texts"},
    {"files"},
    {"schema"},
    {"errors"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = {
    "tensorflow": {
        "analysis/stream", "emotions/classifier", "faces/cascade_tensorflow",
        "faces/cascade_openvino", "faces/mtcnn", "machine", "network_files",
        "training/batches", "training/kernels",
    },
    "keras": {"emotions", "training"},
    "mtcnn": {"faces/cascade_tensorflow"},
    "openvino": {"network_files"},
    "av": {"media"},
    "typer": {"cli"},
    "click": set(),
}  # fmt: skip
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__init__")


def name_module(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def name_room(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


def imported_names(path: Path) -> set[str]:
    """Dotted names of everything that a module imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=name_module)
def test_imports_point_down(path: Path) -> None:
    module = name_module(path)
    own = name_room(module)
    assert own in LEVEL, f"{module} has no room in the house"
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] != "batchfer" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        fine = parts[1] == own or LEVEL[parts[1]] > LEVEL[own]
        assert fine, f"{module} may not import {parts[1]}"


@pytest.mark.parametrize("path", MODULES, ids=name_module)
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    module = name_module(path).removesuffix(".py")
    used = {name.split(".")[0] for name in imported_names(path)}
    for library, rooms in ROOMS.items():
        fine = not {module, name_room(module)}.isdisjoint(rooms)
        assert library not in used or fine, f"{module} may not import {library}"


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
LONG = {"faces/detector"}  # the cascade is one thing


@pytest.mark.parametrize("path", MODULES, ids=name_module)
def test_nothing_is_too_long_to_be_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if name_module(path).removesuffix(".py") not in LONG:
        assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert n_lines <= MOST_LINES_OF_A_FUNCTION, node.name


@pytest.mark.parametrize("room", ["analysis", "batch", "faces", "results", "timeline"])
def test_between_modules_go_types_and_no_dictionaries(room: str) -> None:
    for path in (PACKAGE / room).glob("*.py"):
        assert not re.search(r"(dict|Mapping)\[str, Any\]", path.read_text(encoding="utf-8")), path


def test_the_table_of_contents_is_read_in_two_minutes() -> None:
    assert len((PACKAGE / "pipeline.py").read_text(encoding="utf-8").splitlines()) <= 100


def test_packages_hold_one_docstring_each() -> None:
    for path in PACKAGE.rglob("*/__init__.py"):
        assert len(ast.parse(path.read_text(encoding="utf-8")).body) == 1, path


def test_importing_the_package_is_free() -> None:
    code = (
        "import sys, batchfer, batchfer.cli.main\n"
        # What plans, and runs beside the worker.
        "import batchfer.pipeline, batchfer.library\n"
        "heavy = {'tensorflow', 'keras', 'cv2', 'av', 'numpy', 'pandas', 'scipy', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
