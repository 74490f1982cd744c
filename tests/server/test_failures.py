"""What the system refuses or ends is replaced, or the server is not ready; it is never ready and silent."""

import threading
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pictures import encoded, noise
from served import serve

import api
from spectacles.server import batching, service

PHOTO = encoded(noise(1), "JPEG")


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("cat", "dog")


def fail(*_: object, **__: object) -> Any:
    raise OSError("injected")


def send(client: TestClient, path: str = "/predict") -> Any:
    return client.post(path, files={"file": PHOTO})


class SecondThreadFails(threading.Thread):
    def start(self) -> None:
        if any(thread.name == "_decode_all" for thread in threading.enumerate()):
            raise RuntimeError("can't start new thread")
        super().start()


STARTS = [(batching, "Thread", SecondThreadFails), (batching, "ThreadPoolExecutor", fail), (BaseContext, "Pipe", fail),
          (BaseContext, "RawArray", fail), (service, "load", fail)]  # fmt: skip


@pytest.mark.parametrize(("place", "name", "instead"), STARTS)
def test_a_server_of_which_a_part_cannot_be_started_is_not_ready(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, instead: Any
) -> None:
    before = set(threading.enumerate())
    monkeypatch.setattr(place, name, instead)
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        assert client.get("/health/ready").status_code == send(client).status_code == 503
        assert client.get("/health/live").status_code == 200
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not left & {"_decode_all", "_infer_all"}


@pytest.mark.parametrize("name", ["Pipe", "RawArray"])
def test_decoders_that_cannot_be_replaced_make_it_unready_until_they_can(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(BaseContext, name, fail)
            for decoder in api.app.state.service.batcher.decoders._all:
                decoder.process.kill()
                decoder.process.join()
            for path in ("/predict", "/explain"):
                answer = send(client, path)
                assert answer.status_code == 503 and "cannot answer now: no process can be started" in answer.text
            ready = client.get("/health/ready")
            assert ready.status_code == 503 and "injected" in ready.json()["detail"]
        while client.get("/health/ready").status_code != 200:  # which starts them
            pass
        assert send(client).status_code == send(client, "/explain").status_code == 200


def test_an_error_while_decoding_or_computing_ends_no_thread(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(SPECTACLES_BUNDLE=str(bundle_dir)) as client:
        batcher = api.app.state.service.batcher
        for place, name in ((batcher.decoders, "_run"), (batcher.model, "predict_batch")):
            with monkeypatch.context() as patch:
                patch.setattr(place, name, fail)
                assert send(client).status_code == 500
            assert client.get("/health/ready").status_code == send(client).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_leaves_nobody_waiting(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> Any:
        raise SystemExit  # ends a thread without a word

    monkeypatch.setattr(batching, "LATE_SECONDS", 0.1)
    with serve(SPECTACLES_BUNDLE=str(bundle_dir), SPECTACLES_DEADLINE="0.2") as client:
        monkeypatch.setattr(api.app.state.service.batcher.model, "predict_batch", end)
        assert send(client).status_code == 503
        ready = client.get("/health/ready")
        assert ready.status_code == 503 and "restart it" in ready.json()["detail"]
