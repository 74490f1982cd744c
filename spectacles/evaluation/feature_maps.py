"""What the first layer groups of a network make of a photo, as pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from spectacles.data.preprocessing import Preprocessing, to_picture
from spectacles.evaluation.saliency import CannotExplain
from spectacles.models import backbones
from spectacles.models.classifier import Classifier
from spectacles.models.feature_layouts import as_map, layer_group_ends, prefix_tokens
from spectacles.models.normalization import normalize
from spectacles.models.torch_device import to_device
from spectacles.report.image_grid import image_grid
from spectacles.report.style import colour_table

STAGES, CHANNELS = 3, 7


def draw_feature_maps(
    classifier: Classifier, pixels: np.ndarray, captions: Sequence[str], preprocessing: Preprocessing, path: Path
) -> Path:
    """Photos, uint8 (B, S, S, C), with the most active channels of each of the first layer groups, a row a layer group.

    Most active: those whose values differ most over the photo, as one that is high everywhere shows nothing; bright is
    high. Raises CannotExplain.
    """
    classifier.eval()
    device = next(classifier.parameters()).device
    maps = stage_maps(classifier.backbone, normalize(preprocessing, to_device(pixels, device)))
    shown = min(CHANNELS, *(values.shape[1] for _, values in maps))  # as many in each row, or the rows are no table
    pictures: list[np.ndarray] = []
    texts: list[str] = []
    for number, (photo, caption) in enumerate(zip(pixels, captions, strict=True)):
        for name, values in maps:
            size = " x ".join(map(str, values.shape[1:]))
            pictures.append(to_picture(photo))
            texts.append(f"{caption}\n{name}: {size}")
            for channel in most_active(values[number], shown):
                pictures.append(_to_colours(values[number, channel]))
                texts.append(f"{name}, channel {channel}")
    return image_grid(pictures, texts, path, columns=1 + shown, title="What the first layer groups respond to")


def stage_maps(backbone: nn.Module, images: torch.Tensor, count: int = STAGES) -> list[tuple[str, np.ndarray]]:
    """(name, outputs (B, C, h, w) float32) of the first `count` layer groups for images (B, C, S, S).

    Stages that are not laid out like the image are left out; CannotExplain where none is.
    """
    maps = []
    groups = backbones.layer_groups(backbone)[:count]
    for number, (_, output) in enumerate(layer_group_ends(backbone, images, groups), start=1):
        if found := as_map(output, prefix_tokens(backbone)):
            maps.append((f"layer group {number}", found[0].float().cpu().numpy()))
    if not maps:
        raise CannotExplain(f"the first layer groups of {type(backbone).__name__} are not laid out like the image")
    return maps


def most_active(values: np.ndarray, count: int) -> list[int]:
    """Of (C, h, w), the channels whose values differ most over the image, most first."""
    spread = values.std(axis=(1, 2))
    return [int(channel) for channel in np.argsort(-spread, kind="stable")[:count]]


def _to_colours(values: np.ndarray) -> np.ndarray:
    """(h, w) -> uint8 (h, w, 3), from its lowest value, dark, to its highest."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    coloured: np.ndarray = colour_table("viridis")[np.rint(255 * scaled).astype(np.uint8)]
    return coloured
