"""A file that export.py wrote in the place of a bundle: computed by its own runtime, decided by its own metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectacles.core.errors import UserError
from spectacles.models import engines
from spectacles.models.engines import Engine, Outputs
from spectacles.models.file_metadata import PHOTO, SECTION, Described, from_metadata

ENGINE_OF = {".onnx": "onnxruntime", ".xml": "openvino"}
"""Suffix -> what computes the file."""


class Opened(NamedTuple):
    described: Described
    engine: str
    run: Engine
    takes_photos: bool
    """Whether `run` may be given photos, uint8 (B, H, W, 3) of any size, which it crops and resizes."""


def is_exported(path: Path) -> bool:
    """Whether it is not the folder of a bundle."""
    return path.suffix in ENGINE_OF or path.is_file()


def open_file(path: Path, engine: str = "auto", precision: str = "auto") -> Opened:
    """Raises UserError where export.py has not written it, or where another engine or precision is asked for."""
    runtime = ENGINE_OF.get(path.suffix, "")
    if not runtime:
        raise UserError(f"--bundle {path}: of exported files only {' and '.join(ENGINE_OF)} can be used, or a bundle.")
    if engine not in ("auto", runtime):
        raise UserError(f"--engine {engine}: {path.name} runs on {runtime}; use --engine auto.")
    if not engines.is_installed(runtime):
        raise UserError(f"{path} takes {runtime}, which is not installed: pip install {runtime}.")
    with _explained(path):
        metadata, run, takes_photos = OPENERS[runtime](path)
    try:
        described = from_metadata(metadata)
    except UserError as error:
        raise UserError(f"{path} is not a file of this version's export.py ({error}): export it again.") from error
    if precision not in ("auto", described.precision):
        raise UserError(f"--precision {precision}: {path.name} is stored in {described.precision}; use auto.")
    return Opened(described, runtime, run, takes_photos)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raises UserError for whatever a runtime raises for a file that it cannot load."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read ({error.strerror}).") from error
    except Exception as error:
        raise UserError(f"{path} cannot be loaded ({engines.in_a_line(error)}): export it again.") from error


def _onnx(path: Path) -> tuple[Mapping[str, str], Engine, bool]:
    session = engines.onnxruntime_session(path.read_bytes())
    takes_photos = session.get_inputs()[0].name == PHOTO
    run = _one_by_one(session) if takes_photos else engines.session_engine(session)
    return session.get_modelmeta().custom_metadata_map, run, takes_photos


def _one_by_one(session: Any) -> Engine:
    names = [output.name for output in session.get_outputs()]

    def run(photos: np.ndarray) -> Outputs:
        """uint8 (B, H, W, 3), or grey (B, H, W, 1)."""
        colour = np.broadcast_to(photos, (*photos.shape[:3], 3))
        answers = [session.run(names, {PHOTO: np.ascontiguousarray(photo)}) for photo in colour]
        return {name: np.concatenate(parts) for name, parts in zip(names, zip(*answers, strict=True), strict=True)}

    return run


def _openvino(path: Path) -> tuple[Mapping[str, str], Engine, bool]:
    network, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    model = engines.import_openvino().Core().read_model(network, weights)
    facts = model.get_rt_info()[SECTION].items() if model.has_rt_info(SECTION) else ()
    metadata = {name: value.astype(str) for name, value in facts}
    return metadata, engines.openvino_engine(network, weights=weights), False


OPENERS: dict[str, Callable[[Path], tuple[Mapping[str, str], Engine, bool]]] = {
    "onnxruntime": _onnx,
    "openvino": _openvino,
}
"""By runtime: a file -> (its metadata, what computes it, whether it takes photos)."""
