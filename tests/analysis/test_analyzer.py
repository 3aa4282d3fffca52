"""Tests of the networks at work that need no clip."""

from pathlib import Path

import pytest

from batchfer.analysis.analyzer import Analyzer
from batchfer.emotions.classifier import load_classifier
from batchfer.errors import ModelError, UsageError
from batchfer.options import AnalyzeOptions


@pytest.mark.parametrize(("asked", "averaged"), [(None, 1), (1, 1), (2, 2), (10, 10)])
def test_as_many_views_are_averaged_as_are_asked_for(
    asked: int | None, averaged: int, toy_model: Path
) -> None:
    analyzer = Analyzer(AnalyzeOptions(model=str(toy_model), views=asked), device="cpu")
    assert analyzer.classifier.card.views == averaged


def test_another_number_of_views_is_refused(toy_model: Path) -> None:
    with pytest.raises(UsageError, match="takes 1, 2 or 10, not 3"):
        AnalyzeOptions(model=str(toy_model), views=3)
    with pytest.raises(ModelError, match="3 views are none of"):
        load_classifier(toy_model, views=3)
