"""Clouds and clients of the Open Inference Protocol get answers to the requests that their own pages print."""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pictures import encoded, noise
from served import serve
from starlette.types import Receive, Scope, Send

import api
from spectacles.core.errors import UserError
from spectacles.server import auth
from spectacles.server.protocols.dispatch import PROTOCOLS, Protocols

PHOTO, OTHER = encoded(noise(1), "JPEG"), encoded(noise(2), "PNG")
TEXT = base64.b64encode(PHOTO).decode()
OTHER_TEXT = base64.b64encode(OTHER).decode()
BROKEN = base64.b64encode(b"not a photo").decode()
VERTEX = {"AIP_PREDICT_ROUTE": "/v1/endpoints/7/deployedModels/8:predict", "AIP_HEALTH_ROUTE": "/v1/endpoints/7"}
KEY, DIGEST = auth.make_key()


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("cat", "dog")


@pytest.fixture(scope="module")
def client(bundle_dir: Path) -> Iterator[TestClient]:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_PROTOCOLS=",".join(PROTOCOLS), **VERTEX) as client:
        yield client


@pytest.fixture(scope="module")
def expected(client: TestClient) -> list[dict[str, Any]]:
    """What /predict says to both photos."""
    files = [("file", ("a", content)) for content in (PHOTO, OTHER)]
    return list(client.post("/predict", files=files).json()["predictions"])


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """In what both hold; a batch of another size may round in another way."""
    shared = found.keys() & expected.keys()
    numbers = {name for name in shared if isinstance(expected[name], float)}
    assert shared >= {"label", "confidence", "abstained"}
    return all(found[name] == (pytest.approx(expected[name]) if name in numbers else expected[name]) for name in shared)


def test_sagemaker_asks_with_the_photo_as_the_body(client: TestClient, expected: list[dict[str, Any]]) -> None:
    assert client.get("/ping").status_code == 200
    for kind in ("application/x-image", "image/jpeg", "image/png"):
        answer = client.post("/invocations", content=PHOTO, headers={"Content-Type": kind})
        assert answer.status_code == 200
        found = answer.json()
        assert found.pop("probabilities") == pytest.approx(expected[0]["probabilities"])
        assert same(found, expected[0])
    assert client.post("/invocations", content=b"x", headers={"Content-Type": "image/jpeg"}).status_code == 415
    assert client.post("/invocations", content=b"", headers={"Content-Type": "image/jpeg"}).status_code == 400
    text = client.post("/invocations", content=b"1,2", headers={"Content-Type": "text/csv"})
    assert text.status_code == 415 and "Content-Type 'text/csv'" in text.json()["detail"]


@pytest.mark.parametrize(
    "instance",
    [
        {"content": TEXT},
        {"b64": TEXT},
        {"image_bytes": {"b64": TEXT}},
        {"content": TEXT, "mimeType": "image/jpeg"},
        TEXT,
    ],
)
def test_vertex_asks_on_its_own_routes(client: TestClient, expected: list[dict[str, Any]], instance: object) -> None:
    assert client.get(VERTEX["AIP_HEALTH_ROUTE"]).status_code == 200
    answer = client.post(VERTEX["AIP_PREDICT_ROUTE"], json={"instances": [instance]})
    [prediction] = answer.json()["predictions"]
    probabilities = dict(zip(prediction.pop("displayNames"), prediction.pop("confidences"), strict=True))
    assert probabilities == pytest.approx(expected[0]["probabilities"])
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
    assert same(prediction, expected[0])


def test_vertex_limits_what_is_listed_and_answers_for_each_instance(client: TestClient) -> None:
    asked = {
        "instances": [{"content": TEXT}, {"content": BROKEN}, {"content": OTHER_TEXT}],
        "parameters": {"confidenceThreshold": 0.0, "maxPredictions": 1},
    }
    predictions = client.post(VERTEX["AIP_PREDICT_ROUTE"], json=asked).json()["predictions"]
    assert [len(each.get("displayNames", [])) for each in predictions] == [1, 0, 1]
    assert "rejected" in predictions[1]["error"]
    asked["parameters"] = {"confidenceThreshold": 1.1}
    assert client.post(VERTEX["AIP_PREDICT_ROUTE"], json=asked).json()["predictions"][0]["displayNames"] == []
    asked["parameters"] = {"temperature": 2}
    assert "'temperature' is not one of maxPredictions" in client.post(VERTEX["AIP_PREDICT_ROUTE"], json=asked).text


