"""Every method points at what supports a class, and computes what its paper says."""

import numpy as np
import pytest
import torch
from torch import nn

from spectacles.core.config import EXPLANATIONS, ErrorAnalysisConfig, PipelineConfig, PredictConfig, explanation_methods
from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.evaluation import attribution
from spectacles.evaluation.attribution import METHODS, blurred, explain, log_odds
from spectacles.models import backbones
from spectacles.models.classifier import Classifier

SIZE = 32
PREPROCESSING = Preprocessing(SIZE, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)


@pytest.fixture
def few_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "WINDOW", 1 / 2)
    monkeypatch.setattr(attribution, "STRIDE", 1 / 4)


class MeanColours(nn.Module):
    """Linear: the mean red and green, (B, 2)."""

    num_features = 2

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images[:, :2], 4)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


class WeightedSum(nn.Module):
    """Linear: every pixel counts with its own weight, (B, 1)."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images * self.weights).sum(dim=(1, 2, 3))[:, None]


def red_or_green(backbone: nn.Module) -> Classifier:
    classifier = Classifier(backbone, 2, 2, dropout=0.5)
    classifier.head.weight.data = torch.tensor([[100.0, -100.0], [-100.0, 100.0]])
    return classifier


def weighted_sum() -> tuple[Classifier, torch.Tensor]:
    """Class 1's log odds are the weighted sum; and the weights (3, SIZE, SIZE)."""
    weights = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    classifier = Classifier(WeightedSum(weights), 1, 2, dropout=0.5)
    classifier.head.weight.data, classifier.head.bias.data = torch.tensor([[0.0], [1.0]]), torch.zeros(2)
    return classifier, weights


def scaled(scores: np.ndarray) -> np.ndarray:
    return np.maximum(scores, 0) / scores.max()


@pytest.mark.parametrize("method", EXPLANATIONS)
def test_the_heat_lies_where_the_colour_of_the_class_is(method: str) -> None:
    image = torch.zeros(3, SIZE, SIZE)
    image[0, 4:8, 20:24] = 1
    image[1, 24:28, 8:12] = 1
    images = torch.stack([image, image])
    saliency = METHODS[method](red_or_green(MeanColours()), images, torch.tensor([0, 1]))
    assert saliency.shape[0] == 2 and saliency.dtype == np.float32
    assert saliency.min() == 0 and saliency.max(axis=(1, 2)).tolist() == [1, 1]
    cell = SIZE / saliency.shape[1]
    for spots, (top, left) in zip(saliency, ((4, 20), (24, 8)), strict=True):
        row, column = np.unravel_index(spots.argmax(), spots.shape)
        assert top <= (row + 0.5) * cell <= top + 4
        assert left <= (column + 0.5) * cell <= left + 4
        assert spots.mean() < 0.2  # the rest of the photo is near 0


@pytest.mark.parametrize("method", EXPLANATIONS)
def test_an_image_without_any_detail_gives_a_cold_map(method: str) -> None:
    saliency = METHODS[method](red_or_green(MeanColours()), torch.zeros(1, 3, SIZE, SIZE), torch.tensor([0]))
    assert saliency.max() == 0


