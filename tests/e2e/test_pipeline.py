"""The whole pipeline from the command line: what it writes, and what the stages guarantee one another."""

import json
import shutil
import subprocess
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from command_line import PATIENCE, ROOT, SMALL, Finished, data_flags, run_script
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from spectacles.core.run_dir import STAGES, RunDir, find_run
from spectacles.inference.predictor import Predictor
from spectacles.models.bundle import load_bundle
from spectacles.sample_data import generate
from spectacles.tracking import delivery


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def weights(run_dir: RunDir) -> dict:
    return load_file(next(run_dir.bundle.glob("*.safetensors")))


def assert_same_weights(one: RunDir, other: RunDir) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(a[key].equal(b[key]) for key in a)


def client(finished: Finished) -> MlflowClient:
    return MlflowClient(f"sqlite:///{finished.run_dir.output_dir / 'mlflow.db'}")


def runs_by_name(finished: Finished) -> dict[str, mlflow.entities.Run]:
    assert delivery.sync(finished.run_dir.output_dir)  # a busy machine may take longer than the command waits
    store = client(finished)
    experiment = store.get_experiment_by_name("spectacles")
    return {run.info.run_name: run for run in store.search_runs([experiment.experiment_id])}


def test_every_stage_finishes_and_the_closing_lines_name_real_paths(finished: Finished) -> None:
    assert [stage for stage in STAGES if finished.run_dir.done(stage)] == list(STAGES)
    for label in ("report", "predict", "serve", "ask"):
        assert any(line.startswith(label) for line in finished.output.splitlines()), finished.output
    assert str(finished.run_dir.report) in finished.output


def test_the_bundle_carries_its_network_for_other_engines(finished: Finished) -> None:
    bundle = load_bundle(finished.run_dir.bundle)
    assert bundle.network is not None and bundle.without_network == ""
    assert Predictor(finished.run_dir.bundle, "cpu", images=1).engine == "onnxruntime"


def test_the_row_accounting_adds_up_and_no_row_is_lost(finished: Finished) -> None:
    accounting = read_json(finished.run_dir.result("dataset"))["row_accounting"]
    given = len(pd.read_csv(finished.sample / "train.csv")) + len(pd.read_csv(finished.sample / "test.csv"))
    assert accounting["rows"] == given == accounting["used"] + accounting["converted"] + accounting["rejected"]
    assert accounting["rejected"] == sum(accounting["rejections"].values()) > 0
    assert accounting["converted"] == sum(accounting["conversions"].values()) > 0


def test_planted_duplicates_never_cross_a_split(finished: Finished) -> None:
    planted = pd.read_csv(finished.sample / "planted.csv", dtype=str, keep_default_na=False)
    cluster = pd.read_csv(finished.run_dir.splits).set_index("file")["cluster"]
    copies = planted[planted["kind"].isin(["exact_duplicate", "near_duplicate"])]
    assert len(copies) >= 3
    assert (cluster[copies["file"]].to_numpy() == cluster[copies["of"]].to_numpy()).all()


def test_every_test_row_is_in_the_predictions_and_in_the_submission_in_order(finished: Finished) -> None:
    given = pd.read_csv(finished.sample / "test.csv")
    predicted = pd.read_csv(finished.run_dir.path / "predict" / "predictions.csv")
    submission = pd.read_csv(finished.run_dir.path / "predict" / "submission.csv")
    assert predicted["file"].tolist() == given["file"].tolist()
    assert submission.columns.tolist() == ["id", "glasses"]
    assert submission["id"].tolist() == given["id"].tolist()
    assert predicted[["p_0", "p_1"]].sum(axis=1).sub(1).abs().max() < 1e-9


def test_metrics_follow_from_the_predictions_on_disk(finished: Finished) -> None:
    table = pd.read_csv(finished.run_dir.predictions, dtype={"label": str, "predicted": str})
    scores = read_json(finished.run_dir.path / "evaluate" / "metrics.json")
    for split in ("val", "test"):
        part = table[table["split"] == split]
        assert scores[split]["images"] == len(part)
        assert scores[split]["accuracy"] == pytest.approx((part["label"] == part["predicted"]).mean())


