"""Prediction on many machines: a Predictor in every worker of a Ray cluster, one file per part of the inputs."""

from __future__ import annotations

import logging
import os
import platform
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from spectacles.core.config import PredictCommand
from spectacles.core.device import limit_cores, prepare_device, resolve_device
from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.data import remote_files
from spectacles.inference import prediction_rows, shards
from spectacles.inference.inputs import Inputs
from spectacles.inference.predictor import Predictor
from spectacles.inference.shards import Shards
from spectacles.models.bundle import ENGINE_FILE, load_bundle

if TYPE_CHECKING:
    import ray

log = logging.getLogger("spectacles")

TRIES = 3
"""Attempts at a part whose workers die: they may have died of something else."""
CONTINUE = "Finished parts are kept: run the same command with --output {} to continue."


@dataclass(frozen=True)
class Work:
    """What every worker needs."""

    bundle: dict[str, bytes]
    shards: Shards
    device: str
    cores: int
    batch_size: int
    num_workers: int | None
    top_k: int
    rows: int
    """That a worker can expect."""
    witness: str
    """A photo on this machine, which workers must see too; '' where all are remote."""


class Worker:
    """One per process of the cluster."""

    def __init__(self, reference: ray.ObjectRef[Work]) -> None:
        import ray

        self.work = work = ray.get(reference)
        _check_shared(work)
        limit_cores(work.cores)
        device = prepare_device(resolve_device(work.device))
        with TemporaryDirectory() as folder:  # the machine need not have the bundle
            for name, content in work.bundle.items():
                Path(folder, name).write_bytes(content)
            self.predictor = Predictor(Path(folder), device, work.batch_size, images=work.rows)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Predicts a part and writes it, unless too many workers have died of it."""
        try:
            if self.work.shards.begin(part := int(item["part"])) <= TRIES:
                self._predict(part, item)
        except UserError as error:  # a store that does not answer; unreadable photos are rejected instead
            return {"failure": str(error).rstrip(".")}
        except OSError as error:  # of the output folder
            return {"failure": f"{error.filename or self.work.shards.folder}: {error.strerror or error}"}
        return {"failure": ""}

    def _predict(self, part: int, item: dict[str, Any]) -> None:
        work, info = self.work, self.predictor.info
        paths = [path.decode("utf-8", "surrogatepass") for path in item["paths"]]
        threads = remote_files.readers(paths, work.num_workers)
        outcomes = list(self.predictor.predict(map(remote_files.locate, paths), threads))
        ids = item["ids"] if len(item["ids"]) else [None] * len(outcomes)
        rows = [
            prediction_rows.row(name, identity, outcome, info, work.top_k)
            for name, identity, outcome in zip(item["names"], ids, outcomes, strict=True)
        ]
        work.shards.write(part, rows, Counter(map(prediction_rows.outcome_kind, outcomes)))


def predict(inputs: Inputs, bundle: Path, config: PredictCommand, output: str) -> tuple[Counter[str], str]:
    """Predicts what is not in the folder `output` yet. Returns the number of rows by outcome and the model's id.

    Raises UserError; what is finished by then stays finished.
    """
    info, _, model_id = load_bundle(bundle)
    prediction_rows.check_top_k(config.top_k, info)
    inputs = _absolute(inputs)
    folder = output if remote_files.is_address(output) else os.path.abspath(output)
    plan = shards.open_folder(folder, inputs, model_id, prediction_rows.header(info, config.top_k, bool(inputs.ids)))
    with remote_files.explained(folder):
        known = plan.finished()
    missing = [part for part in plan.parts if part not in known]
    if known:
        log.info("  %d of %d parts are finished already", len(known), len(plan.parts))
    if missing:
        with remote_files.explained(folder):
            plan.tidy()
        _map(inputs, missing, plan, bundle, config)
    with remote_files.explained(folder):
        outcomes = plan.finished()
        plan.tidy()
    if lost := [part for part in plan.parts if part not in outcomes]:
        start, stop = plan.span(lost[0])
        raise UserError(
            f"{len(lost)} of {len(plan.parts)} parts killed {TRIES} workers each, first rows {start + 1} to {stop} "
            f"({inputs.names[start]} and so on); the others are finished. Have fewer workers (--worker_cpus), smaller "
            "batches (--batch_size) or the photo taken out."
        )
    return sum(outcomes.values(), Counter()), model_id


def _check_shared(work: Work) -> None:
    """Raises UserError where this machine cannot see the files that it needs."""
    with remote_files.explained(work.shards.folder):
        here = shards.PLAN in remote_files.names_in(work.shards.folder)
    for place, seen in ((work.shards.folder, here), (work.witness, not work.witness or os.path.exists(work.witness))):
        if not seen:
            raise UserError(f"{platform.node()} cannot see {place}: use a folder shared by all machines, or addresses.")


def _absolute(inputs: Inputs) -> Inputs:
    """Workers may run in another folder."""
    paths = [path if remote_files.is_address(path) else os.path.abspath(path) for path in inputs.paths]
    return Inputs(paths, inputs.names, inputs.ids, inputs.id_column)


def _map(inputs: Inputs, missing: list[int], plan: Shards, bundle: Path, config: PredictCommand) -> None:
    ray = connect()
    try:
        device, workers, cores, share = _size(ray, config, len(missing))
        files = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
        files.pop(ENGINE_FILE, None)
        rows = sum(stop - start for start, stop in map(plan.span, missing))
        local = (path for path in inputs.paths if not remote_files.is_address(path))
        work = Work(files, plan, device, cores, config.batch_size, config.num_workers, config.top_k,
                    -(-rows // workers), next(filter(os.path.exists, local), ""))  # fmt: skip
        log.info("  %d workers, %d parts of up to %d rows", workers, len(missing), plan.rows_a_part)
        done = _results(ray, [_item(inputs, part, plan) for part in missing], ray.put(work), workers, share)
        for answer in progress(done, "predicting", len(missing), "part"):
            if answer["failure"]:
                raise UserError(f"{answer['failure']}. {CONTINUE.format(plan.folder)}")
    except ray.exceptions.RayTaskError:  # our own bug: its traceback says more
        raise
    except ray.exceptions.RayError as error:
        raise UserError(f"the cluster failed: {_reason(error)}. {CONTINUE.format(plan.folder)}") from error
    finally:
        ray.shutdown()


def connect() -> Any:
    """The module ray, connected to the cluster of RAY_ADDRESS or of this machine, else to a new one on this machine
    that ends with this process. Raises UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--engine ray: {error}; pip install -r requirements-ray.txt.") from error
    on_signal = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
        signal.signal(signal.SIGTERM, on_signal)  # Ray has replaced it
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--engine ray finds no cluster: {_reason(error)}.") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        handler.setLevel(logging.ERROR)
    return ray


