"""Integrated gradients (Sundararajan et al. 2017), by captum."""

from functools import partial

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch.nn import functional

from spectacles.evaluation.occlusion import BLUR
from spectacles.evaluation.saliency import to_saliency
from spectacles.models.classifier import Classifier

STEPS = 16
"""Gauss-Legendre points on the way from the blurred image to the image; 24 show nothing else."""
GRID = 16
"""Cells a side of a map of integrated gradients: single pixels are noise."""
AT_ONCE = 32
"""Images that go through the network in one batch, at least."""


def integrated_gradients(classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """From the blurred image to the image; saliency is the sum over a cell, where positive. Normalised images (B, C, S,
    S) and class indices (B,) -> (B, h, w).

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
    return to_saliency(cells.squeeze(1).detach().float().cpu().numpy())


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