def test_the_bundle_scores_what_was_logged(finished: Finished) -> None:
    trained = read_json(finished.run_dir.result("train"))
    assert trained["metrics"]["rescored"] == pytest.approx(trained["best_value"], abs=1e-6)  # BatchNorm unfolded
    history = pd.read_csv(finished.run_dir.path / "train" / "history.csv")
    assert history["val_log_loss"].min() == trained["best_value"]
    scores = read_json(finished.run_dir.path / "evaluate" / "metrics.json")
    assert scores["val"]["log_loss"] == pytest.approx(trained["best_value"], abs=1e-5)  # by another engine


def test_runs_are_nested_with_parameters_metrics_and_artefacts(finished: Finished) -> None:
    runs = runs_by_name(finished)
    parent = runs[finished.run_dir.name]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for stage in STAGES:
        assert runs[stage].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert runs[stage].data.tags["stage"] == stage
        assert 1 <= len(client(finished).list_artifacts(runs[stage].info.run_id)) <= 16
    for phase, epochs in (("head", 1), ("fine_tune", 2)):
        assert runs[phase].data.tags["mlflow.parentRunId"] == runs["train"].info.run_id
        assert len(client(finished).get_metric_history(runs[phase].info.run_id, "val_loss")) == epochs
    assert runs["train"].data.params["epochs"] == "2"
    scores = read_json(finished.run_dir.path / "evaluate" / "metrics.json")
    assert parent.data.metrics["test_accuracy"] == scores["test"]["accuracy"]
    assert [dataset.dataset.name for dataset in runs["dataset"].inputs.dataset_inputs]
    artifacts = {item.path for item in client(finished).list_artifacts(runs["train"].info.run_id)}
    assert {"bundle", "history.csv", "curves.png"} <= artifacts
    assert list((finished.run_dir.output_dir / "mlartifacts").rglob("report.html"))


def test_the_report_is_one_file_with_a_section_for_every_stage(finished: Finished) -> None:
    page = finished.run_dir.report.read_text(encoding="utf-8")
    for stage in STAGES:
        assert f'<section id="{stage}">' in page
    assert page.count("data:image/webp;base64,") > 10
    assert "http://" not in page
    assert "https://" not in page


