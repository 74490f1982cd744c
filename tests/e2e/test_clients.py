"""The client in JavaScript, started by node, answers as predict.py does. Python's: tests/export/test_export.py."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import encoded, exif, photo

from spectacles.export import companions, web_page
from spectacles.export.formats import onnx_photo
from spectacles.export.shipped import Shipped
from spectacles.inference.predictor import Predictor
from spectacles.models.classifier import load_classifier

PACKAGES = (web_page.PACKAGE, "sharp@0.35.5")


@pytest.fixture
def packages(tmp_path: Path) -> None:
    """What the client imports, beside where it will lie."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not installed: the client in JavaScript is not run here")
    install = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", *PACKAGES]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {' and '.join(PACKAGES)}: {done.stderr[-200:]}")


@pytest.mark.usefixtures("packages")
def test_the_client_in_javascript(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle("cat", "dog", "bird", temperature=0.7)
    onnx_photo.write(Shipped(*load_classifier(bundle), bundle), "fp32", tmp_path / companions.FOR_CLIENTS)
    companions.write(tmp_path, ("cat", "dog", "bird"), [companions.FOR_CLIENTS])
    clear = photo(2, 70, 90)
    clear.putalpha(photo(6, 70, 90).convert("L"))
    contents = {
        "turned.jpg": encoded(photo(1, 50, 40), "JPEG", exif=exif(6), quality=95), "clear.png": encoded(clear),
        "grey.png": encoded(photo(3, 40, 45).convert("L")), "wide.png": encoded(photo(4, 120, 33)),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    command = ["node", tmp_path / "client.mjs", *contents]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = Predictor(bundle, "cpu").predict([tmp_path / name for name in contents])
    for line, name, answer in zip(done.stdout.splitlines(), contents, expected, strict=True):
        given = json.loads(line)
        assert given["file"] == name and list(given["probabilities"]) == ["cat", "dog", "bird"]
        assert tuple(given["probabilities"].values()) == pytest.approx(answer.probabilities, abs=1e-3), name
