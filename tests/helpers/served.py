"""The server in this process, called without a socket."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient

import api
from spectacles.server import admission
from spectacles.server.service import LOADING


@contextmanager
def serve(app: Any = api.app, /, **environment: str) -> Iterator[TestClient]:
    """A client of a server that has loaded its model or reported why it cannot."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SPECTACLES_") and name != "SPECTACLES_ENGINE"]:
            patch.delenv(name)
        patch.setenv("SPECTACLES_DEVICE", "cpu")
        patch.setattr(admission, "LINGER_SECONDS", 0.0)
        for name, value in environment.items():
            patch.setenv(name, value)
        # As a socket would have it: an error of ours is a 500.
        base_url, machine = "http://127.0.0.1:8000", ("127.0.0.1", 50000)
        with TestClient(app, base_url, raise_server_exceptions=False, client=machine) as client:
            while client.get("/health/ready").json().get("detail") == LOADING:
                pass
            yield client
