"""What runs a network that is given as an ONNX file: ONNX Runtime and OpenVINO. Nothing here needs torch.

An engine is a function: pixels, uint8 (B, S, S, C) -> the network's outputs by name, float32 (B, ...). It includes
normalisation.
"""

import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np

from spectacles.core.device import cpu_count
from spectacles.core.errors import UserError

Outputs = dict[str, np.ndarray]
Engine = Callable[[np.ndarray], Outputs]
ENGINES = ("torch", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16", "int8")
CHUNK = 8
"""Images that a core computes at once, at most."""


def build(name: str, onnx: Callable[[], bytes], precision: str = "fp32") -> Engine:
    """Another engine than torch, from what gives an ONNX file's content. Raises UserError where it is not installed or
    cannot run the network."""
    if not is_installed(name):
        raise UserError(f"--engine {name} is not installed: pip install {name}, or use --engine auto.")
    with explained(f"--engine {name}", "--engine torch"):
        return BUILDERS[name](onnx()) if precision == "fp32" else openvino_engine(onnx(), precision)


@contextmanager
def explained(flag: str, remedy: str) -> Iterator[None]:
    """Raises UserError for whatever an exporter or compiler raises; they have their own exceptions for what they do not
    support."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{flag} cannot run this network ({in_a_line(error)}): use {remedy}.") from error


def in_a_line(error: Exception) -> str:
    """Some exporters append the whole graph."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def onnxruntime_session(onnx: bytes) -> Any:
    """Of an ONNX file, on all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_count()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def import_openvino() -> Any:
    """The module. Importing it reports that to Google Analytics, by a package that is hidden from it here; there is no
    switch."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _onnxruntime(onnx: bytes) -> Engine:
    return session_engine(onnxruntime_session(onnx))


def session_engine(session: Any) -> Engine:
    names = [output.name for output in session.get_outputs()]

    def run(pixels: np.ndarray) -> Outputs:
        return dict(zip(names, session.run(names, {"pixels": pixels}), strict=True))

    return run


def openvino_engine(network: bytes, precision: str = "fp32", weights: bytes = b"") -> Engine:
    """From an ONNX file, or from OpenVINO's own .xml and .bin. What is not int8 is computed in bfloat16 for bf16 and
    int8, where the processor can.

    A single image is computed on all cores, if they are idle. Of several images each core computes its own, a few at
    a time: cores that do not wait for each other, with their data in their caches, are a quarter faster. Several
    threads may call it."""
    openvino, cores = import_openvino(), cpu_count()
    # By default OpenVINO computes in bfloat16 where the processor can, which gives other answers.
    settings = {"INFERENCE_NUM_THREADS": cores, "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16"}
    core = openvino.Core()
    model = core.read_model(network, weights)
    on_all_cores = core.compile_model(model, "CPU", settings | {"NUM_STREAMS": 1}).create_infer_request()
    all_cores_lock = Lock()
    streams = core.compile_model(model, "CPU", settings | {"NUM_STREAMS": cores})
    idle: SimpleQueue[Any] = SimpleQueue()
    pool = ThreadPoolExecutor(cores, "openvino")

    names = [output.any_name for output in streams.outputs]

    def infer(request: Any, pixels: np.ndarray) -> Outputs:
        found = request.infer([pixels])
        return {name: found[place].copy() for place, name in enumerate(names)}

    blank = np.zeros((1, *(int(str(side)) for side in list(streams.input().partial_shape)[1:])), dtype=np.uint8)
    for _ in range(cores):
        request = streams.create_infer_request()
        infer(request, blank)  # the first call: two threads that make it at the same time can deadlock
        idle.put(request)

    def on_one_core(pixels: np.ndarray) -> Outputs:
        request = idle.get()
        try:
            return infer(request, pixels)
        finally:
            idle.put(request)

    def run(pixels: np.ndarray) -> Outputs:
        if len(pixels) == 1 and idle.qsize() == cores and all_cores_lock.acquire(blocking=False):
            try:
                return infer(on_all_cores, pixels)
            finally:
                all_cores_lock.release()
        free = max(1, idle.qsize())
        chunks = min(len(pixels), free * math.ceil(len(pixels) / (free * CHUNK)))
        if chunks == 1:
            return on_one_core(pixels)
        parts = list(pool.map(on_one_core, np.array_split(pixels, chunks)))
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    return run


BUILDERS: dict[str, Callable[[bytes], Engine]] = {"onnxruntime": _onnxruntime, "openvino": openvino_engine}
"""From an ONNX file's content."""


def num_streams(engine: str) -> int:
    """How many threads should call an engine at once, each with up to CHUNK images, to use all cores."""
    return cpu_count() if engine == "openvino" else 1
