"""A model is written for other runtimes; each file is kept only with the model's own answers."""

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest
import yaml
from made_up_run import data_of
from pictures import photo, write_rows

import export
from spectacles.core.config import ExportConfig
from spectacles.core.errors import UserError
from spectacles.core.results import ExportReport
from spectacles.core.run_dir import RunDir, create_run
from spectacles.data.images import decode
from spectacles.data.preprocessing import Preprocessing
from spectacles.export import formats, gate, int8, litert_environment
from spectacles.export.formats import coreml
from spectacles.export.formats.base import Format
from spectacles.export.odd_pictures import KINDS, odd_pictures
from spectacles.export.shipped import Shipped
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.models import backbones, engines
from spectacles.models.bundle import read_bundle_info
from spectacles.models.classifier import Classifier, load_classifier

ALL = ExportConfig(formats="onnx,onnx_photo,openvino,torch_export,torchscript", precision="fp32,fp16")


@pytest.fixture
def make_run(tmp_path: Path, make_bundle: Callable[..., Path]) -> Callable[..., RunDir]:
    """A run after training with so many validation and training photos."""

    def make(*classes: str, val: int = 9, train: int = 0, **facts: object) -> RunDir:
        made = create_run(tmp_path / "outputs", "run")
        rows = write_rows(tmp_path / "photos", val + train).assign(group="", id="", cluster=range(val + train))
        rows["split"] = ["val"] * val + ["train"] * train
        rows["label"] = [classes[number % len(classes)] for number in range(val + train)]
        rows["file"] = [Path(path).name for path in rows["path"]]
        made.splits.parent.mkdir(parents=True)
        rows.to_csv(made.splits, index=False)
        shutil.copytree(make_bundle(*classes, **facts), made.bundle)
        made.save_result("dataset", data_of({"train": dict.fromkeys(classes, 3)}))
        return made.for_stage("export")

    return make


def written(run_dir: RunDir) -> set[str]:
    return {path.name for path in (run_dir.path / "export").iterdir()}


def by_name(report: ExportReport) -> dict[str, object]:
    return {f"{file.format} {file.precision}": file for file in report.files}


def test_every_format_gives_the_models_answers_and_says_what_it_is(make_run) -> None:
    made = make_run("cat", "dog", "bird", temperature=0.7, class_scales=(1.1, 0.9, 1.2), class_biases=(0.0, 0.1, -0.1))
    report = export.run(ALL, made)
    assert [file.objection for file in report.files] == [""] * 8
    files = by_name(report)
    assert set(files) == {"onnx fp32", "onnx fp16", "onnx_photo fp32", "onnx_photo fp16", "openvino fp32",
                          "openvino fp16", "torch_export fp32", "torchscript fp32"}  # fmt: skip
    assert all(file.images == 9 + 5 * KINDS and file.same_labels == 1 for file in report.files)
    folder = made.path / "export"
    assert (folder / "labels.txt").read_text() == "cat\ndog\nbird\n"
    assert [row["file"] for row in json.loads((folder / "parity.json").read_text())["files"]] == [
        file.file for file in report.files
    ]
    facts = {each.key: each.value for each in onnx.load(folder / "onnx-fp16.onnx").metadata_props}
    assert json.loads(facts["classes"]) == ["cat", "dog", "bird"] and facts["precision"] == "fp16"
    assert facts["model_id"] == report.model_id == Predictor(made.bundle, "cpu").model_id
    assert files["onnx fp16"].megabytes < 0.6 * files["onnx fp32"].megabytes
    assert report.metrics["openvino_fp16_megabytes"] == files["openvino fp16"].megabytes
    [command] = [line for line in report.summary if f"trtexec --onnx={folder / 'onnx-fp32.onnx'} --fp16" in line]
    assert "--minShapes=pixels:1x32x32x3 --optShapes=pixels:8x32x32x3 --maxShapes=pixels:32x32x32x3" in command
    export.run(replace(ALL, formats="torchscript", precision="auto"), made)  # what was there before goes
    assert written(made) == {"labels.txt", "parity.json", "torchscript-fp32.ts"}


def test_clients_and_a_space_answer_as_predict_does(make_run, tmp_path, monkeypatch) -> None:
    made = make_run("cat", "dog", threshold=0.45, confidence_threshold=0.6)
    made.model_card.write_text("# Model card: run\n")
    export.run(ExportConfig(formats="onnx_photo,space"), made)
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path, size in zip(paths, ((90, 60), (700, 500), (300, 200)), strict=True):
        photo(int(path.stem), *size).save(path, quality=95)
    expected = list(Predictor(made.bundle, "cpu").predict(paths))
    check_clients(made.path / "export", paths, expected)
    check_space(made.path / "export" / "space-fp32", paths, expected, monkeypatch)


