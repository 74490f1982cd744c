# mypy: ignore-errors
# ruff: noqa: F821
"""Preprocessing as an ONNX graph: a photo of any size -> what the network takes, as `Preprocessing` makes it.

Both passes of Pillow's antialiased resize are products with a matrix of its weights, rounded in between. Large photos
are reduced before, by ONNX's own resize. onnxscript translates the functions below; they are not run as Python, and
their types are ONNX's.
"""

from typing import Any

import onnx
import onnxscript
from onnx import TensorProto, compose, inliner
from onnxscript import UINT8, optimizer
from onnxscript import opset20 as op

from spectacles.data.preprocessing import Preprocessing

PIXELS = "pixels"
REAL, INT32, INT64 = TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64
"""In float32, sums that lie in the middle between two whole numbers would be rounded otherwise than in Pillow."""
LUMA = onnx.helper.make_tensor("luma", INT32, [3, 1, 1], [19595, 38470, 7471])
"""ITU-R 601 in 65536ths, as Pillow has it."""
GAP = 4.0
"""Pixels along a side for each of the result that the first reduction of a large photo leaves at least."""
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Radius of each kernel in pixels of the result."""


@onnxscript.script()
def bilinear(x):
    return op.Max(1.0 - x, 0.0)


@onnxscript.script()
def bicubic(x):
    """Keys's kernel with a = -0.5."""
    near = ((1.5 * x - 2.5) * x) * x + 1.0
    far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
    return op.Where(x < 1.0, near, op.Where(x < 2.0, far, op.CastLike(0.0, x)))


@onnxscript.script()
def crop(length, other, size):
    """Along one side of a photo: (where the part that is seen begins, its length, and the same of its picture)."""
    extent = op.Min(length, other)
    return (length - extent) / 2.0, extent, op.CastLike(0.0, size), size


@onnxscript.script()
def squash(length, other, size):
    return op.CastLike(0.0, size), length, op.CastLike(0.0, size), size


@onnxscript.script()
def pad(length, other, size):
    inner = op.Max(op.Round(length * size / op.Max(length, other)), 1.0)
    return op.CastLike(0.0, size), length, op.Floor((size - inner) / 2.0), inner


@onnxscript.script()
def rounded(values):
    return op.Clip(op.Floor(values + 0.5), 0.0, 255.0)


@onnxscript.script()
def reduced(photo, rows, columns):
    """(3, rows, columns), by ONNX's own resize, which leaves a photo as it is where both are its own."""
    sizes = op.Concat([1], op.Unsqueeze(op.Cast(rows, to=INT64), [0]), op.Unsqueeze(op.Cast(columns, to=INT64), [0]),
                      [3], axis=0)  # fmt: skip
    smaller = op.Resize(op.Unsqueeze(photo, [0]), None, None, sizes, mode="linear", antialias=1)
    return op.Transpose(op.Squeeze(smaller, [0]), perm=[2, 0, 1])


def graph(preprocessing: Preprocessing) -> onnx.ModelProto:
    """photo, uint8 (height, width, 3), upright RGB -> pixels, uint8 (1, S, S, C)."""
    fit: Any = {"crop": crop, "squash": squash, "pad": pad}[preprocessing.resize]
    kernel: Any = {"bilinear": bilinear, "bicubic": bicubic}[preprocessing.interpolation]
    radius, side = SUPPORT[preprocessing.interpolation], float(preprocessing.image_size)

    @onnxscript.script()
    def first_length(length, other):
        """Of a side after the first reduction: its own in photos with less than 2 * GAP pixels for each of the
        result."""
        size = op.CastLike(op.Constant(value_float=side), length)
        _, extent, _, inner = fit(length, other, size)
        gap = op.CastLike(op.Constant(value_float=GAP), length)
        return op.Ceil(length / op.Max(op.Floor(extent / (inner * gap)), 1.0))

    @onnxscript.script()
    def weights(length, other, now):
        """(S, now): how much each pixel along a side of `now`, once `length`, counts in each of the result."""
        size = op.CastLike(op.Constant(value_float=side), length)
        left, seen, offset, inner = fit(length, other, size)
        start, extent = left * now / length, seen * now / length
        scale = extent / inner
        stretch = op.Max(scale, 1.0)
        place = op.Unsqueeze(op.Range(0.0, size, 1.0), [1])
        pixel = op.Unsqueeze(op.Range(0.0, now, 1.0), [0])
        centre = (place - offset + 0.5) * scale + start
        reach = stretch * op.CastLike(op.Constant(value_float=radius), length)
        first, end = op.Floor(centre - reach + 0.5), op.Floor(centre + reach + 0.5)
        near = op.And(pixel >= first, pixel < end)
        inside = op.And(place >= offset, place < offset + inner)
        counted = op.Where(op.And(near, inside), kernel(op.Abs(pixel + 0.5 - centre) / stretch), 0.0)
        shares = counted / op.Max(op.ReduceSum(counted, [1]), 0.000001)
        return op.Round(shares * 4194304.0) / 4194304.0  # Pillow's weights are multiples of 1 / 2**22

    @onnxscript.script()
    def fitted(photo):
        """(3, S, S), whole numbers in float."""
        shape = op.Cast(op.Shape(photo), to=REAL)
        height, width, _ = op.Split(shape, num_outputs=3)
        height, width = op.Squeeze(height), op.Squeeze(width)
        rows, columns = first_length(height, width), first_length(width, height)
        planes = op.Cast(reduced(photo, rows, columns), to=REAL)
        narrow = rounded(op.MatMul(planes, op.Transpose(weights(width, height, columns))))
        return rounded(op.MatMul(weights(height, width, rows), narrow))

    @onnxscript.script()
    def colour(photo: UINT8["height", "width", 3]) -> UINT8[1, "size", "size", "channels"]:
        pixels = op.Cast(op.Unsqueeze(op.Transpose(fitted(photo), perm=[1, 2, 0]), [0]), to=TensorProto.UINT8)
        return pixels

    @onnxscript.script()
    def luma(photo: UINT8["height", "width", 3]) -> UINT8[1, "size", "size", "channels"]:
        share = op.Constant(value=LUMA)
        weighted = op.ReduceSum(op.Cast(fitted(photo), to=INT32) * share, [0], keepdims=0)
        grey = (weighted + 32768) / 65536
        pixels = op.Cast(op.Unsqueeze(op.Unsqueeze(grey, [0]), [3]), to=TensorProto.UINT8)
        return pixels

    whole = (luma if preprocessing.in_chans == 1 else colour).to_model_proto()
    model: onnx.ModelProto = optimizer.optimize(inliner.inline_local_functions(whole))
    return model


def joined(preprocessing: Preprocessing, network: onnx.ModelProto, pixels: str) -> onnx.ModelProto:
    """`graph` followed by a network whose input is called `pixels`."""
    before = graph(preprocessing)
    before.ir_version = network.ir_version
    compose.add_prefix(before, "preprocessing/", rename_inputs=False, rename_outputs=False, inplace=True)
    return compose.merge_models(before, network, [(PIXELS, pixels)])
