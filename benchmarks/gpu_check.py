"""Whether all that a CUDA card does here works, in less than four minutes.

`python -m benchmarks.gpu_check --output_dir FOLDER [--device cuda]`
Draws photos, trains both phases on them, in bf16 and in fp16, moves a run from the CPU to the card and back, trains in
two processes where there are two cards, compares the engines, evaluates and serves. Prints a table of what passed and
what failed. Without a card it does the same on the CPU, as a test of itself.
"""

import argparse
import http.client
import json
import logging
import math
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import dataset
import evaluate
import train
from benchmarks import common, http_client, server_process
from spectacles.core.config import DatasetConfig, EvaluateConfig, TrainConfig, to_plain
from spectacles.core.device import resolve_device
from spectacles.core.results import TrainReport
from spectacles.core.run_dir import RunDir, create_run
from spectacles.export.formats import onnx_pixels
from spectacles.export.shipped import INPUT, PROBABILITIES, Shipped
from spectacles.inference.predictor import Predictor
from spectacles.models.classifier import load_classifier
from spectacles.models.engine_choice import TOLERANCE
from spectacles.models.engines import ENGINES, is_installed
from spectacles.models.sample_pictures import sample_pictures
from spectacles.models.torch_device import prepare_device
from spectacles.sample_data import generate
from spectacles.training import checkpoint
from spectacles.training.trainer import planned_phases

CPU = torch.device("cpu")
MIXED_MAY_DIFFER = 0.2
"""In validation log loss, after two epochs."""
CARD_MAY_DIFFER = 0.01
"""In a probability: cards round products to 10 bits (TF32)."""
STOPS_AT_ONCE = "0.001s"
"""A time budget that is used up after the first epoch of fine-tuning; it may differ when a run is resumed."""


class Skipped(Exception):
    """Cannot be checked on this machine; the message says why."""


class Failed(Exception):
    pass


@dataclass(frozen=True)
class Setup:
    folder: Path
    config: TrainConfig
    """Of the run on the card."""
    data: RunDir
    """Its dataset stage is done."""
    photo: Path

    @property
    def device(self) -> str:
        return resolve_device(self.config.device)

    @property
    def reference(self) -> RunDir:
        """The run of the first check."""
        return RunDir(self.data.output_dir / "both-phases")

    def train(self, name: str, **changes: object) -> TrainReport:
        """In a run of that name, which is made where it does not exist."""
        run_dir = RunDir(self.data.output_dir / name)
        if not run_dir.path.exists():
            shutil.copytree(self.data.path, run_dir.path)
        config = replace(self.config, **changes)  # type: ignore[arg-type]
        run_dir.save_config("train", to_plain(config))
        report = train.run(config, run_dir.for_stage("train"))
        run_dir.save_result("train", report)
        return report


def both_phases(setup: Setup) -> str:
    report = setup.train(setup.reference.name)
    phases = set(_history(setup.reference)["phase"])
    _require(phases == {"head", "fine_tune"}, f"the phases were {phases}")
    newest = checkpoint.load_newest(setup.reference.folder("train"))
    _require(newest is not None and bool(newest.values["folded"]), "BatchNorm could not be folded exactly")
    return f"log loss {report.best_value:.3f}"


def mixed_precision(setup: Setup, precision: str) -> str:
    if precision == "bf16" and setup.device.startswith("cuda") and not torch.cuda.is_bf16_supported(False):
        raise Skipped("this card computes in fp16 instead")
    setup.train(precision, mixed_precision=precision)
    found, full = (float(_history(run)["val_loss"].iloc[-1]) for run in (_run(setup, precision), setup.reference))
    _require(abs(found - full) < MIXED_MAY_DIFFER, f"the log loss is {found:.3f} instead of {full:.3f}")
    return f"log loss {found:.3f} (by default {full:.3f})"


def moved(setup: Setup, before: str, after: str) -> str:
    name = f"moved-{before}-{after}"
    whole = {"epoch_share": 1.0, "progressive_size": False}  # a time budget would decide on these
    first = setup.train(name, device=before, time_budget=STOPS_AT_ONCE, **whole)
    planned = sum(epochs for _, epochs in planned_phases(setup.config))
    _require(first.epochs_run < planned, "the first half did not stop")
    second = setup.train(name, device=after, resume=True, **whole)
    _require(second.epochs_run == planned, f"it ended after {second.epochs_run} of {planned} epochs")
    return f"{first.epochs_run} of {planned} epochs, then the rest"


