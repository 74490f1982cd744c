"""The attacks of `benchmarks.attack`: each sends its requests and counts the answers in a row."""

import argparse
import asyncio
import shutil
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import hostile
from benchmarks.http_client import Client, Reply, head, photo_request
from benchmarks.server_process import Server
from spectacles.inference.predictor import Predictor
from spectacles.models.bundle import MANIFEST, read_bundle_info

PORT = 8767
CLIENTS, FLOOD = 16, 1280


@dataclass
class Row:
    attack: str
    statuses: Counter[int] = field(default_factory=Counter)
    unfinished: int = 0
    """Requests that end without an answer on purpose: the client disconnects."""
    note: str = ""

    def add(self, reply: Reply) -> None:
        self.statuses[reply.status] += 1

    def as_dict(self) -> dict[str, Any]:
        rejected = sum(count for status, count in self.statuses.items() if 400 <= status < 500 or status == 503)
        answered, lost = self.statuses[200], self.statuses[0]
        failed = self.statuses.total() - answered - rejected - lost - self.statuses[-1]
        return {"attack": self.attack, "tried": self.statuses.total() + self.unfinished, "answered": answered,
                "rejected": rejected, "failed": failed, "lost": lost, "note": self.note}  # fmt: skip


Attack = Callable[[Server, bytes, argparse.Namespace], Awaitable[Row]]


async def in_parallel(
    port: int, requests: Iterator[bytes], row: Row, clients: int = CLIENTS, until: float = 0.0
) -> list[Reply]:
    """All requests, or as many as there is time for; each client waits for the answer before it sends the next one."""
    replies: list[Reply] = []

    async def work() -> None:
        client = Client(port)
        for request in requests:
            if until and time.monotonic() > until:
                break
            reply = await client.ask(request)
            row.add(reply)
            replies.append(reply)
        client.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return replies


