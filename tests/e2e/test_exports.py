"""Exports that take environments of their own, for real: TFLite, and a Gradio space that is clicked through. For `make
exports`: fetches packages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import network_trace
import numpy as np
import pytest
from pictures import photo
from tracking_servers import answers, free_port, until

from spectacles.export import companions
from spectacles.export.formats import space, tflite
from spectacles.export.shipped import Shipped
from spectacles.inference.predictor import Predictor
from spectacles.models.classifier import load_classifier

pytestmark = pytest.mark.exports


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("cat", "dog", "bird", temperature=0.7)


def shipped(bundle: Path) -> Shipped:
    return Shipped(*load_classifier(bundle), bundle, model_card="# A card\n")


def test_tflite_gives_the_models_answers_and_an_app_holds_it(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / companions.FOR_ANDROID
    tflite.FORMAT.write(shipped(bundle), "fp32", path)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    assert tflite.FORMAT.load
    found = tflite.FORMAT.load(path)(pixels)
    np.testing.assert_allclose(found, Predictor(bundle, "cpu").probabilities(pixels), atol=1e-5)
    with zipfile.ZipFile(path) as archive:
        assert json.loads(json.loads(archive.read("metadata.json"))["classes"]) == ["cat", "dog", "bird"]
    companions.write(tmp_path, ("cat", "dog", "bird"), [path.name])
    assets = tmp_path / "android" / "app" / "src" / "main" / "assets"
    assert {each.name for each in assets.iterdir()} == {"model.tflite", "labels.txt", "metadata.json"}


@pytest.fixture
def page_address(bundle: Path, tmp_path: Path) -> Iterator[str]:
    """Of the started space, whose connections are recorded where strace is installed."""
    space.FORMAT.write(shipped(bundle), "fp32", folder := tmp_path / "space")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    install = ["--python", python, "install", "--quiet", "--only-binary", ":all:", "-r", folder / "requirements.txt"]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    port = free_port()
    environment = os.environ | network_trace.new_home(tmp_path) | {"GRADIO_SERVER_PORT": str(port)}
    command = [*network_trace.tracer(tmp_path), python, folder / "app.py"]
    with (tmp_path / "app.log").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: process.poll() is not None or answers(address), "the space has started")
        assert process.poll() is None, (tmp_path / "app.log").read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # strace itself ignores it
        process.wait()


def test_a_space_is_clicked_through_and_reports_nothing(
    page_address: str, bundle: Path, browser: Any, tmp_path: Path
) -> None:
    photo(1, 300, 200).save(tmp_path / "photo.jpg", quality=95)
    [expected] = Predictor(bundle, "cpu").predict([tmp_path / "photo.jpg"])
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_address)
    page.set_input_files("input[type=file]", tmp_path / "photo.jpg")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_function("document.querySelector('textarea').value !== ''")
    assert page.locator("textarea").input_value() == f"{expected.label} ({expected.confidence:.0%})"
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:1500])
    page.get_by_role("button", name="Clear").click()
    page.set_input_files("input[type=file]", tmp_path / "broken.jpg")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("cannot be read as an image").first.wait_for()
    assert [url for url in asked if not url.startswith((page_address, "blob:", "data:"))] == []
    if network_trace.tracer(tmp_path):
        assert network_trace.addresses(tmp_path) == set() and network_trace.reports(tmp_path) == []
