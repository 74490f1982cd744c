"""Images/s when training all layers: plain torch against our optimisations.

`python -m benchmarks.full_finetune`
Both take the same steps of EfficientNet-Lite0 on the same random pixels, in turn, and each in a process of its own:
allocator settings and freed memory cannot be undone within a process.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from spectacles.core.errors import UserError
from spectacles.data.preprocessing import resolve_preprocessing
from spectacles.models.bn_folding import fold_batchnorm
from spectacles.models.normalization import normalize
from spectacles.models.pretrained import build_pretrained
from spectacles.models.sample_pictures import sample_pictures
from spectacles.models.torch_device import prepare_device

KINDS = {
    "convolutions back": ("convolution_backward",),
    "convolutions": ("convolution", "conv2d"),
    "BatchNorm": ("batch_norm",),
    "activations": ("hardtanh", "relu", "clamp", "threshold"),
    "optimiser": ("Optimizer", "adam", "addcdiv", "addcmul", "lerp", "_foreach", "sqrt"),
}
"""Kind of operator -> parts of the names that torch gives it."""
WARM_UP = 3
"""Steps that allocate and choose kernels."""
Prepared = tuple[nn.Module, torch.optim.Optimizer, torch.memory_format]


def plain(size: int, device: torch.device) -> Prepared:
    """The tutorial's loop: NCHW, and BatchNorm learns its statistics."""
    backbone = build_pretrained("efficientnet_lite0", 3, size, None)
    model = nn.Sequential(backbone, nn.Linear(1280, 2)).to(device).train()
    return model, torch.optim.Adam(model.parameters(), lr=1e-4), torch.contiguous_format


def ours(size: int, device: torch.device) -> Prepared:
    """Freed memory kept, channels last, frozen BatchNorm folded into the convolutions, all updates in one kernel."""
    prepare_device(device)
    backbone = build_pretrained("efficientnet_lite0", 3, size, None)
    photos = resolve_preprocessing(backbone.pretrained_cfg, size, "crop", 3)
    fold_batchnorm(backbone, normalize(photos, torch.from_numpy(sample_pictures(photos, count=2))))
    model = nn.Sequential(backbone, nn.Linear(1280, 2))
    model.to(device, memory_format=torch.channels_last).train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), torch.channels_last


SIDES: dict[str, Callable[[int, torch.device], Prepared]] = {"plain": plain, "ours": ours}


def images_per_second(side: str, args: argparse.Namespace) -> float:
    device = torch.device(args.device)
    torch.manual_seed(0)
    model, optimizer, memory_format = SIDES[side](args.image_size, device)
    images = torch.rand(args.batch_size, 3, args.image_size, args.image_size, device=device)
    images = images.to(memory_format=memory_format)
    targets = torch.randint(2, (args.batch_size,), device=device)

    def take_steps(count: int) -> None:
        for _ in range(count):
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # waits for the device, as a loop that sums its losses does

    take_steps(WARM_UP)
    if args.profile:
        print_profile(side, take_steps, args)
    started = time.perf_counter()
    take_steps(args.steps)
    return args.steps * args.batch_size / (time.perf_counter() - started)


def print_profile(side: str, take_steps: Callable[[int], None], args: argparse.Namespace) -> None:
    """Milliseconds an image by kind of operator (torch.profiler), and the page faults of a step."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        take_steps(args.steps)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    totals: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "the rest")
        totals[kind] = totals.get(kind, 0.0) + event.self_cpu_time_total / 1000
    images = args.steps * args.batch_size
    parts = ", ".join(f"{kind} {ms / images:.1f}" for kind, ms in sorted(totals.items(), key=lambda part: -part[1]))
    print(f"{side}: ms an image: {parts}; {faults / args.steps:.0f} page faults a step")


def measure(side: str, args: argparse.Namespace) -> float:
    """Images per second of one round, in a fresh process."""
    settings = ("image_size", "batch_size", "steps", "device")
    flags = [part for name in settings for part in (f"--{name}", str(getattr(args, name)))]
    flags += ["--profile"] if args.profile else []
    command = [sys.executable, "-m", "benchmarks.full_finetune", "--side", side, *flags]
    done = subprocess.run(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"the side {side} ended with exit code {done.returncode}: it says above why.")
    *lines, rate = done.stdout.splitlines()
    for line in lines:
        if line.startswith(f"{side}: "):  # the profiler prints lines of its own
            print(line, flush=True)
    return float(rate)


def run(args: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(args.rounds):
        for side in SIDES:
            rates[side].append(measure(side, args))
        print(
            f"round {number + 1}: " + ", ".join(f"{side} {rates[side][-1]:.1f} images/s" for side in SIDES), flush=True
        )
    medians = {side: statistics.median(values) for side, values in rates.items()}
    ratio = medians["ours"] / medians["plain"]
    print(f"medians: plain {medians['plain']:.1f}, ours {medians['ours']:.1f} images/s, ratio {ratio:.2f}")
    if args.output:
        common.write_json(args.output, {"images_per_second": rates, "medians": medians, "ratio": ratio})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a round")
    parser.add_argument("--image_size", type=int, default=common.NATIVE_SIZE)
    parser.add_argument("--batch_size", type=int, default=common.BATCH_SIZE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--profile", action="store_true", help="say where the time goes as well")
    parser.add_argument("--side", choices=SIDES, help="one round of one side, in this process")
    args = parser.parse_args()
    with common.exit_codes():
        if args.side:
            print(images_per_second(args.side, args))
        else:
            run(args)


if __name__ == "__main__":
    main()