@pytest.mark.parametrize("data", [[TEXT, BROKEN, OTHER_TEXT], [[TEXT], [BROKEN], [OTHER_TEXT]]])
def test_azure_asks_as_its_image_models_are_asked(client: TestClient, data: list[object]) -> None:
    answer = client.post("/score", json={"input_data": {"columns": ["image"], "index": [0, 1, 2], "data": data}})
    first, broken, last = answer.json()
    assert first["labels"] == last["labels"] == ["cat", "dog"]
    assert sum(first["probs"]) == pytest.approx(1) and first["probs"] != last["probs"]
    assert set(broken) == {"error", "status"}


def infer(client: TestClient, *inputs: dict[str, Any], path: str = "/v2/models/spectacles/infer", **more: Any) -> Any:
    return client.post(path, json={"inputs": list(inputs), **more})


def image(*texts: str, **changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)} | changes


def test_the_open_inference_protocol_describes_the_model(client: TestClient) -> None:
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    described = client.get("/v2/models/spectacles").json()
    [version] = described["versions"]
    assert version == client.get("/model").json()["model_id"]
    assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert client.get(f"/v2/models/spectacles/versions/{version}/ready").status_code == 200
    outputs = {each["name"]: each for each in infer(client, image(TEXT)).json()["outputs"]}
    assert {name: each["datatype"] for name, each in outputs.items()} == {
        each["name"]: each["datatype"] for each in described["outputs"]
    }
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v2/models/spectacles/versions/1"):
        assert client.get(path).status_code == 404 and "'spectacles'" in client.get(path).json()["error"]


def test_the_open_inference_protocol_infers(client: TestClient, expected: list[dict[str, Any]]) -> None:
    answer = infer(client, image(TEXT, OTHER_TEXT), id="42").json()
    tensors = {each["name"]: each for each in answer["outputs"]}
    assert answer["id"] == "42" and answer["model_name"] == "spectacles"
    assert tensors["probabilities"]["shape"] == [2, 2] and tensors["classes"]["data"] == ["cat", "dog"]
    assert tensors["label"]["data"] == [each["label"] for each in expected]
    assert tensors["confidence"]["data"] == pytest.approx([each["confidence"] for each in expected])
    version = answer["model_version"]
    some = infer(
        client, image(TEXT), outputs=[{"name": "label"}], path=f"/v2/models/spectacles/versions/{version}/infer"
    )
    assert [each["name"] for each in some.json()["outputs"]] == ["label"]


def test_the_open_inference_protocol_takes_binary_tensors(client: TestClient) -> None:
    binary = b"".join(struct.pack("<I", len(content)) + content for content in (PHOTO, OTHER))

    def send(size: int, content: bytes = binary) -> Any:
        tensor = image(shape=[2], parameters={"binary_data_size": size})
        del tensor["data"]
        header = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
        return client.post("/v2/models/spectacles/infer", content=header + content, headers=headers)

    answers = [send(len(binary)), infer(client, image(TEXT, OTHER_TEXT))]
    first, second = ({each["name"]: each["data"] for each in answer.json()["outputs"]} for answer in answers)
    # Which photos are computed in one batch, and so the last digits, may differ.
    assert first.pop("probabilities") == pytest.approx(second.pop("probabilities"), abs=1e-6)
    assert first.pop("confidence") == pytest.approx(second.pop("confidence"), abs=1e-6)
    assert first == second
    for wrong in (len(binary) - 1, 3):
        assert send(wrong).status_code == 400 and "ends within an element" in send(wrong).json()["error"]


@pytest.mark.parametrize(
    ("asked", "status", "problem"),
    [
        ({"inputs": [image(TEXT, datatype="FP32")]}, 400, "with the datatype BYTES"),
        ({"inputs": [image(TEXT, name="input0")]}, 400, "has to be 'image'"),
        ({"inputs": [image(TEXT, shape=[2])]}, 400, "does not fit its 1 elements"),
        ({"inputs": [image(TEXT, data=[1])]}, 400, "BASE64"),
        ({"inputs": [image("%%%")]}, 400, "not base64"),
        ({"inputs": [image()]}, 400, "BASE64"),
        ({"inputs": [image(*[TEXT] * 17)]}, 413, "send at most 16"),
        ({"inputs": [image(TEXT, BROKEN)]}, 415, "Image 1: The image is rejected"),
        ({"inputs": [image(TEXT)], "outputs": [{"name": "output0"}]}, 400, "'output0' is not one of label"),
        ({"inputs": []}, 400, "One input is needed"),
        ([], 400, "BASE64"),
    ],
)
def test_the_open_inference_protocol_says_what_is_wrong(
    client: TestClient, asked: Any, status: int, problem: str
) -> None:
    answer = client.post("/v2/models/spectacles/infer", json=asked)
    assert answer.status_code == status and problem in answer.json()["error"]


