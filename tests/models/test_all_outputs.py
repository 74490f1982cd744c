"""One pass gives logits, features, what out-of-distribution scores look at, and the last map where that explains."""

import pickle

import pytest
import torch
from torch import nn

from spectacles.data.preprocessing import Preprocessing
from spectacles.models import backbones
from spectacles.models.all_outputs import AllOutputs
from spectacles.models.classifier import Classifier

PREPROCESSING = Preprocessing(64, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


def classifier_on(backbone: nn.Module) -> Classifier:
    return Classifier(backbone, backbones.feature_dim(backbone, 3, 64), 3, dropout=0.5)


def make(name: str) -> Classifier:
    torch.manual_seed(0)
    return classifier_on(backbones.build(name, 3, 64))


@pytest.mark.parametrize(
    ("name", "map_of"),
    [
        ("test_efficientnet", lambda net: net.blocks[-1]),
        ("test_convnext", lambda net: net.stages[-1]),
        ("test_vit", lambda net: net.blocks[-1]),
        ("simple_cnn", None),
    ],
)
@torch.no_grad()
def test_beside_the_logits_stand_the_features_and_the_mean_of_the_last_known_map(name, map_of) -> None:
    classifier, images = make(name), torch.randn(3, 3, 64, 64)
    network, net = AllOutputs(classifier, PREPROCESSING), classifier.backbone
    outputs = network(images)
    torch.testing.assert_close(outputs["logits"], classifier(images))
    torch.testing.assert_close(outputs["features"], classifier.embed(images))
    if map_of is None:
        expected = outputs["features"]
    else:
        seen = []
        handle = map_of(net).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        net(images)
        handle.remove()
        expected = seen[0].flatten(2).mean(2) if seen[0].ndim == 4 else seen[0].mean(1)
    torch.testing.assert_close(outputs["ood_features"], expected)
    pickle.dumps(classifier)  # a hook that was left behind, a function in a function, could not be pickled


class ChannelsLast(nn.Module):
    """Features are the maximum of a map (B, h, w, C), of which timm knows."""

    feature_info = ({"module": "layer", "num_chs": 3},)

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.factor = nn.Identity(), nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.permute(0, 2, 3, 1)).amax((1, 2))


@torch.no_grad()
def test_a_map_whose_channels_come_last_is_averaged_over_its_places() -> None:
    images = torch.randn(2, 3, 64, 64)
    outputs = AllOutputs(Classifier(ChannelsLast(), 3, 2, 0.0), PREPROCESSING)(images)
    torch.testing.assert_close(outputs["features"], images.amax((2, 3)))
    torch.testing.assert_close(outputs["ood_features"], images.mean((2, 3)))
    assert "last_map" not in outputs


@pytest.mark.parametrize(
    ("name", "averages"),
    [("test_efficientnet", True), ("test_resnet", True), ("test_convnext", False), ("test_vit", False),
     ("mobilenetv3_small_050", False), ("simple_cnn", False)],
)  # fmt: skip
@torch.no_grad()
def test_there_is_a_last_map_exactly_where_its_mean_is_the_features(name: str, averages: bool) -> None:
    classifier, images = make(name), torch.randn(2, 3, 64, 64)
    outputs = AllOutputs(classifier, PREPROCESSING)(images)
    assert ("last_map" in outputs) == averages
    if averages:
        torch.testing.assert_close(outputs["last_map"].mean(dim=(2, 3)), outputs["features"], atol=1e-5, rtol=1e-4)
