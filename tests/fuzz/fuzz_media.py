"""Reads mutated videos and pictures for a while; keeps what crashes, hangs or raises a bug."""

import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from clips import make_clip
from PIL import Image

from batchfer.errors import InputError
from batchfer.media.images import read_image
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter

FILES_A_BATCH = 40
SECONDS_A_BATCH = 60
FINDINGS = Path("fuzz-findings")


def read_files(paths: list[Path]) -> None:
    """Read files as the analysis does, each after its name was printed; the child's part."""
    for path in paths:
        print(path.name, flush=True)
        with suppress(InputError):
            read_image(path, max_pixels=4_000_000)
        with suppress(InputError), VideoReader(path, max_pixels=4_000_000) as reader:
            copy = path.with_suffix(".copy")
            with VideoWriter(copy, reader.info, path) as writer:
                for batch in reader.batches():
                    for image, time_s in zip(batch.images, batch.times_s, strict=True):
                        writer.write(image, float(time_s))
                writer.end(reader.end_s)
            copy.unlink()
            reader.losses.explain()


def make_seeds(folder: Path) -> list[bytes]:
    """Return the content of small files of every kind."""
    # Here, so that the children that read the files need not load all that the corpus needs.
    from test_corpus import BROKEN_PICTURES, BROKEN_VIDEO, PICTURE_KINDS, VIDEO_KINDS

    for name, make in (VIDEO_KINDS | PICTURE_KINDS).items():
        make(folder / name)
    make_clip(folder / "long.mkv", 30, sound="aac")
    Image.effect_noise((64, 48), 80).save(folder / "noise.jpg")
    for case in [*BROKEN_VIDEO, *BROKEN_PICTURES]:
        if case.reason in ("truncated", "corrupt"):
            case.make(folder / f"broken_{case.name}")
    contents = [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]
    return [content for content in contents if 16 < len(content) < 500_000]


def mutate(content: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Return a file with a few things changed, mostly near its start, where the structure is."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        reach = len(data) if rng.random() < 0.4 else min(len(data), 1500)
        at, end = sorted(rng.integers(0, max(reach, 2), 2).tolist())
        match int(rng.integers(7)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                extreme = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff")
                data[at : at + 4] = extreme[int(rng.integers(3))]
            case 2:
                data[at:end] = bytes(end - at)
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end]
            case 5:
                other = others[int(rng.integers(len(others)))]
                data[at:end] = other[at:end]
            case _:
                data[at : at + 8] = rng.bytes(8)
        if len(data) < 4:
            break
    return bytes(data)


def run_batch(folder: Path, names: list[str]) -> str | None:
    """Read a batch in a child; return the name of the file that ended it, None if all went well."""
    code = (
        "import sys, pathlib, fuzz_media; "
        "fuzz_media.read_files([pathlib.Path(path) for path in sys.argv[1:]])"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *(str(folder / name) for name in names)],
            cwd=Path(__file__).parent, capture_output=True, text=True, errors="replace",
            timeout=SECONDS_A_BATCH, check=False,
        )  # fmt: skip
        out, problem = done.stdout, f"exit code {done.returncode}\n{done.stderr[-3000:]}"
        if done.returncode == 0:
            return None
    except subprocess.TimeoutExpired as error:
        out, problem = (error.stdout or b"").decode(errors="replace"), "hangs"
    name = out.split()[-1]
    FINDINGS.mkdir(exist_ok=True)
    shutil.copy(folder / name, FINDINGS / name)
    (FINDINGS / f"{name}.txt").write_text(problem)
    print(f"found: {FINDINGS / name}: {problem.strip().splitlines()[-1]}", flush=True)
    return name


def main(seconds: float, seed: int) -> int:
    """Fuzz for some seconds; return 1 if something was found."""
    rng = np.random.default_rng(seed)
    end, n_files, n_found = time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "seeds").mkdir()
        seeds = make_seeds(Path(home) / "seeds")
        print(f"media: {len(seeds)} seeds, {seconds:.0f} s, seed {seed}", flush=True)
        while time.monotonic() < end:
            folder = Path(home) / "batch"
            folder.mkdir()
            names = [f"{seed}-{n_files + index}" for index in range(FILES_A_BATCH)]
            for name in names:
                content = seeds[int(rng.integers(len(seeds)))]
                (folder / name).write_bytes(mutate(content, seeds, rng))
            n_files += len(names)
            while names and (name := run_batch(folder, names)) is not None:
                n_found += 1
                names = names[names.index(name) + 1 :]
            shutil.rmtree(folder)
    print(f"media: {n_files} files, {n_found} found", flush=True)
    return int(n_found > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
