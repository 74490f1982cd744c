"""Maps on what a network looks at are called faithful, maps elsewhere are not."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spectacles.evaluation import faithfulness
from spectacles.evaluation.faithfulness import HIGHLIGHTED, REGIONS, highlighted, judge, probability_drops, sentence
from spectacles.evaluation.gradcam import grad_cam
from spectacles.evaluation.integrated_gradients import blurred, integrated_gradients
from spectacles.evaluation.occlusion import occlusion
from spectacles.metrics.calibration import Calibration
from spectacles.models.classifier import Classifier

Method = Callable[[Classifier, torch.Tensor, torch.Tensor], np.ndarray]

SIZE, GRID, CORNER = 32, 8, 10


class Corner(nn.Module):
    """Looks at nothing but the detail in the upper left corner, (B, 1)."""

    num_features = 1

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        seen = torch.zeros(1, 1, SIZE, SIZE)
        seen[..., :CORNER, :CORNER] = 1
        return nn.functional.avg_pool2d((images - blurred(images)).abs().mean(dim=1, keepdim=True) * seen, 4)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


@pytest.fixture
def corner() -> Classifier:
    """Class 1 where there is detail in the corner."""
    classifier = Classifier(Corner(), 1, 2, dropout=0.5)
    classifier.head.weight.data = torch.tensor([[-100.0], [100.0]])
    classifier.head.bias.data = torch.tensor([3.0, -3.0])
    return classifier.eval()


def images(count: int = 12) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def saliency_at(row: int, column: int, count: int = 12) -> np.ndarray:
    saliency = np.zeros((count, GRID, GRID), dtype=np.float32)
    saliency[:, row : row + 3, column : column + 3] = 1
    return saliency


def verdict(classifier: Classifier, saliency: np.ndarray) -> dict[str, object]:
    drops = probability_drops(classifier, images(), torch.ones(12, dtype=torch.int64), saliency)
    return judge(*drops, ["corner"] * 12)


def test_maps_of_what_the_network_looks_at_are_faithful(corner: Classifier) -> None:
    result = verdict(corner, saliency_at(0, 0))
    assert result["faithful"] is True
    assert result["drop"] > 0.5 > result["random_drop"] + 0.2
    assert result["share"] == 1 and result["interval"] == [1, 1]
    assert sentence("gradcam", result).endswith("of 12 images (100 to 100): the maps show what matters")


def test_maps_of_anything_else_are_not(corner: Classifier) -> None:
    result = verdict(corner, saliency_at(5, 5))
    assert result["faithful"] is False
    assert result["drop"] < result["random_drop"]
    assert sentence("gradcam", result).endswith("the maps cannot be trusted")


@pytest.mark.parametrize("method", [grad_cam, integrated_gradients])
def test_gradients_find_the_corner(corner: Classifier, method: Method) -> None:
    saliency = method(corner, images(), torch.ones(12, dtype=torch.int64))
    assert verdict(corner, saliency)["faithful"] is True


def test_occlusion_finds_the_corner(corner: Classifier) -> None:
    def outputs(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": corner(torch.from_numpy(pixels / np.float32(32) - 4).permute(0, 3, 1, 2)).detach().numpy()}

    network = SimpleNamespace(outputs=outputs, info=SimpleNamespace(multi_label=False))
    pixels = ((images() + 4) * 32).clip(0, 255).byte().permute(0, 2, 3, 1).numpy()
    assert verdict(corner, occlusion(network, pixels, np.ones(12, dtype=int)))["faithful"] is True


def test_maps_that_show_nothing_explain_nothing(corner: Classifier) -> None:
    result = verdict(corner, np.zeros((12, GRID, GRID), dtype=np.float32))
    assert (result["drop"], result["random_drop"], result["share"], result["faithful"]) == (0, 0, 0, False)


def test_drops_are_what_hiding_the_pixels_costs(corner: Classifier) -> None:
    photo, saliency, temperature = images(1), saliency_at(0, 0, 1), 2.5
    drops, random_drops = probability_drops(
        corner, photo, torch.tensor([1]), saliency, Calibration(temperature), seed=3
    )
    mask = highlighted(saliency, SIZE)[0].numpy()

    def probability(hidden: np.ndarray) -> float:
        changed = np.where(hidden, blurred(photo).numpy(), photo.numpy()).astype(np.float32)
        logits = corner(torch.from_numpy(changed)).detach().double().numpy()[0] / temperature
        return float(np.exp(logits[1]) / np.exp(logits).sum())

    whole = probability(np.zeros_like(mask))
    assert drops[0] == pytest.approx(whole - probability(mask), abs=1e-6)
    everywhere = [
        whole - probability(np.roll(mask, (down, right), (0, 1))) for down in range(SIZE) for right in range(SIZE)
    ]
    assert random_drops.shape == (1, REGIONS)
    for drop in random_drops[0]:
        assert np.abs(np.array(everywhere) - drop).min() < 1e-6
    assert random_drops.std() > 0
    again = probability_drops(corner, photo, torch.tensor([1]), saliency, Calibration(temperature), seed=3)
    np.testing.assert_array_equal(again[1], random_drops)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(16, 40))
def test_highlighted_pixels_are_the_hottest_tenth(seed: int, cells: int, side: int) -> None:
    saliency = np.random.default_rng(seed).random((2, cells, cells), dtype=np.float32)
    saliency[1][saliency[1] < 0.98] = 0
    masks = highlighted(saliency, side)
    assert masks.shape == (2, side, side) and masks.dtype == torch.bool
    count = round(HIGHLIGHTED * side**2)
    assert masks[0].sum() == count and masks[1].sum() <= count
    stretched = nn.functional.interpolate(torch.from_numpy(saliency)[:, None], (side, side), mode="bilinear")[:, 0]
    assert stretched[0][masks[0]].min() >= stretched[0][~masks[0]].max()
    assert not masks[1][stretched[1] == 0].any()


def test_judging() -> None:
    drops = np.array([0.4, 0.2, 0.0, 0.6])
    random_drops = np.array([[0.1, 0.3], [0.3, 0.3], [-0.1, -0.1], [0.6, 0.6]])
    result = judge(drops, random_drops, ["a", "b", "a", "b"])
    assert (result["images"], result["drop"], result["random_drop"]) == (4, 0.3, 0.25)
    assert result["share"] == 0.5  # a tie does not count
    assert result["interval"][0] < 0.5 < result["interval"][1]
    assert result["classes"] == {
        "a": {"images": 2, "drop": 0.2, "random_drop": 0.05, "share": 1.0},
        "b": {"images": 2, "drop": 0.4, "random_drop": 0.45, "share": 0.0},
    }
    assert result["faithful"] is None and sentence("occlusion", result).endswith("too few to judge by")


def test_without_images_nothing_is_said(corner: Classifier) -> None:
    nothing = probability_drops(corner, images(0), torch.ones(0, dtype=torch.int64), saliency_at(0, 0, 0))
    result = judge(*nothing, [])
    assert result == {
        "images": 0, "drop": None, "random_drop": None, "share": None, "interval": None, "faithful": None,
        "classes": {},
    }  # fmt: skip
    assert "nothing to check" in sentence("gradcam", result)


def test_a_small_gain_in_many_images_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    drops, chance = rng.random(48), rng.random((48, REGIONS))
    assert judge(drops, chance, ["a"] * 48)["faithful"] is False
    assert judge(drops + 0.5, chance, ["a"] * 48)["faithful"] is True
    assert faithfulness.ENOUGH <= faithfulness.IMAGES


def test_of_several_labels_the_drop_is_that_of_the_sigmoid(corner: Classifier) -> None:
    photo, saliency = images(1), saliency_at(0, 0, 1)
    calibration = Calibration(2.0, (0.9, 1.1), (0.3, -0.2), multi_label=True)
    drops, _ = probability_drops(corner, photo, torch.tensor([1]), saliency, calibration)
    hidden = torch.where(highlighted(saliency, SIZE)[:, None], blurred(photo), photo)
    logits = corner(torch.cat([photo, hidden])).detach().double().numpy()[:, 1]
    whole, without = 1 / (1 + np.exp(-(1.1 * logits / 2.0 - 0.2)))
    assert drops[0] == pytest.approx(whole - without, abs=1e-6)
