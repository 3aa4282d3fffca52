"""A network built as a parsed description says, within the memory and time that one may take."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.emotions.model_config import Call, Part, Reference
from batchfer.emotions.weights_file import Array, compare_shapes, name_groups, take_arrays

Shape = tuple[int | None, ...]

MAX_FEATURES = 2**25
"""Numbers that one layer may make of one picture; VGG19 on 512 px makes half as many."""
MAX_ALL_FEATURES = 2**27
SLOW = 16
"""How much longer than in a matrix product a multiplication, or comparison, takes elsewhere.

As much again in another than single precision.
"""
MAX_KERNEL = 11
"""Side of the kernel of single channels in half precision: oneDNN comes to no end with more."""
MAX_PRODUCTS = 2**37
"""Multiplications for one picture; VGG19 on 512 px takes three quarters of it."""


def _biased(layer: Any, kernels: list[Shape], n_outputs: int) -> list[Shape]:
    return [*kernels, (n_outputs,)] if layer.use_bias else kernels


def _shape_conv(layer: Any, shape: Shape) -> list[Any]:
    kernel = (*layer.kernel_size, (shape[-1] or 0) // layer.groups, layer.filters)
    return _biased(layer, [kernel], layer.filters)


def _shape_depthwise(layer: Any, shape: Shape) -> list[Any]:
    n_channels, times = shape[-1] or 0, layer.depth_multiplier
    return _biased(layer, [(*layer.kernel_size, n_channels, times)], n_channels * times)


def _shape_separable(layer: Any, shape: Shape) -> list[Any]:
    n_channels, times = shape[-1] or 0, layer.depth_multiplier
    depthwise = (*layer.kernel_size, n_channels, times)
    return _biased(layer, [depthwise, (1, 1, n_channels * times, layer.filters)], layer.filters)


def _shape_dense(layer: Any, shape: Shape) -> list[Any]:
    return _biased(layer, [(shape[-1], layer.units)], layer.units)


def _kept(axis: Any, shape: Shape) -> Shape:
    axes = [axis] if isinstance(axis, int) else axis
    return tuple(shape[one] for one in axes)


def _shape_scaled(layer: Any, shape: Shape) -> list[Any]:
    """Return the shapes of gamma and beta."""
    return [_kept(layer.axis, shape)] * (bool(layer.scale) + bool(layer.center))


def _shape_batch(layer: Any, shape: Shape) -> list[Any]:
    return [*_shape_scaled(layer, shape), *[_kept(layer.axis, shape)] * 2]


def _shape_fixed(layer: Any, shape: Shape) -> list[Any]:
    """Return the shapes of the mean, variance and count of a Normalization that learnt them."""
    if layer.input_mean is not None:
        return []
    axes = sorted(axis % len(shape) for axis in layer.axis)
    return [_kept(axes, shape), _kept(axes, shape), ()]


def _shape_prelu(layer: Any, shape: Shape) -> list[Any]:
    shared = layer.shared_axes or ()
    return [tuple(1 if axis in shared else shape[axis] for axis in range(1, len(shape)))]


ARRAYS: Mapping[str, Callable[[Any, Shape], list[Any]]] = {
    "BatchNormalization": _shape_batch,
    "Conv2D": _shape_conv,
    "Dense": _shape_dense,
    "DepthwiseConv2D": _shape_depthwise,
    "GroupNormalization": _shape_scaled,
    "LayerNormalization": _shape_scaled,
    "Normalization": _shape_fixed,
    "PReLU": _shape_prelu,
    "SeparableConv2D": _shape_separable,
}
"""The shapes of a layer's arrays on an input: so that Keras makes none that the file does not hold.
"""


class Builder:
    """Calls Keras' layers as a parsed description says, and fills them from arrays."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        """Keep the arrays, which are taken out as their layers are built."""
        self._arrays = arrays
        self._costs = np.zeros(2)  # features and products of a picture
        self._costs_of: dict[str, npt.NDArray[np.float64]] = {}
        self._shapes: dict[str, Shape] = {}

    def build(self, model: Part, above: str, given: Sequence[Any]) -> Any:
        """Return a network whose arrays lie below the group ``above``.

        ``given`` are the tensors that it is first called on, none for the outermost.
        """
        import keras

        starts = [self._make_input(*one) for one in _pair_inputs(model, given)]
        outputs = {one.layer: [[start]] for one, start in zip(model.inputs, starts, strict=True)}
        names = name_groups(part.class_name for part in model.parts)
        groups = [f"{above}layers/{name}" for name in names]
        layers: dict[str, Any] = {}
        waiting = [
            (part, group, number)
            for part, group in zip(model.parts, groups, strict=True)
            for number in range(len(part.calls))
        ]
        while waiting:
            later = []
            for part, group, number in waiting:
                call, done = part.calls[number], outputs.setdefault(part.name, [])
                inputs = _find(outputs, call.inputs)
                if inputs is None or len(done) < number:
                    later.append((part, group, number))
                    continue
                done.append(self._call(part, call, inputs, layers, group))
            if len(later) == len(waiting):
                raise ValueError(f"{later[0][0].path}: its inputs are made nowhere")
            waiting = later
        ends = _find(outputs, model.outputs)
        if ends is None:
            raise ValueError(f"{model.path}: its outputs are made nowhere")
        return _run(
            model.path,
            keras.Model,
            _single(starts),
            _single(ends),
            name=model.name,
            trainable=model.settings.get("trainable"),
        )

    def _make_input(self, part: Part, given: Any) -> Any:
        import keras

        settings = dict(part.settings)
        shape = settings.get("batch_shape", ())
        if given is not None:
            # A network inside another is built with the sizes that it is called with, all known.
            fits = len(given.shape) == len(shape) and all(
                own in (None, other) for own, other in zip(shape, given.shape, strict=True)
            )
            if not fits:
                raise ValueError(f"{part.path}: {given.shape} does not fit {shape}")
            shape = given.shape
        if not shape or shape[0] is not None or None in shape[1:]:
            raise ValueError(f"{part.path}: its shape is {shape}, not (null, and known sizes)")
        tensor = _run(part.path, keras.Input, **{**settings, "batch_shape": shape})
        self._count(part, [tensor])
        return tensor

    def _call(
        self, part: Part, call: Call, inputs: list[Any], layers: dict[str, Any], group: str
    ) -> list[Any]:
        """Return the outputs of one call of a layer, which is made at its first."""
        import keras

        arrays: list[Array] = []
        made = part.name in layers
        shape = tuple(inputs[0].shape)
        self._check_shape(part, shape)
        if not made and part.parts:
            before = self._costs
            layers[part.name] = self.build(part, f"{group}/", inputs)
            self._costs_of[part.path] = self._costs - before
        elif part.parts:
            self._add(part, self._costs_of[part.path])
        elif not made:
            layer = _run(part.path, getattr(keras.layers, part.class_name), **part.settings)
            arrays = take_arrays(self._arrays, group)
            wanted = ARRAYS.get(part.class_name, lambda _layer, _shape: [])
            compare_shapes(group, arrays, _run(part.path, wanted, layer, shape))
            layers[part.name] = layer
        layer = layers[part.name]
        settings = {} if call.training is None else {"training": call.training}
        listed = call.listed and not part.parts
        given = inputs if listed else _single(inputs)
        outputs = _run(part.path, layer, given, **settings)
        if arrays:
            _run(part.path, layer.set_weights, arrays)
        if not made and part.class_name == "Normalization":
            layer.finalize_state()
        outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        self._count(part, outputs, layer, shape)
        return outputs

    def _check_shape(self, part: Part, shape: Shape) -> None:
        """Refuse what would mix pictures or make one larger, which Keras does not tell."""
        axes = part.settings.get("axis")
        for axis in axes if isinstance(axes, tuple) else [-1 if axes is None else axes]:
            if not 0 < abs(axis) < len(shape):
                raise ValueError(f"{part.path}.axis: {axis} is no axis of a picture {shape}")
        if part.class_name not in ("Normalization", "Rescaling"):
            return
        if self._shapes.setdefault(part.path, shape) != shape:
            raise ValueError(f"{part.path}: is called on two shapes")
        for key in ("scale", "offset"):
            factors = np.shape(part.settings.get(key, 0))
            if _run(part.path, np.broadcast_shapes, factors, shape[1:]) != shape[1:]:
                raise ValueError(f"{part.path}: {key} is not of the shape of a picture")

    def _count(
        self, part: Part, outputs: Sequence[Any], layer: Any = None, shape: Shape = ()
    ) -> None:
        """Refuse a network that makes more numbers of a picture than memory and time allow."""
        for output in outputs:
            # A picture of known size, and one for each that came in.
            known = output.shape[0] is None and None not in output.shape[1:]
            n_features = math.prod(output.shape[1:]) if known else math.inf
            n_inside, n_products = _measure(layer, shape, n_features)
            if max(n_inside, n_features) > MAX_FEATURES:
                raise ValueError(f"{part.path}: makes too much of a picture, {output.shape}")
            self._add(part, np.array([n_features, n_products]))

    def _add(self, part: Part, costs: npt.NDArray[np.float64]) -> None:
        self._costs = self._costs + costs
        if (self._costs > (MAX_ALL_FEATURES, MAX_PRODUCTS)).any():
            raise ValueError(f"{part.path}: makes too much of a picture")


