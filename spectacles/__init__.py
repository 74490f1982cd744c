"""The nouns of Spectacles: everything that more than one stage needs."""

import os

__version__ = "0.1.0"

# Libraries with telemetry read these when they are imported. A value that is set already stays.
for _switch, _off in (
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
):
    os.environ.setdefault(_switch, _off)
