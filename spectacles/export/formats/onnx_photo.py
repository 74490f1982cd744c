"""ONNX from a photo, uint8 (H, W, 3) of any size, upright RGB: crop, resize and everything after it are in the file."""

from pathlib import Path

from spectacles.export import onnx_files, photo_graph
from spectacles.export.formats import onnx_pixels
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import INPUT, Shipped
from spectacles.models.file_metadata import PHOTO


def write(shipped: Shipped, precision: str, path: Path) -> None:
    network = onnx_files.halved(shipped.onnx) if precision == "fp16" else shipped.onnx
    joined = photo_graph.joined(shipped.info.preprocessing, network, INPUT)
    onnx_files.write(joined, shipped.metadata(precision), path)


def load(path: Path) -> Run:
    return onnx_pixels.load(path, PHOTO)


FORMAT = Format((".onnx",), write, load, ("fp32", "fp16"), takes_photos=True)
