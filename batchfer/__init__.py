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
    from batchfer.errors import BatchferError as BatchferError
    from batchfer.options import AnalyzeOptions as AnalyzeOptions
    from batchfer.pipeline import analyze_images as analyze_images
    from batchfer.pipeline import analyze_video as analyze_video
    from batchfer.schema import EMOTIONS as EMOTIONS
    from batchfer.schema import Timeline as Timeline

_HOMES = {
    "AnalyzeOptions": "batchfer.options",
    "BatchferError": "batchfer.errors",
    "EMOTIONS": "batchfer.schema",
    "Timeline": "batchfer.schema",
    "analyze_images": "batchfer.pipeline",
    "analyze_video": "batchfer.pipeline",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
