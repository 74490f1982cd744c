"""A student learns from a teacher: from its own answers, to the same views, with and without labels."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import encoded, noise
from scipy.special import expit, rel_entr, softmax
from torch import nn
from torch.nn.functional import log_softmax

import dataset
import train
from spectacles.core import signals
from spectacles.core.config import DatasetConfig, TrainConfig
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir, create_run
from spectacles.data.preprocessing import decode_one
from spectacles.inference.predictor import Predictor
from spectacles.models.bundle import load_bundle
from spectacles.training import checkpoint, distillation
from spectacles.training.augmentation import View
from spectacles.training.batches import Batch, StepSettings
from spectacles.training.checkpoint import Checkpoint
from spectacles.training.epoch_progress import Position
from spectacles.training.train_loop import EpochPlan, Learner, distillation_loss, train_epoch

pytestmark = pytest.mark.usefixtures("without_export")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos of two classes, and a folder of six without labels."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(30):
        path = folder / ("more" if number >= 24 else f"data/{'ab'[number % 2]}") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(number)))
    return folder


@pytest.fixture
def new_run(photos: Path, tmp_path: Path) -> Callable[[str], RunDir]:
    def make(name: str) -> RunDir:
        made = create_run(tmp_path, name)
        made.save_result("dataset", dataset.run(DatasetConfig(image_dir=photos / "data", no_pretrained=True), made))
        return made.for_stage("train")

    return make


@pytest.fixture
def config(photos: Path, tmp_path: Path, make_bundle: Callable[..., Path]) -> TrainConfig:
    """The teacher has the classes in another order."""
    return TrainConfig(
        backbone="simple_cnn", no_pretrained=True, image_size=16, epochs=2, batch_size=8, device="cpu", seed=3,
        teacher=make_bundle("b", "a"), unlabelled=photos / "more", output_dir=tmp_path,
    )  # fmt: skip


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_loss_is_the_divergence_from_the_softened_probabilities(multi_label: bool) -> None:
    student, teacher = np.random.default_rng(0).normal(0, 3, (2, 5, 4))
    loss = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), 2.5, multi_label)
    if multi_label:
        p, q = (expit(each / 2.5) for each in (teacher, student))
        expected = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean()
    else:
        expected = rel_entr(*(softmax(each / 2.5, axis=1) for each in (teacher, student))).sum(axis=1).mean()
    assert loss.item() == pytest.approx(2.5**2 * expected, rel=1e-5)
    same = torch.from_numpy(teacher)
    assert distillation_loss(same, same, 2.5, multi_label).item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_answers_to_the_view_that_the_student_gets(new_run, config) -> None:
    trainer = train.prepare(config, new_run("run"), CPU)
    learned = trainer.distillation
    assert learned is not None and learned.teacher.info.classes == ("b", "a") and trainer.info.classes == ("a", "b")
    assert len(trainer.examples.labels) == len(trainer.train.labels) + 6
    assert trainer.examples.labelled.sum() == len(trainer.train.labels)
    view = learned.view(1)
    predictor = Predictor(config.teacher, "cpu", engine="torch")
    changed = View(distillation.FIRST_VIEW, learned._augmentation)
    for place in (0, -1):
        at = trainer.examples.positions[place]
        digest = trainer.pixels.hashes[at]
        decoded = decode_one(Path(trainer.pixels.paths[at]), predictor.info.preprocessing).pixels
        logits = predictor.outputs(changed(decoded[None], [digest]))["logits"][0]
        assert view.logits[place] == pytest.approx(logits[::-1], abs=1e-4)
        assert np.array_equal(view.rows[place], changed.rows([digest])[0])
    unreadable = SimpleNamespace(hashes=learned.pixels.hashes)
    again = replace(learned, pixels=unreadable).view(1 + distillation.VIEWS)  # comes from the cache
    assert np.array_equal(again.logits, view.logits)
    with pytest.raises(AttributeError):
        replace(learned, pixels=unreadable).view(2)
    for pixels in (trainer.pixels, learned.pixels):
        pixels.close()


class Killed(BaseException):
    """Like SIGKILL."""


def test_a_student_whose_training_was_killed_and_resumed_is_the_same(
    new_run, config, make_bundle, tmp_path, monkeypatch
) -> None:
    whole, parted = new_run("whole"), new_run("parted")
    config = replace(config, epochs=1, checkpoint_every=0, grad_accum_steps=2)
    report = train.run(replace(config, checkpoint_every=60), whole)
    assert any(line.endswith(", 6 of them without a label") for line in report.summary)
    save, left = checkpoint.save, [3]

    def save_and_die(folder: Path, state: Checkpoint) -> Path:
        path = save(folder, state)
        left[0] -= 1
        if not left[0]:
            raise Killed
        return path

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            train.run(config, parted)
    (tmp_path / "another").symlink_to(make_bundle("a", "b"), target_is_directory=True)
    with pytest.raises(UserError, match=r"--teacher was .* and is .*another"):
        train.run(replace(config, teacher=tmp_path / "another", resume=True), parted)
    assert train.run(replace(config, resume=True), parted).best_value == report.best_value
    one, other = (load_bundle(run.bundle).tensors() for run in (whole, parted))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert len(pd.read_csv(parted.path / "train" / "unlabelled.csv")) == 6


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_step_descends_on_the_teachers_answers_and_on_the_labels_that_there_are(micro_batches: int) -> None:
    torch.manual_seed(0)
    inputs, answers = torch.randn(6, 4), 4 * torch.randn(6, 3)
    labels, labelled = torch.tensor([0, 2, 1, 0, 0, 0]), torch.tensor([1.0, 1, 1, 1, 0, 0])
    network = nn.Linear(4, 3)
    before = network.weight.detach().clone().double().requires_grad_()
    logits = inputs.double() @ before.T + network.bias.detach()
    by_label = -log_softmax(logits, 1)[torch.arange(6), labels] * labelled
    soft, softer = log_softmax(logits / 2, 1), (answers.double() / 2).softmax(1)
    distance = 4 * (softer * (softer.log() - soft)).sum(1)
    expected = (0.1 * by_label + 0.9 * distance).mean()
    expected.backward()
    config = TrainConfig(device="cpu", teacher=Path("any"), teacher_temperature=2, clip_grad_norm=0)
    optimizer = torch.optim.SGD([{"params": list(network.parameters()), "lr": 0.1, "base_lr": 0.1}])
    learner = Learner(network, optimizer, torch.amp.GradScaler(enabled=False), StepSettings(config, CPU, 3, None))
    plan = EpochPlan(1, [6], lambda step: 1.0)
    position = Position(micro_batches=micro_batches)
    loss = train_epoch(learner, [Batch(inputs, labels, labelled, answers)], plan, position)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert before.grad is not None
    torch.testing.assert_close(
        network.weight.detach().double(), before.detach() - 0.1 * before.grad, rtol=1e-5, atol=1e-6
    )


def test_ctrl_c_ends_the_teachers_pass_at_once(new_run, config, monkeypatch) -> None:
    def stop(self: distillation.Distillation, view: View) -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    monkeypatch.setattr(distillation.Distillation, "_compute", stop)
    with signals.handled(), pytest.raises(signals.Stopped):
        train.run(config, new_run("run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "--unlabelled photos are learned from a teacher: add --teacher"),
        ({"mixup": 0.2}, "--mixup does not go with --teacher, whose answers are computed before"),
        ({"class_weights": "balanced"}, "--class_weights does not go with --teacher"),
        ({"time_budget": "1m"}, "--time_budget does not go with --teacher"),
        ({"epoch_share": 0.5, "no_pretrained": False}, "--epoch_share .* --teacher or --no_pretrained"),
    ],
)
def test_settings_that_do_not_go_with_a_teacher_are_named(config, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        replace(config, **changes)


def test_a_teacher_of_other_classes_and_none_at_all_are_named(new_run, config, make_bundle, tmp_path) -> None:
    run = new_run("run")
    with pytest.raises(UserError, match=r"knows the classes a, c, and the data have a, b: a teacher must"):
        train.run(replace(config, teacher=make_bundle("a", "c")), run)
    with pytest.raises(UserError, match=r"nothing is not a bundle"):
        train.run(replace(config, teacher=tmp_path / "nothing"), run)
