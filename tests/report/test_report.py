"""The page as a browser sees it: parsed, not searched for strings of its source."""

import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import made_up_run
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_run import CLASSES, EVIL, MadeUp
from pictures import write_csv, write_noise
from reading import Page, assert_sound, charts, write
from sklearn.metrics import confusion_matrix

import run_pipeline
from spectacles.core import wording
from spectacles.core.config import PipelineConfig, select, to_plain
from spectacles.core.environment import describe_environment
from spectacles.core.fileio import write_json
from spectacles.core.run_dir import RunDir
from spectacles.data import schemas
from spectacles.report import confusion_browser, html_report, model_card, run_summary
from spectacles.report.confusion_browser import NEIGHBOURS, PER_CELL, PICTURES, distribute

pytestmark = pytest.mark.slow


@pytest.fixture
def made(tmp_path: Path) -> MadeUp:
    return made_up_run.make(tmp_path)


def test_the_page_is_sound_and_hostile_names_stay_text(made: MadeUp) -> None:
    model_card.write(made.run_dir)
    page = write(made)
    assert_sound(page, made.run_dir.path)
    assert {"MODEL_CARD.md", "error_analysis/review.html"} <= {link["href"] for link in page.all("a")}
    assert f"a<{EVIL}.jpg" in [span.get("title") for span in page.all("span")]
    assert f"rejected: odd {EVIL}" in page.text("dataset") and f"sex: {EVIL}" in page.text("evaluate")
    assert not any(attributes.get("src") == "x" for _, attributes in page.elements)
    style = re.search(r"<style>(.*?)</style>", made.run_dir.report.read_text(encoding="utf-8"), re.S)
    assert style and not re.search(r"url\(|@import|https?:", style[1])


def test_the_cards_state_what_each_number_refers_to(made: MadeUp) -> None:
    page = write(made)
    assert page.text("baseline").startswith("Baseline on a random split 97.0 % instead of 90.0 % on a grouped split.")
    assert "Both are scores of a linear probe on frozen features, not of the trained model" in page.text("baseline")
    source = " ".join(made.run_dir.report.read_text(encoding="utf-8").split())
    assert "57.1 %</b>" in source and "95 % interval: 20.0 to 90.0 %" in source
    assert "50.0 % → 60.0 %" in source and "This run is better than other run." in source


def test_label_fixes_are_counted(made: MadeUp) -> None:
    made.write_table("fixes.csv", [{"decision": decision} for decision in ("changed", "confirmed", "changed")])
    made.write_config(label_fixes=str(made.run_dir.path / "fixes.csv"))
    assert "Labels reviewed by a person: 2 changed, 1 confirmed." in write(made).text("dataset")
    assert "Before and after the label fixes" in made.run_dir.report.read_text(encoding="utf-8")
    card = model_card.write(made.run_dir)
    assert card and "reviewed by a person: 2 changed, 1 confirmed" in card.read_text(encoding="utf-8")


def test_tables_hold_the_numbers_of_the_files(made: MadeUp) -> None:
    page = write(made)
    assert page.row("accuracy") == ["accuracy", "0.5714", "0.200 to 0.900", "1.0000", "0.200 to 0.900"]
    assert page.row("log loss ↓")[1:3] == ["0.5000", "0.300 to 0.800"]
    assert page.row("class-wise ECE ↓") == ["class-wise ECE ↓", "0.1000", "0.0500"]
    assert page.row("gaussian noise") == ["gaussian noise", "90", "80", "70", "60", "50"]
    assert page.row("FGSM") == ["FGSM", "50", "12"]
    assert page.row("coverage") == ["coverage", "100.0 %", "50.0 %"]
    assert page.row("accuracy of the most") == ["accuracy of the most confident", "57.1 %", "80.0 %"]
    assert page.row("exact") == ["exact", "1", "1", "1"] and page.row("mirrored") == ["mirrored", "1", "0", "0"]
    assert page.row("linear probe") == [
        "linear probe on frozen features",
        "90.0 % 85.0 to 94.0 %",
        "97.0 % 95.0 to 98.0 %",
    ]
    assert page.row("train") == ["train", "12 s"]
    groups = [" ".join(row[0].split()) for row in page.rows if row[0].startswith(("sex", "light"))]
    assert groups == ["light: dark automatic", "sex: f", f"sex: {EVIL}"]
    assert page.row(f"sex: {EVIL}")[1] == "too few: 2"


