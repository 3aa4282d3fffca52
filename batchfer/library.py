"""What Python calls: a video, pictures or live frames in, timelines out; nothing is written."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from batchfer.errors import InputError, Reason, UsageError
from batchfer.files import display_name
from batchfer.options import AnalyzeOptions
from batchfer.results.folder import FACES_NAMES, ResultFolder
from batchfer.timeline.timeline import Timeline

if TYPE_CHECKING:
    import pandas as pd

    from batchfer.analysis.analyzer import Analyzer
    from batchfer.arrays import Images


def analyze_video(
    path: str | Path,
    options: AnalyzeOptions | None = None,
    *,
    analyzer: "Analyzer | None" = None,
    progress: bool = False,
) -> Timeline:
    """Return the emotion timeline of one video; writes nothing.

    Args:
        path: The video.
        options: What to look for.
        analyzer: Networks to use again; the options are those of them, if they are given.
        progress: Whether to show a bar on stderr.

    Raises:
        InputError: The file cannot be analyzed, with its name and the reason.
        ModelError: The model cannot be used.
    """
    path = Path(path)
    with _name_input(path):
        from batchfer.analysis.analyzer import Analyzer
        from batchfer.analysis.linker import tabulate_video

        return tabulate_video(path, analyzer or Analyzer(options), progress)


def analyze_images(
    paths: Sequence[str | Path],
    options: AnalyzeOptions | None = None,
    *,
    analyzer: "Analyzer | None" = None,
    progress: bool = False,
) -> Timeline:
    """Return one timeline for all pictures, its first column ``input``; see `analyze_video`."""
    pictures = [Path(path) for path in paths]
    for path in pictures:
        with _name_input(path):
            pass
    from batchfer.analysis.analyzer import Analyzer
    from batchfer.batch.pictures import tabulate_pictures

    return tabulate_pictures(pictures, analyzer or Analyzer(options), progress)


def analyze_live(
    frames: "Iterable[tuple[float, Images]]",
    options: AnalyzeOptions | None = None,
    *,
    analyzer: "Analyzer | None" = None,
) -> "Iterator[pd.DataFrame]":
    """Yield the rows of each frame as it comes: for a camera, a screen, or a file as it is read.

    The rows have the columns of a timeline's table but for those of persons.

    Args:
        frames: The time of each in s, which must rise, and its picture ``(H,W,3)``, RGB uint8.
        options: What to look for; all frames are searched for faces.
        analyzer: Networks to use again; the options are those of them, if they are given.

    Raises:
        UsageError: A frame is none, or its time goes back.
        ModelError: The model cannot be used.
    """
    from batchfer.analysis.analyzer import Analyzer
    from batchfer.analysis.live import follow_frames

    return follow_frames(frames, analyzer or Analyzer(options))


def read_result(folder: str | Path) -> Timeline:
    """Return the timeline of a finished result: the folder of a video, or that of pictures.

    Raises:
        UsageError: It is no such folder.
        InputError: Its timeline is broken.
    """
    result = ResultFolder(Path(folder))
    if result.is_result() and result.locate_timeline() is not None:
        return result.read()[0]
    for name in FACES_NAMES.values():
        if (result / name).is_file():
            from batchfer.timeline.files import read_timeline

            return Timeline(None, read_timeline(result / name))
    shown = display_name(result.path)
    if not result.path.is_dir():
        raise UsageError(f"{shown}: there is no such folder")
    below = sorted(path.parent for path in result.path.rglob("run.json"))
    told = f"; below it are {', '.join(map(display_name, below[:3]))}" if below else ""
    raise UsageError(f"{shown} is not the result of a video or of pictures{told}")


@contextmanager
def _name_input(path: Path) -> Iterator[None]:
    """Tell at once of a file that is not there, and name it in what else is wrong with it."""
    shown = display_name(path)
    if not path.exists():
        raise InputError(Reason.VANISHED, f"{shown}: there is no such file")
    try:
        yield
    except InputError as error:
        raise InputError(error.reason, f"{shown}: {error.detail}") from error
