"""Adversarial images, changed so little that hardly anybody sees it, so that the model errs: FGSM and PGD.

Both need the network's gradients, which everybody with the bundle has: the worst case, not what happens by chance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spectacles.data.preprocessing import Preprocessing
from spectacles.inference.predictor import Predictor
from spectacles.metrics.decisions import is_correct
from spectacles.models.classifier import Classifier
from spectacles.models.normalization import normalize
from spectacles.models.torch_device import to_device

LEVELS = (1, 2, 4, 8)
"""Largest changes of a pixel, in steps of 0..255."""
STEPS = 10
REACH = 2.5
"""Length of all steps of PGD together, in multiples of the largest change (Madry et al. 2018)."""

LossAndGradient = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Float pixels (B, S, S, C) in 0..255 -> (loss (B,), its gradient, like the pixels)."""


def loss_and_gradient(classifier: Classifier, preprocessing: Preprocessing, labels: torch.Tensor) -> LossAndGradient:
    """Of the cross-entropy with class indices (B,), or of the sum over labels (B, K)."""

    def compute(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            inputs = pixels.detach().requires_grad_()
            logits = classifier(normalize(preprocessing, inputs))
            if labels.ndim == 2:
                losses = binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").sum(dim=1)
            else:
                losses = cross_entropy(logits, labels, reduction="none")
            (gradient,) = torch.autograd.grad(losses.sum(), inputs)
        return losses.detach(), gradient

    return compute


def fgsm(compute: LossAndGradient, pixels: torch.Tensor, level: int, seed: int) -> torch.Tensor:
    """Every pixel by `level` towards a higher loss (fast gradient sign method, Goodfellow et al. 2015).

    Float (B, S, S, C) in 0..255 -> the same; nothing is random.
    """
    _, gradient = compute(pixels)
    return (pixels + level * gradient.sign()).clamp(0, 255)


def pgd(compute: LossAndGradient, pixels: torch.Tensor, level: int, seed: int) -> torch.Tensor:
    """STEPS steps towards a higher loss, from a random start, never further than `level` from where each pixel was
    (projected gradient descent, Madry et al. 2018); of all images on the way the one with the highest loss.

    Float (B, S, S, C) in 0..255 -> the same.
    """
    low, high = (pixels - level).clamp(0, 255), (pixels + level).clamp(0, 255)
    generator = torch.Generator().manual_seed(seed)
    start = (2 * torch.rand(pixels.shape, generator=generator) - 1).to(pixels.device)
    best, highest = pixels, compute(pixels)[0]
    changed = torch.clamp(pixels + level * start, low, high)
    for step in range(STEPS + 1):
        losses, gradient = compute(changed)
        better = losses > highest
        best, highest = torch.where(better[:, None, None, None], changed, best), torch.maximum(losses, highest)
        if step < STEPS:
            changed = torch.clamp(changed + REACH * level / STEPS * gradient.sign(), low, high)
    return best


ATTACKS: dict[str, Callable[[LossAndGradient, torch.Tensor, int, int], torch.Tensor]] = {"fgsm": fgsm, "pgd": pgd}


def attack(
    predictor: Predictor, pixels: np.ndarray, labels: np.ndarray, correct: np.ndarray, seed: int
) -> dict[tuple[str, float], np.ndarray]:
    """(attack, level) -> (B,) bool: which of uint8 (B, S, S, C) with class indices (B,), or labels (B, K), are still
    classified correctly.

    An image that is wrong as it is (not `correct`), or under a smaller change, is wrong. Attacked images are rounded to
    8 bits, as any file would be, and scored like any other image.
    """
    results = {}
    for name, perturb in ATTACKS.items():
        still_correct = correct.copy()
        for level in LEVELS:
            places = np.flatnonzero(still_correct)
            if len(places):
                images = to_device(pixels[places], predictor.device).float()
                targets = to_device(labels[places], predictor.device)
                compute = loss_and_gradient(predictor.classifier, predictor.info.preprocessing, targets)
                attacked = perturb(compute, images, level, seed).round().to(torch.uint8).cpu().numpy()
                decided = predictor.info.decide(predictor.probabilities(attacked))
                still_correct[places] = is_correct(decided, labels[places])
            results[name, float(level)] = still_correct.copy()
    return results
