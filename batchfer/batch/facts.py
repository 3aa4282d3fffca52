"""What a run tells of itself and of a video in ``run.json``."""

import platform
from dataclasses import asdict
from importlib import metadata
from typing import Any

import pandas as pd

from batchfer import __version__
from batchfer.analysis.analyzer import Analyzer
from batchfer.files import describe_source
from batchfer.machine import describe_processor
from batchfer.media.losses import MENDS
from batchfer.media.reader import VideoReader
from batchfer.results.facts import FrameFacts, MediaFacts, Mended, ModelFacts, RunFacts
from batchfer.schema import JobResult


def describe_video(
    reader: VideoReader, table: pd.DataFrame, analyzer: Analyzer, result: JobResult
) -> RunFacts:
    """Return what was read, with what, and what came out."""
    info, losses, run = reader.info, reader.losses, describe_run(analyzer)
    faces = table["face_id"].notna()
    return RunFacts(
        batchfer=__version__,
        input=result.job.name,
        source=describe_source(result.job),
        status=result.status,
        reason=result.reason,
        detail=result.detail,
        media=MediaFacts(
            width=info.width,
            height=info.height,
            fps=info.fps,
            variable_rate=reader.variable_rate,
            duration_s=info.duration_s,
            end_s=reader.end_s,
            rotation=info.rotation,
            scaled_from=info.scaled_from,
            has_audio=info.has_audio,
            codec=info.codec,
        ),
        frames=FrameFacts(
            declared=info.n_frames,
            decoded=reader.n_decoded,
            analyzed=result.n_frames,
            with_face=int(table.loc[faces, "frame"].nunique()),
            corrupt=losses.n_corrupt,
            first_bad_s=losses.first_bad_s,
            missing_s=tuple(losses.gaps) if losses.first_bad_s is not None else (),
            mended=Mended(
                count=losses.n_mended,
                first_s=losses.first_mended_s,
                how={MENDS[kind]: count for kind, count in losses.mends.items()},
            ),
        ),
        smaller_faces=result.smaller_faces,
        options=run["options"],
        model=ModelFacts(**run["model"]),
        device=run["device"],
        machine=run["machine"],
        versions=run["versions"],
    )


def describe_run(analyzer: Analyzer) -> dict[str, Any]:
    """Return what decided the numbers: options, model, device and versions."""
    libraries = ("tensorflow", "keras", "mtcnn", "av", "opencv-python", "numpy")
    return {
        "options": asdict(analyzer.options),
        "model": {
            "name": analyzer.classifier.card.name,
            "sha256": analyzer.classifier.sha256,
            "read_out": analyzer.classifier.read_out,
            "uncertain_below": analyzer.classifier.calibration.uncertain_below,
            "prior": dict(analyzer.classifier.calibration.prior) or None,
        },
        "device": analyzer.tf_device,
        "machine": describe_processor(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in libraries},
        },
    }
