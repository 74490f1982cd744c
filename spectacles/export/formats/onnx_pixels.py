"""ONNX from pixels, uint8 (batch, S, S, C): for servers that decode and resize themselves, TensorRT and Triton."""

import shlex
from pathlib import Path

import numpy as np

from spectacles.export import onnx_files
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import INPUT, PROBABILITIES, Shipped
from spectacles.models.engines import onnxruntime_session


def write(shipped: Shipped, precision: str, path: Path) -> None:
    model = onnx_files.halved(shipped.onnx) if precision == "fp16" else shipped.onnx
    onnx_files.write(model, shipped.metadata(precision), path)


def trtexec(path: Path, shipped: Shipped) -> str:
    """The command by which TensorRT builds its engine for an NVIDIA card, in fp16, for batches up to 32."""
    sides = "x".join(map(str, shipped.info.preprocessing.shape))
    shapes = " ".join(
        f"--{which}Shapes={INPUT}:{batch}x{sides}" for which, batch in (("min", 1), ("opt", 8), ("max", 32))
    )
    return f"trtexec --onnx={shlex.quote(str(path))} --fp16 {shapes} --saveEngine={shlex.quote(f'{path}.engine')}"


def load(path: Path, name: str = INPUT) -> Run:
    session = onnxruntime_session(path.read_bytes())

    def run(values: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = session.run([PROBABILITIES], {name: values})[0]
        return probabilities

    return run


FORMAT = Format((".onnx",), write, load, ("fp32", "fp16"))
