"""Where in a network features are laid out like the image, whichever way an architecture keeps them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import isqrt
from typing import Any

import torch
from torch import nn

Back = Callable[[torch.Tensor], torch.Tensor]


def as_map(features: Any, prefix: int = 0) -> tuple[torch.Tensor, Back] | None:
    """(the features as (B, C, h, w), what turns such a map back); None where they are not laid out like the image.

    They may be a map (B, C, h, w), the same with its channels last (Swin and its like), or a transformer's tokens
    (B, prefix + h * h, C), of which the prefix (class and register tokens) stays as it is.
    """
    if not isinstance(features, torch.Tensor):
        return None
    if features.ndim == 4:
        if features.shape[1] == features.shape[2] != features.shape[3]:  # images are square
            return features.permute(0, 3, 1, 2), lambda feature_map: feature_map.permute(0, 2, 3, 1)
        return features, lambda feature_map: feature_map
    if features.ndim != 3:
        return None
    patches = features[:, prefix:].transpose(1, 2)
    side = isqrt(patches.shape[2])
    if side < 2 or side**2 != patches.shape[2]:
        return None
    return patches.reshape(*patches.shape[:2], side, side), lambda feature_map: torch.cat(
        [features[:, :prefix], feature_map.flatten(2).transpose(1, 2)], dim=1
    )


def prefix_tokens(backbone: nn.Module) -> int:
    return int(getattr(backbone, "num_prefix_tokens", 0))


def layer_group_ends(
    backbone: nn.Module, images: torch.Tensor, groups: Sequence[list[str]]
) -> list[tuple[nn.Module, Any]]:
    """(module, its output) at the end of each layer group, of `backbones.layer_groups`, from one pass over images."""
    ends: dict[int, tuple[nn.Module, Any]] = {}

    def watch(place: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            ends[place] = module, output  # of several, the last one called

        return hook

    with ExitStack() as stack, torch.no_grad():
        for place, parameters in enumerate(groups):
            for name in _outlets(backbone, parameters):
                handle = backbone.get_submodule(name).register_forward_hook(watch(place))
                stack.callback(handle.remove)
        backbone(images)
    return [ends[place] for place in sorted(ends)]


def _outlets(backbone: nn.Module, parameters: list[str]) -> list[str]:
    """The module that holds this layer group and nothing else; where there is none, all that own its parameters: the
    output of the last of them is that of the layer group."""
    owners = sorted({name.rpartition(".")[0] for name in parameters} - {""})
    shared = _shared_parent(owners)
    if shared and len(list(backbone.get_submodule(shared).parameters())) == len(parameters):
        return [shared]
    return owners


def _shared_parent(names: list[str]) -> str:
    shared: list[str] = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
