"""Training as a whole, on a tiny net: what is kept, and that stopping and going on changes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import encoded, noise
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import dataset
import evaluate
import train
from spectacles.core.config import DatasetConfig, EvaluateConfig, TrainConfig
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir, create_run
from spectacles.data import label_sets
from spectacles.data.images import decode
from spectacles.data.preprocessing import decode_one
from spectacles.data.schemas import load_split
from spectacles.metrics import calibration
from spectacles.models import backbones, bn_folding, linear_probe
from spectacles.models.bundle import load_bundle, read_bundle_info
from spectacles.models.classifier import load_classifier
from spectacles.models.normalization import normalize
from spectacles.training import checkpoint, epoch_log, phases, sampling, time_budget
from spectacles.training.checkpoint import Checkpoint
from spectacles.training.history import Epoch
from spectacles.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("without_export")

TINY = TrainConfig(
    backbone="simple_cnn", no_pretrained=True, image_size=32, epochs=4, head="sgd", head_epochs=2, batch_size=8,
    device="cpu", lr=1e-3, head_lr=1e-3, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per class: noise, reddish or not."""
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
        made = create_run(tmp_path, name)
        made.save_result("dataset", dataset.run(DatasetConfig(image_dir=photos, no_pretrained=True), made))
        return made.for_stage("train")

    return make


def weights(run: RunDir) -> dict[str, np.ndarray]:
    return load_bundle(run.bundle).tensors()


def same(one: RunDir, other: RunDir) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, right after so many epochs were finished."""
    log_epoch = epoch_log.log_epoch

    def interrupt(history: list[Epoch], planned: int) -> None:
        log_epoch(history, planned)
        if len(history) == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(epoch_log, "log_epoch", interrupt)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A small timm network that starts from a file of weights: two phases, the head fitted to features."""
    file = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    torch.manual_seed(1)
    save_file(backbones.build("test_efficientnet", 3, 32).state_dict(), file)
    return TrainConfig(
        backbone="test_efficientnet", weights=file, image_size=32, epochs=3, unfreeze="last:2", batch_size=8,
        device="cpu", lr=1e-3, seed=3, fine_tune="always",
    )  # fmt: skip


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
    assert read_bundle_info(parted.bundle)[0].epoch <= epochs
    report = train.run(replace(config, resume=True), parted)
    assert report.model_id == expected.model_id
    assert same(whole, parted)


class Killed(BaseException):
    """Like SIGKILL: nobody catches it."""


def kill_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save, count = checkpoint.save, 0

    def save_and_die(folder: Path, state: Checkpoint) -> Path:
        nonlocal count
        path, count = save(folder, state), count + 1
        if count == saves:
            raise Killed
        return path

    monkeypatch.setattr(checkpoint, "save", save_and_die)


EACH_STEP = {"checkpoint_every": 0.0, "dropout": 0.5}
MANY = MIXED | {"ema": 0.9, "grad_accum_steps": 2, "num_workers": 2}


