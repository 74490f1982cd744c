"""Versions of a model in MLflow's registry, and which of them is in use: its aliases `champion` and `challenger`.

    python -m spectacles.tracking.registry register --run_name RUN
    python -m spectacles.tracking.registry promote
    python -m spectacles.tracking.registry rollback
    python -m spectacles.tracking.registry list

The store is the one of the runs: MLFLOW_TRACKING_URI, else the database of --output_dir. `models:/NAME@champion` then
names the model in use, for predict.py, api.py and MLflow alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from spectacles.core.errors import UserError
from spectacles.core.fileio import safe_name
from spectacles.core.run_dir import LATEST, RunDir, find_run
from spectacles.core.wording import count_of
from spectacles.tracking import event_log, mlflow_store

CHAMPION, CHALLENGER = "champion", "challenger"
BEFORE = "spectacles.before"
"""Tag of a version: the one that was the champion before it, '' for none."""
PROMOTION = "spectacles.promotion"
"""Tag of a version: when it was promoted, and on what grounds."""
MODEL_ID = "spectacles.model_id"
SCORES = "scores.csv"
SIGNIFICANT = 0.05
ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements-serve.txt"
ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")
NO_MLFLOW = "the model registry needs MLflow: pip install -r requirements-registry.txt"


@dataclass(frozen=True)
class Registry:
    """One model's versions."""

    client: Any
    """mlflow.MlflowClient"""
    store: str
    """Address of the registry."""
    name: str

    def version_of(self, alias: str) -> str | None:
        try:
            return str(self.client.get_model_version_by_alias(self.name, alias).version)
        except _mlflow().MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def versions(self) -> list[Any]:
        """MLflow's records, the newest first, with aliases."""
        found = self.client.search_model_versions(f"name = '{self.name}'")
        numbers = sorted((int(each.version) for each in found), reverse=True)
        return [self.client.get_model_version(self.name, str(number)) for number in numbers]

    def tag(self, version: str, key: str) -> str:
        return str(self.client.get_model_version(self.name, version).tags.get(key, ""))

    def download(self, version: str, artifact: str, folder: Path) -> Path:
        """An artifact of a version, below `folder`."""
        address = f"models:/{self.name}/{version}/artifacts/{artifact}"
        return Path(_mlflow().artifacts.download_artifacts(address, dst_path=str(folder)))


def _mlflow() -> Any:
    """Imported when it is needed: it takes seconds, and servers have it only for models of a registry."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        import mlflow.pyfunc
    except ImportError:
        raise UserError(f"{NO_MLFLOW}.") from None
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    return mlflow


def connect(name: str, output_dir: Path) -> Registry:
    """Raises UserError where there is no MLflow, or a name that it does not take."""
    mlflow = _mlflow()
    store = event_log.address(event_log.destination(), output_dir)
    mlflow.set_tracking_uri(store)
    if not re.fullmatch(r"[A-Za-z0-9_. -]{1,100}", name):
        raise UserError(f"--name {name[:60]!r} cannot name a model: use letters, digits, '_', '-' and '.'.")
    return Registry(mlflow.MlflowClient(), store, name)


def register(run_dir: RunDir, name: str) -> str:
    """The run's bundle as the newest version and the challenger, with what is needed to compare it. Returns a sentence.
    Raises UserError for a run that is not evaluated, or a bundle that cannot be used."""
    from spectacles.models.bundle import read_bundle_info

    if not run_dir.done("evaluate"):
        raise UserError(f"{run_dir.path} is not evaluated: run `python evaluate.py --run_name {run_dir.name}` first.")
    _, model_id = read_bundle_info(run_dir.bundle)
    registry = connect(name, run_dir.output_dir)
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / SCORES
        scores_of(run_dir).to_csv(scores, index=False)
        made = _log_model(run_dir, {"bundle": str(run_dir.bundle), "scores": str(scores)}, name)
    version = str(made.registered_model_version)
    if made.signature is None:
        registry.client.delete_model_version(name, version)
        raise UserError(f"{run_dir.bundle} could not predict the example photo: see MLflow's warning above.")
    registry.client.set_model_version_tag(name, version, MODEL_ID, model_id)
    registry.client.set_registered_model_alias(name, CHALLENGER, version)
    return f"{name} {version} is model {model_id} of {run_dir.name}, and the {CHALLENGER}"


def _log_model(run_dir: RunDir, artifacts: dict[str, str], name: str) -> Any:
    """mlflow's ModelInfo. In the run of the folder, where that is in this store, else in one of its own."""
    mlflow = _mlflow()
    store = mlflow_store.connect(event_log.destination(), run_dir.output_dir)
    known = json.loads(run_dir.tracking.read_text(encoding="utf-8")) if run_dir.tracking.is_file() else {}
    run_id = known["run_id"] if known.get("uri") == store.address else None
    with mlflow.start_run(run_id, store.experiment, None if run_id else run_dir.name):
        return mlflow.pyfunc.log_model(
            name=name,
            python_model=str(ROOT / "deploy" / "mlflow_model.py"),
            artifacts=artifacts,
            code_paths=[str(ROOT / "spectacles")],
            pip_requirements=str(REQUIREMENTS),
            input_example=example(),
            registered_model_name=name,
        )