def check_clients(folder: Path, paths: list[Path], expected: list[Prediction]) -> None:
    """Only Python's is started here; e2e/test_clients.py starts JavaScript's."""
    clients = {path.suffix: path.read_text() for path in folder.glob("client.*")}
    assert set(clients) == {".py", ".mjs", ".cs", ".swift", ".kt"}
    assert all(len(text.splitlines()) <= 20 and "onnx_photo-fp32.onnx" in text for text in clients.values())
    assert {suffix for suffix, text in clients.items() if "Not run here" in text} == {".cs", ".swift", ".kt"}
    command = [sys.executable, str(folder / "client.py"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=paths[0].parent)
    for line, answer in zip(done.stdout.splitlines(), expected, strict=True):
        given = json.loads(line)["probabilities"]
        assert tuple(given.values()) == pytest.approx(answer.probabilities, abs=1e-3) and list(given) == ["cat", "dog"]


def check_space(folder: Path, paths: list[Path], expected: list[Prediction], monkeypatch: pytest.MonkeyPatch) -> None:
    front, _, card = (folder / "README.md").read_text().removeprefix("---\n").partition("---\n")
    settings = yaml.safe_load(front)
    assert settings["sdk"] == "gradio" and card == "\n# Model card: run\n"
    assert f"gradio=={settings['sdk_version']}\n" in (folder / "requirements.txt").read_text()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gradio", MagicMock())  # is not installed here; e2e/test_exports.py starts the page
        app = runpy.run_path(str(folder / settings["app_file"]))
    for path, answer in zip(paths, expected, strict=True):
        sentence, probabilities = app["answer"](str(path))
        assert tuple(probabilities.values()) == pytest.approx(answer.probabilities, abs=1e-3)
        assert sentence.startswith(f"{answer.label} ({answer.confidence:.0%})")
        assert sentence.endswith("too uncertain to be used") == answer.abstained


def test_any_number_of_labels_is_exported_too(make_run) -> None:
    made = make_run("cat", "hat", multi_label=True, label_thresholds=(0.5, 0.4))
    report = export.run(ExportConfig(formats="torchscript"), made)
    assert [file.objection for file in report.files] == [""]


def test_int8_is_fitted_again_and_keeps_labels_and_accuracy(make_run, monkeypatch) -> None:
    made = make_run("cat", "dog", val=40, train=20, temperature=0.01)
    made.write_config({"no_pretrained": True, "threshold_for": "f1"})
    both = ExportConfig(formats="openvino", precision="fp32,int8")
    with pytest.raises(UserError, match="--precision int8 is compared on 100 validation photos or more, and there are"):
        export.run(both, made)
    monkeypatch.setattr(int8, "ENOUGH", 40)
    monkeypatch.setattr(gate, "MIN_AGREEMENT", 0.5)  # a new threshold on noise
    exact, coarse = export.run(both, made).files
    assert (coarse.objection, coarse.file) == ("", "openvino-int8.xml") and coarse.megabytes < 0.5 * exact.megabytes
    given, bundle = (
        Predictor(made.path / "export" / coarse.file, "cpu", precision="auto"),
        Predictor(made.bundle, "cpu"),
    )
    assert given.precision == "int8" and given.info.threshold is not None
    assert (given.info.temperature, bundle.info.temperature) != (0.01, 0.01)
    pixels = gate_pixels(made)
    outputs = given.outputs(pixels)
    np.testing.assert_allclose(
        outputs["probabilities"], given.info.calibration.probabilities(outputs["logits"]), atol=1e-5
    )
    np.testing.assert_allclose(outputs["logits"], bundle.outputs(pixels)["logits"], atol=0.02)


@pytest.mark.parametrize(
    ("different", "images", "p_worse", "objection"),
    [
        (1, 500, 0.05, ""),
        (0, 499, 0.05, ""),
        (1, 499, 1.0, "1 of 499 labels are not torch's (0 allowed)"),
        (3, 1400, 1.0, "3 of 1400 labels are not torch's (2 allowed)"),
        (0, 500, 0.049, "it is less accurate (p = 0.049)"),
    ],
)
def test_int8_is_kept_by_its_labels_and_accuracy(different: int, images: int, p_worse: float, objection: str) -> None:
    assert gate.objection_to_labels(different, images, p_worse) == objection


def gate_pixels(made: RunDir) -> np.ndarray:
    preprocessing = Predictor(made.bundle, "cpu").info.preprocessing
    return np.stack([preprocessing.pixels(photo(seed, 50, 40)) for seed in range(5)])


def test_a_file_with_other_answers_is_not_kept(make_run, monkeypatch) -> None:
    made = make_run("cat", "dog")
    good = formats.FORMATS["torchscript"]

    def load(path: Path) -> Callable[[np.ndarray], np.ndarray]:
        run = good.load(path)
        return lambda pixels: run(pixels) + np.float32(0.001)

    monkeypatch.setitem(formats.FORMATS, "onnx", Format((".ts",), good.write, load))
    report = export.run(ExportConfig(formats="torchscript,onnx"), made)
    assert by_name(report)["onnx fp32"].objection == "a probability is 0.001 away from torch's (0.0001 allowed)"
    [refused] = [line for line in report.summary if line.startswith("onnx-fp32.ts was not kept: a probability is")]
    assert refused.endswith("use a higher precision or another format")
    assert written(made) == {"labels.txt", "parity.json", "torchscript-fp32.ts"}
    with pytest.raises(UserError, match=r"no file was kept: onnx-fp32\.ts was not kept"):
        export.run(ExportConfig(formats="onnx"), made)


def test_core_ml_is_converted_and_looked_at(make_run) -> None:
    made = make_run("cat", "dog", temperature=0.7)
    report = export.run(ExportConfig(formats="coreml", precision="fp16"), made)
    [file] = report.converted
    assert (file.file, file.objection, report.files) == ("coreml-fp16.mlpackage", "", [])
    assert "coreml-fp16.mlpackage: " in report.summary[1] and "converted, not run" in report.summary[1]
    package = made.path / "export" / file.file
    shipped = Shipped(*load_classifier(made.bundle), made.bundle)
    for changed, objection in (
        ({"classes": ("dog", "cat")}, "classes"),
        ({"preprocessing": replace(shipped.info.preprocessing, image_size=64)}, "32 x 32"),
        ({"multi_label": True}, "outputs"),
    ):
        other = replace(shipped, info=replace(shipped.info, **changed))
        assert objection in coreml.inspect(package, other)


def test_any_number_of_labels_in_grey_for_core_ml(make_bundle, tmp_path) -> None:
    bundle = make_bundle("cat", "hat", multi_label=True)
    info, model_id = read_bundle_info(bundle)
    grey = replace(info, preprocessing=Preprocessing(32, "squash", "bilinear", (0.5,), (0.5,), 1))
    classifier = Classifier(backbones.build("simple_cnn", 1, 32), 128, 2, dropout=0.0).eval()
    shipped = Shipped(classifier, grey, model_id, bundle)
    coreml.write(shipped, "fp32", tmp_path / "model.mlpackage")
    assert coreml.inspect(tmp_path / "model.mlpackage", shipped) == ""


def test_without_what_a_format_takes_the_remedy_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda name: False)
    with pytest.raises(UserError, match=r"--formats coreml takes coremltools: pip install -r requirements-export\.txt"):
        export.chosen(ExportConfig(formats="coreml"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(litert_environment, "FOLDER", tmp_path / "environment")
    with pytest.raises(UserError, match=r"--formats tflite: .*environment cannot be made .*use --formats onnx_photo"):
        litert_environment.convert(tmp_path / "program.pt2", tmp_path / "model.tflite")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": "onnx,tflight"}, "--formats 'tflight' is unknown: use onnx, onnx_photo"),
        ({"precision": "bf16"}, "--precision 'bf16' is not offered by --formats onnx,onnx_photo,openvino"),
        ({"formats": "torchscript", "precision": "fp16"}, "--precision 'fp16' is not offered by --formats torchscript"),
    ],
)
def test_what_is_not_offered_is_named(settings, message) -> None:
    with pytest.raises(UserError, match=message):
        export.chosen(ExportConfig(**settings))


def test_odd_files_are_what_their_names_say() -> None:
    decoded = [decode(content) for content in odd_pictures([photo(0, 60, 40)])]
    assert [(each.mode, each.image.size) for each in decoded] == [
        ("RGB", (40, 60)), ("RGB", (60, 40)), ("CMYK", (60, 40)), ("I;16", (60, 40)), ("P", (60, 40)),
        ("RGBA", (60, 40)), ("RGB", (480, 48)), ("RGB", (48, 480)),
    ]  # fmt: skip
    assert gate.ODD_ORIGINALS * KINDS == 40
