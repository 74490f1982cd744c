"""The table of `benchmarks.compare`: means over the seeds, and each competitor relative to ours."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

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
imports, nor scoring the test split. Images/s: training images of the fine-tuning epochs per second.
Peak memory is that of the largest process. "CPU others took": share of the machine's CPU time during the run that other
processes used; above a few per cent the times mean little, because CPU threads wait for each other. "Its time / ours to
its accuracy": the competitor's whole training time over ours where our mean accuracy is at least its own; ours has a
bundle to score only at the end, so our whole training time counts. "s until it has our accuracy": the first epoch whose
test accuracy, averaged over its seeds, is at least our mean.
"""


def summaries(results: dict[tuple[str, str], list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """One row per data set and competitor; undefined values are None."""
    for (data, competitor), runs in results.items():
        ours = results.get((data, "ours"))
        row: dict[str, Any] = {"data": data, "competitor": competitor, "runs": len(runs)}
        row["image_size"] = runs[0]["image_size"]
        for name in ("accuracy", "balanced_accuracy", "hter", "train_seconds", "images_per_second"):
            row[name], row[f"{name}_std"] = mean_and_spread([result.get(name) for result in runs])
        for name in ("peak_memory_gb", "wall_seconds", "others_cpu"):
            row[name], _ = mean_and_spread([result.get(name) for result in runs])
        yield row | (against(runs, ours) if ours and competitor != "ours" else {})


def mean_and_spread(values: list[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    return (statistics.mean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None)


def against(peer: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, float | None]:
    """Ratios of means: `time_vs_ours`, `ours_reaches_it` (None: ours does not), `it_reaches_ours` in s."""
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
