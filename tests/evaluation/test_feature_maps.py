"""The first layer groups' outputs, in every layout that networks keep them in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from spectacles.data.preprocessing import Preprocessing
from spectacles.evaluation.feature_maps import draw_feature_maps, most_active, stage_maps
from spectacles.evaluation.saliency import CannotExplain
from spectacles.models import backbones
from spectacles.models.classifier import Classifier

PREPROCESSING = Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("simple_cnn", 32, [(32, 16), (64, 8)]),  # its last layer group ends in a vector
        ("efficientnet_lite0", 64, [(32, 32), (16, 32), (24, 16)]),
        ("resnet18", 64, [(64, 32), (64, 16), (128, 8)]),
        ("convnext_atto", 64, [(40, 16), (40, 16), (80, 8)]),
        ("vit_tiny_patch16_224", 64, [(192, 4), (192, 4), (192, 4)]),
        ("swin_tiny_patch4_window7_224", 64, [(96, 16), (96, 16), (192, 8)]),
    ],
)
def test_architectures(name: str, size: int, shapes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    backbone = backbones.build(name, 3, size).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        before = backbone(images)
    maps = stage_maps(backbone, images)
    assert [values.shape for _, values in maps] == [(2, channels, side, side) for channels, side in shapes]
    assert [label for label, _ in maps] == ["layer group 1", "layer group 2", "layer group 3"][: len(shapes)]
    assert all(np.isfinite(values).all() and values.std() > 0 for _, values in maps)
    assert not any(module._forward_hooks for module in backbone.modules())
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), before)


def test_the_maps_are_the_outputs_of_the_stages() -> None:
    torch.manual_seed(0)
    backbone = backbones.build("resnet18", 3, 64).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stem = backbone.bn1(backbone.conv1(images))
        first = backbone.layer1(backbone.maxpool(backbone.act1(stem)))
    maps = dict(stage_maps(backbone, images, 2))
    np.testing.assert_allclose(maps["layer group 1"], stem.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(maps["layer group 2"], first.numpy(), rtol=1e-5, atol=1e-6)


def test_tokens_lie_where_their_patches_do() -> None:
    torch.manual_seed(0)
    backbone = backbones.build("vit_tiny_patch16_224", 3, 64).eval()
    changed = torch.zeros(2, 3, 64, 64)
    changed[1, :, 16:32, 32:48] = 1  # row 1, column 2
    [(_, patches), *_] = stage_maps(backbone, changed)
    difference = np.abs(patches[1] - patches[0]).sum(axis=0)
    assert np.unravel_index(difference.argmax(), difference.shape) == (1, 2)


def test_the_most_active_channels_differ_most_over_the_photo() -> None:
    values = np.zeros((4, 3, 3), dtype=np.float32)
    values[0] += 100  # high, and the same everywhere
    values[1, 0, 0], values[3, 1, 1] = 1, -5
    assert most_active(values, 3) == [3, 1, 0]
    assert most_active(values, 9) == [3, 1, 0, 2]


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(backbones.build("simple_cnn", 3, 32), 128, 2, 0.5).train()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    one = draw_feature_maps(classifier, pixels[:1], ["a"], PREPROCESSING, tmp_path / "one.png")
    two = draw_feature_maps(classifier, pixels, ["a", "b"], PREPROCESSING, tmp_path / "two.png")
    with Image.open(one) as first, Image.open(two) as second:
        assert first.width == second.width > 8 * 150
        assert second.height > 1.5 * first.height


def test_a_network_without_such_a_layout_is_reported() -> None:
    with pytest.raises(CannotExplain, match="not laid out like the image"):
        stage_maps(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), torch.zeros(1, 3, 32, 32))
