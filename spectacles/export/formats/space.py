"""A folder ready for a Gradio space: a page, what it takes, the model and its card. It runs on any machine too."""

import json
import re
from pathlib import Path

from spectacles.core.fileio import atomic_write
from spectacles.export.formats import onnx_photo
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import Shipped

TEMPLATES = Path(__file__).parents[1] / "space"
MODEL, APP, REQUIREMENTS = "model.onnx", "app.py", "requirements.txt"


def write(shipped: Shipped, precision: str, path: Path) -> None:
    path.mkdir(exist_ok=True)
    onnx_photo.write(shipped, precision, path / MODEL)
    atomic_write(path / APP, (TEMPLATES / f"{APP}.txt").read_text(encoding="utf-8"))
    atomic_write(path / REQUIREMENTS, _requirements())
    atomic_write(path / "README.md", _front_matter(shipped) + (shipped.model_card or f"# {_title(shipped)}\n"))


def _requirements() -> str:
    return (TEMPLATES / REQUIREMENTS).read_text(encoding="utf-8")


def _title(shipped: Shipped) -> str:
    return ", ".join(shipped.info.classes[:10])


def _front_matter(shipped: Shipped) -> str:
    """What a space is configured by; strings in JSON are strings in YAML."""
    version = re.search(r"^gradio==(\S+)", _requirements(), re.MULTILINE)
    assert version
    facts = {"title": _title(shipped)[:100], "sdk": "gradio", "sdk_version": version[1], "app_file": APP}
    return "".join(["---\n", *(f"{name}: {json.dumps(value)}\n" for name, value in facts.items()), "---\n\n"])


def load(path: Path) -> Run:
    return onnx_photo.load(path / MODEL)


FORMAT = Format(("",), write, load, ("fp32", "fp16"), takes_photos=True)
