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

import numpy as np
from PIL import Image

from spectacles.core.device import cpu_count
from spectacles.core.errors import UserError
from spectacles.core.fileio import safe_name, write_json
from spectacles.data.preprocessing import Preprocessing
from spectacles.metrics.calibration import softmax
from spectacles.models import engines
from spectacles.models.engines import ENGINES, Engine, PixelNetwork

log = logging.getLogger("spectacles")

Difference = Callable[[np.ndarray, np.ndarray], float]
"""(outputs, torch's outputs) -> how far apart they are."""
TOLERANCE = 1e-4
"""Largest difference from torch: of a probability, or of a feature relative to the features' standard deviation."""
ROUNDS = 4
MIN_IMAGES_TO_BUILD, MIN_IMAGES_TO_MEASURE = 200, 2000
"""For fewer images, building another engine than torch, or measuring all of them, costs more than it saves."""


def relative_difference(outputs: np.ndarray, reference: np.ndarray) -> float:
    """Of features (B, D): the largest difference, relative to the features' standard deviation."""
    return float(np.abs(outputs - reference).max() / max(float(reference.std()), 1e-12))


def probability_difference(logits: np.ndarray, reference: np.ndarray) -> float:
    """Of logits (B, K): the largest difference of a probability."""
    return float(np.abs(softmax(logits) - softmax(reference)).max())


def choose(
    model: PixelNetwork,
    choice_file: Path,
    engine: str = "auto",
    difference: Difference = relative_difference,
    images: float = math.inf,
) -> tuple[str, Engine]:
    """(name, engine); `auto` takes the fastest one that agrees with torch: on parts of two photographs `difference` is
    at most TOLERANCE.

    The choice is saved in `choice_file` for this machine and these versions. For few `images` torch is taken
    unmeasured. Only the CPU has a choice: a GPU runs torch. Raises UserError for an engine requested by name that is
    not installed, cannot run the network, or gives other answers.
    """
    torch_engine = engines.torch_engine(model)
    on_cpu = model.device.type == "cpu"
    if engine == "torch" or (engine == "auto" and not on_cpu):
        return "torch", torch_engine
    if not on_cpu:
        raise UserError(f"--engine {engine} runs on the CPU: use --device cpu, or --engine auto.")
    chosen = None
    if engine == "auto":
        chosen = _read_choice(choice_file) if images >= MIN_IMAGES_TO_BUILD else "torch"
        if chosen == "torch" or (chosen is None and images < MIN_IMAGES_TO_MEASURE):
            return "torch", torch_engine
    pixels = photographs(model.preprocessing)
    expected = torch_engine(pixels)

    def build(name: str) -> Engine:
        if name == "torch":
            return torch_engine
        built = engines.build(name, model)
        distance = difference(built(pixels), expected)
        if not distance <= TOLERANCE:
            raise UserError(f"--engine {name} gives other answers than torch (by {distance:.1g}): use --engine torch.")
        return built

    if engine != "auto":
        return engine, build(engine)
    built = _build_all([chosen] if chosen else ENGINES, build)
    if chosen is None:
        rates = measure(built, pixels)
        chosen = max(rates, key=lambda name: rates[name])
        log.info("  engine: %s (%s images/s)", chosen, ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))
        _write_choice(choice_file, chosen, rates)
    return (chosen, built[chosen]) if chosen in built else ("torch", torch_engine)


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


def _write_choice(path: Path, engine: str, rates: dict[str, float]) -> None:
    try:
        write_json(path, {"machine": machine(), "engine": engine, "images_per_second": rates})
    except OSError as error:  # a bundle in a read-only place is measured each time
        log.info("  the choice of engine cannot be saved in %s: %s", path, error)


def _read_choice(path: Path) -> str | None:
    """What was chosen on this machine; None where there is no valid choice."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return str(saved["engine"]) if saved["machine"] == machine() and saved["engine"] in ENGINES else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def photographs(preprocessing: Preprocessing, count: int = 32) -> np.ndarray:
    """Real images that are always available: parts of the two photographs in scikit-learn, uint8 (B, S, S, C)."""
    from sklearn.datasets import load_sample_images  # imports scipy, so only where engines are measured

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    side, rng = min(min(photo.size) for photo in photos) // 2, np.random.default_rng(0)
    parts = []
    for number in range(count):
        photo = photos[number % len(photos)]
        x, y = int(rng.integers(photo.width - side)), int(rng.integers(photo.height - side))
        parts.append(preprocessing.pixels(photo.crop((x, y, x + side, y + side))))
    return np.stack(parts)
