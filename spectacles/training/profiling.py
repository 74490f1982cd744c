"""Cost of backbones on this machine: measured, tabulated and plotted."""

import logging
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spectacles.core.config import ModelConfig, TrainConfig
from spectacles.core.device import resolve_device
from spectacles.core.errors import UserError
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import engine_choice
from spectacles.models.classifier import Classifier
from spectacles.models.engines import Engine
from spectacles.models.sample_pictures import sample_pictures
from spectacles.models.torch_device import prepare_device
from spectacles.models.torch_network import PixelNetwork
from spectacles.report.style import (
    COLOURS,
    MUTED,
    Panel,
    add_legend,
    draw_placeholder,
    new_figure,
    nth_colour,
    save,
    shorten,
    tick_plain_log,
)
from spectacles.training import time_budget

log = logging.getLogger("spectacles")

P = ParamSpec("P")
T = TypeVar("T")
Build = Callable[[ModelConfig, int], tuple[Classifier, Preprocessing]]
"""(settings, number of classes) -> the network and its preprocessing: model.build."""

LATENCY_CALLS, THROUGHPUT_CALLS = 200, 10
MIN_CALLS, MAX_SECONDS = 20, 5.0
"""At most so many calls are timed; after MAX_SECONDS no more, but at least MIN_CALLS."""
BATCH = 32
"""Images per call in the measurement of throughput."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Profile:
    """For images of `image_size`; times include the network and its normalisation, but not decoding."""

    image_size: int
    unfreeze: str
    """Layer groups that fine-tuning trains, which determine its speed."""
    parameters: int
    """Including a head for as many classes as the data have."""
    macs: int
    """Multiply-accumulates of one image, in convolutions, linear layers and attention."""
    weights_mb: float
    """Size of the weights file, in 10^6 bytes."""
    engine: str
    embedding_images_per_second: float
    """In batches of --batch_size."""
    training_images_per_second: float
    """Forward and backward pass; augmentation and the optimiser are not included."""
    latency_p50_ms: float
    """Of a single image."""
    latency_p95_ms: float
    latency_p99_ms: float
    batch32_images_per_second: float
    peak_memory_mb: float | None
    """Largest memory of the measuring process (all engines, and training on at most 16 images), including Python and
    its libraries; on a GPU, the memory allocated there. None where the system does not provide it."""


RESULTS = ("accuracy", "accuracy_low", "accuracy_high", "val_images", "train_seconds")
"""Columns of a backbone that was trained: validation accuracy, its 95 % interval, ..."""
COLUMNS = ("backbone", *(field.name for field in fields(Profile)), *RESULTS, "problem")
"""Of benchmark.csv, one row per backbone; `problem` is the reason where the others are empty."""


def run_isolated(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls `function` in a new process, with memory and threads of its own. Raises what it raises, and UserError where
    the process was killed. Function and arguments must be picklable."""
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, spawn, _log_to_stdout) as pool:
            return pool.submit(function, *args, **kwargs).result()
    except BrokenProcessPool as error:
        raise UserError("its process was killed, most likely because memory ran out: try a smaller --image_size or "
                        "--batch_size.") from error  # fmt: skip


def _log_to_stdout() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stdout)
    log.setLevel(logging.INFO)


def profile(config: TrainConfig, build: Build, num_classes: int, choice_file: Path) -> Profile:
    """The costs of a resolved config's backbone, measured in this process.

    `choice_file` stores which engine was the fastest. Raises UserError for a backbone that cannot be built.
    """
    assert config.image_size is not None and config.unfreeze is not None
    device = prepare_device(resolve_device(config.device))
    torch.manual_seed(config.seed)
    classifier, preprocessing = build(config, num_classes)
    macs = count_macs(classifier, (config.in_chans, config.image_size, config.image_size))
    network = PixelNetwork(classifier, preprocessing, device)
    engine, run = engine_choice.choose(network, choice_file, config.engine, engine_choice.probability_difference)
    pixels = sample_pictures(preprocessing, max(BATCH, config.batch_size))
    alone = 1000 * seconds_per_call(run, pixels[:1], LATENCY_CALLS)
    rates = {
        size: round(size / float(np.median(seconds_per_call(run, pixels[:size], THROUGHPUT_CALLS))), 2)
        for size in {BATCH, config.batch_size}
    }
    p50, p95, p99 = np.percentile(alone, [50, 95, 99]).round(3).tolist()
    training = time_budget.measure(config, classifier, device).training
    return Profile(
        image_size=config.image_size,
        unfreeze=config.unfreeze,
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        macs=macs,
        weights_mb=round(sum(tensor.nbytes for tensor in classifier.state_dict().values()) / 1e6, 3),
        engine=engine,
        embedding_images_per_second=rates[config.batch_size],
        training_images_per_second=round(1 / training, 2),
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        latency_p99_ms=p99,
        batch32_images_per_second=rates[BATCH],
        peak_memory_mb=peak_memory(device),
    )