def example() -> Any:
    """A table with one grey photo, as the model takes it."""
    import pandas as pd
    from PIL import Image

    photo = BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(photo, "PNG")
    return pd.DataFrame({"image": [photo.getvalue()]})


def scores_of(run_dir: RunDir) -> Any:
    """sha256, label and predicted of the test images that the run has scored."""
    from spectacles.data import schemas

    table = schemas.PREDICTIONS.read(run_dir.predictions, ("path", "split", "label", "predicted", "status"))
    table = table[(table["split"] == "test") & (table["status"] == "predicted")]
    contents = schemas.SPLIT_ROWS.read(run_dir.splits, ("path", "sha256"))
    return table.merge(contents, on="path")[["sha256", "label", "predicted"]].drop_duplicates("sha256")


def promote(registry: Registry, version: str | None, force: bool) -> str:
    """Makes a version the champion, and returns on what grounds. Without --force raises UserError where the paired test
    on the test images of both says that it is worse, or where they share none."""
    version = version or registry.version_of(CHALLENGER)
    if version is None:
        raise UserError(f"{registry.name} has no {CHALLENGER} in {registry.store}: register one, or name a --version.")
    champion = registry.version_of(CHAMPION)
    if champion == version:
        raise UserError(f"{registry.name} {version} is the {CHAMPION} already.")
    passed, grounds = (True, "the first one") if champion is None else compare(registry, version, champion)
    if not passed and not force:
        raise UserError(f"{registry.name} {version} is not promoted: {grounds}. --force promotes it all the same.")
    grounds = grounds if passed else f"forced although {grounds}"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    registry.client.set_model_version_tag(registry.name, version, PROMOTION, f"{when} {grounds}")
    registry.client.set_model_version_tag(registry.name, version, BEFORE, champion or "")
    registry.client.set_registered_model_alias(registry.name, CHAMPION, version)
    if registry.version_of(CHALLENGER) == version:
        registry.client.delete_registered_model_alias(registry.name, CHALLENGER)
    return f"{registry.name} {version} is the {CHAMPION} now: {grounds}"


def compare(registry: Registry, version: str, champion: str) -> tuple[bool, str]:
    """(whether the version is not worse than the champion, the numbers): McNemar's exact test on the photos that are
    test images of both, so that neither was trained on one."""
    import pandas as pd

    from spectacles.metrics.paired import mcnemar

    with tempfile.TemporaryDirectory() as folder:
        paths = [registry.download(each, SCORES, Path(folder) / each) for each in (version, champion)]
        this, that = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths)
    both = this.merge(that[["sha256", "predicted"]], on="sha256", suffixes=("", "_before"))
    if both.empty:
        return False, f"it shares no test image with the {CHAMPION} {champion}"
    right, right_before = both["predicted"] == both["label"], both["predicted_before"] == both["label"]
    p_value, only_this, only_that = mcnemar(right.to_numpy(), right_before.to_numpy())
    worse = p_value < SIGNIFICANT and only_that > only_this
    return not worse, (
        f"{'worse' if worse else 'not worse'} than {champion} on {count_of(len(both), 'shared test image')}, accuracy "
        f"{right.mean():.4f} against {right_before.mean():.4f} (McNemar p = {p_value:.2g})"
    )


