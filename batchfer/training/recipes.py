"""Recipes: how a network is trained, as declarations; and the runs behind a model, to repeat them.

A card keeps each run that led to its model, the recipe in full, so that a later version of this
program repeats what was done and not what it would do today.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from batchfer.errors import UsageError
from batchfer.training.batches import Augmentation
from batchfer.training.options import TrainOptions, goes_on


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: one readable declaration.

    With ``freeze_base`` only the head is ever trained, else the head alone for ``head_epochs`` and
    then all layers. The ``cosine`` schedule rises over ``warmup`` of all batches to
    ``learning_rate`` and falls to a hundredth of it; ``plateau`` halves it when the validation loss
    has not fallen for three epochs, down to 1e-6. ``fit_normalization`` sets the batch
    normalizations to the training faces before the first step. A ``weight_decay`` above 0 means
    AdamW, with biases and normalization left out. ``average`` is the momentum by batch of the
    averaged weights that are validated and kept; 0 keeps the weights themselves.

    Faces with FER+ votes aim at ``vote_share`` of them, others at labels smoothed by ``smoothing``;
    all aim at ``teacher_share`` of what teachers say, where there are any. From ``calm_from`` of
    all batches the ``calm`` augmentation replaces the strong one. ``per_class`` draws at most that
    many training faces of a class. ``patience`` ends a run after that many epochs without a better
    validation accuracy. ``views`` is how many views of a face the published model averages
    (`batchfer.emotions.views`). ``fit_people`` adds a read-out of what people say in the end, where
    there are votes (`batchfer.training.head`); without epochs that is all.

    With a ``label_loss`` above 0 and votes two read-outs are trained at once: `people` at what
    raters say, and `labels`, whose loss counts so much, at smoothed labels. Then ``vote_share``
    counts nothing, and `people` decides by its log loss. ``freeze_normalization`` keeps the batch
    normalizations as they come.

    A ``momentum`` above 0 means SGD with Nesterov's momentum in place of Adam. Its weight decay is
    apart from the gradient, so that 5e-3 does what 5e-4 within a momentum of 0.9 does. With
    ``same_view`` teachers are asked about each picture as it is trained on, else once about each
    face as it comes.
    """

    architecture: str
    size_px: int
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Literal["constant", "plateau", "cosine"] = "constant"
    freeze_base: bool = False
    fit_normalization: bool = False
    head_epochs: int = 0
    head_learning_rate: float = 1e-3
    warmup: float = 0.06
    weight_decay: float = 0.0
    average: float = 0.0
    vote_share: float = 0.0
    smoothing: float = 0.0
    teacher_share: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)
    calm: Augmentation = field(default_factory=Augmentation)
    calm_from: float = 1.0
    per_class: int | None = None
    validate_on_test: bool = False
    half_precision_pays: bool = False
    views: int = 1
    patience: int | None = None
    fit_people: bool = False
    label_loss: float = 0.0
    freeze_normalization: bool = False
    momentum: float = 0.0
    same_view: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


STRONG = Augmentation(
    rotation=12,
    scale=0.15,
    shift=0.08,
    flip=True,
    brightness=0.12,
    contrast=0.25,
    grey=0.3,
    coarse=0.15,
    erase=0.4,
    mixup=0.2,
)
CALM = replace(STRONG, rotation=6, scale=0.1, shift=0.04, coarse=0.1, erase=0.0, mixup=0.0)

_TRAINED: Mapping[tuple[str, str], Recipe] = {
    ("mobilenetv2", "finetune"): Recipe(
        architecture="mobilenetv2",
        size_px=96,
        epochs=24,
        batch_size=64,
        learning_rate=1e-3,
        schedule="cosine",
        head_epochs=1,
        weight_decay=0.02,
        average=0.998,
        smoothing=0.1,
        augmentation=replace(STRONG, border=0.3),
        calm=replace(CALM, border=0.3),
        calm_from=0.9,
        views=2,
        label_loss=0.5,
        same_view=True,
        settings={"dropout": 0.3},
    ),
    ("vgg19", "finetune"): Recipe(
        architecture="vgg19",
        size_px=48,
        epochs=36,
        batch_size=128,
        learning_rate=3e-4,
        schedule="cosine",
        fit_normalization=True,
        head_epochs=1,
        weight_decay=0.05,
        average=0.998,
        smoothing=0.1,
        augmentation=STRONG,
        calm=CALM,
        calm_from=0.9,
        half_precision_pays=True,
        views=2,
        label_loss=0.5,
        same_view=True,
        settings={"dropout": 0.5},
    ),
    # What reaches 71.5 % of PublicTest's labels in public code (WuJie1010/Facial-Expression-
    # Recognition.Pytorch) and, with a network of eight convolutions, 73.3 % (Khaireddin and Chen
    # 2021): long, from random weights, with momentum and crops of 44 of 48 px.
    ("vgg19", "scratch"): Recipe(
        architecture="vgg19",
        size_px=48,
        epochs=250,
        batch_size=128,
        learning_rate=0.02,
        schedule="cosine",
        warmup=0.02,
        weight_decay=5e-3,
        momentum=0.9,
        average=0.998,
        smoothing=0.1,
        augmentation=Augmentation(
            rotation=10,
            scale=0.2,
            shift=0.1,
            crop=44 / 48,
            flip=True,
            brightness=0.1,
            contrast=0.2,
            grey=0.3,
            coarse=0.1,
            erase=0.4,
            mixup=0.2,
        ),
        calm=Augmentation(rotation=6, scale=0.1, shift=0.04, flip=True, contrast=0.2, grey=0.3),
        calm_from=0.95,
        half_precision_pays=True,
        views=2,
        label_loss=0.5,
        same_view=True,
        settings={"dropout": 0.5},
    ),
    # The two recipes that the project comes from. The author of the first names no sizes: input,
    # batch, shear and zoom are ours.
    ("vgg19", "baseline"): Recipe(
        architecture="vgg19_baseline",
        size_px=48,
        epochs=8,
        batch_size=32,
        learning_rate=1e-4,
        freeze_base=True,
        augmentation=Augmentation(shear=0.2, scale=0.2, flip=True),
        half_precision_pays=True,
    ),
    ("mobilenetv2", "baseline"): Recipe(
        architecture="mobilenetv2_baseline",
        size_px=224,
        epochs=20,
        batch_size=32,
        learning_rate=1e-3,
        schedule="plateau",
        freeze_base=True,
        per_class=1000,
        validate_on_test=True,
    ),
}
RECIPES: Mapping[tuple[str, str], Recipe] = {
    **_TRAINED,
    **{
        (model, "head"): replace(recipe, epochs=0, head_epochs=0, label_loss=0.0, fit_people=True)
        for (model, name), recipe in _TRAINED.items()
        if name == "finetune"
    },
}
"""The recipes by model and name.

`finetune` is the default, `head` fits the last layer of a trained model to votes, `scratch` begins
at random weights, and `baseline` repeats an original recipe.
"""