@torch.no_grad()
def count_macs(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image of `shape` (C, S, S). Leaves the network in evaluation mode, on its device."""
    network.eval()
    # The counter knows convolutions and matrix products (a multiplication and an addition make two), but not the CPU's
    # fused attention; without that, attention is matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape))
    return int(counter.get_total_flops()) // 2


def seconds_per_call(run: Engine, pixels: np.ndarray, calls: int) -> np.ndarray:
    """(N,) seconds of each call, without the first ones, which allocate memory and choose kernels."""
    for _ in range(3):
        run(pixels)
    times: list[float] = []
    while len(times) < calls and (len(times) < min(calls, MIN_CALLS) or sum(times) < MAX_SECONDS):
        started = time.perf_counter()
        run(pixels)
        times.append(time.perf_counter() - started)
    return np.array(times)


def peak_memory(device: torch.device) -> float | None:
    """In 10^6 bytes: the largest memory allocated on the CUDA device, or else held by this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage also counts the memory of the process that started this one: exec keeps it
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def to_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with any of COLUMNS as a table with all of them."""
    whole = dict.fromkeys(("image_size", "parameters", "macs", "val_images"), "Int64")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(whole)


def readable(table: pd.DataFrame) -> list[str]:
    """The table as lines for the screen, followed by the reasons why some rows are empty."""
    measured = table[table["problem"] == ""]
    shown: dict[str, list[str]] = {
        "backbone": measured["backbone"].tolist(),
        "px": _text(measured["image_size"]),
        "M params": _text(measured["parameters"] / 1e6, 2),
        "G MACs": _text(measured["macs"] / 1e9, 3),
        "MB": _text(measured["weights_mb"], 1),
        "engine": measured["engine"].tolist(),
        "embed/s": _text(measured["embedding_images_per_second"]),
        "train/s": _text(measured["training_images_per_second"]),
        "p50 ms": _text(measured["latency_p50_ms"], 1),
        "p95 ms": _text(measured["latency_p95_ms"], 1),
        "p99 ms": _text(measured["latency_p99_ms"], 1),
        f"batch {BATCH}/s": _text(measured["batch32_images_per_second"]),
        "peak MB": _text(measured["peak_memory_mb"]),
        "accuracy": _text(measured["accuracy"], 4),
        "train s": _text(measured["train_seconds"]),
    }
    filled = {name: values for name, values in shown.items() if any(values)}
    lines = pd.DataFrame(filled).to_string(index=False).splitlines() if filled else []
    failed = table[table["problem"] != ""]
    return [*lines, *(f"{row.backbone}: not measured: {row.problem}" for row in failed.itertuples())]


def _text(values: "pd.Series[Any]", digits: int = 0) -> list[str]:
    return ["" if pd.isna(value) else f"{value:,.{digits}f}" for value in values]


def plot(table: pd.DataFrame, path: Path) -> Path:
    """Accuracy against latency; where nothing was trained, throughput against parameters. One point per backbone."""
    trained = table["accuracy"].notna().any()
    x, y = ("latency_p50_ms", "accuracy") if trained else ("parameters", "batch32_images_per_second")
    drawn = table[table[x].notna() & table[y].notna()]
    title = "Validation accuracy against latency" if trained else f"Throughput against parameters, batches of {BATCH}"
    figure, [axes] = new_figure(title, 8, 4.5)
    if drawn.empty:
        draw_placeholder(axes)
        return save(figure, path)
    for number, row in enumerate(drawn.to_dict("records")):
        _point(axes, number, row, x, y)
    if trained:
        best = pareto_front(drawn[x].to_numpy(dtype=np.float64), drawn[y].to_numpy(dtype=np.float64))
        axes.step(drawn[x].iloc[best], drawn[y].iloc[best], where="post", color=MUTED, linewidth=1, linestyle="--",
                  zorder=1, label="Pareto front")  # fmt: skip
        axes.set(xlabel="latency of one image, median (ms)", ylabel="accuracy (bars: 95 % interval)")
    else:
        axes.set(xlabel="parameters (millions)", ylabel="images/s", yscale="log")
    axes.set_xscale("log")
    axes.margins(0.15)
    tick_plain_log(axes.xaxis)
    if not trained:
        tick_plain_log(axes.yaxis)
    add_legend(axes, loc="beside")
    return save(figure, path)


def _point(axes: Panel, number: int, row: dict[Any, Any], x: str, y: str) -> None:
    """Colour and shape together stay distinct for more backbones than there are colours."""
    marker, colour = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)], nth_colour(number)
    error = None
    if y == "accuracy":
        error = [[max(0.0, row[y] - row["accuracy_low"])], [max(0.0, row["accuracy_high"] - row[y])]]
    axes.errorbar(row[x] / (1e6 if x == "parameters" else 1), row[y], yerr=error, color=colour, marker=marker,
                  markersize=8, elinewidth=1, capsize=3, linestyle="", label=shorten(str(row["backbone"]), 40),
                  zorder=3)  # fmt: skip


def pareto_front(costs: np.ndarray, gains: np.ndarray) -> list[int]:
    """Positions on the Pareto front, by rising cost."""
    best: list[int] = []
    for place in np.lexsort((-gains, costs)).tolist():
        if not best or gains[place] > gains[best[-1]]:
            best.append(place)
    return best