def test_the_row_accounting_of_training_and_prediction_adds_up(made: MadeUp) -> None:
    page = write(made)
    assert "30 rows = 26 used + 1 converted + 3 rejected" in page.text("dataset")
    assert page.row("rejected: empty file")[1] == "2"
    assert "3 rows = 1 used + 1 converted + 1 rejected" in page.text("predict")
    assert page.row("converted: turned") == ["converted: turned", "1"]


def test_key_findings_come_first_and_link_to_their_sections(made: MadeUp) -> None:
    text = write(made).text("key_findings")
    for said in ("9 labels look wrong",
                 "Weakest group: light: dark, 35.0 % of its 40 images correct, 22.0 points below",
                 "Worst corruption: gaussian noise",
                 "1 pair of duplicates in two different splits", "3 of 30 rows could not be used",
                 "Only 7 images were scored", "Explanations by gradcam do not show",
                 "The model abstains on 3 of 7 images (1 low confidence, 2 out of distribution)",
                 "it gets 75.0 % of the others right"):  # fmt: skip
        assert said in text, text


def test_exported_files_are_a_table_with_the_reason_of_those_that_were_not_kept(made: MadeUp) -> None:
    file = {"file": "onnx-fp32.onnx", "precision": "fp32", "megabytes": 13.46, "difference": 2e-6, "same_labels": 1.0,
            "accuracy": 0.99, "accuracy_interval": [0.98, 1.0], "images_per_second": 85.5, "milliseconds": 14.2,
            "model_accuracy": 0.99, "objection": ""}  # fmt: skip
    coarse = file | {"file": "openvino-int8.xml", "precision": "int8", "objection": "it is less accurate (p = 0.01)"}
    phone = {
        "format": "coreml",
        "precision": "fp32",
        "file": "coreml-fp32.mlpackage",
        "megabytes": 13.5,
        "objection": "",
    }
    made.result("export", files=[file, coarse], converted=[phone], model_id="0123456789abcdef")
    page = write(made)
    row = ["onnx-fp32.onnx", "13.5", "2e-06", "100.0 %", "99.0 %", "98.0 to 100.0 %", "85.5", "14.2"]
    assert page.row("onnx-fp32.onnx") == row
    assert page.row("openvino-int8.xml")[0] == "openvino-int8.xml"
    assert "openvino-int8.xml was not kept: it is less accurate (p = 0.01)." in page.text("export")
    assert "coreml-fp32.mlpackage (13.5 MB) was converted and not run" in page.text("export")
    assert_sound(page, made.run_dir.path)


def test_warnings_and_suggestions_are_separate_from_the_summary(made: MadeUp) -> None:
    text = write(made).text("explore")
    assert text.count("mind this") == 1 and "try --zoom_out 0" in text and "1 dark, 1 unlike the others" in text
    assert str(made.run_dir.path) not in text and "explore went well: see explore/file.csv" in text


