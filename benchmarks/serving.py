"""Throughput and latency of our server, LitServe and `mlflow models serve`, and of the same model without a server.

`python -m benchmarks.serving --bundle outputs/<run>/train/bundle --photo small.jpg --output_dir FOLDER [--pairs N]`
All serve the same bundle, in turn. Load comes from wrk (Debian: apt-get install wrk) with 1, 8 and 64 clients, each of
which sends its next photo when the last one is answered. Ours is then overloaded with ten times the clients that it has
room for: once with ten times the requests that it can answer, once with as many as the clients can send. The photo is
sent as it is, and enlarged to 12 megapixels. Prints requests/s, milliseconds (p50, p95, p99), rejections, cores used by
wrk itself, and memory, and writes serving.json. `--pairs` compares only ours at 64 clients with no server.
"""

import argparse
import base64
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from benchmarks import common, http_client, mlflow_peer, server_process
from benchmarks.server_process import Server
from spectacles.core.errors import UserError
from spectacles.inference.predictor import Predictor

CLIENTS = (1, 8, 64)
OVERLOAD = 1280
"""Clients: ten times the images that our server has room for."""
LARGE = (4000, 3000)
PORT = 8766
SCRIPT = Path(__file__).with_name("post.lua")


@dataclass(frozen=True)
class Candidate:
    name: str
    command: list[str]
    path: str
    ready: str
    content_type: str

    def body(self, photo: bytes) -> bytes:
        if self.content_type == http_client.FORM:
            return http_client.form(photo)
        text = base64.b64encode(photo).decode()
        if self.name == "mlflow":
            return json.dumps({"dataframe_split": {"columns": ["image"], "data": [[text]]}}).encode()
        return json.dumps({"image": text}).encode()


@dataclass(frozen=True)
class Traffic:
    photos: str
    """Name of the kind of photo."""
    photo: bytes
    clients: int
    pause: int = 0
    """Milliseconds before each request of a client."""


def run(args: argparse.Namespace) -> None:
    if shutil.which("wrk") is None:
        raise UserError("wrk is missing: apt-get install wrk.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    small = args.photo.read_bytes()
    if args.pairs:
        in_turn(args, small)
        return
    photos = {"small": small, "12 MP": enlarged(args.photo)}
    rows = []
    for candidate in candidates(args):
        rows += [offline(args.bundle, name, photo, args.seconds) for name, photo in photos.items()]
        with server(candidate, args.output_dir) as started:
            for name, photo in photos.items():
                rows += [measure(candidate, started, Traffic(name, photo, clients), args) for clients in CLIENTS]
                if candidate.name == "ours":
                    pause = round(1000 * OVERLOAD / (10 * rows[-1]["requests_per_second"]))
                    traffics = [Traffic(name, photo, OVERLOAD, each) for each in (pause, 0)]
                    rows += [measure(candidate, started, traffic, args) for traffic in traffics]
    table = pd.DataFrame(rows)
    (args.output_dir / "serving.json").write_text(table.to_json(orient="records", indent=1), encoding="utf-8")
    print(table.to_string(index=False, float_format="{:.1f}".format, na_rep=""))


def in_turn(args: argparse.Namespace, photo: bytes) -> None:
    """Prints images/s of the loop and of ours with the most clients, in pairs that share the state of the machine."""
    ours, rows = our_server(args), []
    with server(ours, args.output_dir) as started:
        for _ in range(args.pairs):
            pair = [offline(args.bundle, "small", photo, args.seconds),
                    measure(ours, started, Traffic("small", photo, CLIENTS[-1]), args)]  # fmt: skip
            rows.append([each["requests_per_second"] for each in pair])
    table = pd.DataFrame(rows, columns=["loop", "ours"])
    table["ratio"] = table["ours"] / table["loop"]
    print(table.to_string(float_format="{:.2f}".format), f"\nmean ratio {table['ratio'].mean():.3f}")


def our_server(args: argparse.Namespace) -> Candidate:
    command = server_process.ours(args.bundle.resolve(), PORT)
    return Candidate("ours", command, "/predict", "/health/ready", http_client.FORM)


def candidates(args: argparse.Namespace) -> Iterator[Candidate]:
    bundle = args.bundle.resolve()
    if "ours" in args.servers:
        yield our_server(args)
    if "litserve" in args.servers:
        command = [args.python, "-m", "benchmarks.litserve_peer", str(bundle), str(PORT)]
        yield Candidate("litserve", command, "/predict", "/health", "application/json")
    if "mlflow" in args.servers:
        folder = args.output_dir / "mlflow-model"
        shutil.rmtree(folder, ignore_errors=True)
        mlflow_peer.save(bundle, folder)
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder), "--env-manager",
                   "local", "--host", "127.0.0.1", "--port", str(PORT)]  # fmt: skip
        yield Candidate("mlflow", command, "/invocations", "/ping", "application/json")


