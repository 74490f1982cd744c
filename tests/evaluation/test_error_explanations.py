"""What error analysis writes about explanations, on a random network and predictions written by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pictures import write_noise
from PIL import Image

from spectacles.core.config import ErrorAnalysisConfig
from spectacles.core.errors import UserError
from spectacles.evaluation import attribution, error_explanations, faithfulness, occlusion
from spectacles.evaluation.error_explanations import explain_decisions, sample_correct
from spectacles.evaluation.saliency import CannotExplain
from spectacles.inference.predictor import Predictor

pytestmark = pytest.mark.slow

PICTURES = ["explained_errors.png", "explained_correct.png", "feature_maps.png"]


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("0", "NA")


@pytest.fixture(autouse=True)
def _few_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occlusion, "WINDOW", 1 / 2)
    monkeypatch.setattr(occlusion, "STRIDE", 1 / 4)


@pytest.fixture
def scored(tmp_path: Path) -> pd.DataFrame:
    """20 predictions, 12 of them right, 2 of those NA."""
    names = write_noise(tmp_path / "photos", [f"{number}.png" for number in range(20)])
    labels = ["NA", "NA"] + ["0"] * 18
    predicted = ["NA", "NA"] + ["0"] * 10 + ["NA"] * 8
    paths = [str(tmp_path / "photos" / name) for name in names]
    return pd.DataFrame({"file": names, "path": paths, "label": labels, "predicted": predicted, "confidence": 0.75})


def explain(
    scored: pd.DataFrame, bundle_dir: Path, folder: Path, **flags: object
) -> tuple[list[str], list[str], dict[str, float | None]]:
    predictor = Predictor(bundle_dir, "cpu", engine="torch")
    config = ErrorAnalysisConfig(device="cpu", num_workers=1, batch_size=3, **({"gallery_size": 4} | flags))
    errors = scored[scored["label"] != scored["predicted"]].head(config.gallery_size)
    folder.mkdir(exist_ok=True)
    files, sentences, metrics = explain_decisions(scored, errors, predictor, config, folder, "test")
    assert sorted(files) == sorted(folder.iterdir())
    return [path.name for path in files], sentences, metrics


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_every_method_is_shown_beside_the_photo_and_checked(
    scored: pd.DataFrame, bundle_dir: Path, tmp_path: Path
) -> None:
    one, all_three = tmp_path / "one", tmp_path / "three"
    names, _, _ = explain(scored, bundle_dir, one)
    assert sorted(names) == sorted(["faithfulness.json", *PICTURES])
    names, sentences, metrics = explain(
        scored, bundle_dir, all_three, explain_with="gradcam,integrated_gradients,occlusion"
    )
    assert sorted(names) == sorted(["faithfulness.json", *PICTURES])
    checked = json.loads((all_three / "faithfulness.json").read_text(encoding="utf-8"))
    assert list(checked["methods"]) == ["gradcam", "integrated_gradients", "occlusion"]
    assert checked["highlighted"] == 0.1
    for method, sentence in zip(checked["methods"], sentences, strict=True):
        result = checked["methods"][method]
        assert result["images"] == 12
        assert result["classes"]["NA"]["images"] == 2
        assert sentence.startswith(f"{method}: blurring the highlighted 10 % lowers the probability by ")
        for key in ("drop", "random_drop", "share"):
            assert metrics[f"{method}_{key}"] == result[key]
    # four photos with one overlay each take two rows of six, with three overlays each two rows of eight
    assert size(all_three / "explained_errors.png")[0] > size(one / "explained_errors.png")[0]


def test_without_galleries_only_numbers_are_written(scored: pd.DataFrame, bundle_dir: Path, tmp_path: Path) -> None:
    names, sentences, _ = explain(scored, bundle_dir, tmp_path / "out", galleries=False)
    assert names == ["faithfulness.json"]
    assert len(sentences) == 1


def test_an_architecture_without_a_map_keeps_the_other_methods(
    scored: pd.DataFrame, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(*_: object) -> None:
        raise CannotExplain("it has no map")

    monkeypatch.setitem(attribution.METHODS, "gradcam", reject)
    monkeypatch.setattr(error_explanations, "draw_feature_maps", reject)
    names, sentences, _ = explain(scored, bundle_dir, tmp_path / "both", explain_with="gradcam,occlusion")
    assert sorted(names) == sorted(["faithfulness.json", *PICTURES[:2]])
    assert sentences[0].startswith("occlusion: ")
    assert sentences[1].startswith("no gradcam for simple_cnn: it has no map; occlusion works with every")
    assert sentences[2] == "no picture of feature maps: it has no map"
    names, _, metrics = explain(scored, bundle_dir, tmp_path / "none")
    assert names == ["faithfulness.json"] and metrics == {}


@pytest.mark.parametrize("kept", ["nothing", "errors", "hits"])
def test_empty_parts(kept: str, scored: pd.DataFrame, bundle_dir: Path, tmp_path: Path) -> None:
    right = scored["label"] == scored["predicted"]
    rows = {"nothing": scored[:0], "errors": scored[~right], "hits": scored[right]}[kept]
    names, sentences, _ = explain(rows, bundle_dir, tmp_path / "out")
    assert set(names) >= {"faithfulness.json", "explained_errors.png", "explained_correct.png"}
    assert ("feature_maps.png" in names) == (kept == "hits")
    assert any("nothing to check" in sentence for sentence in sentences) == (kept == "errors")


def test_hits_are_taken_from_all_classes_in_turn(scored: pd.DataFrame) -> None:
    sample = sample_correct(scored, 5, seed=0)
    assert sorted(sample["predicted"]) == ["0", "0", "0", "NA", "NA"]
    assert set(sample["predicted"][:2]) == {"0", "NA"}
    assert sample["file"].is_unique and (sample["label"] == sample["predicted"]).all()
    assert sample["file"].tolist() == sample_correct(scored, 5, seed=0)["file"].tolist()
    assert sample["file"].tolist() != sample_correct(scored, 5, seed=1)["file"].tolist()
    assert len(sample_correct(scored, 99, seed=0)) == 12


def test_no_more_hits_are_checked_than_said(
    scored: pd.DataFrame, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faithfulness, "IMAGES", 4)
    explain(scored, bundle_dir, tmp_path / "out", gallery_size=8)
    result = json.loads((tmp_path / "out" / "faithfulness.json").read_text(encoding="utf-8"))["methods"]["gradcam"]
    assert result["images"] == 4 and result["faithful"] is None


def test_a_photo_that_is_gone_is_named(scored: pd.DataFrame, bundle_dir: Path, tmp_path: Path) -> None:
    Path(scored["path"][0]).unlink()
    with pytest.raises(UserError, match=r"0\.png could be read before and cannot be now \(file not found"):
        explain(scored, bundle_dir, tmp_path / "out")


def test_of_several_labels_the_most_probable_decided_one_is_explained(
    scored: pd.DataFrame, make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions_seen: list[str] = []
    draw = error_explanations.image_grid

    def listen(pictures: list[Image.Image], captions: list[str], *rest: object) -> Path:
        captions_seen.extend(captions)
        return draw(pictures, captions, *rest)

    monkeypatch.setattr(error_explanations, "image_grid", listen)
    folder = make_bundle("cat", "dog", "face", multi_label=True, label_thresholds=(0.9, 0.2, 0.2))
    scored = scored.assign(label="none", predicted="none", p_cat=0.8, p_dog=0.3, p_face=0.4)
    scored.loc[:3, ["label", "predicted"]] = ["dog|face", "dog|face"]
    scored.loc[4:6, "predicted"] = "dog"
    names, _, _ = explain(scored, folder, tmp_path / "out")
    assert sorted(names) == sorted(["faithfulness.json", *PICTURES])
    checked = json.loads((tmp_path / "out" / "faithfulness.json").read_text(encoding="utf-8"))["methods"]["gradcam"]
    # cat is more probable than the labels that were decided on, and is explained where there are none
    assert {name: of["images"] for name, of in checked["classes"].items()} == {"face": 4, "cat": 13}
    assert "none -> dog, 0.750" in captions_seen[0] and captions_seen[1] == "gradcam: saliency for dog"
