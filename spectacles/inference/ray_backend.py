"""Prediction on many machines by Ray Data: a Predictor in every worker of the cluster, Parquet files in one folder."""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from spectacles.core import wording
from spectacles.core.config import PredictCommand
from spectacles.core.device import limit_cores, resolve_device
from spectacles.core.errors import UserError
from spectacles.data import addresses, remote_files
from spectacles.inference import prediction_folder, prediction_rows
from spectacles.inference.exported_file import is_exported
from spectacles.inference.inputs import Inputs
from spectacles.inference.prediction_folder import RECORD, ROW
from spectacles.inference.predictor import Predictor
from spectacles.models.bundle import ENGINE_FILE, load_bundle

if TYPE_CHECKING:
    import ray

log = logging.getLogger("spectacles")

TRIES = 3
"""Attempts at a block of rows whose worker dies: it may have died of something else."""
DIED = (
    f"{TRIES} workers died of the same rows: have fewer workers (--worker_cpus), smaller batches (--batch_size) or the "
    "photo taken out"
)
FAILED_BLOCKS = 10
"""Blocks that may fail while the others go on."""
FEWEST, MOST = 100, 20_000
"""Rows of a block: enough to be worth a file, few enough to lose with a worker and to hold in memory."""
BLOCKS = 1000
"""The aim."""
CONTINUE = "What is written stays: run the same command with --output {} to continue."
ARROW_TYPES = {int: pa.int64(), str: pa.string(), float: pa.float64(), bool: pa.bool_()}


@dataclass(frozen=True)
class Work:
    """What every worker needs."""

    bundle: dict[str, bytes]
    folder: str
    device: str
    cores: int
    batch_size: int
    num_workers: int | None
    top_k: int
    prior: str | None
    rows: int
    """That a worker can expect."""
    witness: str
    """A photo on this machine, which workers must see too; '' where all are remote."""


class Worker:
    """One per process of the cluster."""

    def __init__(self, reference: ray.ObjectRef[Work]) -> None:
        import ray

        self.work, self.mistake = ray.get(reference), ""
        try:
            self.predictor = self._load(self.work)
        except UserError as error:  # raised here, Ray would print its traceback
            self.mistake = str(error)

    def _load(self, work: Work) -> Predictor:
        _check_shared(work)
        limit_cores(work.cores)
        device = resolve_device(work.device)
        with TemporaryDirectory() as folder:  # the machine need not have the bundle
            for name, content in work.bundle.items():
                Path(folder, name).write_bytes(content)
            return Predictor(Path(folder), device, work.batch_size, images=work.rows, prior=work.prior)

    def __call__(self, inputs: pa.Table) -> pa.Table:
        """Columns as `_table` makes them -> those of `_schema`. Raises UserError where a store does not answer:
        unreadable photos are rejected instead."""
        if self.mistake:
            raise UserError(self.mistake)
        work, info = self.work, self.predictor.info
        paths = [path.decode("utf-8", "surrogatepass") for path in inputs["path"].to_pylist()]
        threads = addresses.readers(paths, work.num_workers)
        outcomes = self.predictor.predict(map(addresses.locate, paths), threads)
        with_ids = "id" in inputs.column_names
        names = inputs["name"].to_pylist()
        ids = inputs["id"].to_pylist() if with_ids else [None] * len(names)
        rows = [
            prediction_rows.row(name, identity, outcome, info, work.top_k)
            for name, identity, outcome in zip(names, ids, outcomes, strict=True)
        ]
        schema = _schema(prediction_rows.header(info, work.top_k, with_ids))
        columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)]
        return pa.Table.from_arrays(columns, schema=schema).add_column(0, ROW, inputs[ROW])


def predict(inputs: Inputs, bundle: Path, config: PredictCommand, output: str) -> tuple[Counter[str], str]:
    """Predicts what is not in the folder `output` yet. Returns the number of rows by outcome and the model's id.

    Raises UserError; what is written by then stays.
    """
    if config.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {config.device}: workers of --engine ray choose theirs; use auto, cpu or cuda.")
    if is_exported(bundle):
        raise UserError(f"--engine ray takes a bundle, which workers can check, and not {bundle}.")
    verified = load_bundle(bundle)
    info, model_id = verified.info, verified.model_id
    if config.prior is not None:
        info.with_prior(config.prior)  # wrong ones are reported here, not by a worker
    prediction_rows.check_top_k(config.top_k, info)
    inputs = _absolute(inputs)
    folder = output if addresses.is_address(output) else os.path.abspath(output)
    columns = prediction_rows.header(info, config.top_k, bool(inputs.ids))
    prediction_folder.begin(folder, inputs, model_id, columns, config.prior)
    missing, outcomes = prediction_folder.read(folder, len(inputs.paths))
    if outcomes:
        log.info("  %d of %d rows are written already", outcomes.total(), len(inputs.paths))
    if len(missing):
        reasons = _map(inputs, missing, folder, bundle, config)
        missing, outcomes = prediction_folder.read(folder, len(inputs.paths))
        if len(missing):
            raise UserError(
                f"{len(missing)} of {len(inputs.paths)} rows are not predicted, row {missing[0]} "
                f"({inputs.names[missing[0] - 1]}) and others: {'; '.join(reasons)}. {CONTINUE.format(folder)}"
            )
    return outcomes, model_id


def _check_shared(work: Work) -> None:
    """Raises UserError where this machine cannot see the files that it needs."""
    with remote_files.explained(work.folder):
        here = RECORD in remote_files.names_in(work.folder)
    for place, seen in ((work.folder, here), (work.witness, not work.witness or os.path.exists(work.witness))):
        if not seen:
            raise UserError(f"{platform.node()} cannot see {place}: use a folder shared by all machines, or addresses.")