@contextmanager
def server(candidate: Candidate, folder: Path) -> Iterator[Server]:
    log, scripts = folder / f"{candidate.name}.log", Path(sys.executable).parent  # mlflow starts uvicorn by its name
    environment = {"PYTHONPATH": str(common.ROOT), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    with server_process.running(candidate.command, log, PORT, candidate.ready, **environment) as started:
        yield started


def enlarged(photo: Path) -> bytes:
    buffer = BytesIO()
    with Image.open(photo) as image:
        image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def offline(bundle: Path, name: str, photo: bytes, seconds: int) -> dict[str, Any]:
    """The batched loop of predict.py, at the same threads."""
    predictor = Predictor(bundle, "cpu")
    done, started = 0, time.perf_counter()

    def endless() -> Iterator[bytes]:
        while time.perf_counter() - started < seconds + 1:
            yield photo

    warm = 0.0
    for done, _ in enumerate(predictor.predict(endless()), 1):
        if done == predictor.batch_size:  # the first batch warms up
            warm = time.perf_counter()
    rate = (done - predictor.batch_size) / (time.perf_counter() - warm)
    return {"server": "offline loop", "photos": name, "clients": None, "requests_per_second": rate}


def measure(candidate: Candidate, server: Server, traffic: Traffic, args: argparse.Namespace) -> dict[str, Any]:
    body = args.output_dir / "body"
    body.write_bytes(candidate.body(traffic.photo))
    load(candidate, body, min(traffic.clients, 8), 2)
    found = load(candidate, body, traffic.clients, args.seconds, traffic.pause)
    return {
        "server": candidate.name, "photos": traffic.photos, "clients": traffic.clients, "pause_ms": traffic.pause,
        "requests_per_second": found["answered"] / found["seconds"],
        **{key: found[key] for key in ("p50", "p95", "p99")},
        "rejected_per_second": found["rejected"] / found["seconds"], "failed": found["failed"] + found["errors"],
        "load_cores": found["cores"], "memory_mb": server.memory(),
    }  # fmt: skip


def load(candidate: Candidate, body: Path, clients: int, seconds: int, pause: int = 0) -> dict[str, Any]:
    before = _seconds_of_children()
    done = subprocess.run(
        ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "60s", "-s", str(SCRIPT),
         f"http://127.0.0.1:{PORT}{candidate.path}", "--", str(body), candidate.content_type, str(pause)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"^result (.*)$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return {**json.loads(found[1]), "cores": (_seconds_of_children() - before) / seconds}


def _seconds_of_children() -> float:
    """CPU time of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--photo", type=Path, required=True, help="a small one; the large one is made of it")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--servers", nargs="+", default=["ours", "litserve", "mlflow"])
    parser.add_argument("--pairs", type=int, default=0, help="only ours and the loop, so often in turn")
    parser.add_argument("--python", default=sys.executable, help="of the environment that has LitServe")
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
