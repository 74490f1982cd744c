"""A checkpoint brings back everything that the next step depends on, whatever happens to the newest file."""

from pathlib import Path

import pytest
import torch

from spectacles.core.config import TrainConfig
from spectacles.core.errors import UserError
from spectacles.models import backbones, freezing
from spectacles.models.classifier import Classifier
from spectacles.training import checkpoint
from spectacles.training.batches import make_optimizer
from spectacles.training.checkpoint import Checkpoint

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
def test_a_restored_checkpoint_goes_on_bit_for_bit(tmp_path: Path, name):
    first = make_classifier()
    optimizer = optimizer_of(first, name)
    for seed in range(2):
        learn(first, optimizer, seed)
    facts = {"history": [1, "ü", None], "total": 0.1 + 0.2}
    state = Checkpoint(facts, {"model": first.state_dict(), "best": {}}, optimizer.state_dict()["state"])
    checkpoint.save(tmp_path, state)

    second = make_classifier()
    other = optimizer_of(second, name)
    found = checkpoint.load(tmp_path)
    second.load_state_dict(found.parts["model"])
    other.load_state_dict({"state": found.slots, "param_groups": other.state_dict()["param_groups"]})
    for network, own in ((first, optimizer), (second, other)):
        learn(network, own, seed=9)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert found.facts == {**facts, "number": 1}


def numbered(number: float) -> Checkpoint:
    return Checkpoint({}, {"model": {"x": torch.full((2,), float(number))}})


def test_the_one_before_is_kept_and_used_where_the_newest_is_damaged(tmp_path):
    assert checkpoint.load(tmp_path) is None
    for number in range(1, 13):
        checkpoint.save(tmp_path, numbered(number))
    before, newest = sorted(tmp_path.iterdir())
    assert checkpoint.load(tmp_path).facts == {"number": 12}
    for damage in (newest.read_bytes()[:-1], newest.read_bytes()[:-1] + b"x", b""):
        newest.write_bytes(damage)
        assert checkpoint.load(tmp_path).parts["model"]["x"].tolist() == [11, 11]
    before.write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        checkpoint.load(tmp_path)
    checkpoint.discard(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_kept(tmp_path, value):
    checkpoint.save(tmp_path, numbered(1))
    with pytest.raises(UserError, match="model/x is no longer finite"):
        checkpoint.save(tmp_path, numbered(value))
    assert checkpoint.load(tmp_path).facts == {"number": 1} and len(list(tmp_path.iterdir())) == 1
