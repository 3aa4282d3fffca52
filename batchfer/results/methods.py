"""What a paper tells of an analysis: a paragraph, a table of exclusions, references.

Every number is one of the ``run.json`` of the results, or of the journal beside them.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from batchfer.emotions.card import ModelCard, find_model, read_card
from batchfer.engines import ENGINES, TENSORFLOW
from batchfer.errors import BatchferError
from batchfer.results.facts import ModelFacts, OutputFacts, RunFacts
from batchfer.results.journal import JOURNAL_NAME, Journal
from batchfer.schema import NeutralRecording

_REFERENCES = {
    "batchfer": """@software{batchfer,
  author = {{The batchfer authors}},
  title = {batchfer: batch processing of facial emotions in video and images},
  version = {%s},
  year = {2026}
}""",
    "mtcnn": """@article{zhang2016mtcnn,
  author = {Zhang, Kaipeng and Zhang, Zhanpeng and Li, Zhifeng and Qiao, Yu},
  title = {Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks},
  journal = {IEEE Signal Processing Letters},
  volume = {23}, number = {10}, pages = {1499--1503}, year = {2016}
}""",
    "mobilenetv2": """@inproceedings{sandler2018mobilenetv2,
  author = {Sandler, Mark and Howard, Andrew and Zhu, Menglong and Zhmoginov, Andrey and Chen,
    Liang-Chieh},
  title = {{MobileNetV2}: Inverted Residuals and Linear Bottlenecks},
  booktitle = {CVPR}, year = {2018}
}""",
    "vgg19": """@inproceedings{simonyan2015vgg,
  author = {Simonyan, Karen and Zisserman, Andrew},
  title = {Very Deep Convolutional Networks for Large-Scale Image Recognition},
  booktitle = {ICLR}, year = {2015}
}""",
    "fer2013": """@inproceedings{goodfellow2013fer,
  author = {Goodfellow, Ian J. and others},
  title = {Challenges in Representation Learning: A Report on Three Machine Learning Contests},
  booktitle = {ICONIP}, year = {2013}
}""",
    "ferplus": """@inproceedings{barsoum2016ferplus,
  author = {Barsoum, Emad and Zhang, Cha and Canton Ferrer, Cristian and Zhang, Zhengyou},
  title = {Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label
    Distribution},
  booktitle = {ICMI}, year = {2016}
}""",
    "rafdb": """@inproceedings{li2017rafdb,
  author = {Li, Shan and Deng, Weihong and Du, JunPing},
  title = {Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition
    in the Wild},
  booktitle = {CVPR}, year = {2017}
}""",
}
_SHIPPED_DATA = ("fer2013", "ferplus", "rafdb")
"""What the shipped models were trained on, as models/README.md tells."""


def describe_methods(folders: Sequence[Path], plain: bool = False) -> str:
    """Return what a paper tells of the analysis of these result folders.

    Where the recordings were not analyzed alike, all that differs is named.

    Args:
        folders: The result folders.
        plain: Plain text is wanted, in place of Markdown.

    Raises:
        UsageError: A ``run.json`` cannot be read.
    """
    all_facts = [RunFacts.read(folder) for folder in folders]
    exclusions = _list_exclusions(all_facts, _count_given(folders))
    references = _list_references(all_facts)
    parts = [
        _head("Methods", plain),
        " ".join([_tell_faces(all_facts), _tell_model(all_facts), _tell_doubt(all_facts)]),
        _tell_outputs(all_facts),
        _head("Exclusions", plain),
        _align(exclusions) if plain else _rule(exclusions),
        _head("References", plain),
        references if plain else f"```bibtex\n{references}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(title: str, plain: bool) -> str:
    return f"{title}\n{'-' * len(title)}" if plain else f"## {title}"


def _rule(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; the first row is its head, and numbers follow the first cell."""
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|---|{'---:|' * (len(rows[0]) - 1)}", *rest])


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Return the same table in plain text."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in rows
    )


def _join(values: Iterable[object]) -> str:
    """Return the different values, in the order in which they come, joined by "or"."""
    return " or ".join(dict.fromkeys(str(value) for value in values)) or "an unknown"


