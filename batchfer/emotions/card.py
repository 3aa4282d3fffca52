"""The card of a model: what its file does not say about itself; and where models lie."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from batchfer.emotions.model_layers import show
from batchfer.errors import ModelError, one_line
from batchfer.files import display_name, is_hidden
from batchfer.schema import EMOTIONS

MAX_MODEL_BYTES = 2 * 1024**3


def list_model_folders() -> list[Path]:
    """Return the folders that models are looked up in, in order, existing or not.

    These are ``$BATCHFER_MODELS``, ``models`` of a source checkout, and the installed package's.
    """
    package = Path(__file__).resolve().parent.parent
    folders = []
    if os.environ.get("BATCHFER_MODELS"):
        folders.append(Path(os.environ["BATCHFER_MODELS"]))
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / "models")
    folders.append(package / "models")
    return folders


def find_model(name_or_path: str | Path) -> Path:
    """Return the file of a model that is given as a path or by name.

    Raises:
        ModelError: There is no such model; the message lists every place searched. Or it cannot be
            read.
    """
    text = str(name_or_path)
    path = Path(text)
    if os.path.isfile(path) or is_hidden(path):  # noqa: PTH113 - never raises
        return _see_readable(path)
    searched = [path]
    if os.path.basename(text) == text:  # noqa: PTH119 - a name has no folder in front
        file_name = text if path.suffix in (".keras", ".h5") else f"{text}.keras"
        for folder in list_model_folders():
            if os.path.isfile(folder / file_name):  # noqa: PTH113
                return _see_readable(folder / file_name)
            searched.append(folder / file_name)
    if os.path.isdir(path):  # noqa: PTH112 - never raises
        raise ModelError(f"{display_name(text)} is a folder{_list_models(path)}")
    places = ", ".join(display_name(place) for place in searched)
    raise ModelError(f"model {display_name(text)!r} not found; searched: {places}")


def _list_models(folder: Path) -> str:
    """Return what models a folder holds, as the end of a sentence."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix in (".keras", ".h5"))
    except OSError as error:
        return f" that cannot be read, {error.strerror}"
    if not names:
        return " without a .keras or .h5 file: give the file of a model"
    shown = ", ".join(map(display_name, names[:5]))
    return f"; give the file of a model: it holds {shown}{' ...' if names[5:] else ''}"


def _see_readable(model: Path) -> Path:
    """Refuse a model that cannot be read, or that is too large to be read for its hash."""
    try:
        with model.open("rb") as file:
            file.read(1)
            if os.fstat(file.fileno()).st_size > MAX_MODEL_BYTES:
                raise ModelError(f"{display_name(model)}: larger than 2 GiB")
    except OSError as error:
        raise ModelError(f"model {display_name(model)}: unreadable, {error.strerror}") from error
    return model


CLASS_NAMES: Mapping[str, str] = {
    **{name: name for name in EMOTIONS},
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "scared": "fear",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "neutrality": "neutral",
}
"""Spellings of the seven classes in lower case, each with the emotion that it names."""

MAX_CARD_BYTES = 4 * 1024**2


def check_kinds(one: Any) -> None:
    """Refuse a dataclass from a file that holds other than it declares: kinds, finite numbers.

    Raises:
        TypeError: It does.
    """
    for part in fields(one):
        value, kind = getattr(one, part.name), part.type
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        origin = get_origin(kind)
        if origin is Literal:
            fine = value in get_args(kind)
        elif kind is float:
            # A whole number may be larger than any float, NaN is within no bounds.
            fine = type(value) in (int, float) and -1e9 <= value <= 1e9
        else:
            plain: Any = kind if origin in (None, UnionType) else origin
            fine = isinstance(value, plain) and (kind is bool or not isinstance(value, bool))
        if not fine:
            raise TypeError(f"{part.name} is not as it should be")


def _is_within(value: Any, least: float, most: float) -> bool:
    """Return whether a value of a card is a number within bounds; NaN is within none."""
    return type(value) in (int, float) and least <= value <= most


def _full_face() -> dict[str, float]:
    return {"margin": 1.0, "shift_x": 0.0, "shift_y": 0.0}


VIEWS = (1, 2, 10)
"""How many views of a face may be averaged: the crop; its mirror image, too; ten of parts of it."""