async def damaged_files(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    row, memory = Row(f"{args.requests:,} odd and damaged files"), []
    odd = [path.read_bytes() for path in sorted(args.odd.iterdir())] if args.odd else []
    for _ in range(4):
        await in_parallel(
            server.entrance, (photo_request(content) for content in hostile.files(photo, odd, args.requests // 4)), row
        )
        memory.append(server.memory())
    row.note = f"memory after each quarter: {', '.join(f'{each:.0f}' for each in memory)} MB"
    return row


async def bombs(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    row = Row("decompression bombs")
    for content in hostile.bombs():
        row.add(await Client(server.entrance).ask(photo_request(content)))
    row.note = f"memory {server.memory():.0f} MB"
    return row


async def odd_requests(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    """Most of these are not HTTP, so closing the connection is an answer."""
    row = Row("malformed or too large requests")
    for request in hostile.requests(photo):
        reply = await Client(server.entrance, seconds=45).ask(request)
        row.add(Reply(400, b"", 0.0) if reply.status == 0 else reply)
    return row


async def slow_clients(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    """While hundreds of connections send a byte now and then, others are answered as usual."""
    row = Row("good requests beside 600 slow and idle clients")
    stop = asyncio.Event()

    async def drip(start: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.entrance)
        writer.write(start)
        while not stop.is_set() and not reader.at_eof():
            try:
                writer.write(b"x" if start else b"")
                await writer.drain()
                await asyncio.wait_for(stop.wait(), 0.5)
            except (OSError, TimeoutError):
                continue
        writer.transport.abort()

    starts = [b"GET / HTTP/1.1\r\nX-Slow: ", photo_request(bytes(100_000))[:1000], b""] * 200
    slow = [asyncio.create_task(drip(start)) for start in starts]
    replies = await in_parallel(server.entrance, (photo_request(photo) for _ in range(args.slow)), row, 4)
    stop.set()
    await asyncio.gather(*slow, return_exceptions=True)
    row.note = f"p99 {percentile(replies, 0.99):.0f} ms"
    return row


async def aborted_clients(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    row = Row("good requests after 500 clients that disconnected")
    request = photo_request(photo)
    for number in range(500):
        _, writer = await asyncio.open_connection("127.0.0.1", server.entrance)
        writer.write(request if number % 2 else request[: len(request) // 2])
        await writer.drain()
        writer.transport.abort()
        row.unfinished += 1
    await in_parallel(server.entrance, iter([request] * 200), row)
    return row


async def pipelined(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    """Requests that nobody waits for, 300 at once on a connection; after each time the next client is answered."""
    row, empty = (
        Row(f"good requests after {args.pipelined} times 300 pipelined ones"),
        head("/predict", "Content-Length: 0"),
    )
    replies = []
    for number in range(args.pipelined):
        await abandon(server.entrance, (photo_request(photo) if number % 10 == 0 else empty) * 300)
        row.unfinished += 300
        replies += await in_parallel(server.entrance, iter([photo_request(photo)]), row, 1)
    row.note = f"slowest {percentile(replies, 1.0):.0f} ms"
    return row


async def abandoned(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    """Clients that leave before, while or after they send a request; now and then one stays, and is answered."""
    row, whole = Row(f"good requests between {args.abandoned:,} abandoned ones"), photo_request(photo)
    empty, large = head("/predict", "Content-Length: 0"), head("/predict", "Content-Length: 9000000") + bytes(100_000)
    requests, replies = [b"", empty, empty[:20], whole, whole[: len(whole) // 2], large], []
    for number in range(0, args.abandoned, 500):
        await asyncio.gather(*(abandon(server.entrance, requests[each % len(requests)]) for each in range(500)))
        row.unfinished += 500
        if number % 5000 == 0:
            replies += await in_parallel(server.entrance, iter([whole]), row, 1)
    row.note = f"slowest {percentile(replies, 1.0):.0f} ms, memory {server.memory():.0f} MB"
    return row


async def abandon(port: int, request: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    with suppress(OSError):
        await writer.drain()
    writer.close()  # what is still unsent goes out, and the answer finds nobody


async def overload(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    """Clients that retry at once when they are rejected, ten times as many as the server has room for."""
    row, request = (
        Row(f"{FLOOD} clients for {args.seconds} s, ten times what the server has room for"),
        photo_request(photo),
    )

    def endless() -> Iterator[bytes]:
        while True:
            yield request

    calm = await in_parallel(server.entrance, endless(), Row(""), 64, time.monotonic() + args.seconds)
    replies = await in_parallel(server.entrance, endless(), row, FLOOD, time.monotonic() + args.seconds)
    share = good(replies) / max(1, good(calm))
    rejected = [reply for reply in replies if reply.status == 503]
    row.note = f"goodput {share:.0%} of that with 64 clients; rejections p50 {percentile(rejected, 0.5):.0f} ms"
    return row


async def swaps(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    """Exchanges of the model under load: every answer comes from one of the two alone."""
    row, request = Row(f"{args.swaps} exchanges of the model under load"), photo_request(photo, photo)
    served, expected = args.output_dir / "served", {}
    for name in ("one", "two"):
        predictor = Predictor(args.output_dir / name, "cpu", engine="torch")
        expected[predictor.model_id] = next(iter(predictor.predict([photo]))).probabilities
    stop, wrong, seen = asyncio.Event(), 0, Counter[str]()

    def until_stopped() -> Iterator[bytes]:
        while not stop.is_set():
            yield request

    load = asyncio.create_task(in_parallel(server.entrance, until_stopped(), row))
    for number in range(args.swaps):
        put(args.output_dir / ("one", "two")[number % 2 == 0], served)
        server.process.send_signal(signal.SIGHUP)
        model_id = read_bundle_info(served)[1]
        while (await Client(server.entrance).ask(head("/model", method="GET"))).json()["model_id"] != model_id:
            await asyncio.sleep(0.05)
    stop.set()
    for reply in await load:
        if reply.status == 200:
            answer = reply.json()
            seen[answer["model_id"]] += 1
            for each in answer["predictions"]:
                close = zip(each["probabilities"].values(), expected[answer["model_id"]], strict=True)
                wrong += any(abs(one - other) > 1e-3 for one, other in close)
    row.note = f"{wrong} mixed answers; of the two models {', '.join(map(str, seen.values()))}"
    return row


def put(source: Path, served: Path) -> None:
    """Weights first, then the manifest that names them."""
    manifest = served / MANIFEST
    for path in source.glob("model-*"):
        shutil.copyfile(path, served / path.name)
    shutil.copyfile(source / MANIFEST, manifest.with_suffix(".new"))
    manifest.with_suffix(".new").replace(manifest)


async def restarts(server: Server, photo: bytes, args: argparse.Namespace) -> Row:
    """SIGTERM under load: accepted requests are answered, and the server ends in time."""
    row, request, ends = Row(f"{args.restarts} times SIGTERM under load"), photo_request(photo), []
    for _ in range(args.restarts):
        stop = asyncio.Event()

        def until_stopped(stop: asyncio.Event = stop) -> Iterator[bytes]:
            while not stop.is_set():
                yield request

        load = asyncio.create_task(in_parallel(server.entrance, until_stopped(), row))
        await asyncio.sleep(0.5)
        ends.append(await asyncio.get_running_loop().run_in_executor(None, server.stop))
        stop.set()
        await load
        server.start()
    row.note = f"longest end {max(ends):.1f} s; {row.statuses.pop(-1, 0):,} found no server in between"
    return row


def good(replies: list[Reply]) -> int:
    return sum(reply.status == 200 for reply in replies)


def percentile(replies: list[Reply], share: float) -> float:
    """Milliseconds."""
    ordered = sorted(reply.seconds for reply in replies)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


ATTACKS: dict[str, Attack] = {
    "files": damaged_files, "bombs": bombs, "requests": odd_requests, "slow": slow_clients, "aborted": aborted_clients,
    "pipelined": pipelined, "abandoned": abandoned, "overload": overload, "swaps": swaps, "restarts": restarts,
}  # fmt: skip
BEHIND_PROXY = ("slow", "restarts")
"""Attacks on what an application server leaves to a proxy."""
