"""Requests of many clients, computed together: a bounded queue, a deadline from arrival, and batches as they come.

A batch is whatever has been decoded by the time the network is free: one image when there is little to do, many under
load. Nobody waits for a batch to fill up.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from spectacles.decoding import Decoded
from spectacles.inference import Prediction, Predictor
from spectacles.preprocess import Preprocessing
from spectacles.server.decoders import Decoders

T = TypeVar("T")
RECENT = 0.1
"""Weight of the newest batch in the estimate of what an image takes."""
FIRST_GUESS = 0.02
"""Seconds an image, before anything has been measured."""

MOST_OTHERS = 2
"""Explanations that wait or are computed: predictions must not wait for more."""


class Overloaded(Exception):
    """No room, or no time before the deadline: the client should come back after `seconds`."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.reason, self.seconds = reason, max(1, math.ceil(seconds))


@dataclass(frozen=True)
class Answer:
    prediction: Prediction
    model: Predictor
    """That gave it; the next answer may come from another one."""
    waited: float
    decoding: float
    inference: float
    """Seconds; of the inference, the whole batch's."""
    batch: int


@dataclass(eq=False)
class Job:
    content: bytes
    arrived: float
    deadline: float
    answer: asyncio.Future[Answer]
    model: Predictor | None = None
    decoded: Any = None
    """`Decoded`, once it is."""
    waited: float = 0.0
    decoding: float = 0.0


@dataclass
class Batcher:
    """Use as `async with`; all methods on one event loop."""

    model: Predictor
    """Assign another one at any time: an image is prepared for, and answered by, the model at its decoding."""
    decoders: Decoders
    capacity: int
    """Images that may be in it at once; what comes beyond is refused."""
    seconds: float
    """From arrival to the deadline."""
    seconds_an_image: float = FIRST_GUESS
    inside: int = 0
    _others: int = 0
    _waiting: asyncio.Queue[Job] = field(default_factory=asyncio.Queue)
    _ready: asyncio.Queue[Job] = field(default_factory=asyncio.Queue)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Batcher:
        self._decoding = ThreadPoolExecutor(self.decoders.count, "decoding")
        self._inference = ThreadPoolExecutor(1, "inference")
        self._room = asyncio.Semaphore(2 * self.model.batch_size)
        self._tasks = [asyncio.create_task(self._decode_all()) for _ in range(self.decoders.count)]
        self._tasks.append(asyncio.create_task(self._infer_all()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._decoding.shutdown()
        self._inference.shutdown()

    def check_room(self, images: int = 1) -> None:
        """Raises Overloaded where so many more images would find no place, or would not be done by their deadline."""
        expected = (self.inside + images) * self.seconds_an_image
        if self.inside + images > self.capacity:
            raise Overloaded("queue_full", expected)
        if self.inside and expected > self.seconds:
            raise Overloaded("too_late", expected - self.seconds)

    async def predict(self, content: bytes) -> Answer:
        """Cancelling it takes the image out of the queue. Raises Overloaded where the deadline has passed."""
        now = time.monotonic()
        job = Job(content, now, now + self.seconds, asyncio.get_running_loop().create_future())
        with self._counted():
            self._waiting.put_nowait(job)
            try:
                return await job.answer
            finally:
                job.answer.cancel()  # nobody listens any more; without effect where it is done

    async def predict_all(self, contents: Sequence[bytes]) -> list[Answer]:
        """Of one request; where one of them fails or nobody waits any more, none is computed."""
        tasks = [asyncio.create_task(self.predict(content)) for content in contents]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def decode(self, content: bytes, preprocessing: Preprocessing) -> Decoded:
        """For other uses of a photo than a prediction."""
        return await asyncio.get_running_loop().run_in_executor(self._decoding, self.decoders, content, preprocessing)

    async def between_batches(self, work: Callable[[], T]) -> T:
        """Something else that needs the network (an explanation) and takes long; only a few at a time. Raises
        Overloaded."""
        if self._others >= MOST_OTHERS:
            raise Overloaded("queue_full", 1.0)
        self._others += 1
        try:
            with self._counted():
                return await asyncio.get_running_loop().run_in_executor(self._inference, work)
        finally:
            self._others -= 1

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def _decode_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()  # what is decoded and not yet computed is bounded
            job = await self._waiting.get()
            if not self._wanted(job):
                self._room.release()
                continue
            job.model, started = self.model, time.monotonic()
            job.waited = started - job.arrived
            job.decoded = await loop.run_in_executor(
                self._decoding, self.decoders, job.content, job.model.info.preprocessing
            )
            job.content, job.decoding = b"", time.monotonic() - started
            if job.decoded.pixels is None:
                self._finish(job, job.model.predict_batch([job.decoded])[0], 0.0, 1)
            else:
                self._ready.put_nowait(job)

    async def _infer_all(self) -> None:
        done = time.monotonic()
        while True:
            jobs = [await self._ready.get()]
            while len(jobs) < self.model.batch_size and not self._ready.empty():
                jobs.append(self._ready.get_nowait())
            for model, batch in groupby(jobs, key=lambda job: job.model):
                assert model is not None
                await self._infer(model, list(batch))
            idle_until = max(done, jobs[0].arrived)
            done = time.monotonic()
            self.seconds_an_image += RECENT * ((done - idle_until) / len(jobs) - self.seconds_an_image)

    async def _infer(self, model: Predictor, jobs: list[Job]) -> None:
        wanted = []
        for job in jobs:
            if self._wanted(job):
                wanted.append(job)
            else:
                self._room.release()
        started, loop = time.monotonic(), asyncio.get_running_loop()
        outcomes = await loop.run_in_executor(self._inference, _predict, model, [job.decoded for job in wanted])
        seconds = time.monotonic() - started
        for job, outcome in zip(wanted, outcomes, strict=True):
            self._finish(job, outcome, seconds, len(wanted))

    def _wanted(self, job: Job) -> bool:
        """Whether somebody still waits for it; one that is too late is told so."""
        if not job.answer.done() and time.monotonic() > job.deadline:
            job.answer.set_exception(Overloaded("too_late", self.inside * self.seconds_an_image))
        return not job.answer.done()

    def _finish(self, job: Job, outcome: Prediction | Exception, inference: float, batch: int) -> None:
        self._room.release()
        if job.answer.done():
            return
        if isinstance(outcome, Exception):
            job.answer.set_exception(outcome)
            return
        assert job.model is not None
        job.answer.set_result(Answer(outcome, job.model, job.waited, job.decoding, inference, batch))


def _predict(model: Predictor, batch: Sequence[Decoded]) -> list[Prediction | Exception]:
    """Where a whole batch fails, each image alone: one that cannot be computed spoils no other."""
    try:
        return list(model.predict_batch(batch)) if batch else []
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to one of the images, which gets it back
        return [error] if len(batch) == 1 else [outcome for item in batch for outcome in _predict(model, [item])]
