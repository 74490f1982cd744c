"""Report and model card of a run whose images have any number of labels."""

import json
import re
from importlib import import_module
from pathlib import Path

import made_up_run
import pytest
from made_up_run import EVIL, MadeUp
from pictures import write_csv, write_noise
from reading import assert_sound, charts, read, rows, section, write

import run_pipeline
from spectacles.core.config import PipelineConfig, select
from spectacles.core.environment import describe_environment
from spectacles.core.fileio import write_json
from spectacles.core.run_dir import RunDir
from spectacles.data import label_text, schemas
from spectacles.report import confusion_browser, html_report, key_findings, model_card

pytestmark = pytest.mark.slow

LABELS = ("cat", EVIL, "night")


@pytest.fixture
def made(tmp_path: Path) -> MadeUp:
    return made_up_run.make_labels(tmp_path)


def test_the_page_is_sound_and_states_what_each_number_is(made: MadeUp) -> None:
    page = write(made)
    assert_sound(page, made.run_dir.path)
    source = " ".join(made.run_dir.report.read_text(encoding="utf-8").split())
    assert "33.3 %</b>" in source and "of 6 images have all labels correct." in source
    assert page.row("all labels correct")[1:] == ["0.3333", "0.100 to 0.700"]
    assert page.row("accuracy of each label")[1] == "0.7500"
    assert page.row("micro F1")[1] == "0.6250" and page.row("mAP")[1] == "0.8750"
    assert "counts as correct only if all of them are" in page.text("evaluate")
    assert "Confusion matrix" not in page.text("evaluate") and "Per label (test)" in page.text("evaluate")
    tables = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    assert ["label", "precision", "recall", "F1", "AP", "images"] in tables
    assert ["cat", "0.5000", "0.5000", "0.5000", "0.8125", "2"] in tables
    assert ["cat", "5", "1", "3"] in tables and ["all images", "9", "2", "6"] in tables
    assert "do not add up to the number of images" in page.text("dataset")
    assert page.row("labels of the nearest image")[1] == "80.0 %"


def test_every_label_links_to_its_missed_and_added_images(made: MadeUp) -> None:
    page = write(made)
    cells = {link["href"]: link["aria-label"] for link in page.all("a") if str(link["href"]).startswith("#cell-")}
    assert cells == {"#cell-0-0": "cat missed: 2", "#cell-2-0": "night missed: 1", "#cell-2-1": "night added: 2"}
    assert [" ".join(cell.split()) for cell in page.row("night")] == ["night", "150.0 %", "250.0 %"]
    missed = page.text("cell-0-0")
    # Most confident first, by the probability of the label, with true and predicted labels.
    assert missed.index("b3.jpg 5.0 %") < missed.index("b2.jpg 20.0 %")
    assert "cat predicted as none" in missed and "cat predicted as night" in missed
    assert page.text("cell-2-1").index("b4.jpg 95.0 %") < page.text("cell-2-1").index("b2.jpg 80.0 %")
    # 2 + 1 + 2 errors behind cells, two neighbours that exist for each of those listed, and the pair across splits.
    assert len(page.images()) - len(charts(made)) == 5 + 2 * 3 + 2


def test_many_labels_show_the_most_frequent_errors(made: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion_browser, "MAX_LABELS", 2)
    monkeypatch.setattr(confusion_browser, "MAX_PAIRS", 2)
    page = write(made)
    assert_sound(page, made.run_dir.path)
    assert [link["href"] for link in page.all("a") if str(link["href"]).startswith("#cell-")] == [
        "#cell-0-0", "#cell-2-1"
    ]  # fmt: skip
    assert ["night", "added", "2", "50.0 %"] in [[" ".join(cell.split()) for cell in row] for row in page.rows]


def test_without_galleries_the_labels_are_still_listed(made: MadeUp) -> None:
    made.write_config(galleries=False)
    page = write(made)
    assert "b3.jpg 5.0 %" in page.text("cell-0-0") and "cat predicted as none" in page.text("cell-0-0")
    assert len(page.images()) == 2


@pytest.mark.parametrize("missing", ["train/bundle/bundle.json", "evaluate/predictions.csv", "explore/baseline.json"])
def test_any_part_may_be_missing(made: MadeUp, missing: str) -> None:
    (made.run_dir.path / missing).unlink()
    page = write(made)
    assert_sound(page, made.run_dir.path)
    assert page.row("all labels correct")[1] == "0.3333"


