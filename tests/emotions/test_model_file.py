"""Model files that others wrote: what Keras saves is loaded alike, and nothing else is."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hostile_models import FOREIGN, HARMLESS, REFUSED

from batchfer.emotions.card import ModelCard, format_card, locate_card
from batchfer.emotions.model_config import parse_model
from batchfer.emotions.model_file import load_network_file
from batchfer.emotions.model_layers import LAYERS, activation
from batchfer.errors import ModelError
from batchfer.schema import EMOTIONS

layers = keras.layers
TESTS = Path(__file__).parents[1]


# --- what Keras saves -----------------------------------------------------------------------------

ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "Activation": [{"activation": "softmax"}],
    "AveragePooling2D": [{"pool_size": 2}, {"pool_size": (3, 2), "strides": 1, "padding": "same"}],
    "BatchNormalization": [{}, {"scale": False, "center": False}, {"trainable": False, "axis": 1}],
    "CenterCrop": [{"height": 4, "width": 5}],
    "Concatenate": [{}, {"axis": 1}],
    "Conv2D": [
        {"filters": 4, "kernel_size": 3},
        {"filters": 6, "kernel_size": (3, 2), "strides": 2, "use_bias": False},
        {"filters": 2, "kernel_size": 2, "dilation_rate": 2, "activation": "gelu",
         "padding": "same", "kernel_regularizer": "l2", "bias_constraint": "non_neg",
         "activity_regularizer": keras.regularizers.L1L2(0.1, 0.2),
         "kernel_initializer": keras.initializers.VarianceScaling(2.0, seed=3)},
    ],
    "Cropping2D": [{"cropping": 1}, {"cropping": ((0, 1), (2, 3))}],
    "Dense": [{"units": 4}, {"units": 4, "use_bias": False, "activation": "selu",
                             "kernel_constraint": keras.constraints.MaxNorm(2)}],
    "DepthwiseConv2D": [{"kernel_size": 3}, {"kernel_size": 2, "depth_multiplier": 2,
                                             "use_bias": False}],
    "Dropout": [{"rate": 0.5}, {"rate": 0, "seed": 3, "noise_shape": (None, 1, 1, 3)}],
    "GaussianDropout": [{"rate": 0.5}],
    "GaussianNoise": [{"stddev": 0.5}],
    "GroupNormalization": [{"groups": 3}, {"groups": -1, "scale": False}],
    "LayerNormalization": [{}, {"axis": [1, 3], "center": False}],
    "LeakyReLU": [{}, {"negative_slope": 0.1}],
    "MaxPooling2D": [{}, {"pool_size": 3, "strides": (1, 2)}],
    "Normalization": [{}, {"mean": [1.0, 2.0, 3.0], "variance": [1.0, 4.0, 9.0]},
                      {"axis": (1, 3)}, {"axis": None, "mean": 1.0, "variance": 2.0}],
    "PReLU": [{}, {"shared_axes": [1, 2]}],
    "Permute": [{"dims": (3, 1, 2)}],
    "ReLU": [{}, {"max_value": 6, "negative_slope": 0.1, "threshold": 0.5}],
    "Rescaling": [{"scale": 0.5}, {"scale": [0.5, 1, 2], "offset": [1, 2, 3]}],
    "Reshape": [{"target_shape": (4, -1)}],
    "Resizing": [{"height": 4, "width": 5}, {"height": 4, "width": 9, "interpolation": "nearest",
                                             "crop_to_aspect_ratio": True}],
    "SeparableConv2D": [{"filters": 4, "kernel_size": 3},
                        {"filters": 4, "kernel_size": 3, "depth_multiplier": 2,
                         "use_bias": False}],
    "Softmax": [{}, {"axis": [1, 2]}],
    "SpatialDropout2D": [{"rate": 0.5}],
    "UnitNormalization": [{}, {"axis": [1, 3]}],
    "UpSampling2D": [{}, {"size": (2, 3), "interpolation": "bilinear"}],
    "ZeroPadding2D": [{}, {"padding": ((0, 1), (2, 3))}],
}  # fmt: skip
MERGING = ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract")
CASES = [
    (name, arguments)
    for name in LAYERS
    if name != "InputLayer"
    for arguments in ARGUMENTS.get(name, [{}])
]


def make_with(name: str, arguments: dict[str, Any], width: int = 6) -> keras.Model:
    """Return a small network around one layer, with weights that are all different."""
    pixels = keras.Input((8, width, 3))
    layer = getattr(layers, name)(**arguments)
    outputs = layer([pixels, layers.ReLU()(pixels)] if name in MERGING else pixels)
    model = keras.Model(pixels, layers.Dense(7, activation="softmax")(layers.Flatten()(outputs)))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.1, 1, weight.shape) for weight in model.weights])
    if name == "Normalization":
        layer.finalize_state()
    return model


def assert_same(path: Path, own: Any = None) -> None:
    """Check that a file gives what Keras' own loader makes of it, to the last bit."""
    own, theirs = own or load_network_file(path), keras.saving.load_model(path, compile=False)
    pixels = np.random.default_rng(1).uniform(0, 255, (3, *theirs.input_shape[1:]))
    pixels = pixels.astype(np.float32)
    np.testing.assert_array_equal(own(pixels, training=False), theirs(pixels, training=False))
    np.testing.assert_array_equal(own.predict(pixels, verbose=0), theirs.predict(pixels, verbose=0))
    assert [weight.path for weight in own.weights] == [weight.path for weight in theirs.weights]
    for weight, other in zip(own.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(weight, other)
        assert (weight.dtype, weight.trainable) == (other.dtype, other.trainable)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda value: str(value)[:60])
