"""Smaller models: a teacher, students of it with and without unlabelled photos, the same networks alone, int8, pruned.

`python -m benchmarks.smaller --data FOLDER --output outputs/smaller` with the CelebA folder of docs/benchmarks.md
Few photos keep their labels; the others of the training table are the unlabelled ones. All runs share the division,
persons apart; seeds differ in training only. Finished runs are not repeated.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pandas as pd

from benchmarks import common
from spectacles.core.progress import progress
from spectacles.core.run_dir import RunDir
from spectacles.data.preprocessing import Preprocessing, decoded_batches
from spectacles.data.schemas import load_split
from spectacles.metrics import bootstrap
from spectacles.models import engine_choice, engines, precision
from spectacles.models.bundle import BundleInfo, load_bundle
from spectacles.models.bundle_network import BundleNetwork
from spectacles.models.engines import Engine
from spectacles.models.sample_pictures import sample_pictures

TEACHER = "teacher"
STUDENTS = {
    "simple_cnn": ("--backbone", "simple_cnn", "--no_pretrained", "--image_size", "64", "--epochs", "30"),
    "lite0-64": ("--image_size", "64", "--epochs", "8", "--fine_tune", "always", "--unfreeze", "all"),
}
WAYS = ("alone", "taught", "unlabelled")
RESAMPLES = 1000


@dataclass(frozen=True)
class Model:
    """What a row of the table is measured of."""

    run: Engine
    info: BundleInfo
    parameters: int
    """Of the network's weights."""
    megabytes: float


def prepare(data: Path, output: Path, labelled: int) -> RunDir:
    """The run of the teacher, after its dataset stage; other runs copy that."""
    run = RunDir((output / TEACHER).absolute())
    if run.done("dataset"):
        return run
    output.mkdir(parents=True, exist_ok=True)
    persons = pd.read_csv(data / "persons.csv", dtype=str)
    train = pd.read_csv(data / "train.csv", dtype=str).merge(persons, on="file")
    test = pd.read_csv(data / "test.csv", dtype=str).merge(pd.read_csv(data / "test_labels.csv", dtype=str), on="id")
    order = np.random.default_rng(0).permutation(train["person"].unique())
    rank = train["person"].map({person: place for place, person in enumerate(order)})
    chosen = train.sort_values(by="id", key=lambda _: rank).iloc[:labelled]
    chosen.to_csv(output / "train.csv", index=False)
    test.to_csv(output / "test.csv", index=False)
    (output / "more").mkdir(exist_ok=True)
    for file in train.loc[~train["person"].isin(chosen["person"]), "file"]:
        (output / "more" / file).symlink_to((data / "dataset" / file).absolute())
    tables = ("--train_csv", output / "train.csv", "--test_csv", output / "test.csv", "--image_dir", data / "dataset")
    call("dataset.py", run, *tables, "--label_column", "glasses", "--group_column", "person", "--val_fraction", 0.25)
    return run


def call(script: str, run: RunDir, *flags: object) -> None:
    command = [sys.executable, script, "--output_dir", run.output_dir, "--run_name", run.name, *flags]
    print(*command, flush=True)
    subprocess.run(list(map(str, command)), cwd=common.ROOT, check=True)


def train(teacher: RunDir, name: str, *flags: object) -> RunDir:
    run = RunDir(teacher.output_dir / name)
    if not run.done("train"):
        if run != teacher:
            shutil.copytree(teacher.path / "dataset", run.path / "dataset", dirs_exist_ok=True)
            shutil.copy(teacher.path / "dataset" / "config.yaml", run.config)
        call("train.py", run, "--device", "cpu", *flags)
    return run


def of_bundle(run: RunDir) -> Model:
    bundle = load_bundle(run.bundle)
    assert bundle.network is not None
    weights = bundle.tensors("backbone.", "head.")
    parameters = sum(values.size for name, values in weights.items() if "running_" not in name)
    built = engines.build("openvino", bundle.network.read_bytes)
    return Model(built, bundle.info, parameters, bundle.network.stat().st_size / 1e6)


