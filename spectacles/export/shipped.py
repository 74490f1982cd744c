"""A bundle as it is shipped: one module from pixels to calibrated probabilities, and what there is to know about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from spectacles.export import web_page
from spectacles.metrics.calibration import Calibration
from spectacles.models import onnx_export
from spectacles.models.bundle import BundleInfo
from spectacles.models.classifier import Classifier
from spectacles.models.file_metadata import Described, to_metadata
from spectacles.models.normalization import Normalize

INPUT, PROBABILITIES, LOGITS = "pixels", "probabilities", "logits"


class Probabilities(nn.Module):
    """logits (B, K) -> `Calibration.probabilities` in float32."""

    scales: torch.Tensor
    biases: torch.Tensor

    def __init__(self, calibration: Calibration, num_classes: int) -> None:
        super().__init__()
        scales = torch.tensor(calibration.scales or (1.0,) * num_classes) / calibration.temperature
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("biases", torch.tensor(calibration.biases or (0.0,) * num_classes), persistent=False)
        self.multi_label = calibration.multi_label

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        scaled = logits * self.scales + self.biases
        return scaled.sigmoid() if self.multi_label else scaled.softmax(dim=1)


class FromPixels(nn.Module):
    """uint8 (B, S, S, C) -> `probabilities` and `logits`, each (B, K) float32."""

    def __init__(self, classifier: Classifier, info: BundleInfo) -> None:
        super().__init__()
        self.normalize, self.classifier = Normalize(info.preprocessing), classifier
        self.calibrate = Probabilities(info.calibration, len(info.classes))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.classifier(self.normalize(pixels))
        return {PROBABILITIES: self.calibrate(logits), LOGITS: logits}


@dataclass(frozen=True)
class Shipped:
    """The bundle's classifier in evaluation mode, on the CPU."""

    classifier: Classifier
    info: BundleInfo
    model_id: str
    folder: Path
    """Of the bundle."""
    ort_web: Path | None = None
    """See ExportConfig."""
    model_card: str = ""
    """Of the run, in Markdown, where it has one."""
    quantized: Any = None
    """The network in int8, as the format that has made it holds it; `info` is fitted to it."""

    @cached_property
    def web_runtime(self) -> dict[str, bytes]:
        """Of every page: fetched once. Raises UserError."""
        return web_page.runtime_files(self.ort_web)

    @cached_property
    def module(self) -> nn.Module:
        return FromPixels(self.classifier, self.info).eval()

    @property
    def example(self) -> torch.Tensor:
        """Two black pictures."""
        return torch.zeros(2, *self.info.preprocessing.shape, dtype=torch.uint8)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """For batches of any size."""
        with torch.no_grad(), onnx_export.initial_precision():
            batch = {INPUT: {0: torch.export.Dim("batch")}}
            return torch.export.export(self.module, (self.example,), dynamic_shapes=batch)

    @cached_property
    def onnx(self) -> onnx.ModelProto:
        """By the exporter that torch recommends, which takes some seconds."""
        return onnx.load_from_string(onnx_export.export(self.module, self.example))

    def metadata(self, precision: str) -> dict[str, str]:
        """For a file of that precision."""
        return to_metadata(Described(self.info, self.model_id, precision))
