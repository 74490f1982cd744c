"""Every format that a model is exported to, one module each, by name."""

from spectacles.export.formats import (
    coreml,
    onnx_photo,
    onnx_pixels,
    openvino_ir,
    space,
    tflite,
    torch_export,
    torchscript,
    web,
)
from spectacles.export.formats.base import Format

FORMATS: dict[str, Format] = {
    "onnx": onnx_pixels.FORMAT,
    "onnx_photo": onnx_photo.FORMAT,
    "openvino": openvino_ir.FORMAT,
    "torch_export": torch_export.FORMAT,
    "torchscript": torchscript.FORMAT,
    "tflite": tflite.FORMAT,
    "coreml": coreml.FORMAT,
    "web": web.FOLDER,
    "web_file": web.FILE,
    "space": space.FORMAT,
}
"""onnx: pixels in batches, for servers. onnx_photo: a photo of any size, for everything else."""

__all__ = ["FORMATS", "Format"]