@pytest.mark.parametrize("path", ["/score", VERTEX["AIP_PREDICT_ROUTE"], "/v2/models/spectacles/infer"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"{}", b'{"instances": 1}', b"\xff"])
def test_what_is_not_a_request_gets_its_form_explained(client: TestClient, path: str, content: bytes) -> None:
    answer = client.post(path, content=content)
    assert answer.status_code == 400 and "BASE64 OF A PHOTO" in answer.text


def test_without_being_asked_for_nothing_is_there(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), **VERTEX) as client:
        for path in ("/ping", "/v2", "/v2/health/live", VERTEX["AIP_HEALTH_ROUTE"]):
            assert client.get(path).status_code == 404
        for path in ("/invocations", "/score", "/v2/models/spectacles/infer", VERTEX["AIP_PREDICT_ROUTE"]):
            assert client.post(path).status_code == 404


def test_keys_are_asked_for_but_by_probes(bundle_dir: Path) -> None:
    asked = {"SPECTACLES_API_KEYS": f"me:{DIGEST}", "SPECTACLES_PROTOCOLS": "sagemaker,open_inference"}
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), **asked) as client:
        for path in ("/ping", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for path in ("/v2", "/v2/models/spectacles", "/v2/models/spectacles/ready"):
            assert client.get(path).status_code == 401
        image = {"Content-Type": "image/jpeg"}
        assert client.post("/invocations", content=PHOTO, headers=image).status_code == 401
        assert "key" in client.post("/v2/models/spectacles/infer", json={}).json()["detail"]
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert client.post("/invocations", content=PHOTO, headers=image | bearer).status_code == 200


async def from_elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
    await api.app(scope | {"client": ("10.0.0.8", 50000)}, receive, send)


@pytest.mark.parametrize(("trust", "status"), [("0", 403), ("1", 200)])
def test_a_trusted_network_needs_no_keys(bundle_dir: Path, trust: str, status: int) -> None:
    asked = {"SPECTACLES_TRUST_NETWORK": trust, "SPECTACLES_ALLOWED_HOSTS": "*"}
    with serve(from_elsewhere, SPECTACLES_BUNDLE=str(bundle_dir), **asked) as client:
        assert client.get("/model", headers={"Host": "predictor.models.svc"}).status_code == status


def test_requests_are_counted_by_route_and_limited_like_others(bundle_dir: Path) -> None:
    asked = {"SPECTACLES_PROTOCOLS": "open_inference", "SPECTACLES_RATE": "0.01", "SPECTACLES_QUEUE": "2"}
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), **asked) as client:
        assert infer(client, image(*[TEXT] * 3)).status_code == 503
        assert infer(client, image(TEXT)).status_code == 429
        metrics = client.get("/metrics").text
    route = 'route="/v2/models/{model}/infer"'
    assert f'spectacles_requests_total{{{route},status="503"}} 1.0' in metrics
    assert f'spectacles_requests_total{{{route},status="429"}} 1.0' in metrics


def test_probes_are_told_when_the_server_is_about_to_end(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_PROTOCOLS="sagemaker,open_inference") as client:
        api.app.state.service.drain()
        assert client.get("/ping").status_code == client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200


def test_an_unknown_protocol_is_a_problem_of_the_settings(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_PROTOCOLS="sagemaker,torchserve") as client:
        problem = client.get("/health/ready").json()["detail"]
    assert problem == (
        "SPECTACLES_PROTOCOLS=torchserve cannot be used: use sagemaker, vertex, azureml, open_inference."
    )


def test_a_platform_may_choose_the_port() -> None:
    assert Protocols(["sagemaker"], {"SAGEMAKER_BIND_TO_PORT": "8081"}).port() == 8081
    assert Protocols(["azureml", "vertex"], {"AIP_HTTP_PORT": "8082", "SAGEMAKER_BIND_TO_PORT": "1"}).port() == 8082
    assert Protocols(["vertex"], {}).port() is None
    with pytest.raises(UserError, match="'http' cannot be used"):
        Protocols(["vertex"], {"AIP_HTTP_PORT": "http"}).port()
