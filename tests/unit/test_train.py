"""Training as a whole, on a tiny net: what is kept, and that stopping and going on changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from pictures import encoded, noise
from safetensors.torch import save_file

import dataset
import evaluate
import train
from spectacles import backbones, bundle, run_dir
from spectacles.config import DatasetConfig, EvaluateConfig, TrainConfig
from spectacles.errors import UserError
from spectacles.history import Epoch
from spectacles.run_dir import RunDir

TINY = TrainConfig(
    backbone="simple_cnn", no_pretrained=True, image_size=32, epochs=4, head_epochs=2, batch_size=8, device="cpu",
    lr=1e-3, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class: noise, reddish or not."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        picture = noise(number)
        if number % 2:
            picture = picture.convert("RGB", (1, 0, 0, 40, 0, 0.8, 0, 0, 0, 0, 0.8, 0))
        path = folder / ("red" if number % 2 else "any") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(picture))
    return folder


@pytest.fixture
def new_run(photos: Path, tmp_path: Path) -> Callable[[str], RunDir]:
    def make(name: str) -> RunDir:
        made = run_dir.create(tmp_path, name)
        made.save_result("dataset", dataset.run(DatasetConfig(image_dir=photos), made))
        return made.for_stage("train")

    return make


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return bundle.load(run.bundle)[1]


def same(one: RunDir, other: RunDir) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, right after so many epochs were finished."""
    report = train._report_epoch

    def interrupt(training: train.Training) -> None:
        report(training)
        if len(training.history) == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "_report_epoch", interrupt)


MIXED = {"mixup": 0.4, "cutmix": 1.0, "randaugment": 5, "scheduler": "plateau"}


@pytest.mark.parametrize(
    ("epochs", "changes"),
    [(1, {}), (2, {}), (3, {}), (3, MIXED), (3, {"optimizer": "sgd", "num_workers": 1})],
)
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(
    new_run: Callable[[str], RunDir], epochs: int, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, **changes)
    whole, parted = new_run("whole"), new_run("parted")
    expected = train.run(config, whole)
    with monkeypatch.context() as patch:
        stop_after(epochs, patch)
        with pytest.raises(KeyboardInterrupt):
            train.run(config, parted)
    assert not parted.done("train")
    assert bundle.read_info(parted.bundle)[0].epoch <= epochs
    report = train.run(replace(config, resume=True), parted)
    assert report.model_id == expected.model_id
    assert same(whole, parted)


def test_a_crash_between_checkpoint_and_bundle_changes_nothing(
    new_run: Callable[[str], RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = new_run("whole"), new_run("parted")
    train.run(TINY, whole)
    save = train._save_bundle

    def crash(training: train.Training, state: dict[str, torch.Tensor], epoch: Epoch, *more: float) -> str:
        if epoch.phase == "fine_tune":
            raise KeyboardInterrupt
        return save(training, state, epoch, *more)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_save_bundle", crash)
        with pytest.raises(KeyboardInterrupt):
            train.run(TINY, parted)
    train.run(replace(TINY, resume=True), parted)
    assert same(whole, parted)


@pytest.mark.parametrize("changes", [{"epochs": 9}, {"lr": 0.5}, {"image_size": 48}, {"seed": 9}])
def test_resuming_with_other_settings_is_refused_by_name(
    new_run: Callable[[str], RunDir], changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run("stopped")
    stop_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train.run(TINY, run)
    with pytest.raises(UserError, match=f"cannot resume: --{next(iter(changes))}"):
        train.run(replace(TINY, resume=True, **changes), run)


def test_a_model_is_never_scored_on_another_split_than_its_own(new_run: Callable[[str], RunDir], photos: Path) -> None:
    run = new_run("resplit")
    train.run(TINY, run)
    run.save_result("dataset", dataset.run(DatasetConfig(image_dir=photos, seed=8), run))
    with pytest.raises(UserError, match="another split"):
        evaluate.run(EvaluateConfig(device="cpu"), run)


def test_workers_do_not_change_the_result(new_run: Callable[[str], RunDir]) -> None:
    alone, helped = new_run("alone"), new_run("helped")
    train.run(replace(TINY, num_workers=0, dropout=0.5), alone)
    train.run(replace(TINY, num_workers=2, dropout=0.5), helped)
    assert same(alone, helped)


def test_the_seed_changes_the_result(new_run: Callable[[str], RunDir]) -> None:
    one, other = new_run("one"), new_run("other")
    train.run(TINY, one)
    train.run(replace(TINY, seed=4), other)
    assert not same(one, other)


def test_the_best_epoch_of_both_phases_is_kept(new_run: Callable[[str], RunDir], tmp_path: Path) -> None:
    """Fine-tuning with an absurd rate ruins the model: what the head phase reached must survive."""
    weights_file = tmp_path / "backbone.safetensors"
    save_file(backbones.build("simple_cnn", 3, 32).state_dict(), weights_file)
    pretrained = replace(TINY, no_pretrained=False, weights=weights_file, metric="log_loss")
    run = new_run("ruined")
    report = train.run(replace(pretrained, backbone_lr_scale=1e4, clip_grad_norm=0, warmup_epochs=0), run)
    history = pd.read_csv(run.path / "train" / "history.csv")
    assert history["phase"].tolist() == ["head", "head", "fine_tune", "fine_tune"]
    assert report.best_value == history["val_log_loss"].min()
    assert report.best_phase == "head"
    assert report.metrics["rescored"] == report.best_value
    assert bundle.read_info(run.bundle)[0].phase == "head"


def test_early_stopping_ends_a_phase(new_run: Callable[[str], RunDir]) -> None:
    report = train.run(replace(TINY, epochs=12, head_epochs=12, lr=1e-12, patience=2), new_run("patient"))
    assert report.epochs_run == 3


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_remedy(new_run: Callable[[str], RunDir]) -> None:
    with pytest.raises(UserError, match="--lr"):
        train.run(replace(TINY, lr=1e30, clip_grad_norm=0, optimizer="sgd", warmup_epochs=0), new_run("diverged"))


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"crop_scale": 0.0}])
def test_impossible_settings_are_refused_by_name(new_run: Callable[[str], RunDir], changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(changes))}"):
        train.run(replace(TINY, **changes), new_run("impossible"))


def test_training_without_a_data_set_says_what_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.py"):
        train.run(TINY, run_dir.create(tmp_path, "empty"))
