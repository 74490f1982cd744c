"""Which parameters are trained, in which mode and at which rates, checked against the names in the architectures."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spectacles.models import backbones, freezing
from spectacles.models.bn_folding import fold_batchnorm
from spectacles.models.classifier import Classifier
from spectacles.models.freezing import BATCH_NORMS

RESNET18 = ["conv1|bn1", r"layer1\.", r"layer2\.", r"layer3\.", r"layer4\."]
SIMPLE_CNN = [r"blocks\.0\.", r"blocks\.1\.", r"blocks\.2\.|fc|bn"]
"""How the parameter names of each layer group begin, from the input up."""
NETS = {"resnet18": RESNET18, "simple_cnn": SIMPLE_CNN}

nets = pytest.mark.parametrize("name", NETS)
folded_or_not = pytest.mark.parametrize("folded", [False, True])


def make_classifier(name: str, folded: bool = False) -> tuple[Classifier, freezing.LayerGroups]:
    torch.manual_seed(0)
    backbone = backbones.build(name, 3, 32)
    classifier = Classifier(backbone, backbones.feature_dim(backbone, 3, 32), 2, 0.5)
    layer_groups = freezing.layer_groups_of(classifier)
    if folded:
        fold_batchnorm(backbone, torch.zeros(1, 3, 32, 32))
    return classifier, layer_groups


def group_of(name: str, parameter: str) -> int:
    """Number of the layer group, counted from the input."""
    [found] = [number for number, start in enumerate(NETS[name]) if re.match(start, parameter)]
    return found


def norms(classifier: Classifier) -> dict[str, nn.Module]:
    found = classifier.backbone.named_modules()
    return {name: module for name, module in found if isinstance(module, BATCH_NORMS)}


# unfreezing


@given(st.integers(1, 30), st.integers(0, 50))
def test_all_and_last_n_do_not_depend_on_the_epoch(count, epoch):
    assert freezing.unfrozen_groups("all", count, epoch, 50) == count
    for number in (1, 3, 99):
        assert freezing.unfrozen_groups(f"last:{number}", count, epoch, 50) == min(number, count)


@given(st.integers(1, 30), st.integers(1, 50))
def test_progressive_starts_at_the_top_never_goes_back_and_ends_with_everything(count, epochs):
    depths = [freezing.unfrozen_groups("progressive", count, epoch, epochs) for epoch in range(epochs)]
    assert depths[0] >= 1 and depths[-1] == count
    assert depths == sorted(depths)
    assert all(abs(depth - count * (epoch + 1) / epochs) < 1 for epoch, depth in enumerate(depths))


# freezing


@nets
def test_the_layer_groups_are_those_of_the_architecture_from_the_input_up(name):
    classifier, layer_groups = make_classifier(name)
    assert len(layer_groups) == len(NETS[name])
    for parameter, _ in classifier.backbone.named_parameters():
        owners = [number for number, names in enumerate(layer_groups) if parameter.rpartition(".")[0] in names]
        assert owners == [group_of(name, parameter)]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "densenet121"])
def test_every_parameter_belongs_to_one_layer_group(name):
    classifier, layer_groups = make_classifier(name)
    owned = [names for group in backbones.layer_groups(classifier.backbone) for names in group]
    assert sorted(owned) == sorted(name for name, _ in classifier.backbone.named_parameters())
    assert len(layer_groups) > 2
    assert sum(map(len, layer_groups)) == len(set().union(*layer_groups))


@nets
@folded_or_not
@pytest.mark.parametrize("unfrozen", [0, 1, 2, 99])
def test_exactly_the_last_layer_groups_and_the_head_learn(name, folded, unfrozen):
    classifier, layer_groups = make_classifier(name, folded)
    unfrozen = min(unfrozen, len(layer_groups))
    freezing.freeze_below(classifier, layer_groups, len(layer_groups))
    freezing.freeze_below(classifier, layer_groups, unfrozen)
    for parameter, tensor in classifier.backbone.named_parameters():
        assert tensor.requires_grad == (group_of(name, parameter) >= len(layer_groups) - unfrozen), parameter
    assert all(tensor.requires_grad for tensor in classifier.head.parameters())


def test_lone_parameters_are_frozen_with_their_layer_group():
    classifier, layer_groups = make_classifier("test_vit")
    freezing.freeze_below(classifier, layer_groups, 1)
    assert not classifier.backbone.pos_embed.requires_grad and not classifier.backbone.cls_token.requires_grad
    freezing.freeze_below(classifier, layer_groups, len(layer_groups))
    assert all(parameter.requires_grad for parameter in classifier.parameters())


@folded_or_not
def test_a_step_changes_what_learns_and_nothing_else(folded):
    classifier, layer_groups = make_classifier("simple_cnn", folded)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    freezing.freeze_below(classifier, layer_groups, 1)
    freezing.train_mode(classifier, "eval")
    groups = freezing.parameter_groups(classifier, layer_groups, 0.1, 0.5, 1.0)
    optimizer = torch.optim.AdamW(groups)
    classifier(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    for name, parameter in classifier.named_parameters():
        learns = not name.startswith("backbone.") or group_of("simple_cnn", name.removeprefix("backbone.")) >= 2
        assert torch.equal(parameter, before[name]) == (not learns), name
    for name, value in classifier.named_buffers():
        assert torch.equal(value, before[name]), name


# modes


@nets
@pytest.mark.parametrize("batch_norm", ["eval", "fold"])
def test_batchnorm_keeps_its_statistics_unless_it_is_to_learn(name, batch_norm):
    classifier, layer_groups = make_classifier(name)
    freezing.freeze_below(classifier, layer_groups, len(layer_groups))
    freezing.train_mode(classifier.eval(), batch_norm)
    assert classifier.training and classifier.backbone.training and classifier.dropout.training
    assert norms(classifier) and not any(norm.training for norm in norms(classifier).values())


@nets
@pytest.mark.parametrize("unfrozen", [0, 1, 2, 99])
def test_frozen_batchnorm_keeps_its_statistics_even_where_others_learn(name, unfrozen):
    classifier, layer_groups = make_classifier(name)
    unfrozen = min(unfrozen, len(layer_groups))
    before = {name: norm.running_mean.clone() for name, norm in norms(classifier).items()}
    freezing.freeze_below(classifier, layer_groups, unfrozen)
    freezing.train_mode(classifier, "train")
    classifier(torch.randn(8, 3, 32, 32) + 1)
    for norm_name, norm in norms(classifier).items():
        learns = group_of(name, norm_name) >= len(layer_groups) - unfrozen
        assert norm.training == learns, norm_name
        assert torch.equal(norm.running_mean, before[norm_name]) == (not learns), norm_name


@pytest.mark.parametrize("batch_norm", ["fold", "eval", "train"])
def test_while_only_the_head_learns_the_features_are_those_of_evaluation(batch_norm):
    class Noisy(nn.Module):
        """A backbone with BatchNorm and dropout within."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers(images)

    torch.manual_seed(0)
    classifier, images = Classifier(Noisy(), 4 * 6 * 6, 2, 0.5), torch.randn(4, 3, 8, 8)
    expected = classifier.eval().embed(images)
    layer_groups = freezing.layer_groups_of(classifier)
    freezing.freeze_below(classifier, layer_groups, 0)
    freezing.train_mode(classifier, batch_norm)
    assert torch.equal(classifier.embed(images), expected)
    assert classifier.dropout.training and classifier.head.training
    freezing.freeze_below(classifier, layer_groups, len(layer_groups))
    freezing.train_mode(classifier, batch_norm)
    assert not torch.equal(classifier.embed(images), expected)


# rates


@nets
@folded_or_not
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_every_parameter_is_in_one_group_at_the_rate_of_its_layer_group(name, folded, layer_decay):
    classifier, layer_groups = make_classifier(name, folded)
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    groups = freezing.parameter_groups(classifier, layer_groups, 0.1, 0.02, layer_decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(names)
    for group in groups:
        for parameter in group["params"]:
            full = names[id(parameter)]
            below = 0
            if full.startswith("backbone."):
                below = len(layer_groups) - group_of(name, full.removeprefix("backbone."))
            assert group["lr"] == pytest.approx(0.1 * layer_decay**below), full
            assert group["weight_decay"] == (0.02 if parameter.ndim > 1 else 0), full
    assert len({group["name"] for group in groups}) == len(groups)


@nets
def test_the_groups_of_the_head_come_first_because_the_history_shows_the_rate_of_the_first(name):
    classifier, layer_groups = make_classifier(name)
    groups = freezing.parameter_groups(classifier, layer_groups, 0.1, 0.02, 0.5)
    first = {id(parameter) for group in groups[:2] for parameter in group["params"]}
    assert first == {id(parameter) for parameter in classifier.head.parameters()}
    assert groups[0]["lr"] == 0.1
