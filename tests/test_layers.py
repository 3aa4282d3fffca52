"""The house rules that imports can show: arrows point down, heavy libraries stay in their rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "batchfer"
LAYERS = [
    {"__main__"},
    {"cli"},
    {"supervisor"},
    {"pipeline", "training", "plan"},
    {"results"},
    {"analyzer", "annotate", "report", "export", "evaluation", "recipes"},
    {"keyframes"},
    {
        *("classifier", "detector", "datasets", "tracking", "people", "quality", "timeline"),
        *("painter", "ownership"),
    },
    {"model_file"},
    {"media", "architectures", "boxes", "files", "journal", "kernels", "processes"},
    {"model_config", "weights_file"},
    {"schema", "errors", "machine"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
# schema and errors share the lowest layer; the types name the reasons that the errors define.
ALLOWED_WITHIN = {("schema", "errors")}
ROOMS = {
    "tensorflow": {"detector", "classifier", "datasets", "analyzer", "kernels"},
    "keras": {
        "detector", "classifier", "datasets", "architectures", "training", "evaluation", "kernels",
        "model_file",
    },
    "mtcnn": {"detector"},
    "av": {"media"},
    "typer": {"cli"},
    "click": set(),
}  # fmt: skip
MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_down(path: Path) -> None:
    assert path.stem in LEVEL, f"{path.name} has no room in the house"
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] != "batchfer" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        target = parts[1]
        fine = LEVEL[target] > LEVEL[path.stem] or (path.stem, target) in ALLOWED_WITHIN
        assert fine, f"{path.stem} may not import {target}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    used = {name.split(".")[0] for name in imported_names(path)}
    for library, rooms in ROOMS.items():
        assert library not in used or path.stem in rooms, f"{path.stem} may not import {library}"


def test_importing_the_package_is_free() -> None:
    code = (
        "import sys, batchfer, batchfer.cli\n"
        # What runs beside the worker, and before it.
        "import batchfer.supervisor, batchfer.journal\n"
        "heavy = {'tensorflow', 'keras', 'cv2', 'av', 'pandas', 'scipy', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
