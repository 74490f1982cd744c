"""Every method points at what supports a class, and computes what its paper says."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from spectacles.core.config import EXPLANATIONS, ErrorAnalysisConfig, PipelineConfig, PredictConfig, explanation_methods
from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.evaluation import attribution
from spectacles.evaluation import occlusion as occlusions
from spectacles.evaluation.attribution import METHODS, explain
from spectacles.evaluation.integrated_gradients import blurred, integrated_gradients, log_odds
from spectacles.evaluation.saliency import CannotExplain
from spectacles.models import backbones
from spectacles.models.all_outputs import AllOutputs
from spectacles.models.classifier import Classifier
from spectacles.models.normalization import normalize
from spectacles.models.torch_network import PixelNetwork

SIZE = 32
PREPROCESSING = Preprocessing(SIZE, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)


@pytest.fixture
def few_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occlusions, "WINDOW", 1 / 2)
    monkeypatch.setattr(occlusions, "STRIDE", 1 / 4)


class InTorch:
    """What the methods see of a Predictor, for any classifier. Pixels 0..255 are -1..1 to it."""

    def __init__(self, classifier: Classifier, preprocessing: Preprocessing = PREPROCESSING) -> None:
        self.classifier = classifier
        self.info = SimpleNamespace(
            preprocessing=preprocessing, multi_label=classifier.multi_label, backbone=type(classifier.backbone).__name__
        )
        self.outputs = PixelNetwork(AllOutputs(classifier, preprocessing), preprocessing, "cpu").torch_engine()

    @property
    def head_weight(self) -> np.ndarray:
        return self.classifier.head.weight.detach().numpy()

    @contextmanager
    def torch_network(self) -> Iterator[Classifier]:
        yield self.classifier


class MeanColours(nn.Module):
    """Linear: the mean red and green, (B, 2)."""

    num_features = 2

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images[:, :2], 4)

    def forward_head(self, features: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
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


def red_or_green() -> InTorch:
    classifier = Classifier(MeanColours(), 2, 2, dropout=0.5)
    classifier.head.weight.data = torch.tensor([[100.0, -100.0], [-100.0, 100.0]])
    return InTorch(classifier)


def weighted_sum() -> tuple[Classifier, np.ndarray]:
    """Class 1's log odds are the weighted sum; and the weights (3, SIZE, SIZE)."""
    weights = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    classifier = Classifier(WeightedSum(weights), 1, 2, dropout=0.5)
    classifier.head.weight.data, classifier.head.bias.data = torch.tensor([[0.0], [1.0]]), torch.zeros(2)
    return classifier, weights.numpy()


def make(name: str, side: int = SIZE, in_chans: int = 3) -> InTorch:
    torch.manual_seed(0)
    backbone = backbones.build(name, in_chans, side)
    preprocessing = Preprocessing(side, "squash", "bilinear", (0.5,) * in_chans, (0.5,) * in_chans, in_chans)
    return InTorch(Classifier(backbone, backbones.feature_dim(backbone, in_chans, side), 3, 0.5), preprocessing)


def pixels_of(count: int, side: int = SIZE, in_chans: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, in_chans), dtype=np.uint8)


def scaled(scores: np.ndarray) -> np.ndarray:
    return np.maximum(scores, 0) / scores.max()


@pytest.mark.parametrize("method", EXPLANATIONS)
def test_the_heat_lies_where_the_colour_of_the_class_is(method: str) -> None:
    image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    image[4:8, 20:24, 0] = 255
    image[24:28, 8:12, 1] = 255
    saliency = explain(method, red_or_green(), np.stack([image, image]), [0, 1])
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
    assert explain(method, red_or_green(), np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8), [0]).max() == 0


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_class_activation_maps_are_grad_cam_on_the_last_map(name: str) -> None:
    network, pixels, targets = make(name, 64), pixels_of(3, 64), [0, 2, 1]
    classifier = network.classifier
    layer = {"test_efficientnet": "bn2", "test_resnet": "layer4"}[name]
    captum = LayerGradCam(classifier, classifier.backbone.get_submodule(layer))
    images = normalize(network.info.preprocessing, torch.from_numpy(pixels))
    scores = captum.attribute(images, target=torch.tensor(targets)).squeeze(1).detach().numpy()
    expected = np.stack([scaled(each) if each.max() > 0 else np.zeros_like(each) for each in scores])
    np.testing.assert_allclose(explain("cam", network, pixels, targets), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["simple_cnn", "test_vit", "mobilenetv3_small_050"])
