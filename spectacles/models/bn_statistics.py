"""BatchNorm with statistics of given images: a network that loses channels keeps the spread of its activations."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import BatchNorm2d


@torch.no_grad()
def absorb(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Gives each BatchNorm the statistics of what it sees of the images (B, C, S, S), and the weights with which the
    network computes the same as before. One that was constant, or unfolded, then has statistics of its data."""
    norms = _norms(network)
    sums = {norm: torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in norms}
    counts = dict.fromkeys(norms, 0)

    def add(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(norm, BatchNorm2d)
        values = inputs[0].double()
        sums[norm] += torch.stack([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))]).cpu()
        counts[norm] += values.numel() // values.shape[1]

    handles = [norm.register_forward_pre_hook(add) for norm in norms]
    try:
        network.eval()
        for images in batches:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    for norm in norms:
        if counts[norm]:
            mean, square = sums[norm] / counts[norm]
            _replace_statistics(norm, mean, (square - mean.square()).clamp_min(0))


def _replace_statistics(norm: BatchNorm2d, mean: torch.Tensor, variance: torch.Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    norm.bias.add_(scale * (mean.to(scale) - norm.running_mean))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(scale * (norm.running_var + norm.eps).sqrt())


@torch.no_grad()
def estimate(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Gives each BatchNorm the statistics of what it sees of the images, averaged over the batches, and leaves its
    weights: outputs get the mean and spread that the weights say, whatever the layers before have lost."""
    norms = _norms(network)
    momentum = {norm: norm.momentum for norm in norms}
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # type: ignore[assignment]
        norm.train()
    for images in batches:
        network(images)
    for norm in norms:
        norm.momentum = momentum[norm]
        norm.eval()


def _norms(network: nn.Module) -> list[BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, BatchNorm2d) and module.affine]
