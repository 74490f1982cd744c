"""ONNX from pixels, uint8 (batch, S, S, C): for servers that decode and resize themselves, TensorRT and Triton."""

from pathlib import Path
from typing import Any

import numpy as np

from spectacles.core.device import cpu_count
from spectacles.export import onnx_files
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import INPUT, PROBABILITIES, Shipped


def write(shipped: Shipped, precision: str, path: Path) -> None:
    model = onnx_files.halved(shipped.onnx) if precision == "fp16" else shipped.onnx
    onnx_files.write(model, shipped.metadata(precision), path)


def session_of(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_count()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def load(path: Path, name: str = INPUT) -> Run:
    session = session_of(path.read_bytes())

    def run(values: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = session.run([PROBABILITIES], {name: values})[0]
        return probabilities

    return run


FORMAT = Format((".onnx",), write, load, ("fp32", "fp16"))
