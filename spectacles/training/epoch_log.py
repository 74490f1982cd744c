"""How the progress of training is reported: on the screen, to MLflow, and as files."""

import logging
from pathlib import Path

from spectacles.core.csv_cells import write_csv
from spectacles.core.run_dir import RunDir
from spectacles.report import data_plots
from spectacles.tracking import tracking
from spectacles.training.history import Epoch, best_epoch, history_frame

log = logging.getLogger("spectacles")


def log_epoch(history: list[Epoch], planned: int) -> None:
    """The last epoch as a line and as metrics, with a star where it is the best so far."""
    epoch = history[-1]
    mark = " *" if best_epoch(history) is epoch else ""
    log.info("  epoch %d/%d %-9s train loss %.4f  val loss %.4f  accuracy %.4f  %s %.4f%s  (%.1f s)",
             epoch.epoch, planned, epoch.phase, epoch.train_loss, epoch.val_loss, epoch.val_accuracy,
             epoch.metric, epoch.value, mark, epoch.seconds)  # fmt: skip
    values = {"train_loss": epoch.train_loss, "val_loss": epoch.val_loss, f"val_{epoch.metric}": epoch.value,
              "val_accuracy": epoch.val_accuracy, "val_balanced_accuracy": epoch.val_balanced_accuracy,
              "learning_rate": epoch.learning_rate, "epoch_seconds": epoch.seconds}  # fmt: skip
    tracking.log_metrics(values, step=epoch.epoch)


def write_history(history: list[Epoch], metric: str, folder: Path) -> None:
    """history.csv and curves.png, once an epoch is finished."""
    if history:
        frame = history_frame(history)
        write_csv(folder / "history.csv", frame)
        rows = [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
        data_plots.training_curves(rows, folder / "curves.png", metric)


def log_interruption(history: list[Epoch], run_dir: RunDir) -> None:
    if history:
        best = best_epoch(history)
        log.info("  interrupted. The best model so far (epoch %d, %s %.4f) is a complete bundle: %s", best.epoch,
                 best.metric, best.value, run_dir.bundle)  # fmt: skip
        log.info("  use it:   python predict.py photo.jpg --bundle %s", run_dir.bundle)
    else:
        log.info("  interrupted before the first epoch was finished.")
    log.info("  resume:   python train.py --output_dir %s --run_name %s --resume", run_dir.output_dir, run_dir.name)
