"""What is told of licences."""

import pytest

from batchfer.cli.model_list import tell_models
from batchfer.emotions.card import ModelCard, find_model, read_card
from batchfer.emotions.licences import list_licences
from batchfer.schema import EMOTIONS


def test_each_part_has_its_terms() -> None:
    shipped = read_card(find_model("mobilenetv2"))
    mine = ModelCard("mine", EMOTIONS, 48)
    told = list_licences(shipped, mine)
    assert list(told) == [
        "batchfer (code)", "mtcnn (detector)", "mobilenetv2 (model)", "mine (model)",
    ]  # fmt: skip
    assert told["batchfer (code)"] == "MIT"
    assert "should not be used for commercial purposes" in told["mtcnn (detector)"]
    assert told["mobilenetv2 (model)"] == shipped.licence and "RAF-DB" in shipped.licence
    assert told["mine (model)"] == "not told by its card"


def test_the_list_of_models_tells_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell_models()
    told = capsys.readouterr().out
    for part, terms in list_licences(
        *map(read_card, map(find_model, ("mobilenetv2", "vgg19")))
    ).items():
        assert f"  {part}: {terms}\n" in told
