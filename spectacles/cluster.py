"""Prediction on many machines: the same Predictor in every worker of a Ray cluster, a file for each part of inputs."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from spectacles import answer_rows, remote, runtime, shards
from spectacles import bundle as bundles
from spectacles.config import PredictCommand
from spectacles.errors import UserError
from spectacles.inference import Predictor
from spectacles.inputs import Inputs
from spectacles.progress import progress
from spectacles.shards import Shards

if TYPE_CHECKING:
    import ray

log = logging.getLogger("spectacles")

TRIES = 3
"""Of a part whose workers die: they may have died of something else."""
GOES_ON = "Finished parts are kept, and the same command with --output {} goes on."


@dataclass(frozen=True)
class Work:
    """What a worker needs to know once."""

    bundle: dict[str, bytes]
    shards: Shards
    device: str
    cores: int
    batch_size: int
    num_workers: int | None
    top_k: int
    rows: int
    """That a worker can expect."""


class Worker:
    """One in each process of the cluster."""

    def __init__(self, reference: ray.ObjectRef[Work]) -> None:
        import ray

        self.work = work = ray.get(reference)
        runtime.use_cores(work.cores)
        device = runtime.prepare(runtime.resolve_device(work.device))
        with TemporaryDirectory() as folder:  # the machine need not have the bundle
            for name, content in work.bundle.items():
                Path(folder, name).write_bytes(content)
            self.predictor = Predictor(Path(folder), device, work.batch_size, images=work.rows)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Predicts a part and writes it; not one at which too many workers have died already."""
        try:
            if self.work.shards.begin(part := int(item["part"])) <= TRIES:
                self._predict(part, item)
        except OSError as error:  # of the folder; photos that cannot be read are refused
            return {"failure": f"{error.filename or self.work.shards.folder}: {error.strerror or error}"}
        return {"failure": ""}

    def _predict(self, part: int, item: dict[str, Any]) -> None:
        work, info = self.work, self.predictor.info
        sources = (remote.locate(os.fsdecode(path)) for path in item["paths"])
        outcomes = list(self.predictor.predict(sources, work.num_workers))
        ids = item["ids"] if len(item["ids"]) else [None] * len(outcomes)
        rows = [
            answer_rows.row(name, identity, outcome, info, work.top_k)
            for name, identity, outcome in zip(item["names"], ids, outcomes, strict=True)
        ]
        work.shards.write(part, rows, Counter(map(answer_rows.fate, outcomes)))


def predict(inputs: Inputs, bundle: Path, config: PredictCommand, output: str) -> tuple[Counter[str], str]:
    """Predicts what is not in the folder `output` yet. Returns the fates of all rows and the model's id.

    Raises UserError; what is finished by then stays finished.
    """
    info, _, model_id = bundles.load(bundle)
    if not 1 <= config.top_k <= len(info.classes):
        raise UserError(f"--top_k {config.top_k} is out of range: the model knows {len(info.classes)} classes.")
    inputs = _absolute(inputs)
    folder = output if remote.is_address(output) else os.path.abspath(output)
    plan = shards.open_folder(folder, inputs, model_id, answer_rows.header(info, config.top_k, bool(inputs.ids)))
    with remote.explained(folder):
        missing = [part for part in plan.parts if part not in (known := plan.finished())]
    if known:
        log.info("  %d of %d parts are there already", len(known), len(plan.parts))
    if missing:
        with remote.explained(folder):
            plan.forget_tries()
        _map(inputs, missing, plan, bundle, config)
    with remote.explained(folder):
        fates = plan.finished()
    if lost := [part for part in plan.parts if part not in fates]:
        start, stop = plan.span(lost[0])
        raise UserError(
            f"{len(lost)} of {len(plan.parts)} parts killed {TRIES} workers each, first rows {start + 1} to {stop} "
            f"({inputs.names[start]} and so on); the others are finished. Have fewer workers (--worker_cpus), smaller "
            "batches (--batch_size) or the photo taken out."
        )
    return sum(fates.values(), Counter()), model_id


def _absolute(inputs: Inputs) -> Inputs:
    """A worker need not start where the person is."""
    paths = [path if remote.is_address(path) else os.path.abspath(path) for path in inputs.paths]
    return Inputs(paths, inputs.names, inputs.ids, inputs.id_column)


def _map(inputs: Inputs, missing: list[int], plan: Shards, bundle: Path, config: PredictCommand) -> None:
    ray = connect()
    try:
        device, workers, share = _size(ray, config, len(missing))
        files = {path.name: path.read_bytes() for path in bundle.iterdir() if path.name != bundles.ENGINE_FILE}
        rows = sum(stop - start for start, stop in map(plan.span, missing))
        work = Work(files, plan, device, config.worker_cpus, config.batch_size, config.num_workers, config.top_k,
                    -(-rows // workers))  # fmt: skip
        log.info("  %d workers, %d parts of up to %d rows", workers, len(missing), plan.rows_a_part)
        done = _results(ray, [_item(inputs, part, plan) for part in missing], ray.put(work), workers, share)
        for answer in progress(done, "predicting", len(missing), "part"):
            if answer["failure"]:
                raise UserError(f"{answer['failure']}. {GOES_ON.format(plan.folder)}")
    except ray.exceptions.RayTaskError:  # ours: its traceback says more
        raise
    except ray.exceptions.RayError as error:
        raise UserError(f"the cluster gave up: {_reason(error)}. {GOES_ON.format(plan.folder)}") from error
    finally:
        ray.shutdown()


def connect() -> Any:
    """The module ray, connected: to the cluster that RAY_ADDRESS names or that was started on this machine, else to one
    of this machine alone that ends with this process. Raises UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--engine ray: {error}; pip install -r requirements-ray.txt.") from error
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--engine ray finds no cluster: {_reason(error)}.") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        handler.setLevel(logging.ERROR)
    return ray


def _size(ray: Any, config: PredictCommand, parts: int) -> tuple[str, int, dict[str, float]]:
    """(device, number of workers, what each takes of its machine). Raises UserError."""
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    if config.device.startswith("cuda") and not gpus:
        raise UserError(f"--device {config.device}: the cluster has no GPU. Use --device cpu or auto.")
    if gpus and config.device != "cpu":
        return "cuda", min(gpus, parts), {"num_gpus": 1}
    if config.worker_cpus > cpus:
        raise UserError(f"--worker_cpus {config.worker_cpus}: the cluster has {cpus} cores.")
    return "cpu", min(cpus // config.worker_cpus, parts), {"num_cpus": config.worker_cpus}


def _item(inputs: Inputs, part: int, plan: Shards) -> dict[str, Any]:
    some = inputs.part(*plan.span(part))
    return {"part": part, "paths": list(map(os.fsencode, some.paths)), "names": some.names, "ids": some.ids}


def _results(ray: Any, items: list[dict[str, Any]], work: Any, workers: int, share: dict[str, float]) -> Iterator[Any]:
    """As the parts are finished. A part whose worker dies goes to another one."""
    yield from (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map(
            Worker,
            fn_constructor_args=(work,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            **share,
        )
        .iter_rows()
    )


def _reason(error: BaseException) -> str:
    """The first line, or a mistake that a worker has found when it started."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    mistakes = (line.partition("UserError: ")[2] for line in lines)
    return next(filter(None, mistakes), lines[0] if lines else type(error).__name__)