def test_occlusion_is_what_hiding_each_window_costs() -> None:
    classifier, weights = weighted_sum()
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    lost = (weights * (image - blurred(image))[0]).sum(dim=0).numpy()  # by each pixel that is hidden
    cost, times = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    for top in range(0, SIZE - 3, 3):  # windows of a fifth of the side, a tenth apart
        for left in range(0, SIZE - 3, 3):
            window = np.s_[top : top + 6, left : left + 6]
            cost[window] += lost[window].sum()
            times[window] += 1
    cells = [slice(cell * SIZE // 10, -(-(cell + 1) * SIZE // 10)) for cell in range(10)]
    expected = scaled(np.array([[(cost / times)[row, column].mean() for column in cells] for row in cells]))
    saliency = METHODS["occlusion"](classifier, image, torch.tensor([1]))
    np.testing.assert_allclose(saliency[0], expected, atol=1e-4)


def test_integrated_gradients_of_a_linear_network_are_its_weights_times_the_detail() -> None:
    classifier, weights = weighted_sum()
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    exact = (weights * (image - blurred(image))[0]).sum(dim=0).numpy()
    tent = np.array([1, 3, 3, 1]) / 8  # the antialiased bilinear filter for half the size
    padded = np.zeros((SIZE, SIZE))
    rows = np.zeros((SIZE // 2, SIZE))
    for cell in range(SIZE // 2):
        for offset, weight in zip(range(-1, 3), tent, strict=True):
            if 0 <= 2 * cell + offset < SIZE:
                rows[cell, 2 * cell + offset] = weight
    rows /= rows.sum(axis=1, keepdims=True)
    padded = rows @ exact @ rows.T
    saliency = METHODS["integrated_gradients"](classifier, image, torch.tensor([1]))
    np.testing.assert_allclose(saliency[0], scaled(padded), atol=1e-4)


def test_log_odds_are_those_of_the_probabilities() -> None:
    torch.manual_seed(0)
    classifier = Classifier(nn.Flatten(), 12, 4, dropout=0.5).eval()
    images, targets = torch.randn(5, 3, 2, 2), torch.tensor([0, 3, 1, 2, 2])
    probabilities = classifier(images).detach().double().softmax(dim=1).numpy()[np.arange(5), targets]
    expected = np.log(probabilities / (1 - probabilities))
    np.testing.assert_allclose(log_odds(classifier, images, targets).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_blurring_keeps_the_colour_and_takes_the_detail() -> None:
    generator = torch.Generator().manual_seed(0)
    images = 3 + torch.randn(2, 3, 64, 64, generator=generator)
    soft = blurred(images)
    assert soft.shape == images.shape
    torch.testing.assert_close(soft.mean(), images.mean(), atol=0.02, rtol=0)
    assert soft.std() < 0.3 * images.std()
    torch.testing.assert_close(blurred(torch.full((1, 1, 40, 40), 2.0)), torch.full((1, 1, 40, 40), 2.0))


@pytest.mark.usefixtures("few_windows")
@pytest.mark.parametrize("method", EXPLANATIONS)
def test_an_explanation_does_not_depend_on_its_batch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = backbones.build("simple_cnn", 3, SIZE)
    classifier = Classifier(backbone, 128, 3, 0.5).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    targets = [0, 1, 2, 0, 1]
    together = explain(method, classifier, pixels, targets, PREPROCESSING)
    monkeypatch.setattr(attribution, "AT_ONCE", 2)
    np.testing.assert_allclose(explain(method, classifier, pixels, targets, PREPROCESSING), together, atol=1e-4)
    assert together.std() > 0


@pytest.mark.usefixtures("few_windows")
@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"])
def test_architectures_and_nothing_stays_behind(method: str, name: str) -> None:
    torch.manual_seed(0)
    backbone = backbones.build(name, 3, SIZE)
    classifier = Classifier(backbone, backbones.feature_dim(backbone, 3, SIZE), 3, 0.5).train()
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    images = torch.randn(2, 3, SIZE, SIZE)
    before = images.clone()
    saliency = METHODS[method](classifier, images, torch.tensor([0, 2]))
    assert saliency.shape[1] == saliency.shape[2] <= 16
    assert np.isfinite(saliency).all() and saliency.min() >= 0
    assert saliency.max() == 1 and set(saliency.max(axis=(1, 2)).tolist()) <= {0, 1}
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not images.requires_grad and torch.equal(images, before)


def test_one_grey_channel_and_odd_sides_work() -> None:
    torch.manual_seed(0)
    classifier = Classifier(backbones.build("simple_cnn", 1, 40), 128, 2, 0.0).eval()
    for method in EXPLANATIONS:
        assert METHODS[method](classifier, torch.randn(1, 1, 40, 40), torch.tensor([1])).max() == 1
    classifier = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3, 2, 0.0)
    for side in (16, 17, 31):
        assert METHODS["occlusion"](classifier, torch.randn(1, 3, side, side), torch.tensor([1])).max() == 1


def test_names() -> None:
    assert tuple(METHODS) == EXPLANATIONS
    assert explanation_methods("occlusion, gradcam,occlusion") == ["occlusion", "gradcam"]
    for config in (ErrorAnalysisConfig, PredictConfig, PipelineConfig):
        for wrong in ("lime", "gradcam,lime", "", ","):
            with pytest.raises(UserError, match=r"--explain_with .* is unknown: use gradcam, occlusion"):
                config(explain_with=wrong)
        assert config(explain_with="gradcam,occlusion").explain_with == "gradcam,occlusion"
    with pytest.raises(UserError, match="--no_galleries forbids"):
        PredictConfig(explain=True, galleries=False)


def test_of_any_number_of_labels_each_speaks_for_itself() -> None:
    classifier = Classifier(nn.Flatten(), 12, 3, dropout=0.0, multi_label=True)
    images, targets = torch.randn(4, 3, 2, 2), torch.tensor([0, 2, 1, 0])
    expected = classifier(images)[range(4), targets]
    torch.testing.assert_close(log_odds(classifier, images, targets), expected)
