"""From a config dataclass to a command line, and from a command line to a finished stage."""

import argparse
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ActionYesNo, ArgumentParser

from spectacles.core import distributed
from spectacles.core.config import RunConfig, help_texts, to_plain
from spectacles.core.environment import describe_environment
from spectacles.core.errors import UserError
from spectacles.core.exit_codes import OneLine, exit_codes
from spectacles.core.fileio import check_writable, safe_name, sweep, write_json
from spectacles.core.results import Report as StageReport
from spectacles.core.run_dir import LATEST, RunDir, create_run, find_run, new_run, point_latest
from spectacles.core.setting_changes import ONE_COMMAND, changes, recorded
from spectacles.tracking import tracking

ConfigT = TypeVar("ConfigT", bound=RunConfig)
Run = Callable[[Any, RunDir], StageReport]

log = logging.getLogger("spectacles")

CONTROLS = {"config", "print_config", "__default_config__"}
"""Results of a parse that are not settings."""

KINDS = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "text"}

TARGET = {"output_dir": "outputs", "run_name": None, "resume": False, "stages": "all"}
"""Settings that say which saved settings are the defaults of the others."""


def start(script: str, parse: Callable[[list[str]], Any]) -> NoReturn:
    """A script's whole command line: parses the flags, only then imports the script as a module with all that it needs,
    and calls its `main` with the result. Exits with 0, 2 (user's mistake) or 130."""
    with exit_codes():
        config = parse(sys.argv[1:])
        import_module(script).main(config)
    sys.exit()


def main(stage: str, config_class: type[RunConfig], description: str | None) -> NoReturn:
    """A stage script's whole command line: parses the flags, imports the script, calls its `run` on a run folder."""
    with exit_codes():
        args = sys.argv[1:]
        config = parse(config_class, args, description, run_defaults(args, reopen=stage != "dataset"))
        check_device(config)
        if stage != "train":
            distributed.require_single_process(f"{stage}.py")
        run_dir = open_run(config, makes_run=stage == "dataset")
        if getattr(config, "resume", False) and run_dir.done(stage):
            require_unchanged(stage, to_plain(config), run_dir)
            log.info("[%s] already finished in %s; without --resume it starts anew", stage, run_dir.path)
            sys.exit()
        run: Run = import_module(stage).run
        if distributed.is_main_process():
            run_alone(stage, run, config, run_dir)
        else:
            log.setLevel(logging.WARNING)
            run(config, run_dir.for_stage(stage))
    sys.exit()


def require_unchanged(stage: str, settings: dict[str, Any], run_dir: RunDir) -> None:
    """Raises UserError where the stage has finished with other settings than a command gives now."""
    if changed := changes(stage, settings, run_dir.load_config(stage), run_dir.load_config()):
        raise UserError(
            f"{stage} has finished, and {'; '.join(changed)}. Leave --resume out to run it anew, or the changes out."
        )


def run_alone(stage: str, run: Run, config: RunConfig, run_dir: RunDir) -> None:
    """A stage outside the pipeline: its run nests under the folder's, and the folder's report is written anew."""
    with tracking.parent_run(run_dir):
        execute(stage, run, config, run_dir)
        publish(run_dir)
    log.info("runs   %s", tracking.where_to_look(run_dir))


def publish(run_dir: RunDir) -> None:
    """Writes the model card and the report and shows them, with the numbers that compare runs, on the parent run."""
    from spectacles.report import html_report, model_card

    card = model_card.write(run_dir)  # first: the report links to it
    if card is not None:
        tracking.log_artifact(card)
    tracking.log_artifact(html_report.write(run_dir))
    tracking.log_metrics(html_report.headline_metrics(run_dir))


def build_parser(config_class: type, description: str | None, positional: str | None = None) -> ArgumentParser:
    """One flat flag a field, its docstring as help; --config, SPECTACLES_* variables and --print_config."""
    parser = ArgumentParser(description=description, default_env=True, env_prefix="SPECTACLES", allow_abbrev=False,
                            print_config=None, exit_on_error=False)  # fmt: skip
    parser.add_argument("--config", action="append", type=str, help="YAML file with any of the settings below.")
    parser.add_argument("--print_config", action="store_true", help="Print the settings as such a file, and exit.")
    hints, texts = get_type_hints(config_class), help_texts(config_class)
    if positional:
        parser.add_argument(
            positional,
            nargs="*",
            type=str,
            default=[],
            help="Image files, folders, globs, addresses; or a table.",
        )
    for field in fields(config_class):
        flag, text = f"--{field.name}", texts[field.name]
        if hints[field.name] is bool and field.default is False:
            parser.add_argument(flag, action="store_true", help=text)
        elif hints[field.name] in (bool, bool | None):
            parser.add_argument(flag, action=ActionYesNo(no_prefix="no_"), default=field.default, help=text)
        else:
            parser.add_argument(flag, type=hints[field.name], default=field.default, help=text)
    return parser


def parse(
    config_class: type[ConfigT], args: Sequence[str], description: str | None, defaults: dict[str, Any] | None = None
) -> ConfigT:
    """defaults < --config file < SPECTACLES_* variables < flags; `defaults` are those of an existing run folder."""
    parser = build_parser(config_class, description)
    return config_class(**parse_namespace(parser, config_class, args, defaults))


