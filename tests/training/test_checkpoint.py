"""A checkpoint brings back everything that the next step depends on, whatever happens to the newest file."""

from pathlib import Path

import pytest
import torch

from spectacles.core.config import TrainConfig
from spectacles.core.errors import UserError
from spectacles.models import backbones, freezing
from spectacles.models.classifier import Classifier
from spectacles.training import checkpoint
from spectacles.training.checkpoint import Checkpoint
from spectacles.training.train_loop import make_optimizer, restore_optimizer

CPU = torch.device("cpu")


def make_classifier() -> Classifier:
    torch.manual_seed(0)
    backbone = backbones.build("simple_cnn", 3, 32)
    return Classifier(backbone, 128, 2, 0.5).to(memory_format=torch.channels_last)


def optimizer_of(classifier: Classifier, name: str) -> torch.optim.Optimizer:
    groups = freezing.parameter_groups(classifier, freezing.layer_groups_of(classifier), 0.1, 0.01, 0.5)
    return make_optimizer(TrainConfig(optimizer=name), groups, CPU)


def learn(classifier: Classifier, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    classifier(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_restored_checkpoint_continues_bit_for_bit(tmp_path: Path, name):
    first = make_classifier()
    optimizer = optimizer_of(first, name)
    for seed in range(2):
        learn(first, optimizer, seed)
    values = {"history": [1, "ü", None], "total": 0.1 + 0.2}
    state = Checkpoint(values, {"model": first.state_dict(), "best": {}}, optimizer.state_dict()["state"])
    checkpoint.save(tmp_path, state)

    second = make_classifier()
    other = optimizer_of(second, name)
    found = checkpoint.load_newest(tmp_path)
    second.load_state_dict(found.states["model"])
    restore_optimizer(other, found.optimizer)
    for network, each in ((first, optimizer), (second, other)):
        learn(network, each, seed=9)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert found.values == {**values, "number": 1}


def numbered(number: float) -> Checkpoint:
    return Checkpoint({}, {"model": {"x": torch.full((2,), float(number))}})


def test_the_previous_checkpoint_is_used_where_the_newest_is_damaged(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    for number in range(1, 13):
        checkpoint.save(tmp_path, numbered(number))
    before, newest = sorted(tmp_path.iterdir())
    assert checkpoint.load_newest(tmp_path).values == {"number": 12}
    for damage in (newest.read_bytes()[:-1], newest.read_bytes()[:-1] + b"x", b""):
        newest.write_bytes(damage)
        assert checkpoint.load_newest(tmp_path).states["model"]["x"].tolist() == [11, 11]
    before.write_bytes(b"")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        checkpoint.load_newest(tmp_path)
    checkpoint.discard(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_not_saved(tmp_path, value):
    checkpoint.save(tmp_path, numbered(1))
    with pytest.raises(UserError, match="model/x is no longer finite"):
        checkpoint.save(tmp_path, numbered(value))
    assert checkpoint.load_newest(tmp_path).values == {"number": 1} and len(list(tmp_path.iterdir())) == 1