@dataclass(frozen=True)
class Calibration:
    """What is known of one read-out of a model.

    Probabilities are softmax(log p / ``temperature``), the mean over the card's
    ``views`` of the face; below ``uncertain_below`` a prediction was wrong more
    often than right on validation data. ``prior`` is the share of each emotion among the faces that
    the read-out was fitted to, empty where that is not known.

    Raises:
        ValueError: It cannot be applied.
    """

    temperature: float = 1.0
    uncertain_below: float = 0.0
    prior: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be applied."""
        if not _is_within(self.temperature, 0.01, 100):
            raise ValueError("temperature is a number from 0.01 to 100")
        if not _is_within(self.uncertain_below, 0, 1):
            raise ValueError("uncertain_below is a number from 0 to 1")
        shares = self.prior
        known = isinstance(shares, Mapping) and (not shares or set(shares) == set(EMOTIONS))
        if not known or not all(_is_within(share, 1e-6, 1) for share in shares.values()):
            raise ValueError("a prior has a share above 0 of each of the seven emotions")


@dataclass(frozen=True)
class ModelCard:
    """What a model file does not say about itself: the JSON beside it.

    ``labels`` name the outputs in order, each one of `EMOTIONS`. ``input_size`` is the side of the
    input in px, ``channels`` 3 or 1. ``crop`` holds ``margin``, the crop's side in units of the
    face box's longer side, and ``shift_x``, ``shift_y``, the move of its centre in the same unit.
    ``landmarks`` are five pairs x, y: where eyes, nose and corners of the mouth lie in a crop, in
    units of its side, for a model of upright faces; without them crops are cut by the box alone.
    ``temperature``, ``uncertain_below`` and ``prior`` are the `Calibration` of a model with one
    output; ``read_outs`` has one for each output of a model with several, by their names.
    ``views`` is how many views of a face are averaged, one of `VIEWS`. ``runs`` are the training
    runs behind the model, by which they can be repeated (`batchfer.training.past_runs.PastRun`),
    ``seen_faces`` hashes of the faces that it was trained and validated on
    (`batchfer.training.seen`), empty where they are not known. The rest is for people: where the
    weights come from, how they can be made again, and what they reach.
    """

    name: str
    labels: tuple[str, ...]
    input_size: int
    channels: int = 3
    crop: Mapping[str, float] = field(default_factory=_full_face)
    landmarks: Sequence[Sequence[float]] = ()
    temperature: float = 1.0
    views: int = 1
    uncertain_below: float = 0.0
    prior: Mapping[str, float] = field(default_factory=dict)
    read_outs: Mapping[str, Calibration] = field(default_factory=dict)
    sha256: str = ""
    architecture: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    runs: Sequence[Mapping[str, Any]] = ()
    base_weights: Mapping[str, Any] = field(default_factory=dict)
    training_data: Sequence[Mapping[str, Any]] = ()
    seen_faces: str = ""
    licence: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a card that cannot be applied."""
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise ModelError("a card needs a name that can be printed")
        known = [CLASS_NAMES.get(str(label).lower()) for label in self.labels]
        if sorted(map(str, known)) != sorted(EMOTIONS):
            shown = ", ".join(show(str(label)) for label in self.labels[:8])
            raise ModelError(
                f"{self.name}: labels {shown} are not the seven emotions {', '.join(EMOTIONS)}, "
                "each one once"
            )
        object.__setattr__(self, "labels", tuple(known))
        object.__setattr__(self, "training_data", tuple(self.training_data))
        object.__setattr__(self, "runs", tuple(self.runs))
        if not isinstance(self.input_size, int) or not 8 <= self.input_size <= 4096:
            raise ModelError(
                f"{self.name}: input size {show(str(self.input_size))} is not 8 to 4096 px"
            )
        if self.views not in VIEWS:
            raise ModelError(f"{self.name}: {show(str(self.views))} views are none of {VIEWS}")
        if self.channels not in (1, 3):
            raise ModelError(
                f"{self.name}: {show(str(self.channels))} channels are neither 1 nor 3"
            )
        if not isinstance(self.crop, Mapping) or not set(self.crop) <= set(_full_face()):
            raise ModelError(f"{self.name}: a crop has margin, shift_x and shift_y only")
        object.__setattr__(self, "crop", {**_full_face(), **self.crop})
        points = self.landmarks
        plain = isinstance(points, list | tuple) and all(
            isinstance(p, list | tuple) for p in points
        )
        numbers = [number for point in points for number in point] if plain else [None]
        if [len(point) for point in points if plain] not in ([], [2] * 5) or not all(
            _is_within(number, -10, 10) for number in numbers
        ):
            raise ModelError(f"{self.name}: landmarks are five pairs of numbers")
        object.__setattr__(self, "landmarks", tuple((float(x), float(y)) for x, y in points))
        bounds = {
            "crop margin": (self.crop["margin"], 0.01, 10),
            "crop shift_x": (self.crop["shift_x"], -10, 10),
            "crop shift_y": (self.crop["shift_y"], -10, 10),
        }
        for name, (value, least, most) in bounds.items():
            if not _is_within(value, least, most):
                raise ModelError(f"{self.name}: {name} is a number from {least} to {most}")
        try:
            Calibration(self.temperature, self.uncertain_below, self.prior)
            check_kinds(self)
            read_outs = {
                name: one if isinstance(one, Calibration) else Calibration(**one)
                for name, one in self.read_outs.items()
            }
        except (TypeError, ValueError) as error:
            raise ModelError(f"{self.name}: {one_line(error)}") from error
        object.__setattr__(self, "read_outs", read_outs)

    def calibrate(self, read_out: str) -> Calibration:
        """Return what is known of a read-out; of one without a name of its own, the card's own."""
        own = Calibration(self.temperature, self.uncertain_below, self.prior)
        return self.read_outs.get(read_out, own)

    def with_input(self, size: int, channels: int) -> "ModelCard":
        """Return the card with the input of the model itself.

        Raises:
            ModelError: The card was written for another size.
        """
        if self.sha256 and (size, channels) != (self.input_size, self.channels):
            raise ModelError(
                f"{self.name}: takes {size} px and {channels} channels, its card says "
                f"{self.input_size} px and {self.channels}"
            )
        return replace(self, input_size=size, channels=channels)


