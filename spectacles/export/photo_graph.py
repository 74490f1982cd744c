# mypy: ignore-errors
# ruff: noqa: F821
"""Preprocessing as an ONNX graph: a photo of any size -> what the network takes, as `Preprocessing` makes it.

Both passes of Pillow's antialiased resize are products with a matrix of its weights, rounded in between. onnxscript
translates the functions below; they are not run as Python, and their types are ONNX's.
"""

from typing import Any

import onnx
import onnxscript
from onnx import TensorProto, compose, inliner
from onnxscript import UINT8, optimizer
from onnxscript import opset20 as op

from spectacles.data.preprocessing import Preprocessing

PHOTO, PIXELS = "photo", "pixels"
REAL, INT32, INT64, FLOAT = TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT
"""In float32, sums that lie in the middle between two whole numbers would be rounded otherwise than in Pillow."""
LUMA = onnx.helper.make_tensor("luma", INT32, [3, 1, 1], [19595, 38470, 7471])
"""ITU-R 601 in 65536ths, as Pillow has it."""
GAP = 4.0
"""Pixels of a photo for each of the result, along a side, that are left after its boxes of pixels are averaged."""
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
def averaged(photo, height, width, tall, wide):
    """(3, height / tall, width / wide): the mean of each box of `tall` x `wide` pixels; the rest is cut off."""
    rows = op.Unsqueeze(op.Cast(op.Floor(height / tall), to=INT64), [0])
    columns = op.Unsqueeze(op.Cast(op.Floor(width / wide), to=INT64), [0])
    tall64, wide64 = op.Unsqueeze(op.Cast(tall, to=INT64), [0]), op.Unsqueeze(op.Cast(wide, to=INT64), [0])
    whole = op.Slice(photo, [0, 0], op.Concat(rows * tall64, columns * wide64, axis=0), [0, 1])
    in_rows = op.Reshape(op.Cast(whole, to=FLOAT), op.Concat(rows, tall64, columns * wide64 * 3, axis=0))
    planes = op.Transpose(op.Reshape(op.ReduceMean(in_rows, [1], keepdims=0), [0, -1, 3]), perm=[2, 0, 1])
    in_columns = op.Reshape(planes, op.Concat([3], rows, columns, wide64, axis=0))
    return op.ReduceMean(in_columns, [3], keepdims=0)


def graph(preprocessing: Preprocessing) -> onnx.ModelProto:
    """photo, uint8 (height, width, 3), upright RGB -> pixels, uint8 (1, S, S, C)."""
    fit: Any = {"crop": crop, "squash": squash, "pad": pad}[preprocessing.resize]
    kernel: Any = {"bilinear": bilinear, "bicubic": bicubic}[preprocessing.interpolation]
    radius, side = SUPPORT[preprocessing.interpolation], float(preprocessing.image_size)

    @onnxscript.script()
    def box(length, other):
        """Pixels along a side that are averaged first: more than one in photos with many for each of the result."""
        size = op.CastLike(op.Constant(value_float=side), length)
        _, extent, _, inner = fit(length, other, size)
        return op.Max(op.Floor(extent / (inner * op.CastLike(op.Constant(value_float=GAP), length))), 1.0)

    @onnxscript.script()
    def weights(length, other, box):
        """(S, length / box): how much each box of pixels along a side counts in each pixel of the result."""
        size = op.CastLike(op.Constant(value_float=side), length)
        left, seen, offset, inner = fit(length, other, size)
        start, extent = left / box, seen / box
        scale = extent / inner
        stretch = op.Max(scale, 1.0)
        place = op.Unsqueeze(op.Range(0.0, size, 1.0), [1])
        pixel = op.Unsqueeze(op.Range(0.0, op.Floor(length / box), 1.0), [0])
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
        tall, wide = box(height, width), box(width, height)
        planes = op.Cast(averaged(photo, height, width, tall, wide), to=REAL)
        narrow = rounded(op.MatMul(planes, op.Transpose(weights(width, height, wide))))
        return rounded(op.MatMul(weights(height, width, tall), narrow))

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
