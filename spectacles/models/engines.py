"""One network, several ways to run it: torch, ONNX Runtime, OpenVINO; the fastest one here that gives torch's answers.

An engine is a function: pixels, uint8 (B, S, S, C) -> outputs, float32 (B, D). Normalisation is part of it.
"""

import importlib.util
import json
import logging
import math
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from spectacles.core.device import cpu_count, to_device
from spectacles.core.errors import UserError
from spectacles.core.fileio import write_json
from spectacles.data.preprocessing import Preprocessing
from spectacles.metrics.calibration import softmax

log = logging.getLogger("spectacles")

Engine = Callable[[np.ndarray], np.ndarray]
ENGINES = ("torch", "onnxruntime", "openvino")
Difference = Callable[[np.ndarray, np.ndarray], float]
"""(outputs, torch's outputs) -> how far apart they are."""
TOLERANCE = 1e-4
"""Largest difference from torch: of a probability, or of a feature measured by the features' spread."""
ROUNDS = 4
CHUNK = 8
"""Pictures that a core computes at once, at most."""
ENOUGH_TO_BUILD, ENOUGH_TO_CHOOSE = 200, 2000
"""Images below which building another engine than torch, or measuring all of them, costs more than it saves."""


class FromPixels(nn.Module):
    """The network with its preprocessing's arithmetic in front."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.network(self.preprocessing.normalize(pixels))
        return outputs


def torch_engine(network: nn.Module, preprocessing: Preprocessing, device: torch.device) -> Engine:
    network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = network(preprocessing.normalize(to_device(pixels, device))).float().cpu().numpy()
        return outputs

    return run


def choose(
    network: nn.Module,
    preprocessing: Preprocessing,
    device: torch.device,
    memory: Path,
    engine: str = "auto",
    difference: Difference | None = None,
    pixels: np.ndarray | None = None,
    images: float = math.inf,
) -> tuple[str, Engine]:
    """(name, engine) for `network`; `auto` takes the fastest one that agrees with torch on real images.

    What was chosen is kept in the file `memory` for this machine and these versions. For few `images` torch is taken
    unmeasured. They agree where `difference` is at most TOLERANCE on `pixels` (B, S, S, C), real
    images; without them, pieces of two photographs that scikit-learn carries. Only the CPU has a choice: a GPU runs
    torch. Raises UserError for an engine asked for by name that is not installed, cannot run the network, or gives
    other answers.
    """
    reference = torch_engine(network, preprocessing, device)
    difference = difference or relative_difference
    if engine == "torch" or (engine == "auto" and device.type != "cpu"):
        return "torch", reference
    if device.type != "cpu":
        raise UserError(f"--engine {engine} runs on the CPU: use --device cpu, or --engine auto.")
    known = None
    if engine == "auto":
        known = _recall(memory) if images >= ENOUGH_TO_BUILD else "torch"
        if known == "torch" or (known is None and images < ENOUGH_TO_CHOOSE):
            return "torch", reference
    pixels = photographs(preprocessing) if pixels is None else pixels
    expected = reference(pixels)

    def build(name: str) -> Engine:
        if name == "torch":
            return reference
        built = _build(name, network, preprocessing)
        if not (apart := difference(built(pixels), expected)) <= TOLERANCE:
            raise UserError(f"--engine {name} gives other answers than torch (by {apart:.1g}): use --engine torch.")
        return built

    if engine != "auto":
        return engine, build(engine)
    built = _build_all([known] if known else ENGINES, build)
    if known is None:
        rates = _measure(built, pixels)
        known = max(rates, key=lambda name: rates[name])
        log.info("  engine: %s (%s images/s)", known, ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))
        _remember(memory, known, rates)
    return (known, built[known]) if known in built else ("torch", reference)


def relative_difference(outputs: np.ndarray, reference: np.ndarray) -> float:
    """Of features (B, D): the largest difference by the features' standard deviation."""
    return float(np.abs(outputs - reference).max() / max(float(reference.std()), 1e-12))


def probability_difference(logits: np.ndarray, reference: np.ndarray) -> float:
    """Of logits (B, K): the largest difference of a probability."""
    return float(np.abs(softmax(logits) - softmax(reference)).max())


def linear(layer: nn.Linear) -> Callable[[np.ndarray], np.ndarray]:
    """The layer as a function on the CPU, (B, D) -> (B, K) float32: bit for bit what torch makes of it there."""
    weight, bias = (tensor.detach().cpu().clone() for tensor in (layer.weight, layer.bias))

    def run(features: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = nn.functional.linear(torch.from_numpy(features), weight, bias).numpy()
        return outputs

    return run


def _build(name: str, network: nn.Module, preprocessing: Preprocessing) -> Engine:
    if importlib.util.find_spec(name) is None:
        raise UserError(f"--engine {name} is not installed: pip install {name}, or use --engine auto.")
    with tempfile.TemporaryDirectory() as folder:
        try:
            return BUILDERS[name](export(network, preprocessing, Path(folder)))
        except Exception as error:  # exporters and compilers raise their own for what they do not know
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]  # some append the whole graph
            raise UserError(f"--engine {name} cannot run this network ({reason}): use --engine torch.") from error


