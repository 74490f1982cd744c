"""A network in torch, as an engine runs it: with the arithmetic of its preprocessing in front."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from spectacles.data.preprocessing import Preprocessing
from spectacles.models import onnx_export
from spectacles.models.engines import ENGINES, Engine, Outputs
from spectacles.models.normalization import Normalize
from spectacles.models.torch_device import to_device

ONLY_OUTPUT = "outputs"
"""The name of what a network gives that gives one tensor instead of several by name."""


class FromPixels(nn.Module):
    """pixels, uint8 (B, S, S, C) -> the network's outputs by name."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalize, self.network = Normalize(preprocessing), network

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.network(self.normalize(pixels))
        return dict(outputs) if isinstance(outputs, Mapping) else {ONLY_OUTPUT: outputs}


@dataclass(frozen=True)
class PixelNetwork:
    """A network that any engine may run, where it is on the CPU (`engine_choice.Runnable`)."""

    network: nn.Module
    preprocessing: Preprocessing
    device: str | torch.device

    @property
    def on_cpu(self) -> bool:
        return torch.device(self.device).type == "cpu"

    @property
    def engines(self) -> Sequence[str]:
        return ENGINES if self.on_cpu else ("torch",)

    def torch_engine(self, precision: str = "fp32") -> Engine:
        """Moves the network to the device and sets it to evaluation mode. With bf16, torch computes in bfloat16 what
        loses little by it (autocast)."""
        from_pixels = FromPixels(self.network, self.preprocessing).eval()
        from_pixels.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

        @torch.inference_mode()
        def run(pixels: np.ndarray) -> Outputs:
            device = torch.device(self.device).type
            with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
                outputs = from_pixels(to_device(pixels, self.device))
            return {name: output.float().cpu().numpy() for name, output in outputs.items()}

        return run

    def expected(self, pixels: np.ndarray) -> Outputs:
        return self.torch_engine()(pixels)

    def onnx(self) -> bytes:
        """For an engine in this process; what is shipped comes from `bundle_export`."""
        return onnx_export.export_quickly(*self.from_pixels())

    def from_pixels(self) -> tuple[nn.Module, torch.Tensor]:
        """(pixels -> outputs by name, in evaluation mode and on the device; two black pictures there)."""
        module = FromPixels(self.network, self.preprocessing).to(self.device).eval()
        return module, torch.zeros(2, *self.preprocessing.shape, dtype=torch.uint8, device=self.device)
