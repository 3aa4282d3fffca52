"""Faster kernels for training with TensorFlow on a processor.

`speed_up_training` exchanges what a network's layers compute, not what they are: a network that is
saved afterwards is a plain one.
"""

from functools import partial
from typing import Any

from batchfer.emotions.folding import find_normalized

SMALL_SIDE = 6
"""Feature maps up to this side: the gradient of their kernels is faster as a matrix product."""


def speed_up_training(model: Any) -> None:
    """Let TensorFlow train a network on a processor with faster kernels, in place.

    Keras composes batch normalization of a dozen operations, where TensorFlow has one; and oneDNN's
    bfloat16 gradient of 3x3 kernels is slow on small feature maps. One that is frozen is multiplied
    into the kernel before it in each step, which is smaller than what comes out. The results are
    the same up to rounding, and what is saved is the same network. Other backends, GPUs and
    networks that are spread over devices are left as they are.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    if tf.config.list_logical_devices("GPU") or tf.distribute.has_strategy():
        return
    folds = [pair for pair in find_normalized(model) if not pair[1].trainable]
    folded = {id(layer) for pair in folds for layer in pair}
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.call = _pass if id(layer) in folded else partial(_normalize_fused, layer)
        elif type(layer) is keras.layers.Conv2D and _has_slow_gradient(layer):
            layer.convolution_op = _convolve_small
    for convolution, normalization in folds:
        convolution.call = partial(_convolve_normalized, convolution, normalization)


def has_gpu() -> bool:
    """Return whether Keras computes on a GPU."""
    import keras

    try:
        return bool(keras.distribution.list_devices("gpu"))
    except RuntimeError:  # what JAX answers where there is none
        return False


def has_bfloat16_gpu() -> bool:
    """Return whether there is a GPU that computes in bfloat16: NVIDIA's since compute 8.0.

    One that does not tell is taken to have it.
    """
    import keras

    if not has_gpu():
        return False
    if keras.backend.backend() == "jax":
        import jax

        told = getattr(jax.devices()[0], "compute_capability", None)
        return told is None or float(told) >= 8
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpu = tf.config.list_physical_devices("GPU")[0]
        told = tf.config.experimental.get_device_details(gpu).get("compute_capability")
        return told is None or told >= (8, 0)
    return True


def _has_slow_gradient(layer: Any) -> bool:
    plain = (layer.strides, layer.dilation_rate, layer.groups) == ((1, 1), (1, 1), 1)
    same = layer.padding == "same" and layer.kernel_size == (3, 3)
    side = layer.output.shape[1]
    small = side is not None and side <= SMALL_SIDE
    return bool(plain and same and small and layer.compute_dtype == "bfloat16")


def _normalize_fused(
    layer: Any, inputs: Any, training: bool | None = None, mask: Any = None
) -> Any:
    """Do what ``BatchNormalization.call`` does, in one operation where it trains."""
    import tensorflow as tf

    if not training or not layer.trainable:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.cast(layer.gamma, tf.float32),
        offset=tf.cast(layer.beta, tf.float32),
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
        is_training=True,
    )
    n_values = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32)
    variance *= (n_values - 1) / n_values  # Keras divides by n, this operation by n - 1
    kept = layer.momentum
    layer.moving_mean.assign(layer.moving_mean * kept + mean * (1 - kept))
    layer.moving_variance.assign(layer.moving_variance * kept + variance * (1 - kept))
    return normalized


def _pass(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    """Do nothing: what a normalization does was done before it."""
    return inputs


def _convolve_normalized(convolution: Any, normalization: Any, inputs: Any) -> Any:
    """Do what a convolution and the frozen normalization after it do."""
    import keras
    import tensorflow as tf

    scale = tf.math.rsqrt(normalization.moving_variance + normalization.epsilon)
    if normalization.scale:
        scale *= normalization.gamma
    shift = -normalization.moving_mean * scale
    if normalization.center:
        shift += normalization.beta
    if convolution.use_bias:
        shift += tf.cast(convolution.bias, scale.dtype) * scale
    kernel = tf.convert_to_tensor(convolution.kernel)
    if isinstance(convolution, keras.layers.DepthwiseConv2D):  # (height, width, in, multiplier)
        scaled = kernel * tf.reshape(tf.cast(scale, kernel.dtype), kernel.shape[2:])
        outputs = keras.ops.depthwise_conv(
            inputs,
            scaled,
            convolution.strides,
            convolution.padding,
            dilation_rate=convolution.dilation_rate,
        )
    else:
        outputs = convolution.convolution_op(inputs, kernel * tf.cast(scale, kernel.dtype))
    return tf.nn.bias_add(outputs, tf.cast(shift, outputs.dtype))


def _convolve_small(inputs: Any, kernel: Any) -> Any:
    """Convolve 3x3 at stride 1; the gradient of the kernel is one product of patches."""
    import tensorflow as tf

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def convolve(inputs: Any, kernel: Any) -> Any:
        def differentiate(upstream: Any) -> tuple[Any, Any]:
            height, width, n_in = inputs.shape[1:]
            padded = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]])
            patches = tf.concat(
                [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], -1
            )
            product = tf.matmul(
                tf.reshape(patches, (-1, 9 * n_in)),
                tf.reshape(upstream, (-1, kernel.shape[-1])),
                transpose_a=True,
            )
            back = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(inputs), 1, "SAME")
            return back, tf.reshape(product, kernel.shape)

        return tf.nn.conv2d(inputs, kernel, 1, "SAME"), differentiate

    return convolve(inputs, tf.convert_to_tensor(kernel))
