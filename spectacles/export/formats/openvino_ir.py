"""OpenVINO's own two files, from pixels: for Intel's processors and graphics cards."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from spectacles.core.device import cpu_count
from spectacles.core.fileio import atomic_path
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import PROBABILITIES, Shipped

FILES = (".xml", ".bin")


def write(shipped: Shipped, precision: str, path: Path) -> None:
    openvino = _openvino()
    model = openvino.Core().read_model(shipped.onnx.SerializeToString(), b"")
    save(model, shipped.metadata(precision), path, compress_to_fp16=precision == "fp16")


def save(model: Any, metadata: dict[str, str], path: Path, compress_to_fp16: bool = False) -> None:
    openvino = _openvino()
    for name, value in metadata.items():
        model.set_rt_info(value, ["spectacles", name])
    with TemporaryDirectory() as folder:
        written = Path(folder, "model.xml")
        openvino.save_model(model, written, compress_to_fp16=compress_to_fp16)
        for suffix in reversed(FILES):  # the file that is opened last
            with atomic_path(path.with_suffix(suffix)) as temporary:
                temporary.write_bytes(written.with_suffix(suffix).read_bytes())


def load(path: Path) -> Run:
    openvino = _openvino()
    # By default OpenVINO computes in bfloat16 where the processor can, which gives other answers.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpu_count()}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(pixels: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = compiled([pixels])[PROBABILITIES].copy()
        return probabilities

    return run


def _openvino() -> Any:
    # Importing it reports that to Google Analytics, by this package where it is found; there is no switch.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


FORMAT = Format(FILES, write, load, ("fp32", "fp16"))
