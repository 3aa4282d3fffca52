"""The layers that a model file may hold, and what may stand under each key of their settings.

Numbers, names out of closed lists, and tuples of those, as `LAYERS` says. Anything else is refused,
with the path at which it stands.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[Any], Any]
"""Returns what may be passed on of a value, `UNUSED` for nothing; a ValueError says what is wrong.
"""
UNUSED = object()

MAX_LAYERS = 2000
MAX_MODELS_DEEP = 3


def show(text: str) -> str:
    """Return the beginning of a foreign text, fit to be printed."""
    return ascii(text[:40])[1:-1]


def refuse(value: Any, wanted: str) -> ValueError:
    """Return the complaint that a value does not belong here, but something else."""
    kinds = {dict: "a dictionary", list: "a list", type(None): "null"}
    shown = repr(show(value)) if isinstance(value, str) else str(value)[:20]
    return ValueError(f"{kinds.get(type(value), shown)} does not belong here, but {wanted}")


def integer(least: int, most: int) -> Check:
    """Return a check for whole numbers within bounds."""

    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise refuse(value, f"a whole number from {least} to {most}")
        return value

    return check


def number(least: float = -1e9, most: float = 1e9) -> Check:
    """Return a check for finite numbers within bounds."""

    def check(value: Any) -> float:
        # NaN is not within any bounds.
        if type(value) not in (int, float) or not least <= value <= most:
            raise refuse(value, f"a number from {least:g} to {most:g}")
        return float(value)

    return check


def one_of(*choices: Any) -> Check:
    """Return a check for a closed list of values."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            names = ["null" if choice is None else str(choice) for choice in choices]
            raise refuse(value, " or ".join(names if len(names) <= 4 else [*names[:3], "..."]))
        return value

    return check


def optional(check: Check) -> Check:
    """Return a check that lets null pass, too."""
    return lambda value: None if value is None else check(value)


def unused(check: Check) -> Check:
    """Return a check for a value that must be as it should, but is not passed on."""

    def drop(value: Any) -> Any:
        check(value)
        return UNUSED

    return drop


def sequence(check: Check, least: int = 1, most: int = 8) -> Check:
    """Return a check for lists of so many values; they are passed on as a tuple."""

    def check_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise refuse(value, f"a list of {least} to {most}")
        return tuple(at(f"[{index}]", check, item) for index, item in enumerate(value))

    return check_all


def pair(check: Check) -> Check:
    """Return a check for two values, or for one that stands for both."""

    def check_both(value: Any) -> tuple[Any, ...]:
        if isinstance(value, list):
            return tuple(sequence(check, 2, 2)(value))
        return (check(value),) * 2

    return check_both


def one_or_more(check: Check) -> Check:
    """Return a check for a value, or for a list of up to eight."""

    def check_any(value: Any) -> Any:
        return sequence(check, 0)(value) if isinstance(value, list) else check(value)

    return check_any


def numbers(value: Any, deep: int = 4) -> Any:
    """Check a number, or lists of numbers in up to four dimensions."""
    if not isinstance(value, list):
        return number()(value)
    if not deep or not 1 <= len(value) <= 4096:
        raise refuse(value, "a number, or a list of at most 4096")
    return [numbers(item, deep - 1) for item in value]


def label(value: Any) -> str:
    """Check a name that can be shown and is no path."""
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise refuse(value, "a name of 1 to 200 characters")
    if not value.isprintable() or "/" in value:
        raise ValueError("a name has no control characters and no slash")
    return value


def shapes(value: Any, deep: int = 4) -> Any:
    """Check shapes as Keras keeps them of what a layer was built on."""
    if isinstance(value, dict | list):
        if not deep or len(value) > 64:
            raise ValueError("shapes are not as deep or as many")
        names = value if isinstance(value, dict) else ()
        if not all(name.endswith("shape") or name == "shapes_dict" for name in names):
            raise refuse(value, "shapes")
        for item in value.values() if isinstance(value, dict) else value:
            shapes(item, deep - 1)
    elif value is not None:
        integer(0, 2**31)(value)
    return UNUSED


def at(path: str, check: Check, value: Any) -> Any:
    """Run a check on what stands at a path, and begin its complaint with it."""
    try:
        return check(value)
    except ValueError as error:
        detail = str(error)
        between = "" if detail[:1] in (".", "[") else ": "
        raise ValueError(f"{path}{between}{detail}") from None


