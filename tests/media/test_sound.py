"""The sound of annotated videos: every codec in every container, and never at the video's cost."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import draw
from test_faults import Counter, run

from batchfer.media.reader import VideoReader, probe
from batchfer.results.facts import RunFacts
from batchfer.results.making import draw_video
from batchfer.timeline.table import build_empty_table
from batchfer.timeline.timeline import Timeline

VIDEO_CODECS = {
    "mp4": "mpeg4",
    "mov": "mpeg4",
    "3gp": "h263",
    "f4v": "libx264",
    "matroska": "mpeg4",
    "webm": "libvpx",
    "avi": "mpeg4",
    "mpegts": "mpeg2video",
    "mpeg": "mpeg1video",
    "flv": "flv",
    "asf": "wmv2",
    "rm": "rv20",
    "mxf": "mpeg2video",
    "nut": "mpeg4",
    "wtv": "mpeg2video",
    "ogg": "libvpx",
}
"""A video codec for every container that PyAV writes and we read; others are the same muxers."""

FORMS = ((48_000, "stereo"), (44_100, "mono"), (8000, "mono"), (16_000, "mono"), (22_050, "mono"))
"""Rates and layouts in which encoders are tried."""

BIT_RATES = {"wmav1": 64_000, "wmav2": 64_000, "g723_1": 6300, "libopencore_amrnb": 12_200}

N_FRAMES = 3


def list_encoders() -> Iterator[av.Codec]:
    for name in sorted(av.codec.codecs_available):
        try:
            codec = av.codec.Codec(name, "w")
        except ValueError:
            continue
        if codec.type == "audio" and codec.name == name:
            yield codec


ENCODERS = list(list_encoders())


def make_sounding(path: Path, container: str, encoder: av.Codec) -> bool:
    """Write a short clip with sound; return False where the container does not take it."""
    for rate, layout in FORMS:
        if encoder.audio_rates and rate not in encoder.audio_rates:
            continue
        try:
            write_sounding(path, container, encoder.name, rate, layout)
            return True
        except (av.FFmpegError, ValueError):
            continue
    return False


def write_sounding(path: Path, container: str, name: str, rate: int, layout: str) -> None:
    with av.open(str(path), "w", format=container) as output:
        options = {"strict": "experimental"}
        video = output.add_stream(VIDEO_CODECS[container], rate=25, options=options)
        video.width, video.height, video.pix_fmt = 176, 144, "yuv420p"
        audio = output.add_stream(name, rate=rate, layout=layout, options=options)
        if name in BIT_RATES:
            audio.bit_rate = BIT_RATES[name]
        for index in range(N_FRAMES):
            frame = av.VideoFrame.from_ndarray(draw(index, 176, 144), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            output.mux(video.encode(frame.reformat(format="yuv420p")))
        output.mux(video.encode(None))
        context = audio.codec_context
        times_s = np.arange(round(N_FRAMES / 25 * rate)) / rate
        tone = (0.2 * np.sin(2 * np.pi * 440 * times_s)).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
        sound.sample_rate, sound.pts = rate, 0
        resampler = av.AudioResampler(context.format.name, layout, rate, context.frame_size or 480)
        for part in [*resampler.resample(sound), *resampler.resample(None)]:
            output.mux(audio.encode(part))
        output.mux(audio.encode(None))


def draw_nothing(source: Path, target: Path) -> tuple[int, list[str]]:
    """Draw a timeline without a face; return how many frames the copy has, and its sound."""
    timeline = Timeline(probe(source), build_empty_table())
    draw_video(timeline, target, RunFacts())
    with VideoReader(target) as reader:
        n_frames = sum(len(batch) for batch in reader.batches())
    with av.open(str(target)) as container:
        return n_frames, [s.codec_context.name for s in container.streams.audio]


@pytest.mark.parametrize("container", VIDEO_CODECS)
def test_sound_may_be_lost_with_a_word_but_never_the_video(
    container: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    av.logging.set_level(None)  # what FFmpeg says of the codecs that a container does not take
    kept = set()
    for encoder in ENCODERS:
        source, target = tmp_path / f"{encoder.name}.{container}", tmp_path / "annotated.mp4"
        if not make_sounding(source, container, encoder):
            continue
        caplog.clear()
        has_audio = probe(source).has_audio
        n_frames, sound = draw_nothing(source, target)
        assert n_frames == N_FRAMES, encoder.name
        told = "the sound cannot be kept" in caplog.text
        # A sound that nobody can tell to be one, as odd codecs in a transport stream, is none.
        assert bool(sound) != told or not has_audio, (encoder.name, caplog.text)
        if sound:
            kept.add(encoder.name)
    assert kept, "the container takes some sound, or the test tests nothing"


@pytest.mark.parametrize(("container", "name"), [("asf", "wmav2"), ("avi", "wmav1")])
def test_the_last_of_the_sound_has_its_place(container: str, name: str, tmp_path: Path) -> None:
    source, target = tmp_path / f"a.{container}", tmp_path / "annotated.mp4"
    write_sounding(source, container, name, 48_000, "stereo")
    assert draw_nothing(source, target) == (N_FRAMES, ["aac"])
    with av.open(str(source)) as before, av.open(str(target)) as after:
        n_before, n_after = (
            sum(frame.samples for frame in file.decode(audio=0)) for file in (before, after)
        )
    assert n_after >= n_before, "what the decoder held back is there, too"


def test_a_batch_goes_on_behind_sound_that_mp4_refuses_at_the_end(
    toy_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    # MP4 takes each packet of E-AC-3 that claims to be AC-3, and then no end of the file.
    write_sounding(folder / "1.nut", "nut", "eac3", 48_000, "stereo")
    write_sounding(folder / "2.wmv", "asf", "wmav2", 48_000, "stereo")
    results = run("video", [folder], tmp_path / "out", toy_model, Counter())
    assert {r.job.name: (r.status, r.detail) for r in results} == {
        "1.nut": ("ok", ""),
        "2.wmv": ("ok", ""),
    }
    assert caplog.messages == [m for m in caplog.messages if "sound" in m]
    assert caplog.records[0].levelno == logging.WARNING
    for name, sound in (("1.nut", False), ("2.wmv", True)):
        assert probe(tmp_path / "out" / name / "annotated.mp4").has_audio == sound
