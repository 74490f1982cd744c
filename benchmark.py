"""Measure size, speed and memory of backbones on this machine and, given data, their accuracy and training time.

`python benchmark.py --backbones efficientnet_lite0,resnet18` measures; with data flags it trains each as well.
"""

from spectacles import cli
from spectacles.core.config import BenchmarkConfig, DatasetConfig, EvaluateConfig, TrainConfig


def parse(arguments: list[str]) -> BenchmarkConfig:
    # Speed and accuracy are compared; corruptions are scored only on request.
    defaults = {"corruption_images": 0} | cli.run_defaults(arguments, reopen=False)
    return cli.parse(BenchmarkConfig, arguments, __doc__, defaults)


if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.start("benchmark", parse)

import json
import logging
import shutil
import time
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import torch

import dataset
import evaluate
import model
import train
from spectacles.core.config import select, to_plain
from spectacles.core.csv_cells import write_csv
from spectacles.core.device import resolve_device
from spectacles.core.environment import describe_environment
from spectacles.core.errors import UserError
from spectacles.core.fileio import safe_name, write_json
from spectacles.core.results import DatasetReport, EvaluateReport, TrainReport
from spectacles.core.run_dir import RunDir, create_run, find_run, new_run
from spectacles.core.setting_changes import changes, recorded
from spectacles.data import schemas
from spectacles.models import recipes
from spectacles.tracking import tracking
from spectacles.training import profiling, time_budget

log = logging.getLogger("spectacles")

Row = dict[str, Any]
"""A row of benchmark.csv: backbone, and either its results or a problem."""
DATA = "data"
"""Name of the run, inside the benchmark's, with the data set: indexed and split once for all backbones."""
NO_DATA_CLASSES = 2


def run(config: BenchmarkConfig) -> RunDir:
    """Measures each backbone, and writes benchmark.csv and benchmark.png. Raises UserError where all of them fail."""
    names = backbone_names(config)
    cli.check_device(config)
    benchmark = _open(config)
    if changed := changes("benchmark", to_plain(config), benchmark.load_config(), {}):
        raise UserError(f"{benchmark.path} was begun otherwise: {'; '.join(changed)}. Begin another benchmark.")
    benchmark.write_config(recorded(to_plain(config)))
    device = resolve_device(config.device)
    write_json(benchmark.environment, describe_environment(config.seed, device))
    with cli.log_to(benchmark.log), tracking.parent_run(benchmark):
        log.info("[benchmark] %s", benchmark.path)
        tracking.log_params(to_plain(config))
        data = prepare_data(config, benchmark)
        rows = []
        for number, name in enumerate(names, start=1):
            log.info("[%s] %d of %d", name, number, len(names))
            rows.append(measure(name, config, benchmark, data))
        publish(rows, benchmark)
    if all(row["problem"] for row in rows):
        raise UserError("none of the backbones could be measured: see the reasons above.")
    return benchmark


def backbone_names(config: BenchmarkConfig) -> list[str]:
    """In the order given, without duplicates. Raises UserError where there is none."""
    given = config.backbone if config.backbones is None else config.backbones
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if not names:
        raise UserError(f"--backbones {given!r} names no backbone: separate several with commas.")
    return names


def _open(config: BenchmarkConfig) -> RunDir:
    if config.resume and config.run_name is None:
        raise UserError("--resume needs --run_name: which benchmark is to go on?")
    if config.resume:
        return find_run(config.output_dir, str(config.run_name))
    return new_run(config.output_dir, config.run_name, datetime.now().strftime("benchmark-%Y%m%d-%H%M%S"))


def prepare_data(config: BenchmarkConfig, benchmark: RunDir) -> RunDir | None:
    """The run with the data set, where data were given. An error in the data ends the benchmark, because it affects
    every backbone."""
    if not any((config.train_csv, config.image_dir, config.test_csv, config.test_dir)):
        return None
    data = create_run(benchmark.path, DATA)
    if not data.done("dataset"):
        cli.execute("dataset", dataset.run, select(config, DatasetConfig), data)
    return data


