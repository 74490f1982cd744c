"""The page that computes by itself, without a browser; tests/e2e/test_web.py opens it."""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from spectacles.core.errors import UserError
from spectacles.export import web_page
from spectacles.export.web_page import WebModel
from spectacles.models.bundle import read_bundle_info

NETWORK = b"a network"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with stand-ins for the runtime's files."""
    (folder := tmp_path / "dist").mkdir()
    known = {}
    for name, (file, _) in web_page.RUNTIME.items():
        (folder / file).write_bytes(name.encode())
        known[name] = (file, hashlib.sha256(name.encode()).hexdigest())
    monkeypatch.setattr(web_page, "RUNTIME", known)
    return folder


@pytest.fixture
def model(make_bundle) -> WebModel:
    info, model_id = read_bundle_info(make_bundle("</script><b>", "{{ privacy }}", threshold=0.25))
    return WebModel(info, model_id, None, np.array([[1.5, -2.0], [0.25, 3.0]], dtype=np.float32))


def test_a_folder_holds_all_that_the_page_needs_and_its_worker_keeps_all_of_it(model, runtime, tmp_path):
    (folder := tmp_path / "web").mkdir()
    web_page.write_folder(folder, model, NETWORK, web_page.runtime_files(runtime))
    worker = (folder / "service-worker.js").read_text()
    kept = json.loads(re.search(r"FILES = (\[.*\]);", worker)[1])
    assert set(kept) == {path.name for path in folder.iterdir()} - {"service-worker.js"} | {"./"}
    icons = json.loads((folder / "manifest.webmanifest").read_text())["icons"]
    assert all((folder / icon["src"]).is_file() for icon in icons)
    assert web_page.network_in(folder) == NETWORK
    version = re.search(r'CACHE = "(.*)"', worker)[1]
    web_page.write_folder(folder, model, b"another network", web_page.runtime_files(runtime))
    assert version not in (folder / "service-worker.js").read_text()


def test_a_single_file_holds_everything_and_its_policy_allows_its_own_script_only(model, runtime, tmp_path):
    page = tmp_path / "page.html"
    web_page.write_single_file(page, model, NETWORK, web_page.runtime_files(runtime))
    text = page.read_text()
    assert web_page.network_in(page) == NETWORK
    blocks = dict(re.findall(r'<script type="application/octet-stream" id="(.*?)">(.*?)</script>', text))
    assert {name: base64.b64decode(held) for name, held in blocks.items()} == {
        "ort.mjs": b"ort.mjs", "ort.wasm": b"ort.wasm", "network.onnx": NETWORK
    }  # fmt: skip
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "http" not in policy


def test_the_page_knows_the_model_and_no_class_name_can_end_its_script(model, runtime, tmp_path):
    (folder := tmp_path / "web").mkdir()
    web_page.write_folder(folder, model, NETWORK, web_page.runtime_files(runtime))
    facts = json.loads(re.search(r"const FACTS = (.*);\n", (folder / "index.html").read_text())[1])
    assert facts["model"]["classes"] == ["</script><b>", "{{ privacy }}"] and facts["model"]["threshold"] == 0.25
    assert np.frombuffer(base64.b64decode(facts["head"]), "<f4").tolist() == [1.5, -2.0, 0.25, 3.0]
    assert len(base64.b64decode(facts["turbo"])) == 256 * 3 and facts["ood"] is None


def test_another_runtime_than_the_known_one_is_refused(runtime):
    (runtime / "ort-wasm-simd-threaded.wasm").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"ort-wasm-simd-threaded\.wasm is not the one of onnxruntime-web@"):
        web_page.runtime_files(runtime)
    (runtime / "ort.wasm.bundle.min.mjs").unlink()
    with pytest.raises(UserError, match=r"lacks ort\.wasm.bundle\.min\.mjs"):
        web_page.runtime_files(runtime)


def test_without_npm_the_remedy_is_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be fetched by npm .*--ort_web FOLDER"):
        web_page.runtime_files(None)
