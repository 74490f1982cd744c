"""Speed of each precision relative to float32, on the same photos, in one run, by turns.

`python -m benchmarks.precision --backbones efficientnet_lite0,mobilenet_v3,resnet50 --image_size 160`
Weights are random: speed does not depend on them. Prints medians and, as other programs may share the machine, the CPU
time per photo too.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks import common
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import backbones, engines, quantization
from spectacles.models.bundle import INT8_FILES
from spectacles.models.engines import Engine
from spectacles.models.sample_pictures import sample_pictures
from spectacles.models.torch_network import PixelNetwork

IMAGES = 64


def build(backbone: str, preprocessing: Preprocessing, folder: Path) -> dict[str, Engine]:
    torch.manual_seed(0)
    network = backbones.build(backbone, preprocessing.in_chans, preprocessing.image_size).eval()
    model = PixelNetwork(network, preprocessing, torch.device("cpu"))
    photos = sample_pictures(preprocessing, quantization.CALIBRATION_IMAGES)
    quantization.quantize(model, photos, folder)
    built = {name: engines.build(name, model.onnx) for name in ("onnxruntime", "openvino")}
    built["openvino bf16"] = engines.build("openvino", model.onnx, "bf16")
    quantized, weights = ((folder / name).read_bytes() for name in INT8_FILES)
    return built | {"openvino int8": engines.openvino_engine(quantized, "int8", weights)}


def race(built: dict[str, Engine], pixels: np.ndarray, rounds: int) -> dict[str, tuple[float, float]]:
    """(seconds, CPU seconds) per image, the median of all rounds."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in built}
    for _ in range(rounds):
        for name, engine in built.items():
            started, spent = time.perf_counter(), sum(os.times()[:2])
            engine(pixels)
            taken[name].append((time.perf_counter() - started, sum(os.times()[:2]) - spent))
    return {
        name: (
            statistics.median(wall for wall, _ in each) / len(pixels),
            statistics.median(cpu for _, cpu in each) / len(pixels),
        )
        for name, each in taken.items()
    }


def run(args: argparse.Namespace) -> None:
    preprocessing = Preprocessing(args.image_size, "crop", "bicubic", (0.5,) * 3, (0.5,) * 3, 3)
    pixels = sample_pictures(preprocessing, IMAGES)
    for backbone in args.backbones.split(","):
        with TemporaryDirectory() as folder:
            measured = race(build(backbone, preprocessing, Path(folder)), pixels, args.rounds)
        fp32 = min(measured[name] for name in ("onnxruntime", "openvino"))
        print(f"{backbone}, {args.image_size} px")
        for name, (wall, cpu) in measured.items():
            rate, saved = fp32[0] / wall, fp32[1] / cpu
            print(f"  {name:14} {1 / wall:7.1f} images/s ({rate:.2f} x), {1000 * cpu:.2f} ms of CPU ({saved:.2f} x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--backbones", default="efficientnet_lite0,mobilenet_v3,resnet50")
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=9)
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
