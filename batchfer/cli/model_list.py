"""What is told of the models at hand."""

import logging
from pathlib import Path

import typer

from batchfer.emotions.card import ModelCard, list_model_folders, read_card
from batchfer.emotions.licences import list_licences
from batchfer.errors import BatchferError, one_line
from batchfer.files import display_name, hash_file

logger = logging.getLogger(__name__)


def build_models() -> None:
    """Make the files of all models at hand for OpenVINO, and tell where they are.

    Raises:
        MachineError: OpenVINO is not installed, or the files cannot be written.
    """
    from batchfer.emotions.classifier import load_classifier
    from batchfer.engines import OPENVINO, choose_engine
    from batchfer.faces.cascade import load_cascade
    from batchfer.machine import hide_stderr
    from batchfer.network_files import see_kept

    choose_engine(OPENVINO)
    with hide_stderr():
        load_cascade(OPENVINO, "/CPU:0")
        for path in list_models():
            load_classifier(path, engine=OPENVINO)
    typer.echo(f"ready for OpenVINO  [{display_name(see_kept())}]")


def make_ready(model: Path) -> None:
    """Make a new model's files for OpenVINO where that will compute it; it does without, too."""
    from batchfer.emotions.classifier import load_classifier
    from batchfer.engines import AUTO, OPENVINO, choose_engine

    if choose_engine(AUTO) != OPENVINO:
        return
    try:
        load_classifier(model, engine=OPENVINO)
    except BatchferError as error:
        logger.warning("%s is not made ready for OpenVINO before its first use: %s", model, error)


def list_models() -> list[Path]:
    """Return the models at hand; of several of one name the one that a command would take."""
    found: dict[str, Path] = {}
    for folder in list_model_folders():
        for path in sorted(folder.glob("*.keras")) if folder.is_dir() else ():
            found.setdefault(path.stem, path)
    return list(found.values())


def tell_models() -> bool:
    """Print a line a model, then all licences; return whether there are any, and all are whole."""
    damaged = False
    cards: list[ModelCard] = []
    seen = list_models()
    for path in seen:
        try:
            card = read_card(path)
        except BatchferError as error:
            damaged = True
            typer.echo(f"{display_name(path.stem)}  {error}")
            continue
        cards.append(card)
        try:
            whole = card.sha256 == hash_file(path)
        except OSError as error:
            damaged = True
            typer.echo(f"{path.stem}  cannot be read: {error.strerror}  [{path}]")
            continue
        damaged = damaged or not whole
        figures = ", ".join(
            f"{one_line(name)} {100 * values['accuracy']:.1f} %"
            for name, values in card.figures.items()
            if isinstance(values, dict) and isinstance(values.get("accuracy"), float)
        )
        state = "whole" if whole else "DAMAGED: its SHA-256 is not the one in its card"
        name = display_name(path.stem)
        typer.echo(f"{name}  {card.input_size} px  {state}  {figures}  [{display_name(path)}]")
    if not seen:
        typer.echo("no models; searched: " + ", ".join(map(str, list_model_folders())), err=True)
    typer.echo("licences:")
    for part, terms in list_licences(*cards).items():
        typer.echo(f"  {one_line(part)}: {one_line(terms)}")
    return bool(seen) and not damaged