def rollback(registry: Registry) -> str:
    """The champion before the present one is the champion again. Raises UserError where there was none."""
    champion = registry.version_of(CHAMPION)
    before = registry.tag(champion, BEFORE) if champion else ""
    if not before:
        raise UserError(f"{registry.name} has no {CHAMPION} before the present one in {registry.store}.")
    registry.client.set_registered_model_alias(registry.name, CHAMPION, before)
    return f"{registry.name} {before} is the {CHAMPION} again, in the place of {champion}"


def listing(registry: Registry) -> list[str]:
    """A line a version."""
    lines = []
    for each in registry.versions():
        created = datetime.fromtimestamp(each.creation_timestamp / 1000, UTC).isoformat(" ", timespec="minutes")
        aliases = ", ".join(sorted(each.aliases))
        facts = (each.version, created[:16], each.tags.get(MODEL_ID, ""), aliases, each.tags.get(PROMOTION, ""))
        lines.append("  ".join(str(fact) for fact in facts if fact))
    return lines or [f"{registry.name} has no versions in {registry.store}"]


def fetch(address: str, output_dir: Path, cache: Path) -> Path:
    """The bundle of models:/NAME@ALIAS or models:/NAME/VERSION as a folder below `cache`, downloaded once. Raises
    UserError for an address that names nothing."""
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address} is not a model's address: use models:/NAME@{CHAMPION} or models:/NAME/VERSION.")
    registry = connect(match["name"], output_dir)
    version = match["version"] or registry.version_of(match["alias"])
    if version is None:
        raise UserError(f"{address} names no model in {registry.store}: `register` and `promote` one.")
    try:
        source = registry.client.get_model_version_download_uri(match["name"], version)
    except _mlflow().MlflowException as error:
        raise UserError(f"{address} cannot be read from {registry.store}: {error.message}.") from None
    key = hashlib.sha256(f"{registry.store} {source}".encode()).hexdigest()[:16]
    folder = cache / safe_name(match["name"]) / f"{version}-{key}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            registry.download(version, "bundle", Path(fresh)).rename(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m spectacles.tracking.registry", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("register", "add the bundle of an evaluated run as the challenger"),
        ("promote", "make the challenger, or another version, the champion unless it is worse"),
        ("rollback", "make the champion before the present one the champion again"),
        ("list", "show all versions"),
        ("fetch", "download the bundle of models:/NAME@ALIAS or models:/NAME/VERSION and print its folder"),
    ):
        added = commands.add_parser(command, help=text)
        added.add_argument("--output_dir", type=Path, default=Path("outputs"), help="folder of the runs")
        if command == "fetch":
            added.add_argument("address")
            added.add_argument("--cache", type=Path, required=True, help="folder that keeps what was downloaded")
        else:
            added.add_argument("--name", default="spectacles", help="of the model in the registry")
        if command == "register":
            added.add_argument("--run_name", default=LATEST, help="run whose bundle is registered")
        if command == "promote":
            added.add_argument("--version", help="default: the challenger")
            added.add_argument("--force", action="store_true", help="also where it is worse; its tag says so")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module="mlflow")  # type hints, and what its own libraries do
    try:
        print(*run(given), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(given: argparse.Namespace) -> list[str]:
    """The lines that a command prints. Raises UserError."""
    if given.command == "fetch":
        return [str(fetch(given.address, given.output_dir, given.cache))]
    if given.command == "register":
        return [register(find_run(given.output_dir, given.run_name), given.name)]
    registry = connect(given.name, given.output_dir)
    if given.command == "promote":
        return [promote(registry, given.version, given.force)]
    return [rollback(registry)] if given.command == "rollback" else listing(registry)


if __name__ == "__main__":
    main()
