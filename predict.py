"""Files, folders, globs, addresses or a table -> labels with confidence; without arguments the run's test data.

`python predict.py photo.jpg` prints one line. Every input gets a row, rejected ones with the reason.
"""

from spectacles import cli
from spectacles.core.config import ImageDirConfig, PredictCommand, PredictConfig, help_texts
from spectacles.core.errors import UserError

DESCRIPTION = "Predict labels for files, folders, globs, addresses or a table; without any, for the run's test data."


def parse(arguments: list[str]) -> tuple[list[str], PredictCommand]:
    """(what to predict, the settings). Raises UserError for flags that go with files where there are none."""
    parser = cli.build_parser(PredictCommand, DESCRIPTION, positional="inputs")
    # Where the training photos were says nothing about the files to predict.
    defaults = {k: v for k, v in cli.run_defaults(arguments).items() if k not in help_texts(ImageDirConfig)}
    values = cli.parse_namespace(parser, PredictCommand, arguments, defaults)
    if values["engine"] == "ray":  # what the run's own predictions look like does not matter to it
        defaults = {key: value for key, value in defaults.items() if key not in ("explain", "format")}
        parser = cli.build_parser(PredictCommand, DESCRIPTION, positional="inputs")
        values = cli.parse_namespace(parser, PredictCommand, arguments, defaults)
    inputs = values.pop("inputs")
    config = PredictCommand(**values)
    flags = {argument.split("=")[0] for argument in arguments}
    of_files = next((flag for flag in ("--bundle", "--output") if flag in flags), None)
    if not inputs and of_files:
        raise UserError(f"{of_files} goes with files to predict: name them, or leave it out.")
    if not inputs and (config.engine == "ray" or config.shard or config.worker_cpus != 1):
        raise UserError("--engine ray, --shard and --worker_cpus go with files to predict: name some, or leave it out.")
    return inputs, config


if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.start("predict", parse)

import csv
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TextIO, get_args

from spectacles.core.config import explanation_methods, select
from spectacles.core.csv_cells import safe_cell
from spectacles.core.device import resolve_device
from spectacles.core.fileio import atomic_path, new_folder
from spectacles.core.progress import progress
from spectacles.core.results import DatasetReport, PredictReport
from spectacles.core.run_dir import LATEST, RunDir, find_run, newest_bundle
from spectacles.core.wording import printable
from spectacles.data import label_sets, label_text
from spectacles.data.addresses import is_address, locate, readers
from spectacles.data.schemas import load_index
from spectacles.inference import prediction_rows
from spectacles.inference.inputs import Inputs, collect, parse_shard
from spectacles.inference.prediction_rows import OVERLAY_FOLDER, Cell
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.inference.registered_bundle import folder_of
from spectacles.metrics import prior_shift
from spectacles.metrics.abstention import AbstainReason
from spectacles.models.bundle import BundleInfo

log = logging.getLogger("spectacles")

ABSTAINED = {
    "low_confidence": "; the model abstains: its confidence is too low",
    "out_of_distribution": "; the model abstains: the photo is unlike the training photos",
}
"""What a single photo's line says after the label, by the reason."""


def run(config: PredictConfig, run_dir: RunDir) -> PredictReport:
    """Predicts every row of the run's test data, labelled or not; submission.csv too where the rows have ids."""
    index = load_index(run_dir)
    given = index["given_split"] == "test"
    test = index[given if given.any() else index["split"] == "test"]
    ids = test["id"].tolist() if (test["id"] != "").any() else []
    id_column = run_dir.load_result("dataset", DatasetReport).id_column
    inputs = Inputs(test["path"].tolist(), test["file"].tolist(), ids, id_column)
    folder = run_dir.folder("predict")
    shutil.rmtree(folder / OVERLAY_FOLDER, ignore_errors=True)  # of an earlier run, whose rows may have been others
    output, submission = folder / f"predictions.{config.format}", folder / "submission.csv"
    return predict(inputs, run_dir.bundle, config, output, submission)


def predict(inputs: Inputs, bundle: Path, config: PredictConfig, output: Path, submission: Path) -> PredictReport:
    """Streams predictions of `inputs` into `output`, and into `submission` where they have ids, in constant memory."""
    predictor = _predictor(bundle, config, config.batch_size, len(inputs.paths))
    if predictor.why_precision:
        log.info("  %s", predictor.why_precision)
    prediction_rows.check_top_k(config.top_k, predictor.info)
    outcomes = explained(
        predictor.predict(map(locate, inputs.paths), readers(inputs.paths, config.num_workers)),
        inputs,
        predictor,
        config,
        output,
    )
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        write = _open_writer(stack, output, predictor.info, config, bool(inputs.ids))
        submit = _open_submission(stack, submission, inputs, predictor.info, config.spreadsheet_safe)
        for number, (outcome, overlay) in enumerate(progress(outcomes, "predicting", len(inputs.paths))):
            identity = inputs.ids[number] if inputs.ids else None
            write(inputs.names[number], identity, outcome, overlay)
            submit(identity or "", outcome)
            counts[prediction_rows.outcome_kind(outcome)] += 1
    written = [output, submission] if inputs.ids else [output]
    report = _report(counts, written, predictor.model_id)
    if config.prior is not None:
        report.summary.append(f"expected {prior_shift.sentence(predictor.info.classes, predictor.info.class_shares)}")
    if config.explain:
        report.summary.append(f"wrote {report.predicted} overlays to {output.with_name(OVERLAY_FOLDER)}")
    return report


