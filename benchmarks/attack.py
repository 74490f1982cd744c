"""Attacks, overloads and restarts the server, and counts the requests that it loses: there should be none.

`python -m benchmarks.attack --bundle outputs/<run>/train/bundle --photo photo.jpg --output_dir FOLDER [--odd FOLDER]`
Each row of the table: requests tried, answered (200), rejected (4xx, 503), failed (any other 5xx), and lost (sent
completely on an accepted connection, without any answer). Two attacks go to deploy/nginx.conf in front of it, where
nginx is installed. `--odd` is a folder of odd files to send as well. Writes attack.json.
"""

import argparse
import asyncio
import random
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks import common, proxy, server_process
from benchmarks.attacks import ATTACKS, BEHIND_PROXY, PORT
from spectacles.models.bundle import load_bundle, save_bundle

ONE_ADDRESS = {"limit_conn per_address 256": "limit_conn per_address 4096"}
"""All clients are this machine."""


def two_models(bundle: Path, folder: Path) -> None:
    """The bundle, and a copy with another temperature, which gives other answers and has another model id."""
    whole = load_bundle(bundle)
    network = whole.network and whole.network.read_bytes()
    for name, factor in (("one", 1.0), ("two", 2.0)):
        info = replace(whole.info, temperature=factor * whole.info.temperature)
        save_bundle(folder / name, info, whole.tensors(), network, whole.without_network)
    shutil.rmtree(folder / "served", ignore_errors=True)
    shutil.copytree(folder / "one", folder / "served")


def run(args: argparse.Namespace) -> None:
    random.seed(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    two_models(args.bundle, args.output_dir)
    command = server_process.ours(args.output_dir / "served", PORT)
    log = args.output_dir / "server.log"
    log.unlink(missing_ok=True)
    rows = []
    with (
        server_process.running(command, log, PORT, SPECTACLES_ENGINE=args.engine) as server,
        proxy.running(PORT, args.output_dir / "nginx", changes=ONE_ADDRESS)
        if args.proxy
        else nullcontext(PORT) as behind,
    ):
        first = server.process.pid
        for name in args.attacks:
            server.entrance = behind if name in BEHIND_PROXY else PORT
            rows.append(asyncio.run(ATTACKS[name](server, args.photo.read_bytes(), args)).as_dict())
            print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
            if name != "restarts" and server.process.poll() is not None:
                raise RuntimeError(f"the server (process {first}) has ended")
    table = pd.DataFrame(rows)
    (args.output_dir / "attack.json").write_text(table.to_json(orient="records", indent=1), encoding="utf-8")
    tracebacks = log.read_text(encoding="utf-8").count("Traceback")
    print(f"\n{table.to_string(index=False)}\n\nlost {table['lost'].sum()}, failed {table['failed'].sum()}, "
          f"tracebacks in the log {tracebacks}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--photo", type=Path, required=True, help="one that the server can read")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--odd", type=Path, help="folder of odd files")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--slow", type=int, default=500)
    parser.add_argument("--pipelined", type=int, default=100)
    parser.add_argument("--abandoned", type=int, default=100_000)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--no_proxy", dest="proxy", action="store_false", default=proxy.installed())
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
