"""Backbones compared by the real command, each measured in a process of its own."""

from pathlib import Path

import pandas as pd
from command_line import data_flags, run_script
from mlflow.tracking import MlflowClient

from spectacles.tracking import delivery


def test_a_benchmark_trains_measures_and_tracks_what_it_can(sample: Path, tmp_path: Path) -> None:
    done = run_script(
        "benchmark.py", "--backbones", "simple_cnn,no_such_net", "--no_pretrained", "--image_size", 32, "--epochs", 1,
        "--device", "cpu", "--engine", "torch", "--output_dir", tmp_path, "--run_name", "b", *data_flags(sample),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no_such_net: not measured" in done.stdout
    table = pd.read_csv(tmp_path / "b" / "benchmark.csv").set_index("backbone")
    assert table["problem"].isna().tolist() == [True, False]
    row = table.loc["simple_cnn"]
    assert 0 <= row["accuracy"] <= 1
    assert row["train_seconds"] > 0
    assert row["peak_memory_mb"] > 100

    assert delivery.sync(tmp_path)  # a busy machine may take longer than the command waits
    store = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("spectacles")
    runs = {run.info.run_name: run for run in store.search_runs([experiment.experiment_id])}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents["simple_cnn"] == parents["no_such_net"] == parents["dataset"] == runs["b"].info.run_id
    assert parents["train"] == parents["evaluate"] == runs["simple_cnn"].info.run_id
    assert (runs["simple_cnn"].info.status, runs["no_such_net"].info.status) == ("FINISHED", "FAILED")
    assert runs["simple_cnn"].data.metrics["latency_p50_ms"] == row["latency_p50_ms"]
    assert {item.path for item in store.list_artifacts(runs["b"].info.run_id)} == {"benchmark.csv", "benchmark.png"}