def _predictor(bundle: Path, config: PredictConfig, batch_size: int, images: int) -> Predictor:
    device = resolve_device(config.device)
    return Predictor(bundle, device, batch_size, config.engine, images, config.prior, config.precision)


def explained(
    outcomes: Iterator[Prediction], inputs: Inputs, predictor: Predictor, config: PredictConfig, output: Path
) -> Iterator[tuple[Prediction, str]]:
    """Each outcome with its overlay, '' where it has none; a path that starts from the folder of `output`."""
    if not config.explain:
        return ((outcome, "") for outcome in outcomes)
    from spectacles.evaluation.overlays import write_overlays  # imports captum and matplotlib

    methods = explanation_methods(config.explain_with)
    overlays = write_overlays(outcomes, inputs.names, predictor, methods, output.with_name(OVERLAY_FOLDER))
    return ((outcome, f"{OVERLAY_FOLDER}/{file}" if file else "") for outcome, file in overlays)


Write = Callable[[str, str | None, Prediction, str], None]
"""Of the name, the id if there are any, what was predicted, and the overlay."""


def _open_writer(stack: ExitStack, output: Path, info: BundleInfo, config: PredictConfig, with_ids: bool) -> Write:
    file = stack.enter_context(stack.enter_context(atomic_path(output)).open("w", newline="", encoding="utf-8"))
    if config.format == "txt":
        return lambda name, identity, outcome, overlay: print(printable(outcome.label), file=file)
    if config.format == "jsonl":
        record = partial(prediction_rows.record, info=info, top_k=config.top_k)
        return lambda *row: print(json.dumps(record(*row), ensure_ascii=False), file=file)
    write_row = _row_writer(file, config.spreadsheet_safe)
    columns = list(prediction_rows.header(info, config.top_k, with_ids))
    write_row([*columns, "explanation"] if config.explain else columns)

    def write(name: str, identity: str | None, outcome: Prediction, overlay: str) -> None:
        row = prediction_rows.row(name, identity, outcome, info, config.top_k)
        write_row([*row, overlay] if config.explain else row)

    return write


def _row_writer(file: TextIO, spreadsheet_safe: bool) -> Callable[[Sequence[Cell]], object]:
    writer = csv.writer(file)
    if not spreadsheet_safe:
        return writer.writerow
    return lambda row: writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in row])


def _open_submission(
    stack: ExitStack, path: Path, inputs: Inputs, info: BundleInfo, spreadsheet_safe: bool
) -> Callable[[str, Prediction], None]:
    if not inputs.ids:
        return lambda identity, outcome: None
    file = stack.enter_context(stack.enter_context(atomic_path(path)).open("w", newline="", encoding="utf-8"))
    write_row = _row_writer(file, spreadsheet_safe)
    columns = label_sets.columns_of(info.label_column, info.classes, info.multi_label)
    write_row([inputs.id_column, *columns])
    if len(columns) == 1:
        return lambda identity, outcome: write_row([identity, outcome.label])

    def submit_flags(identity: str, outcome: Prediction) -> None:
        labels = label_text.parts(outcome.label)
        flags = ["" if outcome.reason else int(column in labels) for column in columns]
        write_row([identity, *flags])

    return submit_flags


def _report(counts: Counter[str], written: list[Path], model_id: str) -> PredictReport:
    """`counts`: number of rows by `prediction_rows.outcome_kind`."""
    rows, rejected = counts.total(), counts["rejected"]
    return PredictReport(
        summary=_summary(counts, model_id, written),
        metrics={"rows": float(rows)} | {name: float(counts[name]) for name in ("rejected", *get_args(AbstainReason))},
        artifacts=[f"predict/{path.name}" for path in written],
        rows=rows,
        predicted=rows - rejected,
        rejected=rejected,
        output=str(written[0]),
    )


