"""The export table for networks with random weights: size, speed, and how far each file is from PyTorch.

`python -m benchmarks.exports --photos FOLDER --backbones resnet50,mobilenet_v3 --formats onnx,openvino`
Neither speed nor size depends on the weights. Labels are the network's own, so its accuracy says nothing. Files that
take photos are timed on one of 12 megapixels too. `--in_chans 1` makes grey networks, `--labels 5` ones that give any
number of five labels.
"""

import argparse
import itertools
import time
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
from spectacles.export.gate import Compared
from spectacles.export.int8 import Quantizing, in_int8
from spectacles.export.shipped import Shipped
from spectacles.models.bundle import BundleInfo, load_bundle, save_bundle
from spectacles.models.classifier import build_classifier

LARGE = (3000, 4000, 3)
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
    seen, files, large = compared(shipped, photos), [], []
    quantizing = Quantizing(seen.pixels, seen, TrainConfig())
    for name, precision in itertools.product(args.formats.split(","), args.precision.split(",")):
        file = FORMATS[name]
        if precision not in file.precisions:
            continue
        path = folder / f"{name}-{precision}{file.files[0]}"
        written = in_int8(shipped, file, quantizing) if precision == "int8" else shipped
        file.write(written, precision, path)
        files.append(gate.check(name, file, precision, path, written, seen))
        if file.takes_photos:
            run, photo = file.load(path), np.full(LARGE, 127, np.uint8)
            times = [_seconds(run, photo) for _ in range(7)]
            large.append(f"{path.name}: {1000 * float(np.median(times)):.0f} ms for 12 megapixels")
    kind = ("grey " if args.in_chans == 1 else "") + ("any number of labels" if args.labels else "two classes")
    print(f"\n{backbone}, {shipped.info.preprocessing.image_size} px, {kind}, {len(photos)} photos", flush=True)
    print("\n".join([*summary.table(files), *large]), flush=True)


def _seconds(run: gate.Run, photo: np.ndarray) -> float:
    started = time.perf_counter()
    run(photo)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--backbones", default="efficientnet_lite0,mobilenet_v3,resnet50")
    parser.add_argument("--formats", default="onnx,onnx_photo,openvino")
    parser.add_argument("--precision", default="fp32,fp16,int8")
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--in_chans", type=int, default=3)
    parser.add_argument("--labels", type=int, default=0)
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
