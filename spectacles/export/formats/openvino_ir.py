"""OpenVINO's own two files, from pixels: for Intel's processors and graphics cards."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from spectacles.core.device import cpu_count
from spectacles.core.fileio import atomic_path
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import PROBABILITIES, Shipped
from spectacles.models.engines import import_openvino

FILES = (".xml", ".bin")


def write(shipped: Shipped, precision: str, path: Path) -> None:
    openvino = import_openvino()
    model = openvino.Core().read_model(shipped.onnx.SerializeToString(), b"")
    save(model, shipped.metadata(precision), path, compress_to_fp16=precision == "fp16")


def save(model: Any, metadata: dict[str, str], path: Path, compress_to_fp16: bool = False) -> None:
    openvino = import_openvino()
    for name, value in metadata.items():
        model.set_rt_info(value, ["spectacles", name])
    with TemporaryDirectory() as folder:
        written = Path(folder, "model.xml")
        openvino.save_model(model, written, compress_to_fp16=compress_to_fp16)
        for suffix in reversed(FILES):  # the file that is opened last
            with atomic_path(path.with_suffix(suffix)) as temporary:
                temporary.write_bytes(written.with_suffix(suffix).read_bytes())


def load(path: Path) -> Run:
    openvino = import_openvino()
    # By default OpenVINO computes in bfloat16 where the processor can, which gives other answers.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpu_count()}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(pixels: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = compiled([pixels])[PROBABILITIES].copy()
        return probabilities

    return run


FORMAT = Format(FILES, write, load, ("fp32", "fp16"))
