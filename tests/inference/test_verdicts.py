"""What is unsure says so wherever predictions are written; a submission has the guess all the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import write_noise

import predict
from spectacles.core.config import PredictCommand, PredictConfig
from spectacles.core.results import PredictReport
from spectacles.data.preprocessing import decode_one
from spectacles.inference import prediction_rows
from spectacles.inference.inputs import Inputs
from spectacles.inference.predictor import Predictor
from spectacles.metrics import prediction_table
from spectacles.metrics.thresholds import NEVER
from spectacles.models import ood
from spectacles.models.bundle import BundleInfo
from spectacles.models.ood import Familiarity

CPU = torch.device("cpu")
CLASSES = ("no", "yes", "NA")
CONFIG = PredictConfig(device="cpu", engine="torch", batch_size=4, num_workers=1)
NAMES = ["a.png", "b.png", "c.png", "d.png", "e.png", "broken.png"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Five pictures and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    write_noise(folder, NAMES[:5])
    (folder / "broken.png").write_bytes(b"no picture")
    return [str(folder / name) for name in NAMES]


@pytest.fixture(scope="module")
def known(make_bundle: Callable[..., Path], photos: list[str]) -> Familiarity:
    """The last maps of the first four pictures are like those that were trained on."""
    predictor = Predictor(make_bundle(*CLASSES), CPU, engine="torch")
    pixels = np.stack(decoded_pixels(predictor.info, photos[:4]))
    maps = np.tile(predictor.embed(pixels)[1], (8, 1))
    found = ood.fit(maps, maps)
    assert found is not None
    return found


def decoded_pixels(info: BundleInfo, paths: list[str]) -> list[np.ndarray]:
    decoded = [decode_one(Path(path), info.preprocessing).pixels for path in paths]
    return [pixels for pixels in decoded if pixels is not None]


@pytest.fixture(scope="module")
def half(make_bundle: Callable[..., Path], known: Familiarity, photos: list[str]) -> Path:
    """A bundle to which the two least certain pictures are unsure and the fifth is unfamiliar."""
    plain = Predictor(make_bundle(*CLASSES, temperature=0.01), CPU, engine="torch")
    confidence = sorted(outcome.confidence for outcome in plain.predict(map(Path, photos[:4])))
    confidence_threshold = (confidence[1] + confidence[2]) / 2
    return make_bundle(
        *CLASSES, temperature=0.01, familiarity=known, confidence_threshold=confidence_threshold, familiar_from=0.005
    )


def run(bundle: Path, photos: list[str], folder: Path, config: PredictConfig) -> tuple[PredictReport, Path]:
    inputs = Inputs(photos, NAMES, [str(number) for number in range(len(photos))], "id")
    output = folder / f"predictions.{config.format}"
    return predict.predict(inputs, bundle, config, output, folder / "submission.csv"), output


def text_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_a_table_has_unsure_the_guess_and_why(half: Path, photos: list[str], tmp_path: Path) -> None:
    report, output = run(half, photos, tmp_path, CONFIG)
    table = text_table(output)
    assert sorted(table["verdict"][:4]) == ["", "", "unsure", "unsure"]
    assert table["verdict"].tolist()[4:] == ["unfamiliar", ""]
    doubtful = table["verdict"] != ""
    assert (table["label"][doubtful] == "unsure").all()
    assert (table["label"][~doubtful] == table["guess"][~doubtful]).all()
    probabilities = table[[f"p_{name}" for name in CLASSES]][:5].astype(float)
    assert table["guess"].tolist() == [*probabilities.idxmax(axis=1).str.removeprefix("p_"), ""]
    assert (table["confidence"][:5].astype(float) == probabilities.max(axis=1)).all()
    familiar = table["familiarity"][:5].astype(float)
    assert familiar[4] < 0.005 <= familiar[:4].min()
    assert table.loc[5, ["label", "guess", "confidence", "familiarity"]].tolist() == [""] * 4
    assert (report.metrics["unsure"], report.metrics["unfamiliar"], report.rejected) == (2, 1, 1)
    assert any("3 of the predicted are called unsure: 2 too uncertain, 1 unlike" in line for line in report.summary)


def test_a_submission_has_the_guesses(half: Path, photos: list[str], tmp_path: Path) -> None:
    _, output = run(half, photos, tmp_path, CONFIG)
    submission = text_table(tmp_path / "submission.csv")
    assert submission["label"].tolist() == text_table(output)["guess"].tolist()
    assert "unsure" not in submission["label"].tolist()


def test_the_other_formats_say_the_same(half: Path, photos: list[str], tmp_path: Path) -> None:
    table = text_table(run(half, photos, tmp_path, CONFIG)[1])
    _, text = run(half, photos, tmp_path, replace(CONFIG, format="txt"))
    assert text.read_text().splitlines() == table["label"].tolist()
    _, lines = run(half, photos, tmp_path, replace(CONFIG, format="jsonl", top_k=2))
    records = [json.loads(line) for line in lines.read_text().splitlines()][:5]
    for record, row in zip(records, table.to_dict("records"), strict=False):
        assert {name: record[name] for name in ("label", "guess", "verdict")} == {
            name: row[name] for name in ("label", "guess", "verdict")
        }
        assert record["familiarity"] == float(row["familiarity"])
        assert record["top"][0]["label"] == record["guess"]


@pytest.mark.parametrize(
    ("facts", "said"),
    [({}, ""), ({"confidence_threshold": NEVER}, "unsure, perhaps "), ({"familiar_from": 1.1}, "unlike the tr")],
)
def test_a_single_photo_is_answered_with_its_doubts(
    make_bundle: Callable[..., Path], known: Familiarity, photos: list[str], facts: dict[str, float], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = make_bundle(*CLASSES, familiarity=known, **facts)
    predict.predict_inputs(photos[:1], PredictCommand(device="cpu", bundle=folder))
    printed = capsys.readouterr().out
    assert said in printed and ("unsure" in printed) == bool(facts)


def test_the_table_of_predictions_keeps_guess_logits_familiarity_and_verdict(
    half: Path, photos: list[str], tmp_path: Path
) -> None:
    predictor = Predictor(half, CPU, engine="torch", batch_size=4)
    rows = pd.DataFrame({"file": NAMES, "path": photos, "cluster": range(6), "split": "val", "label": "yes"})
    table = prediction_rows.predict_rows(predictor, rows, 1)
    logits = table[[f"z_{name}" for name in CLASSES]].to_numpy()[:5]
    np.testing.assert_array_equal(
        predictor.info.calibration.probabilities(logits), prediction_table.probabilities(table, list(CLASSES))[:5]
    )
    assert set(table["predicted"][:5]) <= set(CLASSES)
    assert table["verdict"].tolist()[4:] == ["unfamiliar", ""]
    assert np.isnan(table.loc[5, ["familiarity", *(f"z_{name}" for name in CLASSES)]].to_numpy(dtype=float)).all()
    table.to_csv(tmp_path / "predictions.csv", index=False)
    pd.testing.assert_frame_equal(
        prediction_table.load(tmp_path / "predictions.csv").drop(columns="cluster"), table.drop(columns="cluster")
    )


def test_a_bundle_that_cannot_tell_leaves_the_column_empty(
    make_bundle: Callable[..., Path], photos: list[str], tmp_path: Path
) -> None:
    table = text_table(run(make_bundle(*CLASSES), photos, tmp_path, CONFIG)[1])
    assert set(table["familiarity"]) == {""} and set(table["verdict"]) == {""}


def test_no_rows_give_an_empty_table(half: Path) -> None:
    rows = pd.DataFrame({name: [] for name in ("file", "path", "cluster", "split", "label")})
    table = prediction_rows.predict_rows(Predictor(half, CPU, engine="torch"), rows, 1)
    assert len(table) == 0 and {"familiarity", "verdict", "z_NA", "p_NA"} <= set(table.columns)
