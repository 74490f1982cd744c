"""Write the run's model for other runtimes; each file is compared with the model on all validation photos."""

from spectacles import cli
from spectacles.core.config import ExportConfig, parse_latency

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("export", ExportConfig, __doc__)

import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from spectacles.core.errors import UserError
from spectacles.core.fileio import write_json
from spectacles.core.results import ConvertedFile, ExportedFile, ExportReport
from spectacles.core.run_dir import RunDir
from spectacles.core.wording import count_of
from spectacles.data import label_sets, schemas, training_photos
from spectacles.export import companions, gate, int8, pruning, summary
from spectacles.export.formats import FORMATS, onnx_pixels
from spectacles.export.gate import Compared
from spectacles.export.int8 import Quantizing
from spectacles.export.shipped import Shipped
from spectacles.models import engines, quantization
from spectacles.models.classifier import load_classifier
from spectacles.training import finalize

log = logging.getLogger("spectacles")

MEASURED = ("difference", "same_labels", "accuracy", "megabytes", "images_per_second", "milliseconds")
"""What runs are compared by, of each file."""


def run(config: ExportConfig, run_dir: RunDir) -> ExportReport:
    """Writes <format>-<precision> files, labels.txt, parity.json and clients; what fails the comparison is removed."""
    wanted = chosen(config)
    card = run_dir.model_card.read_text(encoding="utf-8") if run_dir.model_card.is_file() else ""
    shipped = Shipped(*load_classifier(run_dir.bundle), run_dir.bundle, config.ort_web, card)
    about_pruning = []
    if config.prune is not None:
        shipped, sentence = pruning.prune(shipped, config.prune, run_dir)
        about_pruning.append(sentence)
    compared = _photos(shipped, run_dir)
    photos = _for_int8(shipped, compared, run_dir) if any(precision == "int8" for _, precision in wanted) else None
    folder = run_dir.folder("export")
    # Of an earlier export, perhaps of another model.
    _remove([left for left in folder.iterdir() if left.is_dir() or left.name != "config.yaml"])
    files: list[ExportedFile] = []
    converted: list[ConvertedFile] = []
    for name, precision in wanted:
        log.info("  %s %s", name, precision)
        model = int8.in_int8(shipped, FORMATS[name], photos) if photos and precision == "int8" else shipped
        found = _export(name, precision, folder, model, compared)
        if isinstance(found, ConvertedFile):
            converted.append(found)
        else:
            files.append(found)
    kept = [file.file for file in (*files, *converted) if not file.objection]
    companions.write(folder, shipped.info.classes, kept)
    parity = {"model_id": shipped.model_id, "compared_with": "torch", "files": [asdict(file) for file in files],
              "converted_not_run": [asdict(file) for file in converted]}  # fmt: skip
    write_json(folder / "parity.json", parity)
    if not kept:
        raise UserError(
            f"no file was kept: {'; '.join([*map(summary.refused, files), *map(summary.not_run, converted)])}."
        )
    return ExportReport(
        summary=[
            *about_pruning,
            *_summary(config, files, shipped, compared, folder),
            *map(summary.not_run, converted),
            f"wrote {folder}",
        ],
        metrics={
            f"{file.format}_{file.precision}_{name}": float(getattr(file, name)) for file in files for name in MEASURED
        },
        artifacts=run_dir.relative(*sorted(path for path in folder.rglob("*") if _is_shown(path, folder))),
        model_id=shipped.model_id,
        files=files,
        converted=converted,
    )


def _is_shown(path: Path, folder: Path) -> bool:
    return path.is_file() and path.suffix != ".yaml" and folder / companions.ANDROID.name not in path.parents


def chosen(config: ExportConfig) -> list[tuple[str, str]]:
    """(format, precision) of every file to write. Raises UserError."""
    names = list(dict.fromkeys(config.formats.replace(" ", "").split(",")))
    precisions = ["fp32"] if config.precision == "auto" else config.precision.replace(" ", "").split(",")
    if unknown := [name for name in names if name not in FORMATS]:
        raise UserError(f"--formats {unknown[0]!r} is unknown: use {', '.join(FORMATS)}, or several with commas.")
    for package in (package for name in names for package in FORMATS[name].needs):
        if not engines.is_installed(package):
            raise UserError(f"--formats {config.formats} takes {package}: pip install -r requirements-export.txt")
    for precision in precisions:
        if not any(precision in FORMATS[name].precisions for name in names):
            raise UserError(f"--precision {precision!r} is not offered by --formats {config.formats}: use fp32.")
    return [(name, each) for name in names for each in precisions if each in FORMATS[name].precisions]


def _photos(shipped: Shipped, run_dir: RunDir) -> Compared:
    rows = schemas.load_split(run_dir, "val")
    rows = rows[rows["label"] != ""]
    if rows.empty:
        raise UserError(f"{run_dir.splits} has no labelled validation photo: an exported file cannot be compared.")
    labels = label_sets.encode(rows["label"], list(shipped.info.classes), shipped.info.multi_label)
    compared = gate.photos_to_compare(
        shipped, [Path(path) for path in rows["path"]], labels, pd.factorize(rows["cluster"])[0]
    )
    if not len(compared.labels):
        raise UserError(f"no validation photo of {run_dir.splits} can be read: an exported file cannot be compared.")
    return compared


def _for_int8(shipped: Shipped, compared: Compared, run_dir: RunDir) -> Quantizing:
    """Raises UserError."""
    int8.require(len(compared.labels))
    pixels = training_photos.pixels_of(run_dir, shipped.info.preprocessing, quantization.CALIBRATION_IMAGES)
    return Quantizing(pixels, compared, finalize.settings_of(run_dir))


def _export(
    name: str, precision: str, folder: Path, shipped: Shipped, compared: Compared
) -> ExportedFile | ConvertedFile:
    file = FORMATS[name]
    path = folder / f"{name}-{precision}{file.files[0]}"
    file.write(shipped, precision, path)
    if file.load is None:
        found: ExportedFile | ConvertedFile = gate.inspect(name, file, precision, path, shipped)
    else:
        found = gate.check(name, file, precision, path, shipped, compared)
    if found.objection:
        _remove([path.with_suffix(suffix) for suffix in file.files])
    return found


def _remove(paths: Iterable[Path]) -> None:
    """Files and folders."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _summary(
    config: ExportConfig, files: list[ExportedFile], shipped: Shipped, compared: Compared, folder: Path
) -> list[str]:
    odd = len(compared.expected) - len(compared.labels)
    kept = [file for file in files if not file.objection]
    return [
        f"compared with torch on {count_of(len(compared.labels), 'validation photo')} and {odd} odd files",
        *(summary.table(kept) if kept else ()),
        *(summary.refused(file) for file in files if file.objection),
        *([summary.best_within(parse_latency(config.latency), kept)] if config.latency and kept else []),
        *(
            f"on NVIDIA cards (not run): {onnx_pixels.trtexec(folder / file.file, shipped)}"
            for file in [file for file in kept if file.format == "onnx"][:1]
        ),
    ]
