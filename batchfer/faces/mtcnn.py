"""The three networks of MTCNN as graphs, and the pyramid's resizing."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from batchfer.faces.cascade import OUTSIDE, PROPOSAL_STRIDE_PX

# Where bfloat16 is fast, the last two layers of the first network look at all cells in it, and
# again in float32 at those whose logit is no further below the threshold than this. In 84 frames of
# eleven clips no logit was off by more than 0.1, and those near the threshold by 0.01 as a rule.
_SCREENING_MARGIN = 0.5
# Dense layers see this many rows in every call, the last of them dummies: kernels for products of
# matrices are chosen by the number of rows, and take the last ones another way.
_DENSE_ROWS = 44
_DUMMY_ROWS = 12
# The cells that the first network looks at again come in multiples of this, likewise.
_CELL_MULTIPLE = 64


def make_cpu_resize(frames: Any) -> Callable[..., Any]:
    """Return a function from a size (height, width) and a slice to frames averaged over areas."""

    def resize(size: Any, part: slice = slice(None)) -> Any:
        return tf.image.resize(frames[part], size, method="area")

    return resize


def make_gpu_resize(frames: Any) -> Callable[..., Any]:
    """Return the same as `make_cpu_resize` in products of matrices.

    TensorFlow averages over areas on the CPU alone, and the way there would cost more than the
    whole network.
    """
    planes = tf.transpose(frames, (0, 3, 1, 2))

    def resize(size: Any, part: slice = slice(None)) -> Any:
        shape = tf.shape(planes)
        rows = tf.matmul(_weigh_areas(shape[2], size[0]), planes[part])
        small = tf.matmul(rows, _weigh_areas(shape[3], size[1]), transpose_b=True)
        return tf.transpose(small, (0, 2, 3, 1))

    return resize


def _weigh_areas(n_pixels: Any, n_cells: Any) -> Any:
    """Return the share ``(n_cells, n_pixels)`` that each pixel has in each equal cell of a line."""
    pixels = tf.range(tf.cast(n_pixels, tf.float64))
    length = tf.cast(n_pixels / n_cells, tf.float64)
    starts = tf.range(tf.cast(n_cells, tf.float64))[:, None] * length
    covered = tf.minimum(starts + length, pixels + 1) - tf.maximum(starts, pixels)
    return tf.cast(tf.maximum(covered, 0) / length, tf.float32)


# The networks. Each maps pixels in [0, 255] to a table whose columns are the four box offsets,
# for the last network ten landmark coordinates, and the logit of being a face.
class Layer(NamedTuple):
    """Weights of a convolution or dense layer, and the slopes of the PReLU after it.

    One that ``is_plain`` is written as other engines know its parts, see `write_plainly`.
    """

    kernel: Any
    bias: Any
    alpha: Any = None
    is_plain: bool = False


def _read_layer(layer: Any, prelu: Any = None) -> Layer:
    alpha = None if prelu is None else np.asarray(prelu.alpha.numpy()).ravel()
    return Layer(layer.kernel.numpy(), layer.bias.numpy(), alpha)


def _read_first_layer(layer: Any, prelu: Any) -> Layer:
    """Return a first layer that takes raw pixels: ``(pixel - 127.5) / 128`` goes into its weights.

    Right because these layers do not pad.
    """
    kernel, bias, alpha, _ = _read_layer(layer, prelu)
    return Layer(kernel / 128, bias - 127.5 / 128 * kernel.sum(axis=(0, 1, 2)), alpha)


def _read_heads(*layers: Any) -> Layer:
    """Return the last layers as one; of the last's two classes, the difference of their logits."""
    kernels = [layer.kernel.numpy() for layer in layers]
    biases = [layer.bias.numpy() for layer in layers]
    kernels[-1] = kernels[-1][..., 1:] - kernels[-1][..., :1]
    biases[-1] = biases[-1][1:] - biases[-1][:1]
    return Layer(np.concatenate(kernels, axis=-1), np.concatenate(biases))


