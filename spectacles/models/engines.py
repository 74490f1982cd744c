"""One network, several ways to run it: torch, ONNX Runtime, OpenVINO.

An engine is a function: pixels, uint8 (B, S, S, C) -> outputs, float32 (B, D). It includes normalisation.
"""

import importlib.util
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn

from spectacles.core.device import cpu_count
from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.models.normalization import Normalize
from spectacles.models.torch_device import to_device

Engine = Callable[[np.ndarray], np.ndarray]
ENGINES = ("torch", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16", "int8")
CHUNK = 8
"""Images that a core computes at once, at most."""


@dataclass(frozen=True)
class PixelNetwork:
    """What an engine runs, and where."""

    network: nn.Module
    preprocessing: Preprocessing
    device: torch.device


class FromPixels(nn.Module):
    """A network preceded by the arithmetic of its preprocessing."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalize, self.network = Normalize(preprocessing), network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.network(self.normalize(pixels))
        return outputs


def torch_engine(model: PixelNetwork, precision: str = "fp32") -> Engine:
    """Moves the network to the device and sets it to evaluation mode. With bf16, torch computes in bfloat16 what loses
    little by it (autocast)."""
    from_pixels = FromPixels(model.network, model.preprocessing).eval()
    from_pixels.to(device=model.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.autocast(model.device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            outputs: np.ndarray = from_pixels(to_device(pixels, model.device)).float().cpu().numpy()
        return outputs

    return run


def linear(layer: nn.Linear) -> Callable[[np.ndarray], np.ndarray]:
    """The layer as a function on the CPU, (B, D) -> (B, K) float32, with the same bits as the layer itself."""
    weight, bias = (tensor.detach().cpu().clone() for tensor in (layer.weight, layer.bias))

    def run(features: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = nn.functional.linear(torch.from_numpy(features), weight, bias).numpy()
        return outputs

    return run


def build(name: str, model: PixelNetwork, precision: str = "fp32") -> Engine:
    """Another engine than torch. Raises UserError where it is not installed or cannot run the network."""
    if not is_installed(name):
        raise UserError(f"--engine {name} is not installed: pip install {name}, or use --engine auto.")
    with tempfile.TemporaryDirectory() as folder, explained(f"--engine {name}", "--engine torch"):
        path = export(model, Path(folder))
        return BUILDERS[name](path) if precision == "fp32" else openvino_engine(path, precision)


@contextmanager
def explained(flag: str, remedy: str) -> Iterator[None]:
    """Raises UserError for whatever an exporter or compiler raises; they have their own exceptions for what they do not
    support, and some append the whole graph."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{flag} cannot run this network ({reason}): use {remedy}.") from error


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def export(model: PixelNetwork, folder: Path) -> Path:
    """The network as an ONNX file, for any batch size."""
    path = folder / "network.onnx"
    example = torch.zeros(2, *model.preprocessing.shape, dtype=torch.uint8)
    from_pixels = FromPixels(model.network, model.preprocessing).eval()
    # The exporter that torch recommends takes 8 s for a small network, this one half a second; torch is pinned.
    # Where it fails, it prints the whole graph on the process's standard output, whatever its `verbose` says.
    with warnings.catch_warnings(), _silent_stdout(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            from_pixels, (example,), str(path), dynamo=False, input_names=["pixels"], output_names=["outputs"],
            dynamic_axes={"pixels": {0: "batch"}, "outputs": {0: "batch"}},
        )  # fmt: skip
    return path


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Sends file descriptor 1, on which C++ code writes, to the null device."""
    with os.fdopen(os.dup(1), "wb") as stdout, open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(stdout.fileno(), 1)


def _onnxruntime(path: Path) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_count()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(pixels: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = session.run(None, {"pixels": pixels})[0]
        return outputs

    return run


def openvino_engine(path: Path, precision: str = "fp32") -> Engine:
    """From an ONNX file, or from OpenVINO's own two, of which `path` is the .xml. What is not int8 is computed in
    bfloat16 for bf16 and int8, where the processor can.

    A single image is computed on all cores, if they are idle. Of several images each core computes its own, a few at
    a time: cores that do not wait for each other, with their data in their caches, are a quarter faster. Several
    threads may call it."""
    # Importing openvino reports that to Google Analytics, by this package where it is found; there is no switch.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    cores = cpu_count()
    # By default OpenVINO computes in bfloat16 where the processor can, which gives other answers.
    settings = {"INFERENCE_NUM_THREADS": cores, "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16"}
    core = openvino.Core()
    model = core.read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes() if path.suffix == ".xml" else b"")
    on_all_cores = core.compile_model(model, "CPU", settings | {"NUM_STREAMS": 1}).create_infer_request()
    all_cores_lock = Lock()
    streams = core.compile_model(model, "CPU", settings | {"NUM_STREAMS": cores})
    idle: SimpleQueue[Any] = SimpleQueue()
    pool = ThreadPoolExecutor(cores, "openvino")

    def infer(request: Any, pixels: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = request.infer([pixels])[0].copy()
        return outputs

    blank = np.zeros((1, *(int(str(side)) for side in list(streams.input().partial_shape)[1:])), dtype=np.uint8)
    for _ in range(cores):
        request = streams.create_infer_request()
        infer(request, blank)  # the first call: two threads that make it at the same time can deadlock
        idle.put(request)

    def on_one_core(pixels: np.ndarray) -> np.ndarray:
        request = idle.get()
        try:
            return infer(request, pixels)
        finally:
            idle.put(request)

    def run(pixels: np.ndarray) -> np.ndarray:
        if len(pixels) == 1 and idle.qsize() == cores and all_cores_lock.acquire(blocking=False):
            try:
                return infer(on_all_cores, pixels)
            finally:
                all_cores_lock.release()
        free = max(1, idle.qsize())
        chunks = min(len(pixels), free * math.ceil(len(pixels) / (free * CHUNK)))
        if chunks == 1:
            return on_one_core(pixels)
        return np.concatenate(list(pool.map(on_one_core, np.array_split(pixels, chunks))))

    return run


BUILDERS: dict[str, Callable[[Path], Engine]] = {"onnxruntime": _onnxruntime, "openvino": openvino_engine}
"""From the path of an ONNX file."""


def num_streams(engine: str, device: str) -> int:
    """How many threads should call an engine at once, each with up to CHUNK images, to use all cores."""
    return cpu_count() if engine == "openvino" and device == "cpu" else 1
