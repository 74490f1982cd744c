"""A tracked command that takes one step for each line on stdin; run by test_tracking_server.

At the end it prints whether MLflow was imported.
"""

import logging
import sys
from pathlib import Path

from spectacles.core.run_dir import create_run
from spectacles.tracking import tracking


def main(output_dir: str, name: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    tracking.DELIVERY_TIMEOUT = 2.0  # most of these commands wait in vain
    run_dir = create_run(Path(output_dir), name)
    history = run_dir.folder("train") / "history.csv"
    with tracking.parent_run(run_dir), tracking.stage_run(run_dir, "train", {"epochs": 3}):
        with tracking.child_run("fine_tune"):
            for line in sys.stdin:
                tracking.log_metrics({"loss": 1 / int(line), "constant": 0.5}, step=int(line))
                print("step", line, flush=True)
        history.write_text("epoch\n1\n")
        tracking.log_artifact(history)
    print("imported" if "mlflow" in sys.modules else "not imported", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