def _absolute(inputs: Inputs) -> Inputs:
    """Workers may run in another folder."""
    paths = [path if addresses.is_address(path) else os.path.abspath(path) for path in inputs.paths]
    return Inputs(paths, inputs.names, inputs.ids, inputs.id_column)


def _map(inputs: Inputs, missing: np.ndarray, folder: str, bundle: Path, config: PredictCommand) -> list[str]:
    """Predicts and writes the rows at `missing` (from 1). Returns why blocks failed. Raises UserError."""
    ray = connect()
    failures = _Failures()
    try:
        blocks = _blocks(inputs, missing)
        device, workers, cores, share = _size(ray, config, len(blocks))
        files = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
        files.pop(ENGINE_FILE, None)
        local = (path for path in inputs.paths if not addresses.is_address(path))
        work = Work(files, folder, device, cores, config.batch_size, config.num_workers, config.top_k,
                    config.prior, -(-len(missing) // workers), next(filter(os.path.exists, local), ""))  # fmt: skip
        sizes = wording.count_of(workers, "worker"), wording.count_of(len(blocks), "block"), len(blocks[0])
        log.info("  %s, %s of up to %d rows", *sizes)
        _run(ray, blocks, ray.put(work), workers, share)
        return list(dict.fromkeys(map(_reason, failures.errors))) or ["for no known reason"]
    except ray.exceptions.RayError as error:
        raise UserError(f"the cluster failed: {_reason(error)}. {CONTINUE.format(folder)}") from error
    finally:
        failures.close()
        ray.shutdown()


def _run(ray: Any, blocks: list[pa.Table], work: Any, workers: int, share: dict[str, float]) -> None:
    """Ray repeats a block whose worker dies, a write that fails, and what a lost machine held."""
    system, path = remote_files.file_system(ray.get(work).folder)
    with warnings.catch_warnings():  # of max_task_retries, which Ray Data will take in another way from 2.64 on
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        predicted = ray.data.from_arrow(blocks).map_batches(
            Worker,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(work,),
            # One at a time: a block that waits for a worker that dies would lose a try.
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            max_task_retries=TRIES - 1,
            **share,
        )
    predicted.write_parquet(path, filesystem=system, ray_remote_args={"num_cpus": 0})  # the workers have taken all


class _Failures(logging.Handler):
    """Collects why blocks failed, which Ray Data only logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []
        logging.getLogger("ray.data").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])

    def close(self) -> None:
        logging.getLogger("ray.data").removeHandler(self)
        super().close()


def connect() -> Any:
    """The module ray, connected to the cluster of RAY_ADDRESS or of this machine, else to a new one on this machine
    that ends with this process. Raises UserError."""
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
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.max_errored_blocks = FAILED_BLOCKS
    for handler in logging.getLogger("ray.data").handlers:
        handler.setLevel(logging.CRITICAL)
    return ray


def _size(ray: Any, config: PredictCommand, blocks: int) -> tuple[str, int, int, dict[str, float]]:
    """(device, number of workers, cores of each, what each takes of its machine). Raises UserError."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if config.device == "cuda" and not gpus:
        raise UserError("--device cuda: the cluster has no GPU. Use --device cpu or auto.")
    if gpus and config.device != "cpu":
        cores = min(int(m.get("CPU", 1)) // int(m["GPU"]) for m in machines if m.get("GPU", 0) >= 1)
        return "cuda", min(gpus, blocks), max(1, cores), {"num_gpus": 1}
    workers = sum(int(machine.get("CPU", 0)) // config.worker_cpus for machine in machines)
    if not workers:
        raise UserError(f"--worker_cpus {config.worker_cpus}: no machine of the cluster has so many cores.")
    return "cpu", min(workers, blocks), config.worker_cpus, {"num_cpus": config.worker_cpus}


def _blocks(inputs: Inputs, rows: np.ndarray) -> list[pa.Table]:
    """Row numbers (from 1), paths as bytes, names and ids, in pieces of as many rows as a worker predicts at a time."""
    size = min(max(-(-len(rows) // BLOCKS), FEWEST), MOST)
    return [_table(inputs, rows[start : start + size]) for start in range(0, len(rows), size)]


def _table(inputs: Inputs, rows: np.ndarray) -> pa.Table:
    places = (rows - 1).tolist()
    columns = {
        ROW: pa.array(rows, pa.int64()),
        "path": pa.array([inputs.paths[place].encode("utf-8", "surrogatepass") for place in places], pa.binary()),
        "name": pa.array([inputs.names[place] for place in places], pa.string()),
    }
    if inputs.ids:
        columns["id"] = pa.array([inputs.ids[place] for place in places], pa.string())
    return pa.table(columns)


def _schema(columns: dict[str, type]) -> pa.Schema:
    return pa.schema([(name, ARROW_TYPES[kind]) for name, kind in columns.items()])


def _reason(error: BaseException) -> str:
    """Why Ray failed, in one sentence. Raises an error of our own code, whose traceback says more."""
    import ray

    mistake = str(error).partition("UserError: ")[2]
    if isinstance(error, ray.exceptions.RayActorError) and not mistake:
        return DIED
    cause = error
    while inner := (getattr(cause, "cause", None) or cause.__cause__):
        cause = inner
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    if isinstance(error, ray.exceptions.RayTaskError) and not mistake:
        raise error
    return (mistake or str(error)).strip().partition("\n")[0].rstrip(".") or type(error).__name__
