"""predict.py and api.py with nothing but what requirements-serve.txt installs: the answers are torch's."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import ROOT, clean_environment, run_command
from exported_bundles import exported
from pictures import encoded, noise

from spectacles.inference.predictor import Predictor

CLASSES = ("cat", "dog", "other")
HIDDEN = {"PYTHONPATH": str(Path(__file__).parents[1] / "helpers" / "hidden")}
SERVER = """
import io, json, sys
from fastapi.testclient import TestClient
import api
photo = open(sys.argv[1], "rb").read()
with TestClient(api.app, "http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
    while client.get("/health/ready").status_code != 200:
        pass
    answer = client.post("/predict", files={"file": photo}).json()
    explained = client.post("/explain", files={"file": photo}, data={"format": "json"}).json()
    refused = client.post("/explain", files={"file": photo}, data={"method": "gradcam"})
    print(json.dumps([answer, explained["method"], refused.status_code, refused.json()["detail"]]))
"""


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(*CLASSES, temperature=0.05, exported=exported(make_bundle(*CLASSES)))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    path.write_bytes(encoded(noise(1, 48, 36), "JPEG"))
    return path


@pytest.fixture(scope="module")
def expected(bundle: Path, photo: Path) -> list[float]:
    [answer] = Predictor(bundle, "cpu", engine="torch").predict([photo])
    return list(answer.probabilities)


def test_predict_answers_and_explains(bundle: Path, photo: Path, expected: list[float], tmp_path: Path) -> None:
    flags = ("--bundle", bundle, "--output_dir", tmp_path, "--top_k", 3)
    explained = ("--explain", "--explain_with", "occlusion")
    done = run_command("predict.py", photo, *flags, *explained, environment=HIDDEN)
    assert done.returncode == 0, done.stderr
    found = {name: float(percent) for name, percent in re.findall(r"(\w+) \(([\d.]+)%\)", done.stdout)}
    assert found == pytest.approx({name: 100 * p for name, p in zip(CLASSES, expected, strict=True)}, abs=0.06)
    [overlay] = tmp_path.rglob("*.png")
    assert overlay.name in done.stdout


def test_what_needs_gradients_says_what_to_use_instead(bundle: Path, photo: Path, tmp_path: Path) -> None:
    flags = ("--bundle", bundle, "--output_dir", tmp_path, "--explain", "--explain_with", "integrated_gradients")
    done = run_command("predict.py", photo, *flags, environment=HIDDEN)
    assert done.returncode == 2
    assert "integrated_gradients cannot explain this model: PyTorch is not installed here; occlusion" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_server_answers_and_explains(bundle: Path, photo: Path, expected: list[float]) -> None:
    environment = clean_environment() | HIDDEN | {"SPECTACLES_BUNDLE": str(bundle)}
    done = subprocess.run([sys.executable, "-c", SERVER, photo], cwd=ROOT, env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer, method, status, detail = json.loads(done.stdout.splitlines()[-1])
    assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-4)
    assert (method, status) == ("occlusion", 422)
    assert detail.startswith("gradcam cannot explain this model: PyTorch is not installed here; occlusion works")
