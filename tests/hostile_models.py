"""Model files that nobody should load, made of a good one."""

import io
import json
import re
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from batchfer.emotions.weights_file import name_groups

Change = Callable[[Path], None]


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], packed: bool = False) -> None:
    """Change the members of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else 0) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def edit_config(change: Callable[[Any], Any]) -> Change:
    """Change the description of the network; what the change returns replaces it, if anything."""

    def edit(members: dict[str, bytes]) -> None:
        config = json.loads(members["config.json"])
        config = change(config) or config
        members["config.json"] = json.dumps(config).encode()

    return lambda path: rewrite(path, edit)


def edit_weights(change: Callable[[h5py.File], None]) -> Change:
    def edit(members: dict[str, bytes]) -> None:
        folder = Path(tempfile.mkdtemp())
        file = folder / "w.h5"
        file.write_bytes(members["model.weights.h5"])
        with h5py.File(file, "r+") as weights:
            change(weights)
        members["model.weights.h5"] = file.read_bytes()
        shutil.rmtree(folder)

    return lambda path: rewrite(path, edit)


# --- archives -----------------------------------------------------------------------------------


def add_member(name: str) -> Change:
    return lambda path: rewrite(path, lambda members: members.update({name: b"x"}))


def set_member(name: str, content: bytes) -> Change:
    return lambda path: rewrite(path, lambda members: members.update({name: content}))


def duplicate_member(path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("config.json", "{}")


def link_member(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "metadata.json" else 0o100644) << 16
            archive.writestr(info, content)


def bomb_member(path: Path) -> None:
    bomb = lambda members: members.update({"metadata.json": b" " * 8_000_000})  # noqa: E731
    rewrite(path, bomb, packed=True)


def pack_otherwise(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def lie_about_packing(path: Path) -> None:
    """Weights of zeros, packed a thousandfold, that claim to have been packed tenfold."""
    zeros = b"\0" * 60_000_000
    rewrite(path, lambda members: members.update({"model.weights.h5": zeros}), packed=True)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2")
    assert content[at + 46 :].startswith(b"model.weights.h5")
    content[at + 20 : at + 24] = struct.pack("<L", 6_000_000)
    path.write_bytes(content)


def unpack_more(path: Path) -> None:
    """A description that declares 60 kB and unpacks to 400 MB."""
    much = b" " * 400_000_000
    rewrite(path, lambda members: members.update({"config.json": much}), packed=True)
    content = bytearray(path.read_bytes())
    at = next(
        at.start()
        for at in re.finditer(rb"PK\x01\x02", content)
        if content[at.start() + 46 :].startswith(b"config.json")
    )
    content[at + 16 : at + 20] = struct.pack("<L", zlib.crc32(much[:60_000]))
    content[at + 24 : at + 28] = struct.pack("<L", 60_000)
    path.write_bytes(content)


def encrypt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2")
    content[at + 8] |= 1
    path.write_bytes(content)


def many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        for index in range(2000):
            archive.writestr(f"{index}", b"")


def hide_directory(path: Path) -> None:
    """Behind a small end record stands one for large archives, which readers prefer."""
    many_members(path)
    content = path.read_bytes()
    end = struct.unpack("<4s4H2LH", content[-22:])
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, end[3], end[4], end[5], end[6])
    place = struct.pack("<4sLQL", b"PK\6\7", 0, len(content) - 22, 1)
    small = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, 150, end[6], 0)
    path.write_bytes(content[:-22] + large + place + small)


# --- descriptions -------------------------------------------------------------------------------

LAMBDA = {
    "module": "keras.layers",
    "class_name": "Lambda",
    "registered_name": None,
    "config": {
        "name": "evil",
        "function": {
            "module": "keras.visualization",
            "class_name": "function",
            "config": "plot_image_gallery",
            "registered_name": "plot_image_gallery",
        },
        "arguments": {"path": "written.png"},
    },
}
MARSHALLED = {"class_name": "__lambda__", "config": {"value": "4wEAAAAAAAAAAAAAAAEAAAABAAAA"}}
SYSTEM = {
    "module": "os", "class_name": "function", "config": "system", "registered_name": "system",
}  # fmt: skip
GET_FILE = {
    "module": "keras.utils", "class_name": "function", "config": "get_file",
    "registered_name": "get_file",
}  # fmt: skip
UNSAFE = {
    "module": "keras.config", "class_name": "function",
    "config": "enable_unsafe_deserialization", "registered_name": "enable_unsafe_deserialization",
}  # fmt: skip
FOREIGN: dict[str, Any] = {
    "lambda": LAMBDA,
    "list_of_dictionaries": [LAMBDA, LAMBDA],
    "shared_object": {"shared_object_id": 1, **LAMBDA},
    "only_shared_object": {"shared_object_id": LAMBDA},
    "numpy": {"class_name": "__numpy__", "config": {"value": [1.0], "dtype": "float32"}},
    "typespec": {"class_name": "__typespec__", "spec_name": "x", "module": "os", "config": []},
    "huge": 10**30,
    "very_negative": -1e30,
    "nan": float("nan"),
    "infinite": float("inf"),
    "path": "../../etc/hostname",
    "empty": "",
    "deep": [[[[[[[[[[1]]]]]]]]]],
}
"""What belongs under no key of any layer."""


def layer(class_name: str, module: str = "keras.layers", **config: Any) -> dict[str, Any]:
    config = {"name": "evil", "trainable": True, "dtype": "float32", **config}
    return {
        "module": module,
        "class_name": class_name,
        "config": config,
        "registered_name": None,
        "name": "evil",
    }


def call(*names: str, **kwargs: Any) -> dict[str, Any]:
    tensors = [
        {
            "class_name": "__keras_tensor__",
            "config": {"shape": [None, 3], "dtype": "float32", "keras_history": [name, 0, 0]},
        }
        for name in names
    ]
    return {"args": tensors if len(tensors) == 1 else [tensors], "kwargs": kwargs}


def insert(one: dict[str, Any]) -> Change:
    """Put a layer on the probabilities, as the new output."""

    def change(model: Any) -> None:
        one.setdefault("inbound_nodes", [call("probabilities")])
        model["config"]["layers"].append(one)
        model["config"]["output_layers"] = [one["name"], 0, 0]

    return edit_config(change)


def on_input(*layers: dict[str, Any]) -> Change:
    """Put layers between the pixels and the network, one on the other."""

    def change(model: Any) -> None:
        above = "faces"
        for index, one in enumerate(layers):
            name = f"evil{index}"
            one["name"] = one["config"]["name"] = name
            one["inbound_nodes"] = [call(above)]
            above = name
        model["config"]["layers"][1]["inbound_nodes"] = [call(above)]
        model["config"]["layers"][1:1] = layers

    return edit_config(change)


def set_key(key: str, value: Any, index: int = 1, config: bool = True) -> Change:
    """Set a key of a layer of the outer network; 1 is a Rescaling, 2 the nested base."""

    def change(model: Any) -> None:
        one = model["config"]["layers"][index]
        (one["config"] if config else one)[key] = value

    return edit_config(change)


def set_inner(key: str, value: Any) -> Change:
    """Set a key of a convolution of the nested network."""

    def change(model: Any) -> None:
        layers = model["config"]["layers"][2]["config"]["layers"]
        next(one for one in layers if one["class_name"] == "Conv2D")["config"][key] = value

    return edit_config(change)


def set_top(key: str, value: Any) -> Change:
    return edit_config(lambda model: model["config"].update({key: value}))


def nest_sequential(model: Any) -> None:
    """A Sequential inside, whose compile_config Keras would have built."""
    inner = {
        "module": "keras", "class_name": "Sequential", "registered_name": "Sequential",
        "name": "evil", "build_config": {"input_shape": [None, 7]},
        "compile_config": {"optimizer": LAMBDA, "loss": LAMBDA, "metrics": [LAMBDA]},
        "config": {
            "name": "evil", "trainable": True, "dtype": "float32",
            "layers": [
                {
                    "module": "keras.layers", "class_name": "InputLayer", "registered_name": None,
                    "config": {"batch_shape": [None, 7], "dtype": "float32", "name": "i"},
                },
                {
                    "module": "keras.layers", "class_name": "Softmax", "registered_name": None,
                    "config": {"name": "s", "axis": -1},
                },
            ],
            "build_input_shape": [None, 7],
        },
        "inbound_nodes": [call("probabilities")],
    }  # fmt: skip
    model["config"]["layers"].append(inner)
    model["config"]["output_layers"] = ["evil", 0, 0]


def repeat_names(model: Any) -> None:
    model["config"]["layers"][3]["name"] = model["config"]["layers"][4]["name"]
    model["config"]["layers"][3]["config"]["name"] = model["config"]["layers"][4]["name"]


def nest_deeply(model: Any) -> Any:
    for _ in range(60):
        model = {
            "module": "keras.src.models.functional", "class_name": "Functional",
            "registered_name": "Functional",
            "config": {
                "name": "m", "trainable": True, "layers": [model],
                "input_layers": ["m", 0, 0], "output_layers": ["m", 0, 0],
            },
        }  # fmt: skip
    return model


def many_layers(model: Any) -> None:
    layers = model["config"]["layers"]
    above = "probabilities"
    for index in range(3000):
        one = layer("Softmax")
        one["name"] = one["config"]["name"] = f"s{index}"
        one["inbound_nodes"] = [call(above)]
        layers.append(one)
        above = one["name"]
    model["config"]["output_layers"] = [above, 0, 0]


def wider(model: Any) -> None:
    """The last layer takes more than its array in the file: 336 MB, were they made."""
    layers = model["config"]["layers"]
    resize = layer("Resizing", height=2000, width=2000)
    flatten = layer("Flatten")
    for name, one, above in (("r", resize, "faces"), ("f", flatten, "r")):
        one["name"] = one["config"]["name"] = name
        one["inbound_nodes"] = [call(above)]
    layers[1:1] = [resize, flatten]
    (logits,) = (one for one in layers if one["name"] == "logits")
    logits["inbound_nodes"] = [call("f")]


def nested(one: dict[str, Any], times: int) -> dict[str, Any]:
    """Return a network of one layer, called so many times in a network that holds it alone."""
    start_config = {"batch_shape": [None, None, None, 3], "dtype": "float32"}
    for below in ("inner", "outer"):
        start = layer("InputLayer")
        start.update(name="i", config={**start_config, "name": "i"})
        one["inbound_nodes"] = [call("i"), *(again(one["name"], n) for n in range(times - 1))]
        last = times - (one["class_name"] != "Functional")
        one = {
            "module": "keras", "class_name": "Functional", "registered_name": "Functional",
            "name": below,
            "config": {
                "name": below, "trainable": True, "layers": [start, one],
                "input_layers": ["i", 0, 0], "output_layers": [one["name"], last, 0],
            },
        }  # fmt: skip
    return one


def often(model: Any, times: int, class_name: str = "ReLU") -> None:
    """Put networks in networks between the pixels and the network."""
    pool = {"pool_size": [30, 30], "strides": [1, 1], "padding": "same"}
    one = layer(class_name, **(pool if class_name == "MaxPooling2D" else {}))
    whole = nested(one, times)
    whole["inbound_nodes"] = [call("large")]
    large = layer("Resizing", height=256, width=256)
    large.update(name="large", inbound_nodes=[call("faces")])
    large["config"]["name"] = "large"
    layers = model["config"]["layers"]
    layers[1]["inbound_nodes"] = [again("outer", 1)]
    layers[1:1] = [large, whole]


def again(name: str, number: int) -> dict[str, Any]:
    """Return a call of a layer on what its call of that number made."""
    one = call(name)
    one["args"][0]["config"]["keras_history"][1] = number
    return one


def called_twice(class_name: str, **config: Any) -> Change:
    """A layer is called on a large picture, and then on one that it would make as large."""

    def change(model: Any) -> None:
        layers = model["config"]["layers"]
        sizes = {"large": {"height": 1000, "width": 1000}, "small": {"height": 1, "width": 1}}
        found = [layer("Resizing", **size) for size in sizes.values()]
        found.append(layer(class_name, **config))
        for name, one in zip((*sizes, "twice"), found, strict=True):
            one["name"] = one["config"]["name"] = name
            one["inbound_nodes"] = [call("faces")]
        found[-1]["inbound_nodes"] = [call("large"), call("small")]
        layers[1]["inbound_nodes"] = [again("twice", 1)]
        layers[1:1] = found

    return edit_config(change)


def widen(
    class_name: str, channels: int, n_made: int, kernel: int, side: int = 32, **config: Any
) -> Change:
    """A layer of zeros, all of whose arrays are there, of which Keras makes more than it says."""

    def change(path: Path) -> None:
        times = config.get("depth_multiplier", 1)
        arrays = [np.zeros((kernel, kernel, channels, n_made or times), np.float32)]
        if class_name == "SeparableConv2D":
            arrays = [np.zeros((kernel, kernel, channels, times), np.float32)]
            arrays.append(np.zeros((1, 1, channels * times, n_made), np.float32))
        filters = {"filters": n_made} if n_made else {}
        one = layer(class_name, kernel_size=kernel, use_bias=False, **filters, **config)
        sizes = (layer("Resizing", height=px, width=px) for px in (side, 32))
        on_input(next(sizes), one, next(sizes))(path)

        def add(weights: h5py.File) -> None:
            group = name_groups([class_name])[0]
            for index, array in enumerate(arrays):
                weights[f"layers/{group}/vars/{index}"] = array

        edit_weights(add)(path)

    return change


# --- arrays -------------------------------------------------------------------------------------


def external_link(weights: h5py.File) -> None:
    weights["layers/stolen"] = h5py.ExternalLink("/etc/hostname", "/")


def external_kernel(weights: h5py.File) -> None:
    del weights["layers/dense/vars/0"]
    weights["layers/dense/vars/0"] = h5py.ExternalLink("/tmp/other.h5", "/kernel")


def soft_link(weights: h5py.File) -> None:
    weights["layers/loop"] = h5py.SoftLink("/")


def hard_loop(weights: h5py.File) -> None:
    weights["layers/dense/loop"] = weights["layers"]


def ladder(weights: h5py.File) -> None:
    """Each group holds two links to the next: 2 ** 40 paths in 5 KB."""
    group = weights.create_group("ladder")
    for _ in range(40):
        below = group.create_group("a")
        group["b"] = below
        group = below


def deep_groups(weights: h5py.File) -> None:
    weights.create_group("/".join("abcdefghij"))


def many_objects(weights: h5py.File) -> None:
    for index in range(10_001):
        weights.create_group(f"many/{index}")


def many_names(weights: h5py.File) -> None:
    for index in range(400):
        weights[f"layers/dense/vars/{index + 2}"] = weights["layers/dense/vars/0"]


def declare_much(weights: h5py.File) -> None:
    weights.create_dataset("huge", shape=(1 << 28,), dtype="float32", chunks=(1 << 20,))


def packed_much(weights: h5py.File) -> None:
    """Zeros that gzip makes a thousandth of, in the place of an array."""
    del weights["layers/dense/vars/0"]
    zeros = np.zeros((4000, 4000), np.float32)
    weights.create_dataset("layers/dense/vars/0", data=zeros, compression="gzip")


def large_chunk(weights: h5py.File) -> None:
    """An array of one number in a chunk of 400 MB."""
    weights.create_dataset(
        "huge", data=np.zeros(1, np.float32), maxshape=(None,), chunks=(10**8,), compression="gzip"
    )


def external_data(weights: h5py.File) -> None:
    weights.create_dataset("out", shape=(4,), dtype="u1", external=[("/etc/hostname", 0, 4)])


def virtual_data(weights: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", shape=(4,))
    weights.create_virtual_dataset("layers/dense/vars/2", layout)


def store(**options: Any) -> Callable[[h5py.File], None]:
    return lambda weights: weights.create_dataset("layers/dense/vars/2", **options)


def named_type(weights: h5py.File) -> None:
    weights["layers/kind"] = np.dtype("f4")


def missing(weights: h5py.File) -> None:
    del weights["layers/dense/vars/0"]


def small_numbers(weights: h5py.File) -> None:
    """Bytes, of each of which a network makes four."""
    weights.create_dataset("layers/dense/vars/2", data=np.zeros(2_000_000, np.uint8))


def another_shape(weights: h5py.File) -> None:
    values = weights["layers/dense/vars/0"][()]
    del weights["layers/dense/vars/0"]
    weights["layers/dense/vars/0"] = values.T


def poison(weights: h5py.File) -> None:
    def spoil(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype == np.float32:
            item[...] = np.nan

    weights.visititems(spoil)


REFUSED: dict[str, Change] = {
    # The archive; Keras has met `..` in names of members, and members that unpack without end.
    "text": lambda path: path.write_text("hello") and None,
    "empty": lambda path: path.write_bytes(b"") and None,
    "extra_member": add_member("code.py"),
    "assets": add_member("assets/layers/string_lookup/vocabulary.txt"),
    "member_above": add_member("../evil.json"),
    "member_at_root": add_member("/etc/evil.json"),
    "duplicate_member": duplicate_member,
    "linked_member": link_member,
    "bomb_member": bomb_member,
    "packed_otherwise": pack_otherwise,
    "encrypted": encrypt,
    "lies_about_packing": lie_about_packing,
    "unpacks_more": unpack_more,
    "many_members": many_members,
    "hidden_directory": hide_directory,
    "deep_config": set_member("config.json", b"[" * 100_000),
    "config_list": set_member("config.json", b"[]"),
    "config_number": set_member("config.json", b"1"),
    "config_null": set_member("config.json", b"null"),
    "config_empty": set_member("config.json", b"{}"),
    "config_not_utf8": set_member("config.json", b"\xff\xfe\x00"),
    # What has run code or opened files in Keras.
    "lambda": insert({**LAMBDA, "name": "evil"}),
    "lambda_marshalled": insert(layer("Lambda", function=MARSHALLED)),
    "lambda_unsafe_deserialization": insert(layer("Lambda", function=UNSAFE)),
    "lambda_get_file": insert(
        layer("Lambda", function=GET_FILE, arguments={"origin": "http://localhost/x"})
    ),
    "lambda_load_model": insert(
        layer("Lambda", function={**GET_FILE, "module": "keras.models", "config": "load_model"},
              arguments={"filepath": "other.keras", "safe_mode": False})
    ),
    "lambda_inputs_by_name": insert(
        {**LAMBDA, "name": "evil", "inbound_nodes": [{"args": [], "kwargs": {"inputs": "x"}}]}
    ),
    "lambda_alone": edit_config(lambda model: LAMBDA),
    "torch_module": insert(layer("TorchModuleWrapper", module="gASVAAAAAA==")),
    "tfsm": insert(layer("TFSMLayer", filepath="folder")),
    "tfsm_in_scale": set_key("scale", layer("TFSMLayer", filepath="folder")),
    "string_lookup": insert(layer("StringLookup", vocabulary="/etc/hostname")),
    "integer_lookup": insert(layer("IntegerLookup", vocabulary="/etc/hostname")),
    "text_vectorization": insert(layer("TextVectorization", vocabulary="/etc/hostname")),
    "feature_space": insert(layer("FeatureSpace", "keras.utils", features={"x": LAMBDA})),
    "discretization": insert(layer("Discretization", num_bins=2)),
    "time_distributed": insert(layer("TimeDistributed", layer=LAMBDA)),
    "bidirectional": insert(layer("Bidirectional", layer=LAMBDA)),
    "rnn": insert(layer("RNN", cell=LAMBDA)),
    "spectral": insert(layer("SpectralNormalization", layer=LAMBDA)),
    "system": insert({**SYSTEM, "name": "evil"}),
    "function": insert(layer("function", "builtins")),
    "get_file": insert({**GET_FILE, "name": "evil"}),
    "unsafe_deserialization": insert({**UNSAFE, "name": "evil"}),
    "typespec": insert({**FOREIGN["typespec"], "name": "evil"}),
    "known_name_of_elsewhere": insert(layer("Dense", "os")),
    "known_name_of_a_file": insert(layer("Dense", "batchfer.evil")),
    "registered": set_key("registered_name", "evil>Rescaling", config=False),
    "registered_otherwise": set_key("registered_name", "Lambda", config=False),
    "operation": insert({**layer("TrueDivide", "keras.src.ops.numpy")}),
    "user_model": edit_config(lambda model: model.update(class_name="Evil", module="evil")),
    # Both ways past the check that walked over the classes.
    "shared_object_in_scale": set_key("scale", {"shared_object_id": LAMBDA}),
    "shared_object_with_class": set_key("scale", FOREIGN["shared_object"]),
    "shared_object_in_dtype": set_key(
        "dtype",
        {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"},
         "registered_name": None, "shared_object_id": LAMBDA},
    ),
    "compile_config_in_the_wrong_place": set_key("compile_config", {"loss": LAMBDA}),
    # Dictionaries where Keras would build them.
    "activation": set_inner("activation", LAMBDA),
    "activation_function": set_inner("activation", SYSTEM),
    "activation_name": set_inner("activation", "keras.utils>get_file"),
    "initializer": set_inner("kernel_initializer", SYSTEM),
    "initializer_config": set_inner(
        "kernel_initializer",
        {"module": "keras.initializers", "class_name": "Constant", "config": {"value": LAMBDA}},
    ),
    "regularizer": set_inner("kernel_regularizer", LAMBDA),
    "constraint": set_inner("bias_constraint", GET_FILE),
    "dtype": set_inner("dtype", {**SYSTEM, "class_name": "DTypePolicy"}),
    "dtype_map": set_inner(
        "dtype", {"module": "keras", "class_name": "DTypePolicyMap", "config": {"policy_map": {}}}
    ),
    "quantization": set_key("quantization_config", LAMBDA, 5),
    "lora": set_key("lora_rank", 4, 5),
    "build_config": set_key("build_config", {"input_shape": LAMBDA}, config=False),
    "build_config_class": set_key("build_config", LAMBDA, config=False),
    "unknown_key": set_key("custom_objects", {}),
    "unknown_key_outside": set_key("spec_name", "x", config=False),
    "argument": set_key("inbound_nodes", [call("faces", inputs=LAMBDA)], config=False),
    "mask": set_key("inbound_nodes", [call("faces", mask=LAMBDA)], config=False),
    "constant_for_a_tensor": set_key(
        "inbound_nodes", [{"args": [FOREIGN["numpy"]], "kwargs": {}}], config=False
    ),
    "dictionary_of_inputs": set_top("input_layers", {"x": ["faces", 0, 0]}),
    # Graphs that lead nowhere.
    "loop": set_key("inbound_nodes", [call("base")], config=False),
    "itself": set_key("inbound_nodes", [call("scale")], config=False),
    "unknown_layer": set_key("inbound_nodes", [call("nobody")], config=False),
    "no_calls": set_key("inbound_nodes", [], config=False),
    "old_calls": set_key("inbound_nodes", [[["faces", 0, 0, {}]]], config=False),
    "calls_null": set_key("inbound_nodes", None, config=False),
    "unknown_output": set_top("output_layers", ["nobody", 0, 0]),
    "output_of_another_call": set_top("output_layers", ["probabilities", 7, 0]),
    "second_output": set_top("output_layers", ["probabilities", 0, 1]),
    "negative_output": set_top("output_layers", ["probabilities", -1, 0]),
    "no_outputs": set_top("output_layers", []),
    "input_is_a_layer": set_top("input_layers", ["scale", 0, 0]),
    "same_names": edit_config(repeat_names),
    "layers_dictionary": set_top("layers", {"a": LAMBDA}),
    "layers_null": set_top("layers", None),
    "layers_numbers": set_top("layers", [1, 2]),
    "models_in_models": edit_config(nest_deeply),
    "class_list": set_key("class_name", ["Dense"], config=False),
    "class_null": set_key("class_name", None, config=False),
    "config_is_null": set_key("config", None, config=False),
    "name_number": set_key("name", 7),
    "name_control": set_key("name", "a\nb\x1b[31m"),
    # More than memory holds.
    "many_layers": edit_config(many_layers),
    "large_picture": on_input(layer("Resizing", height=4096, width=4096)),
    "larger_and_larger": on_input(*(layer("UpSampling2D", size=[8, 8]) for _ in range(4))),
    "huge_margins": on_input(layer("ZeroPadding2D", padding=[[4096, 4096], [4096, 4096]])),
    "slow_pooling": on_input(
        layer("Resizing", height=1500, width=1500),
        layer("MaxPooling2D", pool_size=[500, 500], strides=[1, 1], padding="same"),
    ),
    "larger_by_a_list": on_input(
        layer("MaxPooling2D", pool_size=[32, 32]),
        layer("Rescaling", scale=[[[1.0]]] * 4000),
        layer("Rescaling", scale=[[[1.0]] * 4000]),
    ),
    "networks_called_often": edit_config(lambda model: often(model, 50)),
    "slow_network_called_often": edit_config(lambda model: often(model, 16, "MaxPooling2D")),
    "two_scales": called_twice("Rescaling", scale=[[[1.0]]] * 1000),
    "two_normalizations": called_twice("Normalization", axis=[1, 2], mean=1.0, variance=2.0),
    "pictures_doubled": on_input(layer("Concatenate", axis=0)),
    "axis_of_pictures": on_input(layer("Softmax", axis=-4)),
    "no_pictures": on_input(
        layer("Reshape", target_shape=[32 * 32, 3]), layer("Resizing", height=4096, width=4096)
    ),
    "padded_to_a_ratio": on_input(
        layer("Resizing", height=1, width=4096),
        layer("Resizing", height=4096, width=1, pad_to_aspect_ratio=True),
    ),
    "separable_inside": widen("SeparableConv2D", 3, 3, 1, 1000, depth_multiplier=1024),
    "dilated": widen("DepthwiseConv2D", 3, 0, 64, dilation_rate=[1024, 1024], padding="same"),
    "dilated_convolution": widen("Conv2D", 3, 3, 64, dilation_rate=[1024, 1024], padding="same"),
    "endless_halves": widen("DepthwiseConv2D", 3, 0, 32, 200, padding="same", dtype="float16"),
    "slow_groups": widen("Conv2D", 1, 3, 64, 1000, groups=3, padding="same"),
    "fixed_batch": set_key("batch_shape", [10**4, 32, 32, 3], 0),
    "open_sizes": set_key("batch_shape", [None, None, None, 3], 0),
    "many_calls": set_key("inbound_nodes", [call("faces")] * 2000, config=False),
    "many_units": set_key("units", 10**9, 5),
    "wide_dense": edit_config(wider),
    "many_filters": on_input(layer("Conv2D", filters=65_536, kernel_size=[1024, 1024])),
    # Arrays.
    "external_link": edit_weights(external_link),
    "external_kernel": edit_weights(external_kernel),
    "soft_link": edit_weights(soft_link),
    "hard_loop": edit_weights(hard_loop),
    "ladder": edit_weights(ladder),
    "deep_groups": edit_weights(deep_groups),
    "many_objects": edit_weights(many_objects),
    "many_names": edit_weights(many_names),
    "external_data": edit_weights(external_data),
    "virtual_data": edit_weights(virtual_data),
    "declares_much": edit_weights(declare_much),
    "packed_much": edit_weights(packed_much),
    "large_chunk": edit_weights(large_chunk),
    "small_numbers": edit_weights(small_numbers),
    "other_filter": edit_weights(store(data=np.zeros((64, 64)), compression="lzf")),
    "texts": edit_weights(store(data=["a", "b"], dtype=h5py.string_dtype())),
    "compound": edit_weights(store(shape=(2,), dtype=[("a", "f4"), ("b", "f8")])),
    "lists": edit_weights(store(shape=(2,), dtype=h5py.vlen_dtype(np.float32))),
    "references": edit_weights(store(shape=(2,), dtype=h5py.ref_dtype)),
    "complex": edit_weights(store(shape=(2,), dtype="c8")),
    "enumeration": edit_weights(store(shape=(2,), dtype=h5py.enum_dtype({"a": 1}, "i1"))),
    "no_space": edit_weights(store(data=h5py.Empty("f4"))),
    "named_type": edit_weights(named_type),
    "missing": edit_weights(missing),
    "surplus": edit_weights(store(data=np.zeros(7, np.float32))),
    "surplus_elsewhere": edit_weights(lambda file: file.create_dataset("x", data=np.zeros(3))),
    "another_shape": edit_weights(another_shape),
    "nan_weights": edit_weights(poison),
    "no_weights": set_member("model.weights.h5", b"HDF"),
}  # fmt: skip
"""Changes of a good model after which it must not be loaded."""

HARMLESS: dict[str, Change] = {
    # Nothing is compiled, so nobody looks at what it was compiled with.
    "compile_config": edit_config(
        lambda model: model.update(compile_config={"loss": LAMBDA, "optimizer": SYSTEM})
    ),
    "compile_config_of_a_part": set_key("compile_config", {"loss": LAMBDA}, 2, config=False),
    "compile_config_of_a_sequential": edit_config(nest_sequential),
    "metadata": set_member("metadata.json", b"no JSON"),
    "gzip": edit_weights(
        lambda file: file.create_dataset(
            "optimizer/vars/0", data=np.zeros(9), compression="gzip", shuffle=True
        )
    ),
}
"""Changes of a good model that must not matter."""


OLD_CONFIGS = [
    "[]", "7", "null", '"x"', "{", "[" * 10_000,
    '{"config": []}', '{"config": null}', '{"config": 3}', '{"config": {"layers": 3}}',
    '{"config": {"layers": [3]}}', '{"config": {"layers": [null]}}', '{"config": {"layers": {}}}',
    '{"config": {"layers": [{"config": 1}]}}', '{"config": {"layers": [{"config": []}]}}',
    '{"config": {"layers": [{"config": {"batch_shape": 3}}]}}',
    '{"config": {"layers": [{"config": {"batch_shape": [1]}}]}}',
    '{"config": {"layers": [{"config": {"batch_shape": [null, "48"]}}]}}',
    '{"config": {"layers": [{"config": {"batch_shape": [null, 1e400]}}]}}',
    '{"config": {"layers": [{"config": {"batch_shape": {"0": 1}}}]}}',
    json.dumps({"class_name": "Sequential", "config": {"layers": [LAMBDA]}}),
]  # fmt: skip
"""Descriptions of old models that are crooked, or hold code."""


def read_bytes(change: Callable[[h5py.File], None]) -> bytes:
    """Return an HDF5 file as it is written by a function."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        change(file)
    return stream.getvalue()