def test_each_layer_is_as_keras_saved_it(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    make_with(name, arguments).save(tmp_path / "a.keras")
    assert_same(tmp_path / "a.keras")


def test_each_activation_is_known_to_keras() -> None:
    from keras.src.activations import ALL_OBJECTS_DICT

    spatial = {"glu"}  # halves the channels
    for name in set(ALL_OBJECTS_DICT) - spatial:
        assert activation(name) == name
    model = make_with("Activation", {"activation": "mish"})
    assert load_saved(model).layers[1].activation is keras.activations.mish


def load_saved(model: keras.Model, folder: Path | None = None) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as home:
        model.save(Path(home) / "a.keras")
        return load_network_file(Path(home) / "a.keras")


def mixed_graph() -> keras.Model:
    """Shared layers, networks in networks, two outputs, a network as the last layer."""
    inner = keras.Input((None, None, 3))
    twice = keras.Model(inner, [layers.Conv2D(2, 3)(inner), layers.Conv2D(2, 3)(inner)])
    chain = keras.Sequential([layers.Conv2D(3, 1), layers.BatchNormalization(), layers.ReLU()])
    pixels = keras.Input((8, 8, 3))
    relu, shared = layers.ReLU(), layers.Conv2D(3, 1)
    features = relu(shared(relu(shared(pixels))))
    left, right = twice(chain(features, training=False))
    features = layers.GlobalMaxPooling2D()(layers.Concatenate()([left, right, left]))
    start = keras.Input((6,))
    head = keras.Model(start, layers.Dense(7, activation="softmax")(start))
    return keras.Model(pixels, head(features))


def chain_of_models() -> keras.Model:
    base = mixed_graph()
    short = keras.Model(base.input, base.layers[-2].output)
    return keras.Sequential([short, layers.Dropout(0.5), layers.Dense(7, activation="softmax")])


def trained() -> keras.Model:
    model = mixed_graph()
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy", keras.metrics.AUC()])
    model.fit(np.zeros((7, 8, 8, 3)), np.eye(7), verbose=0)
    return model


def half_frozen() -> keras.Model:
    model = mixed_graph()
    for layer in model.layers[:4]:
        layer.trainable = False
    return model


def mixed_precision() -> keras.Model:
    pixels = keras.Input((8, 8, 3), dtype="uint8")
    features = layers.Conv2D(2, 3, dtype="mixed_float16")(layers.Rescaling(1 / 255)(pixels))
    features = layers.Flatten(dtype=keras.DTypePolicy("mixed_bfloat16"))(features)
    return keras.Model(pixels, layers.Dense(7, activation="softmax", dtype="float32")(features))


@pytest.mark.parametrize(
    "make",
    [
        mixed_graph,
        chain_of_models,
        trained,
        half_frozen,
        pytest.param(
            mixed_precision,
            marks=pytest.mark.skipif(
                "ONEDNN_MAX_CPU_ISA" in os.environ,
                reason="TensorFlow asks the processor for half precision, not what holds it back",
            ),
        ),
    ],
)
def test_each_graph_is_as_keras_saved_it(make: Any, tmp_path: Path) -> None:
    make().save(tmp_path / "a.keras")
    assert_same(tmp_path / "a.keras")


@pytest.mark.parametrize("name", ["mobilenetv2", "vgg19"])
def test_the_shipped_models_are_as_keras_saved_them(name: str) -> None:
    assert_same(TESTS.parent / "models" / f"{name}.keras")


# --- what is refused ------------------------------------------------------------------------------


def describe(name: str) -> dict[str, Any]:
    """Return the description that Keras writes of a network around one layer."""
    arguments = ARGUMENTS.get(name, [{}])[-1]
    config: dict[str, Any] = json.loads(make_with(name, arguments).to_json())
    return config


@pytest.mark.parametrize("name", LAYERS)
def test_a_foreign_value_is_refused_under_each_key_of_each_layer(name: str) -> None:
    config = describe(name if name != "InputLayer" else "Flatten")
    parse_model(config)  # is fine as it is
    found = config["config"]["layers"]
    index = next(i for i, one in enumerate(found) if one["class_name"] == name)
    keys = set(found[index]["config"])
    assert keys <= set(LAYERS[name]) | {"name", "trainable", "dtype", "activity_regularizer"}
    for key in keys | set(LAYERS[name]):
        for what, value in FOREIGN.items():
            changed = copy.deepcopy(config)
            changed["config"]["layers"][index]["config"][key] = value
            with pytest.raises(ValueError) as error:
                parse_model(changed)
            expected = f"config.layers[{index}].config.{key}"
            assert str(error.value).startswith(expected), (what, str(error.value))
            assert "\n" not in str(error.value)


def test_a_foreign_value_is_refused_under_each_key_around_a_layer() -> None:
    config = describe("Conv2D")
    places = {"module", "class_name", "config", "registered_name", "build_config", "name",
              "inbound_nodes", "shared_object_id", "spec_name"}  # fmt: skip
    for key in places:
        for value in FOREIGN.values():
            changed = copy.deepcopy(config)
            changed["config"]["layers"][1][key] = value
            with pytest.raises(ValueError, match=r"config\.layers\[1\]|calls|graph"):
                parse_model(changed)
    for key in config["config"]:
        for value in FOREIGN.values():
            changed = copy.deepcopy(config)
            changed["config"][key] = value
            with pytest.raises(ValueError, match=f"config.{key}"):
                parse_model(changed)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shared_object_in_scale", r"config\.layers\[1\]\.config\.scale: a dictionary does not"),
        ("lambda", r"config\.layers\[7\]\.class_name: batchfer does not load Lambda"),
        (
            "activation",
            r"config\.layers\[2\]\.config\.layers\[1\]\.config\.activation: a dictionary",
        ),
        ("lies_about_packing", "model.weights.h5 declares too many bytes"),
        ("bomb_member", "metadata.json declares too many bytes"),
        ("hidden_directory", "not a Keras archive"),
        ("loop", "inputs are made nowhere"),
        ("many_calls", "more than 2000 calls"),
        ("many_layers", "1 to 2000 layers"),
        ("wide_dense", r"the arrays of layers/dense are \[\(1280, 7\)"),
        ("large_picture", "makes too much of a picture"),
        ("slow_pooling", "makes too much of a picture"),
        ("larger_by_a_list", "scale is not of the shape of a picture"),
        ("ladder", "'ladder/b' is another name of an object"),
        ("missing", "the arrays of layers/dense are missing"),
        ("surplus_elsewhere", "x belongs to no layer"),
    ],
)
def test_a_refusal_says_where_and_why(
    name: str, reason: str, narrow_model: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(narrow_model, tmp_path / "a.keras"))
    REFUSED[name](path)
    with pytest.raises(ModelError, match=rf"a\.keras: .*{reason}"):
        load_network_file(path)


@pytest.mark.slow
def test_nothing_but_the_model_is_touched_by_loading_it(narrow_model: Path, tmp_path: Path) -> None:
    """Each hostile file, and good ones, in a process that hears of all that is done."""
    changes = {"toy": lambda path: None} | HARMLESS | REFUSED
    paths = {name: tmp_path / f"{name}.keras" for name in changes}
    for name, change in changes.items():
        shutil.copy(narrow_model, paths[name])
        locate_card(paths[name]).write_text(format_card(ModelCard(name, EMOTIONS, 32)))
        change(paths[name])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = subprocess.run(
        [sys.executable, str(TESTS / "audited_load.py"), ",".join(EMOTIONS),
         *(str(path) for path in paths.values())],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    wrong = {}
    for name, path in paths.items():
        result = results[str(path)]
        wanted = ("refused", 5) if name in REFUSED else ("loaded", None)
        fine = (result["outcome"], result.get("exit_code")) == wanted
        message = result.get("message", "")
        if (
            not fine or result["events"] or result["deserialized"]
            or not message.isprintable() or len(message) > 600
        ):  # fmt: skip
            wrong[name] = result
    assert not wrong
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
