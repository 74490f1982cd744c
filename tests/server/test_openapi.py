"""The server does what its OpenAPI page says: requests made from the page, answers held against it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import strategies as st
from pictures import encoded, noise
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import BaseSchema
from served import serve
from starlette.types import Receive, Scope, Send

import api
from spectacles.server import auth
from spectacles.server.openapi import page_for
from spectacles.server.service import LOADING
from spectacles.server.settings import Settings

CLASSES = ("cat", "dog", "<b>ö</b>")
KEY, DIGEST = auth.make_key()
CONFIG: dict[str, Any] = {
    "seed": 1,
    "generation": {"max-examples": 20, "deterministic": True, "database": "none"},
    # All checks are on. Their own list of rejections lacks 413, which too many files are answered with.
    "checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}},
}

# Which bytes are a photo, a schema cannot say; those that are none have tests of their own.
schemathesis.openapi.format("binary", st.sampled_from([encoded(noise(1)), encoded(noise(2), "JPEG")]))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The server as its own machine reaches it, once its model is loaded. schemathesis starts it for each operation."""
    if scope["type"] == "http":
        while scope["state"]["service"].problem == LOADING:
            await asyncio.sleep(0.01)
    await api.app(scope | {"server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 50000)}, receive, send)


def page(settings: Settings) -> dict[str, Any]:
    return page_for(FastAPI.openapi(api.app), settings)


def schema(settings: Settings, **config: Any) -> BaseSchema:
    described = page(settings)
    [form] = described["paths"]["/explain"]["post"]["requestBody"]["content"].values()
    # Which classes there are depends on the model, and so does whether its last map explains it.
    form["schema"]["properties"]["label"]["enum"] = ["", *CLASSES]
    form["schema"]["properties"]["method"]["enum"] = ["occlusion", "gradcam", "integrated_gradients"]
    loaded = schemathesis.openapi.from_dict(described, config=SchemathesisConfig.from_dict(CONFIG | config))
    loaded.app = app
    return loaded


OPEN = schema(Settings())
LOCKED = schema(Settings(api_keys={DIGEST: "me"}), auth={"openapi": {"bearer": {"bearer": KEY}}})


@contextmanager
def environment(**values: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(f"SPECTACLES_{name}", value)
        yield


@pytest.fixture(scope="module")
def _server(make_bundle: Callable[..., Path]) -> Iterator[None]:
    with environment(DEVICE="cpu", ALLOWED_HOSTS="testserver", BUNDLE=str(make_bundle(*CLASSES))):
        yield


@pytest.fixture(scope="module")
def _keys(_server: None) -> Iterator[None]:
    with environment(API_KEYS=f"me:{DIGEST}"):
        yield


@OPEN.parametrize()
@pytest.mark.usefixtures("_server")
def test_a_server_without_keys_keeps_to_its_page(case: schemathesis.Case) -> None:
    case.call_and_validate()


@LOCKED.parametrize()
@pytest.mark.usefixtures("_keys")
def test_a_server_with_keys_keeps_to_its_page(case: schemathesis.Case) -> None:
    case.call_and_validate()


def test_the_page_tells_what_holds_on_this_server(tmp_path: Path) -> None:
    folder = {"SPECTACLES_OUTPUT_DIR": str(tmp_path)}
    with serve(**folder) as client:
        plain = client.get("/openapi.json").json()
    with serve(SPECTACLES_API_KEYS=f"me:{DIGEST}", SPECTACLES_ALLOW_URLS="1", **folder) as client:
        assert client.get("/openapi.json").status_code == 401
        full = client.get("/openapi.json", headers={"X-API-Key": KEY}).json()
    assert plain == page(Settings())
    assert full == page(Settings(api_keys={DIGEST: "me"}, allow_urls=True))
    assert "securitySchemes" not in plain["components"]
    assert set(full["components"]["securitySchemes"]) == {"bearer", "header"}
    asked_for = {
        path for path, operations in full["paths"].items() if any("security" in o for o in operations.values())
    }
    assert full["paths"].keys() - asked_for == {"/health/live", "/health/ready"}
    fields = [each["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
              for each in (plain, full)]  # fmt: skip
    assert [set(each) for each in fields] == [{"file"}, {"file", "url"}]