def test_every_cell_links_to_its_images(made: MadeUp) -> None:
    page = write(made)
    cells = {link["href"]: link["aria-label"] for link in page.all("a") if str(link["href"]).startswith("#cell-")}
    a, b = CLASSES
    assert cells == {"#cell-0-0": f"{a} predicted as {a}: 4", "#cell-0-1": f"{a} predicted as {b}: 1",
                     "#cell-1-0": f"{b} predicted as {a}: 2"}  # fmt: skip
    assert page.text("cell-0-0").index("right 3.jpg") < page.text("cell-0-0").index("right 0.jpg")
    wrong = page.text("cell-1-0")
    assert wrong.index("b2.jpg 70.0 %") < wrong.index("b3.jpg 55.0 %, low confidence")
    near = [title for span in page.all("span") if "similarity" in (title := str(span.get("title")))]
    assert near == [f"{name}.jpg, similarity 0.75" for name in ("t1", "t2", "lost")] * 2
    assert "b4.jpg" not in wrong
    # 4 correct images, 3 errors, two neighbours that exist for two of them, and the pair across splits.
    assert len(page.images()) - len(charts(made)) == 4 + 3 + 2 * 2 + 2


def test_a_missing_photo_is_replaced_by_the_reason(made: MadeUp) -> None:
    (made.photos / "b2.jpg").unlink()
    (made.photos / "b3.jpg").write_bytes(b"no picture any more")
    page = write(made)
    assert "no picture: file not found" in page.text("cell-1-0")
    assert page.text("cell-1-0").count("no picture: not an image") == 1
    assert_sound(page, made.run_dir.path)


def test_without_galleries_the_page_contains_no_photo(made: MadeUp) -> None:
    made.write_config(galleries=False)
    page = write(made)
    assert len(page.images()) == 2  # curves and ROC; explore's picture was made while galleries were on
    assert "b2.jpg 70.0 %" in page.text("cell-1-0")
    assert "similar: t1.jpg (plain, 0.75), t2.jpg (plain, 0.75), lost.jpg (plain, 0.75)" in page.text("cell-1-0")
    assert "t1.jpg" in page.text("dataset")
    assert_sound(page, made.run_dir.path)
    made.write_config("explore/config.yaml", galleries=False)
    assert len(write(made).images()) == 3


OPTIONAL = ("explore/baseline.json", "explore/outliers.csv", "evaluate/slices.json", "evaluate/corruptions.json",
            "evaluate/comparison.json", "evaluate/predictions.csv", "error_analysis/nearest.csv", "config.yaml",
            "error_analysis/noisy_labels.csv", "error_analysis/review.html", "dataset/duplicates.csv",
            "predict/predictions.csv", "train/bundle/bundle.json", "environment.json", "dataset/splits.csv",
            "error_analysis", "predict", "evaluate", "train", "explore")  # fmt: skip


@pytest.mark.parametrize("missing", OPTIONAL)
def test_any_part_may_be_missing(made: MadeUp, missing: str) -> None:
    path = made.run_dir.path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = write(made)
    assert_sound(page, made.run_dir.path)
    assert ("evaluate" in page.texts) == (missing != "evaluate")


def test_a_run_with_only_the_dataset_stage(made: MadeUp) -> None:
    for stage in ("explore", "train", "evaluate", "error_analysis", "predict"):
        shutil.rmtree(made.run_dir.path / stage)
    page = write(made)
    assert_sound(page, made.run_dir.path)
    assert "30 rows" in page.text("dataset") and "evaluate" not in page.texts


def test_metrics_that_were_not_measured_are_left_out(made: MadeUp) -> None:
    scores = {"accuracy": 0.5, "images": 7, "intervals": {"accuracy": [0.2, 0.9]}, "per_class": {}}
    made.write_json("evaluate/metrics.json", {"test": scores})
    page = write(made)
    assert page.row("accuracy") == ["accuracy", "0.5000", "0.200 to 0.900"]
    assert "calibration" not in page.texts and "abstention" not in page.texts


