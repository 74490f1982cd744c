"""Runs root scripts in forks of a process that has imported the large libraries already: real processes with streams,
signals and exit codes of their own, without the seconds that every start costs."""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

LIBRARIES = (
    "captum.attr", "cleanlab.rank", "fsspec", "jinja2", "jsonargparse", "matplotlib.figure", "onnxruntime",
    "onnxscript", "pandas", "PIL.Image", "pydantic", "safetensors.torch", "scipy.stats", "sklearn.linear_model",
    "timm", "torch", "torchvision.transforms.v2", "tqdm", "yaml",
)  # fmt: skip
"""None of ours, which a command imports as from a shell; none that starts threads, which do not survive a fork."""


class Process:
    """A started command, like subprocess.Popen. The warm process attends to one at a time: wait for its end."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.pid = int(server.recv(64))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with suppress(TimeoutError):
            self.wait(timeout=1e-3)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises TimeoutError."""
        if self.returncode is None:
            self.server.settimeout(timeout)
            try:
                self.returncode = int(self.server.recv(64))
            finally:
                self.server.settimeout(None)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


def request(
    command: list[str], folder: Path, environment: dict[str, str], output: IO[bytes], errors: IO[bytes]
) -> socket.socket:
    """Asks the warm process to start a script. A Process follows it."""
    server, content = _server(), {"command": command, "folder": str(folder), "environment": environment}
    with open(os.devnull, "rb") as nothing:
        streams = [nothing.fileno(), output.fileno(), errors.fileno()]
        socket.send_fds(server, [json.dumps(content).encode()], streams)
    return server


def run(
    command: list[str], folder: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Like subprocess.run(capture_output=True, text=True) of a Python script."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = Process(request(command, folder, environment, output, errors))
        try:
            status = process.wait(timeout)
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise subprocess.TimeoutExpired(command, timeout) from None
        return subprocess.CompletedProcess(command, status, _text(output), _text(errors))


def _text(file: IO[bytes]) -> str:
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


def _export() -> None:
    """The first export of a process imports as much as the libraries above."""
    import torch

    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    torch.onnx.export(program, (), verbose=False)


def main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    _export()
    gc.freeze()
    wanted = serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted is not None:
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["folder"])
        sys.argv = wanted["command"]
        sys.path[0] = str(Path(__file__).resolve().parents[2])
        _deliver_nothing()
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