def _measure(layer: Any, shape: Shape, n_made: float) -> tuple[float, float]:
    """Return how many numbers a layer makes on its way to others, and by how many products.

    Comparisons are products, too. Convolutions put zeros around the picture; one of each channel by
    itself that takes strides in a wide window takes them at the end.
    """
    sides, n_channels = shape[1:-1], shape[-1] or 1 if shape else 1
    kernel, times = getattr(layer, "kernel_size", ()), getattr(layer, "depth_multiplier", 0)
    window: int = math.prod(kernel or getattr(layer, "pool_size", ()))
    single = getattr(layer, "compute_dtype", "") == "float32"
    slow = SLOW if single else SLOW**2
    n_inside = 0
    if times and max(kernel) > MAX_KERNEL and not single:
        return math.inf, math.inf
    if kernel:
        margins = (
            (size - 1) * rate for size, rate in zip(kernel, layer.dilation_rate, strict=True)
        )
        wide = [side + margin for side, margin in zip(sides, margins, strict=True)]
        n_inside = math.prod(wide) * n_channels * max(times, 1)
    if times:
        n_mixed = n_made * n_channels * times if hasattr(layer, "filters") else 0
        return n_inside, n_inside * window * slow + n_mixed
    if hasattr(layer, "filters") or hasattr(layer, "units"):
        return n_inside, n_made * window * n_channels
    return n_inside, n_made * (window * slow if window > 1 else 1)


