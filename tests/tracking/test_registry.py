"""The registry of models: versions, promotion by a paired test, rollback, and who reads from it."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pandas as pd
import pytest
from command_line import ROOT
from pictures import encoded, noise
from served import serve

from spectacles.core.device import resolve_device
from spectacles.core.errors import UserError
from spectacles.core.results import EvaluateReport
from spectacles.core.run_dir import RunDir, create_run
from spectacles.inference import registered_bundle
from spectacles.inference.predictor import Predictor
from spectacles.server import auth, settings
from spectacles.tracking import registry
from spectacles.tracking.registry import ADDRESS

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's
PHOTO = encoded(noise(1), "JPEG")
CLASSES = ("cat", "dog")
LABELS = np.array(CLASSES * 30)


def write_run(output_dir: Path, name: str, bundle: Path, wrong: Sequence[int], first: int = 0) -> RunDir:
    """An evaluated run with 60 test images, of which it gets the `wrong` ones wrong; `first`: of their contents."""
    run_dir = create_run(output_dir, name)
    shutil.copytree(bundle, run_dir.bundle)
    predicted = LABELS.copy()
    predicted[list(wrong)] = np.where(LABELS[list(wrong)] == "cat", "dog", "cat")
    paths = [f"{name}/{number}.jpg" for number in range(60)]
    table = pd.DataFrame({"path": paths, "split": "test", "label": LABELS, "predicted": predicted})
    table["status"], table["sha256"] = "predicted", [f"content{first + number}" for number in range(60)]
    for path in (run_dir.predictions, run_dir.splits):
        path.parent.mkdir(parents=True)
        table.to_csv(path, index=False)
    facts = {"summary": [], "metrics": {}, "artifacts": [], "model_id": "x", "accuracy_interval": (0.0, 1.0)}
    run_dir.save_result("evaluate", EvaluateReport(scored_on="test", **facts))
    return run_dir


@pytest.fixture(scope="module")
def output_dir(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 makes 6 errors, version 2 other 5, version 3 makes 20, and version 4 was tested on other images."""
    folder = tmp_path_factory.mktemp("registry") / "outputs"
    runs = {"first": range(6), "second": range(6, 11), "third": range(20)}
    for name, wrong in runs.items():
        registry.register(write_run(folder, name, make_bundle(*CLASSES, epoch=len(name)), wrong), "faces")
    registry.register(write_run(folder, "elsewhere", make_bundle(*CLASSES), [], first=60), "faces")
    return folder


def command(capsys: pytest.CaptureFixture[str], output_dir: Path, *arguments: str, fails: bool = False) -> str:
    """What the command prints."""
    words = [arguments[0], "--output_dir", str(output_dir), *arguments[1:]]
    if fails:
        with pytest.raises(SystemExit, match="2"):
            registry.main(words)
        return capsys.readouterr().err
    registry.main(words)
    return capsys.readouterr().out


def test_versions_are_promoted_by_a_paired_test_and_rolled_back(
    output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def promote(version: str, *more: str, fails: bool = False) -> str:
        return command(capsys, output_dir, "promote", "--name", "faces", "--version", version, *more, fails=fails)

    assert "4 " in command(capsys, output_dir, "list", "--name", "faces").splitlines()[0]
    assert "no champion before" in command(capsys, output_dir, "rollback", "--name", "faces", fails=True)
    assert promote("1") == "faces 1 is the champion now: the first one\n"
    assert promote("1", fails=True) == "error: faces 1 is the champion already.\n"
    worse = promote("3", fails=True)
    assert "faces 3 is not promoted: worse than 1 on 60 shared test images, accuracy 0.6667 against 0.9000" in worse
    assert "--force" in worse
    assert "shares no test image with the champion 1" in promote("4", fails=True)
    better = promote("2")
    assert "not worse than 1 on 60 shared test images, accuracy 0.9167 against 0.9000 (McNemar p = 1)" in better
    assert "forced although worse than 2" in promote("3", "--force")
    newest, third, second, first = command(capsys, output_dir, "list", "--name", "faces").splitlines()
    assert "champion" in third and "forced although" in third and "champion" not in second + first
    assert "challenger" in newest
    assert "faces 2 is the champion again" in command(capsys, output_dir, "rollback", "--name", "faces")
    assert "faces 1 is the champion again" in command(capsys, output_dir, "rollback", "--name", "faces")
    assert "no champion before" in command(capsys, output_dir, "rollback", "--name", "faces", fails=True)


def test_the_registered_model_gives_the_bundles_probabilities_without_a_pickle(output_dir: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{output_dir}/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/faces/1")
    folder = Path(mlflow.artifacts.download_artifacts("models:/faces/1"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    table = model.predict(pd.DataFrame({"image": [PHOTO, b"not a photo"]}))
    predictor = Predictor(output_dir / "first" / "train" / "bundle", resolve_device("cpu"))
    [expected] = predictor.predict([PHOTO])
    found = table.loc[0, ["p_cat", "p_dog"]].to_numpy(dtype=float)
    np.testing.assert_allclose(found, expected.probabilities, atol=1e-6)
    assert table.loc[0, "label"] == expected.label and table.loc[1, "status"].startswith("rejected: ")
    columns = [column.name for column in model.metadata.signature.outputs.inputs]
    assert columns == list(table.columns) and model.metadata.get_input_schema().input_names() == ["image"]


def test_mlflows_server_takes_photos_as_base64(output_dir: Path) -> None:
    import mlflow
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    mlflow.set_tracking_uri(f"sqlite:///{output_dir}/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/faces/1")
    content = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(PHOTO).decode()]]}}
    with TestClient(scoring_server.init(model)) as client:
        answer = client.post("/invocations", content=json.dumps(content), headers={"Content-Type": "application/json"})
    [row] = answer.json()["predictions"]
    [expected] = Predictor(output_dir / "first" / "train" / "bundle", resolve_device("cpu")).predict([PHOTO])
    assert [row["p_cat"], row["p_dog"]] == pytest.approx(expected.probabilities, abs=1e-6)