def test_there_is_no_class_activation_map_where_features_are_not_a_mean(name: str) -> None:
    with pytest.raises(CannotExplain, match="gives no feature map whose mean the features are"):
        explain("cam", make(name), pixels_of(1), [0])


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
def test_what_needs_gradients_says_so_where_torch_is_missing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, find = red_or_green(), importlib.util.find_spec
    monkeypatch.setattr(attribution, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(CannotExplain, match="PyTorch is not installed here"):
        explain(method, network, pixels_of(1), [0])
    explain("occlusion", network, pixels_of(1), [0])


def test_occlusion_is_what_hiding_each_window_costs() -> None:
    classifier, weights = weighted_sum()
    [image] = pixels_of(1)
    detail = (image.astype(float) - occlusions.blurred(image)).transpose(2, 0, 1) / 127.5
    lost = (weights * detail).sum(axis=0)  # by each pixel that is hidden
    cost, times = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    for top in range(0, SIZE - 3, 3):  # windows of a fifth of the side, a tenth apart
        for left in range(0, SIZE - 3, 3):
            window = np.s_[top : top + 6, left : left + 6]
            cost[window] += lost[window].sum()
            times[window] += 1
    cells = [slice(cell * SIZE // 10, -(-(cell + 1) * SIZE // 10)) for cell in range(10)]
    expected = scaled(np.array([[(cost / times)[row, column].mean() for column in cells] for row in cells]))
    np.testing.assert_allclose(explain("occlusion", InTorch(classifier), image[None], [1])[0], expected, atol=1e-3)


def test_integrated_gradients_of_a_linear_network_are_its_weights_times_the_detail() -> None:
    classifier, weights = weighted_sum()
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    exact = (weights * (image - blurred(image))[0].numpy()).sum(axis=0)
    tent = np.array([1, 3, 3, 1]) / 8  # the antialiased bilinear filter for half the size
    rows = np.zeros((SIZE // 2, SIZE))
    for cell in range(SIZE // 2):
        for offset, weight in zip(range(-1, 3), tent, strict=True):
            if 0 <= 2 * cell + offset < SIZE:
                rows[cell, 2 * cell + offset] = weight
    rows /= rows.sum(axis=1, keepdims=True)
    saliency = integrated_gradients(classifier, image, torch.tensor([1]))
    np.testing.assert_allclose(saliency[0], scaled(rows @ exact @ rows.T), atol=1e-4)


def test_log_odds_are_those_of_the_probabilities() -> None:
    torch.manual_seed(0)
    classifier = Classifier(nn.Flatten(), 12, 4, dropout=0.5).eval()
    images, targets = torch.randn(5, 3, 2, 2), torch.tensor([0, 3, 1, 2, 2])
    logits = classifier(images).detach()
    probabilities = logits.double().softmax(dim=1).numpy()
    expected = np.log(probabilities / (1 - probabilities))
    found = log_odds(classifier, images, targets).detach().numpy()
    np.testing.assert_allclose(found, expected[np.arange(5), targets], rtol=1e-5, atol=1e-6)
    for target in range(4):
        found = occlusions.log_odds(logits.numpy(), target, multi_label=False)
        np.testing.assert_allclose(found, expected[:, target], rtol=1e-5, atol=1e-6)


def test_of_any_number_of_labels_each_speaks_for_itself() -> None:
    classifier = Classifier(nn.Flatten(), 12, 3, dropout=0.0, multi_label=True)
    images, targets = torch.randn(4, 3, 2, 2), torch.tensor([0, 2, 1, 0])
    logits = classifier(images)
    torch.testing.assert_close(log_odds(classifier, images, targets), logits[range(4), targets])
    found = occlusions.log_odds(logits.detach().numpy(), 2, multi_label=True)
    np.testing.assert_array_equal(found, logits[:, 2].detach())


def test_blurring_keeps_the_colour_and_takes_the_detail() -> None:
    generator = torch.Generator().manual_seed(0)
    images = 3 + torch.randn(2, 3, 64, 64, generator=generator)
    soft = blurred(images)
    assert soft.shape == images.shape
    torch.testing.assert_close(soft.mean(), images.mean(), atol=0.02, rtol=0)
    assert soft.std() < 0.3 * images.std()
    [pixels] = pixels_of(1, 64)
    in_torch = blurred(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(occlusions.blurred(pixels), in_torch, atol=1)


@pytest.mark.usefixtures("few_windows")
@pytest.mark.parametrize("method", EXPLANATIONS)
def test_an_explanation_does_not_depend_on_its_batch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, pixels, targets = make("test_efficientnet"), pixels_of(5), [0, 1, 2, 0, 1]
    together = explain(method, network, pixels, targets)
    monkeypatch.setattr(attribution, "AT_ONCE", 2)
    np.testing.assert_allclose(explain(method, network, pixels, targets), together, atol=1e-4)
    assert together.max() == 1


@pytest.mark.usefixtures("few_windows")
@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"])
def test_architectures_and_nothing_stays_behind(method: str, name: str) -> None:
    network = make(name)
    for parameter in network.classifier.backbone.parameters():
        parameter.requires_grad_(False)
    saliency = explain(method, network, pixels_of(2), [0, 2])
    assert saliency.shape[1] == saliency.shape[2] <= 16
    assert np.isfinite(saliency).all() and saliency.min() >= 0
    assert saliency.max() == 1 and set(saliency.max(axis=(1, 2)).tolist()) <= {0, 1}
    assert all(parameter.grad is None for parameter in network.classifier.parameters())


def test_one_grey_channel_and_odd_sides_work() -> None:
    for method in ("gradcam", "occlusion", "integrated_gradients"):
        assert explain(method, make("simple_cnn", 40, 1), pixels_of(1, 40, 1), [1]).max() == 1
    for side in (16, 17, 31):
        pooled = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3, 2, 0.0)
        network = InTorch(pooled, PREPROCESSING.at(side))
        assert explain("occlusion", network, pixels_of(1, side), [1]).max() == 1


def test_names() -> None:
    assert tuple(METHODS) == EXPLANATIONS
    assert explanation_methods("occlusion, gradcam,occlusion") == ["occlusion", "gradcam"]
    for config in (ErrorAnalysisConfig, PredictConfig, PipelineConfig):
        for wrong in ("lime", "gradcam,lime", "", ","):
            with pytest.raises(UserError, match=r"--explain_with .* is unknown: use occlusion, cam, gradcam"):
                config(explain_with=wrong)
        assert config(explain_with="gradcam,occlusion").explain_with == "gradcam,occlusion"
    with pytest.raises(UserError, match="--no_galleries forbids"):
        PredictConfig(explain=True, galleries=False)
