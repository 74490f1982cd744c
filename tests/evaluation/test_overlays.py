"""predict.py --explain: an overlay for each readable input, whatever the inputs are called."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, noise
from PIL import Image

import predict
from spectacles.core.config import PredictCommand
from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.evaluation import attribution, overlays
from spectacles.evaluation.attribution import explain
from spectacles.evaluation.overlays import SIDE, file_name, view
from spectacles.evaluation.saliency import CannotExplain
from spectacles.inference.predictor import Predictor
from spectacles.report.saliency import overlay_saliency


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("cat", "dog", temperature=0.01)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Names that want to collide or to get out, and a file that is not a picture."""
    folder = tmp_path / "photos"
    for number, name in enumerate(["a.png", "a.jpg", "b/a.png", "b/a..png", "b/日本 語.png", "b/c*d.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(noise(number, 40, 30)))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def run(bundle_dir: Path, arguments: list[Path], output: Path | None = None, **flags: object) -> None:
    options = {"explain": True, "device": "cpu", "num_workers": 1, "batch_size": 2} | flags
    config = PredictCommand(bundle=bundle_dir, output=str(output) if output else None, **options)
    predict.predict_inputs([str(argument) for argument in arguments], config)


def rows(output: Path) -> list[dict[str, str]]:
    with output.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_readable_input_has_its_own_overlay_inside_the_folder(
    bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "predictions.csv"
    run(bundle_dir, [photos, photos / "a.png"], output)
    table = rows(output)
    assert len(table) == 8
    named = [row["explanation"] for row in table if row["label"]]
    assert len(named) == len(set(named)) == 7
    [rejected] = [row for row in table if not row["label"]]
    assert rejected["explanation"] == "" and rejected["status"].startswith("rejected")
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file() and path != output)
    assert written == sorted(output.parent / name for name in named)
    for path in written:
        assert path.parent == output.parent / "explanations"
        with Image.open(path) as picture:
            assert picture.size == (SIDE, SIDE)


def test_an_overlay_is_of_its_own_row_and_of_the_class_that_was_predicted(
    bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "predictions.csv"
    run(bundle_dir, [photos], output)
    predictor = Predictor(bundle_dir, "cpu", engine="torch")
    info = predictor.info
    for row in rows(output):
        if not row["label"]:
            continue
        pixels, picture = view(Path(row["file"]), info.preprocessing)
        index = info.classes.index(row["label"])
        saliency = explain("gradcam", predictor, pixels[None], [index])[0]
        with Image.open(output.parent / row["explanation"]) as stored:
            difference = np.asarray(stored).astype(int) - overlay_saliency(picture, saliency)
        assert np.abs(difference).mean() < 0.1  # a batch may round otherwise than a single image


def test_several_methods_stand_side_by_side(bundle_dir: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictions.jsonl"
    flags = {"format": "jsonl", "explain_with": "gradcam,occlusion,integrated_gradients"}
    run(bundle_dir, [photos / "b", photos / "broken.jpg"], output, **flags)
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [record.get("explanation", "")[:20] for record in records] == [
        *(f"explanations/{number:06d}-" for number in range(1, 5)), "",
    ]  # fmt: skip
    with Image.open(tmp_path / records[0]["explanation"]) as picture:
        assert picture.size == (3 * SIDE, SIDE)


def test_a_single_photo_is_answered_on_the_screen_with_the_overlays_path(
    bundle_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(bundle_dir, [photos / "a.png"], output_dir=tmp_path / "outputs")
    answer, note = capsys.readouterr().out.splitlines()
    assert answer.startswith(f"{photos / 'a.png'}: ")
    path = Path(note.partition(": ")[2])
    assert path.is_file() and path.name == "000001-a.png"
    assert path.parent.parent.parent == tmp_path / "outputs"
    with pytest.raises(UserError, match="was rejected"):
        run(bundle_dir, [photos / "broken.jpg"], output_dir=tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []


def test_without_the_flag_nothing_is_explained(bundle_dir: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "predictions.csv"
    run(bundle_dir, [photos], output, explain=False)
    assert "explanation" not in rows(output)[0]
    assert list(output.parent.iterdir()) == [output]


def test_a_file_that_vanishes_after_its_prediction_has_a_row_and_no_overlay(
    bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    predictor = Predictor(bundle_dir, "cpu", 2, "torch")
    paths = [photos / "a.png", photos / "b" / "c*d.png"]
    outcomes = list(predictor.predict(paths, 1))
    paths[0].unlink()
    explained = overlays.write_overlays(iter(outcomes), ["x", "y"], predictor, ["gradcam"], tmp_path / "explanations")
    assert list(explained) == [(outcomes[0], ""), (outcomes[1], "000002-y.png")]


def test_the_label_is_explained_where_the_model_abstains_too(bundle_dir: Path, photos: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle_dir, "cpu", 2, "torch")
    [answered] = predictor.predict([photos / "a.png"], 1)
    abstained = replace(answered, abstain_reason="low_confidence")
    explained = overlays.write_overlays(iter([answered, abstained]), ["a", "b"], predictor, ["gradcam"], tmp_path)
    (_, first), (_, second) = explained
    assert (tmp_path / first).read_bytes() == (tmp_path / second).read_bytes()


def test_no_more_than_a_batch_is_read_ahead(bundle_dir: Path, photos: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle_dir, "cpu", 2, "torch")
    [outcome] = predictor.predict([photos / "a.png"], 1)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield outcome

    explained = overlays.write_overlays(endless(), ["a"] * 1000, predictor, ["gradcam"], tmp_path)
    for _ in range(4):
        next(explained)
    assert taken == 4


def test_a_backbone_without_a_map_is_reported_with_the_methods_that_work(
    bundle_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(*_: object) -> None:
        raise CannotExplain("it has no map")

    monkeypatch.setitem(attribution.METHODS, "gradcam", reject)
    with pytest.raises(UserError, match="gradcam cannot explain this model: it has no map; occlusion works"):
        run(bundle_dir, [photos], tmp_path / "predictions.csv")
    assert not (tmp_path / "predictions.csv").exists()
    run(bundle_dir, [photos], tmp_path / "predictions.csv", explain_with="occlusion")


@given(st.integers(1, 10**9), st.text(st.characters(), max_size=400))
def test_a_file_name_is_safe_whatever_the_photo_is_called(number: int, name: str) -> None:
    made = file_name(number, name)
    assert Path(made).name == made and made.startswith(f"{number:06d}-") and made.endswith(".png")
    assert made.isascii() and made.isprintable() and " " not in made and len(made) < 100
    assert file_name(number + 1, name) != made


def test_a_grey_model_shows_a_grey_photo() -> None:
    pixels, picture = view(encoded(noise(0, 50, 80)), Preprocessing(32, "crop", "bicubic", (0.5,), (0.5,), 1))
    assert pixels.shape == (32, 32, 1) and picture.shape == (SIDE, SIDE, 3)
    large, same = view(encoded(noise(0, 50, 80)), Preprocessing(448, "pad", "bicubic", (0.5,) * 3, (0.5,) * 3, 3))
    np.testing.assert_array_equal(large, same)