def _build_all(names: Sequence[str], build: Callable[[str], Engine]) -> dict[str, Engine]:
    """Those that can run the network and agree with torch."""
    built = {}
    for name in names:
        try:
            built[name] = build(name)
        except UserError as error:
            log.info("  %s", error)
    return built


def _measure(engines: dict[str, Engine], pixels: np.ndarray) -> dict[str, float]:
    """Images per second. In turn, so that a machine that slows down for a moment slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine(pixels)
            times[name].append(time.perf_counter() - started)
    return {name: round(len(pixels) / statistics.median(seconds), 1) for name, seconds in times.items()}


def _remember(memory: Path, engine: str, rates: dict[str, float]) -> None:
    try:
        write_json(memory, {"machine": machine(), "engine": engine, "images_per_second": rates})
    except OSError as error:  # a bundle in a read-only place is measured each time
        log.info("  the choice cannot be kept in %s: %s", memory, error)


def _recall(memory: Path) -> str | None:
    """What was measured on this machine; None where nothing usable was kept."""
    try:
        kept = json.loads(memory.read_text(encoding="utf-8"))
        return str(kept["engine"]) if kept["machine"] == machine() and kept["engine"] in ENGINES else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def machine() -> dict[str, object]:
    """What the choice depends on besides the network."""
    installed = {name: version(name) for name in ENGINES if importlib.util.find_spec(name)}
    return {"processor": _processor(), "cores": cpu_count(), **installed}


def _processor() -> str:
    """With its instruction sets, which decide more than its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wide = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx"))]
    return " ".join([facts.get("model name", platform.machine()), *wide])


def photographs(preprocessing: Preprocessing, count: int = 32) -> np.ndarray:
    """Real pictures that are always at hand: pieces of the two photographs in scikit-learn, uint8 (B, S, S, C)."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    side, rng = min(min(photo.size) for photo in photos) // 2, np.random.default_rng(0)
    pieces = []
    for number in range(count):
        photo = photos[number % len(photos)]
        x, y = int(rng.integers(photo.width - side)), int(rng.integers(photo.height - side))
        pieces.append(preprocessing.pixels(photo.crop((x, y, x + side, y + side))))
    return np.stack(pieces)


def export(network: nn.Module, preprocessing: Preprocessing, folder: Path) -> Path:
    """The network as an ONNX file, any batch size."""
    path = folder / "network.onnx"
    example = torch.zeros(2, *preprocessing.shape, dtype=torch.uint8)
    plain = FromPixels(network, preprocessing).eval()
    # The exporter that torch recommends takes 8 s for a small network, this one half a second; torch is pinned.
    # Where it fails, it prints the whole graph on the process's standard output, whatever its `verbose` says.
    with warnings.catch_warnings(), _silent_stdout(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            plain, (example,), str(path), dynamo=False, input_names=["pixels"], output_names=["outputs"],
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


def _openvino(path: Path) -> Engine:
    """A single picture on all cores, if they are free; of several each core computes its own, a few at a time: cores
    that need not wait for each other, and whose caches hold what they compute, are a quarter faster. May be called by
    several threads."""
    import openvino

    # By itself OpenVINO computes in bfloat16 where the processor can: other answers.
    cores, settings = cpu_count(), {"INFERENCE_NUM_THREADS": cpu_count(), "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.read_model(path.read_bytes(), b"")
    together = core.compile_model(model, "CPU", settings | {"NUM_STREAMS": 1}).create_infer_request()
    apart = core.compile_model(model, "CPU", settings | {"NUM_STREAMS": cores})
    idle: SimpleQueue[Any] = SimpleQueue()
    alone, pool = Lock(), ThreadPoolExecutor(cores, "openvino")

    def infer(request: Any, pixels: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = request.infer([pixels])[0].copy()
        return outputs

    blank = np.zeros((1, *(int(str(side)) for side in list(apart.input().partial_shape)[1:])), dtype=np.uint8)
    for _ in range(cores):
        request = apart.create_infer_request()
        infer(request, blank)  # two threads that are the first to call it can wait for each other for ever
        idle.put(request)

    def on_one_core(pixels: np.ndarray) -> np.ndarray:
        request = idle.get()
        try:
            return infer(request, pixels)
        finally:
            idle.put(request)

    def run(pixels: np.ndarray) -> np.ndarray:
        if len(pixels) == 1 and idle.qsize() == cores and alone.acquire(blocking=False):
            try:
                return infer(together, pixels)
            finally:
                alone.release()
        free = max(1, idle.qsize())
        pieces = min(len(pixels), free * math.ceil(len(pixels) / (free * CHUNK)))
        if pieces == 1:
            return on_one_core(pixels)
        return np.concatenate(list(pool.map(on_one_core, np.array_split(pixels, pieces))))

    return run


def num_streams(engine: str, device: torch.device) -> int:
    """How many threads may call an engine at once, each with up to CHUNK pictures, to use all cores."""
    return cpu_count() if engine == "openvino" and device.type == "cpu" else 1


BUILDERS: dict[str, Callable[[Path], Engine]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