def two_cards(setup: Setup) -> str:
    if torch.cuda.device_count() < 2 or not setup.device.startswith("cuda"):
        raise Skipped(f"this machine has {torch.cuda.device_count()} cards")
    run_dir = _run(setup, "two-cards")
    shutil.copytree(setup.data.path, run_dir.path)
    names = ("backbone", "weights", "image_size", "batch_size", "epochs", "fine_tune", "unfreeze", "dropout", "seed")
    flags = [f"--{name}={value}" for name in names if (value := getattr(setup.config, name)) is not None]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py", "--device", "cuda"]
    command = [sys.executable, "-m", *launcher, "--output_dir", run_dir.output_dir, "--run_name", run_dir.name, *flags]
    done = subprocess.run(list(map(str, command)), cwd=common.ROOT, capture_output=True, text=True, check=False)
    _require(done.returncode == 0, (done.stdout + done.stderr)[-300:])
    losses = [_history(run)["val_loss"].iloc[-1] for run in (run_dir, setup.reference)]
    _require(
        abs(losses[0] - losses[1]) < MIXED_MAY_DIFFER, f"the log loss is {losses[0]:.3f} instead of {losses[1]:.3f}"
    )
    return f"log loss {losses[0]:.3f} (one card {losses[1]:.3f})"


def engines_agree(setup: Setup) -> str:
    card = Predictor(setup.reference.bundle, setup.device, engine="torch")
    pixels = sample_pictures(card.info.preprocessing)
    expected, differences = card.probabilities(pixels), {}
    for engine in filter(is_installed, ENGINES):
        other = Predictor(setup.reference.bundle, "cpu", engine=engine)
        differences[engine] = float(np.abs(other.probabilities(pixels) - expected).max())
    text = ", ".join(f"{engine} {difference:.1g}" for engine, difference in differences.items())
    _require(max(differences.values()) <= TOLERANCE, f"on the CPU, probabilities differ by: {text}")
    return f"largest difference on the CPU: {text}"


def shipped_file(setup: Setup) -> str:
    """The ONNX file of export.py by TensorRT and CUDA, whichever ONNX Runtime has, and trtexec on it."""
    import onnxruntime  # not above: spectacles turns its telemetry off first

    known = [
        name for name in ("Tensorrt", "CUDA") if f"{name}ExecutionProvider" in onnxruntime.get_available_providers()
    ]
    if not known and not shutil.which("trtexec"):
        raise Skipped("neither trtexec nor an ONNX Runtime for cards (onnxruntime-gpu) is here")
    path = setup.folder / "pixels.onnx"
    shipped = Shipped(*load_classifier(setup.reference.bundle), setup.reference.bundle)
    onnx_pixels.write(shipped, "fp32", path)
    pixels = sample_pictures(shipped.info.preprocessing)
    expected, found = shipped.module(torch.from_numpy(pixels))[PROBABILITIES].detach().numpy(), []
    for name in known:
        session = onnxruntime.InferenceSession(path, providers=[f"{name}ExecutionProvider"])
        _require(f"{name}ExecutionProvider" in session.get_providers(), f"{name} could not be loaded")
        distance = float(np.abs(session.run([PROBABILITIES], {INPUT: pixels})[0] - expected).max())
        _require(distance <= CARD_MAY_DIFFER, f"by {name}, probabilities differ by {distance:.1g}")
        found.append(f"{name} within {distance:.1g}")
    if shutil.which("trtexec"):
        command = shlex.split(onnx_pixels.trtexec(path, shipped))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        _require(done.returncode == 0, (done.stdout + done.stderr)[-300:])
        found.append("trtexec")
    return ", ".join(found)


