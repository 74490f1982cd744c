"""The card as a reader sees it."""

import json
import re
import shutil
from pathlib import Path

import made_up_run
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_run import CLASSES, EVIL, MadeUp
from reading import cells, read, rows, section

from spectacles import cli
from spectacles.report import model_card
from spectacles.report.model_card import Markdown, code, escape, table
from spectacles.tracking import tracking

SECTIONS = ["Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data",
            "Quantitative analyses", "Ethical considerations", "Caveats and recommendations",
            "Training time"]  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> MadeUp:
    return made_up_run.make(tmp_path)


def write(run: MadeUp) -> str:
    path = model_card.write(run.run_dir)
    assert path == run.run_dir.path / "MODEL_CARD.md"
    return path.read_text(encoding="utf-8")


def test_every_section_is_there_and_filled(made: MadeUp) -> None:
    card = write(made)
    assert re.findall(r"^## (.*)$", card, re.M) == SECTIONS
    assert len(re.findall(r"^# ", card, re.M)) == 1
    for name in SECTIONS:
        assert len(section(card, name).split()) > 10, name
    assert "undefined" not in card.lower() and "None" not in card and "{{" not in card
    assert not re.search(r"\n{3,}", card)


def test_numbers_come_from_the_run(made: MadeUp) -> None:
    card = write(made)
    assert "57.1 % of 7 test images (95 % interval 20.0 to 90.0 %)" in read(card)
    scores = rows(section(card, "Quantitative analyses"))
    assert scores["accuracy"] == ["0.5714 (0.200 to 0.900)", "1.0000 (0.200 to 0.900)"]
    assert scores["light: dark"] == ["40", "35.0 %", "30.0 to 50.0 %", ""]
    assert scores[f"sex: {EVIL}"][-1] == "too few images"
    assert scores["class-wise ECE"] == ["0.1000", "0.0500"]
    assert scores["gaussian noise"] == ["90.0 %", "80.0 %", "70.0 %", "60.0 %", "50.0 %"]
    assert rows(section(card, "Evaluation data"))["plain"] == ["5", "1", "5"]
    details = section(card, "Model details")
    assert "`0123456789abcdef`" in details and "if its probability is at least 0.250" in read(details)
    assert "below a confidence of 0.875" in details and "than 99.5 % of the validation photos" in details
    assert (
        "divided by 1.500" in details
        and "Initial weights: random" in details
        and "--bundle RUN/train/bundle" in details
    )
    training = section(card, "Training data")
    assert "30 rows = 26 used + 1 converted + 3 rejected" in training and f"`{'f' * 64}`" in training
    assert "Labels suspected to be wrong: 9" in training
    assert "90.0 % right on grouped splits (85.0 to 94.0 %), and 97.0 % on random ones" in section(
        card, "Evaluation data"
    )
    assert rows(section(card, "Training time"))["train"] == ["12 s"]


def test_a_class_without_images_is_named_and_means_say_over_how_many(made: MadeUp) -> None:
    path = made.run_dir.path / "evaluate" / "metrics.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    scores["test"] |= {"balanced_accuracy": 1.0, "recall": 0.75, "positive_class": "plain"}
    scores["test"]["per_class"][CLASSES[1]] = {"precision": None, "recall": None, "f1": None, "support": 0}
    made.write_json("evaluate/metrics.json", scores)
    card = write(made)
    assert rows(section(card, "Quantitative analyses"))["balanced accuracy"][0] == "1.0000 over 1 of 2 classes"
    assert rows(section(card, "Quantitative analyses"))["recall of plain"][0] == "0.7500"
    assert "The test split has no image of 1 of 2 classes" in read(section(card, "Caveats and recommendations"))
    cli.publish(made.run_dir)
    report = made.run_dir.report.read_text(encoding="utf-8")
    assert "over 1 of 2 classes" in report and "recall of plain" in report


def test_the_licence_is_stated_or_reported_as_missing(made: MadeUp) -> None:
    assert "Licence: not stated (set it with --data_licence)" in read(write(made))
    made.write_config(data_licence="CC BY-NC 4.0 *for research*")
    assert "Licence: CC BY-NC 4.0 *for research*" in read(write(made))


def test_hostile_names_stay_text(made: MadeUp) -> None:
    card = write(made)
    shown = " ".join(CLASSES[1].split())
    assert shown in read(card)
    assert rows(section(card, "Evaluation data"))[shown] == ["4", "4", "4"]
    outside_code = re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", card, flags=re.S))
    assert not re.search(r"(?<!\\)[<*]", outside_code)
    widths = [len(cells(line)) for line in card.splitlines() if line.startswith("| :---")]
    assert min(widths) > 1


def test_card_and_report_are_logged_and_linked(made: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Path] = []
    monkeypatch.setattr(tracking, "log_artifact", logged.append)
    cli.publish(made.run_dir)
    assert logged == [made.run_dir.model_card, made.run_dir.report]
    assert 'href="MODEL_CARD.md"' in made.run_dir.report.read_text(encoding="utf-8")
    shutil.rmtree(made.run_dir.path / "train")
    cli.publish(made.run_dir)
    assert logged[2:] == [made.run_dir.report]
    assert "MODEL_CARD.md" not in made.run_dir.report.read_text(encoding="utf-8")


def test_without_a_model_there_is_no_card(made: MadeUp) -> None:
    write(made)
    made.run_dir.begin("dataset")
    assert model_card.write(made.run_dir) is None
    assert not made.run_dir.model_card.exists()


@pytest.mark.parametrize("missing", ["evaluate", "explore", "error_analysis", "config.yaml",
                                     "evaluate/slices.json", "evaluate/corruptions.json"])  # fmt: skip
def test_what_was_not_measured_is_stated(made: MadeUp, missing: str) -> None:
    path = made.run_dir.path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    card = write(made)
    said = {"evaluate": "It has not been evaluated", "error_analysis": "Labels have not been checked",
            "evaluate/slices.json": "No groups were scored", "config.yaml": "not stated",
            "evaluate/corruptions.json": "has not been measured"}  # fmt: skip
    assert said.get(missing, "Intended use") in card


def test_a_data_set_indexed_again_is_not_mistaken_for_the_training_data(made: MadeUp) -> None:
    assert "indexed again" not in write(made)
    made.result("dataset", classes=list(CLASSES), fingerprint="e" * 64, label_column="label", unlabelled=0,
                counts={"train": dict.fromkeys(CLASSES, 1)}, images={"train": 2},
                row_accounting={"rows": 2, "used": 2, "converted": 0, "rejected": 0, "conversions": {},
                        "rejections": {}})  # fmt: skip
    assert "indexed again since training" in write(made)


@given(st.text())
def test_escaped_text_renders_literally_on_one_line(text: str) -> None:
    escaped = escape(text)
    assert read(escaped) == " ".join(text.split())
    assert "\n" not in escaped
    assert escape(Markdown(escaped)) == escaped


@given(st.lists(st.lists(st.text(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_no_text_breaks_a_table(lines: list[list[str]]) -> None:
    written = table(("a", "b", "c"), lines).splitlines()
    assert len(written) == 2 + len(lines)
    for line in written:
        assert len(re.findall(r"(?:\\.|[^|\\])+", line.strip("|"))) == 3


@given(st.text(min_size=1))
def test_a_code_span_ends_where_its_text_ends(text: str) -> None:
    span, content = code(text), " ".join(text.split())
    fence = re.match(r"`+", span)
    assert fence is not None
    assert fence[0] not in re.findall(r"`+", content)
    assert span.startswith(fence[0]) and span.endswith(fence[0])
