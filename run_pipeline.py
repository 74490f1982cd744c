"""The whole way in one command: a table of stages, run as nested MLflow runs, and one report at the end.

With --label_fixes, the file that review.html saves, the run that it names is made again with mended labels.
"""

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from spectacles import cli
from spectacles.core import distributed
from spectacles.core.config import (
    DatasetConfig,
    ErrorAnalysisConfig,
    EvaluateConfig,
    ExploreConfig,
    PipelineConfig,
    PredictConfig,
    TrainConfig,
    select,
    to_plain,
)
from spectacles.core.errors import UserError
from spectacles.core.exit_codes import exit_codes
from spectacles.core.results import DatasetReport
from spectacles.core.run_dir import LATEST, STAGES, STALE_AFTER, RunDir, find_run, new_run
from spectacles.core.setting_changes import changes, recorded
from spectacles.tracking import tracking

log = logging.getLogger("spectacles")

TABLE = {
    "dataset": DatasetConfig,
    "explore": ExploreConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "error_analysis": ErrorAnalysisConfig,
    "predict": PredictConfig,
}
"""Stage, which is a script of that name, and its settings. A stage is imported when it is its turn."""


def run(config: PipelineConfig) -> RunDir:
    """Runs the chosen stages in order on one run folder; with --resume, only those that are not finished."""
    chosen = choose_stages(config.stages)
    distributed.require_single_process("run_pipeline.py")
    cli.check_device(config)
    before = _run_before(config)
    run_dir = _open(config, chosen)
    if config.label_fixes is not None and before is not None:
        from spectacles.data import label_corrections

        config = replace(config, label_fixes=label_corrections.copy_fixes(config.label_fixes, run_dir))
    config = _with_fixes_of(run_dir, config)
    again = _stages_to_repeat(config, chosen, run_dir)
    to_run = stages_to_run(config, chosen, again, run_dir)
    used = settings_of(config, to_run)
    # Whole and at once: a stage that a crash keeps from starting is resumed with its settings too.
    settings = run_dir.load_config()
    run_dir.write_config({**settings, **used})
    with _settings_restored_if_rejected(run_dir, settings), tracking.parent_run(run_dir, before):
        tracking.log_params(used)
        for stage in chosen:
            if stage not in to_run:
                log.info("[%s] already finished", stage)
                continue
            if stage == "predict" and not _has_test_data(run_dir):
                log.info("[predict] skipped: there is no test data")
                continue
            anew = replace(config, resume=config.resume and stage not in again)
            cli.execute(stage, import_module(stage).run, select(anew, TABLE[stage]), run_dir)
        cli.publish(run_dir)
    _announce(run_dir)
    if config.label_fixes is not None:
        _announce_difference(run_dir)
    return run_dir


def settings_of(config: PipelineConfig, stages: Sequence[str]) -> dict[str, Any]:
    """What `stages` use: nothing else is recorded."""
    return recorded({name: value for stage in stages for name, value in to_plain(select(config, TABLE[stage])).items()})


def stages_to_run(config: PipelineConfig, chosen: list[str], again: set[str], run_dir: RunDir) -> list[str]:
    """All that are chosen; with --resume those that have not finished, those in `again`, and those built on them."""
    to_run: list[str] = []
    for stage in chosen:
        stale = any(stage in STALE_AFTER.get(earlier, ()) for earlier in to_run)
        if not config.resume or stage in again or stale or not run_dir.done(stage):
            to_run.append(stage)
    return to_run


def _stages_to_repeat(config: PipelineConfig, chosen: list[str], run_dir: RunDir) -> set[str]:
    """With --rerun: chosen stages that have finished with other settings than this command gives. Raises UserError for
    settings that would not be used: the stage they belong to has finished."""
    if config.rerun and not config.resume:
        raise UserError("--rerun goes with --resume: add it, or name the --stages to run again.")
    default, plain = run_dir.load_config(), to_plain(config)
    used = settings_of(config, stages_to_run(config, chosen, set(), run_dir))
    again, sentences = set(), []
    for stage in filter(run_dir.done, STAGES):
        if stage in chosen and not config.resume:
            continue
        now = {name: plain[name] for name in settings_of(config, [stage])}
        changed = changes(stage, now, run_dir.load_config(stage), default, () if stage in chosen else used)
        if changed and stage in chosen and config.rerun:
            again.add(stage)
        elif changed:
            sentences.append(f"{stage} has finished, and {'; '.join(changed)}")
    if sentences:
        raise UserError(
            f"{'. '.join(sentences)}. To run {'it' if len(sentences) == 1 else 'them'} again, add --rerun to --resume; "
            "else leave the changes out."
        )
    return again


