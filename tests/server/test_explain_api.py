"""POST /explain: a picture or numbers of the saliency for a class, and the same rejections as /predict."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, exif, frames, noise, png_header
from PIL import Image
from served import serve

from spectacles.data.preprocessing import Preprocessing
from spectacles.evaluation import attribution
from spectacles.evaluation.overlays import SIDE, view
from spectacles.evaluation.saliency import CannotExplain
from spectacles.inference.predictor import Predictor
from spectacles.models import backbones
from spectacles.models.bundle import read_bundle_info, save_bundle
from spectacles.models.classifier import Classifier
from spectacles.server.schemas import Explanation, explanation_headers

CLASSES = ("cat", "dog", "<b>ö</b>")
PHOTO = encoded(noise(1, 48, 36), "JPEG")
METHODS = [method for method in attribution.METHODS if method != "cam"]
"""Of the smallest network, whose features are not the mean of a map."""


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(*CLASSES, temperature=0.01)


@pytest.fixture(scope="module")
def client(bundle_dir: Path) -> Iterator[TestClient]:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        yield client


def send(client: TestClient, *contents: bytes, **fields: str) -> Any:
    files = [("file", (f"{number}.bin", content)) for number, content in enumerate(contents)]
    return client.post("/explain", files=files, data=fields)


def picture(response: Any) -> np.ndarray:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-request-id"]
    with Image.open(BytesIO(response.content)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_a_photo_gets_an_overlay_of_what_the_model_sees(client: TestClient) -> None:
    for method in METHODS:
        assert picture(send(client, PHOTO, method=method)).shape == (SIDE, SIDE, 3)
    by_default = picture(send(client, PHOTO))
    np.testing.assert_array_equal(by_default, picture(send(client, PHOTO, method="occlusion", format="png")))
    assert (by_default != picture(send(client, PHOTO, method="gradcam"))).any()


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_those_of_the_model(client: TestClient, bundle_dir: Path, method: str) -> None:
    predictor = Predictor(bundle_dir, "cpu", engine="torch")
    info = predictor.info
    expected = next(predictor.predict([PHOTO]))
    pixels, _ = view(PHOTO, info.preprocessing)
    for label in (None, *CLASSES):
        answer = send(client, PHOTO, method=method, format="json", **({"label": label} if label else {})).json()
        index = CLASSES.index(label or expected.label)
        assert answer["label"] == CLASSES[index] and answer["method"] == method
        assert answer["probability"] == pytest.approx(expected.probabilities[index], abs=1e-9)
        saliency = attribution.explain(method, predictor, pixels[None], [index])[0]
        np.testing.assert_allclose(answer["saliency"], saliency, atol=1e-3)
        assert answer["model_id"] == predictor.model_id
        assert answer["milliseconds"] > 0 and answer["request_id"]


@pytest.mark.parametrize("format", ["png", "json"])
@pytest.mark.parametrize(("label", "sent"), [("dog", "dog"), ("<b>ö</b>", "<b>%C3%B6</b>")])
def test_headers_say_what_is_explained(
    client: TestClient, bundle_dir: Path, format: str, label: str, sent: str
) -> None:
    headers = send(client, PHOTO, format=format, label=label, method="occlusion").headers
    assert headers["x-model-id"] == read_bundle_info(bundle_dir)[1]
    assert headers["x-explanation-method"] == "occlusion"
    assert headers["x-explained-label"] == sent


@given(st.text())
def test_any_label_survives_the_header(label: str) -> None:
    explained = Explanation(
        method="gradcam", label=label, probability=1.0, saliency=[], model_id="m", milliseconds=1.0, request_id="r"
    )
    sent = explanation_headers(explained)["X-Explained-Label"]
    assert re.fullmatch(r"[!-~]*", sent) and unquote(sent) == label


def test_the_label_by_default_is_that_of_the_numbers(client: TestClient) -> None:
    picture, numbers = send(client, PHOTO), send(client, PHOTO, format="json")
    assert unquote(picture.headers["x-explained-label"]) == numbers.json()["label"]


@pytest.mark.parametrize(
    "content",
    [
        encoded(noise(2), "JPEG", exif=exif(6)),
        encoded(noise(2).convert("CMYK"), "JPEG"),
        encoded(noise(2).convert("RGBA")),
        encoded(Image.new("RGB", (8, 8)), "GIF", **frames()),
        encoded(noise(2, 1, 900)),
    ],
)
def test_odd_photos_are_explained_too(client: TestClient, content: bytes) -> None:
    assert picture(send(client, content)).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture" * 50, PHOTO[:-200], png_header(30000, 30000), encoded(Image.new("1", (6500, 4000)))],
)
def test_a_bad_photo_is_rejected_as_predict_rejects_it(client: TestClient, content: bytes) -> None:
    expected = client.post("/predict", files={"file": content})
    assert expected.status_code in (415, 422)
    for fields in ({}, {"format": "json"}):
        rejected = send(client, content, **fields)
        assert (rejected.status_code, rejected.json()) == (expected.status_code, expected.json())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "lime"}, "method 'lime' is unknown: use occlusion or cam or gradcam or integrated_gradients"),
        ({"method": ""}, "method '' is unknown: use occlusion or cam or gradcam or integrated_gradients"),
        ({"format": "jpg"}, "format 'jpg' is unknown: use png or json"),
        ({"label": "horse"}, "label 'horse' is not a class of the model"),
    ],
)
def test_an_unknown_word_is_named(client: TestClient, fields: dict[str, str], words: str) -> None:
    response = send(client, PHOTO, **fields)
    assert response.status_code == 422
    assert words in response.json()["detail"]


def test_one_photo_in_the_field_file_is_asked_for(client: TestClient) -> None:
    wrong = [
        client.post("/explain"),
        client.post("/explain", files={"photo": PHOTO}),
        client.post("/explain", data={"file": "photo.jpg"}),
        client.post("/explain", json={"method": "gradcam"}),
    ]
    for response in wrong:
        assert response.status_code == 422
        assert "Send one image as multipart/form-data in the field 'file'" in response.json()["detail"]
    assert send(client, PHOTO, PHOTO).status_code == 413
    # A query would be ignored: the person would take the answer for another method's.
    ignored = client.post("/explain?method=occlusion", files={"file": PHOTO})
    assert ignored.status_code == 422 and "form fields" in ignored.json()["detail"]


def test_a_huge_body_is_rejected(client: TestClient) -> None:
    assert send(client, bytes(33 * 2**20)).status_code == 413


def test_a_backbone_without_a_map_is_rejected_with_the_methods_that_work(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(*_: object) -> None:
        raise CannotExplain("it has no map")

    monkeypatch.setitem(attribution.METHODS, "gradcam", reject)
    response = send(client, PHOTO, method="gradcam")
    assert response.status_code == 422
    detail = response.json()["detail"]
    assert detail.startswith("gradcam cannot explain this model: it has no map; occlusion works with every network")
    assert picture(send(client, PHOTO, method="occlusion")).shape == (SIDE, SIDE, 3)


def test_without_a_bundle_it_is_not_ready(tmp_path: Path) -> None:
    with serve(SPECTACLES_OUTPUT_DIR=str(tmp_path)) as client:
        response = send(client, PHOTO)
    assert response.status_code == 503 and "holds no run yet" in response.json()["detail"]


def test_each_explanation_is_logged_as_one_line(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        send(client, PHOTO)
        send(client, b"nothing")
    _, explained, rejected = map(json.loads, capsys.readouterr().out.splitlines())
    assert explained["bytes"] == len(PHOTO) and explained["label"] in CLASSES and "file" not in explained
    assert rejected["status"] == 415


def test_the_documentation_describes_it(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    operation = schema["paths"]["/explain"]["post"]
    assert set(operation["responses"]) == {"200", "400", "401", "403", "408", "413", "415", "422", "429", "503"}
    assert set(operation["responses"]["200"]["content"]) == {"image/png", "application/json"}
    assert set(operation["responses"]["200"]["headers"]) == {"X-Model-ID", "X-Explained-Label", "X-Explanation-Method"}
    fields = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"file", "method", "label", "format"}
    assert fields["method"]["enum"] == list(attribution.METHODS)
    assert "saliency" in schema["components"]["schemas"]["Explanation"]["properties"]


@pytest.fixture(scope="module")
def convolutional(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one of timm's networks, whose layers both predictions and Grad-CAM look into."""
    torch.manual_seed(0)
    backbone = backbones.build("test_efficientnet", 3, 64)
    classifier = Classifier(backbone, backbone.num_features, len(CLASSES), dropout=0.0)
    info, _ = read_bundle_info(bundle_dir)
    preprocessing = Preprocessing(64, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)
    info = replace(info, backbone="test_efficientnet", feature_dim=backbone.num_features, preprocessing=preprocessing)
    folder = tmp_path_factory.mktemp("convolutional")
    save_bundle(folder, info, classifier.state_dict())
    return folder


def test_predictions_and_explanations_at_once_are_those_of_a_quiet_server(convolutional: Path) -> None:
    photos = [encoded(noise(seed, 64, 64), "JPEG") for seed in range(4)]
    explained = [("/explain", {"method": method, "format": "json"}, photos[0]) for method in attribution.METHODS]
    asked = [*explained, *(("/predict", {}, photo) for photo in photos)]
    with serve(SPECTACLES_BUNDLE=str(convolutional)) as client:

        def ask(request: tuple[str, dict[str, str], bytes]) -> list[Any]:
            path, fields, content = request
            while (response := client.post(path, data=fields, files={"file": content})).status_code == 503:
                pass  # a few explanations may wait, not all
            assert response.status_code == 200, response.text
            answer = response.json()
            return [*answer["probabilities"].values()] if path == "/predict" else answer["saliency"]

        quiet = [ask(request) for request in asked]
        with ThreadPoolExecutor(8) as pool:
            busy = list(pool.map(ask, asked * 6))
    for found, expected in zip(busy, quiet * 6, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)
