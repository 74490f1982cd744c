"""Runs root scripts in forks of a process that has imported the large libraries already: real processes with streams,
signals and exit codes of their own, without the seconds that every start costs."""

import atexit
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

LIBRARIES = (
    "captum.attr", "cleanlab.rank", "fsspec", "jinja2", "jsonargparse", "matplotlib.figure", "onnxruntime", "pandas",
    "PIL.Image", "pydantic", "safetensors.torch", "scipy.stats", "sklearn.linear_model", "timm", "torch",
    "torchvision.transforms.v2", "tqdm", "yaml",
)  # fmt: skip
"""None of ours, which a command imports as from a shell; none that starts threads, which do not survive a fork."""


def run(
    command: list[str], folder: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Like subprocess.run(capture_output=True, text=True) of a Python script."""
    server = _server()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, open(os.devnull, "rb") as nothing:
        request = {"command": command, "folder": str(folder), "environment": environment}
        streams = [nothing.fileno(), output.fileno(), errors.fileno()]
        socket.send_fds(server, [json.dumps(request).encode()], streams)
        process = int(server.recv(64))
        server.settimeout(timeout)
        try:
            status = int(server.recv(64))
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.kill(process, 9)
            server.settimeout(None)
            server.recv(64)
            raise subprocess.TimeoutExpired(command, timeout) from None
        return subprocess.CompletedProcess(command, status, _text(output), _text(errors))


def _text(file: "tempfile._TemporaryFileWrapper[bytes]") -> str:
    file.seek(0)
    return file.read().decode()


@cache
def _server() -> socket.socket:
    """To the warm process of this test worker, which ends when this is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, __file__, str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
    theirs.close()
    atexit.register(_end, process, ours)
    return ours


def _end(process: "subprocess.Popen[bytes]", client: socket.socket) -> None:
    client.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(client: socket.socket) -> dict[str, object] | None:
    """Forks for every request. Returns the request in the fork, None at the end."""
    while True:
        message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
        if not message:
            return None
        process = os.fork()
        if process == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            client.close()
            return dict(json.loads(message))
        for stream in streams:
            os.close(stream)
        client.send(str(process).encode())
        _, status = os.waitpid(process, 0)
        client.send(str(os.waitstatus_to_exitcode(status)).encode())


def _deliver_nothing() -> None:
    """Tracking's journal is written, but no process imports MLflow to make a database of it."""
    from spectacles.tracking import tracking

    tracking._start_sender = lambda run_dir: None


def main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = request["command"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        _deliver_nothing()
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