def _with_fixes_of(run_dir: RunDir, config: PipelineConfig) -> PipelineConfig:
    """A resumed run keeps its own copy of --label_fixes where the same file is given again."""
    copy = run_dir.load_config().get("label_fixes")
    if not copy or config.label_fixes is None or not (Path(copy).is_file() and config.label_fixes.is_file()):
        return config
    same = Path(copy).read_bytes() == config.label_fixes.read_bytes()
    return replace(config, label_fixes=Path(copy)) if same else config


@contextmanager
def _settings_restored_if_rejected(run_dir: RunDir, settings: dict[str, Any]) -> Iterator[None]:
    """What a resumed run rejected must not be what it is resumed with next."""
    try:
        yield
    except UserError:
        if settings:
            run_dir.write_config(settings)
        raise


def parse(arguments: Sequence[str]) -> PipelineConfig:
    """A resumed run takes its settings from its folder; one with --label_fixes from the run that they speak of, and it
    is compared with that run. Raises UserError before anything is made."""

    def parsed(defaults: dict[str, Any]) -> PipelineConfig:
        return cli.parse(PipelineConfig, arguments, __doc__ or "", defaults)

    target = cli.preview(arguments)
    reopen = target.resume or "dataset" not in choose_stages(str(target.stages))
    config = parsed(cli.run_defaults(arguments, reopen))
    before = _run_before(config)
    return config if before is None else parsed(before.load_config() | {"compare": before.name})


def _run_before(config: PipelineConfig) -> RunDir | None:
    """The run whose labels are mended by the run that `config` begins."""
    if config.label_fixes is None or not _begins(config, choose_stages(config.stages)):
        return None
    from spectacles.data import label_corrections

    return label_corrections.find_reviewed_run(config.label_fixes, config.output_dir)


def _begins(config: PipelineConfig, chosen: list[str]) -> bool:
    return chosen[0] == "dataset" and not config.resume


def choose_stages(text: str) -> list[str]:
    """'all' or names separated by commas, in the pipeline's order. Raises UserError for an unknown name."""
    if text == "all":
        return list(STAGES)
    names = {name.strip() for name in text.split(",") if name.strip()}
    if not names or names - set(STAGES):
        raise UserError(f"--stages {text!r}: use 'all', or names out of {', '.join(STAGES)} with commas between.")
    return [stage for stage in STAGES if stage in names]


def _open(config: PipelineConfig, chosen: list[str]) -> RunDir:
    """A new folder when the run starts with the data set; otherwise the named (or latest) one goes on."""
    if not _begins(config, chosen):
        return find_run(config.output_dir, config.run_name or LATEST)
    return new_run(config.output_dir, config.run_name, cli.new_name(config))


def _has_test_data(run_dir: RunDir) -> bool:
    data = run_dir.load_result("dataset", DatasetReport)
    return data.unlabelled + data.images["test"] > 0


def _announce(run_dir: RunDir) -> None:
    """What to type next, from any folder."""
    here, python = Path(__file__).resolve().parent, shlex.quote(sys.executable)
    output_dir, bundle = shlex.quote(str(run_dir.output_dir)), shlex.quote(str(run_dir.bundle))
    script, folder = shlex.quote(str(here / "predict.py")), shlex.quote(str(here))
    log.info("")
    log.info("report      %s", shlex.quote(str(run_dir.report)))
    review = run_dir.path / "error_analysis" / "review.html"
    if review.is_file():
        log.info("review      %s", shlex.quote(str(review)))
    log.info("runs        %s", tracking.where_to_look(run_dir))
    if run_dir.bundle.is_dir():
        name = shlex.quote(run_dir.name)
        log.info("predict     %s %s photo.jpg --output_dir %s --run_name %s", python, script, output_dir, name)
        log.info("serve       SPECTACLES_BUNDLE=%s %s -m uvicorn --app-dir %s api:app", bundle, python, folder)
        log.info("ask         curl -F file=@photo.jpg http://127.0.0.1:8000/predict")


def _announce_difference(run_dir: RunDir) -> None:
    """Before -> after in one line, where evaluate has compared the two."""
    path = run_dir.path / "evaluate" / "comparison.json"
    if not path.is_file():
        return
    comparison = json.loads(path.read_text(encoding="utf-8"))
    accuracy = comparison["differences"]["accuracy"]
    low, high = (100 * end for end in accuracy["interval"])
    log.info("mended      %s -> %s: accuracy %.2f %% -> %.2f %% on %d %s images (difference %+.2f to %+.2f, 95 %%): %s",
             comparison["other"], run_dir.name, 100 * accuracy["other"], 100 * accuracy["this"], comparison["images"],
             comparison["split"], low, high, comparison["verdict"])  # fmt: skip


def main() -> None:
    with exit_codes():
        run(parse(sys.argv[1:]))


if __name__ == "__main__":
    main()
