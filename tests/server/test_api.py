"""The server answers what Predictor answers, and rejects bad input with a reason and a 4xx."""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from served import serve

import api
from spectacles.core.config import EXPLANATIONS
from spectacles.inference.predictor import Predictor
from spectacles.metrics.abstention import NEVER
from spectacles.models import ood
from spectacles.models.bundle import read_bundle_info
from spectacles.server import page
from spectacles.server.limits import MAX_BODY_BYTES, MAX_FILES
from spectacles.server.service import LOADING

CLASSES = ("cat", "dog", "<b>other</b>")


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(*CLASSES, temperature=0.01)  # probabilities differ visibly in spite of random weights


@pytest.fixture(scope="module")
def client(bundle_dir: Path) -> Iterator[TestClient]:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        yield client


def photo(mode: str = "RGB", size: tuple[int, int] = (48, 36)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert("RGB" if mode in ("CMYK", "P") else mode).convert(mode)


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(photo(), "JPEG", exif=exif)


def deep_png() -> bytes:
    return encode(Image.fromarray(np.arange(48 * 36, dtype=np.uint16).reshape(36, 48) * 37), "PNG")


def animation() -> bytes:
    return encode(photo("P"), "GIF", save_all=True, append_images=[Image.new("P", (48, 36), 7)])


def bomb() -> bytes:
    """A PNG header that announces 30000 x 30000 pixels and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


READABLE = {
    "jpeg": encode(photo(), "JPEG"),
    "exif-rotated": rotated_jpeg(),
    "cmyk": encode(photo("CMYK"), "JPEG"),
    "grey": encode(photo("L"), "JPEG"),
    "16-bit": deep_png(),
    "palette": encode(photo("P"), "PNG"),
    "alpha": encode(photo("RGBA"), "PNG"),
    "animated-gif": animation(),
    "webp": encode(photo(), "WEBP"),
    "one-pixel-wide": encode(photo(size=(1, 900)), "PNG"),
}

REJECTED = {
    "empty": (b"", 422, "empty file"),
    "text": (b"not a picture at all\n" * 50, 415, "not an image of a known format"),
    "pdf": (b"%PDF-1.7\n" + bytes(200), 415, "not an image of a known format"),
    "truncated-jpeg": (READABLE["jpeg"][:-200], 422, "truncated"),
    "truncated-png": (READABLE["alpha"][:-200], 422, ""),
    "jpeg-2000": (encode(photo(), "JPEG2000"), 415, "not an image of a known format"),
    "bomb": (bomb(), 422, "too many pixels"),
    "26-megapixels": (encode(Image.new("1", (6500, 4000)), "PNG"), 422, "6500 x 4000 pixels is more than 25 million"),
}


def send(client: TestClient, *contents: bytes, **options: Any) -> Any:
    return client.post("/predict", files=[("file", (f"{i}.bin", c)) for i, c in enumerate(contents)], **options)


@pytest.mark.parametrize("name", READABLE)
def test_a_file_gets_the_probabilities_that_batch_prediction_gives_it(
    client: TestClient, bundle_dir: Path, name: str
) -> None:
    expected = next(Predictor(bundle_dir, "cpu", engine="torch").predict([READABLE[name]]))
    response = send(client, READABLE[name])
    assert response.status_code == 200
    answer = response.json()
    assert (answer["label"], answer["abstained"], answer["abstain_reason"]) == (expected.label, False, None)
    assert answer["ood_score"] == expected.ood_score
    assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-9)
    assert list(answer["probabilities"]) == list(CLASSES)
    assert list(answer["probabilities"].values()) == pytest.approx(expected.probabilities, abs=1e-9)
    assert tuple(answer["conversions"]) == expected.conversions
    assert answer["milliseconds"] > 0


@pytest.mark.parametrize("name", REJECTED)
def test_a_bad_file_is_rejected_with_a_reason(client: TestClient, name: str) -> None:
    content, status, reason = REJECTED[name]
    response = send(client, content)
    assert response.status_code == status
    assert reason in response.json()["detail"]
    assert response.headers["x-request-id"]


def test_one_bad_file_among_several_spoils_no_other(client: TestClient, bundle_dir: Path) -> None:
    contents = [READABLE["alpha"], REJECTED["text"][0], READABLE["exif-rotated"], b""]
    response = send(client, *contents)
    assert response.status_code == 200
    first, second, third, fourth = response.json()["predictions"]
    expected = list(Predictor(bundle_dir, "cpu", engine="torch").predict(contents))
    # The same images in batches of other sizes may differ in the last digits of float32.
    assert list(first["probabilities"].values()) == pytest.approx(expected[0].probabilities, abs=1e-6)
    assert list(third["probabilities"].values()) == pytest.approx(expected[2].probabilities, abs=1e-6)
    assert (second["status"], fourth["status"]) == (415, 422)
    assert "not an image" in second["error"]
    assert "empty" in fourth["error"]


def test_too_many_files_are_rejected_and_the_limit_is_allowed(client: TestClient) -> None:
    assert len(send(client, *[READABLE["jpeg"]] * MAX_FILES).json()["predictions"]) == MAX_FILES
    rejected = send(client, *[READABLE["jpeg"]] * (MAX_FILES + 1))
    assert rejected.status_code == 413
    assert f"at most {MAX_FILES}" in rejected.json()["detail"]


def test_requests_without_the_file_field_are_reported_how_to_send_one(client: TestClient) -> None:
    wrong_name = client.post("/predict", files={"photo": READABLE["jpeg"]})
    no_multipart = client.post("/predict", content=READABLE["jpeg"], headers={"Content-Type": "image/jpeg"})
    text_field = client.post("/predict", data={"file": "photo.jpg"})
    json_body = client.post("/predict", json={"file": "photo.jpg"})
    for response in (wrong_name, no_multipart, text_field, json_body, client.post("/predict")):
        assert response.status_code == 422
        assert "in the field 'file'" in response.json()["detail"]


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=b"])
def test_malformed_multipart_is_a_bad_request(client: TestClient, content_type: str) -> None:
    response = client.post("/predict", content=b"rubbish", headers={"Content-Type": content_type})
    assert response.status_code == 400
    assert "multipart" in response.json()["detail"]


def test_a_huge_body_is_rejected_while_it_arrives(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:  # a generator goes out chunked, without Content-Length
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            sent += 2**20
            yield bytes(2**20)

    response = client.post("/predict", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert response.status_code == 413
    assert "32 MiB" in response.json()["detail"]
    assert sent > MAX_BODY_BYTES


def test_an_announced_huge_body_is_rejected(client: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(MAX_BODY_BYTES + 1)}
    response = client.post("/predict", content=b"--b", headers=headers)
    assert response.status_code == 413


def test_a_valid_request_id_is_kept_and_another_replaced(client: TestClient) -> None:
    kept = send(client, READABLE["jpeg"], headers={"X-Request-ID": "order-17.a"})
    assert kept.headers["x-request-id"] == kept.json()["request_id"] == "order-17.a"
    for bad in ("a b", "x" * 65, '"}{"label":"forged'):
        replaced = send(client, READABLE["jpeg"], headers={"X-Request-ID": bad})
        assert replaced.headers["x-request-id"] == replaced.json()["request_id"] != bad


def test_each_image_is_logged_as_one_json_line_without_its_name(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        answer = send(client, READABLE["jpeg"], REJECTED["text"][0], headers={"X-Request-ID": "r1"}).json()
    printed = capsys.readouterr().out
    ready, first, second = map(json.loads, printed.splitlines())
    assert ready["event"] == "ready"
    assert first["request_id"] == second["request_id"] == "r1"
    assert first["bytes"] == len(READABLE["jpeg"])
    assert (first["label"], first["milliseconds"]) == (answer["predictions"][0]["label"], answer["milliseconds"])
    assert first["time"].endswith("+00:00")
    assert second["status"] == 415
    assert "0.bin" not in printed


def test_the_model_card_tells_what_the_bundle_knows_and_no_path(client: TestClient, bundle_dir: Path) -> None:
    response = client.get("/model")
    card = response.json()
    assert card["model_id"] == read_bundle_info(bundle_dir)[1]
    assert card["classes"] == list(CLASSES)
    assert card["positive_class"] == (CLASSES[1] if len(CLASSES) == 2 else None)
    assert card["preprocessing"]["image_size"] == 32
    assert (card["metric"], card["metric_value"]) == ("accuracy", 0.5)
    assert card["explanations"] == list(EXPLANATIONS)
    assert str(bundle_dir.parent) not in response.text


def test_without_a_bundle_the_server_starts_and_says_why_it_is_not_ready(tmp_path: Path) -> None:
    with serve(SPECTACLES_OUTPUT_DIR=str(tmp_path)) as client:
        assert client.get("/health/live").json() == {"status": "live"}
        assert client.get("/").status_code == 200
        for response in (client.get("/health/ready"), client.get("/model"), send(client, READABLE["jpeg"])):
            assert response.status_code == 503
            assert "holds no run yet" in response.json()["detail"]
        assert "retry-after" not in client.get("/health/ready").headers  # it will not get better by itself


@pytest.mark.parametrize("state", [{"problem": LOADING}, {"draining": True}])
def test_while_it_loads_or_is_about_to_end_it_says_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any]
) -> None:
    with serve(SPECTACLES_OUTPUT_DIR=str(tmp_path)) as client:
        for name, value in state.items():
            monkeypatch.setattr(api.app.state.service, name, value)
        response = client.get("/health/ready")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_a_damaged_bundle_is_not_served(bundle_dir: Path, tmp_path: Path) -> None:
    for file in bundle_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = next(tmp_path.glob("model-*"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with serve(SPECTACLES_BUNDLE=str(tmp_path)) as client:
        response = client.get("/health/ready")
    assert response.status_code == 503
    assert "was changed since it was saved" in response.json()["detail"]


def test_the_newest_run_is_served_by_default(bundle_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "run" / "train" / "bundle"
    target.mkdir(parents=True)
    for file in bundle_dir.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (tmp_path / "latest").write_text("run", encoding="utf-8")
    with serve(SPECTACLES_OUTPUT_DIR=str(tmp_path)) as client:
        assert client.get("/health/ready").json() == {"status": "ready"}


def test_the_page_needs_no_other_host(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert policy == page.headers(response.text)["Content-Security-Policy"]
    assert "'unsafe-inline'" not in policy
    assert "https://" not in response.text
    assert " style=" not in response.text  # the policy would block it
    assert "innerHTML" not in response.text  # class and file names are text, never markup


def test_the_documentation_describes_answers_and_rejections(client: TestClient) -> None:
    responses = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "403", "408", "413", "415", "422", "429", "503"}
    assert "SinglePrediction" in json.dumps(responses["200"])


def test_the_model_card_says_which_engine_runs(client: TestClient) -> None:
    assert client.get("/model").json()["engine"] == "torch"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({"confidence_threshold": NEVER}, "low_confidence"), ({"ood_threshold": 0.995}, "out_of_distribution")],
)
def test_an_abstaining_model_gives_its_reason_beside_the_label(
    make_bundle: Callable[..., Path], facts: dict[str, float], reason: str
) -> None:
    maps = np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32)  # nothing like what a network gives
    folder = make_bundle(*CLASSES, ood_scorer=ood.fit(maps, maps), **facts)
    with serve(SPECTACLES_BUNDLE=str(folder)) as client:
        answer, card = send(client, READABLE["jpeg"]).json(), client.get("/model").json()
        several = send(client, READABLE["jpeg"], READABLE["alpha"]).json()["predictions"]
    assert (answer["abstained"], answer["abstain_reason"]) == (True, reason)
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert answer["confidence"] == answer["probabilities"][answer["label"]]
    assert 0.995 < answer["ood_score"] <= 1
    assert [each["abstain_reason"] for each in several] == [reason, reason]
    assert {name: card[name] for name in facts} == facts


def test_another_class_mix_multiplies_the_odds(client: TestClient, bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_PRIOR=f"{CLASSES[0]}=0.9") as moved:
        probabilities = [send(each, READABLE["jpeg"]).json()["probabilities"] for each in (client, moved)]
        shares = moved.get("/model").json()["class_shares"]
    rest = 1 - 1 / len(CLASSES)
    before, after = (each[CLASSES[0]] / (1 - each[CLASSES[0]]) for each in probabilities)
    assert after / before == pytest.approx(9 * rest * len(CLASSES))
    assert shares == pytest.approx([0.9, *[0.1 / (len(CLASSES) - 1)] * (len(CLASSES) - 1)])
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_PRIOR="hat=0.9") as unready:
        answer = unready.get("/health/ready")
    assert answer.status_code == 503 and "'hat' is not one of the classes" in answer.json()["detail"]


def test_an_engine_that_is_unknown_is_named_as_the_reason_for_not_being_ready(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_ENGINE="tensorrt") as client:
        answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert "SPECTACLES_ENGINE=tensorrt" in answer.json()["detail"]
