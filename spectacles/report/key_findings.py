"""The key findings of a run: a few sentences for readers who read nothing else."""

from dataclasses import dataclass
from statistics import fmean
from typing import get_args

from spectacles.core.wording import count_of, percent, percents
from spectacles.metrics import basics
from spectacles.metrics.abstention import AbstainReason
from spectacles.report.run_summary import Json, RunSummary

FEW = 100
"""With fewer images, a score is hardly more than an impression."""
MAX_THRESHOLDS = 12
"""Labels whose thresholds are named."""
SEVERITY = 3
"""Of 5, the one at which the worst corruption is reported."""


@dataclass(frozen=True)
class KeyFinding:
    text: str
    section: str
    """Id of the section of the report with the details."""


def collect(run: RunSummary) -> list[KeyFinding]:
    """The most consequential first."""
    sentences = [
        ("evaluate", _optimistic(run)),
        ("evaluate", _few(run.scored)),
        ("evaluate", _absent(run)),
        ("comparison", str(run.comparison.get("sentence", ""))),
        ("baseline", _leakage_of_a_random_split(run.baseline)),
        ("slices", weakest_slice(run.worst_gap)),
        ("corruptions", worst_corruption(run.corruptions)),
        ("noisy_labels", _doubtful_labels(run)),
        ("error_analysis", unfaithful(run.faithfulness)),
        ("duplicates", _duplicates_across_splits(run)),
        ("abstention", abstention(run.scored)),
        ("dataset", _rejected(run)),
    ]
    return [KeyFinding(text, section) for section, text in sentences if text]


def weakest_slice(worst: Json) -> str:
    """On `worst_gap` of slices.json: the group that is significantly worse than all images; '' without one."""
    if not worst or worst["interval"][0] <= 0:
        return ""
    low, high = (100 * end for end in worst["interval"])
    return (
        f"Weakest group: {slice_name(worst)}, {percent(worst['accuracy'])} of its {count_of(worst['images'], 'image')} "
        f"correct, {100 * worst['gap']:.1f} points below the overall accuracy ({low:.1f} to {high:.1f}, corrected for "
        f"picking the worst of {worst['among']} groups)."
    )


def slice_name(entry: Json) -> str:
    return f"{entry['column']}: {entry['value']}"


def worst_corruption(corruptions: Json) -> str:
    accuracies = corruptions.get("accuracies")
    if not accuracies:
        return ""
    name = min(accuracies, key=lambda key: fmean(accuracies[key]))
    severities = len(accuracies[name])
    severity = min(SEVERITY, severities)
    return (
        f"Worst corruption: {name.replace('_', ' ')}, {percent(accuracies[name][severity - 1])} correct at severity "
        f"{severity} of {severities}, {percent(corruptions['accuracy_clean'])} on clean photos."
    )


def abstention(scored: Json) -> str:
    """On how many of the scored images the model abstains, and its accuracy on the others; '' where it never does."""
    counts = {reason: scored[reason] for reason in get_args(AbstainReason) if scored.get(reason)}
    if not counts:
        return ""
    why = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items())
    others = scored.get("answered", {})
    right = f"; it gets {percent(others.get('accuracy'))} of the others right ({percents(others.get('interval'))})"
    images = count_of(scored["images"], "image")
    return f"The model abstains on {sum(counts.values()):,} of {images} ({why}){right if others.get('images') else ''}."


def limits(bundle: Json) -> list[str]:
    """How the label is chosen and when the model abstains, by the thresholds of bundle.json; empty without a bundle."""
    if not bundle:
        return []
    threshold, confidence_threshold, ood_threshold = (
        bundle.get(key) for key in ("threshold", "confidence_threshold", "ood_threshold")
    )
    if bundle.get("multi_label"):
        lines = [_label_limits(bundle["classes"], bundle["label_thresholds"])]
    elif threshold is not None:
        lines = [f"The label is {bundle['classes'][1]} if its probability is at least {threshold:.3f}."]
    else:
        lines = ["The label is the most probable class."]
    if confidence_threshold:
        lines.append(
            "The model abstains on every image: no confidence is high enough."
            if confidence_threshold > 1
            else f"The model abstains below a confidence of {confidence_threshold:.3f}."
        )
    if ood_threshold is not None and ood_threshold < 1:
        lines.append(
            f"It abstains on photos less like the training photos than {percent(ood_threshold)} of the validation "
            "photos (out of distribution)."
        )
    return lines


def _label_limits(classes: list[str], thresholds: list[float]) -> str:
    named = [f"{name} {threshold:.3f}" for name, threshold in zip(classes, thresholds, strict=True)]
    more = f" and {len(named) - MAX_THRESHOLDS} more" if len(named) > MAX_THRESHOLDS else ""
    return f"A label is assigned from this probability upwards: {', '.join(named[:MAX_THRESHOLDS])}{more}."


def _optimistic(run: RunSummary) -> str:
    if run.split != "val":
        return ""
    return (
        "There are no labelled test images: the score comes from validation data, which was used to select the model, "
        "and is optimistic."
    )


def _few(scored: Json) -> str:
    count = scored.get("images", FEW)
    return f"Only {count_of(count, 'image')} were scored: the interval is wide." if count < FEW else ""


def _absent(run: RunSummary) -> str:
    absent = basics.absent_classes(run.scored) if run.scored else ""
    split = {"val": "validation"}.get(run.split, run.split)
    return f"The {split} split has {absent}: how well the model does there is not known." if absent else ""


def unfaithful(methods: Json) -> str:
    """Attribution methods whose maps do not show what matters to the model; '' where none is known to fail."""
    failed = [name for name, result in methods.items() if result["faithful"] is False]
    return f"Explanations by {' and '.join(failed)} do not show what matters to the model." if failed else ""


def _leakage_of_a_random_split(baseline: Json) -> str:
    if not random_split_overstates(baseline):
        return ""
    grouped, random = baseline["grouped_split"]["accuracy"], baseline["random_split"]["accuracy"]
    return (
        f"A random split would overstate the accuracy: a linear probe gets {percent(random)} right on it, but "
        f"{percent(grouped)} on a split that keeps near duplicates and groups together."
    )


def random_split_overstates(baseline: Json) -> bool:
    """Whether the random split's score in explore/baseline.json is significantly above the grouped split's."""
    if not baseline:
        return False
    low = baseline.get("differences", {}).get("random_split", {}).get("interval", [None])[0]
    if low is not None:
        return bool(low > 0)
    return bool(baseline["random_split"]["interval"][0] > baseline["grouped_split"]["interval"][1])


def _doubtful_labels(run: RunSummary) -> str:
    suspected = run.results.get("error_analysis", {}).get("suspected_labels", 0)
    if not suspected or run.noisy_labels.empty:
        return ""
    return f"{count_of(suspected, 'label')} {'looks' if suspected == 1 else 'look'} wrong."


def _duplicates_across_splits(run: RunSummary) -> str:
    crossing = int((run.duplicates["crosses_split"] == "True").sum())
    if not crossing:
        return ""
    return f"{count_of(crossing, 'pair')} of duplicates in two different splits: the score may be optimistic."


def _rejected(run: RunSummary) -> str:
    accounting = run.results.get("dataset", {}).get("row_accounting", {})
    if not accounting.get("rejected"):
        return ""
    return f"{accounting['rejected']:,} of {count_of(accounting['rows'], 'row')} could not be used."
