"""predict.py on a Ray cluster and in shards: every row is written exactly once, whichever process dies."""

import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import fsspec
import pandas as pd
import pytest
import stores
from command_line import ROOT, Finished, run_script
from PIL import Image
from tracking_servers import free_port, until

import predict
from spectacles.core.errors import UserError
from spectacles.inference.predictor import Predictor

ROWS, BLOCK = 500, 100
FLAGS = ("--engine", "ray", "--device", "cpu", "--batch_size", "16")
ONE_WORKER = ("--worker_cpus", "2")

PRIOR = "yes=0.2"

pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("no", "yes", threshold=0.5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(20):
        Image.effect_noise((40, 32), 10 * number).convert("RGB").save(folder / f"{number}.jpg")
    return folder


class Gates:
    """A web server whose photos are answered once their gate is open; `arrived` is called for each request, and those
    that are `broken` get an error."""

    def __init__(self, photo: bytes) -> None:
        self.open = {number: threading.Event() for number in range(ROWS // BLOCK)}
        self.arrived: Callable[[int], None] = lambda number: None
        self.broken: set[int] = set()
        gates = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(b"")

            def do_GET(self) -> None:
                number = int(Path(self.path).stem)
                gates.arrived(number)
                gates.open[number].wait(600)
                with suppress(ConnectionError):  # the worker was killed
                    self.answer(photo)

            def answer(self, content: bytes) -> None:
                self.send_response(503 if int(Path(self.path).stem) in gates.broken else 200)
                self.send_header("Content-Length", str(len(photo)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        for gate in self.open.values():
            gate.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def gates(photos: Path) -> Iterator[Gates]:
    made = Gates((photos / "3.jpg").read_bytes())
    yield made
    made.close()


def write_table(folder: Path, photos: Path, gates: Gates | None = None, rows: int = ROWS) -> Path:
    """Rows that name 20 photos over and over; the second names a file that does not exist, and the last but one of
    each block one behind its gate."""
    files = [path.name for path in sorted(photos.iterdir())]
    names = [files[number % len(files)] for number in range(rows)]
    names[1] = "gone.jpg"
    for number in range(rows // BLOCK) if gates else ():
        names[BLOCK * (number + 1) - 2] = f"{gates.address}/{number}.jpg"
    pd.DataFrame({"id": [f"{number:04}" for number in range(rows)], "file": names}).to_parquet(folder / "list.parquet")
    return folder / "list.parquet"


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The variables through which commands share one Ray cluster on this machine."""
    folder, port = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")), free_port()  # a socket's path must be short
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port", str(port),
               "--num-cpus", "2", "--include-dashboard", "false", "--disable-usage-stats",
               "--temp-dir", str(folder)]  # fmt: skip
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdout=nowhere, stderr=nowhere, env=os.environ | access, start_new_session=True
    ) as process:
        try:
            yield {"RAY_ADDRESS": f"127.0.0.1:{port}", **access}
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def predicting(cluster: dict[str, str], *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """predict.py, killed at the end of the test."""
    command = [sys.executable, str(ROOT / "predict.py"), *map(str, (*arguments, *FLAGS))]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECTACLES_")}
    with subprocess.Popen(
        command, cwd=ROOT, env=clean | cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def workers(cluster: dict[str, str]) -> list[int]:
    """Process ids of the predicting workers in the cluster."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title, variables = (folder / "cmdline").read_text(), (folder / "environ").read_text()
        except OSError:
            continue
        if "MapBatches(Worker)" in title and cluster["RAY_AUTH_TOKEN"] in variables:
            found.append(int(folder.name))
    return found


def files_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.parquet"))


def every_row_once(found: pd.DataFrame, rows: int = ROWS) -> bool:
    rejected = found.loc[found["status"].str.startswith("rejected"), "id"].tolist()
    return found["id"].tolist() == [f"{number:04}" for number in range(rows)] and rejected == ["0001"]


def test_a_command_goes_on_after_kills_and_loses_no_row(
    cluster: dict[str, str], gates: Gates, bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    """The command is killed, the same command is stopped, and the same command loses a worker half-way."""
    out, table = tmp_path / "out", write_table(tmp_path, photos, gates)
    arguments = (table, "--image_dir", photos, "--bundle", bundle_dir, "--output", out, "--prior", PRIOR)
    gates.open[0].set()
    with predicting(cluster, *arguments, *ONE_WORKER) as process:
        until(lambda: files_in(out) or process.poll() is not None, "a first file is written")
        process.kill()
        assert "1 worker, 5 blocks of up to 100 rows" in process.communicate(timeout=900)[0]
    first = {path: path.stat().st_mtime_ns for path in files_in(out)}
    torn = out / "0-torn.parquet"
    torn.write_bytes(b"PAR1 and no footer")

    gates.open[1].set()
    with predicting(cluster, *arguments, *ONE_WORKER) as process:
        until(lambda: set(files_in(out)) - {torn, *first} or process.poll() is not None, "a second file is written")
        process.terminate()
        printed, errors = process.communicate(timeout=900)
    assert (process.returncode, errors.splitlines()[-1]) == (143, "stopped.")
    assert "100 of 500 rows are written already" in printed and not torn.exists()

    killed: list[int] = []

    def kill_one(number: int) -> None:
        if not killed:
            killed.append(workers(cluster)[0])
            os.kill(killed[0], signal.SIGKILL)
        for gate in gates.open.values():
            gate.set()

    gates.arrived = kill_one
    done = run_script("predict.py", *arguments, *FLAGS, environment=cluster)
    assert done.returncode == 0, done.stderr
    assert "200 of 500 rows are written already" in done.stdout and "2 workers, 3 blocks" in done.stdout
    assert killed and "500 rows = 499 predicted + 1 rejected" in done.stdout
    assert all(path.stat().st_mtime_ns == written for path, written in first.items())
    found = pd.read_parquet(out).sort_values("row", ignore_index=True)
    assert found["row"].tolist() == list(range(1, ROWS + 1)) and every_row_once(found)
    assert_as_predicted_here(found, bundle_dir, photos)

    done = run_script("predict.py", *arguments, *FLAGS)
    assert done.returncode == 0 and "workers" not in done.stdout and "500 rows = 499 predicted" in done.stdout
    other = run_script("predict.py", *arguments, *FLAGS, "--top_k", 2)
    assert other.returncode == 2 and "use the same files, model, --top_k and --prior as before" in other.stderr


def assert_as_predicted_here(found: pd.DataFrame, bundle_dir: Path, photos: Path) -> None:

    predictor = Predictor(bundle_dir, "cpu", 16, "torch", prior=PRIOR)
    files = sorted(photos.iterdir())
    expected = dict(zip([path.name for path in files], predictor.predict(files), strict=True))
    for row in found.itertuples():
        if row.file in expected:
            outcome = expected[row.file]
            assert (row.label, row.status) == (outcome.label, "predicted")
            assert (row.p_no, row.p_yes) == pytest.approx(outcome.probabilities, abs=1e-4)


def test_rows_that_kill_their_workers_do_not_hold_up_the_others(
    cluster: dict[str, str], gates: Gates, bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    """One worker, killed each time it asks for a photo of the first block; a store that does not answer for another."""
    out, table = tmp_path / "out", write_table(tmp_path, photos, gates, rows=250)

    def kill(number: int) -> None:
        for worker in workers(cluster) if number == 0 else ():
            os.kill(worker, signal.SIGKILL)

    gates.arrived, gates.broken = kill, {1}
    gates.open[1].set()
    done = run_script("predict.py", table, "--image_dir", photos, "--bundle", bundle_dir, "--output", out,
                      *ONE_WORKER, *FLAGS, environment=cluster)  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "200 of 250 rows are not predicted, row 1 (0.jpg) and others: " in done.stderr
    assert "3 workers died of the same rows" in done.stderr and "the photo taken out" in done.stderr, done.stderr
    assert "1.jpg cannot be reached" in done.stderr and "Warning" not in done.stderr, done.stderr
    assert sorted(pd.read_parquet(out)["row"]) == list(range(201, 251))


@pytest.mark.parametrize("kind", ["web", "s3"])
def test_photos_lists_and_predictions_may_be_remote(
    kind: str, cluster: dict[str, str], bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(photos, source)
    write_table(source, photos, rows=110)
    start: Callable[[Path, Path], AbstractContextManager[stores.Store]] = getattr(stores, kind)
    with start(tmp_path / "store", source) as store:
        out, environment = f"{store.out}/out", cluster | store.environment
        done = run_script("predict.py", f"{store.photos}/list.parquet", "--bundle", bundle_dir, "--output", out,
                          *ONE_WORKER, *FLAGS, environment=environment)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "110 rows = 109 predicted + 1 rejected" in done.stdout and f"wrote {out}" in done.stdout
        system, root = fsspec.url_to_fs(out, **store.options)
        names = sorted(name for name in system.find(root) if name.endswith(".parquet"))
        found = pd.concat([pd.read_parquet(BytesIO(system.cat_file(name))) for name in names])
        assert every_row_once(found.sort_values("row"), rows=110)
        one = run_script("predict.py", f"{store.photos}/3.jpg", "--bundle", bundle_dir, "--device", "cpu",
                         environment=store.environment)  # fmt: skip
        assert one.returncode == 0 and one.stdout.startswith(f"{store.photos}/3.jpg: "), one.stderr


def test_a_full_disk_is_reported_and_what_is_written_stays(
    cluster: dict[str, str], bundle_dir: Path, photos: Path, tmp_path: Path, mount_disk: Callable[[str], Path]
) -> None:
    out = mount_disk("40k") / "out"  # room for a few files
    done = run_script("predict.py", write_table(tmp_path, photos), "--image_dir", photos, "--bundle", bundle_dir,
                      *ONE_WORKER, *FLAGS, "--output", out, environment=cluster)  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "No space left on device. What is written stays: run the same command" in done.stderr, done.stderr
    written = pd.read_parquet(out)["row"]
    assert 0 < len(written) < ROWS and f"{ROWS - len(written)} of {ROWS} rows are not predicted" in done.stderr


def test_a_worker_that_cannot_see_the_photos_says_so_in_one_sentence(
    cluster: dict[str, str], bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    (hidden := tmp_path / "hidden").mkdir()
    alone = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(hidden)]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    command = [sys.executable, str(ROOT / "predict.py"), str(photos), "--bundle", str(bundle_dir), *FLAGS,
               "--output", str(hidden / "out")]  # fmt: skip
    done = subprocess.run(
        [*alone, *command], cwd=ROOT, env=os.environ | cluster, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    reason = (
        f"rows are not predicted, row 1 ({photos / '0.jpg'}) and others: {platform.node()} cannot see {hidden / 'out'}"
    )
    assert reason in done.stderr, done.stderr  # not that Ray failed, which prints its traceback a little later


def test_more_cores_than_any_machine_has_are_reported(
    cluster: dict[str, str], bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    done = run_script("predict.py", photos, "--bundle", bundle_dir, *FLAGS, "--output", tmp_path / "out",
                      "--worker_cpus", 4096, environment=cluster)  # fmt: skip
    assert done.returncode == 2 and "no machine of the cluster has so many cores" in done.stderr, done.stderr


def run_here(*arguments: object) -> None:
    predict.main(predict.parse(list(map(str, arguments))))


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--shard", "1/2"), "--shard does not go with --engine ray"), (("--explain",), "--explain does not go"),
     (("--format", "jsonl"), "--format does not go"), (("--top_k", 3), "--top_k 3 is out of range"),
     (("--prior", "x=0.5"), "'x' is not one of the classes"),
     (("--device", "mps"), "use auto, cpu or cuda"), (("--output", "nonsense://x"), "cannot be reached|cannot be read"),
     (("--output", "/dev/full/out"), "/dev/full/out cannot be")],
)  # fmt: skip
def test_flags_that_do_not_apply_to_a_cluster_are_rejected(
    flags: tuple[object, ...], message: str, bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    output = () if "--output" in flags else ("--output", tmp_path / "out")
    with pytest.raises(UserError, match=message):
        run_here(photos, "--bundle", bundle_dir, *FLAGS, *output, *flags)
    assert not (tmp_path / "out").exists()


def test_ray_needs_files_to_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--engine ray, --shard and --worker_cpus go with files to predict"):
        predict.parse(["--engine", "ray"])
    monkeypatch.setenv("SPECTACLES_SHARD", "1/2")
    with pytest.raises(UserError, match="--shard and --worker_cpus go with files to predict"):
        predict.parse([])


def test_an_empty_folder_has_no_rows(bundle_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "none").mkdir()
    with caplog.at_level("INFO", "spectacles"):
        run_here(tmp_path / "none", "--bundle", bundle_dir, *FLAGS, "--output", tmp_path / "out")
    assert "0 rows = 0 predicted + 0 rejected" in caplog.text


def test_the_prediction_settings_of_the_run_do_not_matter(finished: Finished, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "explaining"
    shutil.copytree(finished.run_dir.path, run)
    with (run / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("explain: true\nformat: jsonl\n")
    flags = ["--output_dir", str(run.parent), "--run_name", run.name]
    _, config = predict.parse([str(photos), *flags, *FLAGS])
    assert (config.explain, config.format, config.engine) == (False, "csv", "ray")
    _, config = predict.parse([str(photos), *flags])
    assert (config.explain, config.format) == (True, "jsonl")


def test_shards_add_up_to_the_whole(
    bundle_dir: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = write_table(tmp_path, photos)
    flags = ("--image_dir", photos, "--bundle", bundle_dir, "--device", "cpu", "--output", tmp_path / "out.csv")
    with caplog.at_level("INFO", "spectacles"):
        for number in (1, 2, 3):
            run_here(table, *flags, "--shard", f"{number}/3")
            assert f"part {number} of 3 of 500 rows" in caplog.text
    folders = [tmp_path / f"shard-0000{number}-of-00003" for number in (1, 2, 3)]
    for name in ("out.csv", "submission.csv"):
        assert [len(pd.read_csv(folder / name)) for folder in folders] == [166, 167, 167]
    assert every_row_once(pd.concat([pd.read_csv(folder / "out.csv", dtype={"id": str}) for folder in folders]))
