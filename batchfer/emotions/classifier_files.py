"""A classifier's network out of files, on either engine; made of Keras' model by itself."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from batchfer.arrays import Floats, Images
from batchfer.emotions.card import read_card
from batchfer.emotions.classifier import (
    Loaded,
    Network,
    TensorFlowNetwork,
    check_hash,
    load_from_keras,
)
from batchfer.emotions.model_file import check_size
from batchfer.emotions.read_outs import LastLayer
from batchfer.engines import OPENVINO, TENSORFLOW, tell_version
from batchfer.network_files import (
    FileNetwork,
    load_graphs,
    load_networks,
    save_graph,
    save_graphs,
)

FACES_A_CALL = 2
"""Faces that go through the network in each call, a dummy among them: with the same number every
time a face's numbers are the same in any company.
"""

NETWORK = "classifier"
LAYERS = "last_layers"
"""The files: the network, and for each read-out weights and biases of its last layer."""


class Model(NamedTuple):
    """What networks are made of; see `load_classifier`."""

    path: Path
    labels: Sequence[str] | None
    rescale: float | None
    views: int | None
    device: str
    engine: str


class OpenVinoNetwork:
    """A `Network` out of a file, a fixed number of faces at a time."""

    def __init__(self, network: FileNetwork) -> None:
        """Take it."""
        self._network = network

    def __call__(self, crops: Images) -> Floats:
        """Return the features ``(V,N,F)`` of crops."""
        padding = -len(crops) % FACES_A_CALL
        if padding:
            crops = np.concatenate([crops, np.zeros((padding, *crops.shape[1:]), np.uint8)])
        starts = range(0, len(crops), FACES_A_CALL)
        parts = [self._network(crops[start : start + FACES_A_CALL]) for start in starts]
        return np.concatenate(parts, axis=1)[:, : len(crops) - padding]


def load_from_files(model: Model) -> Loaded:
    """Return a model on its engine; its files are made on first use, and hold what its card says.

    Raises:
        ModelError: As `load_classifier`.
    """
    path, labels, rescale, views, device, engine = model
    check_size(path)
    card = read_card(path, labels)
    card = card if views is None else replace(card, views=views)
    sha256 = check_hash(path, card)
    facts = {
        "sha256": sha256,
        "suffix": path.suffix,
        "size": [card.input_size, card.channels],
        "views": card.views,
        "read_outs": sorted(card.read_outs),
        "rescale": rescale,
        "faces": FACES_A_CALL,
        "device": device,
        "keras": tell_version("keras"),
        "tensorflow": tell_version(TENSORFLOW),
    }

    def load(folder: Path) -> Loaded:
        told = json.loads((folder / f"{LAYERS}.json").read_text(encoding="utf-8"))
        network: Network
        if engine == OPENVINO:
            network = OpenVinoNetwork(FileNetwork(folder / f"{NETWORK}.xml"))
        else:
            graphs = load_graphs(folder, device)
            network = TensorFlowNetwork(getattr(graphs, NETWORK), device, graphs)
        with np.load(folder / f"{LAYERS}.npz", allow_pickle=False) as arrays:
            lasts = {
                name: LastLayer(arrays[f"weights{number}"], arrays[f"biases{number}"])
                if f"weights{number}" in arrays
                else None
                for number, name in enumerate(told["names"])
            }
        fitting = card.with_input(size=told["size"], channels=told["channels"])
        return Loaded(fitting, sha256, network, lasts)

    loaded: Loaded = load_networks(load, __name__, facts, model, engine)
    return loaded


def save_networks(folder: Path, model: Model) -> None:
    """Write a model's files into a folder.

    Raises:
        ModelError: As `load_classifier`.
    """
    loaded = load_from_keras(*model[:-1])
    card = loaded.card
    assert isinstance(loaded.network, TensorFlowNetwork)
    shape = (FACES_A_CALL, card.input_size, card.input_size, 3)
    if model.engine == OPENVINO:
        save_graph(loaded.network.graph, folder, NETWORK, shape)
    else:
        save_graphs(folder, {NETWORK: loaded.network.graph})
    arrays: dict[str, Any] = {}
    for number, last in enumerate(loaded.lasts.values()):
        if last is not None:
            arrays[f"weights{number}"], arrays[f"biases{number}"] = last.weights, last.biases
    np.savez(folder / f"{LAYERS}.npz", **arrays)
    told = {"names": list(loaded.lasts), "size": card.input_size, "channels": card.channels}
    (folder / f"{LAYERS}.json").write_text(json.dumps(told), encoding="utf-8")
