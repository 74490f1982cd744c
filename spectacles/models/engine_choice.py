"""Which engine runs a network here: the fastest one that agrees with torch, measured once per machine."""

import json
import logging
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from spectacles.core.device import cpu_count, release_freed_memory
from spectacles.core.errors import UserError
from spectacles.core.fileio import safe_name, write_json
from spectacles.data.preprocessing import Preprocessing
from spectacles.metrics.calibration import softmax
from spectacles.models import engines
from spectacles.models.engines import ENGINES, Engine, Outputs
from spectacles.models.sample_pictures import sample_pictures

log = logging.getLogger("spectacles")

Difference = Callable[[Outputs, Outputs], float]
"""(outputs, torch's outputs) -> how far apart they are."""
TOLERANCE = 1e-4
"""Largest difference from torch: of a probability, or of a feature relative to the features' standard deviation."""
CHECKED = 8
"""Pictures on which engines are compared."""
MEASURED = 16
"""Pictures on which they are timed: all engines together hold their memory for as many."""
ROUNDS = 4
MIN_IMAGES_TO_BUILD, MIN_IMAGES_TO_MEASURE = 200, 2000
"""For fewer images, building another engine than torch, or measuring all of them, costs more than it saves."""


class Runnable(Protocol):
    """A network, and what may run it."""

    @property
    def preprocessing(self) -> Preprocessing: ...

    @property
    def on_cpu(self) -> bool: ...

    @property
    def engines(self) -> Sequence[str]:
        """Names; the first one runs it where nothing is measured."""

    def torch_engine(self, precision: str = "fp32") -> Engine:
        """Raises UserError where torch is not installed."""

    def onnx(self) -> bytes:
        """The content of an ONNX file. Raises UserError where there is none."""

    def expected(self, pixels: np.ndarray) -> Outputs:
        """What torch gives for `sample_pictures`."""


def relative_difference(outputs: Outputs, reference: Outputs) -> float:
    """Of features (B, D): the largest difference, relative to the features' standard deviation."""
    return max(
        float(np.abs(outputs[name] - values).max() / max(float(values.std()), 1e-12))
        for name, values in reference.items()
    )


def probability_difference(outputs: Outputs, reference: Outputs) -> float:
    """Of logits (B, K): the largest difference of a probability."""
    [logits], [expected] = outputs.values(), reference.values()
    return float(np.abs(softmax(logits) - softmax(expected)).max())


def choose(
    model: Runnable,
    choice_file: Path,
    engine: str = "auto",
    difference: Difference = relative_difference,
    images: float = math.inf,
) -> tuple[str, Engine]:
    """(name, engine); `auto` takes the fastest one of the model's that agrees with torch: on `sample_pictures`
    `difference` is at most TOLERANCE.

    The choice is saved in `choice_file` for this machine and these versions. For few `images` the model's first engine
    is taken unmeasured. Raises UserError for an engine requested by name that is not installed, cannot run the network,
    or gives other answers.
    """
    if engine not in ("auto", "torch") and not model.on_cpu:
        raise UserError(f"--engine {engine} runs on the CPU: use --device cpu, or --engine auto.")
    names = [engine] if engine != "auto" else _candidates(model.engines, choice_file, images)
    if list(names) == ["torch"]:
        return "torch", model.torch_engine()
    pixels = sample_pictures(model.preprocessing, CHECKED)
    expected = model.expected(pixels)

    def build(name: str) -> Engine:
        if name == "torch":
            return model.torch_engine()
        built = engines.build(name, model.onnx)
        distance = difference(built(pixels), expected)
        if not distance <= TOLERANCE:
            raise UserError(f"--engine {name} gives other answers than torch (by {distance:.1g}): use --engine torch.")
        return built

    if engine != "auto":
        return engine, build(engine)
    built = _build_all(names, build)
    if not built:
        return "torch", model.torch_engine()
    fastest = next(iter(built))
    if len(names) > 1:
        rates = measure(built, sample_pictures(model.preprocessing, MEASURED))
        fastest = max(rates, key=lambda name: rates[name])
        log.info("  engine: %s (%s images/s)", fastest, ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))
        _write_rates(choice_file, rates)
    chosen = built.pop(fastest)
    built.clear()
    release_freed_memory()
    return fastest, chosen


def _candidates(names: Sequence[str], choice_file: Path, images: float) -> Sequence[str]:
    """One engine, or those to measure."""
    if len(names) == 1 or images < MIN_IMAGES_TO_BUILD:
        return names[:1]
    if rates := _read_rates(choice_file, names):
        return [max(rates, key=lambda name: rates[name])]
    return names if images >= MIN_IMAGES_TO_MEASURE else names[:1]


def choice_file(cache: Path, backbone: str, preprocessing: Preprocessing) -> Path:
    """Speed depends on the architecture and the size of its input, not on the weights."""
    size, channels = preprocessing.image_size, preprocessing.in_chans
    return cache / "engines" / f"{safe_name(backbone)}-{size}x{channels}.json"


def _build_all(names: Sequence[str], build: Callable[[str], Engine]) -> dict[str, Engine]:
    """Those that can run the network and agree with torch."""
    built = {}
    for name in names:
        try:
            built[name] = build(name)
        except UserError as error:
            log.info("  %s", error)
        release_freed_memory()  # of the export and the compiler
    return built


def measure(built: dict[str, Engine], pixels: np.ndarray) -> dict[str, float]:
    """Images per second. They are timed in turn, so that a moment in which the machine is slow affects all of them."""
    times: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(ROUNDS):
        for name, engine in built.items():
            started = time.perf_counter()
            engine(pixels)
            times[name].append(time.perf_counter() - started)
    return {name: round(len(pixels) / statistics.median(seconds), 1) for name, seconds in times.items()}


def _write_rates(path: Path, rates: dict[str, float]) -> None:
    try:
        write_json(path, {"machine": machine(), "images_per_second": rates})
    except OSError as error:  # a bundle in a read-only place is measured each time
        log.info("  the choice of engine cannot be saved in %s: %s", path, error)


def _read_rates(path: Path, names: Sequence[str]) -> dict[str, float]:
    """Of the named engines, as measured on this machine, whatever else is installed there; empty where nothing valid is
    saved."""
    here = machine()
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if any(saved["machine"].get(fact) != here.get(fact) for fact in ("processor", "cores", *names)):
            return {}
        return {name: float(rate) for name, rate in saved["images_per_second"].items() if name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def machine() -> dict[str, object]:
    """What the choice depends on besides the network."""
    installed = {name: version(name) for name in ENGINES if engines.is_installed(name)}
    return {"processor": processor(), "cores": cpu_count(), **installed}


def processor() -> str:
    """With its instruction sets, which decide more than its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wide = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx"))]
    return " ".join([facts.get("model name", platform.machine()), *wide])
