"""A checkpoint brings back everything that the next step depends on."""

from pathlib import Path

import pytest
import torch

from spectacles import backbones, checkpoint, epochs, stages
from spectacles.classifier import Classifier
from spectacles.config import TrainConfig

CPU = torch.device("cpu")


def make_classifier() -> Classifier:
    torch.manual_seed(0)
    backbone = backbones.build("simple_cnn", 3, 32)
    return Classifier(backbone, 128, 2, 0.5).to(memory_format=torch.channels_last)


def make_optimizer(classifier: Classifier, name: str) -> torch.optim.Optimizer:
    groups = stages.parameter_groups(classifier, stages.stage_modules(classifier), 0.1, 0.01, 0.5)
    return epochs.make_optimizer(TrainConfig(optimizer=name), groups, CPU)


def learn(classifier: Classifier, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    classifier(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_restored_checkpoint_goes_on_bit_for_bit(tmp_path: Path, name):
    path = tmp_path / "checkpoint.safetensors"
    first = make_classifier()
    optimizer = make_optimizer(first, name)
    for seed in range(2):
        learn(first, optimizer, seed)
    checkpoint.save(path, first.state_dict(), optimizer.state_dict(), {"history": [1, "ü", None]})

    second = make_classifier()
    other = make_optimizer(second, name)
    state, slots = checkpoint.load(path)
    second.load_state_dict(state)
    other.load_state_dict({"state": slots, "param_groups": other.state_dict()["param_groups"]})
    for network, own in ((first, optimizer), (second, other)):
        learn(network, own, seed=9)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert checkpoint.load_facts(path) == {"history": [1, "ü", None]}


def test_saving_a_checkpoint_replaces_the_one_before(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    for number in (1, 2):
        checkpoint.save(path, {"x": torch.full((2,), float(number))}, {"state": {}}, {"epoch": number})
    assert checkpoint.load(path)[0]["x"].tolist() == [2, 2] and checkpoint.load_facts(path) == {"epoch": 2}
    assert list(tmp_path.iterdir()) == [path]
