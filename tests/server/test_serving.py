"""The server as a whole: keys, limits, exchange of the model, metrics, and what it keeps to itself."""

import asyncio
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pictures import encoded, exif, noise
from served import serve
from starlette.types import Message, Receive, Scope, Send

import api
from spectacles.models.bundle import load_bundle, save_bundle
from spectacles.server import admission, auth, limits, schemas, signals, urls
from spectacles.server.auth import Rejected
from spectacles.server.limits import BodyLimit
from spectacles.server.service import MAX_REJECTION_DELAY, Service
from spectacles.server.settings import Settings

PHOTO = encoded(noise(1), "JPEG")
KEY = "a-secret-that-nobody-guesses"
KEYS = f"alice:{auth.digest(KEY)}"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("cat", "dog")


@pytest.fixture(scope="module")
def locked(bundle_dir: Path) -> Iterator[TestClient]:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_API_KEYS=KEYS) as client:
        yield client


def send(client: TestClient, *contents: bytes, **options: Any) -> Any:
    return client.post("/predict", files=[("file", ("a.jpg", content)) for content in contents], **options)


def counted(client: TestClient, series: str, **options: Any) -> float:
    lines = client.get("/metrics", **options).text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series + " "))


@pytest.mark.parametrize("path", ["/model", "/metrics", "/docs", "/openapi.json", "/nowhere"])
def test_with_keys_nothing_is_answered_without_one(locked: TestClient, path: str) -> None:
    rejected = locked.get(path)
    assert rejected.status_code == 401 and "Authorization: Bearer" in rejected.json()["detail"]
    assert locked.get(path, headers=BEARER).status_code == (404 if path == "/nowhere" else 200)


