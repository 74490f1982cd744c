"""A file of export.py in the place of a bundle: the bundle's answers, and a sentence where it cannot give them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from pictures import photo
from served import serve

import predict
from spectacles.core.config import PredictCommand
from spectacles.core.errors import UserError
from spectacles.evaluation import attribution
from spectacles.evaluation.saliency import CannotExplain
from spectacles.export.formats import FORMATS
from spectacles.export.shipped import Shipped
from spectacles.inference import ray_backend
from spectacles.inference.exported_file import open_file
from spectacles.inference.inputs import Inputs
from spectacles.inference.predictor import Predictor
from spectacles.models.classifier import load_classifier

FILES = {"onnx.onnx": ("onnx", 1e-4), "photo.onnx": ("onnx_photo", 1e-3), "openvino.xml": ("openvino", 1e-4)}
"""File -> its format, and how far its probabilities may be from the bundle's."""
SIZES = ((32, 32), (90, 60), (40, 200))


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(
        "cat", "dog", "grüße", temperature=0.05, class_scales=(1.1, 0.9, 1.2), class_biases=(0.0, 0.1, -0.1),
        confidence_threshold=0.5, ood_threshold=0.99, training_profile={"images": 3}, label_column="what <it> is",
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    shipped = Shipped(*load_classifier(bundle), bundle)
    for name, (format_name, _) in FILES.items():
        FORMATS[format_name].write(shipped, "fp32", folder / name)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("photos") / f"{number}.png" for number in range(len(SIZES))]
    for number, path in enumerate(paths):
        photo(number, *SIZES[number]).save(path)
    return paths


@pytest.mark.parametrize("name", FILES)
def test_a_file_decides_as_its_bundle_does(files: Path, bundle: Path, photos: list[Path], name: str) -> None:
    from_file, from_bundle = Predictor(files / name, "cpu", precision="auto"), Predictor(bundle, "cpu", engine="torch")
    assert from_file.info == replace(from_bundle.info, ood_threshold=1.0)  # out-of-distribution scores stay behind
    assert (from_file.model_id, from_file.precision) == (from_bundle.model_id, "fp32")
    within = FILES[name][1]
    for given, expected in zip(from_file.predict(photos), from_bundle.predict(photos), strict=True):
        assert given.probabilities == pytest.approx(expected.probabilities, abs=within)
        assert (given.label, given.abstain_reason) == (expected.label, expected.abstain_reason)
    pixels = np.stack([from_bundle.info.preprocessing.pixels(photo(seed, 50, 50)) for seed in range(9)])
    np.testing.assert_allclose(from_file.probabilities(pixels), from_bundle.probabilities(pixels), atol=1e-4)


def test_what_a_file_cannot_explain_is_said(files: Path) -> None:
    predictor = Predictor(files / "onnx.onnx", "cpu")
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    assert attribution.explain("occlusion", predictor, pixels, [0]).shape[0] == 1
    for method, reason in (("gradcam", "is an exported file, which PyTorch cannot load"), ("cam", "no feature map")):
        with pytest.raises(CannotExplain, match=reason):
            attribution.explain(method, predictor, pixels, [0])


def damaged(files: Path, folder: Path) -> dict[str, str]:
    """A file's name in `folder` -> what is wrong with it."""
    model = onnx.load(files / "onnx.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "bare.onnx")
    onnx.helper.set_model_props(model, {"classes": "[", **dict.fromkeys(("model_id", "precision"), "x")})
    onnx.save(model, folder / "part.onnx")
    (folder / "noise.onnx").write_bytes(b"noise")
    (folder / "model.pt2").write_bytes(b"")
    shutil.copyfile(files / "openvino.xml", folder / "alone.xml")
    return {
        "bare.onnx": "is not a file of this version's export.py .its metadata lack 'backbone'.: export it again",
        "part.onnx": "is not a file of this version's export.py .its metadata lack 'backbone'",
        "noise.onnx": "cannot be loaded .InvalidProtobuf",
        "model.pt2": "of exported files only .onnx and .xml can be used, or a bundle",
        "alone.xml": r"alone.bin cannot be read .No such file",
        "absent.onnx": "absent.onnx cannot be read .No such file",
    }


def test_a_file_that_cannot_be_used_is_named(files: Path, tmp_path: Path) -> None:
    for name, reason in damaged(files, tmp_path).items():
        with pytest.raises(UserError, match=reason):
            Predictor(tmp_path / name, "cpu")
    with pytest.raises(UserError, match=r"--engine torch: onnx\.onnx runs on onnxruntime; use --engine auto"):
        open_file(files / "onnx.onnx", engine="torch")
    with pytest.raises(UserError, match=r"--precision int8: onnx\.onnx is stored in fp32; use auto"):
        open_file(files / "onnx.onnx", precision="int8")
    with pytest.raises(UserError, match="--engine ray takes a bundle, which workers can check, and not"):
        ray_backend.predict(Inputs([], [], []), files / "onnx.onnx", PredictCommand(engine="ray"), str(tmp_path))


def test_predict_and_the_server_take_a_file(files: Path, bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    [expected] = Predictor(bundle, "cpu", engine="torch").predict(photos[1:2])
    output = tmp_path / "answers.jsonl"
    flags = ["--bundle", str(files / "photo.onnx"), "--engine", "auto", "--format", "jsonl", "--output", str(output)]
    predict.main(predict.parse([str(photos[1]), *flags]))
    [answer] = map(json.loads, output.read_text().splitlines())
    assert (answer["label"], answer["ood_score"]) == (expected.label, None)
    assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-3)
    with serve(SPECTACLES_BUNDLE=str(files / "openvino.xml"), SPECTACLES_ENGINE="auto") as client:
        answer = client.post("/predict", files={"file": photos[1].read_bytes()}).json()
    assert answer["model_id"] == Predictor(bundle, "cpu", engine="torch").model_id
    assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
