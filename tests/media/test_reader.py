"""Video and pictures in every form that people have, damaged ones among them."""

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import draw, make_clip, read_index
from PIL import Image

from batchfer.arrays import Images
from batchfer.errors import InputError, OutputError, Reason
from batchfer.media.images import read_image, write_image
from batchfer.media.losses import MENDS
from batchfer.media.reader import VideoReader, probe, read_frames_at
from batchfer.media.sampling import FrameSelector
from batchfer.media.writer import VideoWriter
from batchfer.schema import MediaInfo

FAST = {"preset": "ultrafast"}
H265 = {"x265-params": "log-level=none", "preset": "ultrafast"}


def read_all(path: Path) -> tuple[VideoReader, Images, list[int], list[float]]:
    """The reader after the last frame, all images, frame numbers and times."""
    with VideoReader(path) as reader:
        batches = list(reader.batches(5))
    frames = [int(frame) for batch in batches for frame in batch.frames]
    times = [float(time_s) for batch in batches for time_s in batch.times_s]
    return reader, np.concatenate([batch.images for batch in batches]), frames, times


def true_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def refuse(path: Path, **limits: int) -> InputError:
    with pytest.raises(InputError) as caught:
        probe(path, **limits)
    assert "\n" not in caught.value.detail
    return caught.value


# --- reading video --------------------------------------------------------------------------------