GOING_ON: Mapping[str, Recipe] = {
    model: replace(
        recipe,
        epochs=12,
        batch_size=48,
        learning_rate=3e-4 if model == "mobilenetv2" else 1e-4,
        freeze_normalization=True,
        fit_normalization=False,
        head_epochs=0,
        warmup=0.03,
        augmentation=replace(
            recipe.augmentation, erase=0.15, mixup=0.0, occlude=0.25, compress=0.15
        ),
        calm=replace(recipe.calm, occlude=0.1, compress=0.1),
    )
    for (model, name), recipe in _TRAINED.items()
    if name == "finetune"
}
"""What `finetune` is for a model that is trained already: shorter steps, the normalization kept."""


def find_recipe(options: TrainOptions) -> Recipe:
    """Return the recipe that the options name, with the values that they override.

    Raises:
        UsageError: There is no such recipe, or a value is out of bounds.
    """
    recipe = RECIPES.get((options.model, options.recipe))
    if recipe is None:
        known = ", ".join(f"--model {model} --recipe {name}" for model, name in RECIPES)
        raise UsageError(f"no recipe {options.recipe!r} for {options.model!r}; there are {known}")
    if options.recipe == "finetune" and goes_on(options):
        recipe = GOING_ON[options.model]
    if options.recipe == "head" and not (options.votes and goes_on(options)):
        raise UsageError(
            "--recipe head fits the last layer of a trained model to votes: give --base-weights "
            "MODEL.keras and --votes FILE"
        )
    if options.recipe == "scratch" and options.base_weights != "none":
        raise UsageError("--recipe scratch begins at random weights: give --base-weights none")
    for name in ("epochs", "batch_size", "learning_rate", "patience"):
        value = getattr(options, name)
        if value is not None:
            if not recipe.epochs:
                raise UsageError(f"--recipe {options.recipe} has no {name}")
            if value <= 0:
                raise UsageError(f"{name} is above 0, not {value}")
            recipe = replace(recipe, **{name: value})
    if options.teacher_share is not None:
        if not options.teachers:
            raise UsageError("a teacher's share needs a --teacher")
        if not 0 < options.teacher_share <= 1:
            raise UsageError(
                f"the teachers' share is above 0 and at most 1, not {options.teacher_share}"
            )
        recipe = replace(recipe, teacher_share=options.teacher_share)
    if not 0 < options.validation < 1:
        raise UsageError(f"the validation share lies between 0 and 1, not {options.validation}")
    return recipe


def trains_people(options: TrainOptions, recipe: Recipe) -> bool:
    """Return whether the read-outs `people` and `labels` are trained at once."""
    return recipe.label_loss > 0 and options.votes is not None and not options.hard_votes


def format_recipe(recipe: Recipe) -> str:
    """Return the recipe as lines of ``name = value``, what ``--dry-run`` prints."""
    return "\n".join(f"{name} = {value}" for name, value in asdict(recipe).items())


SETTINGS = {"dropout", "momentum", "width"}
"""What a recipe may say of its network."""


def cosine_rate(recipe: Recipe, progress: float) -> float:
    """Return the learning rate at a share of the run: a linear rise, then half a cosine."""
    if progress < recipe.warmup:
        return recipe.learning_rate * max(progress / recipe.warmup, 0.01)
    angle = math.pi * min((progress - recipe.warmup) / (1 - recipe.warmup), 1.0)
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(angle)) / 2)


def plateau_rate(
    learning_rate: float,
    losses: Sequence[float],
    factor: float = 0.5,
    patience: int = 3,
    least: float = 1e-6,
) -> float:
    """Return the learning rate after epochs with these validation losses.

    The rate falls by ``factor`` when the loss has not fallen by 1e-4 for ``patience`` epochs, as
    Keras' ReduceLROnPlateau does it.
    """
    best, waited = math.inf, 0
    for loss in losses:
        if loss < best - 1e-4:
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= patience:
            learning_rate, waited = max(learning_rate * factor, least), 0
    return learning_rate
