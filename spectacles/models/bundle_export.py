"""The ONNX file of a bundle, and the proof that it answers as torch does."""

from dataclasses import dataclass, field

import numpy as np

from spectacles.models import engines, onnx_export
from spectacles.models.bundle_network import EXPECTED
from spectacles.models.engine_choice import CHECKED, TOLERANCE, Difference
from spectacles.models.sample_pictures import sample_pictures
from spectacles.models.torch_network import PixelNetwork

COMPARED = ("logits", "ood_features")
"""The outputs that predictions are made of."""


@dataclass(frozen=True)
class Exported:
    """For `save_bundle`."""

    content: bytes | None
    reason: str = ""
    """Why there is no content."""
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    """torch's answers to `sample_pictures`, with which any engine can be compared on any machine."""


def export(
    network: PixelNetwork, difference: Difference, photos: np.ndarray, written: PixelNetwork | None = None
) -> Exported:
    """The network of `all_outputs.AllOutputs` as an ONNX file, which ONNX Runtime must run as torch does, on sample
    pictures and on `photos` (N, S, S, C), uint8: the `difference` is at most TOLERANCE. `written` is the same network
    in the form that is exported, where that is another one."""
    samples = sample_pictures(network.preprocessing, CHECKED)
    in_torch = network.torch_engine()
    expected = in_torch(samples)
    try:
        content = onnx_export.export(*(written or network).from_pixels())
        in_onnxruntime = engines.build("onnxruntime", lambda: content)
    except Exception as error:  # noqa: BLE001 - exporters have their own exceptions for unsupported operations
        return Exported(None, f"it cannot be exported ({engines.in_a_line(error)})")
    apart = difference(in_onnxruntime(samples), expected)
    if len(photos):
        apart = np.maximum(apart, difference(in_onnxruntime(photos), in_torch(photos)))
    if not apart <= TOLERANCE:
        return Exported(None, f"its ONNX file gives other answers than PyTorch, by {apart:.1g}")
    return Exported(content, tensors={EXPECTED + name: expected[name] for name in COMPARED})
