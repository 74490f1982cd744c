"""The parts of training that can be checked without training: schedule, history, phases, checkpoint, groups."""

import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

import model
import train
from spectacles import backbones, checkpoint, engine, history
from spectacles.classifier import Classifier
from spectacles.config import TrainConfig
from spectacles.errors import UserError
from spectacles.history import Epoch
from spectacles.run_dir import RunDir
from spectacles.schedule import factor

SCHEDULERS = ["cosine", "step", "plateau"]


# schedule


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_rate_rises_in_equal_steps_during_warm_up(scheduler):
    rates = [factor(scheduler, step, 100, 9) for step in range(10)]
    np.testing.assert_allclose(rates, np.arange(1, 11) / 10)


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_falls_from_one_to_almost_nothing(warmup):
    rates = [factor("cosine", step, 1000, warmup) for step in range(warmup, 1000)]
    assert rates[0] == 1 and 0 < rates[-1] < 1e-4
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert factor("cosine", (1000 + warmup) // 2, 1000, warmup) == pytest.approx(0.5)


def test_step_takes_a_tenth_after_each_third():
    rates = [factor("step", step, 9, 0) for step in range(9)]
    np.testing.assert_allclose(rates, [1] * 3 + [0.1] * 3 + [0.01] * 3)


@pytest.mark.parametrize(
    ("gains", "tenths"),
    [
        ("", 0),
        ("+", 0),
        ("+-", 0),
        ("+--", 1),
        ("+-+-", 0),
        ("+---", 1),
        ("+----", 2),
        ("+--+-", 1),
        ("+--+--", 2),
        ("--", 1),
    ],
)
def test_plateau_takes_a_tenth_after_two_epochs_without_gain(gains, tenths):
    assert factor("plateau", 50, 100, 0, [gain == "+" for gain in gains]) == pytest.approx(0.1**tenths)


@given(st.sampled_from(SCHEDULERS), st.integers(1, 50), st.integers(0, 60), st.lists(st.booleans(), max_size=8))
def test_the_rate_is_always_a_share_of_the_base_rate(scheduler, total, warmup, gains):
    assert all(0 < factor(scheduler, step, total, warmup, gains) <= 1 for step in range(total))


# history


def make_history(values: list[float], phases: str | None = None, metric: str = "accuracy") -> list[Epoch]:
    """One epoch a value; phases is a letter an epoch: h(ead) or f(ine-tuning)."""
    names = {"h": "head", "f": "fine_tune"}
    return [
        Epoch(number, names[phase], 0.5, 0.5, metric, value, 0.5, 0.5, 0.001, 1.0)
        for number, (value, phase) in enumerate(zip(values, phases or "h" * len(values), strict=True), start=1)
    ]


coarse = st.integers(0, 5).map(lambda value: value / 5)
runs = st.lists(coarse, min_size=1, max_size=12)


@given(runs, st.sampled_from(["accuracy", "log_loss"]))
def test_a_gain_is_better_than_all_before_it(values, metric):
    better = min if metric == "log_loss" else max
    expected = [
        number == 0 or (value != (old := better(values[:number])) and better(value, old) == value)
        for number, value in enumerate(values)
    ]
    assert history.gains(make_history(values, metric=metric)) == expected


@given(runs, st.sampled_from(["accuracy", "log_loss"]))
def test_the_best_epoch_is_the_earliest_of_the_best(values, metric):
    extreme = min(values) if metric == "log_loss" else max(values)
    assert history.best(make_history(values, metric=metric)).epoch == values.index(extreme) + 1


@given(runs, st.integers(1, 12), st.integers(1, 5))
def test_a_phase_ends_when_its_epochs_or_its_patience_are_used_up(values, epochs, patience):
    since_best = len(values) - 1 - values.index(max(values))
    expected = len(values) >= epochs or since_best >= patience
    assert history.phase_over(make_history(values), "head", epochs, patience) == expected


def test_a_phase_counts_its_own_epochs_only():
    epochs = make_history([0.9, 0.1, 0.2, 0.3], "hfff")
    assert not history.phase_over(epochs, "fine_tune", epochs=10, patience=2)
    assert history.phase_over(epochs, "head", epochs=1, patience=5)
    assert [epoch.epoch for epoch in history.of_phase(epochs, "fine_tune")] == [2, 3, 4]
    assert history.best(epochs).epoch == 1


def test_a_phase_that_has_not_begun_is_not_over():
    assert not history.phase_over([], "head", epochs=1, patience=1)


def test_history_survives_json_and_becomes_a_table():
    epochs = make_history([0.5, 0.7], "hf")
    assert history.from_json([asdict(epoch) for epoch in epochs]) == epochs
    table = history.to_frame(epochs)
    assert table["epoch"].tolist() == [1, 2]
    assert table["phase"].tolist() == ["head", "fine_tune"]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss"])
def test_the_table_has_a_column_for_whatever_metric_chose(metric):
    table = history.to_frame(make_history([0.25], metric=metric))
    own = {"accuracy", "balanced_accuracy"} - {metric}
    assert len(table.columns) == len(set(table.columns)) and {f"val_{name}" for name in own} <= set(table.columns)
    assert table[f"val_{metric}"].tolist() == [0.25]


# phases and weights


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 10}, [("head", 2), ("fine_tune", 8)]),
        ({"epochs": 4}, [("head", 1), ("fine_tune", 3)]),
        ({"epochs": 1}, [("head", 1)]),
        ({"epochs": 10, "no_pretrained": True}, [("fine_tune", 10)]),
        ({"epochs": 10, "head_epochs": 0}, [("fine_tune", 10)]),
        ({"epochs": 10, "head_epochs": 3}, [("head", 3), ("fine_tune", 7)]),
        ({"epochs": 10, "head_epochs": 99}, [("head", 10)]),
        ({"epochs": 10, "head_epochs": 3, "no_pretrained": True}, [("head", 3), ("fine_tune", 7)]),
    ],
)
def test_the_phases_share_the_epochs(settings, expected):
    assert train.phases(TrainConfig(**settings)) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("crop_scale", 0.0),
        ("crop_scale", 1.5),
        # fails until fixed: these end in a traceback or are taken as they are
        ("lr", math.nan),
        ("head_epochs", -1),
        ("patience", 0),
        ("num_workers", -1),
        ("dropout", 1.5),
        ("color_jitter", -0.1),
        ("randaugment", 31),
        ("random_erasing", 2.0),
        ("mixup", -1.0),
        ("cutmix", -1.0),
        ("label_smoothing", 1.5),
        ("weight_decay", -1.0),
        ("clip_grad_norm", -1.0),
        ("warmup_epochs", -1.0),
        ("backbone_lr_scale", -1.0),
    ],
)
def test_a_setting_out_of_range_is_named(tmp_path, field, value):
    with pytest.raises(UserError, match=f"--{field}"):
        train.run(TrainConfig(**{field: value}), RunDir(tmp_path, "train"))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_balanced_weights_are_scikit_learns(labels):
    present = sorted(set(labels))
    weights = engine.balanced_weights([present.index(label) for label in labels], len(present))
    expected = compute_class_weight("balanced", classes=np.array(present), y=np.array(labels))
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


