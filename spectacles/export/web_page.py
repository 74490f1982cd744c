"""A page that computes by itself, in a folder or in a single file: offline, and installable where a server gives it."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path
from spectacles.models.bundle import BundleInfo
from spectacles.models.ood import OODScorer
from spectacles.report.csp import inline_hash
from spectacles.report.prediction_page import BackEnd, prediction_page, read
from spectacles.report.saliency import colour_table

PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME = {
    "ort.mjs": ("ort.wasm.bundle.min.mjs", "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
    "ort.wasm": ("ort-wasm-simd-threaded.wasm", "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
}
"""Beside the page -> (the package's file below dist/, its sha256)."""
NETWORK = "network.onnx"
ICONS = (192, 512)
POLICY = (
    "default-src 'none'; script-src {script} blob: 'wasm-unsafe-eval'; style-src {style}; connect-src 'self' data:; "
    "img-src 'self' blob: data:; media-src blob: mediastream:; manifest-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class WebModel:
    """What the page knows besides the network, which takes `photo` and gives the outputs of `AllOutputs`."""

    info: BundleInfo
    model_id: str
    scorer: OODScorer | None
    head: np.ndarray | None
    """(K, D) float32, the weights of the last map's channels; None where the network has no such map."""


def runtime_files(folder: Path | None) -> dict[str, bytes]:
    """onnxruntime-web for a page, from `folder` (its dist/), or by npm. Raises UserError."""
    found = _by_npm() if folder is None else {name: _read(folder / file) for name, (file, _) in RUNTIME.items()}
    for name, (file, digest) in RUNTIME.items():
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise UserError(f"{file} is not the one of {PACKAGE} (its sha256 differs): get that version.")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--ort_web {path.parent} lacks {path.name} ({error.strerror}): give dist/ of {PACKAGE}."
        ) from None


def _by_npm() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", "") or str(error)).strip().rpartition("\n")[2]
            raise UserError(
                f"the page's runtime, {PACKAGE}, cannot be fetched by npm ({why}): give its dist/ by --ort_web FOLDER."
            ) from None
        [archive] = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as opened:
            return {name: opened.extractfile(f"package/dist/{file}").read() for name, (file, _) in RUNTIME.items()}  # type: ignore[union-attr]


def write_folder(folder: Path, model: WebModel, network: bytes, runtime: Mapping[str, bytes]) -> None:
    """index.html and what it needs beside it. Give the folder by any web server; https or localhost to install it."""
    head = '<link rel="manifest" href="manifest.webmanifest">\n<meta name="theme-color" content="#146c64">'
    files = {
        "index.html": _page(model, head).encode(),
        NETWORK: network,
        **runtime,
        "manifest.webmanifest": json.dumps(_manifest(), indent=1).encode(),
        **{f"icon-{side}.png": _icon(side) for side in ICONS},
        "labels.txt": "".join(f"{name}\n" for name in model.info.classes).encode(),
    }
    version = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in files.values())).hexdigest()[:16]
    worker = read("service-worker.js").replace("{{ version }}", version)
    files["service-worker.js"] = worker.replace("{{ files }}", json.dumps(["./", *files])).encode()
    for name, content in files.items():
        _write(folder / name, content)


def write_single_file(path: Path, model: WebModel, network: bytes, runtime: Mapping[str, bytes]) -> None:
    """A page that can be opened from the disk."""
    held = {**runtime, NETWORK: network}
    blocks = "".join(
        f'<script type="application/octet-stream" id="{name}">{base64.b64encode(content).decode()}</script>\n'
        for name, content in held.items()
    )
    before, start, script = _page(model, "").rpartition("<script>\n")
    _write(path, f"{before}{blocks}{start}{script}".encode())


def network_in(path: Path) -> bytes:
    """The network of a page in a folder or in a file."""
    if path.is_dir():
        return (path / NETWORK).read_bytes()
    text = path.read_text(encoding="utf-8").partition(f' id="{NETWORK}">')[2].partition("</script>")[0]
    return base64.b64decode(text)


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _page(model: WebModel, head: str) -> str:
    back_end = BackEnd(
        scripts=(f"const FACTS = {_script_json(_facts(model))};", read("page_browser.js")),
        types="image/jpeg,image/png,image/webp,image/bmp,image/gif,image/avif",
        formats="JPEG, PNG, WebP, BMP or GIF, up to 80 megapixels.",
        privacy="Photos stay on this device: this page sends nothing anywhere, and works without a network.",
        no_script="This page needs JavaScript.",
        access=read("page_live.html"),
    )
    page = prediction_page(back_end)
    policy = POLICY.format(script=inline_hash(page, "script"), style=inline_hash(page, "style"))
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return page.replace("<title>", f"{meta}\n{head}\n<title>" if head else f"{meta}\n<title>", 1)


def _script_json(value: object) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")


def _facts(model: WebModel) -> dict[str, Any]:
    """See page_browser.js."""
    info = model.info
    names = ("backbone", "classes", "label_column", "threshold", "multi_label", "label_thresholds", "temperature",
             "class_scales", "class_biases", "confidence_threshold", "ood_threshold", "metric",
             "metric_value")  # fmt: skip
    facts = {name: getattr(info, name) for name in names}
    scorer = model.scorer
    return {
        "model": {**facts, "model_id": model.model_id, "preprocessing": info.preprocessing.to_json()},
        "head": None if model.head is None else _base64(model.head),
        "ood": scorer and {
            "mean": _base64(scorer.mean), "components": _base64(scorer.components),
            "distances": scorer.distances.tolist(), "tail": scorer.tail.tolist(),
        },
        "turbo": base64.b64encode(colour_table().tobytes()).decode(),
    }  # fmt: skip


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def _manifest() -> dict[str, Any]:
    icons = [{"src": f"icon-{side}.png", "sizes": f"{side}x{side}", "type": "image/png"} for side in ICONS]
    return {
        "name": "Spectacles", "short_name": "Spectacles", "start_url": "./", "scope": "./", "display": "standalone",
        "background_color": "#f4f6f5", "theme_color": "#146c64", "icons": icons,
    }  # fmt: skip


def _icon(side: int) -> bytes:
    """A pair of spectacles."""
    scale = 4 * side / 32
    image = Image.new("RGB", (4 * side, 4 * side), "#f4f6f5")
    draw = ImageDraw.Draw(image)
    width = round(3 * scale)
    for centre in (8.5, 23.5):
        box = [round(value * scale) for value in (centre - 6, 11, centre + 6, 23)]
        draw.ellipse(box, outline="#146c64", width=width)
    draw.arc([round(value * scale) for value in (13, 14, 19, 20)], 200, 340, fill="#146c64", width=width)
    buffer = BytesIO()
    image.resize((side, side), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()