def _pair_inputs(model: Part, given: Sequence[Any]) -> Iterator[tuple[Part, Any]]:
    """Yield the input layers of a network with the tensors that it is called on, None for none."""
    layers = {part.name: part for part in model.parts}
    if given and len(given) != len(model.inputs):
        raise ValueError(f"{model.path}: takes {len(model.inputs)} tensors, not {len(given)}")
    for index, one in enumerate(model.inputs):
        yield layers[one.layer], given[index] if given else None


def _find(
    outputs: Mapping[str, list[list[Any]]], references: Sequence[Reference]
) -> list[Any] | None:
    """Return the tensors that are meant, None where one is not there yet."""
    found = []
    for one in references:
        calls = outputs.get(one.layer, [])
        if one.call >= len(calls) or one.tensor >= len(calls[one.call]):
            return None
        found.append(calls[one.call][one.tensor])
    return found


def _single(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors


def _run(path: str, function: Callable[..., Any], *values: Any, **settings: Any) -> Any:
    """Return what Keras makes, which raises whatever its layers raise."""
    try:
        return function(*values, **settings)
    except Exception as error:
        detail = str(error).strip().splitlines()
        reason = detail[0][:200] if detail else type(error).__name__
        raise ValueError(f"{path}: Keras does not build it ({reason})") from error
