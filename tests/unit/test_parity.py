"""Training's validation, evaluate, predict and the server see the very same pixels and answer the same."""

import csv
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastapi.testclient import TestClient
from pictures import blocks, encoded, exif
from PIL import Image

import api
import predict
from spectacles import predictions
from spectacles.config import PredictConfig
from spectacles.inference import Predictor
from spectacles.loading import ImageDataset

RAMP = np.linspace(0, 65535, 48 * 32).astype(np.uint16).reshape(32, 48)


def pictures() -> dict[str, bytes]:
    see_through = blocks().convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    return {
        "rotated.jpg": encoded(blocks(), "JPEG", exif=exif(6)),
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
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every batch that reaches a network from here on."""
    batches: list[torch.Tensor] = []
    answer = Predictor.probabilities

    def record(predictor: Predictor, inputs: torch.Tensor) -> np.ndarray:
        batches.append(inputs.clone())
        return answer(predictor, inputs)

    monkeypatch.setattr(Predictor, "probabilities", record)
    return batches


def test_all_paths_agree_bit_for_bit(
    make_bundle: Callable[..., Path],
    photos: list[Path],
    seen: list[torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle_dir = make_bundle("cat", "dog", "other", temperature=0.01)
    predictor = Predictor(bundle_dir, torch.device("cpu"), batch_size=1)
    preprocessing, classes = predictor.info.preprocessing, list(predictor.info.classes)
    validation = ImageDataset([str(path) for path in photos], [0] * len(photos), preprocessing)
    expected = torch.stack([validation[0, index][0] for index in range(len(photos))])

    rows = pd.DataFrame({"file": [p.name for p in photos], "path": map(str, photos), "cluster": range(len(photos))})
    table = predictions.predict_rows(predictor, rows.assign(split="test", label=classes[0]), num_workers=1)
    evaluated = torch.cat(seen)
    assert evaluated.equal(expected)
    seen.clear()

    names = [str(path) for path in photos]
    config, output = PredictConfig(device="cpu", batch_size=1), tmp_path / "out.csv"
    predict.predict(predict.Inputs(names, names, []), bundle_dir, config, output, tmp_path / "submission.csv")
    assert torch.cat(seen).equal(expected)
    with output.open(newline="", encoding="utf-8") as file:
        written = [[float(row[f"p_{name}"]) for name in classes] for row in csv.DictReader(file)]
    assert np.array_equal(predictions.probabilities(table, classes), written)

    monkeypatch.setenv("SPECTACLES_BUNDLE", str(bundle_dir))
    monkeypatch.setenv("SPECTACLES_DEVICE", "cpu")
    with TestClient(api.app) as client:
        seen.clear()  # the server warms up before its first request
        answers = [client.post("/predict", files={"file": BytesIO(path.read_bytes())}).json() for path in photos]
    assert torch.cat(seen).equal(expected)
    assert [[answer["probabilities"][name] for name in classes] for answer in answers] == written
