"""Loads model files with mutated descriptions and arrays while the process is watched."""

import copy
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from audited_load import make_loader
from hostile_models import FOREIGN, rewrite

from batchfer.emotions.model_config import LAYERS, MODELS
from batchfer.schema import EMOTIONS

FINDINGS = Path("fuzz-findings")
SECONDS_A_FILE = 20
MEMORY_KB = 4 * 1024**2
VALUES: list[Any] = [
    *FOREIGN.values(), *LAYERS, *MODELS, None, True, False, 0, 1, -1, 2, 3, 7, 64, 1000, 65536,
    0.0, 0.5, 1e-9, [], {}, [0], [1, 1], [2, 2], [[0, 1], [1, 0]], [None, 8, 8, 3], "same", "valid",
    "relu", "softmax", "float16", "uint8", "mixed_float16", "channels_first", "keras", "a b", "é(",
    "Zeros", "builtins", "__tuple__",
]  # fmt: skip


def make_seeds(folder: Path) -> list[Path]:
    """Return small model files that hold every kind of layer."""
    # Here, as what it imports is not needed by what runs under watch.
    from test_model_file import CASES, chain_of_models, make_with, mixed_graph

    models = [make_with(name, arguments, 8) for name, arguments in CASES]
    paths = []
    for index, model in enumerate([*models, mixed_graph(), chain_of_models()]):
        paths.append(folder / f"{index}.keras")
        model.save(paths[-1])
    return paths


def list_places(value: Any) -> list[tuple[Any, Any]]:
    """Return every place in a description, as its container and key."""
    places = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        places.append((value, key))
        if isinstance(item, dict | list):
            places += list_places(item)
    return places


def mutate_config(config: Any, rng: np.random.Generator) -> Any:
    """Return a description with a few things changed, moved, doubled or gone."""
    config = copy.deepcopy(config)
    for _ in range(int(rng.integers(1, 4))):
        places = list_places(config)
        if not places:
            break
        container, key = places[int(rng.integers(len(places)))]
        other, other_key = places[int(rng.integers(len(places)))]
        match int(rng.integers(6)):
            case 0:
                del container[key]
            case 1:
                container[key] = copy.deepcopy(other[other_key])
            case 2 if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case 3 if isinstance(container, dict) and isinstance(other_key, str):
                container[other_key] = copy.deepcopy(container[key])
            case _:
                container[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    return config


def mutate(path: Path, rng: np.random.Generator) -> None:
    """Change the description in a model file, sometimes its arrays or the archive."""

    def change(members: dict[str, bytes]) -> None:
        kind = rng.random()
        if kind < 0.85:
            config = mutate_config(json.loads(members["config.json"]), rng)
            members["config.json"] = json.dumps(config).encode()
        if kind > 0.8:
            data = bytearray(members["model.weights.h5"])
            for at in rng.integers(0, len(data), int(rng.integers(1, 9))):
                data[at] = int(rng.integers(256))
            members["model.weights.h5"] = bytes(data)

    rewrite(path, change)
    if rng.random() < 0.05:
        data = bytearray(path.read_bytes())
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(data)


def find_fault(result: dict[str, Any], seconds: float) -> str | None:
    """Return what is wrong with how a file was loaded, None if nothing."""
    message = result.get("message", "")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faults = {
        "crashed": result["outcome"] == "crashed",
        "did more than read": bool(result["events"]),
        "built by Keras": bool(result["deserialized"]),
        "no clear line": not message.isprintable() or len(message) > 600,
        "slow": seconds > SECONDS_A_FILE,
        "large": memory > MEMORY_KB,
    }
    return next((fault for fault, there in faults.items() if there), None)


def main(seconds: float, seed: int) -> int:
    """Fuzz for some seconds; return 1 if something was found."""
    rng = np.random.default_rng(seed)
    n_files = n_loaded = n_found = 0
    with tempfile.TemporaryDirectory() as home:
        seeds = make_seeds(Path(home))
        load = make_loader(list(EMOTIONS))
        for path in seeds:
            load(path)
        print(f"models: {len(seeds)} seeds, {seconds:.0f} s, seed {seed}", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            path = Path(home) / f"{seed}-{n_files}.keras"
            shutil.copy(seeds[int(rng.integers(len(seeds)))], path)
            mutate(path, rng)
            start = time.monotonic()
            result = load(path)
            fault = find_fault(result, time.monotonic() - start)
            n_files += 1
            n_loaded += result["outcome"] == "loaded"
            if fault is not None:
                n_found += 1
                FINDINGS.mkdir(exist_ok=True)
                shutil.copy(path, FINDINGS / path.name)
                (FINDINGS / f"{path.name}.txt").write_text(f"{fault}\n{json.dumps(result)}\n")
                print(f"found: {FINDINGS / path.name}: {fault}", flush=True)
            path.unlink()
    print(f"models: {n_files} files, {n_loaded} loaded, {n_found} found", flush=True)
    return int(n_found > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