CONTAINERS = {
    "h264.mp4": {"options": FAST},
    "sound.mp4": {"options": FAST, "sound": "aac"},
    "h264.mkv": {"options": FAST, "sound": "aac"},
    "h264.ts": {"options": FAST, "sound": "aac"},
    "h264.avi": {},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"b": "2M"}, "sound": "mp3"},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "sorenson.flv": {"codec": "flv", "sound": "mp3", "options": {"b": "2M"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "pcm.mov": {"options": FAST, "sound": "pcm_s16le"},
    "raw.h264": {"options": FAST},
    "ten_bits.mkv": {"codec": "libx265", "pixel_format": "yuv420p10le", "options": H265},
    "alpha.mov": {"codec": "qtrle", "pixel_format": "argb"},
    "palette.gif": {"codec": "gif", "pixel_format": "rgb8"},
    "odd_size.mkv": {"codec": "ffv1", "pixel_format": "yuv444p", "size": (97, 63)},
    "grey16.mkv": {"codec": "ffv1", "pixel_format": "gray16le"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_frame_is_read_in_order(name: str, tmp_path: Path) -> None:
    path = make_clip(tmp_path / name, **CONTAINERS[name])
    reader, images, frames, times = read_all(path)
    assert frames == list(range(24))
    assert [read_index(image) for image in images] == frames
    assert np.all(np.diff(times) > 0)
    assert times[0] == pytest.approx(0, abs=0.05)
    assert reader.end_s == pytest.approx(1.0, abs=0.1)
    assert reader.n_decoded == 24
    assert reader.losses.explain() is None
    assert (reader.info.width, reader.info.height) == CONTAINERS[name].get("size", (96, 64))
    assert reader.info.has_audio == ("sound" in CONTAINERS[name])


def test_colours_are_rgb(tmp_path: Path) -> None:
    images = read_all(make_clip(tmp_path / "a.mp4", options={"crf": "4"}))[1]
    assert np.abs(images[0, 8, 8].astype(int) - (220, 20, 20)).max() < 25
    assert np.abs(images[0, -8, 8].astype(int) - (20, 20, 220)).max() < 25


def test_times_are_those_of_the_frames_at_a_variable_rate(tmp_path: Path) -> None:
    ticks = [0, 700, 900, 2900, 3000, 3600, 9000, 9500, 9900, 12000, 12100, 15000]
    time_base = Fraction(1, 15360)
    path = make_clip(tmp_path / "a.mp4", ticks=ticks, time_base=time_base)
    reader, _, _, times = read_all(path)
    assert times == pytest.approx([tick / 15360 for tick in ticks], abs=1e-9)
    assert times == pytest.approx(true_times(path), abs=1e-9)
    assert reader.variable_rate
    assert not read_all(make_clip(tmp_path / "b.mkv", options=FAST))[0].variable_rate


def test_times_count_from_the_start_of_the_container(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.ts")
    assert true_times(path)[0] > 0
    assert read_all(path)[3] == pytest.approx([index / 24 for index in range(24)], abs=1e-4)


def test_a_late_first_frame_keeps_its_time(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", ticks=range(12, 36), options=FAST, sound="aac")
    times = read_all(path)[3]
    assert times == pytest.approx(true_times(path), abs=1e-9)
    assert times[0] == pytest.approx(0.5, abs=0.001)


def test_recordings_joined_in_one_stream_run_on(tmp_path: Path) -> None:
    first = make_clip(tmp_path / "a.ts", options=FAST)
    second = make_clip(tmp_path / "b.ts", options=FAST, first_index=24)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    _, images, _, times = read_all(joined)
    assert [read_index(image) for image in images] == list(range(48))
    assert np.all(np.diff(times) > 0)
    assert times[-1] == pytest.approx(47 / 24, abs=0.05)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_the_display_matrix_is_applied_once(rotation: int, mirrored: bool, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", rotation=rotation, mirrored=mirrored, options=FAST)
    reader, images, _, _ = read_all(path)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        stored = frame.to_ndarray(format="rgb24")
    if not mirrored:
        assert frame.rotation % 360 == rotation
        assert reader.info.rotation == -rotation % 360
    expected = np.rot90(stored, rotation // 90)
    if mirrored:
        # Wherever the mirror stands, the corner marks must change sides exactly once.
        options = (np.fliplr(expected), np.flipud(expected))
        assert any(np.array_equal(images[0], option) for option in options)
    else:
        assert np.array_equal(images[0], expected)
    assert images.shape[1:3] == (reader.info.height, reader.info.width)


def test_frames_that_change_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    small = make_clip(tmp_path / "a.h264", options=FAST, n_frames=10)
    large = make_clip(tmp_path / "b.h264", options=FAST, n_frames=10, size=(192, 128))
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes() + small.read_bytes())
    _, images, _, _ = read_all(both)
    assert images.shape == (30, 64, 96, 3)
    assert not (images == 0).all(axis=(0, 2, 3)).any(), "no borders where the shape is the same"
    assert [read_index(image) for image in images] == 3 * list(range(10))


def test_batches_are_full_but_for_the_last(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", options=FAST)
    with VideoReader(path) as reader:
        assert [len(batch) for batch in reader.batches(7)] == [7, 7, 7, 3]


def test_large_frames_come_in_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchfer.media.reader.MAX_BATCH_BYTES", 2 * 96 * 64 * 3)
    path = make_clip(tmp_path / "a.mp4", options=FAST)
    with VideoReader(path) as reader:
        assert {len(batch) for batch in reader.batches(8)} == {2}


def test_only_wanted_frames_are_yielded(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", options=FAST, n_frames=48)
    with VideoReader(path) as reader:
        select = FrameSelector(every=5, start_s=0.5, end_s=1.5)
        frames = np.concatenate([batch.frames for batch in reader.batches(4, select)])
    assert frames.tolist() == [15, 20, 25, 30, 35]
    assert reader.n_decoded <= 37


def test_a_selector_takes_one_frame_a_slot() -> None:
    select = FrameSelector(fps=10)
    wanted = [frame for frame in range(30) if select.wants(frame, frame / 30)]
    assert wanted == list(range(0, 30, 3))
    select = FrameSelector(fps=100, start_s=0.1)
    assert sum(select.wants(frame, frame / 30) for frame in range(30)) == 27


def test_single_frames_are_read_by_their_times(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", options=FAST | {"g": "24"}, n_frames=200 + 56 * 2)
    wanted = [0.0, 1 / 24, 12.5, 3 / 24]
    found = list(read_frames_at(path, [*wanted, 99.0]))
    assert [time_s for time_s, _ in found] == sorted(wanted)
    assert [read_index(image) for _, image in found] == [0, 1, 3, round(12.5 * 24) % 256]


@pytest.mark.parametrize(
    ("name", "n_frames", "size", "seconds", "has_audio", "varies"),
    [
        ("portrait.mp4", 150, (640, 360), 6.0, True, False),
        ("two_people.mp4", 175, (640, 360), 7.0, True, False),
        ("variable_rate.mp4", 70, (480, 360), 4.615, False, True),
        ("rotated.mp4", 75, (270, 480), 3.0, False, False),
    ],
)
def test_samples_are_as_described(
    name: str, n_frames: int, size: tuple[int, int], seconds: float, has_audio: bool, varies: bool
) -> None:
    reader = read_all(Path(__file__).parents[2] / "samples" / "clips" / name)[0]
    assert (reader.n_decoded, reader.losses.explain()) == (n_frames, None)
    assert (reader.info.width, reader.info.height) == size
    assert reader.end_s == pytest.approx(seconds, abs=0.001)
    assert (reader.info.has_audio, reader.variable_rate) == (has_audio, varies)


# --- video that is refused ------------------------------------------------------------------------


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    assert refuse(tmp_path / "missing.mp4").reason is Reason.VANISHED
    assert refuse(tmp_path).reason is Reason.NOT_REGULAR
    assert refuse(tmp_path / "pipe.mp4").reason is Reason.NOT_REGULAR
    assert refuse(Path("/dev/zero")).reason is Reason.NOT_REGULAR
    assert refuse(tmp_path / "loop.mp4").reason is Reason.UNREADABLE
    assert refuse(write(tmp_path / "empty.mp4", b"")).reason is Reason.EMPTY


@pytest.mark.parametrize(
    "content",
    [
        "hello\n" * 100,
        "ffconcat version 1.0\nfile good.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ngood.mp4\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "1\n00:00:01,000 --> 00:00:02,000\nsubtitles\n",
        bytes(4096),
        np.random.default_rng(0).bytes(20_000),
    ],
    ids=["text", "concat", "hls", "dash", "sdp", "subtitles", "zeros", "noise"],
)
def test_other_files_named_like_video_are_refused(content: bytes | str, tmp_path: Path) -> None:
    make_clip(tmp_path / "good.mp4", options=FAST)
    assert refuse(write(tmp_path / "bad.mp4", content)).reason is Reason.NOT_MEDIA


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    good = make_clip(tmp_path / "good.mp4", options=FAST)
    script = write(tmp_path / "list.mp4", "ffconcat version 1.0\nfile good.mp4\n")
    with av.open(str(script), container_options={"safe": "0"}) as container:
        assert container.format.name == "concat", "the script would work if it were let in"
    before = good.stat().st_atime_ns
    assert refuse(script).reason is Reason.NOT_MEDIA
    assert good.stat().st_atime_ns == before


def test_a_name_that_looks_like_an_address_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "good.mp4", options=FAST)
    for name in ("http:evil.mp4", "concat:good.mp4|good.mp4", "-i.mp4", "frame%03d.mp4"):
        os.link("good.mp4", name)
        assert read_all(Path(name))[0].n_decoded == 24


def test_names_are_bytes(tmp_path: Path) -> None:
    make_clip(tmp_path / "good.mp4", options=FAST)
    for name in (b"\xff\xfe.mp4", b"new\nline.mp4", b"n" * 251 + b".mp4"):
        path = tmp_path / os.fsdecode(name)
        os.link(tmp_path / "good.mp4", path)
        assert read_all(path)[0].n_decoded == 24


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    error = refuse(tmp_path / "a.png")
    assert error.reason is Reason.NOT_MEDIA
    assert "picture" in error.detail


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.m4a"])
def test_sound_is_no_video(name: str, tmp_path: Path) -> None:
    codec = {"a.mp3": "mp3", "a.wav": "pcm_s16le", "a.m4a": "aac"}[name]
    with av.open(str(tmp_path / name), "w") as container:
        audio = container.add_stream(codec, rate=44_100)
        samples = np.zeros((1, 44_100), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
        frame.sample_rate = 44_100
        resampler = av.AudioResampler(
            audio.codec_context.format.name, audio.codec_context.layout.name, 44_100, 1152
        )
        for part in resampler.resample(frame):
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    assert refuse(tmp_path / name).reason is Reason.NO_VIDEO_STREAM


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "cover.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=44_100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(draw(0), "rgb24")
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate, samples.pts = 44_100, 0
        container.mux(audio.encode(samples))
        container.mux(audio.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert refuse(path).reason is Reason.NO_VIDEO_STREAM


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "ffv1")]
)
def test_frames_beyond_the_limit_are_refused(name: str, codec: str, tmp_path: Path) -> None:
    path = make_clip(tmp_path / name, codec=codec, n_frames=3)
    assert probe(path, max_pixels=96 * 64).width == 96
    assert refuse(path, max_pixels=96 * 64 - 1).reason is Reason.TOO_LARGE


def test_a_limit_beyond_all_frames_is_one(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", n_frames=3)
    assert probe(path, max_pixels=2**40).width == 96


def test_frames_longer_than_can_be_written_are_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", codec="ffv1", n_frames=1, size=(16_400, 16))
    assert refuse(path).reason is Reason.TOO_LARGE


def test_a_giant_frame_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.avi", codec="ffv1", n_frames=2, pixel_format="yuv420p")
    content = bytearray(path.read_bytes())
    # The sizes in the stream format (BITMAPINFOHEADER), the only ones that FFV1 has in AVI.
    at = content.index((96).to_bytes(4, "little") + (64).to_bytes(4, "little"), 100)
    content[at : at + 8] = (12_000).to_bytes(4, "little") * 2
    error = refuse(write(tmp_path / "bomb.avi", content))
    assert error.reason is Reason.TOO_LARGE
    assert "12000x12000" in error.detail


def test_a_container_without_frames_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", options=FAST)
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big") - 8
    blank = content[:start] + bytes(size) + content[start + size :]
    assert refuse(write(tmp_path / "blank.mp4", blank)).reason is Reason.NO_FRAMES


# --- damaged video --------------------------------------------------------------------------------

LONG = {"n_frames": 96, "size": (320, 240)}
INDEX_FIRST = {"movflags": "faststart"}


def noisy_clip(path: Path, **changes: object) -> Path:
    """A clip that does not compress to nothing, so that cuts hit frames."""
    options = {"g": "24", "crf": "10", "preset": "ultrafast"}
    return make_clip(path, **({"options": options} | LONG | changes))  # type: ignore[arg-type]


DAMAGED = {
    "index_first.mp4": {"container_options": INDEX_FIRST},
    "sound.mp4": {"container_options": INDEX_FIRST, "sound": "aac"},
    "a.mkv": {"container_options": {"cluster_time_limit": "500"}},
    "a.ts": {},
    "a.avi": {"codec": "mpeg4", "options": {"g": "24", "b": "4M"}},
    "a.webm": {"codec": "libvpx-vp9", "options": {"g": "24", "b": "4M", "cpu-used": "8"}},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_half_a_file_gives_its_frames_and_says_so(name: str, tmp_path: Path) -> None:
    content = noisy_clip(tmp_path / name, **DAMAGED[name]).read_bytes()
    cut = len(content) // 2 + 1
    reader, images, frames, _ = read_all(write(tmp_path / f"half_{name}", content[:cut]))
    assert 10 < len(frames) < 90
    assert [read_index(image) for image in images[:10]] == list(range(10))
    loss = reader.losses.explain()
    if name.endswith(".ts"):
        return  # A transport stream has neither length nor index: its cut is no sure loss.
    assert loss is not None
    assert loss[0] is Reason.TRUNCATED
    assert reader.losses.truncated_s == reader.end_s
    assert reader.losses.first_bad_s == pytest.approx(len(frames) / 24, abs=0.2)
    assert abs(reader.losses.n_lost - (96 - len(frames))) <= 1


@pytest.mark.parametrize("name", DAMAGED)
def test_a_zeroed_middle_loses_frames_and_says_so(name: str, tmp_path: Path) -> None:
    content = bytearray(noisy_clip(tmp_path / name, **DAMAGED[name]).read_bytes())
    n_bytes = len(content)
    content[2 * n_bytes // 5 : 3 * n_bytes // 5] = bytes(3 * n_bytes // 5 - 2 * n_bytes // 5)
    reader, images, frames, times = read_all(write(tmp_path / f"zero_{name}", content))
    assert 30 < len(frames) < 96
    assert read_index(images[-1]) == 95, "what comes after the damage is read"
    assert np.all(np.diff(times) >= 0)
    loss = reader.losses.explain()
    assert loss is not None
    assert loss[0] is Reason.CORRUPT
    assert reader.losses.n_lost >= 96 - len(frames)
    assert reader.losses.first_bad_s is not None
    assert reader.losses.first_bad_s < 3


def test_damaged_frames_are_the_same_in_every_run(tmp_path: Path) -> None:
    content = bytearray(noisy_clip(tmp_path / "a.mkv").read_bytes())
    for at in np.random.default_rng(1).integers(len(content) // 4, len(content) * 3 // 4, 20):
        content[at] ^= 0xFF
    path = write(tmp_path / "flipped.mkv", content)
    first, second = read_all(path), read_all(path)
    assert first[0].losses.explain() is not None
    assert np.array_equal(first[1], second[1])
    assert first[0].losses.explain() == second[0].losses.explain()


def test_an_incomplete_index_is_named(tmp_path: Path) -> None:
    content = make_clip(tmp_path / "a.mp4", options=FAST).read_bytes()
    error = refuse(write(tmp_path / "cut.mp4", content[: len(content) // 2]))
    assert error.reason is Reason.TRUNCATED
    assert "moov" in error.detail


def test_a_damaged_head_is_no_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name in ("a.mp4", "a.mkv", "a.avi", "a.ts"):
        content = make_clip(tmp_path / name, codec="mpeg4", n_frames=8).read_bytes()
        for _ in range(25):
            changed = bytearray(content)
            for at in rng.integers(0, min(len(changed), 600), 4):
                changed[at] = rng.integers(256)
            path = write(tmp_path / f"changed_{name}", changed)
            try:
                reader, images, frames, times = read_all(path)
            except InputError as error:
                assert error.reason in Reason
            else:
                assert len(images) == len(frames) == len(times) == reader.n_decoded


# --- writing video --------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> None:
    with VideoReader(source) as reader, VideoWriter(target, reader.info, source) as writer:
        for batch in reader.batches():
            for image, time_s in zip(batch.images, batch.times_s, strict=True):
                writer.write(image, float(time_s))
        writer.end(reader.end_s)


@pytest.mark.parametrize("name", [*CONTAINERS, "late.mp4", "varying.mp4"])
def test_a_copy_has_the_frames_times_and_length_of_the_input(name: str, tmp_path: Path) -> None:
    ticks: dict[str, dict[str, object]] = {
        "late.mp4": {"ticks": range(12, 36), "sound": "aac"},
        "varying.mp4": {
            "ticks": [0, 700, 900, 2900, 3000, 3600, 9000, 9500, 9900, 12000, 12100, 15000],
            "time_base": Fraction(1, 15360),
        },
    }
    settings = (CONTAINERS | ticks)[name]
    source = make_clip(tmp_path / name, **settings)  # type: ignore[arg-type]
    copy(source, tmp_path / "copy.mp4")
    reader, images, frames, times = read_all(source)
    copied, copied_images, copied_frames, copied_times = read_all(tmp_path / "copy.mp4")
    assert copied_frames == frames
    assert [read_index(i) for i in copied_images] == [read_index(i) for i in images]
    assert copied_times == pytest.approx(times, abs=2e-5)
    assert copied.end_s == pytest.approx(reader.end_s, abs=0.001)
    assert copied.info.codec == "h264"
    assert copied.info.has_audio == reader.info.has_audio
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert container.streams.video[0].format.name == "yuv420p"
    head = (tmp_path / "copy.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat"), "players can start before the end arrives"


def find_onset(path: Path) -> float:
    """When the sound begins to be heard, in seconds of what a player shows."""
    with av.open(str(path)) as container:
        origin = max(container.start_time or 0, 0) / av.time_base
        for frame in container.decode(audio=0):
            samples = np.abs(frame.to_ndarray().astype(np.float64)).reshape(-1)
            samples /= 32768 if frame.format.name.startswith("s16") else 1
            loud = np.flatnonzero(samples > 0.05)
            if len(loud):
                per_second = frame.sample_rate * (1 if frame.format.is_planar else 2)
                return float(frame.time - origin + loud[0] / per_second)
    raise AssertionError("silence")


@pytest.mark.parametrize(
    ("name", "sound", "kept"),
    [
        ("a.mp4", "aac", "aac"),
        ("a.mkv", "mp3", "mp3float"),
        ("a.mov", "pcm_s16le", "aac"),
        ("a.ts", "mp2", "aac"),
        ("a.ts", "aac", "aac"),
        ("a.mkv", "flac", "aac"),
    ],
)
def test_sound_is_kept_in_sync(name: str, sound: str, kept: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / name, sound=sound, options=FAST, n_frames=48)
    copy(source, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        audio = container.streams.audio[0]
        assert audio.codec_context.name == kept
        assert float(audio.duration * audio.time_base) == pytest.approx(2.0, abs=0.06)
    assert find_onset(tmp_path / "copy.mp4") == pytest.approx(find_onset(source), abs=0.03)


def test_broken_sound_does_not_cost_the_video(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", sound="flac", options=FAST, n_frames=48)
    content = bytearray(source.read_bytes())
    for at in np.random.default_rng(0).integers(len(content) // 8, len(content), 400):
        content[at] ^= 0x55
    damaged = write(tmp_path / "b.mkv", content)
    n_frames = len(read_all(damaged)[1])
    copy(damaged, tmp_path / "copy.mp4")
    assert len(read_all(tmp_path / "copy.mp4")[1]) == n_frames


def test_sound_that_changes_its_form_is_kept(tmp_path: Path) -> None:
    first = make_clip(tmp_path / "a.ts", sound="mp2")
    second = make_clip(tmp_path / "b.ts", sound="mp2", sound_rate=48_000)
    joined = write(tmp_path / "joined.ts", first.read_bytes() + second.read_bytes())
    copy(joined, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        audio = container.streams.audio[0]
        assert float(audio.duration * audio.time_base) > 1.5


def test_absurd_times_do_not_cost_the_video(tmp_path: Path) -> None:
    content = bytearray(make_clip(tmp_path / "a.avi", codec="mpeg4").read_bytes())
    # Rate and scale of the stream header (AVISTREAMHEADER): a frame in 40 hours.
    at = content.index(b"vids") + 20
    content[at : at + 8] = (144_000).to_bytes(4, "little") + (1).to_bytes(4, "little")
    slow = write(tmp_path / "slow.avi", content)
    copy(slow, tmp_path / "copy.mp4")
    assert len(read_all(tmp_path / "copy.mp4")[1]) == len(read_all(slow)[1]) == 24


def test_frames_hours_apart_keep_their_times(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "a.mkv", ticks=[0, 1000, 13_000_000], time_base=Fraction(1, 1000), options=FAST
    )
    copy(path, tmp_path / "copy.mp4")
    assert read_all(path)[3] == [0, 1, 13_000]
    assert read_all(tmp_path / "copy.mp4")[3] == [0, 1, 13_000]


LAPSES = {
    "a.mp4": {},
    "a.mov": {"codec": "mpeg4"},
    "a.mkv": {},
    "a.webm": {"codec": "libvpx"},
    "a.flv": {"codec": "flv"},
    "a.wmv": {"codec": "wmv2"},
    "a.nut": {"codec": "mpeg4"},
}


@pytest.mark.parametrize("name", LAPSES)
def test_times_that_the_whole_container_agrees_on_are_kept(name: str, tmp_path: Path) -> None:
    ticks, tick = [0, 18_000_000, 36_000_000, 36_040_000], Fraction(1, 1000)
    path = make_clip(tmp_path / name, ticks=ticks, time_base=tick, **LAPSES[name])  # type: ignore[arg-type]
    reader, images, _, times = read_all(path)
    assert times == [0, 18_000, 36_000, 36_040]
    assert (reader.losses.explain(), reader.losses.mends) == (None, {})
    copy(path, tmp_path / "copy.mp4")
    _, copied_images, _, copied_times = read_all(tmp_path / "copy.mp4")
    assert copied_times == times
    assert [read_index(i) for i in copied_images] == [read_index(i) for i in images]


def test_an_index_of_frames_alone_is_believed(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "a.avi", 3, codec="mpeg4", ticks=[0, 1, 2], time_base=Fraction(1, 24)
    )
    content = bytearray(path.read_bytes())
    at = content.index(b"vids") + 20  # scale and rate of the stream: a frame in five hours
    content[at : at + 8] = (18_000).to_bytes(4, "little") + (1).to_bytes(4, "little")
    reader, _, _, times = read_all(write(path, content))
    assert (times, reader.losses.explain()) == ([0, 18_000, 36_000], None)


def test_a_frame_that_lasts_longer_than_mp4_lets_it_is_shown_again(tmp_path: Path) -> None:
    info = MediaInfo(tmp_path, 96, 64, time_base=Fraction(1, 90_000))
    with VideoWriter(tmp_path / "a.mp4", info) as writer:
        for index, time_s in enumerate((0.0, 70_000.0, 70_001.0)):
            writer.write(draw(index), time_s)
        writer.end(70_002)
    reader, images, _, times = read_all(tmp_path / "a.mp4")
    assert [read_index(image) for image in images] == [0, 0, 0, 0, 1, 2]
    assert times[-2:] == [70_000, 70_001]
    assert reader.end_s == pytest.approx(70_002, abs=0.001)


def test_a_leap_that_the_index_knows_nothing_of_is_mended_and_told(tmp_path: Path) -> None:
    # All frames are key frames, each in a cluster and with a cue of its own, ten minutes apart.
    path = make_clip(
        tmp_path / "a.mkv", ticks=range(0, 36_000_000, 600_000), time_base=Fraction(1, 1000),
        options=FAST | {"g": "1"},
    )  # fmt: skip
    assert read_all(path)[0].losses.explain() is None
    content = path.read_bytes()
    time_of_third = b"\xe7\x83" + (1_800_000).to_bytes(3, "big")
    assert content.count(time_of_third) == 1
    leap = b"\xe7\x83" + (16_700_000).to_bytes(3, "big")
    path.write_bytes(content.replace(time_of_third, leap))
    reader, _, _, times = read_all(path)
    assert [t for i, t in enumerate(times) if i != 3] == [600 * i for i in range(60) if i != 3]
    assert 1200 < times[3] < 2400
    assert reader.losses.mends == {"astray": 1}


def test_a_leap_of_times_is_mended_and_told(tmp_path: Path) -> None:
    ticks = [*range(10, 22), *range(22 + 24 * 18_000, 34 + 24 * 18_000)]
    reader, _, _, times = read_all(make_clip(tmp_path / "a.ts", ticks=ticks, options=FAST))
    assert times == pytest.approx([index / 24 for index in range(24)], abs=1e-4)
    assert reader.losses.mends == {"leap": 1}
    assert set(reader.losses.mends) <= set(MENDS)
    loss = reader.losses.explain()
    assert loss is not None
    assert loss[0] is Reason.CORRUPT
    assert "times mended: 1" in loss[1]
    assert reader.losses.first_mended_s in times


@pytest.mark.parametrize("sound", ["aac", None])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_nothing_is_lost_where_recordings_are_joined(
    codec: str, sound: str | None, tmp_path: Path
) -> None:
    first = make_clip(tmp_path / "a.ts", codec=codec, sound=sound)
    second = make_clip(tmp_path / "b.ts", codec=codec, sound=sound, first_index=24)
    joined = write(tmp_path / "joined.ts", first.read_bytes() + 2 * second.read_bytes())
    reader, images, _, times = read_all(joined)
    assert [read_index(image) for image in images] == [*range(48), *range(24, 48)]
    assert np.diff(times) == pytest.approx(np.full(71, 1 / 24), abs=1e-4)
    losses = reader.losses
    assert losses.mends == {"joined": 2}
    assert (losses.explain(), losses.first_bad_s, losses.first_flaw_s) == (None, None, None)
    assert losses.gaps == []
    # The same file with a hole is not whole.
    content = joined.read_bytes()
    hole = len(content) // 2 // 188 * 188
    write(joined, content[: hole // 3] + content[hole // 3 + 188 * 7 :])
    assert read_all(joined)[0].losses.explain() is not None


def test_odd_sizes_get_one_more_row_and_column(tmp_path: Path) -> None:
    info = MediaInfo(tmp_path, 97, 63, fps=Fraction(24))
    with VideoWriter(tmp_path / "a.mp4", info) as writer:
        for index in range(5):
            writer.write(draw(index, 97, 63), index / 24)
    images = read_all(tmp_path / "a.mp4")[1]
    assert images.shape == (5, 64, 98, 3)


def test_colours_survive_writing_in_high_definition(tmp_path: Path) -> None:
    info = MediaInfo(tmp_path, 1280, 720)
    image = draw(3, 1280, 720)
    with VideoWriter(tmp_path / "a.mp4", info) as writer:
        writer.write(image, 0.0)
    copied = read_all(tmp_path / "a.mp4")[1][0]
    for row, column in ((60, 60), (-60, 60), (360, 1200)):
        assert np.abs(copied[row, column].astype(int) - image[row, column]).max() <= 6


def test_writing_is_the_same_in_every_run(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", sound="aac", options=FAST)
    copy(source, tmp_path / "1.mp4")
    copy(source, tmp_path / "2.mp4")
    with VideoReader(tmp_path / "1.mp4") as one, VideoReader(tmp_path / "2.mp4") as two:
        for first, second in zip(one.batches(), two.batches(), strict=True):
            np.testing.assert_array_equal(first.times_s, second.times_s)
            # On a busy machine x264 now and then decides otherwise; nobody can see that.
            difference = np.abs(first.images.astype(int) - second.images)
            assert difference.mean() < 1.0


def test_a_video_that_cannot_be_created_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        VideoWriter(tmp_path / "missing" / "a.mp4", MediaInfo(tmp_path, 96, 64))


def test_what_the_encoder_refuses_is_the_fault_of_the_video(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        VideoWriter(tmp_path / "a.mp4", MediaInfo(tmp_path, 40_000, 40))
    assert caught.value.reason is Reason.OUTPUT_ERROR


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from batchfer.errors import OutputError
from batchfer.media.writer import VideoWriter
from batchfer.schema import MediaInfo
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
rng = np.random.default_rng(0)
try:
    with VideoWriter(Path(sys.argv[1]), MediaInfo(Path("x"), 320, 240)) as writer:
        for index in range(40):
            writer.write(rng.integers(0, 255, (240, 320, 3), np.uint8), index / 25)
except OutputError as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.mp4"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("refused: cannot write the video")


def test_an_exception_leaves_the_writer_closed(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", sound="aac", options=FAST)
    info = probe(source)
    with (
        pytest.raises(ZeroDivisionError),
        VideoWriter(tmp_path / "b.mp4", info, source) as writer,
    ):
        writer.write(draw(0), 0.0)
        writer.write(draw(1), 1 / 0)
    with pytest.raises(ValueError, match="shape"):
        writer.write(draw(0, 50, 50), 0.0)


# --- pictures -------------------------------------------------------------------------------------


def upright() -> Images:
    return draw(0b1011, 120, 80)


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def refuse_image(path: Path, **limits: int) -> InputError:
    with pytest.raises(InputError) as caught:
        read_image(path, **limits)
    assert "\n" not in caught.value.detail
    return caught.value


FORMATS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "a.jpg": lambda p: p,
    "a.png": lambda p: p,
    "a.webp": lambda p: p,
    "a.tif": lambda p: p,
    "a.bmp": lambda p: p,
    "a.gif": lambda p: p.quantize(64),
    "a.avif": lambda p: p,
    "cmyk.jpg": lambda p: p.convert("CMYK"),
    "cmyk.tif": lambda p: p.convert("CMYK"),
    "ycbcr.tif": lambda p: p.convert("YCbCr"),
    "palette.png": lambda p: p.quantize(128),
    "alpha.png": lambda p: p.convert("RGBA"),
    "alpha.webp": lambda p: p.convert("RGBA"),
    "b.ppm": lambda p: p,
    "b.tga": lambda p: p,
    "b.jp2": lambda p: p,
}


@pytest.mark.parametrize("name", FORMATS)
def test_pictures_are_read_in_every_format(name: str, tmp_path: Path) -> None:
    path = save(FORMATS[name](Image.fromarray(upright())), tmp_path / name)
    info, image = read_image(path)
    assert (info.width, info.height) == (120, 80)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - upright()).mean() < 8
    assert read_index(image) == 0b1011
    assert image[8, 8, 0] > 150 > image[8, 8, 2], "red stays red"


def test_heic_is_read(tmp_path: Path) -> None:
    import pillow_heif

    path = tmp_path / "a.heic"
    picture = pillow_heif.from_pillow(Image.fromarray(upright()))
    try:
        picture.save(path, quality=90)
    except (RuntimeError, OSError, ValueError) as error:
        pytest.skip(f"this build cannot make HEIC files: {error}")
    assert read_index(read_image(path)[1]) == 0b1011


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_stands_pictures_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    stored_as = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_as[orientation](upright())))
    path = save(stored, tmp_path / f"a{suffix}", exif=exif, quality=95)
    info, image = read_image(path)
    assert (info.width, info.height) == (120, 80)
    assert np.abs(image.astype(int) - upright()).mean() < 8


def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = save(Image.fromarray(upright()), tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff")
    assert read_index(read_image(path)[1]) == 0b1011


@pytest.mark.parametrize(
    ("suffix", "dtype", "factor"),
    [
        (".png", np.uint16, 257),
        (".tif", np.uint16, 257),
        (".tif", np.uint16, 16),
        (".tif", np.int32, 257),
        (".tif", np.float32, 1 / 255),
        (".tif", np.float32, 1.0),
    ],
)
def test_deep_grey_is_scaled(
    suffix: str, dtype: type[np.number], factor: float, tmp_path: Path
) -> None:
    grey = np.tile(np.arange(256, dtype=np.float64), (64, 1))
    path = save(Image.fromarray((grey * factor).astype(dtype)), tmp_path / f"a{suffix}")
    image = read_image(path)[1]
    assert image.shape == (64, 256, 3)
    assert np.abs(image[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_grey_with_alpha_and_one_bit(tmp_path: Path) -> None:
    grey = Image.fromarray(upright()).convert("L")
    for name, mode in (("a.png", "LA"), ("b.png", "1"), ("c.tif", "1")):
        image = read_image(save(grey.convert(mode), tmp_path / name))[1]
        assert image.shape == (80, 120, 3)


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[:20] = (200, 10, 10, 255)
    image = read_image(save(Image.fromarray(rgba), tmp_path / "a.png"))[1]
    assert image[5, 5].tolist() == [200, 10, 10]
    assert image[35, 35].tolist() == [255, 255, 255]


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(draw(index, 120, 80)) for index in (5, 6, 7)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_index(read_image(tmp_path / name)[1]) == 5


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.gif", "a.avif"])
def test_half_a_picture_is_refused(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    picture = Image.fromarray(noise)
    path = save(picture.quantize(64) if name == "a.gif" else picture, tmp_path / name)
    content = path.read_bytes()
    assert refuse_image(write(path, content[: len(content) // 2])).reason in (
        Reason.TRUNCATED,
        Reason.CORRUPT,
    )
    assert refuse_image(write(path, content[:20])).reason in (Reason.TRUNCATED, Reason.CORRUPT)


@pytest.mark.parametrize("progressive", [False, True])
def test_most_of_a_jpeg_is_enough(progressive: bool, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    path = save(Image.fromarray(noise), tmp_path / "a.jpg", progressive=progressive)
    content = path.read_bytes()
    info, whole = read_image(path)
    assert info.flaw == ""
    info, image = read_image(write(path, content[:-2]))
    assert info.flaw == "the file is incomplete"
    assert np.array_equal(image[:180], whole[:180])
    info, image = read_image(write(path, content[: len(content) * 9 // 10]))
    assert "the file is incomplete" in info.flaw
    assert image.shape == whole.shape
    if not progressive:
        assert "of 200 rows are missing" in info.flaw
        assert np.array_equal(image[:160], whole[:160])


def test_a_whole_tiff_of_another_kind_is_unsupported(tmp_path: Path) -> None:
    path = save(Image.fromarray(upright()), tmp_path / "a.tif", compression="tiff_deflate")
    content = bytearray(path.read_bytes())
    start = int.from_bytes(content[4:8], "little")
    entries = [
        start + 2 + 12 * i for i in range(int.from_bytes(content[start : start + 2], "little"))
    ]
    (place,) = [e for e in entries if content[e : e + 2] == (262).to_bytes(2, "little")]
    content[place + 8 : place + 10] = (32_803).to_bytes(
        2, "little"
    )  # as sensors see, in camera raw
    assert refuse_image(write(path, bytes(content))).reason is Reason.UNSUPPORTED
    assert refuse_image(write(path, bytes(content[:-9]))).reason is Reason.CORRUPT


def test_a_large_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000)))):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        parts += [struct.pack(">I", len(body)), kind, body, checksum]
    path = write(tmp_path / "bomb.png", b"".join(parts))
    assert refuse_image(path).reason is Reason.TOO_LARGE
    small = save(Image.fromarray(upright()), tmp_path / "a.png")
    assert refuse_image(small, max_pixels=120 * 80 - 1).reason is Reason.TOO_LARGE
    assert read_image(small, max_pixels=120 * 80)[0].width == 120


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert refuse_image(tmp_path / "missing.jpg").reason is Reason.VANISHED
    assert refuse_image(tmp_path).reason is Reason.NOT_REGULAR
    assert refuse_image(tmp_path / "pipe.jpg").reason is Reason.NOT_REGULAR
    assert refuse_image(write(tmp_path / "a.jpg", b"")).reason is Reason.EMPTY
    assert refuse_image(write(tmp_path / "b.jpg", b"hello")).reason is Reason.NOT_MEDIA
    assert refuse_image(write(tmp_path / "c.html", "<html/>")).reason is Reason.NOT_MEDIA
    video = refuse_image(make_clip(tmp_path / "d.mp4", n_frames=2))
    assert video.reason is Reason.NOT_MEDIA
    assert "video" in video.detail


def test_postscript_starts_no_program(tmp_path: Path) -> None:
    script = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    assert refuse_image(write(tmp_path / "a.png", script)).reason is Reason.NOT_MEDIA


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "JPEG"),
        ("a.JPEG", "JPEG"),
        ("a.png", "PNG"),
        ("a.webp", "WEBP"),
        ("a.tiff", "TIFF"),
        ("a.bmp", "BMP"),
        ("a.gif.jpg", "JPEG"),
        ("noname", "JPEG"),
    ],
)
def test_pictures_are_written_in_the_format_of_their_name(
    name: str, kind: str, tmp_path: Path
) -> None:
    write_image(tmp_path / name, upright())
    with Image.open(tmp_path / name) as picture:
        assert picture.format == kind
    assert np.abs(read_image(tmp_path / name)[1].astype(int) - upright()).mean() < 6


def test_a_picture_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_image(tmp_path / "missing" / "a.jpg", upright())


@pytest.mark.parametrize("is_tall", [False, True])
@pytest.mark.parametrize(
    ("suffix", "most"),
    [(".jpg", 65_500), (".gif", 65_500), (".webp", 16_383), (".png", None), (".tif", None),
     (".bmp", None), (".dib", None)],
)  # fmt: skip
def test_a_picture_longer_than_its_format_holds_is_its_own_fault(
    suffix: str, most: int | None, is_tall: bool, tmp_path: Path
) -> None:
    def make(length: int) -> Images:
        return np.zeros((length, 2, 3) if is_tall else (2, length, 3), np.uint8)

    path = tmp_path / f"a{suffix}"
    image = make(most or 200_000)
    write_image(path, image)
    assert read_image(path)[1].shape == image.shape
    if most is not None:
        with pytest.raises(InputError, match=f"{most} on a side") as caught:
            write_image(path, make(most + 1))
        assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("error", [OSError("encoder error -2"), ValueError("no"), KeyError(1)])
def test_what_an_encoder_raises_is_the_pictures_fault(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(InputError) as caught:
        write_image(tmp_path / "a.jpg", upright())
    assert caught.value.reason is Reason.OUTPUT_ERROR
