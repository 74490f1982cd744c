"""ONNX from a photo, uint8 (H, W, 3) of any size, upright RGB: crop, resize and everything after it are in the file."""

from pathlib import Path

from onnx import compose

from spectacles.export import onnx_files, photo_graph
from spectacles.export.formats import onnx_pixels
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import INPUT, Shipped


def write(shipped: Shipped, precision: str, path: Path) -> None:
    network = onnx_files.halved(shipped.onnx) if precision == "fp16" else shipped.onnx
    before = photo_graph.graph(shipped.info.preprocessing)
    before.ir_version = network.ir_version
    compose.add_prefix(before, "preprocessing/", rename_inputs=False, rename_outputs=False, inplace=True)
    joined = compose.merge_models(before, network, [(photo_graph.PIXELS, INPUT)])
    onnx_files.write(joined, shipped.metadata(precision), path)


def load(path: Path) -> Run:
    return onnx_pixels.load(path, photo_graph.PHOTO)


FORMAT = Format((".onnx",), write, load, ("fp32", "fp16"), takes_photos=True)
