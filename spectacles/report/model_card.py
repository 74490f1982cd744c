"""MODEL_CARD.md: what a model is, what it is for and how far to trust it (Mitchell et al. 2019)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from spectacles.core import wording
from spectacles.core.fileio import atomic_write
from spectacles.core.run_dir import RunDir
from spectacles.metrics import basics
from spectacles.report import key_findings, run_summary
from spectacles.report.run_summary import Json, RunSummary, metric_names, per_class_columns, weakest_first

MAX_ROWS = 40
"""The weakest classes or groups are listed."""
NOT_STATED = "not stated (set it with --data_licence)"


class Markdown(str):
    """Text that is already Markdown; all other values are escaped."""


def write(run_dir: RunDir) -> Path | None:
    """Beside the report, for a run with a trained model; without one, an outdated card is removed."""
    run = run_summary.read(run_dir)
    if not run.bundle:
        run_dir.model_card.unlink(missing_ok=True)
        return None
    template = _environment().get_template("model_card.md.jinja")
    card = template.render(
        name=run_dir.name,
        run=run,
        config=run.config,
        data=run.results.get("dataset"),
        train=run.results["train"],
        bundle=run.bundle,
        scored=run.scored,
        environment=run.environment,
        licence=run.config.get("data_licence") or NOT_STATED,
        limits=key_findings.limits(run.bundle),
        abstention=key_findings.abstention(run.scored),
        noun=wording.noun_of(run.multi_label),
        nouns=wording.plural(wording.noun_of(run.multi_label)),
        key_findings=[finding.text for finding in key_findings.collect(run)],
        few=[entry for entry in run.slices if entry["source"] == "column" and not entry["sufficient"]],
        tables=_tables(run),
    )
    atomic_write(run_dir.model_card, card)
    return run_dir.model_card


def escape(value: Any) -> str:
    """Text that Markdown renders literally: on one line, without markup, HTML or table borders."""
    if isinstance(value, Markdown):
        return value
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!])", r"\\\1", " ".join(str(value).split()))


def code(value: Any) -> Markdown:
    """A code span, delimited by as many backticks as its content requires (CommonMark 6.1)."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markdown:
    """The first column left-aligned, the others right-aligned; '' without rows."""
    if not rows:
        return Markdown("")
    rule = [":---", *["---:"] * (len(header) - 1)]
    lines = [list(map(escape, header)), rule, *[list(map(escape, row)) for row in rows]]
    return Markdown("\n".join(f"| {' | '.join(cells)} |" for cells in lines))


def _environment() -> Environment:
    environment = Environment(  # nosec B701 # noqa: S701 - Markdown, not HTML: `escape` sees every value
        loader=PackageLoader("spectacles.report"),
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    formats = (wording.percent, wording.percents, wording.thousands, wording.duration, code)
    environment.filters |= {function.__name__: function for function in formats}
    environment.globals |= {"interval_of": run_summary.interval_of, "slice_name": key_findings.slice_name}
    return environment


def _tables(run: RunSummary) -> dict[str, Markdown]:
    names = metric_names(run)
    return {
        "classes": _class_table(run),
        "metrics": _metric_table(run.scores, names),
        "per_class": _per_class_table(run),
        "slices": _slice_table(run.slices, names["accuracy"]),
        "calibration": _calibration_table(run.scored.get("calibration"), names),
        "corruptions": _corruption_table(run.corruptions),
        "seconds": table(("stage", "time"), [(stage, wording.duration(time)) for stage, time in run.seconds.items()]),
        "versions": table(("package", "version"), list(run.bundle["versions"].items())),
    }


def _class_table(run: RunSummary) -> Markdown:
    data = run.results.get("dataset")
    if data is None:
        return Markdown("")
    counts = data["counts"]
    rows = [
        (name, *(wording.thousands(counts[split][name]) for split in counts)) for name in data["classes"][:MAX_ROWS]
    ]
    if run.multi_label:  # the rows above do not add up to it
        rows.append(("all images", *(wording.thousands(run.images[split]) for split in counts)))
    return table((wording.noun_of(run.multi_label), *counts), rows)


def _metric_table(scores: dict[str, Json], names: dict[str, str]) -> Markdown:
    def cell(values: Json, key: str) -> str:
        interval = run_summary.interval_of(values, key)
        text = wording.number(values.get(key)) + (f" ({wording.numbers(interval)})" if interval else "")
        over = basics.over_classes(key, values)
        return f"{text} {over}" if over and values.get(key) is not None else text

    known = [(key, name) for key, name in names.items() if any(v.get(key) is not None for v in scores.values())]
    rows = [(name, *(cell(values, key) for values in scores.values())) for key, name in known]
    return table(("metric (95 % interval)", *scores), rows)


def _per_class_table(run: RunSummary) -> Markdown:
    rows = weakest_first(run.scored)[:MAX_ROWS]
    columns = per_class_columns(run.multi_label)
    return table(
        (wording.noun_of(run.multi_label), *columns.values(), "images"),
        [(name, *(wording.number(row[key]) for key in columns), int(row["support"] or 0)) for name, row in rows],
    )


def _slice_table(slices: Sequence[Json], right: str) -> Markdown:
    rows = [
        (
            key_findings.slice_name(entry),
            wording.thousands(entry["images"]),
            wording.percent(entry["accuracy"]),
            wording.percents(entry["interval"]),
            "" if entry["sufficient"] else "too few images",
        )
        for entry in slices[:MAX_ROWS]
    ]
    return table(("group", "images", right, "95 % interval", "note"), rows)


def _calibration_table(calibration: Json | None, names: dict[str, str]) -> Markdown:
    if not calibration:
        return Markdown("")
    before, after = calibration["before"], calibration["after"]
    rows = [(names.get(key, key), wording.number(before[key]), wording.number(after.get(key))) for key in before]
    return table(("lower is better", "before", "after"), rows)


def _corruption_table(corruptions: Json) -> Markdown:
    rows = [
        (name.replace("_", " "), *map(wording.percent, values))
        for name, values in corruptions.get("accuracies", {}).items()
    ]
    return table(("corruption, by severity", "1", "2", "3", "4", "5"), rows)
