"""BatchNorm takes the statistics of given images, before and after a network loses channels."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from spectacles.models import backbones, bn_statistics


@pytest.fixture
def network() -> nn.Module:
    """With BatchNorms that are constant, as where they were folded while training."""
    torch.manual_seed(0)
    made = backbones.build("test_efficientnet", 3, 32).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_var.fill_(1 - module.eps)
    return made


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return list(torch.randn(2, 32, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


def inputs_of(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    seen = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    with torch.no_grad():
        network(images)
    return seen


def test_statistics_are_those_of_the_images_and_the_function_stays(network, batches):
    before = copy.deepcopy(network)
    bn_statistics.absorb(network, batches)
    images = torch.cat(batches)
    with torch.no_grad():
        torch.testing.assert_close(network(images), before(images), rtol=1e-3, atol=1e-4)
    for name, values in inputs_of(copy.deepcopy(before), images).items():
        norm = network.get_submodule(name)
        moved = values.transpose(0, 1).flatten(1).double()
        np.testing.assert_allclose(norm.running_mean, moved.mean(1), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(norm.running_var, moved.var(1, correction=0), rtol=1e-3, atol=1e-5)


def test_outputs_get_back_the_spread_that_they_had(network, batches):
    """After the first convolution has become half as strong."""
    bn_statistics.absorb(network, batches)
    images = torch.cat(batches)
    expected = network(images).std(dim=0).detach()
    with torch.no_grad():
        network.conv_stem.weight.mul_(0.5)
    weaker = network(images).std(dim=0).detach()
    bn_statistics.estimate(network, batches)
    restored = network(images).std(dim=0).detach()
    assert (restored - expected).abs().mean() < 0.3 * (weaker - expected).abs().mean()
    assert all(module.momentum is not None and not module.training for module in network.modules()
               if isinstance(module, nn.BatchNorm2d))  # fmt: skip