def test_with_keys_photos_are_taken_from_their_holders(locked: TestClient) -> None:
    assert send(locked, PHOTO).status_code == 401
    assert send(locked, PHOTO, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert send(locked, PHOTO, headers=BEARER).status_code == 200
    assert send(locked, PHOTO, headers={"X-API-Key": KEY}).status_code == 200
    assert send(locked, PHOTO, params={"key": KEY}).status_code == 401


def test_health_and_the_page_need_no_key(locked: TestClient) -> None:
    for path in ("/health/live", "/health/ready", "/"):
        assert locked.get(path).status_code == 200


def test_another_host_name_is_rejected(locked: TestClient) -> None:
    rejected = locked.get("/", headers={"Host": "evil.example"})
    assert rejected.status_code == 400 and "SPECTACLES_ALLOWED_HOSTS" in rejected.json()["detail"]
    assert locked.get("/health/ready", headers={"Host": "10.1.2.3:8000"}).status_code == 200, "as a balancer asks"


def test_without_keys_nobody_administrates(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        assert client.post("/admin/reload").status_code == 403


def test_the_model_is_exchanged_and_a_broken_one_is_not_taken(bundle_dir: Path, tmp_path: Path) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(bundle_dir, own)
    with serve(SPECTACLES_BUNDLE=str(own), SPECTACLES_API_KEYS=KEYS) as client:
        first = send(client, PHOTO, headers=BEARER).json()
        bundle = load_bundle(bundle_dir)
        save_bundle(own, bundle.info, {name: value + 0.01 for name, value in bundle.tensors().items()})
        second_id = client.post("/admin/reload", headers=BEARER).json()["model_id"]
        second = send(client, PHOTO, headers=BEARER).json()
        assert second["model_id"] == second_id == client.get("/model", headers=BEARER).json()["model_id"]
        assert second_id != first["model_id"] and second["probabilities"] != first["probabilities"]
        (own / "bundle.json").write_text("{")
        rejected = client.post("/admin/reload", headers=BEARER)
        assert rejected.status_code == 409 and "The old model stays" in rejected.json()["detail"]
        assert send(client, PHOTO, headers=BEARER).json()["model_id"] == second_id
        for outcome in ("done", "failed"):
            assert counted(client, f'spectacles_swaps_total{{outcome="{outcome}"}}', headers=BEARER) == 1


def test_metrics_count_what_happened(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        labels = [answer["label"] for answer in send(client, PHOTO, PHOTO).json()["predictions"]]
        send(client, b"text")
        client.post("/predict")
        client.get("/nowhere/at/all")
        client.get("/model", headers={"Host": "evil.example"})
        assert counted(client, f'spectacles_predictions_total{{label="{labels[0]}"}}') == 2
        assert counted(client, 'spectacles_rejections_total{reason="image"}') == 1
        assert counted(client, 'spectacles_rejections_total{reason="bad_request"}') == 1
        assert counted(client, 'spectacles_rejections_total{reason="host"}') == 1
        assert counted(client, 'spectacles_requests_total{route="/predict",status="200"}') == 1
        assert counted(client, 'spectacles_requests_total{route="other",status="404"}') == 1
        assert counted(client, 'spectacles_stage_seconds_count{stage="decoding"}') == 3
        assert counted(client, "spectacles_batch_images_count") == 2
        assert counted(client, "spectacles_queue_images") == 0


def test_a_full_server_says_when_to_retry(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_QUEUE="2") as client:
        rejected = send(client, *[PHOTO] * 3)
        assert rejected.status_code == 503 and int(rejected.headers["retry-after"]) >= 1
        assert "try again" in rejected.json()["detail"]
        assert send(client, *[PHOTO] * 2).status_code == 200
        assert counted(client, 'spectacles_rejections_total{reason="queue_full"}') == 1


def test_a_client_has_its_rate(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_RATE="0.01") as client:
        assert send(client, PHOTO).status_code == 200
        rejected = send(client, PHOTO)
        assert rejected.status_code == 429 and int(rejected.headers["retry-after"]) > 10


def test_urls_are_fetched_only_where_that_is_switched_on(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "fetch", lambda url, ends: PHOTO if url == "https://a.example/1.jpg" else b"")
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        rejected = client.post("/predict", data={"url": "https://a.example/1.jpg"})
        assert rejected.status_code == 422 and "does not fetch photos" in rejected.json()["detail"]
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_ALLOW_URLS="1") as client:
        answer = client.post("/predict", data={"url": "https://a.example/1.jpg"}).json()
        assert answer["label"] == send(client, PHOTO).json()["label"]
        both = client.post("/predict", data={"url": "https://a.example/1.jpg"}, files={"file": PHOTO})
        assert both.status_code == 422


def test_a_private_url_is_rejected(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_ALLOW_URLS="1") as client:
        rejected = client.post("/predict", data={"url": "http://127.0.0.1:80/"})
        assert rejected.status_code == 422 and "not on the public network" in rejected.json()["detail"]


def test_other_sites_ask_only_where_they_are_named(bundle_dir: Path) -> None:
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization"}  # fmt: skip
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_API_KEYS=KEYS,
               SPECTACLES_CORS_ORIGINS="https://app.example") as client:  # fmt: skip
        allowed = client.options("/predict", headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        other = client.options("/predict", headers=preflight | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        answer = send(client, PHOTO, headers=BEARER | {"Origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        assert "access-control-allow-origin" not in client.options("/predict", headers=preflight).headers


def test_a_draining_server_is_not_ready_and_still_answers(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        api.app.state.service.drain()
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        answer = send(client, PHOTO)
        assert answer.status_code == 200 and answer.headers["connection"] == "close"


def test_responses_metrics_and_log_hold_nothing_about_a_person(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = exif(1)
    place[0x8825] = {1: "N", 2: (48.858412, 0.0, 0.0)}
    place[0x010E] = "canary-description"
    photo = encoded(noise(1), "JPEG", exif=place)
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_API_KEYS=KEYS) as client:
        responses = [
            client.post("/predict", files={"file": (f"canary-name{number}.jpg", content)}, headers=BEARER)
            for number, content in enumerate([photo, photo[:300], b"canary-text"])
        ]
        responses += [
            client.post("/explain", files={"file": ("canary-name.jpg", photo)}, headers=BEARER),
            client.get("/metrics", headers=BEARER), client.get("/canary-path", headers=BEARER),
        ]  # fmt: skip
    written = capsys.readouterr().out + "".join(response.text + str(response.headers) for response in responses)
    for secret in ("canary", KEY, auth.digest(KEY), "48.858412", "testclient"):
        assert secret not in written


def test_an_error_of_ours_is_a_500_without_its_text(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("canary inside")

    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        monkeypatch.setattr(schemas, "image_result", fail)
        failed = send(client, PHOTO)
    assert failed.status_code == 500 and "canary" not in failed.text and failed.json()["detail"]


async def _through_the_limit(receive: Receive, headers: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """What an app behind BodyLimit reads."""
    read = b""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal read
        while True:
            message = await receive()
            read += message.get("body", b"")
            if not message.get("more_body"):
                return

    async def ignore(message: Message) -> None:
        pass

    limit = BodyLimit(app)
    try:
        await limit({"type": "http", "headers": headers or []}, receive, ignore)
    finally:
        assert limit.held == 0
    return read


def chunks(*sizes: int) -> Receive:
    messages = [{"type": "http.request", "body": bytes(size), "more_body": True} for size in sizes]
    rest = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(rest)

    return receive


def test_bodies_are_counted_while_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 100)
    assert len(asyncio.run(_through_the_limit(chunks(40, 60)))) == 100
    with pytest.raises(Rejected) as rejected:
        asyncio.run(_through_the_limit(chunks(40, 61, 1)))
    assert rejected.value.status_code == 413
    with pytest.raises(Rejected):
        asyncio.run(_through_the_limit(chunks(), [(b"content-length", b"101")]))


def test_all_bodies_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODIES_BYTES", 50)
    with pytest.raises(Rejected) as rejected:
        asyncio.run(_through_the_limit(chunks(40, 20)))
    assert rejected.value.status_code == 503 and rejected.value.reason == "memory"


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.01)

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Rejected) as rejected:
        asyncio.run(_through_the_limit(never))
    assert rejected.value.status_code == 408


def test_the_log_is_lines_of_json(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        send(client, PHOTO)
        client.get("/model", headers={"Host": "evil.example"})
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["ready", "inference", "rejected"]
    assert events[2]["reason"] == "host" and events[2]["request_id"]


def test_a_flood_waits_for_its_rejections_and_never_longer_than_a_second(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)):
        service = api.app.state.service
        service.batcher.seconds_per_image = 0.1
        waits = [service.reject_after() for _ in range(1000)]
    assert waits[0] == 0 and max(waits) <= MAX_REJECTION_DELAY == 1
    # Ten rejections for each photo that could be answered: 10 ms each.
    assert waits[10] == pytest.approx(0.1, abs=0.02)


@contextmanager
def full() -> Iterator[None]:
    """As if a photo were being computed that takes up all the time there is."""
    batcher = api.app.state.service.batcher
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batcher, "inside", 1)
        patch.setattr(batcher, "seconds_per_image", 100.0)
        patch.setattr(api.app.state.service, "reject_after", lambda: 0.0)
        yield


def test_a_photo_without_room_is_rejected_unread_and_the_next_one_answered(bundle_dir: Path) -> None:
    read = 0

    def body() -> Iterator[bytes]:
        nonlocal read
        read += 1
        yield bytes(100)

    form = {"Content-Type": "multipart/form-data; boundary=b"}
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        with full():
            small = send(client, PHOTO)
            large = send(client, bytes(admission.LARGE))
            client.post("/predict", content=body(), headers=form)
            assert client.get("/model").status_code == 200, "other requests are answered"
        for rejected in (small, large):
            assert rejected.status_code == 503 and int(rejected.headers["retry-after"]) >= 1
            assert "try again" in rejected.json()["detail"] and rejected.headers["x-request-id"]
        assert "connection" not in small.headers and large.headers["connection"] == "close"
        assert counted(client, 'spectacles_rejections_total{reason="too_late"}') == 3
        assert send(client, PHOTO).status_code == 200


def test_strangers_are_told_so_however_busy_the_server_is(bundle_dir: Path) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_API_KEYS=KEYS) as client, full():
        assert send(client, PHOTO).status_code == 401
        assert send(client, PHOTO, headers=BEARER).status_code == 503


@pytest.mark.parametrize("ends", ["with its body", "with its time", "with the request"])
def test_a_large_upload_has_room_only_until_it_arrives(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    monkeypatch.setattr(admission, "UPLOAD_SECONDS", 0.01 if ends == "with its time" else 60.0)
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(service.uploading)
        if ends == "with its body":
            await receive()
        while ends == "with its time" and service.uploading:
            await asyncio.sleep(0)
        seen.append(service.uploading)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ask() -> int:
        service.loop = asyncio.get_running_loop()
        for length in (admission.LARGE, admission.LARGE + 1):
            scope = {"type": "http", "headers": [(b"content-length", str(length).encode())],
                     "state": {"service": service, "for_photos": True}}  # fmt: skip
            await admission.Admission(app)(scope, receive, receive)  # type: ignore[arg-type]
        return service.uploading

    service = SimpleNamespace(busy_for=lambda large: 0, uploading=0)
    assert asyncio.run(ask()) == 0
    assert seen == [0, 0, 1, 1 if ends == "with the request" else 0]


def test_under_a_prefix_everything_is_as_without(bundle_dir: Path) -> None:
    """As uvicorn --root-path calls an app."""

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope |= {"root_path": "/x", "path": "/x" + scope["path"]}
        await api.app(scope, receive, send)

    with serve(prefixed, SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_API_KEYS=KEYS) as client:
        for path in ("/health/live", "/health/ready", "/"):
            assert client.get(path).status_code == 200
        assert client.get("/model").status_code == send(client, PHOTO).status_code == 401
        assert send(client, PHOTO, headers=BEARER).status_code == 200
        requests = 'spectacles_requests_total{route="/predict",status="200"}'
        assert counted(client, requests, headers=BEARER) == 1
        assert client.get("/openapi.json", headers=BEARER).json()["servers"] == [{"url": "/x"}]


def test_signals_drain_and_reach_the_server() -> None:
    reached: list[int] = []

    def ends(number: int, _: object) -> None:
        reached.append(number)

    async def run() -> None:
        service = Service(Settings(drain=0.0), "no model")
        before = {number: signal.signal(number, ends) for number in signals.ENDS}
        try:
            with signals.handled(service):
                signal.raise_signal(signal.SIGTERM)
                assert not reached
                while not reached:
                    await asyncio.sleep(0.001)
                assert service.draining
                signal.raise_signal(signal.SIGINT)
                assert reached == [signal.SIGTERM, signal.SIGINT]
            signal.raise_signal(signal.SIGTERM)
            assert len(reached) == 3
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    asyncio.run(run())
