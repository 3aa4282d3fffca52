"""What a run tells of itself and of a video in ``run.json``."""

import platform
from dataclasses import asdict, replace
from importlib import metadata

import pandas as pd

from batchfer import __version__
from batchfer.analysis.analyzer import Analyzer
from batchfer.emotions.licences import list_licences
from batchfer.engines import tell_version
from batchfer.faces.finders import FINDERS, USUAL_FINDER
from batchfer.files import describe_source
from batchfer.machine import describe_processor
from batchfer.media.losses import MENDS
from batchfer.media.reader import VideoReader
from batchfer.results.facts import EngineFacts, FrameFacts, MediaFacts, Mended, ModelFacts, RunFacts
from batchfer.schema import JobResult


def describe_video(
    reader: VideoReader, table: pd.DataFrame, analyzer: Analyzer, result: JobResult
) -> RunFacts:
    """Return what was read, with what, and what came out."""
    info, losses = reader.info, reader.losses
    faces = table["face_id"].notna()
    return replace(
        describe_run(analyzer),
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
    )


def describe_run(analyzer: Analyzer) -> RunFacts:
    """Return what decided the numbers, and nothing of any input: options, model, versions."""
    classifier, calibration = analyzer.classifier, analyzer.classifier.calibration
    finder = FINDERS[USUAL_FINDER].library
    engine = analyzer.engine
    libraries = (engine, "keras", finder, "av", "opencv-python", "numpy")
    return RunFacts(
        batchfer=__version__,
        options=asdict(analyzer.options),
        model=ModelFacts(
            name=classifier.card.name,
            sha256=classifier.sha256,
            read_out=classifier.read_out,
            uncertain_below=calibration.uncertain_below,
            prior=dict(calibration.prior) or None,
        ),
        engine=EngineFacts(name=engine, version=tell_version(engine)),
        device=analyzer.tf_device,
        machine=describe_processor(),
        versions={
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in libraries},
        },
        licences=list_licences(classifier.card),
    )
