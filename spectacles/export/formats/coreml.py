"""Core ML, from an image of S x S pixels: for iOS and macOS. It runs on Apple's systems only, so that on others the
file is converted and looked at, not run."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectacles.export.formats.base import Format
from spectacles.export.shipped import PROBABILITIES, Shipped
from spectacles.models import onnx_export

IMAGE, LABEL = "image", "label"


class FromImage(nn.Module):
    """Core ML's images, float (1, C, S, S) of 0..255 -> probabilities (1, K)."""

    def __init__(self, from_pixels: nn.Module) -> None:
        super().__init__()
        self.from_pixels = from_pixels

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        probabilities: torch.Tensor = self.from_pixels(image.permute(0, 2, 3, 1))[PROBABILITIES]
        return probabilities


def write(shipped: Shipped, precision: str, path: Path) -> None:
    """With one label per image the file is a classifier: it gives the label and each class's probability."""
    size, _, channels = shipped.info.preprocessing.shape
    example, several = torch.zeros(1, channels, size, size), shipped.info.multi_label
    with torch.no_grad(), onnx_export.initial_precision(), onnx_export.quiet():
        import coremltools as ct

        layout = ct.colorlayout.RGB if channels == 3 else ct.colorlayout.GRAYSCALE
        program = torch.export.export(FromImage(shipped.module).eval(), (example,)).run_decompositions({})
        model = ct.convert(
            program,
            inputs=[ct.ImageType(name=IMAGE, shape=example.shape, color_layout=layout)],
            outputs=[ct.TensorType(name=PROBABILITIES)] if several else None,
            classifier_config=None if several else ct.ClassifierConfig(list(shipped.info.classes), LABEL),
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.user_defined_metadata.update(shipped.metadata(precision))
        model.save(path)
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # for who develops coremltools


def inspect(path: Path, shipped: Shipped) -> str:
    """Compares what the file says that it takes and gives with the model."""
    with onnx_export.quiet():
        import coremltools as ct

        spec = ct.utils.load_spec(str(path))
    size, _, channels = shipped.info.preprocessing.shape
    taken = spec.description.input[0].type.imageType
    colours = taken.GRAYSCALE if channels == 1 else taken.RGB
    if (taken.width, taken.height, taken.colorSpace) != (size, size, colours):
        return f"it takes {taken.width} x {taken.height} pixels of another kind than the model"
    given = [output.name for output in spec.description.output]
    if given != ([PROBABILITIES] if shipped.info.multi_label else [LABEL, f"{LABEL}_probs"]):
        return f"its outputs are {', '.join(given)}"
    if not shipped.info.multi_label and _classes(spec) != list(shipped.info.classes):
        return "its classes are not those of the model"
    stored = (path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size
    weights = sum(each.numel() for each in shipped.module.parameters() if each.ndim > 1)
    if stored < 2 * weights:
        return f"it holds {stored} bytes for {weights} weights"
    return ""


def _classes(spec: Any) -> list[str]:
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    [classify] = [operation for operation in operations if operation.type == "classify"]
    values = classify.inputs["classes"].arguments[0].value.immediateValue.list.values
    return [value.immediateValue.tensor.strings.values[0] for value in values]


FORMAT = Format((".mlpackage",), write, None, ("fp32", "fp16"), needs=("coremltools",), inspect=inspect)