def _size(ray: Any, config: PredictCommand, parts: int) -> tuple[str, int, int, dict[str, float]]:
    """(device, number of workers, cores of each, what each takes of its machine). Raises UserError."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if config.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {config.device}: workers of --engine ray choose theirs; use auto, cpu or cuda.")
    if config.device == "cuda" and not gpus:
        raise UserError("--device cuda: the cluster has no GPU. Use --device cpu or auto.")
    if gpus and config.device != "cpu":
        cores = min(int(m.get("CPU", 1)) // int(m["GPU"]) for m in machines if m.get("GPU", 0) >= 1)
        return "cuda", min(gpus, parts), max(1, cores), {"num_gpus": 1}
    workers = sum(int(machine.get("CPU", 0)) // config.worker_cpus for machine in machines)
    if not workers:
        raise UserError(f"--worker_cpus {config.worker_cpus}: no machine of the cluster has so many cores.")
    return "cpu", min(workers, parts), config.worker_cpus, {"num_cpus": config.worker_cpus}


def _item(inputs: Inputs, part: int, plan: Shards) -> dict[str, Any]:
    some = inputs.part(*plan.span(part))
    paths = [path.encode("utf-8", "surrogatepass") for path in some.paths]
    return {"part": part, "paths": paths, "names": some.names, "ids": some.ids}


def _results(ray: Any, items: list[dict[str, Any]], work: Any, workers: int, share: dict[str, float]) -> Iterator[Any]:
    """Yields the workers' answers as parts are finished. A part whose worker dies goes to another one."""
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
    """The first line of the error, or the UserError that a worker raised when it started."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    mistakes = (line.partition("UserError: ")[2] for line in lines)
    return next(filter(None, mistakes), lines[0] if lines else type(error).__name__)