def parse_namespace(
    parser: ArgumentParser, config_class: type, args: Sequence[str], defaults: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Raises UserError for a flag, variable or file that cannot be read as settings."""
    known = {field.name for field in fields(config_class)} - set(ONE_COMMAND)
    parser.set_defaults({key: value for key, value in (defaults or {}).items() if key in known})
    # Config files are read as defaults, so that variables and flags win wherever --config stands.
    parser.default_config_files = preview(args).config
    for file in parser.default_config_files:
        if not Path(file).is_file():
            raise UserError(f"--config {file} does not exist.")
    try:
        given = parser.parse_args(args)
    except argparse.ArgumentError as error:
        raise UserError(_parse_error(str(error), config_class)) from None
    values = {key: value for key, value in given.as_dict().items() if key not in CONTROLS}
    if given.print_config:
        settings = {field.name: values[field.name] for field in fields(config_class)}
        print(yaml.safe_dump(to_plain(config_class(**settings)), sort_keys=False), end="")
        sys.exit(0)
    return values


def _parse_error(message: str, config_class: type) -> str:
    """jsonargparse's message as one sentence."""
    if match := re.search(r'Parser key "(\w+)":.*value: (.*)$', message, re.DOTALL):
        hint = get_type_hints(config_class)[match[1]]
        expected = ", ".join(map(str, get_args(hint))) if get_origin(hint) is Literal else ""
        expected = expected or next(name for kind, name in KINDS.items() if kind in (hint, *get_args(hint)))
        return f"--{match[1]} {match[2]} cannot be used: use {expected}."
    return f"{' '.join(message.split()).rstrip('.')}; --help lists all flags."


def run_defaults(args: Sequence[str], reopen: bool = True) -> dict[str, Any]:
    """The saved config of the run folder that flags, variables or config files point at; empty where there is none."""
    known = preview(args)
    name = known.run_name or (LATEST if reopen else None)
    try:
        return find_run(Path(known.output_dir), name).load_config() if name else {}
    except UserError:
        return {}


def preview(args: Sequence[str]) -> argparse.Namespace:
    """Which config files, which run and which stages are meant, by flags, variables or config files, in this order: the
    full parse takes its defaults from there, and reports what is wrong with them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", action="append")
    parser.add_argument("--resume", action="store_true")
    for name in ("output_dir", "run_name", "stages"):
        parser.add_argument(f"--{name}")
    flags = vars(parser.parse_known_args(list(args))[0])
    variables = {name: os.environ[variable] for name in ("config", *TARGET)
                 if (variable := f"SPECTACLES_{name.upper()}") in os.environ}  # fmt: skip
    files = flags.get("config") or [variables[name] for name in ("config",) if name in variables]
    in_files: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError, yaml.YAMLError):
        for file in files:
            in_files |= yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    values = {**TARGET, **{name: in_files[name] for name in TARGET if name in in_files}, **variables, **flags}
    values["resume"] = str(values["resume"]).lower() == "true"
    return argparse.Namespace(**{**values, "config": files})


def open_run(config: RunConfig, makes_run: bool) -> RunDir:
    """A stage that makes runs gets a new folder unless one is named; the others work on the named or latest run."""
    if makes_run:
        return (
            create_run(config.output_dir, config.run_name)
            if config.run_name
            else new_run(config.output_dir, None, new_name(config))
        )
    return find_run(config.output_dir, config.run_name or LATEST)


def check_device(config: Any) -> None:
    """Before anything is begun. Raises UserError for a device that this machine does not have."""
    if hasattr(config, "device"):
        from spectacles.core.device import resolve_device

        resolve_device(config.device)


def new_name(config: RunConfig) -> str:
    backbone = getattr(config, "backbone", "")
    started = datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{started}-{safe_name(backbone)}" if backbone else started


def execute(stage: str, run: Run, config: RunConfig, run_dir: RunDir) -> StageReport:
    """One stage from start to done-marker: its config saved, its run tracked, its log kept, its result written last."""
    run_dir = run_dir.for_stage(stage)
    settings = recorded(to_plain(config))
    with log_to(run_dir.log), tracking.parent_run(run_dir), tracking.stage_run(run_dir, stage, settings):
        log.info("[%s] %s", stage, run_dir.path)
        for folder in (run_dir.path, run_dir.cache):
            check_writable(folder)
            sweep(folder)
        run_dir.begin(stage)
        before = run_dir.load_config()
        run_dir.save_config(stage, settings)
        write_json(run_dir.environment, describe_environment(config.seed, _device(config, run_dir)))
        started = time.monotonic()
        try:
            result = run(config, run_dir)
        except UserError:
            run_dir.write_config(before)  # what was rejected must not become the next command's default
            raise
        for line in result.summary:
            log.info("  %s", line)
        tracking.log_report(result, run_dir)
        result = replace(result, seconds=round(time.monotonic() - started, 2))
        run_dir.save_result(stage, result)
        run_dir.drop_progress(stage)
        if stage == "dataset":
            point_latest(run_dir)
        log.info("[%s] done in %.1f s", stage, result.seconds)
        return result


def _device(config: Any, run_dir: RunDir) -> str:
    """The device in use; a stage that computes on none keeps what an earlier one wrote."""
    if hasattr(config, "device"):
        from spectacles.core.device import resolve_device

        return resolve_device(config.device)
    known = json.loads(run_dir.environment.read_text(encoding="utf-8")) if run_dir.environment.is_file() else {}
    return str(known.get("device", "cpu"))


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(OneLine("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
