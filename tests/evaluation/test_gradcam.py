"""Grad-CAM points at what supports a class, in every feature layout of backbones."""

import numpy as np
import pytest
import torch
from torch import nn

from spectacles.evaluation.gradcam import grad_cam
from spectacles.evaluation.saliency import CannotExplain
from spectacles.models import backbones
from spectacles.models.classifier import Classifier

SIZE, GRID = 32, 8


class ColourMap(nn.Module):
    """A hand-made backbone: mean red and mean green of each of 8 x 8 patches, and their means as features (B, 2)."""

    num_features = 2

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images[:, :2], SIZE // GRID)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


class ColourMapChannelsLast(ColourMap):
    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward_features(images).permute(0, 2, 3, 1)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(1, 2))


class Block(nn.Module):
    """The patches speak through the class token only, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed = self.norm1(tokens)
        return torch.cat([mixed.mean(dim=1, keepdim=True), tokens[:, 1:]], dim=1)


class ColourTokens(ColourMap):
    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        patches = super().forward_features(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.zeros(len(images), 1, 2), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, 0]


def red_or_green(backbone: nn.Module) -> Classifier:
    """Class 0 is red, class 1 green."""
    classifier = Classifier(backbone, 2, 2, dropout=0.5)
    classifier.head.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    return classifier


@pytest.mark.parametrize("backbone", [ColourMap, ColourMapChannelsLast, ColourTokens])
def test_the_heat_lies_where_the_colour_of_the_class_is(backbone: type[nn.Module]) -> None:
    image = torch.zeros(3, SIZE, SIZE)
    image[0, 4:8, 20:24] = 1  # red: row 1, column 5 of the map
    image[1, 24:28, 8:12] = 1  # green: row 6, column 2
    saliency = grad_cam(red_or_green(backbone()), torch.stack([image, image]), torch.tensor([0, 1]))
    expected = np.zeros((2, GRID, GRID), dtype=np.float32)
    expected[0, 1, 5] = expected[1, 6, 2] = 1
    np.testing.assert_allclose(saliency, expected, atol=1e-6)


def test_nothing_that_speaks_for_a_class_gives_a_cold_map() -> None:
    saliency = grad_cam(red_or_green(ColourMap()), torch.zeros(1, 3, SIZE, SIZE), torch.tensor([0]))
    np.testing.assert_array_equal(saliency, np.zeros((1, GRID, GRID)))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("efficientnet_lite0", 4),
        ("resnet18", 4),
        ("mobilenetv3_small_050", 4),
        ("convnext_atto", 4),
        ("densenet121", 4),  # a layer group without a module of its own
        ("swin_tiny_patch4_window7_224", 4),
        ("vit_tiny_patch16_224", 4),
        ("simple_cnn", 16),
    ],
)
def test_architectures(name: str, side: int) -> None:
    torch.manual_seed(0)
    backbone = backbones.build(name, 3, 64).eval()
    classifier = Classifier(backbone, backbones.feature_dim(backbone, 3, 64), 3, 0.2).eval()
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        before = classifier(images)
        # The map is taken from a pass in two halves, which must be the very pass that predicts.
        halves = backbone.forward_head(backbone.forward_features(images))
        torch.testing.assert_close(halves, backbone(images))
    saliency = grad_cam(classifier, images, torch.tensor([0, 1, 2, 0]))
    assert saliency.shape == (4, side, side)
    assert saliency.dtype == np.float32
    assert saliency.min() >= 0
    assert set(saliency.max(axis=(1, 2)).round(6)) <= {0.0, 1.0}
    assert saliency.max() == 1
    with torch.no_grad():  # no hook is left behind
        torch.testing.assert_close(classifier(images), before)


def test_the_heat_is_gradient_times_activation_before_the_last_reduction() -> None:
    torch.manual_seed(0)
    classifier = Classifier(backbones.build("resnet18", 3, 64), 512, 3, 0.2).eval()
    images, targets = torch.randn(2, 3, 64, 64), torch.tensor([2, 0])
    backbone = classifier.backbone
    stem = backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(images))))
    middle = backbone.layer3(backbone.layer2(backbone.layer1(stem)))
    logits = classifier.head(backbone.global_pool(backbone.layer4(middle)))
    [gradients] = torch.autograd.grad(logits[[0, 1], targets].sum(), middle)
    expected = (gradients * middle).sum(dim=1).clamp(min=0).detach()
    expected /= expected.amax(dim=(1, 2), keepdim=True)
    np.testing.assert_allclose(grad_cam(classifier, images, targets), expected.numpy(), atol=1e-5)


def test_a_backbone_without_a_map_is_reported() -> None:
    class Flat(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :2]

    class FlatFeatures(Flat):
        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return self(images)

    class Uneven(ColourTokens):
        num_prefix_tokens = 0

    for backbone, reason in ((Flat(), "features before pooling"), (FlatFeatures(), "neither"), (Uneven(), "square")):
        with pytest.raises(CannotExplain, match=reason):
            grad_cam(red_or_green(backbone), torch.zeros(1, 3, SIZE, SIZE), torch.tensor([0]))
