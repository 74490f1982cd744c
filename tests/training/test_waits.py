"""A step on a GPU waits for nothing: what would wait is counted on a device that has no values to read."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import write_rows
from torch import nn
from torch.overrides import TorchFunctionMode

from spectacles.core.config import AugmentConfig, TrainConfig
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import backbones
from spectacles.models.classifier import Classifier
from spectacles.training import augmentation as augmentations
from spectacles.training import epoch_progress, train_loop
from spectacles.training.augmentation import Augmentation
from spectacles.training.batches import Batch, Examples, StepSettings, augmented_batches
from spectacles.training.epoch_progress import READ_EVERY, LossReader, NotFinite, Position
from spectacles.training.train_loop import EpochPlan, Hooks, Learner, make_optimizer

pytestmark = pytest.mark.slow

CPU, GPU = torch.device("cpu"), torch.device("meta")
PREPROCESSING = Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
EVERYTHING = AugmentConfig(
    crop_scale=0.3, zoom_out=0.9, rotation=30, color_jitter=0.5, grayscale=0.5, blur=0.9, jpeg=0.9, random_erasing=0.9
)  # fmt: skip
STEPS = READ_EVERY + 2
READS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"}


class Waits(TorchFunctionMode):
    """Names what waits for the device: reading from it, and copying there what is not pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        reads = name in READS and isinstance(args[0], torch.Tensor) and args[0].device.type == GPU.type
        if reads or (name in ("tensor", "as_tensor") and torch.device(kwargs.get("device") or "cpu") == GPU):
            self.names.append(name)
        return func(*args, **kwargs)


@pytest.fixture
def examples(tmp_path: Path) -> Any:
    count = 4 * STEPS
    with Pixels(write_rows(tmp_path / "photos", count), PREPROCESSING, tmp_path / "cache", 2**22, 2) as pixels:
        yield Examples(pixels, np.arange(count), np.arange(count) % 3)


@pytest.mark.parametrize("flags", [
    {"mixup": 0.4, "cutmix": 0.4}, {"grad_accum_steps": 2, "class_weights": "balanced"}, {"optimizer": "sgd"},
])  # fmt: skip
def test_steps_wait_for_the_device_only_where_losses_are_read(
    examples: Examples, flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(batch_size=4, batch_norm="train", **flags)
    weights = torch.ones(3, device=GPU) if config.class_weights == "balanced" else None
    settings = StepSettings(config, GPU, 3, weights)
    network = Classifier(backbones.build("test_efficientnet", 3, 32), 256, 3, dropout=0.5).train().to(GPU)
    groups: list[dict[str, object]] = [{"params": list(network.parameters()), "lr": 1e-3}]
    learner = Learner(
        network, make_optimizer(config, groups, GPU), torch.amp.GradScaler("cpu", enabled=False), settings
    )
    augmentation = Augmentation(EVERYTHING, PREPROCESSING).to(GPU)
    position, reads = Position(images=1, micro_batches=config.grad_accum_steps), []

    def read(reader: LossReader) -> None:
        reads.append(len(reader.unread))
        reader.unread.clear()

    monkeypatch.setattr(LossReader, "read", read)
    with Waits() as waits:
        batches = augmented_batches(examples, augmentation, settings, 1, 32)
        train_loop.train_epoch(learner, batches, EpochPlan(1, [4] * STEPS, lambda step: 1.0), position)
    assert waits.names == []
    assert position.step == STEPS and reads == [READ_EVERY, STEPS - READ_EVERY]


def test_compression_runs_ahead_in_threads(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    round_trip = augmentations.jpeg_round_trip

    def noted(pixels: np.ndarray, quality: int) -> np.ndarray:
        threads.add(threading.current_thread().name)
        return round_trip(pixels, quality)

    monkeypatch.setattr(augmentations, "jpeg_round_trip", noted)
    settings = StepSettings(TrainConfig(batch_size=4), CPU, 3, None)
    for _ in augmented_batches(examples, Augmentation(EVERYTHING, PREPROCESSING), settings, 1, 32):
        pass
    assert threads and all(name.startswith("decode") for name in threads)


def train(batches: list[Batch], hooks: Hooks | None = None) -> tuple[nn.Linear, Position, float]:
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    optimizer = torch.optim.SGD([{"params": list(network.parameters()), "lr": 9.9, "base_lr": 0.1}])
    settings = StepSettings(TrainConfig(device="cpu"), CPU, 3, None)
    learner = Learner(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), settings)
    position = Position(micro_batches=2)
    plan = EpochPlan(1, [len(batch.targets) for batch in batches], lambda step: 1.0)
    return network, position, train_loop.train_epoch(learner, batches, plan, position, hooks)


def batches_of(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [Batch(torch.randn(4, 4, generator=generator), torch.tensor([0, 1, 2, 0])) for _ in range(count)]


def test_losses_that_are_read_later_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, position, loss = train(batches_of(10))
    monkeypatch.setattr(epoch_progress, "steps_between_readings", lambda device: 4)
    later, position_later, loss_later = train(batches_of(10))
    assert torch.equal(network.weight, later.weight) and (position, loss) == (position_later, loss_later)


def test_a_loss_that_is_not_finite_stops_at_the_next_reading_and_names_its_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(epoch_progress, "steps_between_readings", lambda device: 4)
    batches, steps, saved = batches_of(12), [], []
    batches[5][0][0] = np.nan
    hooks = Hooks(lambda: steps.append(1), lambda: len(steps) % 3 == 0, lambda: saved.append(len(steps)))
    with pytest.raises(NotFinite, match="the loss became nan") as caught:
        train(batches, hooks)
    assert caught.value.step == 5
    assert len(steps) <= 8 and saved == [3], "nothing is saved that has not been read"
