"""A trained network made a model with its card: calibrated, halved, described."""

import logging
import platform
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from batchfer import __version__
from batchfer.arrays import Floats, Integers
from batchfer.emotions.architectures import ARCHITECTURES
from batchfer.emotions.card import (
    Calibration,
    ModelCard,
    find_model,
    format_card,
    locate_card,
    read_card,
)
from batchfer.emotions.model_file import load_network_file
from batchfer.emotions.read_outs import LABELS, PEOPLE, keep_read_out
from batchfer.faces.crops import CROP_MARGIN, CROP_SHIFT, FACE_POINTS
from batchfer.files import atomic_write, hash_file
from batchfer.schema import EMOTIONS
from batchfer.training.agreement import measure_agreements
from batchfer.training.face_sets import FaceSet, Splits
from batchfer.training.figures import (
    apply_temperature,
    find_uncertain_below,
    fit_temperature,
    measure,
    measure_calibration_error,
)
from batchfer.training.layouts import VOTES_LICENCE, recognize
from batchfer.training.networks import predict_each
from batchfer.training.options import TrainOptions, goes_on
from batchfer.training.past_runs import PastRun, format_command, format_repeat, format_run
from batchfer.training.people import People
from batchfer.training.recipes import Recipe
from batchfer.training.seen import format_seen

logger = logging.getLogger(__name__)

HALF_TOLERANCE = 0.001
"""The change of validation accuracy that storage in half precision may cause."""


@dataclass(frozen=True)
class Trained:
    """What a run leaves: the model file, its card, and the epochs that it took."""

    model: Path
    card: ModelCard
    history: tuple[Mapping[str, float], ...]

    def tell(self) -> str:
        """Return in a line how good the model is, and whether the run was cut short."""
        accuracy = self.card.figures["validation"]["accuracy"]
        n_done, n_wanted = len(self.history), self.card.recipe["epochs"]
        after = f" after {n_done} of {n_wanted} epochs" if n_done < n_wanted else ""
        return f"{self.model}: {100 * accuracy:.1f} % of the validation faces named right{after}"


def publish(
    model: Any,
    options: TrainOptions,
    recipe: Recipe,
    splits: Splits,
    people: People | None,
    history: Sequence[Mapping[str, float]],
    base_share: float,
    runs: Sequence[PastRun],
) -> Trained:
    """Calibrate a network on the validation faces and write it with its card.

    ``people`` is what people say of the training and of the validation faces, where the network has
    a read-out of it.
    """
    raw = predict_each(model, splits.validation, recipe.views)
    path = options.output / f"{options.model}.keras"
    _save(model, path, raw, splits.validation, recipe.views)
    if options.export_h5:
        with atomic_write(options.output / f"{options.model}.h5") as unfinished:
            export_h5(keep_read_out(model, LABELS), unfinished)
    calibrations = {name: _calibrate(name, one, splits, people) for name, one in raw.items()}
    tempered = {
        name: apply_temperature(one, calibrations[name].temperature) for name, one in raw.items()
    }
    last = list(raw)[-1]  # the read-out that answers by labels
    figures = _describe_validation(tempered[last], raw[last], splits)
    if people is not None:
        figures |= asdict(measure_agreements(tempered, people[1].votes))
    sha256 = hash_file(path)
    runs = [replace(run, sha256=run.sha256 or sha256) for run in runs]
    card = ModelCard(
        name=options.model,
        labels=EMOTIONS,
        input_size=recipe.size_px,
        crop={"margin": CROP_MARGIN, "shift_x": CROP_SHIFT[0], "shift_y": CROP_SHIFT[1]},
        landmarks=FACE_POINTS,
        views=recipe.views,
        **(asdict(calibrations[last]) if len(raw) == 1 else {"read_outs": calibrations}),
        sha256=sha256,
        architecture=recipe.architecture,
        recipe=asdict(recipe),
        command=format_repeat(runs) if len(runs) > 1 else format_command(options),
        runs=[format_run(run) for run in runs],
        base_weights=_describe_base(options, recipe, base_share),
        training_data=_describe_data(splits, options),
        seen_faces=format_seen((splits.training, splits.validation), _read_earlier_cards(options)),
        licence=_describe_licence(splits),
        figures={"validation": figures, "epochs": len(history)},
        versions=_list_versions(),
    )
    with atomic_write(locate_card(path)) as unfinished:
        unfinished.write_text(format_card(card), encoding="utf-8")
    return Trained(path, card, tuple(history))


def _save(
    model: Any, path: Path, raw: Mapping[str, Floats], validation: FaceSet, n_views: int
) -> None:
    """Write a network in half precision, or in full where that changes too many answers.

    ``raw`` is what each read-out says of the validation faces, by its name.
    """

    def measure_accuracy(said: Mapping[str, Floats]) -> dict[str, float]:
        labels = validation.labels
        return {name: float((one.argmax(axis=1) == labels).mean()) for name, one in said.items()}

    with atomic_write(path) as unfinished:
        model.save(unfinished, include_optimizer=False)
        full = unfinished.read_bytes()
        halve_precision(unfinished)
        halved = predict_each(load_network_file(unfinished), validation, n_views)
        before, after = measure_accuracy(raw), measure_accuracy(halved)
        if any(abs(after[name] - before[name]) > HALF_TOLERANCE for name in raw):
            logger.warning("half precision changes accuracy to %s: stored in full", after)
            unfinished.write_bytes(full)


