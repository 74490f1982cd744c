"""Runs a script in two processes that learn together, as torchrun starts them, in seconds: forks of the warm process.

As a script: `together.py PROBE SCRIPT ARGUMENTS...`. PROBE is "" or RANK:SIGNAL:TEXT: the process RANK gets SIGNAL when
the first one has printed a line with TEXT.
"""

import os
import runpy
import socket
import sys

WORLD = 2


def environment_of(rank: int, port: int) -> dict[str, str]:
    each = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in each.items()}}


def main() -> int | None:
    """The exit status; None in a process that is to run the script."""
    probe, *command = sys.argv[1:]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    processes = []
    for rank in range(WORLD):
        process = os.fork()
        if process == 0:
            os.environ.update(environment_of(rank, port))
            if rank == 0:
                os.dup2(writing, 1)
            sys.argv = command
            return None
        processes.append(process)
    os.close(writing)
    whom, number, text = probe.split(":", 2) if probe else ("0", "0", "")
    with os.fdopen(reading) as lines:
        for line in lines:
            print(line, end="", flush=True)
            if text and text in line:
                os.kill(processes[int(whom)], int(number))
                text = ""
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    print("exit codes", codes, flush=True)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    status = main()
    if status is not None:
        sys.exit(abs(status))
    runpy.run_path(sys.argv[0], run_name="__main__")
