"""Training's validation, evaluate, predict and the server see the very same pixels and answer the same."""

import csv
import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import blocks, encoded, exif, photo
from PIL import Image
from served import serve

import predict
from spectacles.core.config import PredictConfig, TrainConfig
from spectacles.data import schemas
from spectacles.data.pixel_cache import Pixels
from spectacles.inference import prediction_rows
from spectacles.inference.inputs import Inputs
from spectacles.inference.predictor import Predictor
from spectacles.models.engines import Outputs
from spectacles.training.batches import Examples, StepSettings
from spectacles.training.validation import validate

RAMP = np.linspace(0, 65535, 48 * 32).astype(np.uint16).reshape(32, 48)
CPU = torch.device("cpu")


def pictures() -> dict[str, bytes]:
    see_through = blocks().convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    return {
        "rotated.jpg": encoded(blocks(), "JPEG", exif=exif(6)),
        "decoded_smaller.jpg": encoded(photo(1, 600, 400), "JPEG", exif=exif(8)),
        "cmyk.jpg": encoded(blocks().convert("CMYK"), "JPEG"),
        "sixteen.png": encoded(Image.fromarray(RAMP)),
        "palette.png": encoded(blocks().convert("P", palette=Image.Palette.ADAPTIVE, colors=5)),
        "alpha.png": encoded(see_through),
    }


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    for name, content in pictures().items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in pictures()]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every batch that reaches a network from here on."""
    batches: list[np.ndarray] = []
    answer = Predictor.outputs

    def record(predictor: Predictor, pixels: np.ndarray) -> Outputs:
        batches.append(pixels.copy())
        return answer(predictor, pixels)

    monkeypatch.setattr(Predictor, "outputs", record)
    return batches


def validated(predictor: Predictor, photos: list[Path], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, calibrated probabilities) as training's validation has them, the second time from its cache."""
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in photos]
    rows = pd.DataFrame({"path": map(str, photos), "sha256": hashes})
    settings = StepSettings(TrainConfig(batch_size=1), CPU, len(predictor.info.classes), None)
    places = np.arange(len(photos))
    for _ in range(2):
        with Pixels(rows, predictor.info.preprocessing, folder, 2**20, 1) as pixels:
            logits = validate(predictor.classifier, Examples(pixels, places, 0 * places), settings)
            batch = pixels.batch(places)
    return batch, predictor.info.calibration.probabilities(logits)


@pytest.mark.server
def test_all_paths_agree_bit_for_bit(
    make_bundle: Callable[..., Path],
    photos: list[Path],
    seen: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scales, biases = (0.8, 1.0, 1.2), (0.5, 0.0, -0.5)
    bundle_dir = make_bundle("cat", "dog", "other", temperature=0.01, class_scales=scales, class_biases=biases)
    predictor = Predictor(bundle_dir, "cpu", batch_size=1, engine="torch")
    classes = list(predictor.info.classes)
    expected, answers = validated(predictor, photos, tmp_path / "cache")
    assert len(np.unique(answers)) > len(photos)

    rows = pd.DataFrame({"file": [p.name for p in photos], "path": map(str, photos), "cluster": range(len(photos))})
    table = prediction_rows.predict_rows(predictor, rows.assign(split="test", label=classes[0]), num_workers=1)
    np.testing.assert_array_equal(np.concatenate(seen), expected)
    np.testing.assert_array_equal(schemas.probabilities(table, classes), answers)
    seen.clear()

    names = [str(path) for path in photos]
    config, output = PredictConfig(device="cpu", batch_size=1, engine="torch"), tmp_path / "out.csv"
    predict.predict(Inputs(names, names, []), bundle_dir, config, output, tmp_path / "submission.csv")
    np.testing.assert_array_equal(np.concatenate(seen), expected)
    with output.open(newline="", encoding="utf-8") as file:
        written = [[float(row[f"p_{name}"]) for name in classes] for row in csv.DictReader(file)]
    np.testing.assert_array_equal(written, answers)

    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        seen.clear()  # the server warms up before its first request
        replies = [client.post("/predict", files={"file": BytesIO(path.read_bytes())}).json() for path in photos]
    np.testing.assert_array_equal(np.concatenate(seen), expected)
    assert [[reply["probabilities"][name] for name in classes] for reply in replies] == written
