"""Saliency maps: which parts of a photo support a class. Methods that take gradients need torch, the others run on any
engine."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from spectacles.core.errors import UserError
from spectacles.evaluation.cam import class_activation_map
from spectacles.evaluation.occlusion import occlusion
from spectacles.evaluation.saliency import CannotExplain, Explainable

if TYPE_CHECKING:
    import torch

    from spectacles.models.classifier import Classifier

AT_ONCE = 32
"""Images that are explained in one batch."""
REMEDY = "occlusion works with every network, and without PyTorch"
"""What to say where a method raises CannotExplain."""

Method = Callable[[Explainable, np.ndarray, np.ndarray], np.ndarray]
"""(network, pixels, uint8 (B, S, S, C), class indices (B,)) -> saliency (B, h, w) float32, 0..1, each image's maximum
1; an image in which nothing supports its class is 0 everywhere. Raises CannotExplain."""


def explain(method: str, network: Explainable, pixels: np.ndarray, targets: Iterable[int]) -> np.ndarray:
    """uint8 (B, S, S, C) and B class indices -> saliency (B, h, w); any B but none. Raises CannotExplain."""
    indices = np.array(list(targets))
    starts = range(0, len(pixels), AT_ONCE)
    parts = [slice(start, start + AT_ONCE) for start in starts]
    return np.concatenate([METHODS[method](network, pixels[part], indices[part]) for part in parts])


def _grad_cam(network: Explainable, pixels: np.ndarray, targets: np.ndarray) -> np.ndarray:
    _require_torch()
    from spectacles.evaluation.gradcam import grad_cam

    return _by_gradients(grad_cam, network, pixels, targets)


def _integrated_gradients(network: Explainable, pixels: np.ndarray, targets: np.ndarray) -> np.ndarray:
    _require_torch()
    from spectacles.evaluation.integrated_gradients import integrated_gradients

    return _by_gradients(integrated_gradients, network, pixels, targets)


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise CannotExplain("PyTorch is not installed here")


def _by_gradients(
    method: "Callable[[Classifier, torch.Tensor, torch.Tensor], np.ndarray]",
    network: Explainable,
    pixels: np.ndarray,
    targets: np.ndarray,
) -> np.ndarray:
    import torch

    from spectacles.models.normalization import normalize
    from spectacles.models.torch_device import to_device

    try:
        with network.torch_network() as classifier:
            device = next(classifier.parameters()).device
            images = normalize(network.info.preprocessing, to_device(pixels, device))
            return method(classifier, images, torch.from_numpy(targets).to(device))
    except UserError as error:  # the bundle's folder holds another model by now
        raise CannotExplain(str(error).rstrip(".")) from error


METHODS: dict[str, Method] = {
    "occlusion": occlusion,
    "cam": class_activation_map,
    "gradcam": _grad_cam,
    "integrated_gradients": _integrated_gradients,
}
