"""What a bundle of a test needs so that other engines than torch can run it."""

from pathlib import Path

import numpy as np

from spectacles.models import bundle_export
from spectacles.models.all_outputs import AllOutputs
from spectacles.models.bundle_export import Exported
from spectacles.models.classifier import load_classifier
from spectacles.models.engine_choice import relative_difference
from spectacles.models.torch_network import PixelNetwork


def in_torch(bundle: Path) -> PixelNetwork:
    classifier, info, _ = load_classifier(bundle)
    return PixelNetwork(AllOutputs(classifier, info.preprocessing), info.preprocessing, "cpu")


def exported(bundle: Path, pixels: np.ndarray | None = None) -> Exported:
    """The ONNX file of a bundle that only torch can run, compared on `pixels` too."""
    network = in_torch(bundle)
    nothing = np.zeros((0, *network.preprocessing.shape), np.uint8)
    return bundle_export.export(network, relative_difference, nothing if pixels is None else pixels)
