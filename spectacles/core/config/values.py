"""Settings that are written as text and mean more: explanation methods, a time, a goal for the threshold."""

import re
from dataclasses import dataclass

from spectacles.core.errors import UserError

EXPLANATIONS = ("occlusion", "cam", "gradcam", "integrated_gradients")
"""The first is the server's default: it works with every network and without PyTorch."""

NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"


def explanation_methods(text: str) -> list[str]:
    """'gradcam,occlusion' -> those names, each once, in the order given. Raises UserError."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in EXPLANATIONS]
    if unknown or not names:
        raise UserError(f"--explain_with {text!r} is unknown: use {', '.join(EXPLANATIONS)}, or several with commas.")
    return names


def parse_duration(text: str) -> float:
    """'90s', '10m', '1h' or a plain number of seconds. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if not match or float(match[1]) <= 0:
        raise UserError(f"--time_budget {text!r} is not a duration: use 90s, 10m or 1h.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


def parse_latency(text: str) -> float:
    """'5ms' or a plain number -> milliseconds. Raises UserError."""
    match = re.fullmatch(rf"{NUMBER}\s*(ms)?", text.strip())
    if not match or float(match[1]) <= 0:
        raise UserError(f"--latency {text!r} is not a time for one photo: use, for example, 5ms.")
    return float(match[1])


@dataclass(frozen=True)
class Goal:
    """What a threshold is chosen for. Class 1 is the positive one."""

    name: str
    """f1, hter, balanced_accuracy, precision, recall or cost."""
    least: float = 0.0
    """Of precision and recall: what must be reached."""
    costs: tuple[float, float] = (1.0, 1.0)
    """Of cost: that of a false positive and that of a false negative."""

    def __str__(self) -> str:
        if self.name == "cost":
            return f"cost:FP={self.costs[0]:g},FN={self.costs[1]:g}"
        return f"{self.name}:{self.least:g}" if self.name in ("precision", "recall") else self.name


def parse_goal(text: str) -> Goal:
    """Raises UserError for anything else."""
    if text in ("f1", "hter", "balanced_accuracy"):
        return Goal(text)
    if (match := re.fullmatch(rf"(precision|recall):{NUMBER}", text)) and 0 < float(match[2]) <= 1:
        return Goal(match[1], least=float(match[2]))
    if match := re.fullmatch(rf"cost:FP={NUMBER},FN={NUMBER}", text):
        costs = float(match[1]), float(match[2])
        if all(costs):
            return Goal("cost", costs=costs)
    raise UserError(
        f"--threshold_for {text!r} is unknown: use f1, hter, balanced_accuracy, precision:0.95, recall:0.99 (a share "
        "up to 1) or cost:FP=1,FN=5 (both above 0)."
    )
