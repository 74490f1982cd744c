"""Files, folders, globs or a CSV -> labels with confidence; without arguments the run's test data.

`python predict.py photo.jpg` prints one line. Every input gets a row, refused ones with the reason.
"""

import csv
import glob
import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

import dataset
from spectacles import cli, label_sets, runtime, sources
from spectacles import run_dir as runs
from spectacles.bundle import BundleInfo
from spectacles.config import ImageDirConfig, PredictCommand, PredictConfig
from spectacles.errors import UserError
from spectacles.folders import as_text, files_below
from spectacles.inference import UNSURE, Prediction, Predictor
from spectacles.overlays import FOLDER, write_overlays
from spectacles.predictions import PREFIX
from spectacles.progress import progress
from spectacles.records import DatasetReport, PredictReport
from spectacles.run_dir import RunDir, atomic_path
from spectacles.settings import explanation_methods, help_texts, select

log = logging.getLogger("spectacles")

DESCRIPTION = "Predict labels for files, folders, globs or a CSV; without any, for the run's test data."


@dataclass(frozen=True)
class Inputs:
    """What to predict, in order: paths, the names the person knows the files by, and ids where the table has them."""

    paths: list[str]
    names: list[str]
    ids: list[str]
    id_column: str = ""


def run(config: PredictConfig, run_dir: RunDir) -> PredictReport:
    """Predicts every row of the run's test data, labelled or not; submission.csv too where the rows have ids."""
    index = dataset.load_index(run_dir)
    given = index["given_split"] == "test"
    test = index[given if given.any() else index["split"] == "test"]
    ids = test["id"].tolist() if (test["id"] != "").any() else []
    id_column = run_dir.load_result("dataset", DatasetReport).id_column
    inputs = Inputs(test["path"].tolist(), test["file"].tolist(), ids, id_column)
    folder = run_dir.folder("predict")
    shutil.rmtree(folder / FOLDER, ignore_errors=True)  # of an earlier run, whose rows may have been others
    output, submission = folder / f"predictions.{config.format}", folder / "submission.csv"
    return predict(inputs, run_dir.bundle, config, output, submission)


def predict(inputs: Inputs, bundle: Path, config: PredictConfig, output: Path, submission: Path) -> PredictReport:
    """Streams predictions of `inputs` into `output`, and into `submission` where they have ids, in constant memory."""
    device = runtime.prepare(runtime.resolve_device(config.device))
    predictor = Predictor(bundle, device, config.batch_size, config.engine, images=len(inputs.paths))
    if not 1 <= config.top_k <= len(predictor.info.classes):
        raise UserError(
            f"--top_k {config.top_k} is out of range: the model knows {len(predictor.info.classes)} classes."
        )
    outcomes = explained(
        predictor.predict(map(Path, inputs.paths), config.num_workers), inputs, predictor, config, output
    )
    fates: Counter[str] = Counter()
    with ExitStack() as stack:
        write = _open_writer(stack, output, predictor.info, config, bool(inputs.ids))
        submit = _open_submission(stack, submission, inputs, predictor.info)
        for number, (outcome, overlay) in enumerate(progress(outcomes, "predicting", len(inputs.paths))):
            identity = inputs.ids[number] if inputs.ids else ""
            write(inputs.names[number], identity, outcome, overlay)
            submit(identity, outcome)
            fates["refused" if outcome.reason else outcome.verdict] += 1
    written = [output, submission] if inputs.ids else [output]
    report = _report(fates, written, predictor.model_id)
    if config.explain:
        report.summary.append(f"wrote {report.predicted} overlays to {output.with_name(FOLDER)}")
    return report


def explained(
    outcomes: Iterator[Prediction], inputs: Inputs, predictor: Predictor, config: PredictConfig, output: Path
) -> Iterator[tuple[Prediction, str]]:
    """Each outcome with its overlay, '' where it has none; a path that starts from the folder of `output`."""
    if not config.explain:
        return ((outcome, "") for outcome in outcomes)
    methods, folder = explanation_methods(config.explain_with), output.with_name(FOLDER)
    overlays = write_overlays(outcomes, inputs.names, predictor, methods, folder)
    return ((outcome, f"{FOLDER}/{file}" if file else "") for outcome, file in overlays)


Write = Callable[[str, str, Prediction, str], None]
"""Of the name, the id, what was predicted, and the overlay."""


