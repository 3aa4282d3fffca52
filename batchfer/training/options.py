"""What can be asked of training and evaluation, each option said once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast, get_args, get_type_hints

from batchfer.errors import UsageError
from batchfer.options import (
    HOW,
    WHAT,
    WRITE,
    Device,
    FaceThreshold,
    Flag,
    Labels,
    MinFace,
    Model,
    Rescale,
    Views,
    WholePicture,
)

DATA = "Data"
NETWORK = "Network and run"

KEPT = "kept"
"""Marks what has to be the same to do the same run again."""

INPUT = "input"
"""Marks files and models that a run is made of: the same ones, too, wherever they lie."""

RECIPE = "recipe"
"""Marks what a recipe takes up, which is kept in full."""

Precision = Literal["auto", "float32", "bfloat16"]


def parse_precision(text: str) -> Precision:
    """Return the arithmetic that a text names."""
    for name in get_args(Precision):
        if text == name:
            return cast(Precision, name)
    raise UsageError(f"--precision takes auto, float32 or bfloat16, not {text!r}")


Cache = Annotated[
    Path | None,
    Flag("--cache", "Folder for decoded pictures.", HOW, "FOLDER", text="the user's cache"),
]
Strict = Annotated[bool, Flag("--strict", "Refuse broken pictures instead of skipping them.", DATA)]


@dataclass(frozen=True)
class TrainOptions:
    """What a run is given. None leaves a value to the recipe.

    ``base_weights`` is a ``.weights.h5`` file, a whole trained ``.keras`` model, ``"imagenet"`` for
    Keras' download, or ``"none"`` for random ones. ``validation`` is the share of the training data
    that validates where a data set has no validation part of its own. With ``even`` each data set
    is drawn equally often, whatever its size. ``teachers`` are trained models, by name or file,
    whose mean probabilities become ``teacher_share`` of the targets. ``max_minutes`` ends a run in
    time: the cosine schedule then follows whichever of batches and minutes is further.
    """

    data: Annotated[tuple[Path, ...], INPUT]
    output: Path
    model: Annotated[str, Flag("--model", "mobilenetv2 or vgg19.", NETWORK, "NAME"), KEPT] = (
        "mobilenetv2"
    )
    recipe: Annotated[
        str, Flag("--recipe", "finetune, head, scratch or baseline.", NETWORK, "NAME"), RECIPE
    ] = "finetune"
    base_weights: Annotated[
        str,
        Flag(
            "--base-weights",
            "A .weights.h5 file, or a trained .keras to go on from; imagenet downloads, none is "
            "none.",
            NETWORK, "FILE",
        ),
        INPUT,
    ] = "imagenet"  # fmt: skip
    votes: Annotated[
        Path | None,
        Flag("--votes", "FER+ votes, joined by picture name.", DATA, "FILE"),
        INPUT,
    ] = None
    hard_votes: Annotated[
        bool,
        Flag("--hard-votes", "Take the votes' majority as the label.", DATA),
        KEPT,
    ] = False
    even: Annotated[
        bool,
        Flag("--even", "Draw each data set equally often, whatever its size.", DATA),
        KEPT,
    ] = False
    teachers: Annotated[
        tuple[str, ...],
        Flag(
            "--teacher", "A trained model that shares in the targets; may be given again.",
            NETWORK, "MODEL",
        ),
        INPUT,
    ] = ()  # fmt: skip
    teacher_share: Annotated[
        float | None,
        Flag(
            "--teacher-share", "Share of the targets that teachers say, up to 1.", NETWORK, "X",
            text="the recipe's",
        ),
        RECIPE,
    ] = None  # fmt: skip
    validation: Annotated[
        float,
        Flag("--validation", "Share that validates, where no part does.", DATA, "X"),
        KEPT,
    ] = 0.06
    dedupe: Annotated[
        bool,
        Flag("--dedupe", "Keep near-duplicates of validation out of training.", DATA),
        KEPT,
    ] = False
    seed: Annotated[int, Flag("--seed", "Same seed, same draws.", NETWORK, "N", least=0), KEPT] = 0
    epochs: Annotated[
        int | None, Flag("--epochs", "", NETWORK, "N", text="the recipe's"), RECIPE
    ] = None
    batch_size: Annotated[
        int | None,
        Flag("--batch-size", "", NETWORK, "N", text="the recipe's"),
        RECIPE,
    ] = None
    learning_rate: Annotated[
        float | None,
        Flag("--learning-rate", "", NETWORK, "X", text="the recipe's"),
        RECIPE,
    ] = None
    patience: Annotated[
        int | None,
        Flag("--patience", "Stop after so many epochs without a better one.", NETWORK, "N"),
        RECIPE,
    ] = None
    max_minutes: Annotated[
        float | None,
        Flag("--max-minutes", "End in time, fully annealed.", NETWORK, "X"),
        RECIPE,
    ] = None
    precision: Annotated[
        Precision,
        Flag(
            "--precision", "auto, float32 or bfloat16.", NETWORK, "NAME", parse_precision, "auto"
        ),
        KEPT,
    ] = "auto"  # fmt: skip
    resume: Annotated[
        bool, Flag("--resume", "Insist on going on with the run in the folder.", HOW)
    ] = False
    strict: Strict = False
    export_h5: Annotated[bool, Flag("--export-h5", "Write the whole model as HDF5, too.", HOW)] = (
        False
    )
    tensorboard: Annotated[bool, Flag("--tensorboard", "Write TensorBoard events.", HOW)] = False
    cache: Cache = None


def list_marked(*marks: str) -> dict[str, Flag | None]:
    """Return the options of a training that have one of these marks, each with its flag."""
    hints = get_type_hints(TrainOptions, include_extras=True)
    marked = {name: get_args(hint)[1:] for name, hint in hints.items()}
    return {
        name: next((one for one in extras if isinstance(one, Flag)), None)
        for name, extras in marked.items()
        if any(mark in extras for mark in marks)
    }


def goes_on(options: TrainOptions) -> bool:
    """Return whether the run starts from a whole trained model."""
    return Path(options.base_weights).suffix == ".keras"


@dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated, and how.

    ``part`` is ``test`` (all of a data set without parts), ``val``, ``train``, ``all`` or a part's
    own name such as ``PublicTest``. ``votes`` is a table of raters' votes (FER+'s
    columns), joined by picture name: how far the model says what people say is added.
    ``training_data`` is that of the model: figures without its near-duplicates are added. With
    ``unseen`` faces are left out that the model has seen in training, as its card tells.
    ``against`` is another model, by name or file, that is asked about the same faces.
    ``views`` is how many views of a face are averaged, where the card shall not decide.
    ``record`` names the figures under which the summary is kept in the model's card.
    ``end_to_end`` runs detector, crop and model on the pictures; ``canvas_px`` first puts each of
    them in the middle of a grey square of that side; with ``whole_picture`` a small square picture
    in which no face was found is read as one.

    Raises:
        UsageError: Options exclude each other.
    """

    data: tuple[Path, ...]
    output: Path
    model: Model = "mobilenetv2"
    part: Annotated[
        str,
        Flag("--part", "test, val, train, all, PublicTest or PrivateTest.", DATA, "NAME"),
    ] = "test"
    labels: Labels = None
    rescale: Rescale = None
    votes: Annotated[
        Path | None,
        Flag("--votes", "FER+ votes: tell how far raters agree.", DATA, "FILE"),
    ] = None
    training_data: Annotated[
        tuple[Path, ...],
        Flag(
            "--training-data", "Add figures without near-duplicates of these data.",
            DATA, "FOLDER",
        ),
    ] = ()  # fmt: skip
    unseen: Annotated[
        bool, Flag("--unseen", "Leave out faces that the model was trained on.", DATA)
    ] = False
    against: Annotated[
        str | None,
        Flag("--against", "Compare with another model on the same faces.", WHAT, "MODEL"),
    ] = None
    views: Views = None
    end_to_end: Annotated[
        bool, Flag("--end-to-end", "Find the faces, too; a missed one is a mistake.", WHAT)
    ] = False
    canvas_px: Annotated[
        int | None,
        Flag("--canvas", "With --end-to-end: centre pictures on X by X px.", WHAT, "X", least=12),
    ] = None
    whole_picture: WholePicture = False
    min_face_px: MinFace = 40
    face_threshold: FaceThreshold = 0.8
    record: Annotated[
        str | None,
        Flag("--record", "Keep the figures in the model's card, so named.", WRITE, "NAME"),
    ] = None
    strict: Strict = False
    device: Device = "auto"
    cache: Cache = None

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        if self.canvas_px is not None and not self.end_to_end:
            raise UsageError("--canvas goes with --end-to-end")
        if self.whole_picture and not self.end_to_end:
            raise UsageError("--whole-picture goes with --end-to-end")
        if self.whole_picture and self.canvas_px is not None:
            raise UsageError("--whole-picture and --canvas exclude each other")