def evaluation(setup: Setup) -> str:
    config = EvaluateConfig(device=setup.config.device, bootstrap_resamples=50, corruption_images=8)
    report = evaluate.run(config, setup.reference.for_stage("evaluate"))
    accuracy = json.loads((setup.reference.folder("evaluate") / "metrics.json").read_text())[report.scored_on][
        "accuracy"
    ]
    _require(math.isfinite(accuracy), f"the accuracy is {accuracy}")
    return f"{report.scored_on} accuracy {accuracy:.3f}"


def serving(setup: Setup) -> str:
    [expected] = Predictor(setup.reference.bundle, setup.device, engine="torch").predict([setup.photo])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*server_process.ours(setup.reference.bundle, port), "--device", setup.config.device]
    with server_process.running(command, setup.folder / "server.log", port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": http_client.FORM}
        connection.request("POST", "/predict", http_client.form(setup.photo.read_bytes()), headers)
        content = json.loads(connection.getresponse().read())
        connection.close()
    served = content["predictions"][0] if "predictions" in content else content
    distance = abs(served["confidence"] - expected.confidence)
    _require(served["label"] == expected.label and distance <= TOLERANCE, f"it answers {content}")
    return f"{served['label']!r}, as predicted here"


CHECKS: dict[str, Callable[[Setup], str]] = {
    "both phases": both_phases,
    "bf16": lambda setup: mixed_precision(setup, "bf16"),
    "fp16": lambda setup: mixed_precision(setup, "fp16"),
    "resume CPU -> card": lambda setup: moved(setup, "cpu", setup.config.device),
    "resume card -> CPU": lambda setup: moved(setup, setup.config.device, "cpu"),
    "two cards": two_cards,
    "engines": engines_agree,
    "exported file": shipped_file,
    "evaluate": evaluation,
    "server": serving,
}


def _run(setup: Setup, name: str) -> RunDir:
    return RunDir(setup.data.output_dir / name)


def _history(run_dir: RunDir) -> pd.DataFrame:
    return pd.read_csv(run_dir.folder("train") / "history.csv")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Failed(otherwise)


def prepare(folder: Path, config: TrainConfig, images: int) -> Setup:
    """Draws the photos and runs the dataset stage."""
    prepare_device(resolve_device(config.device))
    sample = generate.draw(folder / "sample", images=images)
    data = create_run(folder / "outputs", "data")
    settings = DatasetConfig(
        train_csv=sample / "train.csv", image_dir=sample / "dataset", test_csv=sample / "test.csv", test_fraction=0.2,
        device=config.device, backbone=config.backbone, weights=config.weights, image_size=config.image_size,
    )  # fmt: skip
    data.save_result("dataset", dataset.run(settings, data.for_stage("dataset")))
    return Setup(folder, config, data, next((sample / "dataset").glob("*.jpg")))


def run(setup: Setup) -> pd.DataFrame:
    """A row for each check: check, outcome, seconds, details."""
    rows = []
    for name, check in CHECKS.items():
        started = time.monotonic()
        try:
            outcome, details = "passed", check(setup)
        except Skipped as reason:
            outcome, details = "skipped", str(reason)
        except Exception as error:  # noqa: BLE001 # whatever goes wrong, the other checks go on
            outcome, details = "FAILED", f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
        rows.append((name, outcome, round(time.monotonic() - started, 1), details))
        print(f"{name}: {outcome}", flush=True)
    return pd.DataFrame(rows, columns=["check", "outcome", "seconds", "details"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, required=True, help="must not hold an earlier outcome")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--backbone", default=TrainConfig.backbone)
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    logging.getLogger("spectacles").setLevel(logging.WARNING)
    with common.exit_codes():
        device = resolve_device(args.device)
        config = TrainConfig(
            device=device, backbone=args.backbone, weights=args.weights, image_size=args.image_size, batch_size=16,
            epochs=2, unfreeze="last:2", fine_tune="always", dropout=0.0, seed=1,
        )  # fmt: skip
        table = run(prepare(args.output_dir, config, args.images))
    cards = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    print(f"\ntorch {torch.__version__} on {device}; cards: {cards or 'none, so this was a dry run on the CPU'}\n")
    with pd.option_context("display.max_colwidth", None):
        print(table.to_string(index=False))
    sys.exit(bool((table["outcome"] == "FAILED").any()))


if __name__ == "__main__":
    main()