def _option(all_facts: Sequence[RunFacts], name: str) -> str:
    return _join(facts.options.get(name, "an unknown") for facts in all_facts)


def _tell_engine(facts: RunFacts) -> str:
    """Return what computed the networks; what older versions do not tell is TensorFlow."""
    name = facts.engine.name or TENSORFLOW
    version = facts.engine.version or facts.versions.get(name, "unknown")
    return f"{ENGINES.get(name, name)} {version}"


def _tell_faces(all_facts: Sequence[RunFacts]) -> str:
    n_frames = sum(facts.frames.analyzed or 0 for facts in all_facts)
    versions = [facts.versions for facts in all_facts]
    sampling = _join(_tell_sampling(facts) for facts in all_facts)
    return (
        f"{len(all_facts)} recordings ({n_frames:,} analyzed frames) were processed with batchfer "
        f"{_join(facts.batchfer for facts in all_facts)} "
        f"({_join(_tell_engine(facts) for facts in all_facts)}, mtcnn "
        f"{_join(told.get('mtcnn', 'unknown') for told in versions)}), analyzing {sampling}. Faces "
        "were found with MTCNN (Zhang et al., 2016) where its score was at least "
        f"{_option(all_facts, 'face_threshold')} and the longer side of the face at least "
        f"{_option(all_facts, 'min_face_px')} px, and followed from frame to frame; tracks were "
        "joined into persons by appearance."
    )


def _tell_sampling(facts: RunFacts) -> str:
    every, fps = facts.options.get("every", 1), facts.options.get("fps")
    told = f"about {fps} frames a second" if fps else "every frame"
    if not fps and every != 1:
        told = f"every {_name_ordinal(every)} frame"
    start, end = facts.part
    if start is not None or end is not None:
        told += f" from {start or 0:g} s to {'the end' if end is None else f'{end:g} s'}"
    return told


def _name_ordinal(number: object) -> str:
    """Return 2nd, 3rd, 11th."""
    digits = str(number)
    is_teen = digits[-2:-1] == "1"
    return digits + ("th" if is_teen else {"1": "st", "2": "nd", "3": "rd"}.get(digits[-1], "th"))


def _tell_model(all_facts: Sequence[RunFacts]) -> str:
    models = {facts.model.sha256: facts.model for facts in all_facts}
    told = []
    for model in models.values():
        read_out = f", read-out {model.read_out}" if model.read_out else ""
        told.append(
            f"{model.name or 'unknown'} (SHA-256 {model.sha256[:16] or 'unknown'}{read_out})"
        )
    text = (
        "Each face was classified as angry, disgusted, fearful, happy, sad, surprised or neutral "
        f"by the network {_join(told)}."
    )
    cards = [card for model in models.values() if (card := _find_card(model))]
    data = dict.fromkeys(one for card in cards if (one := _tell_training(card)))
    licences = dict.fromkeys(card.licence for card in cards if card.licence)
    return " ".join([text, *data, *(f"Its licence: {licence}." for licence in licences)])


def _find_card(model: ModelFacts) -> ModelCard | None:
    """Return the card of a model if it is still at hand, and not another one of its name."""
    try:
        card = read_card(find_model(model.name))
    except BatchferError:
        return None
    return card if card.sha256 == model.sha256 else None


def _tell_training(card: ModelCard) -> str:
    """Return what a model was trained on; teachers are models themselves."""
    told = [one for one in card.training_data if isinstance(one, Mapping)]
    data = [one for one in told if not str(one.get("name")).startswith("teacher ")]
    n_faces = sum(n for one in data if isinstance(n := one.get("training_faces"), int))
    # A licence begins with the name of the data set that it is for, which tells more than a file's.
    names = [str(one.get("licence") or one.get("name")).partition(":")[0] for one in data]
    return f"It was trained on {n_faces:,} faces of {', '.join(names)}." if n_faces else ""


def _tell_doubt(all_facts: Sequence[RunFacts]) -> str:
    limits = (
        facts.options.get("min_confidence") or facts.model.uncertain_below for facts in all_facts
    )
    below = _join("an unknown limit" if limit is None else f"{limit:.3g}" for limit in limits)
    return (
        f"A face counts as uncertain if its greatest probability is below {below}, or if it was "
        "found with a low score, lies partly outside the frame, is blurred, turned away or "
        "covered; no face was left out for that."
    )