def _summary(counts: Counter[str], model_id: str, written: Sequence[Path | str]) -> list[str]:
    rows, rejected = counts.total(), counts["rejected"]
    low_confidence, out_of_distribution = counts["low_confidence"], counts["out_of_distribution"]
    summary = [f"{rows} rows = {rows - rejected} predicted + {rejected} rejected, by model {model_id}"]
    if low_confidence + out_of_distribution:
        summary.append(
            f"the model abstains on {low_confidence + out_of_distribution} of them: {low_confidence} low confidence, "
            f"{out_of_distribution} out of distribution"
        )
    return summary + [f"wrote {path}" for path in written]


def predict_inputs(arguments: list[str], config: PredictCommand) -> None:
    """Predicts the inputs of the command line, outside any run; a single image only on the screen."""
    shard = parse_shard(config.shard) if config.shard else None
    inputs = collect(arguments, config)
    bundle = folder_of(config.bundle, config.output_dir) if config.bundle else _bundle_of(config)
    if config.engine == "ray":
        _predict_on_cluster(inputs, bundle, config)
        return
    if len(arguments) == 1 and inputs.paths == arguments and config.output is None and not shard:
        _print_single(inputs, bundle, config)
        return
    if config.worker_cpus != 1:
        raise UserError("--worker_cpus goes with --engine ray: leave it out.")
    if is_address(config.output or ""):
        raise UserError(f"--output {config.output} is on another machine: only --engine ray writes there.")
    if config.output:
        _predict_to(Path(config.output), inputs, bundle, config, shard)
        return
    with _new_folder(config) as folder:
        _predict_to(folder / f"predictions.{config.format}", inputs, bundle, config, shard)


def _predict_to(
    output: Path, inputs: Inputs, bundle: Path, config: PredictCommand, shard: tuple[int, int] | None
) -> None:
    """Raises UserError for an output that does not fit."""
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file in it.")
    if output.suffix in (".csv", ".jsonl", ".txt") and output.suffix != f".{config.format}":
        raise UserError(f"--output {output} and --format {config.format} contradict each other: change one of them.")
    if shard:
        log.info("part %d of %d of %d rows", *shard, len(inputs.paths))
        inputs = inputs.shard(*shard)
        output = output.parent / "shard-{:05}-of-{:05}".format(*shard) / output.name
    submission = output.with_name("submission.csv")
    if inputs.ids and submission == output:
        raise UserError(f"--output {output} is where the submission goes: choose another name for the predictions.")
    for line in predict(inputs, bundle, config, output, submission).summary:
        log.info(line)


def _predict_on_cluster(inputs: Inputs, bundle: Path, config: PredictCommand) -> None:
    """Raises UserError."""
    for flag, given in (("--shard", config.shard), ("--explain", config.explain), ("--format", config.format != "csv")):
        if given:
            raise UserError(f"{flag} does not go with --engine ray, which writes Parquet files in parts of its own.")
    if config.precision not in ("auto", "fp32"):
        raise UserError(f"--precision {config.precision} does not go with --engine ray: its workers may differ.")
    from spectacles.inference import ray_backend  # imports pyarrow

    with nullcontext(config.output) if config.output else _new_folder(config) as output:
        for line in _summary(*ray_backend.predict(inputs, bundle, config, str(output)), [str(output)]):
            log.info(line)


@contextmanager
def _new_folder(config: PredictCommand) -> Iterator[Path]:
    """Of this command alone, whatever else runs in the same second; removed where nothing was written into it."""
    folder = new_folder(config.output_dir, datetime.now().strftime("predictions-%Y%m%d-%H%M%S"))
    try:
        yield folder
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _bundle_of(config: PredictCommand) -> Path:
    named = config.run_name not in (None, LATEST)
    return find_run(config.output_dir, str(config.run_name)).bundle if named else newest_bundle(config.output_dir)


def _print_single(inputs: Inputs, bundle: Path, config: PredictCommand) -> None:
    predictor = _predictor(bundle, config, batch_size=1, images=1)
    with _new_folder(config) if config.explain else nullcontext(Path()) as folder:
        predicted = predictor.predict([locate(inputs.paths[0])], 1)
        [(outcome, overlay)] = explained(predicted, inputs, predictor, config, folder / "predictions.csv")
    if outcome.reason:
        raise UserError(f"{inputs.names[0]} was rejected: {outcome.reason}.")
    ranked = prediction_rows.ranked(outcome, predictor.info, max(1, config.top_k))
    labels = ", ".join(f"{label} ({probability:.1%})" for label, probability in ranked)
    print(printable(f"{inputs.names[0]}: {labels}{ABSTAINED.get(outcome.abstain_reason or '', '')}"))
    if overlay:
        print(f"saliency map: {folder / overlay}")


def main(given: tuple[list[str], PredictCommand]) -> None:
    inputs, config = given
    if inputs:
        predict_inputs(inputs, config)
    else:
        cli.run_alone("predict", run, select(config, PredictConfig), cli.open_run(config, makes_run=False))
