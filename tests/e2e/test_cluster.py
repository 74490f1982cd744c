"""predict.py on a local Ray cluster and in shards: every row is written exactly once, whichever process dies."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path

import fsspec
import pandas as pd
import pytest
import stores
from command_line import ROOT, Finished, run_script
from PIL import Image
from tracking_servers import free_port, until

ROWS = 1000
FLAGS = ("--engine", "ray", "--device", "cpu", "--batch_size", "16")

pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("no", "yes", threshold=0.5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(20):
        Image.effect_noise((200, 160), 10 * number).convert("RGB").save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def table(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 rows that name 20 photos over and over; one names a file that does not exist."""
    files = [path.name for path in sorted(photos.iterdir())]
    names = ["gone.jpg" if number == 500 else files[number % len(files)] for number in range(ROWS)]
    place = tmp_path_factory.mktemp("table") / "list.parquet"
    pd.DataFrame({"id": [f"{number:04}" for number in range(ROWS)], "file": names}).to_parquet(place)
    return place


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
def predicting(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """predict.py in a process group of its own, killed at the end of the test."""
    command = [sys.executable, str(ROOT / "predict.py"), *map(str, (*arguments, *FLAGS))]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECTACLES_")}
    with subprocess.Popen(
        command, cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def workers(of: subprocess.Popen[str]) -> list[int]:
    """Process ids of the workers in the cluster that `of` started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_text()
            parents = _ancestors(int(folder.name)) if title.startswith("ray::MapWorker(Map(Worker))") else []
        except (OSError, ValueError):
            continue
        if of.pid in parents:
            found.append(int(folder.name))
    return found


def _ancestors(process: int) -> list[int]:
    line = []
    while process > 1:
        process = int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
        line.append(process)
    return line


def read(folder: Path) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, sorted(folder.glob("*.parquet"))), ignore_index=True)


def every_row_once(found: pd.DataFrame) -> bool:
    rejected = found.loc[found["status"].str.startswith("rejected"), "id"].tolist()
    return found["id"].tolist() == [f"{number:04}" for number in range(ROWS)] and rejected == ["0500"]


def test_killing_a_worker_halfway_loses_no_row(bundle_dir: Path, table: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (table, "--image_dir", photos, "--bundle", bundle_dir, "--output", out)
    with predicting(*arguments) as process:
        until(lambda: list(out.glob("part-*.parquet")) or process.poll() is not None, "a first part is written")
        before = len(list(out.glob("part-*.parquet")))
        running = workers(process)
        os.kill(running[0], signal.SIGKILL)
        printed, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert len(running) == 2 and before < 10
    assert "2 workers, 10 parts of up to 100 rows" in printed
    assert "1000 rows = 999 predicted + 1 rejected" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"part-{number:05}-of-00010.parquet" for number in range(1, 11)), "plan.json",
    ]  # fmt: skip
    assert every_row_once(read(out))
    local = run_script("predict.py", table, "--image_dir", photos, "--bundle", bundle_dir, "--device", "cpu",
                       "--output", tmp_path / "local.csv", environment={"SPECTACLES_ENGINE": "torch"})  # fmt: skip
    assert local.returncode == 0, local.stderr
    expected = pd.read_csv(tmp_path / "local.csv", dtype={"id": str, "label": str, "abstain_reason": str},
                           keep_default_na=False, na_values={"p_no": [""], "p_yes": [""], "confidence": [""],
                                                             "ood_score": [""]})  # fmt: skip
    pd.testing.assert_frame_equal(read(out), expected, check_dtype=False, atol=1e-4, rtol=0)


def test_the_same_command_continues_after_the_cluster_died(
    bundle_dir: Path, table: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (table, "--image_dir", photos, "--bundle", bundle_dir, "--output", out)
    with predicting(*arguments) as process:
        until(lambda: list(out.glob("part-*.parquet")) or process.poll() is not None, "a first part is written")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 0 < len(before) < 10  # some workers outlive their cluster for a moment
    again = run_script("predict.py", *arguments, *FLAGS)
    assert again.returncode == 0, again.stderr
    found = re.search(r"(\d+) of 10 parts are finished already", again.stdout)
    assert found and int(found[1]) >= len(before)
    assert every_row_once(read(out))
    assert all((out / name).stat().st_mtime_ns == written for name, written in before.items())
    done = run_script("predict.py", *arguments, *FLAGS)
    assert done.returncode == 0 and "workers" not in done.stdout and "1000 rows = 999 predicted" in done.stdout
    other = run_script("predict.py", *arguments, *FLAGS, "--top_k", 2)
    assert other.returncode == 2 and "use the same files, model and --top_k as before" in other.stderr


def test_a_part_that_kills_its_workers_does_not_hold_up_the_others(
    bundle_dir: Path, table: Path, photos: Path, tmp_path: Path
) -> None:
    """One worker, killed each time it starts on part 2."""
    out = tmp_path / "out"
    bad = out / "part-00002-of-00010.parquet.tries"
    with predicting(table, "--image_dir", photos, "--bundle", bundle_dir, "--output", out, "--worker_cpus",
                    len(os.sched_getaffinity(0))) as process:  # fmt: skip
        for tries in "123":
            until(lambda: (bad.is_file() and bad.read_text() == tries) or process.poll() is not None, "part 2 begins")  # noqa: B023
            for worker in workers(process):
                os.kill(worker, signal.SIGKILL)
        _, errors = process.communicate(timeout=900)
    assert process.returncode == 2
    assert "1 of 10 parts killed 3 workers each, first rows 101 to 200" in errors
    assert len(list(out.glob("*.parquet"))) == 9


@pytest.mark.parametrize("kind", ["web", "s3"])
def test_photos_lists_and_parts_may_be_remote(
    kind: str, cluster: dict[str, str], bundle_dir: Path, photos: Path, table: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(photos, source)
    shutil.copy(table, source / "list.parquet")
    start: Callable[[Path, Path], AbstractContextManager[stores.Store]] = getattr(stores, kind)
    with start(tmp_path / "store", source) as store:
        system, root = fsspec.url_to_fs(store.out, **store.options)
        for given, rows in ((f"{store.photos}/list.parquet", ROWS), (f"{store.photos}/", 21)):
            out = f"{store.out}/out-{rows}"
            done = run_script("predict.py", given, "--bundle", bundle_dir, "--output", out, *FLAGS,
                              environment=cluster | store.environment)  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert f"{rows} rows = " in done.stdout and f"wrote {out}" in done.stdout
            system.invalidate_cache()
            names = sorted(name for name in system.find(f"{root}/out-{rows}") if name.endswith(".parquet"))
            found = pd.concat([pd.read_parquet(BytesIO(system.cat_file(name))) for name in names], ignore_index=True)
            assert len(found) == rows and found["file"].is_unique == (rows == 21)
            assert (found["status"] == "predicted").sum() == (ROWS - 1 if rows == ROWS else 20)
            if rows == ROWS:
                assert every_row_once(found)
        one = run_script("predict.py", f"{store.photos}/3.jpg", "--bundle", bundle_dir, "--device", "cpu",
                         environment=store.environment)  # fmt: skip
        assert one.returncode == 0 and one.stdout.startswith(f"{store.photos}/3.jpg: "), one.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--shard", "1/2"), "--shard does not go with --engine ray"), (("--explain",), "--explain does not go"),
     (("--format", "jsonl"), "--format does not go"), (("--worker_cpus", 4096), "no machine of the cluster"),
     (("--top_k", 3), "--top_k 3 is out of range"), (("--device", "mps"), "use auto, cpu or cuda"),
     (("--output", "nonsense://x"), "cannot be reached")],
)  # fmt: skip
def test_flags_that_do_not_apply_to_a_cluster_are_rejected(
    flags: tuple[object, ...], said: str, cluster: dict[str, str], bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    output = () if "--output" in flags else ("--output", tmp_path / "out")
    done = run_script("predict.py", photos, "--bundle", bundle_dir, *FLAGS, *output, *flags, environment=cluster)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_full_disk_is_reported_and_finished_parts_stay(
    cluster: dict[str, str], bundle_dir: Path, table: Path, photos: Path, mount_disk: Callable[[str], Path]
) -> None:
    out = mount_disk("40k") / "out"  # room for the plan and a few parts
    flags = ("--image_dir", photos, "--bundle", bundle_dir, *FLAGS)
    done = run_script("predict.py", table, *flags, "--output", out, environment=cluster)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"{out}/part-0000" in done.stderr and "No space left on device. Finished parts are kept" in done.stderr
    parts = list(out.glob("*.parquet"))
    assert 0 < len(parts) < 10 and all(len(pd.read_parquet(part)) == 100 for part in parts)


def test_an_output_that_cannot_be_a_folder_is_reported(bundle_dir: Path, photos: Path) -> None:
    done = run_script("predict.py", photos, "--bundle", bundle_dir, *FLAGS, "--output", "/dev/full/out")
    assert done.returncode == 2 and "/dev/full/out cannot be" in done.stderr and "Traceback" not in done.stderr


def test_ray_needs_files_to_predict() -> None:
    done = run_script("predict.py", "--engine", "ray")
    assert done.returncode == 2 and "--engine ray, --shard and --worker_cpus go with files to predict" in done.stderr
    done = run_script("predict.py", environment={"SPECTACLES_SHARD": "1/2"})
    assert done.returncode == 2 and "--shard and --worker_cpus go with files to predict" in done.stderr


def test_shards_add_up_to_the_whole(bundle_dir: Path, photos: Path, table: Path, tmp_path: Path) -> None:
    flags = ("--image_dir", photos, "--bundle", bundle_dir, "--device", "cpu", "--output", tmp_path / "out.csv")
    environment = {"SPECTACLES_ENGINE": "torch"}
    for number in (1, 2, 3):
        done = run_script("predict.py", table, *flags, "--shard", f"{number}/3", environment=environment)
        assert done.returncode == 0, done.stderr
        assert f"part {number} of 3 of 1000 rows" in done.stdout
    folders = [tmp_path / f"shard-0000{number}-of-00003" for number in (1, 2, 3)]
    for name in ("out.csv", "submission.csv"):
        assert [len(pd.read_csv(folder / name)) for folder in folders] == [333, 333, 334]
    assert every_row_once(pd.concat([pd.read_csv(folder / "out.csv", dtype={"id": str}) for folder in folders]))


def test_an_empty_folder_has_no_rows(bundle_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = run_script("predict.py", tmp_path / "none", "--bundle", bundle_dir, *FLAGS, "--output", tmp_path / "out")
    assert done.returncode == 0 and "0 rows = 0 predicted + 0 rejected" in done.stdout, done.stderr


def test_sigterm_ends_a_cluster_like_any_command(bundle_dir: Path, table: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with predicting(table, "--image_dir", photos, "--bundle", bundle_dir, "--output", out) as process:
        until(lambda: list(out.glob("part-*.parquet")) or process.poll() is not None, "a first part is written")
        process.terminate()
        _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors.splitlines()[-1]) == (143, "stopped.")


def test_the_prediction_settings_of_the_run_do_not_matter(
    finished: Finished, cluster: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    settings = finished.run_dir.output_dir / "explaining"
    shutil.copytree(finished.run_dir.path, settings)
    with (settings / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("explain: true\nformat: jsonl\n")
    flags = ("--output_dir", settings.parent, "--run_name", settings.name, "--output", tmp_path / "out")
    done = run_script("predict.py", photos, *flags, *FLAGS, environment=cluster)
    assert done.returncode == 0 and "20 rows = " in done.stdout, done.stderr
