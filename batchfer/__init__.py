"""Emotion timelines from video and images, and the models that name the emotions.

Importing is free: names are resolved on first use, so nothing pays for TensorFlow that does not
run a network. Only TensorFlow's settings are made, since every module that loads it comes later.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from batchfer.machine import prepare_tensorflow

prepare_tensorflow()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from batchfer.analysis.analyzer import Analyzer as Analyzer
    from batchfer.errors import BatchferError as BatchferError
    from batchfer.errors import InputError as InputError
    from batchfer.library import analyze_images as analyze_images
    from batchfer.library import analyze_live as analyze_live
    from batchfer.library import analyze_video as analyze_video
    from batchfer.library import read_result as read_result
    from batchfer.options import AnalyzeOptions as AnalyzeOptions
    from batchfer.schema import EMOTIONS as EMOTIONS
    from batchfer.timeline.timeline import Timeline as Timeline

_HOMES = {
    "AnalyzeOptions": "batchfer.options",
    "Analyzer": "batchfer.analysis.analyzer",
    "BatchferError": "batchfer.errors",
    "EMOTIONS": "batchfer.schema",
    "InputError": "batchfer.errors",
    "Timeline": "batchfer.timeline.timeline",
    "analyze_images": "batchfer.library",
    "analyze_live": "batchfer.library",
    "analyze_video": "batchfer.library",
    "read_result": "batchfer.library",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