def test_limits_list_every_threshold() -> None:
    bundle = {
        "multi_label": True,
        "classes": list("abc"),
        "label_thresholds": [0.1, 0.25, 0.5],
        "confidence_threshold": 0.875,
    }
    assert key_findings.limits(bundle) == [
        "A label is assigned from this probability upwards: a 0.100, b 0.250, c 0.500.",
        "The model abstains below a confidence of 0.875.",
    ]
    many = bundle | {"classes": [f"l{n}" for n in range(40)], "label_thresholds": [0.5] * 40}
    assert key_findings.limits(many)[0].endswith("l11 0.500 and 28 more.")


def test_the_card_uses_the_words_for_labels(made: MadeUp) -> None:
    path = model_card.write(made.run_dir)
    assert path
    card = path.read_text(encoding="utf-8")
    assert "any number of 3 labels to an image. All labels are correct for 33.3 % of 6 test images" in card
    assert f"Labels: cat, {EVIL}, night" in read(section(card, "Model details"))
    assert "cat 0.250" in section(card, "Model details") and "most probable class" not in card
    assert "These thresholds were chosen for `f1`" in card
    assert "The model abstains on 1 of 6 images (1 low confidence); it gets 40.0 % of the others right" in card
    data = rows(section(card, "Evaluation data"))
    assert data["cat"] == ["5", "1", "3"] and data["all images"] == ["9", "2", "6"]
    scores = rows(section(card, "Quantitative analyses"))
    assert scores["all labels correct"] == ["0.3333 (0.100 to 0.700)"] and scores["mAP"] == ["0.8750"]
    assert scores["label"] == ["precision", "recall", "F1", "AP", "images"]
    assert scores["cat"] == ["0.5000", "0.5000", "0.5000", "0.8125", "2"]
    assert "By label:" in card and not re.search(r"\bclass(es)?\b", card.replace("class-wise ECE", ""))
    assert not re.search(r"\n{3,}", card)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A tiny run up to evaluation, as the pipeline runs it."""
    folder = tmp_path_factory.mktemp("real")
    names = write_noise(folder, [f"{number}.png" for number in range(60)])
    lines = [f"{name},{int(number % 2 == 0)},{int(number % 3 == 0)}" for number, name in enumerate(names)]
    config = PipelineConfig(
        train_csv=write_csv(folder / "train.csv", "file,cat,night", *lines), label_column="cat,night",
        backbone="simple_cnn", no_pretrained=True, image_size=32, epochs=1, gallery_size=4, device="cpu",
        num_workers=1, bootstrap_resamples=50, val_fraction=0.25, test_fraction=0.25, corruption_images=4,
        output_dir=folder / "outputs",
    )  # fmt: skip
    run_dir = RunDir(folder / "outputs" / "tiny")
    write_json(run_dir.environment, describe_environment(0, "cpu"))
    for stage in ("dataset", "explore", "train", "evaluate"):
        part = select(config, run_pipeline.TABLE[stage])
        run_dir.save_result(stage, import_module(stage).run(part, run_dir.for_stage(stage)))
    return run_dir


def test_report_and_card_of_a_real_run(real: RunDir) -> None:
    assert model_card.write(real) is not None
    page = write(MadeUp(real, real.path))
    assert_sound(page, real.path)
    assert "all labels correct" in page.text("evaluate") and "label_errors" not in real.report.read_text("utf-8")
    assert {"test_accuracy", "test_label_accuracy", "test_micro_f1", "test_mean_average_precision"} <= set(
        html_report.headline_metrics(real)
    )


def test_missed_and_added_of_a_real_run_match_its_metrics(real: RunDir) -> None:
    scores = json.loads((real.path / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["test"]
    browser = confusion_browser.build(real, "test", ["cat", "night"], multi_label=True)
    counts = {row[0].label: {cell.predicted: cell.count for cell in row} for row in browser.rows}
    assert counts == {
        name: {kind: own[kind] for kind in ("missed", "added")} for name, own in scores["per_class"].items()
    }
    table = schemas.PREDICTIONS.read_text(real.predictions).set_index("file")
    for cell in browser.cells:
        for image in cell.images:
            has, said = (cell.label in label_text.parts(table.loc[image.file, side]) for side in ("label", "predicted"))
            assert (has, said) == ((True, False) if cell.predicted == "missed" else (False, True))
