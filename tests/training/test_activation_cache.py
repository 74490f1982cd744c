"""Cutting a backbone at the border of its frozen stages changes nothing but what is computed when."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import write_noise
from torch import nn

from spectacles.core.config import AugmentConfig, TrainConfig
from spectacles.core.errors import UserError
from spectacles.data.file_index import look_at_all
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import backbones, freezing
from spectacles.models.classifier import Classifier
from spectacles.training.activation_cache import Border, cut
from spectacles.training.augmentation import Augmentation, View
from spectacles.training.batches import Examples, StepSettings, epoch_order

PREPROCESSING = Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)


def classifier_of(name: str) -> Classifier:
    torch.manual_seed(0)
    backbone = backbones.build(name, 3, 32)
    return Classifier(backbone.eval(), backbones.feature_dim(backbone, 3, 32), 2, 0.0).eval()


def frozen(classifier: Classifier, learning: int) -> set[str]:
    parts = freezing.stage_modules(classifier)
    return set().union(*parts[: len(parts) - learning])


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet", "test_convnext", "simple_cnn"])
@pytest.mark.parametrize("learning", [1, 2])
def test_both_parts_together_are_the_backbone_and_share_its_parameters(name: str, learning: int) -> None:
    classifier = classifier_of(name)
    below, above = cut(classifier.backbone, frozen(classifier, learning))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(above(below(images)), classifier.backbone(images))
    own = {id(parameter) for parameter in classifier.backbone.parameters()}
    parts = [{id(parameter) for parameter in part.parameters()} for part in (below, above)]
    assert parts[0] | parts[1] == own
    assert not parts[0] & parts[1]
    freezing.freeze_below(classifier, freezing.stage_modules(classifier), learning)
    assert all(parameter.requires_grad for parameter in above.parameters())
    assert not any(parameter.requires_grad for parameter in below.parameters())


def test_nothing_frozen_or_a_network_that_cannot_be_traced_is_rejected() -> None:
    with pytest.raises(UserError, match="no stage is frozen"):
        cut(classifier_of("resnet18").backbone, set())

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.high(self.low(values)) if values.sum() > 0 else values

    with pytest.raises(UserError, match="cannot be cut"):
        cut(Branching(), {"low"})


def test_each_epoch_trains_on_what_the_frozen_stages_make_of_its_view(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in write_noise(tmp_path, [f"{number}.png" for number in range(5)])]
    rows = pd.DataFrame({"path": paths, "sha256": look_at_all(paths, 1)["sha256"]})
    classifier = classifier_of("test_efficientnet")
    config = TrainConfig(device="cpu", batch_size=2, engine="torch", seed=3)
    views = [View(number, Augmentation(AugmentConfig(), PREPROCESSING)) for number in (2, 3)]
    with Pixels(rows, PREPROCESSING, tmp_path / "cache", 2**20, 1) as pixels:
        examples = Examples(pixels, np.array([4, 0, 2]), np.array([1, 0, 1]))
        settings = StepSettings(config, torch.device("cpu"), 2, None)
        border = Border(classifier, frozen(classifier, 2), examples, views, settings, tmp_path / "cache", 1.0)
        below, _ = cut(classifier.backbone, frozen(classifier, 2))
        for epoch in (4, 5):
            batches = list(border.batches(epoch))
            for indices, (inputs, labels) in zip(epoch_order(3, epoch, 3, 2), batches, strict=False):
                places = examples.positions[indices]
                view = views[epoch % 2](pixels.batch(places), [rows["sha256"][place] for place in places])
                with torch.no_grad():
                    expected = below(PREPROCESSING.normalize(torch.from_numpy(view)))
                torch.testing.assert_close(inputs, expected, atol=1e-5, rtol=1e-4)
                assert labels.tolist() == examples.labels[indices].tolist()
