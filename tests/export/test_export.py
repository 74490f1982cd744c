"""A model is written for other runtimes; each file is kept only with the model's own answers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from made_up_run import data_of
from pictures import photo, write_rows

import export
from spectacles.core.config import ExportConfig
from spectacles.core.errors import UserError
from spectacles.core.results import ExportReport
from spectacles.core.run_dir import RunDir, create_run
from spectacles.data.images import decode
from spectacles.export import formats, gate, int8
from spectacles.export.formats.base import Format
from spectacles.export.odd_pictures import KINDS, odd_pictures
from spectacles.inference.predictor import Predictor

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


def test_the_client_answers_as_predict_does(make_run, tmp_path) -> None:
    made = make_run("cat", "dog", class_scales=())
    export.run(ExportConfig(formats="onnx_photo"), made)
    paths = []
    for number, size in enumerate(((90, 60), (700, 500))):
        paths.append(tmp_path / f"{number}.jpg")
        photo(number, *size).save(paths[-1], quality=95)
    command = [sys.executable, str(made.path / "export" / "client.py"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert len((made.path / "export" / "client.py").read_text().splitlines()) <= 20
    expected = Predictor(made.bundle, "cpu").predict(paths)
    for line, answer in zip(done.stdout.splitlines(), expected, strict=True):
        given = json.loads(line)["probabilities"]
        assert tuple(given.values()) == pytest.approx(answer.probabilities, abs=1e-3) and list(given) == ["cat", "dog"]


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
    monkeypatch.setattr(gate, "MIN_AGREEMENT", 1.01)
    report = export.run(both, made)
    assert report.files[1].objection.endswith("% of the labels are torch's (101.0 % needed)")
    assert written(made) == {"labels.txt", "parity.json", "openvino-fp32.xml", "openvino-fp32.bin"}


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