def of_int8(run: RunDir) -> Model:
    exact, bundle = of_bundle(run), load_bundle(run.bundle)
    checked = precision.recorded("int8", run.bundle, bundle.model_id, "cpu")
    if checked is None:
        call("evaluate.py", run, "--precision", "int8", "--corruption_images", 0)
        checked = precision.recorded("int8", run.bundle, bundle.model_id, "cpu")
    assert checked is not None
    built = precision.build("int8", BundleNetwork(bundle, "cpu"), run.bundle, checked.files)
    size = sum((run.bundle / name).stat().st_size for name in checked.files) / 1e6
    return Model(built, checked.fitted.info(exact.info), exact.parameters, size)


def of_pruned(teacher: RunDir, share: float) -> list[Model]:
    """None where `export.py` refuses to, and prints why. The most probable class decides, so that the temperature in
    the file makes no difference."""
    run = RunDir(teacher.output_dir / f"pruned-{round(100 * share)}")
    if not run.done("export"):
        shutil.copytree(teacher.path, run.path, dirs_exist_ok=True)
        try:
            call("export.py", run, "--formats", "onnx", "--prune", share)
        except subprocess.CalledProcessError:
            return []
    file = run.path / "export" / "onnx-fp32.onnx"
    parameters = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(file).graph.initializer)
    built = engines.build("openvino", file.read_bytes)
    return [Model(built, load_bundle(teacher.bundle).info, parameters, file.stat().st_size / 1e6)]


def correct(model: Model, rows: pd.DataFrame) -> np.ndarray:
    """(N,) bool on these rows."""
    labels = rows["label"].map({name: place for place, name in enumerate(model.info.classes)}).to_numpy()
    return decide(model, rows["path"].tolist(), model.info.preprocessing) == labels


def decide(model: Model, paths: list[str], preprocessing: Preprocessing) -> np.ndarray:
    logits = [
        model.run(np.stack([item.pixels for item in batch if item.pixels is not None]))["logits"]
        for batch in progress(decoded_batches(map(Path, paths), preprocessing, 32, None), "scoring")
    ]
    return model.info.decide(model.info.calibration.probabilities(np.concatenate(logits)))


def milliseconds(models: dict[str, Model]) -> dict[str, float]:
    """Of one photo's pixels, taken in turn: the least, as other programs may share the machine."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(15):
        for name, model in models.items():
            rate = engine_choice.measure({"": model.run}, sample_pictures(model.info.preprocessing, 1))[""]
            taken[name].append(1000 / rate)
    return {name: float(np.min(values)) for name, values in taken.items()}


def run(args: argparse.Namespace) -> None:
    teacher = prepare(args.data.absolute(), args.output.absolute(), args.labelled)
    train(teacher, TEACHER)
    seeds = {"teacher": [of_bundle(teacher)], "teacher in int8": [of_int8(teacher)]}
    for share in args.prune:
        if pruned := of_pruned(teacher, share):
            seeds[f"teacher, {share:.0%} pruned"] = pruned
    more = teacher.output_dir / "more"
    for student, flags in STUDENTS.items():
        for way in WAYS:
            taught = {"alone": (), "taught": ("--teacher", teacher.path),
                      "unlabelled": ("--teacher", teacher.path, "--unlabelled", more)}[way]  # fmt: skip
            runs = [train(teacher, f"{student}-{way}-{seed}", *flags, *taught, "--seed", seed) for seed in args.seeds]
            seeds[f"{student}, {way}"] = [of_bundle(each) for each in runs]
    rows = load_split(teacher.for_stage("evaluate"), "test")
    clusters = pd.factorize(rows["cluster"])[0]
    times = milliseconds({name: models[0] for name, models in seeds.items()})
    table = []
    for name, models in seeds.items():
        right = [correct(model, rows) for model in models]
        low, high = bootstrap.share_interval(right[0], clusters, 0, RESAMPLES)
        accuracies = [100 * each.mean() for each in right]
        table.append({
            "model": name, "parameters": models[0].parameters, "MB": round(models[0].megabytes, 2),
            "ms": round(times[name], 2), "accuracy": round(float(np.mean(accuracies)), 2),
            "sd": round(float(np.std(accuracies)), 2), "seeds": [round(float(each), 2) for each in accuracies],
            "interval of the first": [round(100 * low, 2), round(100 * high, 2)],
        })  # fmt: skip
    print(pd.DataFrame(table).to_string(index=False))
    (args.output / "smaller.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=600, help="photos that keep their labels")
    parser.add_argument("--prune", type=float, nargs="*", default=[0.3], help="shares of the channels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
