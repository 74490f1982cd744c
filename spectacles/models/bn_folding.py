"""Frozen BatchNorm folded into the convolution before it: the same function with fewer passes over memory."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from spectacles.data.preprocessing import Preprocessing
from spectacles.models.normalization import normalize
from spectacles.models.sample_pictures import sample_pictures
from spectacles.models.torch_device import to_device

State = dict[str, torch.Tensor]
BatchNorm = nn.BatchNorm2d
TOLERANCE = 1e-3
"""Largest difference of features, relative to the largest of them, that rounding explains."""


@dataclass(frozen=True)
class FoldedBatchNorm:
    """The names of a folded pair of layers, and what is needed to restore its original form."""

    conv: str
    norm: str
    eps: float
    conv_had_bias: bool
    counter: torch.Tensor


@torch.no_grad()
def fold_batchnorm(backbone: nn.Module, example: torch.Tensor) -> list[FoldedBatchNorm]:
    """Folds, in place, every BatchNorm that is the only reader of a convolution's output into that convolution.

    `example` (B, C, S, S) is passed through the backbone to see which layer reads which output, whatever the
    architecture. In evaluation mode the backbone computes the same as before; ValueError (and a changed backbone) where
    it does not.
    """
    backbone.eval()
    before = backbone(example)
    folded = fold_pairs(backbone, _pairs(backbone, example))
    difference = (backbone(example) - before).abs().max() / before.abs().max().clamp_min(1e-6)
    if not difference < TOLERANCE:
        raise ValueError(f"folding BatchNorm changed the features by {float(difference):.2g}")
    return folded


def exact_pairs(backbone: nn.Module, preprocessing: Preprocessing) -> list[tuple[str, str]]:
    """Names (convolution, BatchNorm) of the pairs that can be folded, tried on a copy with two pictures. ValueError
    where folding them would change what the backbone computes."""
    device = next(backbone.parameters()).device
    example = normalize(preprocessing, to_device(sample_pictures(preprocessing, count=2), device))
    return [(pair.conv, pair.norm) for pair in fold_batchnorm(copy.deepcopy(backbone), example)]


@torch.no_grad()
def fold_pairs(backbone: nn.Module, pairs: Iterable[tuple[str, str]]) -> list[FoldedBatchNorm]:
    """Folds the named pairs (convolution, BatchNorm), in place, whether that is exact or not."""
    return [_fold_pair(backbone, conv, norm) for conv, norm in pairs]


def unfolded_state(state: State, folded: list[FoldedBatchNorm], prefix: str = "") -> State:
    """A folded network's state dict in the architecture's original form, with BatchNorms that only add the bias."""
    state = dict(state)
    for pair in folded:
        bias = state.pop(f"{prefix}{pair.conv}.bias")
        if pair.conv_had_bias:
            state[f"{prefix}{pair.conv}.bias"] = torch.zeros_like(bias)
        norm = f"{prefix}{pair.norm}"
        state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.ones_like(bias), bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.full_like(bias, 1 - pair.eps)
        state[f"{norm}.num_batches_tracked"] = pair.counter
    return state


def _pairs(backbone: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """Names (convolution, BatchNorm) where the BatchNorm is the only reader of the convolution's output."""
    names = {module: name for name, module in backbone.named_modules()}
    outputs: dict[int, tuple[str, torch.Tensor]] = {}
    readers: dict[int, list[str]] = {}
    calls: dict[str, int] = {}

    def note(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        name = names[module]
        calls[name] = calls.get(name, 0) + 1
        for value in inputs:
            if isinstance(value, torch.Tensor) and id(value) in outputs:
                readers.setdefault(id(value), []).append(name)
        if isinstance(module, nn.Conv2d) and isinstance(output, torch.Tensor):
            outputs[id(output)] = (name, output)  # while the tensor is held, no other one gets its id

    leaves = [module for module in names if not any(True for _ in module.children()) or isinstance(module, BatchNorm)]
    handles = [module.register_forward_hook(note) for module in leaves]
    try:
        backbone(example)
    finally:
        for handle in handles:
            handle.remove()
    pairs = []
    for key, (conv, _) in outputs.items():
        norms = [name for name in readers.get(key, []) if isinstance(backbone.get_submodule(name), BatchNorm)]
        if len(readers.get(key, [])) == len(norms) == 1 and calls[conv] == calls[norms[0]] == 1:
            pairs.append((conv, norms[0]))
    return pairs


def _fold_pair(backbone: nn.Module, conv_name: str, norm_name: str) -> FoldedBatchNorm:
    conv, norm = backbone.get_submodule(conv_name), backbone.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    folded = FoldedBatchNorm(conv_name, norm_name, norm.eps, conv.bias is not None, norm.num_batches_tracked.clone())
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.bias.requires_grad_(conv.weight.requires_grad)  # torch freezes a bias that it adds
    parent, _, child = norm_name.rpartition(".")
    # timm's BatchNormAct2d applies drop and activation as well; they stay.
    rest = nn.Sequential(*(part for name in ("drop", "act") if (part := getattr(norm, name, None)) is not None))
    setattr(backbone.get_submodule(parent), child, rest)
    return folded
