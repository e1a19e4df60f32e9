"""Doubled axes that are soon narrowed to one channel, computed on the smaller lattice.

The end of a decoder is a transposed convolution of stride 2, an activation, and a convolution to one channel. Both
convolutions are slow where the lattice is large: the first scatters every product to its place, the second gathers 27
neighbours of every channel for one number. Here voxels are taken apart by whether they are even or odd along each axis
(sub-pixel convolution: Shi et al. 2016, arXiv 1609.05158, section 3.2), 2ⁿ groups of channels on the smaller lattice:

- out[2i] = w₀ in[i] + w₂ in[i − 1] and out[2i + 1] = w₁ in[i] along each axis, so the transposed convolution is a
  convolution with two taps an axis to all groups at once;
- voxel 2i + q needs its neighbours 2i + q + d, d = −1, 0, 1: those of the group (q + d) mod 2 at ⌊(q + d) / 2⌋ further.
  Along the last axis a convolution does this; along the others its channels are the neighbours' shares, which are
  shifted and added.

Only the one channel that is left is put together again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product as tuples
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasvae_export.keras_layers import KERAS_LAYERS, crops_of
from kerasvae_export.onnx_builder import Graph, Value, activated, sliced

__all__ = ["doubling_chain", "write_chain"]

_L = keras.layers
UP = (_L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose)
NARROW = (_L.Conv1D, _L.Conv2D, _L.Conv3D)
CROP = (_L.Cropping1D, _L.Cropping2D, _L.Cropping3D)
EVERYWHERE_ALIKE = (
    _L.Activation, _L.ReLU, _L.LeakyReLU, _L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.SpatialDropout3D,
)  # fmt: skip
"""What does the same to every number."""


def doubling_chain(node: Any, consumers: Mapping[int, Sequence[Any]]) -> list[Any]:
    """The nodes from a transposed convolution to the convolution to one channel; empty where it is not like that.

    Args:
        node: Of a Keras model.
        consumers: The nodes that take a tensor, by its id; what leaves the model has none.
    """
    chain = [node]
    if not (isinstance(node.operation, UP) and _is_plain(node.operation, 2) and node.operation.output_padding is None):
        return []
    while True:
        following = consumers.get(id(chain[-1].outputs[0]), ())
        if len(following) != 1:
            return []
        chain.append(following[0])
        layer = chain[-1].operation
        if isinstance(layer, NARROW):
            return chain if _is_plain(layer, 1) and layer.filters == 1 else []
        if isinstance(layer, CROP):
            if any(low != 0 or high > 1 for low, high in crops_of(layer)):
                return []
        elif not isinstance(layer, EVERYWHERE_ALIKE):
            return []


def _is_plain(layer: Any, stride: int) -> bool:
    """Three taps an axis, padded to the lattice, float32."""
    return (
        set(layer.kernel_size) == {3}
        and set(layer.strides) == {stride}
        and set(layer.dilation_rate) == {1}
        and getattr(layer, "groups", 1) == 1
        and (layer.padding, layer.data_format, layer.compute_dtype) == ("same", "channels_last", "float32")
    )


def write_chain(graph: Graph, chain: Sequence[Any], x: Value) -> Value:
    """Write the layers of a chain; the last one's output.

    Args:
        graph: The graph.
        chain: From `doubling_chain`.
        x: Input of the first.
    """
    up, *between, narrow = [node.operation for node in chain]
    x = graph.first(x)
    sizes, rank = x.shape[:-1], len(x.shape) - 1
    bias = np.tile(np.asarray(up.bias) if up.use_bias else np.zeros(up.filters, np.float32), 2**rank)
    inputs = [x.name, graph.constant(_doubling_kernel(np.asarray(up.kernel))), graph.constant(bias)]
    name = graph.add("Conv", inputs, pads=[1] * rank + [0] * rank)
    made, kept = activated(graph, Value(name, x.shape, "first"), up.activation), [2 * n for n in sizes]
    for layer in between:
        if isinstance(layer, CROP):
            kept = [n - high for n, (_, high) in zip(kept, crops_of(layer), strict=True)]
        else:
            made = KERAS_LAYERS[type(layer)](graph, layer, [made])
    if cropped := kept != [2 * n for n in sizes]:
        made = Value(_blanked(graph, made.name, sizes, kept, up.filters), made.shape, "first")
    name = _narrowed(graph, made.name, sizes, np.asarray(narrow.kernel)[..., 0])
    if narrow.use_bias:
        name = graph.add("Add", [name, graph.constant(np.asarray(narrow.bias))])
    whole = _together(graph, name, sizes)
    if cropped:
        whole = sliced(graph, whole, [(0, n) for n in kept], 1)
    result = Value(graph.reshape(whole, [1, *kept]), (*kept, 1), "first")
    return activated(graph, result, narrow.activation)


def _doubling_kernel(kernel: NDArray[Any]) -> NDArray[np.float32]:
    """(3, …, out, in) of Keras to (2ⁿ out, in, 2, …): groups outermost."""
    rank = kernel.ndim - 2
    taps = {0: {0: 2, 1: 0}, 1: {1: 1}}  # of even and odd voxels: the tap for the voxel before and for the own
    made = np.zeros((*[2] * rank, *kernel.shape[-2:], *[2] * rank), np.float32)
    for odd in tuples((0, 1), repeat=rank):
        for places in tuples(*(taps[each] for each in odd)):
            tap = tuple(taps[each][place] for each, place in zip(odd, places, strict=True))
            np.moveaxis(made[odd], (0, 1), (-2, -1))[places] = kernel[tap]
    return made.reshape(-1, kernel.shape[-1], *[2] * rank)


def _blanked(graph: Graph, name: str, sizes: Sequence[int], kept: Sequence[int], channels: int) -> str:
    """Zeros at the odd voxels that were cropped, as padding puts them there."""
    rank = len(sizes)
    whole = np.zeros([2 * n for n in sizes], np.float32)
    whole[tuple(slice(n) for n in kept)] = 1
    # (n, 2, m, 2, …) to (2, 2, …, n, m, …)
    pairs = whole.reshape([each for n in sizes for each in (n, 2)])
    inside = pairs.transpose([*range(1, 2 * rank, 2), *range(0, 2 * rank, 2)])
    apart = graph.reshape(name, [2**rank, channels, *sizes])
    masked = graph.add("Mul", [apart, graph.constant(inside.reshape(2**rank, 1, *sizes))])
    return graph.reshape(masked, [2**rank * channels, *sizes])


def _narrowed(graph: Graph, name: str, sizes: Sequence[int], kernel: NDArray[Any]) -> str:
    """From 2ⁿ groups of channels to 2ⁿ channels, one of each group of voxels.

    Args:
        graph: The graph.
        name: (batch, 2ⁿ channels, …).
        sizes: Of the smaller lattice.
        kernel: (3, …, channels).
    """
    rank, channels = len(sizes), kernel.shape[-1]
    others = list(tuples(range(3), repeat=rank - 1))
    # along the last axis: the output's parity and the input's, and how far away that is
    weights = np.zeros((len(others), 2, 2, channels, 3), np.float32)
    for index, taps in enumerate(others):
        for odd, tap in tuples((0, 1), range(3)):
            step, parity = divmod(odd + tap - 1, 2)
            weights[index, odd, parity, :, step + 1] += kernel[(*taps, tap)]
    groups = 2 ** (rank - 1)
    block = weights.reshape(2 * len(others), 2 * channels, *[1] * (rank - 1), 3)
    repeated = graph.constant(np.tile(block, (groups, *[1] * (rank + 1))))
    padded = graph.add("Conv", [name, repeated], pads=[1] * 2 * rank, group=groups)
    if rank == 1:
        return padded
    results = []
    for odds in tuples((0, 1), repeat=rank - 1):
        shares = []
        for index, taps in enumerate(others):
            steps, parities = zip(*(divmod(odd + tap - 1, 2) for odd, tap in zip(odds, taps, strict=True)), strict=True)
            group = int("".join(map(str, parities)), 2)
            first = 2 * (group * len(others) + index)
            ends = [(1 + step, 1 + step + n) for step, n in zip(steps, sizes[:-1], strict=True)]
            shares.append(sliced(graph, padded, [(first, first + 2), *ends], 1))
        results.append(graph.add("Sum", shares))
    return graph.add("Concat", results, axis=1)


def _together(graph: Graph, name: str, sizes: Sequence[int]) -> str:
    """(batch, 2ⁿ, …) to the larger lattice, without an axis of channels."""
    rank = len(sizes)
    apart = graph.reshape(name, [*[2] * rank, *sizes])
    perm = [0] + [axis for i in range(rank) for axis in (1 + rank + i, 1 + i)]
    return graph.reshape(graph.add("Transpose", [apart], perm=perm), [2 * n for n in sizes])