def _open_writer(stack: ExitStack, output: Path, info: BundleInfo, config: PredictConfig, with_ids: bool) -> Write:
    file = stack.enter_context(stack.enter_context(atomic_path(output)).open("w", newline="", encoding="utf-8"))
    if config.format == "txt":
        return lambda name, identity, outcome, overlay: print(outcome.answer, file=file)
    if config.format == "jsonl":
        return lambda name, identity, outcome, overlay: print(
            json.dumps(_record(name, identity, outcome, info, config.top_k, overlay), ensure_ascii=False), file=file
        )
    ranks = range(2, config.top_k + 1)
    header = ["file", "label", "guess", "confidence", *[PREFIX + name for name in info.classes]]
    header += ["familiarity", "verdict", "status"]
    header += [column for rank in ranks for column in (f"label_{rank}", f"confidence_{rank}")]
    header += ["explanation"] if config.explain else []
    writer = csv.writer(file)
    writer.writerow((["id"] if with_ids else []) + header)

    def write_row(name: str, identity: str, outcome: Prediction, overlay: str) -> None:
        values = outcome.probabilities or ("",) * len(info.classes)
        confidence = "" if outcome.reason else outcome.confidence
        ranked = [cell for pair in _ranked(outcome, info, config.top_k)[1:] for cell in pair]
        row = [name, outcome.answer, outcome.label, confidence, *values]
        row += [outcome.familiarity, outcome.verdict, _status(outcome), *ranked]
        row += [overlay] if config.explain else []
        writer.writerow(([identity] if with_ids else []) + row)

    return write_row


def _open_submission(
    stack: ExitStack, path: Path, inputs: Inputs, info: BundleInfo
) -> Callable[[str, Prediction], None]:
    if not inputs.ids:
        return lambda identity, outcome: None
    file = stack.enter_context(stack.enter_context(atomic_path(path)).open("w", newline="", encoding="utf-8"))
    writer = csv.writer(file)
    columns = label_sets.columns_of(info.label_column, info.classes, info.multi_label)
    writer.writerow([inputs.id_column, *columns])
    if len(columns) == 1:
        return lambda identity, outcome: writer.writerow([identity, outcome.label])

    def submit_flags(identity: str, outcome: Prediction) -> None:
        found = label_sets.parts(outcome.label)
        flags = ["" if outcome.reason else int(column in found) for column in columns]
        writer.writerow([identity, *flags])

    return submit_flags


def _status(outcome: Prediction) -> str:
    if outcome.reason:
        return f"refused: {outcome.reason}"
    return f"repaired: {'; '.join(outcome.repairs)}" if outcome.repairs else "predicted"


def _ranked(outcome: Prediction, info: BundleInfo, top_k: int) -> list[tuple[str, float]]:
    """(label, probability), the decision first, then by probability; empty for a refused file."""
    order = np.argsort(-np.asarray(outcome.probabilities), kind="stable")
    ranked = [(info.classes[index], outcome.probabilities[index]) for index in order]
    decided = [(outcome.label, outcome.confidence)] if ranked else []
    return (decided + [pair for pair in ranked if pair[0] != outcome.label])[:top_k]


def _record(
    name: str, identity: str, outcome: Prediction, info: BundleInfo, top_k: int, overlay: str
) -> dict[str, Any]:
    record: dict[str, Any] = {"id": identity} if identity else {}
    record |= {"file": name, "status": _status(outcome)}
    if not outcome.reason:
        record |= {"label": outcome.answer, "guess": outcome.label, "confidence": outcome.confidence}
        record |= {"familiarity": outcome.familiarity, "verdict": outcome.verdict}
        record["probabilities"] = dict(zip(info.classes, outcome.probabilities, strict=True))
        if top_k > 1:
            record["top"] = [{"label": label, "confidence": p} for label, p in _ranked(outcome, info, top_k)]
    if overlay:
        record["explanation"] = overlay
    return record


def _report(fates: Counter[str], written: list[Path], model_id: str) -> PredictReport:
    """`fates`: how many were refused, and how many have each verdict."""
    rows, refused = fates.total(), fates["refused"]
    doubtful = {verdict: fates[verdict] for verdict in ("unsure", "unfamiliar")}
    summary = [f"{rows} rows = {rows - refused} predicted + {refused} refused, by model {model_id}"]
    if any(doubtful.values()):
        summary.append(
            f"{sum(doubtful.values())} of the predicted are called {UNSURE}: {doubtful['unsure']} too uncertain, "
            f"{doubtful['unfamiliar']} unlike the training photos; the column guess has the class all the same"
        )
    summary += [f"wrote {path}" for path in written]
    return PredictReport(
        summary=summary,
        metrics={"rows": float(rows), "refused": float(refused)} | {k: float(v) for k, v in doubtful.items()},
        artifacts=[f"predict/{path.name}" for path in written],
        rows=rows,
        predicted=rows - refused,
        refused=refused,
        output=str(written[0]),
    )


