"""Under which licence each part of an analysis stands: the code, the detector, the model."""

from collections.abc import Mapping

from batchfer.emotions.card import ModelCard
from batchfer.faces.finders import FINDERS, USUAL_FINDER

CODE_LICENCE = "MIT"


def list_licences(*cards: ModelCard) -> Mapping[str, str]:
    """Return the terms of each part by its name: code, detector, and the models of these cards."""
    finder = FINDERS[USUAL_FINDER]
    return {
        "batchfer (code)": CODE_LICENCE,
        f"{finder.library} (detector)": finder.licence,
        **{f"{card.name} (model)": card.licence or "not told by its card" for card in cards},
    }
