"""A backbone whose forward pass also gives blocks of features from earlier layers."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from spectacles.models import backbones
from spectacles.models.feature_blocks import GRIDS, LAST, MEANS, Taps
from spectacles.models.feature_layouts import as_map, layer_group_ends, prefix_tokens

GRID = 3
"""Rows and columns of a grid."""
MOST_FEATURES = 5000
"""Of a block; wider ones are narrowed, layer by layer: fits would take too long."""


class BlockNetwork(nn.Module):
    """images (B, C, S, S) -> name of a block -> (B, D). One thread at a time."""

    def __init__(self, backbone: nn.Module, taps: Taps) -> None:
        super().__init__()
        self.backbone, self.taps = backbone, taps

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return block_features(self.backbone, images, self.taps)


def block_features(backbone: nn.Module, images: torch.Tensor, taps: Taps) -> dict[str, torch.Tensor]:
    """Name of a block -> (B, D), from one pass over images (B, C, S, S)."""
    outputs: dict[str, Any] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs[name] = output

        return hook

    with ExitStack() as stack:
        for name in taps.means | taps.grids:
            stack.callback(backbone.get_submodule(name).register_forward_hook(note(name)).remove)
        found = {LAST: backbone(images)}
    maps = {name: _map(output, backbone) for name, output in outputs.items()}
    if taps.means:
        found[MEANS] = torch.cat([maps[name].mean(dim=(2, 3)) for name in taps.means], dim=1)
    if taps.grids:
        found[GRIDS] = torch.cat([_grid(maps[name]) for name in taps.grids], dim=1)
    return found


def find_taps(backbone: nn.Module, in_chans: int, image_size: int) -> Taps:
    """Means: of the later half of the layer groups. Grids: of the last two whose maps are finer than the final one. A
    map whose mean is the features is left out. Sets the backbone to evaluation mode."""
    groups = _layer_groups(backbone)
    if len(groups) < 2:
        return Taps({}, {})
    device = next(backbone.parameters()).device
    images = torch.rand(1, in_chans, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        features = backbone.eval()(images)
    names = {module: name for name, module in backbone.named_modules()}
    ends = layer_group_ends(backbone, images, groups)
    maps = {names[module]: found[0] for module, output in ends if (found := as_map(output, prefix_tokens(backbone)))}
    final = min((feature_map.shape[3] for feature_map in maps.values() if feature_map.shape[3] > 1), default=1)
    layers = {name: feature_map for name, feature_map in maps.items() if not _pools_to(feature_map, features)}
    later = list(layers)[-(len(layers) // 2 + 1) :]
    finer = [name for name, feature_map in layers.items() if feature_map.shape[3] > max(final, GRID - 1)][-2:]
    return Taps(
        _narrowed({name: layers[name].shape[1] for name in later}),
        _narrowed({name: layers[name].shape[1] * GRID**2 for name in finer}),
    )


def _layer_groups(backbone: nn.Module) -> list[list[str]]:
    """With a last convolution or normalisation behind the last group's blocks as a group of its own."""
    *earlier, last = backbones.layer_groups(backbone)
    blocks = last[0].partition(".")[0]
    parts = [[name for name in last if (name.partition(".")[0] == blocks) == inside] for inside in (True, False)]
    return [*earlier, *filter(None, parts)]


def _map(output: Any, backbone: nn.Module) -> torch.Tensor:
    found = as_map(output, prefix_tokens(backbone))
    assert found is not None
    return found[0]


def _pools_to(feature_map: torch.Tensor, features: torch.Tensor) -> bool:
    mean = feature_map.mean(dim=(2, 3))
    return mean.shape == features.shape and torch.allclose(mean, features, rtol=1e-3, atol=1e-5)


def _narrowed(widths: dict[str, int]) -> dict[str, int]:
    """Without the widest layers as long as they are more than MOST_FEATURES together."""
    chosen = dict(widths)
    while sum(chosen.values()) > MOST_FEATURES:
        del chosen[max(chosen, key=lambda name: chosen[name])]
    return chosen


def _grid(feature_map: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, C * GRID * GRID) means. A product with constants, because exporters know adaptive average
    pooling only where it divides the sides evenly."""
    down, across = (_regions(side) for side in feature_map.shape[2:])
    weights = torch.tensor(np.kron(down, across).T.tolist(), dtype=feature_map.dtype, device=feature_map.device)
    return (feature_map.flatten(2) @ weights).flatten(1)  # (B, C, h * w) @ (h * w, GRID * GRID)


def _regions(side: int) -> np.ndarray:
    """(GRID, side): each row averages one region, as adaptive average pooling divides the side."""
    weights = np.zeros((GRID, side))
    for place in range(GRID):
        start, end = place * side // GRID, -(-(place + 1) * side // GRID)
        weights[place, start:end] = 1 / (end - start)
    return weights
