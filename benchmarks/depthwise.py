"""The gradient of a depthwise convolution's weights: by torch (oneDNN), and as a convolution of its own.

`python -m benchmarks.depthwise [--images 32]`
In turn, in several rounds, for kernels and maps of EfficientNet-Lite0 at 160 px and of ConvNeXt at 224 px. Prints
milliseconds, medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch

from benchmarks import common
from spectacles.models.depthwise import LARGEST_MAP, SMALLEST_KERNEL, weight_gradient

LAYERS = (
    (1152, 5, 5), (672, 5, 10), (480, 5, 10), (240, 5, 20), (144, 5, 40),
    (768, 7, 7), (384, 7, 14), (192, 7, 28), (96, 7, 56), (480, 3, 10),
)  # fmt: skip
"""(channels, kernel, side of the map)."""


def by_torch(inputs: torch.Tensor, gradient: torch.Tensor, kernel: int) -> torch.Tensor:
    weight = torch.zeros(inputs.shape[1], 1, kernel, kernel, requires_grad=True)
    outputs = torch.nn.functional.conv2d(inputs, weight, padding=kernel // 2, groups=len(weight))
    [found] = torch.autograd.grad(outputs, weight, gradient)
    return found


def run(args: argparse.Namespace) -> None:
    rows = []
    for channels, kernel, side in LAYERS:
        shape = (args.images, channels, side, side)
        inputs, gradient = (torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(2))
        padding = (kernel // 2, kernel // 2)
        ways = {
            "by torch": lambda: by_torch(inputs, gradient, kernel),  # noqa: B023 - called within the round
            "as a convolution": lambda: weight_gradient(inputs, gradient, padding),  # noqa: B023
        }
        times = milliseconds(ways, args.rounds)
        rows.append(
            {
                "channels": channels,
                "kernel": kernel,
                "map": side,
                **times,
                "used": side <= LARGEST_MAP and kernel >= SMALLEST_KERNEL,
            }
        )
    print(pd.DataFrame(rows).to_string(index=False))


def milliseconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: round(1000 * statistics.median(values), 2) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
