"""The export table for networks with random weights: size, speed, and how far each file is from PyTorch.

`python -m benchmarks.exports --photos FOLDER --backbones resnet50,mobilenet_v3 --formats onnx,openvino`
Neither speed nor size depends on the weights. Labels are the network's own, so its accuracy says nothing. `--in_chans
1` makes grey networks, `--labels 5` ones that give any number of five labels.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import model
from benchmarks import common
from spectacles.core.config import ModelConfig, TrainConfig
from spectacles.core.errors import UserError
from spectacles.data.folders import files_below
from spectacles.export import gate, summary
from spectacles.export.formats import FORMATS
from spectacles.export.formats.base import Run
from spectacles.export.gate import Compared
from spectacles.export.int8 import Quantizing, in_int8
from spectacles.export.shipped import Shipped
from spectacles.models.bundle import BundleInfo, load_bundle, save_bundle
from spectacles.models.classifier import build_classifier

PHOTOS = 120


def random_bundle(args: argparse.Namespace, backbone: str, folder: Path) -> Shipped:
    torch.manual_seed(0)
    classes = tuple(f"label {number}" for number in range(args.labels)) if args.labels else ("no", "yes")
    config = ModelConfig(backbone=backbone, no_pretrained=True, image_size=args.image_size, in_chans=args.in_chans)
    classifier, preprocessing = model.build(config, len(classes))
    info = BundleInfo(
        backbone=backbone, classes=classes, label_column="label", preprocessing=preprocessing,
        feature_dim=classifier.head.in_features, dropout=0.0, threshold=None, temperature=1.0, data_fingerprint="",
        training_profile={}, class_shares=(1 / len(classes),) * len(classes), metric="accuracy", metric_value=0.0,
        epoch=0, phase="none", multi_label=bool(args.labels),
        label_thresholds=(0.5,) * len(classes) if args.labels else (),
    )  # fmt: skip
    model_id = save_bundle(folder, info, classifier.state_dict(), without_network="its weights are random")
    return Shipped(build_classifier(load_bundle(folder)), info, model_id, folder)


def compared(shipped: Shipped, photos: list[Path]) -> Compared:
    """With the network's own decisions as labels."""
    shape = (len(photos), len(shipped.info.classes)) if shipped.info.multi_label else len(photos)
    found = gate.photos_to_compare(shipped, photos, np.zeros(shape, np.int64), np.arange(len(photos)))
    return Compared(**{**vars(found), "labels": found.decided})


def measure(args: argparse.Namespace, backbone: str, photos: list[Path], folder: Path) -> None:
    shipped = random_bundle(args, backbone, folder)
    seen = compared(shipped, photos)
    quantizing = Quantizing(seen.pixels, seen, TrainConfig())
    files, runs = [], []
    for name, precision in itertools.product(args.formats.split(","), args.precision.split(",")):
        file = FORMATS[name]
        if precision not in file.precisions or file.load is None:
            continue
        path = folder / f"{name}-{precision}{file.files[0]}"
        written = in_int8(shipped, file, quantizing) if precision == "int8" else shipped
        file.write(written, precision, path)
        files.append(gate.check(name, file, precision, path, written, seen))
        runs.append((file.load(path), seen.photos if file.takes_photos else gate.batches(seen.pixels)))
    files = [
        replace(file, images_per_second=rate, milliseconds=latency)
        for file, (rate, latency) in zip(files, race(runs, args.rounds), strict=True)
    ]
    kind = ("grey " if args.in_chans == 1 else "") + ("any number of labels" if args.labels else "two classes")
    print(f"\n{backbone}, {shipped.info.preprocessing.image_size} px, {kind}, {len(photos)} photos", flush=True)
    print("\n".join(summary.table(files)), flush=True)


def race(runs: Sequence[tuple[Run, Sequence[np.ndarray]]], rounds: int) -> list[tuple[float, float]]:
    """(images per second, milliseconds of one) of each, medians; by turns, as other programs may share the machine."""
    found = [[gate.speed(run, inputs, rounds=1) for run, inputs in runs] for _ in range(rounds)]
    return [tuple(np.median(each, axis=0).round(1).tolist()) for each in zip(*found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--backbones", default="efficientnet_lite0,mobilenet_v3,resnet50")
    parser.add_argument("--formats", default="onnx,onnx_photo,openvino")
    parser.add_argument("--precision", default="fp32,fp16,int8")
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--in_chans", type=int, default=3)
    parser.add_argument("--labels", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with common.exit_codes():
        photos = sorted(files_below(args.photos))[:PHOTOS]
        if len(photos) < PHOTOS:
            raise UserError(f"--photos {args.photos} has {len(photos)} files: {PHOTOS} are needed.")
        for backbone in args.backbones.split(","):
            with TemporaryDirectory() as folder:
                measure(args, backbone, photos, Path(folder))


if __name__ == "__main__":
    main()