def _read_flattened(layer: Any, prelu: Any, n_channels: int) -> Layer:
    """Return a dense layer that takes maps flattened by rows; mtcnn flattens them by columns."""
    kernel, bias, alpha, _ = _read_layer(layer, prelu)
    side = math.isqrt(kernel.shape[0] // n_channels)
    maps = kernel.reshape(side, side, n_channels, -1).transpose(1, 0, 2, 3)
    return Layer(maps.reshape(kernel.shape), bias, alpha)


def write_plainly(network: Any) -> None:
    """Write a network's layers as other engines know them, which compute PReLU in passing."""
    for name, layer in vars(network).items():
        if isinstance(layer, Layer):
            setattr(network, name, layer._replace(is_plain=True))


def _rectify(x: Any, alpha: Any) -> Any:
    """Return the PReLU of x; x itself without slopes."""
    return x if alpha is None else tf.nn.relu(x) - alpha * tf.nn.relu(-x)


class ProposalNetwork:
    """The first network, which slides over a picture.

    With a type to ``screen`` in, its last two layers, the larger half of its arithmetic, compute
    the logits of all cells in that, and everything in float32 where they come near the threshold.
    """

    def __init__(self, model: Any, screen: Any = None) -> None:
        """Take the weights of mtcnn's network."""
        self.conv1 = _read_first_layer(model.conv1, model.prelu1)
        self.conv2 = _read_layer(model.conv2, model.prelu2)
        self.conv3 = _read_layer(model.conv3, model.prelu3)
        self.heads = _read_heads(model.conv4_1, model.conv4_2)
        self.screen = screen

    def __call__(self, pixels: Any) -> Any:
        """Return the table's columns for every cell, ``(N, H, W, 5)``."""
        return _convolve(_convolve(self._look(pixels), self.conv3), self.heads)

    def find(self, pixels: Any, threshold: float, at_once: int) -> Any:
        """Return frame, row and column of the cells whose logit is above a threshold, ``(M, 8)``.

        Their columns follow. Pictures of more than about ``at_once`` pixels together are looked at
        in strips, so that the maps of one stay in a core's cache.
        """
        n_frames, height, width = tf.unstack(tf.shape(pixels)[:3])
        n_rows = (height - 1) // PROPOSAL_STRIDE_PX - 4
        n_strips = -(-n_frames * height * width // at_once)
        step = -(-n_rows // n_strips)

        def look(strip: Any) -> Any:
            first = strip * step
            start, stop = first * PROPOSAL_STRIDE_PX, (first + step + 5) * PROPOSAL_STRIDE_PX
            cells, found = self._find(pixels[:, start:stop], threshold)
            cells = tf.cast(cells, tf.float32) + tf.cast([0, first, 0], tf.float32)
            return tf.concat([cells, found], axis=1)

        return join_tables(look, -(-n_rows // step), 8, at_a_time=1)

    def _find(self, pixels: Any, threshold: float) -> tuple[Any, Any]:
        """Return the cells whose logit is above a threshold, ``(M, 3)``, and their columns."""
        if self.screen is None:
            found = self(pixels)
            cells = tf.where(found[..., 4] > threshold)
            return cells, tf.gather_nd(found, cells)
        maps = self._look(pixels)
        cells = self._screen(maps, threshold - _SCREENING_MARGIN)
        found = self._look_at_cells(maps, cells)
        good = tf.where(found[:, 4] > threshold)[:, 0]
        return tf.gather(cells, good), tf.gather(found, good)

    def _look(self, pixels: Any) -> Any:
        return _convolve(_convolve(pixels, self.conv1, pool=(2, "SAME")), self.conv2)

    def _screen(self, maps: Any, threshold: float) -> Any:
        """Return the cells whose logit is about above a threshold, ``(M, 3)``.

        What weights w on PReLU(x) = a x + (1 - a) max(x, 0) make of w a x is a convolution with one
        output, and the maximum comes for nothing with the convolution before.
        """
        kernel, bias, alpha, _ = self.conv3
        weights = self.heads.kernel[..., 4:]
        straight = kernel @ (alpha[:, None] * weights)
        constant = float(self.heads.bias[4] + (bias * alpha * weights[0, 0, :, 0]).sum())

        def convolve(x: Any, kernel: Any) -> Any:
            return tf.nn.conv2d(x, tf.cast(kernel, self.screen), 1, "VALID")

        maps = tf.cast(maps, self.screen)
        hidden = tf.nn.bias_add(convolve(maps, kernel), tf.cast(bias, self.screen))
        logits = convolve(tf.nn.relu(hidden), (1 - alpha[:, None]) * weights)
        logits += convolve(maps, straight)
        return tf.where(logits[..., 0] > threshold - constant)

    def _look_at_cells(self, maps: Any, cells: Any) -> Any:
        """Return the table's columns for some cells ``(M, 3)``, ``(M, 5)``."""
        kernel, bias, alpha, _ = self.conv3
        side, _, n_channels, n_hidden = kernel.shape
        n_cells, shape = tf.shape(cells)[0], tf.shape(maps, tf.int64)
        cells = tf.pad(cells, [[0, -n_cells % _CELL_MULTIPLE], [0, 0]])
        frame, row, column = tf.unstack(cells, axis=1)
        first = (frame * shape[1] + row) * shape[2] + column
        steps = tf.range(side, dtype=tf.int64)
        window = tf.reshape(steps[:, None] * shape[2] + steps, (-1,))
        patches = tf.gather(tf.reshape(maps, (-1, n_channels)), first[:, None] + window)
        dense = Layer(kernel.reshape(-1, n_hidden), bias, alpha)
        heads = Layer(self.heads.kernel.reshape(n_hidden, -1), self.heads.bias)
        return _connect(_connect(patches, dense), heads)[:n_cells]


class RefinementNetwork:
    """The second network: crops ``(N,24,24,3)`` to a table ``(N,5)``."""

    def __init__(self, model: Any) -> None:
        """Take the weights of mtcnn's network."""
        self.conv1 = _read_first_layer(model.conv1, model.prelu1)
        self.conv2 = _read_layer(model.conv2, model.prelu2)
        self.conv3 = _read_layer(model.conv3, model.prelu3)
        self.dense = _read_flattened(model.fc4, model.prelu4, 64)
        self.heads = _read_heads(model.fc5_1, model.fc5_2)

    def __call__(self, pixels: Any) -> Any:
        """Return the table's columns for every crop."""
        x = _convolve(pixels, self.conv1, pool=(3, "SAME"))
        x = _convolve(x, self.conv2, pool=(3, "VALID"))
        x = _convolve(x, self.conv3)
        return _connect_crops(x, self.dense, self.heads)


class OutputNetwork:
    """The last network: crops ``(N,48,48,3)`` to a table ``(N,15)``."""

    def __init__(self, model: Any) -> None:
        """Take the weights of mtcnn's network."""
        self.conv1 = _read_first_layer(model.conv1, model.prelu1)
        self.conv2 = _read_layer(model.conv2, model.prelu2)
        self.conv3 = _read_layer(model.conv3, model.prelu3)
        self.conv4 = _read_layer(model.conv4, model.prelu4)
        self.dense = _read_flattened(model.fc5, model.prelu5, 128)
        self.heads = _read_heads(model.fc6_1, model.fc6_2, model.fc6_3)

    def __call__(self, pixels: Any) -> Any:
        """Return the table's columns for every crop."""
        x = _convolve(pixels, self.conv1, pool=(3, "SAME"))
        x = _convolve(x, self.conv2, pool=(3, "VALID"))
        x = _convolve(x, self.conv3, pool=(2, "SAME"))
        x = _convolve(x, self.conv4)
        return _connect_crops(x, self.dense, self.heads)


def _convolve(x: Any, layer: Layer, pool: tuple[int, str] | None = None) -> Any:
    """Convolve, apply PReLU, then take maxima over windows ``(size, padding)`` at stride 2.

    PReLU is max(x, a x) where a <= 1 and min(x, a x) above; written so, and with channels of one
    row side by side, it costs a quarter of the usual sum of two ReLUs. The minimum, being
    monotone, waits until the maxima have left fewer values.
    """
    x = tf.nn.bias_add(tf.nn.conv2d(x, layer.kernel, 1, "VALID"), layer.bias)
    if layer.is_plain:
        x = _rectify(x, layer.alpha)
        return x if pool is None else tf.nn.max_pool2d(x, pool[0], 2, pool[1])
    if layer.alpha is not None:
        # Large maps, those to be pooled, are scaled faster as a convolution of each channel alone.
        scale = _scale_channels if pool is None else _scale_large_maps
        x = tf.maximum(x, scale(x, np.minimum(layer.alpha, 1)))
    if pool is not None:
        x = tf.nn.max_pool2d(x, pool[0], 2, pool[1])
    if layer.alpha is not None and layer.alpha.max() > 1:
        x = tf.minimum(x, _scale_channels(x, np.maximum(layer.alpha, 1)))
    return x


def _scale_channels(x: Any, factors: Any) -> Any:
    """Multiply each channel of maps ``(N, H, W, C)`` with its factor, whole rows at a time."""
    shape = tf.shape(x)
    rows = tf.reshape(x, (-1, shape[2] * len(factors)))
    return tf.reshape(rows * tf.tile(factors, shape[2:3]), shape)


def _scale_large_maps(x: Any, factors: Any) -> Any:
    """Return the same as `_scale_channels`, which is the faster one for small maps."""
    return tf.nn.depthwise_conv2d(x, factors.reshape(1, 1, -1, 1), (1, 1, 1, 1), "VALID")


def _connect(x: Any, layer: Layer) -> Any:
    """Apply a dense layer with PReLU to flattened maps."""
    x = tf.matmul(tf.reshape(x, (-1, layer.kernel.shape[0])), layer.kernel) + layer.bias
    if layer.is_plain:
        return _rectify(x, layer.alpha)
    return x if layer.alpha is None else tf.maximum(x, x * layer.alpha)


def _connect_crops(x: Any, dense: Layer, heads: Layer) -> Any:
    """Apply the last two layers to the maps of crops, to each as if there were no others."""
    if dense.is_plain:
        return _connect(_connect(x, dense), heads)
    n_crops = tf.shape(x)[0]
    n_rows = tf.maximum(n_crops + _DUMMY_ROWS, _DENSE_ROWS)
    x = tf.pad(tf.reshape(x, (n_crops, -1)), [[0, n_rows - n_crops], [0, 0]])
    return _connect(_connect(x, dense), heads)[:n_crops]


def look_at_crops(
    network: Any, n_columns: int, frames: Any, boxes: Any, index: Any, size_px: int, at_once: int
) -> Any:
    """Return a network's table for the crops of boxes ``(N, 4)``, in parts that bound the memory.

    Outside the frame lies what the networks take for zero.
    """
    n_parts = -(-tf.shape(boxes)[0] // at_once)

    def look(part: Any) -> Any:
        rows = slice(part * at_once, (part + 1) * at_once)
        crops = tf.image.crop_and_resize(
            frames, boxes[rows], index[rows], (size_px, size_px), extrapolation_value=OUTSIDE
        )
        return network(crops)

    return join_tables(look, n_parts, n_columns, at_a_time=1)


def join_tables(
    look: Callable[[Any], Any], n_tables: Any, n_columns: int, at_a_time: int = 10
) -> Any:
    """Return the tables that a function gives for 0, 1, ... one below the other, within a graph.

    They do not depend on each other; up to ``at_a_time`` are computed side by side.
    """
    shape = (None, n_columns)
    tables = tf.TensorArray(tf.float32, n_tables, element_shape=shape, infer_shape=False)
    _, tables = tf.while_loop(
        lambda number, _: number < n_tables,
        lambda number, tables: (number + 1, tables.write(number, look(number))),
        (0, tables),
        parallel_iterations=at_a_time,
    )
    return tables.concat()