def _tell_outputs(all_facts: Sequence[RunFacts]) -> str:
    told = [facts.outputs for facts in all_facts if facts.outputs is not None]
    if not told:
        return ""
    lines = [
        "Statistics weight each frame by the time for which it is shown. Episodes, changes and "
        "peaks come from probabilities smoothed over "
        f"{_join(f'{one.smooth_s:g} s' for one in told)}, all others from the frames as they are."
    ]
    if any(one.main_face for one in told):
        lines.append(f"Tables tell of one face a recording: {_join(map(_tell_main_face, told))}.")
    within = [one.baseline for one in told if one.baseline and one.neutral is None]
    if within:
        lines.append(
            f"Each person's means in {_join(within)} were taken off as the person's neutral."
        )
    lines += _tell_neutral_recordings(all_facts)
    before = {event.baseline_s for one in told for event in one.events} - {None}
    if before:
        lines.append(f"Events were compared with the {_join(sorted(map(str, before)))} s before.")
    return " ".join(lines)


def _tell_main_face(outputs: OutputFacts) -> str:
    chosen = outputs.main_face
    known = {"longest": "the one longest on screen", "largest": "the largest one"}
    return known.get(chosen, chosen) if chosen else "any"


def _tell_neutral_recordings(all_facts: Sequence[RunFacts]) -> list[str]:
    """Return what is to be said of recordings that others were compared with."""
    if not (compared := _list_compared(all_facts)):
        return []
    used = {one.file: one.seconds for one in compared if one.is_usable}
    seconds = sorted(seconds for seconds in used.values() if seconds is not None)
    bounds = dict.fromkeys(f"{bound:.1f}" for bound in [*seconds[:1], *seconds[-1:]])
    there = f", {' to '.join(bounds)} s on screen" if bounds else ""
    n_used = sum(one.is_usable for one in compared)
    return [
        f"From the means of {n_used} of {len(compared)} recordings those of the participant's "
        f"neutral recording were taken off ({len(used)} of these{there}); the others have none."
    ]


def _list_compared(all_facts: Sequence[RunFacts]) -> Sequence[NeutralRecording]:
    """Return what each recording is compared with that is not itself the neutral one of others."""
    return [
        facts.outputs.neutral
        for facts in all_facts
        if facts.outputs is not None
        and facts.outputs.neutral is not None
        and facts.outputs.neutral.file != facts.input
    ]


def _count_given(folders: Sequence[Path]) -> int:
    """Return how many recordings the journals around these folders know, failed ones too."""
    outputs = {
        output
        for folder in folders
        for output in folder.parents
        if (output / JOURNAL_NAME).is_file()
    }
    return sum(len(Journal(output).list_inputs()) for output in outputs)


def _list_exclusions(all_facts: Sequence[RunFacts], n_given: int) -> Sequence[tuple[str, str, str]]:
    """Return a row for each rule: what is left of frames and recordings behind it."""

    def count(name: str) -> int:
        return sum(getattr(facts.frames, name) or 0 for facts in all_facts)

    with_face = sum(bool(facts.frames.with_face) for facts in all_facts)
    rows = [
        ("rule", "frames kept", "recordings kept"),
        ("given", "", str(max(n_given, len(all_facts)))),
        ("could be decoded", f"{count('decoded'):,}", str(len(all_facts))),
        ("analyzed", f"{count('analyzed'):,}", str(len(all_facts))),
        ("with a face", f"{count('with_face'):,}", str(with_face)),
    ]
    if compared := _list_compared(all_facts):
        n_used = sum(one.is_usable for one in compared)
        rows.append(("compared with a neutral recording", "", str(n_used)))
    return rows


def _list_references(all_facts: Sequence[RunFacts]) -> str:
    names = ["batchfer", "mtcnn"]
    for facts in all_facts:
        if facts.model.name in ("mobilenetv2", "vgg19"):
            names += [facts.model.name, *_SHIPPED_DATA]
    versions = _join(facts.batchfer for facts in all_facts)
    texts = [_REFERENCES[name] for name in dict.fromkeys(names)]
    return "\n\n".join([texts[0] % versions, *texts[1:]])