def locate_card(model: Path) -> Path:
    """Return where the card of a model file lies: beside it, with the suffix ``.json``."""
    return model.with_suffix(".json")


def read_card(model: Path, labels: Sequence[str] | None = None) -> ModelCard:
    """Return the card of a model file; ``labels`` stand in for a missing one, and override it.

    A whole model in HDF5 has none: a card of its name belongs to the ``.keras`` file beside it.

    Raises:
        ModelError: There is neither card nor labels, or the card is broken.
    """
    path = locate_card(model)
    if model.suffix == ".h5" or not path.is_file():
        if labels is None:
            raise ModelError(
                f"{one_line(model)} has no card ({one_line(path.name)} beside it); name its "
                "outputs in order with --labels a,b,..."
            )
        return ModelCard(model.stem, tuple(labels), input_size=48)
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        if "flip_average" in content:  # what an older version says of two views
            content["views"] = 1 + (content["flip_average"] is True)
        known = {one.name for one in fields(ModelCard)}
        card = ModelCard(**{key: value for key, value in content.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{one_line(path)} is not the card of a model: {one_line(error)}"
        ) from error
    return card if labels is None else replace(card, labels=tuple(labels))


def choose_name(card: ModelCard, names: Sequence[str], asked: str | None) -> str:
    """Return the name of the read-out that is asked for, the first one for None.

    Raises:
        ModelError: There is none of that name.
    """
    if asked is None or asked in names:
        return asked or names[0]
    if len(names) == 1:
        raise ModelError(f"{card.name} has a single read-out: leave --read-out {asked} out")
    raise ModelError(f"{card.name} has the read-outs {', '.join(names)}, not {asked!r}")


def check_answer(model: Path, labels: Sequence[str] | None, read_out: str | None) -> None:
    """See that what is asked of a model goes with its card, before the model is loaded.

    Raises:
        ModelError: The labels are none, or there is no such read-out.
    """
    if labels is None and read_out is None:
        return
    card = read_card(model, labels)
    if card.read_outs:  # a single output may have any name, and the card does not tell it
        choose_name(card, tuple(card.read_outs), read_out)


def format_card(card: ModelCard) -> str:
    """Return the card as JSON text."""
    return json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n"