def test_a_class_without_images_weighs_nothing():
    assert engine.balanced_weights([0, 0, 2], 3)[1] == 0


# the network's phases


def make_classifier(name: str = "test_resnet") -> Classifier:
    torch.manual_seed(0)
    backbone = backbones.build(name, 3, 32)
    return Classifier(backbone, backbones.feature_dim(backbone, 3, 32), 2, 0.5)


def norms(classifier: Classifier) -> list[nn.Module]:
    return [module for module in classifier.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(
    ("phase", "pretrained", "backbone_trains", "norms_train"),
    [("head", True, False, False), ("fine_tune", True, True, False), ("fine_tune", False, True, True)],
)
def test_train_mode_keeps_learnt_statistics(phase, pretrained, backbone_trains, norms_train):
    classifier = make_classifier().eval()
    model.train_mode(classifier, phase, pretrained)
    assert classifier.dropout.training and classifier.head.training
    assert classifier.backbone.training is backbone_trains
    assert norms(classifier) and {norm.training for norm in norms(classifier)} == {norms_train}


def test_in_the_head_phase_the_features_are_those_of_evaluation():
    classifier, images = make_classifier(), torch.randn(4, 3, 32, 32)
    model.train_mode(classifier, "head", pretrained=True)
    during = classifier.embed(images)
    assert torch.equal(during, classifier.eval().embed(images))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "simple_cnn"])
@pytest.mark.parametrize("phase", ["head", "fine_tune"])
def test_every_learnable_parameter_is_in_one_group(name, phase):
    classifier = make_classifier(name)
    model.set_phase(classifier, phase)
    groups = model.parameter_groups(classifier, phase, lr=0.1, backbone_lr=0.01, weight_decay=0.5)
    grouped = [parameter for group in groups for parameter in group["params"]]
    learnable = classifier.parameters() if phase == "fine_tune" else classifier.head.parameters()
    assert sorted(map(id, grouped)) == sorted(map(id, learnable))
    assert all(parameter.requires_grad for parameter in grouped)
    assert sum(p.requires_grad for p in classifier.parameters()) == len(grouped)


def test_vectors_do_not_decay_and_the_backbone_learns_at_its_own_rate():
    classifier = make_classifier()
    model.set_phase(classifier, "fine_tune")
    head = set(map(id, classifier.head.parameters()))
    for group in model.parameter_groups(classifier, "fine_tune", lr=0.1, backbone_lr=0.01, weight_decay=0.5):
        for parameter in group["params"]:
            assert group["lr"] == (0.1 if id(parameter) in head else 0.01)
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0.0)


def test_going_back_to_the_head_phase_freezes_the_backbone_again():
    classifier = make_classifier()
    for phase in ("fine_tune", "head"):
        model.set_phase(classifier, phase)
    assert not any(parameter.requires_grad for parameter in classifier.backbone.parameters())
    assert all(parameter.requires_grad for parameter in classifier.head.parameters())


# checkpoint


def make_optimizer(classifier: Classifier, name: str) -> torch.optim.Optimizer:
    groups = model.parameter_groups(classifier, "fine_tune", 0.1, 0.01, 0.5)
    return engine.make_optimizer(TrainConfig(optimizer=name), groups, torch.device("cpu"))


def learn(classifier: Classifier, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    classifier(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_restored_checkpoint_goes_on_bit_for_bit(tmp_path: Path, name):
    path = tmp_path / "checkpoint.safetensors"
    first = make_classifier("simple_cnn").to(memory_format=torch.channels_last)
    optimizer = make_optimizer(first, name)
    for seed in range(2):
        learn(first, optimizer, seed)
    checkpoint.save(path, first.state_dict(), optimizer.state_dict(), {"history": [1, "ü", None]})

    second = make_classifier("simple_cnn").to(memory_format=torch.channels_last)
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
