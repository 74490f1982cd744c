"""Where the head alone is kept, it looks at the layers and sizes that held-out folds choose."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import encoded, noise
from PIL import Image
from safetensors.torch import save_file

import dataset
import train
from spectacles.core.config import DatasetConfig, TrainConfig
from spectacles.core.run_dir import RunDir, create_run
from spectacles.data.images import decode
from spectacles.data.schemas import load_split
from spectacles.inference.predictor import Predictor
from spectacles.models import backbones, linear_probe
from spectacles.models.bundle import read_bundle_info
from spectacles.models.classifier import load_classifier
from spectacles.models.normalization import normalize

SIDE = 64


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A head alone, on a small random network as it stands; views change nothing but the light."""
    file = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    torch.manual_seed(1)
    save_file(backbones.build("test_efficientnet", 3, SIDE).state_dict(), file)
    return TrainConfig(
        backbone="test_efficientnet", weights=file, image_size=SIDE, fine_tune="never", device="cpu", batch_size=16,
        flip=False, crop_scale=1.0, zoom_out=0.0, rotation=0.0, random_erasing=0.0,
    )  # fmt: skip


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[[Callable[[int], Image.Image]], RunDir]:
    """A run on 80 drawn pictures, of class 'odd' where their number is odd."""

    def make(draw: Callable[[int], Image.Image]) -> RunDir:
        for number in range(80):
            path = tmp_path / "photos" / ("odd" if number % 2 else "even") / f"{number}.png"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(encoded(draw(number)))
        made = create_run(tmp_path, "run")
        data = DatasetConfig(image_dir=tmp_path / "photos", no_pretrained=True, val_fraction=0.3, test_fraction=0.0)
        made.save_result("dataset", dataset.run(data, made))
        return made.for_stage("train")

    return make


def spot(number: int) -> Image.Image:
    """A bright spot on noise: of odd numbers in the left half, else in the right one."""
    picture, rng = noise(number, SIDE, SIDE), np.random.default_rng(number)
    left = int(rng.integers(4, 16)) + (0 if number % 2 else 32)
    picture.paste((255, 255, 255), (left, top := int(rng.integers(4, 44)), left + 14, top + 14))
    return picture


def fine(number: int) -> Image.Image:
    """Of odd numbers a pattern of single pixels, else its mean: at half the size they are the same."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    pattern = 20 * (-1) ** (x + y) if number % 2 else np.zeros((SIDE, SIDE))
    colours = np.random.default_rng(number).integers(60, 190, (4, 4, 3)).repeat(16, axis=0).repeat(16, axis=1)
    return Image.fromarray((pattern[:, :, None] + colours).astype(np.uint8))


def test_where_things_stand_takes_grids_and_the_bundle_looks_at_them(
    config: TrainConfig, new_run: Callable[..., RunDir]
) -> None:
    run = new_run(spot)
    report = train.run(config, run)
    history = pd.read_csv(run.path / "train" / "history.csv")
    assert history["phase"].tolist() == ["head", "head_alone"] and report.best_phase == "head_alone"
    assert history["val_log_loss"].iloc[1] < history["val_log_loss"].iloc[0]
    assert report.metrics["rescored"] == pytest.approx(report.best_value, abs=1e-5)
    assert any("3x3 grids" in line for line in report.summary)
    classifier, info, _ = load_classifier(run.bundle)
    assert list(info.taps.grids) == ["blocks.2.0", "blocks.3.0"] and not info.taps.means
    assert info.feature_dim == classifier.head.in_features == 256 + 288 + 432
    paths = load_split(run, "val")["path"].tolist()
    pixels = np.stack([info.preprocessing.pixels(decode(Path(path)).image) for path in paths])
    with torch.no_grad():
        logits = classifier(normalize(info.preprocessing, torch.from_numpy(pixels))).numpy()
    for engine in ("torch", "onnxruntime"):
        predicted = list(Predictor(run.bundle, "cpu", engine=engine).predict(map(Path, paths)))
        np.testing.assert_allclose([each.logits for each in predicted], logits, atol=1e-4)
    accuracy = np.mean([Path(path).parent.name == each.label for path, each in zip(paths, predicted, strict=True)])
    assert accuracy > 0.9


def test_where_the_folds_choose_the_last_layer_its_head_stays(
    config: TrainConfig, new_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probe, "GAIN", 1.0)
    run = new_run(spot)
    report = train.run(config, run)
    assert report.best_phase == "head" and report.epochs_run == 1
    assert read_bundle_info(run.bundle)[0].taps.blocks == ("last",)


def test_a_larger_size_is_chosen_only_where_it_was_left_open(
    config: TrainConfig, new_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "native_size", lambda name: SIDE)
    run = new_run(fine)
    report = train.run(replace(config, image_size=None, recipe="fast"), run)  # 32 px
    assert read_bundle_info(run.bundle)[0].preprocessing.image_size == SIDE
    assert report.metrics["rescored"] == pytest.approx(report.best_value, abs=1e-5)
    assert any("64 px" in line for line in report.summary)
