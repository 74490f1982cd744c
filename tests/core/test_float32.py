"""What a card that rounds the operands of float32 to 10 bits of mantissa (TF32) may round: gradients, nothing else.

Such a card is simulated on the CPU: operands are rounded wherever torch's settings for CUDA allow it.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spectacles.core.config import TrainConfig
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import backbones, pretrained
from spectacles.models.bn_folding import fold_batchnorm
from spectacles.models.normalization import normalize
from spectacles.models.sample_pictures import sample_pictures
from spectacles.models.torch_device import prepare_device
from spectacles.models.torch_network import ONLY_OUTPUT, PixelNetwork
from spectacles.training import train_loop
from spectacles.training.batches import Batch, StepSettings
from spectacles.training.epoch_progress import Position
from spectacles.training.train_loop import EpochPlan, Learner

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(64, "crop", "bicubic", (0.5,) * 3, (0.5,) * 3, 3)
aten = torch.ops.aten
CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default}


def rounded(value: Any) -> Any:
    """To 10 bits of mantissa, the nearest, as the card does."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    bits = value.detach().contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32).view_as(value)


class Ampere(TorchDispatchMode):
    """Counts what it rounds. torch's setting for convolutions is "tf32" unless it is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_conv = func in CONVOLUTIONS and torch.backends.cudnn.conv.fp32_precision == "tf32"
        if by_conv or (func in PRODUCTS and torch.backends.cuda.matmul.fp32_precision == "tf32"):
            self.rounded += 1
            args = tuple(rounded(value) for value in args)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_torch_starts() -> Iterator[None]:
    settings = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = "tf32", "none"
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


def test_the_default_backbone_is_folded_on_such_a_card_too(as_torch_starts: None) -> None:
    backbone = pretrained.build_pretrained("efficientnet_lite0", 3, 64, None).eval()
    photos = torch.from_numpy(sample_pictures(PREPROCESSING, count=2))
    example = normalize(PREPROCESSING, photos)
    with Ampere(), pytest.raises(ValueError, match="changed the features"):
        fold_batchnorm(copy.deepcopy(backbone), example)
    prepare_device(CPU)
    with Ampere():
        assert fold_batchnorm(backbone, example)


def test_features_and_predictions_are_those_of_other_engines(as_torch_starts: None) -> None:
    prepare_device(CPU)
    torch.manual_seed(0)
    network = PixelNetwork(backbones.build("test_efficientnet", 3, 64), PREPROCESSING, CPU)
    pixels = sample_pictures(PREPROCESSING, count=2)
    expected = network.torch_engine()(pixels)[ONLY_OUTPUT]
    with Ampere() as card:
        np.testing.assert_array_equal(network.torch_engine()(pixels)[ONLY_OUTPUT], expected)
    assert not card.rounded


def test_training_steps_may_round_and_nothing_after_them(as_torch_starts: None) -> None:
    prepare_device(CPU)
    torch.manual_seed(0)
    network = torch.nn.Sequential(backbones.build("test_efficientnet", 3, 32), torch.nn.LazyLinear(3))
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    network(images)
    optimizer = torch.optim.SGD([{"params": list(network.parameters()), "lr": 9.9, "base_lr": 0.1}])
    settings = StepSettings(TrainConfig(device="cpu"), CPU, 3, None)
    learner = Learner(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), settings)
    with Ampere() as card:
        train_loop.train_epoch(learner, [Batch(images, labels)], EpochPlan(1, [4], lambda step: 1.0), Position())
        in_training = card.rounded
        network(images)
    assert in_training > 10 and card.rounded == in_training