def test_a_bundle_is_fetched_once(output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = registered_bundle.folder_of(Path("models:/faces/2"), output_dir)
    assert (
        folder.is_relative_to(tmp_path)
        and (folder / "bundle.json").read_bytes()
        == (output_dir / "second" / "train" / "bundle" / "bundle.json").read_bytes()
    )
    (folder / "engine.json").write_text("{}")
    assert registry.fetch("models:/faces/2", output_dir, tmp_path / "spectacles" / "models") == folder
    assert (folder / "engine.json").is_file()
    assert registered_bundle.folder_of(tmp_path, output_dir) == tmp_path
    for address, problem in (
        ("models:/faces/99", "cannot be read from"),
        ("models:/faces@nobody", "names no model in"),
        ("models:/faces", "use models:/NAME@champion"),
    ):
        with pytest.raises(UserError, match=problem):
            registry.fetch(address, output_dir, tmp_path)


@pytest.mark.server
def test_no_answer_is_lost_while_models_are_promoted_and_rolled_back(
    output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "folder_of", lambda address, runs: registry.fetch(str(address), runs, tmp_path))
    faces = registry.connect("faces", output_dir)
    faces.client.set_registered_model_alias("faces", registry.CHAMPION, "1")
    key, digest = auth.make_key()
    bearer = {"Authorization": f"Bearer {key}"}
    answers: list[tuple[int, str]] = []
    finished = Event()

    def ask() -> None:
        while not finished.is_set():
            answer = client.post("/predict", files={"file": PHOTO}, headers=bearer)
            answers.append((answer.status_code, answer.json().get("model_id", "")))

    def reload() -> str:
        seen = len(answers)
        model_id = str(client.post("/admin/reload", headers=bearer).json()["model_id"])
        while len(answers) < seen + 20:
            pass
        return model_id

    with serve(SPECTACLES_BUNDLE="models:/faces@champion", SPECTACLES_OUTPUT_DIR=str(output_dir),
               SPECTACLES_API_KEYS=f"me:{digest}") as client, ThreadPoolExecutor(4) as pool:  # fmt: skip
        try:
            asking = [pool.submit(ask) for _ in range(4)]
            first = reload()
            registry.promote(faces, "2", force=False)
            second = reload()
            registry.rollback(faces)
            assert reload() == first != second
        finally:
            finished.set()
        for each in asking:
            each.result()
    assert {status for status, _ in answers} == {200} and {model_id for _, model_id in answers} == {first, second}


@pytest.mark.process
def test_without_mlflow_it_is_said_what_to_install(tmp_path: Path) -> None:
    hide = (
        "import sys, runpy; sys.modules['mlflow'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_module(sys.argv[0], run_name='__main__')"
    )
    words = ["spectacles.tracking.registry", "fetch", "models:/faces@champion", "--cache", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", hide, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == f"error: {registry.NO_MLFLOW}.\n"


def test_a_run_that_is_not_evaluated_is_not_registered(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not evaluated: run `python evaluate\.py --run_name new` first"):
        registry.register(create_run(tmp_path, "new"), "faces")
    with pytest.raises(UserError, match="cannot name a model"):
        registry.connect("a/b", tmp_path)
    assert not ADDRESS.fullmatch("models:/a/b/c") and ADDRESS.fullmatch("models:/a b@champion")
