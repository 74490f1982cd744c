"""Settings that a command changes although the stage they belong to has finished with others."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

Settings = Mapping[str, Any]
"""Plain values, as config.yaml holds them."""

ONE_COMMAND = ("output_dir", "run_name", "resume", "rerun", "stages")
"""They say what a command does, not how; no record holds them but the first two."""
ONE_STAGE = ("precision", "bundle")
"""Kept with the stage, and not as a default for the commands after it: what was scored in int8 is not served in it."""
NO_INFLUENCE = frozenset(
    (*ONE_COMMAND, "device", "engine", "num_workers", "pixel_cache_gb", "checkpoint_every", "backbones")
)
"""Where, how fast and in which portions a stage works: a finished one need not be repeated for another value."""
NO_INFLUENCE_ON = {
    "dataset": {"batch_size", "galleries"}, "train": {"galleries"}, "explore": {"batch_size"},
    "evaluate": {"batch_size"}, "error_analysis": {"batch_size"}, "predict": {"batch_size"},
}  # fmt: skip


def changes(
    stage: str, now: Settings, before: Settings, default: Settings, elsewhere: Collection[str] = ()
) -> list[str]:
    """'--epochs was 5 and is 3' for each setting in `now` that this command changes and that `stage` finished with
    otherwise.

    `before`: what the stage finished with. `default`: the run's settings, which a command without flags repeats; a
    value that agrees with them was not asked for. `elsewhere`: settings that a stage about to run uses.
    """
    ignored = NO_INFLUENCE | NO_INFLUENCE_ON.get(stage, set()) | set(elsewhere)
    return [
        f"--{name} was {before[name]} and is {value}"
        for name, value in now.items()
        if name not in ignored
        and name in before
        and not _same(value, before[name])
        and not (name in default and _same(value, default[name]))
    ]


def _same(one: Any, other: Any) -> bool:
    """Paths may be written in two ways."""
    if isinstance(one, str) and isinstance(other, str) and one != other:
        return Path(one).absolute() == Path(other).absolute() and ("/" in one + other)
    return bool(one == other)


def recorded(settings: Settings) -> dict[str, Any]:
    """Without those of one command: a run's config.yaml can be given to --config as it is."""
    return {name: value for name, value in settings.items() if name not in ("resume", "rerun", "stages")}
