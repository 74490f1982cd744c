"""Wherever predictions are written, the label is the class, and whether the model abstains stands beside it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import write_noise

import predict
from spectacles.core.config import PredictCommand, PredictConfig
from spectacles.core.results import PredictReport
from spectacles.data import schemas
from spectacles.data.preprocessing import decode_one
from spectacles.inference import prediction_rows
from spectacles.inference.inputs import Inputs
from spectacles.inference.predictor import Predictor
from spectacles.metrics.abstention import NEVER
from spectacles.models import ood
from spectacles.models.bundle import BundleInfo
from spectacles.models.ood import OODScorer

CPU = "cpu"
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
def scorer(make_bundle: Callable[..., Path], photos: list[str]) -> OODScorer:
    """The last maps of the first four pictures are like those that were trained on."""
    predictor = Predictor(make_bundle(*CLASSES), CPU, engine="torch")
    pixels = np.stack(decoded_pixels(predictor.info, photos[:4]))
    maps = np.tile(predictor.outputs(pixels)["ood_features"], (8, 1))
    scorer = ood.fit(maps, maps)
    assert scorer is not None
    return scorer


def decoded_pixels(info: BundleInfo, paths: list[str]) -> list[np.ndarray]:
    decoded = [decode_one(Path(path), info.preprocessing).pixels for path in paths]
    return [pixels for pixels in decoded if pixels is not None]


@pytest.fixture(scope="module")
def half(make_bundle: Callable[..., Path], scorer: OODScorer, photos: list[str]) -> Path:
    """A bundle that abstains on the two least certain pictures, and on the fifth as out of distribution."""
    plain = Predictor(make_bundle(*CLASSES, temperature=0.01), CPU, engine="torch")
    confidence = sorted(outcome.confidence for outcome in plain.predict(map(Path, photos[:4])))
    confidence_threshold = (confidence[1] + confidence[2]) / 2
    return make_bundle(
        *CLASSES, temperature=0.01, ood_scorer=scorer, confidence_threshold=confidence_threshold, ood_threshold=0.995
    )


def run(bundle: Path, photos: list[str], folder: Path, config: PredictConfig) -> tuple[PredictReport, Path]:
    inputs = Inputs(photos, NAMES, [str(number) for number in range(len(photos))], "id")
    output = folder / f"predictions.{config.format}"
    return predict.predict(inputs, bundle, config, output, folder / "submission.csv"), output


def text_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_a_table_has_the_label_and_why_the_model_abstains(half: Path, photos: list[str], tmp_path: Path) -> None:
    report, output = run(half, photos, tmp_path, CONFIG)
    table = text_table(output)
    assert sorted(table["abstain_reason"][:4]) == ["", "", "low_confidence", "low_confidence"]
    assert table["abstain_reason"].tolist()[4:] == ["out_of_distribution", ""]
    assert (table["abstained"] == np.where(table["abstain_reason"] == "", "False", "True")).all()
    probabilities = table[[f"p_{name}" for name in CLASSES]][:5].astype(float)
    assert table["label"].tolist() == [*probabilities.idxmax(axis=1).str.removeprefix("p_"), ""]
    assert (table["confidence"][:5].astype(float) == probabilities.max(axis=1)).all()
    scores = table["ood_score"][:5].astype(float)
    assert scores[4] > 0.995 >= scores[:4].max()
    assert table.loc[5, ["label", "confidence", "ood_score"]].tolist() == [""] * 3
    assert (report.metrics["low_confidence"], report.metrics["out_of_distribution"], report.rejected) == (2, 1, 1)
    assert "the model abstains on 3 of them: 2 low confidence, 1 out of distribution" in report.summary


def test_a_submission_has_the_class_also_where_the_model_abstains(
    half: Path, photos: list[str], tmp_path: Path
) -> None:
    _, output = run(half, photos, tmp_path, CONFIG)
    submission = text_table(tmp_path / "submission.csv")
    assert submission["label"].tolist() == text_table(output)["label"].tolist()
    assert set(submission["label"][:5]) <= set(CLASSES)


def test_all_formats_agree(half: Path, photos: list[str], tmp_path: Path) -> None:
    table = text_table(run(half, photos, tmp_path, CONFIG)[1])
    _, text = run(half, photos, tmp_path, replace(CONFIG, format="txt"))
    assert text.read_text().splitlines() == table["label"].tolist()
    _, lines = run(half, photos, tmp_path, replace(CONFIG, format="jsonl", top_k=2))
    records = [json.loads(line) for line in lines.read_text().splitlines()][:5]
    for record, row in zip(records, table.to_dict("records"), strict=False):
        assert (record["label"], record["abstain_reason"] or "") == (row["label"], row["abstain_reason"])
        assert str(record["abstained"]) == row["abstained"]
        assert record["ood_score"] == float(row["ood_score"])
        assert record["top"][0]["label"] == record["label"]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({}, ""), ({"confidence_threshold": NEVER}, "confidence is too low"), ({"ood_threshold": -1.0}, "unlike the tr")],
)
def test_the_line_of_a_single_photo_says_why_the_model_abstains(
    make_bundle: Callable[..., Path], scorer: OODScorer, photos: list[str], facts: dict[str, float], reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = make_bundle(*CLASSES, ood_scorer=scorer, **facts)
    predict.predict_inputs(photos[:1], PredictCommand(device="cpu", bundle=folder))
    printed = capsys.readouterr().out
    assert reason in printed and ("the model abstains" in printed) == bool(facts)


def test_the_scored_table_has_labels_logits_scores_and_reasons(half: Path, photos: list[str], tmp_path: Path) -> None:
    predictor = Predictor(half, CPU, engine="torch", batch_size=4)
    rows = pd.DataFrame({"file": NAMES, "path": photos, "cluster": range(6), "split": "val", "label": "yes"})
    table = prediction_rows.predict_rows(predictor, rows, 1)
    logits = table[[f"z_{name}" for name in CLASSES]].to_numpy()[:5]
    np.testing.assert_array_equal(
        predictor.info.calibration.probabilities(logits), schemas.probabilities(table, list(CLASSES))[:5]
    )
    assert set(table["predicted"][:5]) <= set(CLASSES)
    assert table["abstain_reason"].tolist()[4:] == ["out_of_distribution", ""]
    assert np.isnan(table.loc[5, ["ood_score", *(f"z_{name}" for name in CLASSES)]].to_numpy(dtype=float)).all()
    schemas.PREDICTIONS.write(tmp_path / "predictions.csv", table)
    pd.testing.assert_frame_equal(schemas.PREDICTIONS.read(tmp_path / "predictions.csv"), table)


def test_without_a_scorer_the_column_is_empty(
    make_bundle: Callable[..., Path], photos: list[str], tmp_path: Path
) -> None:
    table = text_table(run(make_bundle(*CLASSES), photos, tmp_path, CONFIG)[1])
    assert set(table["ood_score"]) == {""} and set(table["abstain_reason"]) == {""}


def test_no_rows_give_an_empty_table(half: Path) -> None:
    rows = pd.DataFrame({name: [] for name in ("file", "path", "cluster", "split", "label")})
    table = prediction_rows.predict_rows(Predictor(half, CPU, engine="torch"), rows, 1)
    assert len(table) == 0 and {"ood_score", "abstained", "abstain_reason", "z_NA", "p_NA"} <= set(table.columns)
