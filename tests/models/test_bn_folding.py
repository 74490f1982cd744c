"""Folding BatchNorm changes how a network is written, not what it computes."""

import copy

import pytest
import torch
from torch import nn

from spectacles.models import backbones
from spectacles.models.bn_folding import fold_batchnorm, unfolded_state
from spectacles.models.freezing import BATCH_NORMS

NETS = {"resnet18": 64, "mobilenetv3_small_100": 64, "efficientnet_lite0": 64, "densenet121": 64, "simple_cnn": 32}


def randomized(network: nn.Module) -> nn.Module:
    """Statistics and parameters as after training, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.num_batches_tracked.fill_(7)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return network.eval()


def make_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomized(backbones.build(name, 3, NETS[name]))


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def assert_same_function(one: nn.Module, other: nn.Module, size: int) -> None:
    expected = one.eval()(images(size))
    torch.testing.assert_close(other.eval()(images(size)), expected, rtol=1e-3, atol=1e-4 * float(expected.std()))
    assert expected.std() > 1e-3


@pytest.mark.parametrize("name", NETS)
def test_a_folded_network_computes_the_same(name):
    network = make_net(name)
    before = copy.deepcopy(network)
    folds = fold_batchnorm(network, images(NETS[name], 1))
    assert folds
    assert set(norms(network)) == set(norms(before)) - {fold.norm for fold in folds}
    assert_same_function(before, network, NETS[name])


@pytest.mark.parametrize("name", NETS)
def test_its_state_in_the_old_form_loads_into_the_architecture(name):
    network = make_net(name)
    before = copy.deepcopy(network)
    folds = fold_batchnorm(network, images(NETS[name], 1))
    plain = backbones.build(name, 3, NETS[name])
    plain.load_state_dict(unfolded_state(network.state_dict(), folds))
    assert_same_function(before, plain, NETS[name])
    assert all(torch.equal(value, before.state_dict()[key])
               for key, value in plain.state_dict().items() if key.endswith("num_batches_tracked"))  # fmt: skip


def test_what_a_folded_network_learns_is_in_the_old_form_too():
    network = make_net("resnet18")
    folds = fold_batchnorm(network, images(64, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    network(images(64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimizer.step()
    plain = backbones.build("resnet18", 3, 64)
    plain.load_state_dict(unfolded_state(network.state_dict(), folds))
    assert_same_function(network, plain, 64)


def test_folding_what_was_unfolded_gives_the_same_network_again():
    network = make_net("mobilenetv3_small_100")
    folds = fold_batchnorm(network, images(64, 1))
    again = backbones.build("mobilenetv3_small_100", 3, 64)
    again.load_state_dict(unfolded_state(network.state_dict(), folds))
    assert [(fold.conv, fold.norm) for fold in fold_batchnorm(again, images(64, 1))] == [
        (fold.conv, fold.norm) for fold in folds
    ]
    for key, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "all_of_them"), [("resnet18", True), ("simple_cnn", True), ("densenet121", False)])
def test_every_pair_is_folded_where_the_norm_follows_its_convolution(name, all_of_them):
    network = make_net(name)
    fold_batchnorm(network, images(NETS[name], 1))
    assert (norms(network) == []) is all_of_them  # densenet normalises what it has concatenated


def test_names_under_a_prefix_are_unfolded_and_others_left_alone():
    network = make_net("simple_cnn")
    folds = fold_batchnorm(network, images(32, 1))
    state = {f"backbone.{name}": value for name, value in network.state_dict().items()} | {"head.bias": torch.ones(2)}
    plain = unfolded_state(state, folds, "backbone.")
    names = {f"backbone.{name}" for name in backbones.build("simple_cnn", 3, 32).state_dict()}
    assert set(plain) == names | {"head.bias"}
    assert set(state) == {f"backbone.{name}" for name in network.state_dict()} | {"head.bias"}


class Small(nn.Module):
    """A convolution, and a BatchNorm that reads it, with what else reads it left to `also`."""

    def __init__(self, bias: bool = False, **norm: object) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, **norm)
        self.other = nn.Conv2d(4, 4, 1)

    def also(self, values: torch.Tensor, normalised: torch.Tensor) -> torch.Tensor:
        return self.other(normalised)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        values = self.conv(inputs)
        return self.also(values, self.norm(values)).flatten(1)


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_with_or_without_bias_is_folded_and_restored(bias):
    torch.manual_seed(0)
    network = randomized(Small(bias))
    before = copy.deepcopy(network)
    [fold] = fold_batchnorm(network, images(8, 1))
    assert (fold.conv, fold.norm, fold.conv_had_bias) == ("conv", "norm", bias)
    assert_same_function(before, network, 8)
    plain = Small(bias)
    plain.load_state_dict(unfolded_state(network.state_dict(), [fold]))
    assert_same_function(before, plain, 8)


def test_a_frozen_convolution_stays_frozen_and_a_learning_one_learns():
    for learns in (True, False):
        network = randomized(Small()).requires_grad_(learns)
        fold_batchnorm(network, images(8, 1))
        assert {parameter.requires_grad for parameter in network.parameters()} == {learns}


class TwoReaders(Small):
    def also(self, values: torch.Tensor, normalised: torch.Tensor) -> torch.Tensor:
        return normalised + self.other(values)


class TwoNorms(Small):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.BatchNorm2d(4)

    def also(self, values: torch.Tensor, normalised: torch.Tensor) -> torch.Tensor:
        return normalised + self.second(values)


class CalledTwice(Small):
    def also(self, values: torch.Tensor, normalised: torch.Tensor) -> torch.Tensor:
        return normalised + self.norm(self.other(normalised))


class NormBeforeConvolution(Small):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.other(self.norm(torch.relu(self.conv(inputs)))).flatten(1)


@pytest.mark.parametrize("network", [TwoReaders, TwoNorms, CalledTwice, NormBeforeConvolution])
def test_a_convolution_that_others_read_too_is_not_folded(network):
    torch.manual_seed(0)
    network = randomized(network())
    before = copy.deepcopy(network.state_dict())
    assert fold_batchnorm(network, images(8, 1)) == []
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class HiddenReader(Small):
    def also(self, values: torch.Tensor, normalised: torch.Tensor) -> torch.Tensor:
        return normalised + values


def test_a_reader_that_is_no_module_is_noticed():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="changed the features"):
        fold_batchnorm(randomized(HiddenReader()), images(8, 1))


def test_a_norm_without_parameters_is_folded():
    torch.manual_seed(0)
    network = randomized(Small(affine=False))
    before = copy.deepcopy(network)
    assert len(fold_batchnorm(network, images(8, 1))) == 1
    assert_same_function(before, network, 8)