@pytest.fixture(scope="module")
def one_by_one(indexed: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The same run, stage by stage. During training every test file is destroyed and every test label flipped."""
    outputs = tmp_path_factory.mktemp("one_by_one") / "outputs"
    shutil.copytree(indexed.output_dir, outputs)
    run_dir = find_run(outputs, "latest")
    splits = pd.read_csv(run_dir.splits, dtype=str, keep_default_na=False)
    test = splits["split"] == "test"
    assert test.sum() > 5
    destroyed = splits.copy()
    destroyed.loc[test, "path"] = [str(outputs.parent / f"{number}.jpg") for number in range(test.sum())]
    for path in destroyed.loc[test, "path"]:
        Path(path).write_bytes(b"not an image")
    destroyed.loc[test, "label"] = destroyed.loc[test, "label"].map({"0": "1", "1": "0", "": ""})
    original = run_dir.splits.read_bytes()
    destroyed.to_csv(run_dir.splits, index=False)
    done = run_script("train.py", *SMALL[:6], "--epochs", 2, "--output_dir", outputs)
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir.splits.write_bytes(original)
    done = run_script("evaluate.py", "--output_dir", outputs)
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir


def test_stages_run_one_by_one_give_the_same_metrics(finished: Finished, one_by_one: RunDir) -> None:
    assert read_json(one_by_one.path / "evaluate" / "metrics.json") == read_json(
        finished.run_dir.path / "evaluate" / "metrics.json"
    )


def test_training_never_sees_the_test_split(finished: Finished, one_by_one: RunDir) -> None:
    """With every test file destroyed and every test label flipped, training gives the same weights."""
    assert_same_weights(one_by_one, finished.run_dir)


def test_a_failed_stage_marks_its_run_and_the_parent_failed(finished: Finished, tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    shutil.copytree(finished.sample, sample)
    flags = ("--output_dir", tmp_path, "--run_name", "broken")
    assert run_script("dataset.py", *data_flags(sample), *flags).returncode == 0
    shutil.rmtree(sample / "dataset")
    done = run_script("run_pipeline.py", *SMALL, *flags, "--resume", "--stages", "train,evaluate")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "are no longer what was indexed" in done.stderr
    broken = Finished(find_run(tmp_path, "broken"), sample, "")
    runs = runs_by_name(broken)
    assert {runs[name].info.status for name in ("train", "broken")} == {"FAILED"}
    assert runs["dataset"].info.status == "FINISHED"
    assert not broken.run_dir.done("train")


def test_resume_runs_only_what_is_missing(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.run_dir.output_dir, tmp_path / "outputs")
    run_dir = find_run(tmp_path / "outputs", finished.run_dir.name)
    before = run_dir.result("train").stat().st_mtime_ns
    run_dir.result("evaluate").unlink()
    run_dir.result("predict").unlink()
    done = run_script("run_pipeline.py", "--resume", "--output_dir", tmp_path / "outputs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("already finished") == 3  # error analysis was built on the lost evaluation
    assert all(run_dir.done(stage) for stage in STAGES)
    assert run_dir.result("train").stat().st_mtime_ns == before


def test_a_run_is_never_overwritten_by_another_of_the_same_name(finished: Finished) -> None:
    flags = ("--output_dir", finished.run_dir.output_dir, "--run_name", finished.run_dir.name)
    done = run_script("run_pipeline.py", *data_flags(finished.sample), *flags)
    assert done.returncode == 2
    assert "--resume" in done.stderr


def test_cuda_on_a_machine_without_it_is_an_error_and_not_a_slower_run(finished: Finished) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = run_script("evaluate.py", "--device", "cuda", "--output_dir", finished.run_dir.output_dir)
    assert done.returncode == 2
    assert "finds no CUDA GPU" in done.stderr
    assert "Traceback" not in done.stderr
    assert all(finished.run_dir.done(stage) for stage in STAGES)
    assert finished.run_dir.load_config()["device"] == "cpu"


@pytest.mark.skipif(not (ROOT / ".venv" / ".runtime").exists(), reason="make setup has not been run here")
def test_the_demo_command_on_few_images(tmp_path: Path) -> None:
    flags = "--image_size 32 --epochs 1 --stages dataset,train,evaluate,predict --corruption_images 0"
    command = ["make", "demo", "IMAGES=60", f"OUTPUTS={tmp_path}", f"FLAGS={flags}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = find_run(tmp_path, "latest")
    assert all(run_dir.done(stage) for stage in ("dataset", "train", "evaluate", "predict"))
    assert str(run_dir.report) in done.stdout


def test_planted_label_errors_rank_high(tmp_path: Path) -> None:
    """At least 70 % of N planted label errors are among the first 2N rows."""
    sample = generate.draw(tmp_path / "faces", images=300)
    done = run_script(
        "run_pipeline.py", *data_flags(sample), "--stages", "dataset,train,evaluate,error_analysis", "--image_size", 96,
        "--fine_tune", "never", "--corruption_images", 0, "--device", "cpu", "--output_dir", tmp_path / "outputs",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = find_run(tmp_path / "outputs", "latest")
    planted = pd.read_csv(sample / "planted.csv", keep_default_na=False)
    wrong = set(planted.loc[planted["kind"] == "wrong_label", "file"])
    listed = pd.read_csv(run_dir.path / "error_analysis" / "noisy_labels.csv")["file"].head(2 * len(wrong))
    assert len(wrong & set(listed)) >= 0.7 * len(wrong)