def _calibrate(
    name: str,
    raw: Floats,
    splits: Splits,
    people: People | None,
) -> Calibration:
    """Return what validation faces tell of a read-out: of people by votes, of another by labels."""
    if name == PEOPLE and people is not None:
        voted = people[1].voted
        raw, targets = raw[voted], people[1].shares[voted]
        prior = people[0].find_prior()
    else:
        targets = np.eye(len(EMOTIONS), dtype=np.float32)[splits.validation.labels]
        mean = splits.training.targets.mean(axis=0, dtype=np.float64)
        prior = dict(zip(EMOTIONS, np.maximum(mean, 1e-6).tolist(), strict=True))
    temperature = fit_temperature(raw, targets)
    below = find_uncertain_below(apply_temperature(raw, temperature), targets)
    return Calibration(temperature, below, prior)


def _describe_validation(tempered: Floats, raw: Floats, splits: Splits) -> dict[str, object]:
    labels: Integers = splits.validation.labels
    figures = asdict(measure(tempered, labels))
    del figures["missed_faces"]  # faces were given, not searched for
    figures["ece_before_temperature"] = measure_calibration_error(raw, labels)
    for source in np.unique(splits.validation.sources):
        own = splits.validation.sources == source
        figures[f"accuracy_{source}"] = measure(tempered[own], labels[own]).accuracy
    if splits.repeated is not None:
        figures["near_duplicates_of_training"] = int(splits.repeated.sum())
        figures["training_faces_left_out"] = splits.n_left_out
        kept = ~splits.repeated
        unrepeated = measure(tempered[kept], labels[kept])
        figures["accuracy_without_near_duplicates"] = unrepeated.accuracy
    return figures


def _describe_data(splits: Splits, options: TrainOptions) -> list[dict[str, object]]:
    described = []
    for source in np.unique(splits.training.sources):
        training = splits.training.select(splits.training.sources == source)
        validation = splits.validation.select(splits.validation.sources == source)
        described.append(
            {
                "name": str(source),
                "training_faces": len(training),
                "validation_faces": len(validation),
                "classes": training.count_classes(),
                "licence": recognize(training.names).licence,
            }
        )
    if options.votes is not None:
        described.append({"name": options.votes.name, "licence": VOTES_LICENCE})
    for teacher in options.teachers:
        model = find_model(teacher)
        card = read_card(model)
        described.append(
            {"name": f"teacher {card.name}", "sha256": hash_file(model), "licence": card.licence}
        )
    return described


def _read_earlier_cards(options: TrainOptions) -> list[ModelCard]:
    """Return the cards of the models that a run goes on from, and is taught by."""
    base = [options.base_weights] if goes_on(options) else []
    return [read_card(find_model(one)) for one in (*base, *options.teachers)]


def _describe_licence(splits: Splits) -> str:
    faces = splits.training
    layouts = [recognize(faces.names[faces.sources == one]) for one in np.unique(faces.sources)]
    strict = [layout.model_licence for layout in layouts if layout.model_licence]
    return strict[0] if strict else "as the training data and the base weights allow"


def _describe_base(options: TrainOptions, recipe: Recipe, share: float) -> dict[str, object]:
    if options.base_weights == "none":
        return {"name": "random"}
    described: dict[str, object] = {
        "name": Path(options.base_weights).name,
        "licence": ARCHITECTURES[recipe.architecture].licence,
    }
    if options.base_weights != "imagenet":
        described["sha256"] = hash_file(Path(options.base_weights))
    if goes_on(options):
        described["share_of_final_weights"] = share
    return described


def _list_versions() -> dict[str, str]:
    return {
        "batchfer": __version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "python": platform.python_version(),
    }


def halve_precision(path: Path) -> None:
    """Rewrite the kernels inside a ``.keras`` archive as half-precision numbers, in place.

    Keras reads them back into single precision. Biases and normalization statistics, which are
    small in size and wide in range, stay as they are.
    """
    import h5py

    weights = path.with_name(f"{path.stem}.weights.h5")
    small = path.with_name(f"{path.stem}.half.h5")
    archive = path.with_name(f"{path.stem}.part")

    def copy(source: Any, target: Any) -> None:
        for key, value in source.attrs.items():
            target.attrs[key] = value
        for key, item in source.items():
            if isinstance(item, h5py.Group):
                copy(item, target.create_group(key))
                continue
            values = item[()]
            if values.dtype == np.float32 and values.ndim > 1:
                halved = values.astype(np.float16)
                values = halved if np.isfinite(halved).all() else values
            target.create_dataset(key, data=values)

    try:
        with zipfile.ZipFile(path) as old:
            weights.write_bytes(old.read("model.weights.h5"))
            with h5py.File(weights, "r") as source, h5py.File(small, "w") as target:
                copy(source, target)
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as new:
                for name in ("metadata.json", "config.json"):
                    new.writestr(name, old.read(name))
                new.write(small, "model.weights.h5")
        archive.replace(path)
    finally:
        for temporary in (weights, small, archive):
            temporary.unlink(missing_ok=True)


def export_h5(model: Any, path: Path) -> None:
    """Write a network as one HDF5 file in the form of the original recipe.

    Its input is pixels / 255, scaled outside of the model: the layer that does so is left out.
    """
    base = model.get_layer("base")
    inputs = keras.Input(base.input_shape[1:])
    features = base(inputs)
    for layer in model.layers[model.layers.index(base) + 1 :]:
        features = layer(features)
    keras.Model(inputs, features).save(path)
