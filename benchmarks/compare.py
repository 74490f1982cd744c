"""All competitors in turn on each data set and seed, and the tables that compare them.

`python -m benchmarks.compare --spectacles_data FOLDER --folder_data FOLDER -- --recipe fast`; flags after `--` go to
our `run_pipeline.py`. Results that exist are kept, so a run that was stopped goes on where it was.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import common, make_splits
from spectacles.core.device import cpu_count
from spectacles.core.environment import git_commit, package_versions
from spectacles.core.errors import UserError

COMPETITORS = {"ours": "benchmarks.ours", "tutorial": "benchmarks.tutorial", "fastai": "benchmarks.fastai_peer"}
"""Name -> module, in the order of each turn."""
FASTAI_PYTHON = common.ROOT / ".venv-fastai" / "bin" / "python"
HEADER = {
    "data": "data",
    "competitor": "competitor",
    "runs": "runs",
    "image_size": "px",
    "accuracy": "test accuracy",
    "hter": "HTER",
    "train_seconds": "training s",
    "images_per_second": "images/s, fine-tuning",
    "peak_memory_gb": "peak GB",
    "wall_seconds": "whole command s",
    "others_cpu": "CPU others took",
    "time_vs_ours": "training time vs ours",
    "ours_reaches_it": "its time / ours to its accuracy",
    "it_reaches_ours": "s until it has our accuracy",
}
NOTES = """\
Mean ± standard deviation over the seeds. Training seconds count loading and the validation after each epoch; not
imports, nor scoring the test split. Images a second: training images of the fine-tuning epochs over their seconds.
Peak memory is that of the largest process. "CPU others took": share of the machine's CPU time during the run that other
processes used; above a few per cent the times say little, because CPU threads wait for each other. "Its time / ours to
its accuracy": the competitor's whole training time over ours where our mean accuracy is at least its own; ours has a
bundle to score only at the end, so our whole training time counts. "s until it has our accuracy": the first epoch whose
test accuracy, averaged over its seeds, is at least our mean.
"""


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


def summaries(results: dict[tuple[str, str], list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """One row for each data set and competitor; what cannot be said is None."""
    for (data, competitor), own in results.items():
        ours = results.get((data, "ours"))
        row: dict[str, Any] = {"data": data, "competitor": competitor, "runs": len(own)}
        row["image_size"] = own[0]["image_size"]
        for name in ("accuracy", "balanced_accuracy", "hter", "train_seconds", "images_per_second"):
            row[name], row[f"{name}_std"] = mean_and_spread([result.get(name) for result in own])
        for name in ("peak_memory_gb", "wall_seconds", "others_cpu"):
            row[name], _ = mean_and_spread([result.get(name) for result in own])
        yield row | (against(own, ours) if ours and competitor != "ours" else {})


def mean_and_spread(values: list[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    return (statistics.mean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None)


def against(peer: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, float | None]:
    """Ratios of means: `time_vs_ours`, `ours_reaches_it` (None: we do not), `it_reaches_ours` in s (None: never)."""
    accuracy, seconds = (statistics.mean(result[name] for result in ours) for name in ("accuracy", "train_seconds"))
    peer_accuracy, peer_seconds = (
        statistics.mean(result[name] for result in peer) for name in ("accuracy", "train_seconds")
    )
    ratio = peer_seconds / seconds
    curve = [
        {name: statistics.mean(point[name] for point in epoch) for name in ("seconds", "accuracy")}
        for epoch in zip(*(result["curve"] for result in peer), strict=True)
    ]
    reached = [point["seconds"] for point in curve if point["accuracy"] >= accuracy]
    return {
        "time_vs_ours": ratio,
        "ours_reaches_it": ratio if accuracy >= peer_accuracy else None,
        "it_reaches_ours": reached[0] if reached else None,
    }


def to_markdown(table: pd.DataFrame) -> str:
    lines = [f"| {' | '.join(HEADER.values())} |", "|" + "---|" * len(HEADER)]
    lines += [f"| {' | '.join(cells(row))} |" for row in table.to_dict("records")]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    def number(name: str, form: Callable[[float], str], missing: str = "-") -> str:
        value, spread = row.get(name), row.get(f"{name}_std")
        if value is None or pd.isna(value):
            return missing
        return form(value) + ("" if spread is None or pd.isna(spread) else f" ± {form(spread)}")

    is_ours = row["competitor"] == "ours"
    return [
        row["data"],
        row["competitor"],
        str(row["runs"]),
        str(row["image_size"]),
        number("accuracy", "{:.2%}".format),
        number("hter", "{:.4f}".format),
        number("train_seconds", "{:.1f}".format),
        number("images_per_second", "{:.1f}".format),
        number("peak_memory_gb", "{:.2f}".format),
        number("wall_seconds", "{:.0f}".format),
        number("others_cpu", "{:.0%}".format),
        number("time_vs_ours", "{:.2f}x".format, "1" if is_ours else "-"),
        number("ours_reaches_it", "{:.2f}x".format, "" if is_ours else "ours does not reach it"),
        number("it_reaches_ours", "{:.1f}".format, "" if is_ours else "never"),
    ]


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
    parser.add_argument("--folder_data", type=Path, help="one folder a class")
    parser.add_argument("--competitors", default=",".join(COMPETITORS))
    parser.add_argument("--image_size", type=int, help="of all; default: 224, and for ours what its recipe chooses")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of ours")
    parser.add_argument("--peer_seeds", type=int, default=1, help="seeds of the others")
    parser.add_argument("--limit", type=int, help="images of each split at most, for a quick try")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parser.add_argument("flags", nargs="*", help="after `--`: further flags of run_pipeline.py")
    args = parser.parse_args()
    args.output_dir = args.output_dir.absolute()
    with common.exit_codes():
        run(args)


if __name__ == "__main__":
    main()