def keys(known: Mapping[str, Check], wanted: str, needed: Sequence[str] = ()) -> Check:
    """Return a check for a dictionary, of which each key is known and has a check of its own."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refuse(value, wanted)
        for key in needed:
            if key not in value:
                raise ValueError(f".{key}: is missing")
        kept = {}
        for key, item in value.items():
            if key not in known:
                raise ValueError(f".{show(key)}: an unknown key")
            result = at(f".{key}", known[key], item)
            if result is not UNUSED:
                kept[key] = result
        return kept

    return check


PARTS = frozenset(
    """
    L1 L2 L1L2 MaxNorm MinMaxNorm NonNeg UnitNorm Constant GlorotNormal GlorotUniform HeNormal
    HeUniform LecunNormal LecunUniform Ones Orthogonal OrthogonalRegularizer RandomNormal
    RandomUniform TruncatedNormal VarianceScaling Zeros
    """.split()
)


def _setting(value: Any) -> Any:
    """Check a setting of an initializer, regularizer or constraint."""
    if isinstance(value, str):
        return label(value)
    if value is None or isinstance(value, bool):
        return value
    return one_or_more(number(-(2.0**64), 2.0**64))(value)


def _settings(value: Any) -> None:
    if not isinstance(value, dict) or len(value) > 8:
        raise refuse(value, "a few settings")
    for key, item in value.items():
        at(f".{show(key)}", _setting, item)


shared_id = optional(integer(0, 2**64))
_part = keys(
    {
        "module": one_of("keras.initializers", "keras.regularizers", "keras.constraints"),
        "class_name": one_of(*sorted(PARTS)),
        "config": _settings,
        "registered_name": one_of(None, *sorted(PARTS)),
        "shared_object_id": shared_id,
    },
    "an initializer, a regularizer or a constraint",
)


def part(value: Any) -> Any:
    """Check what makes or bounds weights; it is not built: the weights are in the file."""
    if isinstance(value, str):
        label(value)
    elif value is not None:
        _part(value)
    return UNUSED


def initializer(value: Any) -> str:
    """Check what a weight began as, and begin with zeros instead."""
    part(value)
    return "zeros"


POLICIES = ("float32", "float64", "float16", "mixed_float16", "mixed_bfloat16")
_policy = keys(
    {
        "module": one_of("keras", "keras.dtype_policies"),
        "class_name": one_of("DTypePolicy"),
        "config": keys({"name": one_of(*POLICIES)}, "a name", ["name"]),
        "registered_name": one_of(None, "DTypePolicy"),
        "shared_object_id": shared_id,
    },
    "the precision of a layer",
    ["config"],
)


def policy(value: Any) -> Any:
    """Check the precision of a layer; its name is passed on."""
    if isinstance(value, str):
        return one_of(*POLICIES)(value)
    return _policy(value)["config"]["name"]


boolean = one_of(True, False)
activation = one_of(
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish",
    "mish", "sigmoid", "hard_sigmoid", "hard_silu", "hard_swish", "log_sigmoid", "tanh",
    "hard_tanh", "tanh_shrink", "softmax", "log_softmax", "softplus", "softsign", "exponential",
    "soft_shrink", "hard_shrink", "squareplus", "sparse_plus", "sparse_sigmoid", "sparsemax",
    "threshold",
)  # fmt: skip
axis = integer(-8, 8)
size = integer(1, 65_536)
window = pair(integer(1, 1024))
margins = pair(pair(integer(0, 4096)))
padding = one_of("valid", "same")
# TensorFlow runs `channels_first` on GPUs alone.
channels_last = one_of("channels_last")
seed = unused(optional(integer(-(2**63), 2**64)))
rate = number(0, 1)


def _weight(name: str) -> dict[str, Check]:
    return {
        f"{name}_initializer": initializer,
        f"{name}_regularizer": part,
        f"{name}_constraint": part,
    }


COMMON: Mapping[str, Check] = {
    "name": label, "trainable": boolean, "dtype": policy, "activity_regularizer": part,
}  # fmt: skip
POOLING: Mapping[str, Check] = {
    "pool_size": window, "strides": optional(window), "padding": padding,
    "data_format": channels_last,
}  # fmt: skip
GLOBAL_POOLING: Mapping[str, Check] = {"data_format": channels_last, "keepdims": boolean}
CONVOLUTION: Mapping[str, Check] = {
    "kernel_size": window, "strides": window, "padding": padding, "data_format": channels_last,
    "dilation_rate": window, "activation": activation, "use_bias": boolean, **_weight("bias"),
}  # fmt: skip
SCALED: Mapping[str, Check] = {
    "epsilon": number(0, 1), "center": boolean, "scale": boolean,
    **_weight("beta"), **_weight("gamma"),
}  # fmt: skip

LAYERS: Mapping[str, Mapping[str, Check]] = {
    "Activation": {"activation": activation},
    "Add": {},
    "Average": {},
    "AveragePooling2D": POOLING,
    "BatchNormalization": {
        **SCALED, "axis": axis, "momentum": number(0, 1),
        "moving_mean_initializer": initializer, "moving_variance_initializer": initializer,
        "synchronized": unused(boolean), "renorm": one_of(False), "renorm_clipping": one_of(None),
        "renorm_momentum": unused(number(0, 1)),
    },
    "CenterCrop": {
        "height": integer(1, 4096), "width": integer(1, 4096), "data_format": channels_last,
    },
    "Concatenate": {"axis": axis},
    # For more groups Keras would write code into the temporary folder and run it.
    "Conv2D": {**CONVOLUTION, **_weight("kernel"), "filters": size, "groups": one_of(1)},
    "Cropping2D": {"cropping": margins, "data_format": channels_last},
    "Dense": {
        "units": size, "activation": activation, "use_bias": boolean, **_weight("kernel"),
        **_weight("bias"), "quantization_config": one_of(None),
    },
    "DepthwiseConv2D": {
        **CONVOLUTION, **_weight("depthwise"), "depth_multiplier": integer(1, 1024),
    },
    "Dropout": {
        "rate": rate, "seed": seed,
        "noise_shape": unused(optional(sequence(optional(integer(1, 65_536))))),
    },
    "ELU": {"alpha": number()},
    "Flatten": {"data_format": channels_last},
    "GaussianDropout": {"rate": rate, "seed": seed},
    "GaussianNoise": {"stddev": number(0), "seed": seed},
    "GlobalAveragePooling2D": GLOBAL_POOLING,
    "GlobalMaxPooling2D": GLOBAL_POOLING,
    "GroupNormalization": {**SCALED, "groups": integer(-1, 65_536), "axis": axis},
    "InputLayer": {
        "name": label, "batch_shape": sequence(optional(integer(1, 65_536)), 2, 5),
        "dtype": one_of("float32", "float64", "float16", "uint8", "int32"),
        "sparse": one_of(False), "ragged": one_of(False), "optional": one_of(False),
    },
    "LayerNormalization": {**SCALED, "axis": one_or_more(axis), "rms_scaling": one_of(False)},
    "LeakyReLU": {"negative_slope": number(0)},
    "MaxPooling2D": POOLING,
    "Maximum": {},
    "Minimum": {},
    "Multiply": {},
    "Normalization": {
        "axis": optional(one_or_more(axis)), "invert": boolean, "mean": optional(numbers),
        "variance": optional(numbers),
    },
    "PReLU": {**_weight("alpha"), "shared_axes": optional(sequence(integer(1, 8)))},
    "Permute": {"dims": sequence(integer(1, 8))},
    "ReLU": {"max_value": optional(number(0)), "negative_slope": number(0), "threshold": number(0)},
    "Rescaling": {"scale": numbers, "offset": numbers},
    "Reshape": {"target_shape": sequence(integer(-1, 2**24))},
    "Resizing": {
        "height": integer(1, 4096), "width": integer(1, 4096), "data_format": channels_last,
        "interpolation": one_of("bilinear", "nearest", "bicubic", "lanczos3", "lanczos5"),
        # Keras enlarges the picture as far as the ratio asks before it crops.
        "crop_to_aspect_ratio": boolean, "pad_to_aspect_ratio": one_of(False),
        "fill_mode": one_of("constant"), "fill_value": number(), "antialias": boolean,
    },
    "SeparableConv2D": {
        **CONVOLUTION, **_weight("depthwise"), **_weight("pointwise"), "filters": size,
        "depth_multiplier": integer(1, 1024),
    },
    "Softmax": {"axis": one_or_more(axis)},
    # This layer's constructor takes no "trainable".
    "SpatialDropout2D": {
        "rate": rate, "seed": seed, "data_format": channels_last, "trainable": unused(boolean),
    },
    "Subtract": {},
    "UnitNormalization": {"axis": one_or_more(axis)},
    "UpSampling2D": {
        "size": window, "data_format": channels_last,
        "interpolation": one_of("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"),
    },
    "ZeroPadding2D": {"padding": margins, "data_format": channels_last},
}  # fmt: skip
"""The layers that are built, and what may stand under each key of their settings."""

MODELS = ("Functional", "Sequential")
