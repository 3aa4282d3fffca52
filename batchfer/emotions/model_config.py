"""The description of a network inside a model file, held to a schema.

Keras describes a network by classes and their arguments, and would build whatever is named there.
Here `batchfer.model_layers` lists the layers that may occur and what may stand under each of their
keys. `parse_model` returns them, and nothing else of the file goes any further; any other key or
value is refused, with the path at which it stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from batchfer.emotions.model_layers import (
    COMMON,
    LAYERS,
    MAX_LAYERS,
    MAX_MODELS_DEEP,
    MODELS,
    UNUSED,
    Check,
    at,
    boolean,
    integer,
    keys,
    label,
    one_of,
    policy,
    refuse,
    sequence,
    shapes,
    shared_id,
    show,
    unused,
)


class Reference(NamedTuple):
    """One tensor of a network: the output of a layer's n-th call."""

    layer: str
    call: int
    tensor: int


@dataclass(frozen=True)
class Call:
    """One call of a layer: on a tensor, or where ``listed`` on a list of them."""

    inputs: tuple[Reference, ...]
    listed: bool = False
    training: bool | None = None


@dataclass(frozen=True)
class Part:
    """A layer, or a network with the layers that it is made of.

    ``settings`` are arguments of its constructor; ``path`` is where they stand in the file.
    """

    path: str
    class_name: str
    settings: Mapping[str, Any]
    calls: tuple[Call, ...] = ()
    parts: tuple["Part", ...] = ()
    inputs: tuple[Reference, ...] = ()
    outputs: tuple[Reference, ...] = ()

    @property
    def name(self) -> str:
        """Return the name, by which references mean it."""
        return str(self.settings["name"])

    def count(self) -> int:
        """Return on how many tensors layers are called in it, in all of its calls."""
        inside = sum(part.count() for part in self.parts)
        return sum(max(1, len(call.inputs)) + inside for call in self.calls or (Call(()),))


def parse_model(config: Any) -> Part:
    """Return the network that the configuration in a model file describes.

    Raises:
        ValueError: Something in it is unknown or out of bounds; the message begins with its path.
    """
    try:
        model = _parse_part(config, "config", 0)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(".")) from None
    if not model.parts:
        raise ValueError("class_name: a layer is no network")
    if model.count() > MAX_LAYERS:
        raise ValueError(
            f"config.layers: more than {MAX_LAYERS} calls of layers, or inputs of these"
        )
    return model


def _as_it_is(value: Any) -> Any:
    return value


def _class_name(value: Any) -> str:
    if not isinstance(value, str) or value not in (*LAYERS, *MODELS):
        what = show(value) if isinstance(value, str) else "something without a name"
        raise ValueError(f"batchfer does not load {what}")
    return value


_envelope = keys(
    {
        "module": one_of(
            "keras.layers", "keras", "keras.models", "keras.src.models",
            "keras.src.models.functional", "keras.src.models.sequential",
        ),
        "class_name": _class_name,
        "config": _as_it_is,
        "registered_name": one_of(None, *LAYERS, *MODELS),
        "build_config": shapes,
        # Optimizers, losses and metrics may be of any kind: a model is not compiled here.
        "compile_config": lambda _: UNUSED,
        "name": label,
        "inbound_nodes": _as_it_is,
        "shared_object_id": shared_id,
    },
    "a layer",
    ["module", "class_name", "config"],
)  # fmt: skip


def _parse_part(value: Any, path: str, deep: int) -> Part:
    """Return a layer or network; ``path`` is where its settings stand."""
    envelope = _envelope(value)
    class_name = envelope["class_name"]
    if envelope.get("registered_name") not in (None, class_name):
        raise ValueError(".registered_name: is another name than the class has")
    calls = at(".inbound_nodes", _parse_calls, envelope.get("inbound_nodes", []))
    if class_name not in MODELS:
        common = {} if class_name == "InputLayer" else COMMON
        known = {**common, **LAYERS[class_name]}
        settings = at(".config", keys(known, "settings", ["name"]), envelope["config"])
        part = Part(path, class_name, settings, calls)
    else:
        read = partial(_parse_network, class_name, path, deep)
        part = replace(at(".config", read, envelope["config"]), calls=calls)
    if envelope.get("name", part.name) != part.name:
        raise ValueError(".name: is another one than in its config")
    return part