def test_many_classes_show_the_most_confused_pairs(tmp_path: Path) -> None:
    classes = [f"class {number}" for number in range(20)]
    run = made_up_run.make(tmp_path, classes)
    for number in range(30):
        run.predict(f"many {number}.jpg", classes[5], classes[7], 0.9)
    run.save_predictions()
    page = write(run)
    assert_sound(page, run.run_dir.path)
    links = [link["href"] for link in page.all("a") if str(link["href"]).startswith("#cell-")]
    assert links == ["#cell-5-7", "#cell-1-0", "#cell-0-1"]
    assert "The 24 most confident" in page.text("cell-5-7")
    assert page.row("class 5") == ["class 5", "class 7", "30", "100.0 %"]


def test_the_browser_stays_within_its_limits(tmp_path: Path) -> None:
    run = made_up_run.make(tmp_path)
    template = run.rows[0]
    run.rows += [template | {"file": f"{n}.jpg", "path": f"{n}.jpg", "label": CLASSES[n % 2]} for n in range(400)]
    run.save_predictions()
    browser = confusion_browser.build(run.run_dir, "test", CLASSES)
    shown = [image for cell in browser.cells for image in cell.images]
    assert max(len(cell.images) for cell in browser.cells) == PER_CELL
    assert sum(1 + len(image.neighbours) for image in shown if image.pictured) <= PICTURES
    assert sum(cell.count for row in browser.rows for cell in row) == 407


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 1 + NEIGHBOURS)), max_size=40), st.integers(0, 60))
def test_pictures_are_distributed_until_none_are_left(cells: list[tuple[int, int]], total: int) -> None:
    counts, cost = [count for count, _ in cells], [each for _, each in cells]
    shown = distribute(counts, cost, total=total)
    left = total - sum(each * number for each, number in zip(cost, shown, strict=True))
    assert left >= 0
    for count, each, number in zip(counts, cost, shown, strict=True):
        assert 0 <= number <= min(count, PER_CELL)
        assert number == min(count, PER_CELL) or each > left


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """All stages of a tiny run, as the pipeline runs them."""
    folder = tmp_path_factory.mktemp("real")
    names = write_noise(folder, [f"{number}.png" for number in range(48)])
    rows = [f"{name},{'ab'[number % 2]}" for number, name in enumerate(names)]
    config = PipelineConfig(
        train_csv=write_csv(folder / "train.csv", "file,label", *rows), backbone="simple_cnn", no_pretrained=True,
        image_size=32, epochs=1, gallery_size=4, device="cpu", num_workers=1, bootstrap_resamples=50,
        val_fraction=0.25, test_fraction=0.25, corruption_images=4, output_dir=folder / "outputs",
    )  # fmt: skip
    run_dir = RunDir(folder / "outputs" / "tiny")
    for stage, config_class in run_pipeline.TABLE.items():
        part = select(config, config_class)
        run_dir.save_config(stage, to_plain(part))
        write_json(run_dir.environment, describe_environment(0, "cpu"))
        run_dir.save_result(stage, import_module(stage).run(part, run_dir.for_stage(stage)))
    return run_dir


def test_report_and_card_of_a_real_run(real: RunDir) -> None:
    card = model_card.write(real)
    assert card is not None
    page = Page(html_report.write(real))
    assert_sound(page, real.path)
    scores = json.loads((real.path / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert page.row("accuracy")[1] == wording.number(scores["accuracy"])
    assert {"evaluate", "error_analysis", "dataset", "explore", "train", "predict"} <= page.texts.keys()
    assert scores["images"] == 12 and "12 test images" in card.read_text(encoding="utf-8")
    model_id = run_summary.read(real).bundle["model_id"]
    assert model_id in card.read_text(encoding="utf-8") and model_id in real.report.read_text(encoding="utf-8")


def test_the_matrix_of_a_real_run_matches_its_predictions(real: RunDir) -> None:
    table = schemas.PREDICTIONS.read_text(real.predictions)
    scored = table[table["split"] == "test"]
    browser = confusion_browser.build(real, "test", ["a", "b"])
    counts = [[cell.count for cell in row] for row in browser.rows]
    assert counts == confusion_matrix(scored["label"], scored["predicted"], labels=["a", "b"]).tolist()
