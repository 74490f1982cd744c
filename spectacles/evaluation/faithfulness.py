"""Do explanations show what matters? Hide what they highlight, and see whether that costs the class more than hiding
other regions of the same size and shape (deletion, Petsiuk et al. 2018, against chance)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from spectacles.evaluation.integrated_gradients import blurred
from spectacles.metrics.bootstrap import mean_interval
from spectacles.metrics.calibration import Calibration
from spectacles.models.classifier import Classifier

HIGHLIGHTED = 0.1
"""Share of an image's pixels that count as highlighted: the most salient."""
REGIONS = 8
"""Random regions that each image's highlighted one is compared with."""
IMAGES = 48
"""Images that are enough to tell a share of two thirds from a half."""
ENOUGH = 10
"""Images below which nothing is concluded: of few, all may be right by chance."""


def probability_drops(
    classifier: Classifier,
    images: torch.Tensor,
    targets: torch.Tensor,
    saliency: np.ndarray,
    calibration: Calibration = Calibration(),  # noqa: B008 - frozen
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """How much of its class's probability each image loses: drop (B,), drop of each random region (B, REGIONS).

    images (B, C, S, S), class indices (B,), saliency (B, h, w). A region is blurred. A random region is the highlighted
    one moved anywhere, around the edges: same size, same shape. Where a map is 0 everywhere nothing is highlighted,
    and all drops are 0. Leaves the classifier in evaluation mode.
    """
    classifier.eval()
    drops, random_drops = np.empty(len(images)), np.empty((len(images), REGIONS))
    if not len(images):
        return drops, random_drops
    rng, side = np.random.default_rng(seed), images.shape[2]
    masks = highlighted(saliency, side)
    for number, (image, target, mask) in enumerate(zip(images, targets.tolist(), masks, strict=True)):
        moves = rng.integers(side, size=(REGIONS, 2)).tolist()
        regions = torch.stack([mask, *(mask.roll(move, (0, 1)) for move in moves)])
        hidden = torch.where(regions[:, None].to(image.device), blurred(image[None]), image)
        probability = _probabilities(classifier, torch.cat([image[None], hidden]), calibration)[:, target]
        drops[number] = probability[0] - probability[1]
        random_drops[number] = probability[0] - probability[2:]
    return drops, random_drops


def highlighted(saliency: np.ndarray, side: int) -> torch.Tensor:
    """saliency (B, h, w) -> bool (B, side, side): the most salient pixels, all of them above 0."""
    maps = functional.interpolate(torch.from_numpy(saliency)[:, None], (side, side), mode="bilinear").flatten(1)
    highest = maps.topk(max(1, round(HIGHLIGHTED * side**2)), dim=1).indices
    masks: torch.Tensor = torch.zeros_like(maps).scatter(1, highest, 1.0) * maps > 0
    return masks.reshape(-1, side, side)


@torch.inference_mode()
def _probabilities(classifier: Classifier, images: torch.Tensor, calibration: Calibration) -> np.ndarray:
    return calibration.probabilities(classifier(images).float().cpu().numpy())


def judge(drops: np.ndarray, random_drops: np.ndarray, labels: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Of drops (B,) and (B, REGIONS): the means, the share of images whose highlighted region matters more than random
    ones do on average, its 95 % interval, and whether the maps are faithful (None for too few images)."""
    by_chance = random_drops.mean(axis=1)
    more = drops > by_chance
    result: dict[str, Any] = {"images": len(drops), **_means(drops, by_chance, more)}
    interval = mean_interval(more, np.arange(len(more)), seed) if len(drops) else None
    result["interval"] = interval and [round(bound, 4) for bound in interval]
    matters = interval and interval[0] > 0.5 and drops.mean() > by_chance.mean()
    result["faithful"] = bool(matters) if len(drops) >= ENOUGH else None
    names = np.asarray(labels, dtype=object)
    result["classes"] = {
        name: {"images": int(own.sum()), **_means(drops[own], by_chance[own], more[own])}
        for name in sorted(set(labels))
        if (own := names == name).any()
    }
    return result


def _means(drops: np.ndarray, by_chance: np.ndarray, more: np.ndarray) -> dict[str, float | None]:
    values = {"drop": drops, "random_drop": by_chance, "share": more}
    return {name: round(float(value.mean()), 4) if len(value) else None for name, value in values.items()}


def sentence(method: str, result: dict[str, Any]) -> str:
    if not result["images"]:
        return f"{method}: without correct predictions there is nothing to check its maps on"
    low, high = result["interval"]
    verdicts = {True: "the maps show what matters", False: "the maps cannot be trusted", None: "too few to judge by"}
    return (
        f"{method}: blurring the highlighted {100 * HIGHLIGHTED:.0f} % lowers the probability by {result['drop']:.2f} "
        f"on average, random regions by {result['random_drop']:.2f}; it matters more in {100 * result['share']:.0f} % "
        f"of {result['images']} images ({100 * low:.0f} to {100 * high:.0f}): {verdicts[result['faithful']]}"
    )