def collect(arguments: list[str], config: PredictCommand) -> Inputs:
    """Arguments as a flat list of files, in the order given. Raises UserError for one that matches nothing."""
    if len(arguments) == 1 and Path(arguments[0]).suffix.lower() in (".csv", ".tsv", ".json", ".jsonl"):
        return _from_table(Path(arguments[0]), config)
    paths = [str(path) for argument in arguments for path in _expand(argument)]
    return Inputs(paths, list(map(as_text, paths)), [])


def _expand(argument: str) -> Iterator[Path]:
    path = Path(argument)
    if os.path.isdir(path):  # False, not an exception, for a name that is too long
        yield from files_below(path)
    elif os.path.exists(path):
        yield path
    elif matches := sorted(glob.glob(argument, recursive=True)):
        yield from (Path(match) for match in matches if Path(match).is_file())
    else:
        raise UserError(f"{argument} is no file, no folder and matches nothing.")


def _from_table(table_path: Path, config: PredictCommand) -> Inputs:
    table = sources.read_table(table_path)
    files = sources.file_names(table, table_path, config.file_column, config.filename_template)
    names, folder = files.tolist(), config.image_dir or table_path.parent
    id_column = sources.find_id_column(table, str(files.name))
    ids = table[id_column].tolist() if id_column else []
    return Inputs(sources.paths_of(files, folder), names, ids, id_column)


def predict_inputs(arguments: list[str], config: PredictCommand) -> None:
    """Predicts what the command line names, outside any run; a single image is answered on the screen."""
    inputs = collect(arguments, config)
    bundle = config.bundle or _bundle_of(config)
    if len(arguments) == 1 and inputs.paths == arguments and config.output is None:
        _print_single(inputs, bundle, config)
        return
    output = config.output or _new_output(config)
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file in it.")
    if output.suffix in (".csv", ".jsonl", ".txt") and output.suffix != f".{config.format}":
        raise UserError(f"--output {output} and --format {config.format} contradict each other: change one of them.")
    submission = output.with_name("submission.csv")
    if inputs.ids and submission == output:
        raise UserError(f"--output {output} is where the submission goes: choose another name for the predictions.")
    for line in predict(inputs, bundle, config, output, submission).summary:
        log.info(line)


def _new_output(config: PredictCommand) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return config.output_dir / f"predictions-{stamp}" / f"predictions.{config.format}"


def _bundle_of(config: PredictCommand) -> Path:
    named = config.run_name not in (None, runs.LATEST)
    return runs.find(config.output_dir, str(config.run_name)).bundle if named else runs.newest_bundle(config.output_dir)


def _print_single(inputs: Inputs, bundle: Path, config: PredictCommand) -> None:
    device = runtime.prepare(runtime.resolve_device(config.device))
    predictor = Predictor(bundle, device, 1, config.engine, images=1)
    output = _new_output(config)
    [(outcome, overlay)] = explained(predictor.predict([Path(inputs.paths[0])], 1), inputs, predictor, config, output)
    if outcome.reason:
        raise UserError(f"{inputs.names[0]} was refused: {outcome.reason}.")
    ranked = _ranked(outcome, predictor.info, max(1, config.top_k))
    doubt = {"unsure": "unsure, perhaps ", "unfamiliar": "unsure, unlike the training photos; if anything "}
    guesses = ", ".join(f"{label} ({probability:.1%})" for label, probability in ranked)
    print(f"{inputs.names[0]}: {doubt.get(outcome.verdict, '')}{guesses}")
    if overlay:
        print(f"what speaks for it: {output.parent / overlay}")


def main() -> None:
    with cli.exit_codes():
        arguments = sys.argv[1:]
        parser = cli.build_parser(PredictCommand, DESCRIPTION, positional="inputs")
        # Where the training photos were says nothing about the files to predict.
        defaults = {k: v for k, v in cli.run_defaults(arguments).items() if k not in help_texts(ImageDirConfig)}
        values = cli.parse_namespace(parser, PredictCommand, arguments, defaults)
        inputs = values.pop("inputs")
        config = PredictCommand(**values)
        if inputs:
            predict_inputs(inputs, config)
        elif any(argument.split("=")[0] in ("--bundle", "--output") for argument in arguments):
            raise UserError("--bundle and --output go with files to predict: name them, or leave both flags out.")
        else:
            cli.run_alone("predict", run, select(config, PredictConfig), cli.open_run(config, makes_run=False))


if __name__ == "__main__":
    main()
