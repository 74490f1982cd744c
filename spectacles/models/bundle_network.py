"""A bundle's network as engines run it: from its ONNX file, and by torch only where that is asked for or needed."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.models.bundle import Bundle, BundleInfo
from spectacles.models.engine_choice import Difference
from spectacles.models.engines import ENGINES, Engine, Outputs, is_installed
from spectacles.models.ood import OODScorer

if TYPE_CHECKING:
    from spectacles.models.classifier import Classifier
    from spectacles.models.torch_network import PixelNetwork

EXPECTED = "expected."
"""Start of the names of the tensors that hold what torch gave for `sample_pictures`."""


@dataclass(frozen=True)
class BundleNetwork:
    """`engine_choice.Runnable`. The outputs are those of `all_outputs.AllOutputs`."""

    bundle: Bundle
    device: str

    @property
    def preprocessing(self) -> Preprocessing:
        return self.bundle.info.preprocessing

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def engines(self) -> Sequence[str]:
        if not self.on_cpu or self.bundle.network is None:
            return self.in_torch.engines
        return [name for name in ENGINES if name != "torch" and is_installed(name)] or ("torch",)

    def torch_engine(self, precision: str = "fp32") -> Engine:
        return self.in_torch.torch_engine(precision)

    def onnx(self) -> bytes:
        return self.in_torch.onnx() if self.bundle.network is None else self.bundle.network.read_bytes()

    def expected(self, pixels: np.ndarray) -> Outputs:
        if self.bundle.network is None:
            return self.in_torch.expected(pixels)
        return {name.removeprefix(EXPECTED): values for name, values in self.bundle.tensors(EXPECTED).items()}

    @cached_property
    def in_torch(self) -> "PixelNetwork":
        """Raises UserError where torch is not installed."""
        require_torch(f"this model ({self.bundle.without_network or 'without another engine'})")
        from spectacles.models.all_outputs import AllOutputs
        from spectacles.models.torch_device import prepare_device
        from spectacles.models.torch_network import PixelNetwork

        device = prepare_device(self.device)
        return PixelNetwork(AllOutputs(self.classifier.to(device), self.preprocessing), self.preprocessing, device)

    @cached_property
    def classifier(self) -> "Classifier":
        """On the CPU. Raises UserError where torch is not installed."""
        require_torch("the network's gradients")
        from spectacles.models.classifier import build_classifier

        return build_classifier(self.bundle)


def require_torch(what: str) -> None:
    """Raises UserError where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{what} needs PyTorch, which is not installed: pip install -r requirements.txt.")


def difference(info: BundleInfo, ood_scorer: OODScorer | None) -> Difference:
    """The largest difference of a probability, or of an OODScorer's distance."""

    def measure(outputs: Outputs, reference: Outputs) -> float:
        here, there = (info.calibration.probabilities(each["logits"]) for each in (outputs, reference))
        apart = np.abs(here - there).max()
        if ood_scorer is None:
            return float(apart)
        distances, distances_there = (ood_scorer.distance(each["ood_features"]) for each in (outputs, reference))
        return float(np.maximum(apart, np.abs(distances - distances_there).max()))

    return measure