@pytest.mark.parametrize(
    ("kind", "changes", "every"),
    [("random", {}, 5), ("random", MANY, 1), ("pretrained", {}, 2),
     ("pretrained", {"ema": 0.9, "batch_norm": "train", "unfreeze": "progressive"}, 3),
     ("pretrained", {"optimizer": "sgd"}, 1)],
)  # fmt: skip
def test_a_run_killed_at_any_step_and_resumed_ends_with_the_same_weights(
    new_run: Callable[[str], RunDir],
    pretrained: TrainConfig,
    kind: str,
    changes: dict[str, object],
    every: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Again and again, after so many checkpoints each, with a checkpoint after each step."""
    config = replace(TINY if kind == "random" else pretrained, **EACH_STEP | changes)
    whole, parted = new_run("whole"), new_run("parted")
    train.run(config, whole)
    kills = 0
    while True:
        try:
            with monkeypatch.context() as patch:
                kill_after(every, patch)
                train.run(replace(config, resume=kills > 0), parted)
            break
        except Killed:
            kills += 1
    assert kills > 2
    assert same(whole, parted)
    losses = [pd.read_csv(run.folder("train") / "history.csv")["train_loss"].tolist() for run in (whole, parted)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("phase", ["head", "fine_tune"])
def test_a_crash_between_checkpoint_and_bundle_changes_nothing(
    new_run: Callable[[str], RunDir], phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = new_run("whole"), new_run("parted")
    train.run(TINY, whole)
    save = Trainer.save_bundle

    def crash(trainer: Trainer) -> None:
        if trainer.history[-1].phase == phase:
            raise KeyboardInterrupt
        save(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_bundle", crash)
        with pytest.raises(KeyboardInterrupt):
            train.run(TINY, parted)
    train.run(replace(TINY, resume=True), parted)
    assert same(whole, parted)


@pytest.mark.parametrize("changes", [{"epochs": 9}, {"lr": 0.5}, {"image_size": 48}, {"seed": 9}])
def test_resuming_with_other_settings_is_rejected_by_name(
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
    run.save_result("dataset", dataset.run(DatasetConfig(image_dir=photos, seed=8, no_pretrained=True), run))
    with pytest.raises(UserError, match="another split"):
        evaluate.run(EvaluateConfig(device="cpu"), run)


def test_threads_and_the_pixel_cache_do_not_change_the_result(new_run: Callable[[str], RunDir]) -> None:
    alone, helped = new_run("alone"), new_run("helped")
    train.run(replace(TINY, num_workers=1, dropout=0.5, pixel_cache_gb=0), alone)
    train.run(replace(TINY, num_workers=3, dropout=0.5), helped)
    assert same(alone, helped)


def test_the_seed_changes_the_result(new_run: Callable[[str], RunDir]) -> None:
    one, other = new_run("one"), new_run("other")
    train.run(TINY, one)
    train.run(replace(TINY, seed=4), other)
    assert not same(one, other)


RUIN = {"lr": 10.0, "clip_grad_norm": 0.0, "warmup_epochs": 0.0}


@pytest.mark.parametrize("head", ["linear_probe", "sgd"])
def test_the_head_alone_is_kept_where_fine_tuning_is_worse(
    new_run: Callable[[str], RunDir], pretrained: TrainConfig, head: str
) -> None:
    """Fine-tuning with an absurd rate ruins the model: what the head phase reached must survive."""
    run = new_run("ruined")
    report = train.run(replace(pretrained, head=head, metric="log_loss", **RUIN), run)
    history = pd.read_csv(run.path / "train" / "history.csv")
    alone = {"head_alone"} if head == "linear_probe" else set()
    assert set(history["phase"]) == {"head", "fine_tune"} | alone
    assert report.best_value == history["val_log_loss"].min()
    assert report.best_phase == ("head_alone" if alone else "head")
    assert report.metrics["rescored"] == pytest.approx(report.best_value, abs=1e-6)
    assert read_bundle_info(run.bundle)[0].phase == report.best_phase


def test_the_linear_probe_is_what_scikit_learn_fits_on_the_features_of_the_bundle(
    new_run: Callable[[str], RunDir], pretrained: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probe, "GAIN", 1.0)  # no other layers
    run = new_run("linear_probe")
    train.run(replace(pretrained, fine_tune="never"), run)
    classifier, info, _ = load_classifier(run.bundle)
    rows = {split: load_split(run, split) for split in ("train", "val")}
    features, labels = {}, {}
    for split, part in rows.items():
        pixels = np.stack([info.preprocessing.pixels(decode(Path(path)).image) for path in part["path"]])
        with torch.no_grad():
            features[split] = classifier.embed(normalize(info.preprocessing, torch.from_numpy(pixels))).numpy()
            logits = classifier(normalize(info.preprocessing, torch.from_numpy(pixels))).numpy()
        labels[split] = label_sets.encode(part["label"], list(info.classes), multi_label=False)
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(
            features["train"], labels["train"]
        )
        for strength in linear_probe.STRENGTHS
    ]
    best = min(log_loss(labels["val"], fit.predict_proba(features["val"])) for fit in fits)
    assert log_loss(labels["val"], calibration.softmax(logits)) == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize("changes", [
    {}, {"unfreeze": "progressive", "progressive_size": True, "image_size": 64}, {"batch_norm": "eval"},
    {"views": 3, "layer_decay": 0.5, "epoch_share": 0.5}, {"batch_norm": "train", "unfreeze": "all"},
])  # fmt: skip
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_pretrained_run_stopped_and_resumed_ends_with_the_same_weights(
    new_run: Callable[[str], RunDir],
    pretrained: TrainConfig,
    changes: dict[str, object],
    epochs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "FEWEST", 8)
    config = replace(pretrained, **changes)
    whole, parted = new_run("whole"), new_run("parted")
    expected = train.run(config, whole)
    assert expected.epochs_run == 4 + (expected.best_phase == "head_alone")
    with monkeypatch.context() as patch:
        stop_after(epochs, patch)
        with pytest.raises(KeyboardInterrupt):
            train.run(config, parted)
    assert train.run(replace(config, resume=True), parted).model_id == expected.model_id
    assert same(whole, parted)


def test_what_is_frozen_stays_as_it_was(new_run: Callable[[str], RunDir], pretrained: TrainConfig) -> None:
    run = new_run("frozen")
    report = train.run(replace(pretrained, batch_norm="eval", metric="log_loss"), run)
    assert report.best_phase == "fine_tune"
    before = load_file(pretrained.weights)
    groups = backbones.layer_groups(backbones.build("test_efficientnet", 3, 32))
    learnt = {name.rpartition(".")[0] for group in groups[-2:] for name in group}
    after = weights(run)
    changed = {name for name, value in before.items() if not np.array_equal(value, after[f"backbone.{name}"])}
    assert changed
    assert all(name.rpartition(".")[0] in learnt for name in changed)


def test_fine_tuning_is_left_out_where_nothing_better_could_be_told(
    new_run: Callable[[str], RunDir], pretrained: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOW_ERROR_RATE", 1.0)
    few = train.run(replace(pretrained, fine_tune="auto"), new_run("few"))  # six validation images: too few errors
    assert few.best_phase in ("head", "head_alone")
    assert few.epochs_run <= 2
    monkeypatch.setattr(train, "FEW_ERRORS", 0)
    many = train.run(replace(pretrained, fine_tune="auto"), new_run("many"))
    assert many.epochs_run >= 4


def test_a_time_budget_chooses_keeps_to_it_and_is_kept_for_resuming(
    new_run: Callable[[str], RunDir], pretrained: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgeted = replace(pretrained, epochs=None, unfreeze=None, image_size=None, time_budget="1h", patience=100)
    monkeypatch.setattr(time_budget, "LADDER", time_budget.LADDER[:5])
    run = new_run("budget")
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train.run(budgeted, run)
    plan = json.loads((run.path / "train" / "plan.json").read_text())
    assert (plan["epochs"], plan["epoch_share"], plan["progressive_size"]) == (4, 0.5, True)
    assert plan["image_size"] == 128  # 0.71 of the 160 px that test_efficientnet is made for
    monkeypatch.undo()
    monkeypatch.setattr(time_budget, "LADDER", time_budget.LADDER[:2])
    report = train.run(replace(budgeted, resume=True), run)
    assert report.epochs_run == 5 + (report.best_phase == "head_alone")


def test_a_budget_that_is_too_small_takes_the_cheapest_plan_and_says_so(
    new_run: Callable[[str], RunDir], pretrained: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(pretrained, epochs=None, unfreeze=None, image_size=None, time_budget="1s", fine_tune="auto")
    with caplog.at_level("INFO", "spectacles"):
        report = train.run(config, new_run("small"))
    assert report.epochs_run == 1
    assert "may be more than the budget" in caplog.text


def test_early_stopping_ends_a_phase(new_run: Callable[[str], RunDir]) -> None:
    report = train.run(replace(TINY, epochs=12, head_epochs=12, head_lr=1e-12, patience=2), new_run("patient"))
    assert report.epochs_run == 3


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_remedy(new_run: Callable[[str], RunDir]) -> None:
    with pytest.raises(UserError, match="--lr"):
        train.run(replace(TINY, lr=1e30, clip_grad_norm=0, optimizer="sgd", warmup_epochs=0), new_run("diverged"))


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"crop_scale": 0.0}])
def test_impossible_settings_are_rejected_by_name(new_run: Callable[[str], RunDir], changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(changes))}"):
        train.run(replace(TINY, **changes), new_run("impossible"))


def test_training_without_a_data_set_says_what_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.py"):
        train.run(TINY, create_run(tmp_path, "empty"))


def inexact(backbone: nn.Module, example: torch.Tensor) -> list[bn_folding.FoldedBatchNorm]:
    raise ValueError("folding BatchNorm changed the features")


def test_a_backbone_that_cannot_be_folded_exactly_keeps_its_batch_norm(
    new_run: Callable[[str], RunDir], pretrained: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded, kept = new_run("fold"), new_run("eval")
    with monkeypatch.context() as patch:
        patch.setattr(bn_folding, "fold_batchnorm", inexact)
        train.run(pretrained, folded)
    train.run(replace(pretrained, batch_norm="eval"), kept)
    assert same(folded, kept)


@pytest.mark.parametrize("exact_at_first", [True, False])
def test_a_run_resumes_with_the_layers_it_has_folded_whatever_another_device_would_fold(
    new_run: Callable[[str], RunDir], pretrained: TrainConfig, exact_at_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = new_run("whole"), new_run("parted")
    with monkeypatch.context() as patch:
        if not exact_at_first:
            patch.setattr(bn_folding, "fold_batchnorm", inexact)
        train.run(pretrained, whole)
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train.run(pretrained, parted)
    if exact_at_first:
        monkeypatch.setattr(bn_folding, "fold_batchnorm", inexact)
    train.run(replace(pretrained, resume=True), parted)
    assert same(whole, parted)


def test_fp16_resumes_a_run_that_had_no_loss_scaler(
    new_run: Callable[[str], RunDir], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a run begun on a CPU, which trains in float32, and resumed on a GPU. Later it may go back to the CPU."""
    run = new_run("moved")
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train.run(TINY, run)
    with monkeypatch.context() as patch, caplog.at_level("INFO", "spectacles"):
        patch.setattr(phases, "training_dtype", lambda config, device: torch.float16)
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train.run(replace(TINY, resume=True), run)
    assert "fp16 begins with a new one" in caplog.text
    saved = checkpoint.load_newest(run.folder("train"))
    assert saved is not None and saved.values["scaler"]["scale"] > 1
    assert train.run(replace(TINY, resume=True), run).epochs_run == TINY.epochs


def test_the_bundle_carries_the_value_range_of_files_with_10_bits_in_16(tmp_path: Path) -> None:
    for number in range(24):
        path = tmp_path / "photos" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.asarray(noise(number).convert("L")).astype(np.uint16)
        Image.fromarray(levels * 4 // (1 + number % 2)).save(path)
    run = create_run(tmp_path, "run")
    data = dataset.run(DatasetConfig(image_dir=tmp_path / "photos", no_pretrained=True), run)
    assert (data.value_ranges.integer, data.row_accounting.converted) == ((0, 1023), 24)
    assert "24 images in files of 16 or 32 bits: 0 to 1023 become black to white" in data.summary
    run.save_result("dataset", data)
    train.run(replace(TINY, epochs=1, head_epochs=0), run.for_stage("train"))
    assert read_bundle_info(run.bundle)[0].preprocessing.value_ranges == data.value_ranges
    rows = load_split(run.for_stage("evaluate"), "val")
    [(path, brightness), *_] = zip(rows["path"], rows["brightness"], strict=True)
    decoded = decode_one(Path(path), read_bundle_info(run.bundle)[0].preprocessing)
    assert decoded.pixels is not None and decoded.pixels.mean() == pytest.approx(brightness, abs=2)
