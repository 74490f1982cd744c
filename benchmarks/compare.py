"""Our pipeline against a tutorial loop and fastai: accuracy, training time and memory.

`python -m benchmarks.compare --spectacles_data FOLDER --folder_data FOLDER -- --recipe fast`
All competitors train in turn on each data set and seed, from the same splits and the same pretrained weights. Flags
after `--` go to our `run_pipeline.py`. Existing results are kept, so an interrupted benchmark can be resumed. Writes
results.csv and table.md.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import common, make_splits
from benchmarks.comparison_table import NOTES, summaries, to_markdown
from spectacles.core.device import cpu_count
from spectacles.core.environment import git_commit, package_versions
from spectacles.core.errors import UserError

COMPETITORS = {"ours": "benchmarks.ours", "tutorial": "benchmarks.tutorial", "fastai": "benchmarks.fastai_peer"}
"""Name -> module, in the order of each turn."""
FASTAI_PYTHON = common.ROOT / ".venv-fastai" / "bin" / "python"


def run(args: argparse.Namespace) -> None:
    folders = {"spectacles": args.spectacles_data, "folders": args.folder_data}
    folders = {data: folder for data, folder in folders.items() if folder is not None}
    competitors = choose(args.competitors)
    if not folders:
        raise UserError("nothing to compare on: give --spectacles_data FOLDER, --folder_data FOLDER or both.")
    if "fastai" in competitors and not FASTAI_PYTHON.is_file():
        raise UserError(f"{FASTAI_PYTHON} does not exist: make that environment, or give --competitors ours,tutorial.")
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for data, folder in folders.items():
        splits = args.output_dir / data / "splits.csv"
        write_splits(splits, folder, args.limit)
        for competitor, seed in turns(competitors, args.seeds, args.peer_seeds):
            results.setdefault((data, competitor), []).append(result_of(competitor, splits, seed, args))
    table = pd.DataFrame(summaries(results))
    table.to_csv(args.output_dir / "results.csv", index=False)
    text = f"{to_markdown(table)}\n{NOTES}\n{machine(args)}\n"
    (args.output_dir / "table.md").write_text(text, encoding="utf-8")
    print(text)


def choose(names: str) -> list[str]:
    chosen = [name.strip() for name in names.split(",")]
    if unknown := set(chosen) - set(COMPETITORS):
        raise UserError(f"--competitors knows {', '.join(COMPETITORS)}, not {min(unknown)!r}.")
    return [name for name in COMPETITORS if name in chosen]


def write_splits(path: Path, data: Path, limit: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_splits.make(data, 0, limit).to_csv(path, index=False)


def turns(competitors: list[str], seeds: int, peer_seeds: int) -> Iterator[tuple[str, int]]:
    """A B C, A B C, ...: whatever disturbs the machine for a while disturbs all of them."""
    for seed in range(seeds):
        for competitor in competitors:
            if seed < (seeds if competitor == "ours" else peer_seeds):
                yield competitor, seed


def result_of(competitor: str, splits: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The stored result, computed first where there is none. UserError for one that other settings made."""
    output = splits.parent / f"{competitor}-{seed}.json"
    flags, size = (args.flags, args.image_size) if competitor == "ours" else ([], args.image_size or common.NATIVE_SIZE)
    if not output.is_file():
        print(f"[{splits.parent.name}] {competitor}, seed {seed}", flush=True)
        python = FASTAI_PYTHON if competitor == "fastai" else sys.executable
        command = [python, "-W", "ignore", "-m", COMPETITORS[competitor], "--splits", splits, "--output", output]
        command += ["--seed", seed, "--device", args.device, *(["--image_size", size] if size else [])]
        command += ["--", *flags] if flags else []
        with others_at_work() as load:
            done = subprocess.run([str(part) for part in command], cwd=common.ROOT, check=False)
        if done.returncode:
            raise UserError(f"{competitor} ended with exit code {done.returncode}: it says above why.")
        common.write_json(output, json.loads(output.read_text(encoding="utf-8")) | load)
    result = json.loads(output.read_text(encoding="utf-8"))
    if result["asked"] != common.asked(splits, size, args.device, flags):
        raise UserError(f"{output} was made with other settings: move it away, or choose another --output_dir.")
    return result


@contextmanager
def others_at_work() -> Iterator[dict[str, float]]:
    """Filled at the end with `others_cpu`: the share of this machine's CPU time that went to other processes."""
    load: dict[str, float] = {}
    before, started = foreign_seconds(), time.monotonic()
    yield load
    seconds = foreign_seconds() - before
    load["others_cpu"] = max(0.0, seconds / (time.monotonic() - started) / (os.cpu_count() or 1))


def foreign_seconds() -> float:
    """CPU seconds of the machine so far, less those of this process's finished children."""
    # cpu user nice system idle iowait irq softirq steal (proc_stat(5))
    ticks = [int(field) for field in Path("/proc/stat").read_text(encoding="utf-8").split()[1:9]]
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime


def machine(args: argparse.Namespace) -> str:
    versions = ", ".join(f"{name} {package_versions()[name]}" for name in ("torch", "torchvision", "timm"))
    flags = f"; our flags: {' '.join(args.flags)}" if args.flags else ""
    return (
        f"{args.device}, {cpu_count()} cores ({processor()}), {versions}, commit {git_commit() or 'unknown'}; "
        f"starting weights of EfficientNet-Lite0{flags}."
    )


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--spectacles_data", type=Path, help="train.csv, test.csv, test_labels.csv, persons.csv, dataset/"
    )
    parser.add_argument("--folder_data", type=Path, help="one folder per class")
    parser.add_argument("--competitors", default=",".join(COMPETITORS))
    parser.add_argument("--image_size", type=int, help="of all; default: 224, and for ours that of its recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of ours")
    parser.add_argument("--peer_seeds", type=int, default=1, help="seeds of the others")
    parser.add_argument("--limit", type=int, help="largest number of images per split, for a quick try")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parser.add_argument("flags", nargs="*", help="after `--`: further flags of run_pipeline.py")
    args = parser.parse_args()
    args.output_dir = args.output_dir.absolute()
    with common.exit_codes():
        run(args)


if __name__ == "__main__":
    main()