def _parse_network(class_name: str, path: str, deep: int, config: Any) -> Part:
    if deep >= MAX_MODELS_DEEP:
        raise ValueError(f"more than {MAX_MODELS_DEEP} models, each in the other")
    graph = {"input_layers": _parse_ends, "output_layers": _parse_ends}
    chain = {"dtype": unused(policy), "build_input_shape": shapes}
    known: dict[str, Check] = {
        "name": label, "trainable": boolean, "layers": _as_it_is,
        **(graph if class_name == "Functional" else chain),
    }  # fmt: skip
    needed = ["name", "layers", *(graph if class_name == "Functional" else ())]
    found = keys(known, "a network", needed)(config)
    layers = found.pop("layers")
    if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
        raise ValueError(f".layers: a list of 1 to {MAX_LAYERS} layers belongs here")
    parts = tuple(
        at(f".layers[{index}]", partial(_parse_layer, f"{path}.layers[{index}].config", deep), one)
        for index, one in enumerate(layers)
    )
    if class_name == "Functional":
        inputs, outputs = found.pop("input_layers"), found.pop("output_layers")
    else:
        parts, inputs, outputs = _chain(parts)
        found.pop("trainable", None)  # as Keras does: the layers of a Sequential have their own
    model = Part(path, class_name, found, (), parts, inputs, outputs)
    return _resolve(model)


def _parse_layer(path: str, deep: int, value: Any) -> Part:
    return _parse_part(value, path, deep + 1)


def _chain(
    parts: tuple[Part, ...],
) -> tuple[tuple[Part, ...], tuple[Reference, ...], tuple[Reference, ...]]:
    """Return the layers of a Sequential, each called on the one before, and both ends."""
    if parts[0].class_name != "InputLayer" or any(part.calls for part in parts):
        raise ValueError(".layers: a Sequential begins with its input and has no graph")
    ends = [Reference(part.name, 0, 0) for part in parts]
    linked = (
        replace(part, calls=(Call((before,)),))
        for part, before in zip(parts[1:], ends, strict=False)
    )
    return (parts[0], *linked), (ends[0],), (ends[-1],)


def _resolve(model: Part) -> Part:
    """Return a network whose references are known to mean layers of it."""
    names = {part.name: part for part in model.parts}
    if len(names) < len(model.parts):
        raise ValueError(".layers: two layers have one name")
    for part in model.parts:
        if (part.class_name == "InputLayer") != (not part.calls):
            raise ValueError(f".layers: {part.name} is called never, or is an input and called")
    inner = [one for part in model.parts for call in part.calls for one in call.inputs]
    for reference in (*model.inputs, *model.outputs, *inner):
        if reference.layer not in names:
            raise ValueError(f".layers: {reference.layer} is meant, and not there")
    starts = [Reference(part.name, 0, 0) for part in model.parts if part.class_name == "InputLayer"]
    if sorted(starts) != sorted(model.inputs):
        raise ValueError(".input_layers: are other ones than the layers of that kind")

    # Keras counts the calls of a graph within a graph from 1 where it names the graph's outputs.
    def shift(one: Reference) -> Reference:
        inside = names[one.layer].class_name == "Functional"
        return one._replace(call=one.call - 1) if inside else one

    outputs = tuple(shift(one) for one in model.outputs)
    if any(one.call < 0 for one in outputs):
        raise ValueError(".output_layers: a call before the first")
    return replace(model, outputs=outputs)


def _parse_reference(value: Any) -> Reference:
    if not isinstance(value, list) or len(value) != 3:
        raise refuse(value, "a layer's name, a call and an output")
    count = integer(0, MAX_LAYERS)
    return Reference(label(value[0]), count(value[1]), count(value[2]))


def _parse_ends(value: Any) -> tuple[Reference, ...]:
    """Check the inputs or outputs of a graph: one, or a list of them."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return (_parse_reference(value),)
    return tuple(sequence(_parse_reference, 1, 64)(value))


_tensor = keys(
    {
        "class_name": one_of("__keras_tensor__"),
        "config": keys(
            {
                "shape": shapes,
                "dtype": unused(label),
                "keras_history": _parse_reference,
            },
            "a tensor",
            ["keras_history"],
        ),
    },
    "a tensor",
    ["class_name", "config"],
)
_call = keys(
    {
        "args": sequence(_as_it_is, 1, 1),
        "kwargs": keys(
            {"mask": one_of(None), "training": one_of(None, True, False)}, "a layer's arguments"
        ),
    },
    "a call of a layer",
    ["args"],
)


def _parse_tensor(value: Any) -> Reference:
    reference: Reference = _tensor(value)["config"]["keras_history"]
    return reference


def _parse_calls(value: Any) -> tuple[Call, ...]:
    return tuple(sequence(_parse_call, 0, MAX_LAYERS)(value))


def _parse_call(value: Any) -> Call:
    call = _call(value)
    training = call.get("kwargs", {}).get("training")
    (given,) = call["args"]
    if isinstance(given, list):
        inputs = at(".args[0]", sequence(_parse_tensor, 1, MAX_LAYERS), given)
        return Call(inputs, listed=True, training=training)
    return Call((at(".args[0]", _parse_tensor, given),), training=training)