def measure(name: str, config: BenchmarkConfig, benchmark: RunDir, data: RunDir | None) -> Row:
    """The backbone's row, from an earlier call where the benchmark is resumed. A failure does not stop the others."""
    try:
        with tracking.stage_run(benchmark, name, {"backbone": name}):
            return {"backbone": name, **_results(replace(config, backbone=name), benchmark, data), "problem": ""}
    except UserError as error:
        problem = str(error)
    except Exception as error:
        log.exception("[%s] failed", name)
        problem = f"{type(error).__name__}: {error}"
    log.info("  not measured: %s", problem)
    return {"backbone": name, "problem": " ".join(problem.split())}


def _results(config: BenchmarkConfig, benchmark: RunDir, data: RunDir | None) -> Row:
    settings = recipes.resolve(select(config, TrainConfig))  # rejects an unknown name before anything is started
    run_dir = create_run(benchmark.path, safe_name(settings.backbone))
    results_file = run_dir.path / "benchmark.json"
    if results_file.is_file():
        log.info("  already measured")
        known: Row = json.loads(results_file.read_text(encoding="utf-8"))
        return known
    trained: Row = {}
    num_classes = NO_DATA_CLASSES
    if data is not None:
        num_classes = len(data.load_result("dataset", DatasetReport).classes)
        trained = train_and_score(config, run_dir, data)
        settings = _as_trained(settings, run_dir)
    tracking.log_params(to_plain(settings))
    log.info("  measuring speed and memory")
    costs = profiling.run_isolated(profiling.profile, settings, model.build, num_classes, run_dir.path / "engine.json")
    results = {**asdict(costs), **trained}
    write_json(results_file, results)
    tracking.log_params({"engine_used": costs.engine})
    tracking.log_metrics({key: float(value) for key, value in results.items() if isinstance(value, int | float)})
    return results


def train_and_score(config: BenchmarkConfig, run_dir: RunDir, data: RunDir) -> Row:
    """Trains on the data set of the run `data` in the backbone's run `run_dir`, and scores it on validation data."""
    shutil.copytree(data.path / "dataset", run_dir.path / "dataset", dirs_exist_ok=True)
    # Comparing backbones is a choice between them, so the test split stays closed.
    schemas.SPLIT_ROWS.write(run_dir.splits, schemas.load_split(data, "train", "val"))
    run_dir.write_config({**data.load_config(), **run_dir.load_config()})
    for stage, action, part in (("train", train.run, TrainConfig), ("evaluate", evaluate.run, EvaluateConfig)):
        if not run_dir.done(stage):
            cli.execute(stage, action, select(config, part), run_dir)
    shutil.rmtree(run_dir.cache, ignore_errors=True)  # the next one starts with an empty cache, as this one did
    torch.cuda.empty_cache()  # speed is measured in another process
    scored, trained = run_dir.load_result("evaluate", EvaluateReport), run_dir.load_result("train", TrainReport)
    low, high = scored.accuracy_interval
    return {"accuracy": scored.metrics["val_accuracy"], "accuracy_low": low, "accuracy_high": high,
            "val_images": int(scored.metrics["val_images"] or 0), "train_seconds": trained.train_seconds}  # fmt: skip


def _as_trained(settings: TrainConfig, run_dir: RunDir) -> TrainConfig:
    """With the choices of --time_budget, so that speed is measured of the network whose accuracy is."""
    plan = json.loads((run_dir.folder("train") / "plan.json").read_text(encoding="utf-8"))
    return replace(settings, **{name: plan[name] for name in time_budget.CHOSEN})


def publish(rows: list[Row], benchmark: RunDir) -> None:
    table = profiling.to_table(rows)
    csv, picture = benchmark.path / "benchmark.csv", benchmark.path / "benchmark.png"
    write_csv(csv, table)
    profiling.plot(table, picture)
    for path in (csv, picture):
        tracking.log_artifact(path)
    for line in ("", *profiling.readable(table), "", f"table  {csv}", f"plot   {picture}"):
        log.info("%s", line)


def main(config: BenchmarkConfig) -> None:
    started = time.monotonic()
    run(config)
    log.info("done in %.0f s", time.monotonic() - started)
