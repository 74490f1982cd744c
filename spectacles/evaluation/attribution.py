"""Saliency maps: which parts of a photo support a class, by captum's attribution methods."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from captum.attr import IntegratedGradients, Occlusion
from torch.nn import functional

from spectacles.data.preprocessing import Preprocessing
from spectacles.evaluation.gradcam import grad_cam, to_saliency
from spectacles.models.classifier import Classifier
from spectacles.models.normalization import normalize
from spectacles.models.torch_device import to_device

Method = Callable[[Classifier, torch.Tensor, torch.Tensor], np.ndarray]
"""(classifier, images (B, C, S, S), class indices (B,)) -> saliency (B, h, w) float32, 0..1, each image's maximum 1."""

BLUR = 8
"""A blurred image is one seen through a grid of so many cells a side."""
WINDOW, STRIDE = 1 / 5, 1 / 10
"""Of the image's side. Windows overlap: a cell of the map is hidden by up to four of them."""
STEPS = 16
"""Gauss-Legendre points on the way from the blurred image to the image; 24 show nothing else."""
GRID = 16
"""Cells a side of a map of integrated gradients: single pixels are noise."""
AT_ONCE = 32
"""Images that go through the network in one batch, whatever a method makes of one photo."""


def occlusion(classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Hides a window at a time (Zeiler & Fergus 2014); saliency is the drop of the class's score.

    The window is blurred instead of blanked (Fong & Vedaldi 2017): a grey square is itself something to be seen.
    """
    classifier.eval()
    channels, side = images.shape[1:3]
    window, stride = max(1, round(side * WINDOW)), max(1, round(side * STRIDE))
    scores = Occlusion(partial(log_odds, classifier)).attribute(
        images,
        (channels, window, window),
        (channels, stride, stride),
        baselines=blurred(images),
        additional_forward_args=(targets,),
        perturbations_per_eval=max(1, AT_ONCE // len(images)),
    )
    # Pixels within a stride are hidden by the same windows: one value says all.
    return to_saliency(functional.adaptive_avg_pool2d(scores.mean(dim=1), round(1 / STRIDE)))


def integrated_gradients(classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Sundararajan et al. 2017, from the blurred image to the image; saliency is the sum over a cell, where positive.

    Starting from one colour is blind to everything in the photo that has this colour; the blurred image has the photo's
    colours everywhere and none of its detail (Sturmfels et al. 2020).
    """
    classifier.eval()
    inputs = images.detach().requires_grad_()
    scores = IntegratedGradients(partial(log_odds, classifier)).attribute(
        inputs,
        blurred(images),
        additional_forward_args=(targets,),
        n_steps=STEPS,
        internal_batch_size=max(AT_ONCE, len(images)),
    )
    # Antialiased, so that neighbouring cells overlap: a hard border between two would cut through what they show.
    cells = functional.interpolate(scores.sum(dim=1, keepdim=True), (GRID, GRID), mode="bilinear", antialias=True)
    return to_saliency(cells.squeeze(1))


METHODS: dict[str, Method] = {
    "gradcam": grad_cam,
    "occlusion": occlusion,
    "integrated_gradients": integrated_gradients,
}

REMEDY = "occlusion and integrated_gradients work with every backbone"
"""What to say where Grad-CAM raises NoFeatureMap."""


def explain(
    method: str, classifier: Classifier, pixels: np.ndarray, targets: Iterable[int], preprocessing: Preprocessing
) -> np.ndarray:
    """uint8 (B, S, S, C) and B class indices -> saliency (B, h, w), on the classifier's device; any B but none.

    Raises NoFeatureMap.
    """
    device = next(classifier.parameters()).device
    indices = torch.tensor(list(targets), device=device)
    parts = []
    for start in range(0, len(pixels), AT_ONCE):
        images = normalize(preprocessing, to_device(pixels[start : start + AT_ONCE], device))
        parts.append(METHODS[method](classifier, images, indices[start : start + AT_ONCE]))
    return np.concatenate(parts)


def log_odds(classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, C, S, S) -> (B,): log p / (1 - p) of each image's class, which unlike p does not saturate, and unlike a logit
    is blind to evidence for all classes alike. With any number of labels this is the logit itself."""
    logits = classifier(images)
    place = targets[:, None]
    own: torch.Tensor = logits.gather(1, place).squeeze(1)
    return own if classifier.multi_label else own - logits.scatter(1, place, -torch.inf).logsumexp(dim=1)


def blurred(images: torch.Tensor) -> torch.Tensor:
    """(B, C, S, S) -> the same without detail."""
    cells = functional.interpolate(images, (BLUR, BLUR), mode="bilinear", antialias=True)
    return functional.interpolate(cells, images.shape[2:], mode="bilinear")
