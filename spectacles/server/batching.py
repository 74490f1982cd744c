"""Requests of many clients, computed together: a bounded queue, a deadline from arrival, and batches as they come.

A batch is whatever has been decoded by the time the network is free: one image when there is little to do, more under
load. Nobody waits for a batch to fill up. Threads decode and compute; the event loop only hands over and answers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import Any, TypeVar

from spectacles.data.preprocessing import Decoded, Preprocessing
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.server.decoders import Decoders, Died

T = TypeVar("T")
RECENT = 0.1
"""Weight of the newest batch in the estimate of what an image takes."""
FIRST_GUESS = 0.02
"""Seconds an image, before anything has been measured."""
AHEAD = 2
"""Batches of each thread that are decoded before they are needed; what waits beyond them is decoded in larger lots."""
ENOUGH_BYTES = 1 << 22
"""Of files that are decoded together, after which no more are added: of that size, a hand-over is a small part."""
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
    model: Any = None
    """The Predictor that it is decoded for, and that will answer it."""
    decoded: Any = None
    waited: float = 0.0
    decoding: float = 0.0
    alone: bool = False
    """To be decoded by itself: a decoder died of it, or of one beside it."""


class Batcher:
    """Use as `async with`; all methods on one event loop."""

    def __init__(self, model: Predictor, decoders: Decoders, capacity: int, seconds: float) -> None:
        """`capacity`: images that may be in it at once; `seconds`: from arrival to the deadline."""
        self.model = model
        """Assign another one at any time: an image is prepared for, and answered by, the model at its decoding."""
        self.decoders, self.capacity, self.seconds = decoders, capacity, seconds
        self.seconds_an_image, self.inside, self.others = FIRST_GUESS, 0, 0
        self._done = time.monotonic()
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._ready: SimpleQueue[Job | None] = SimpleQueue()
        self._room = Semaphore(AHEAD * math.prod(model.lanes))

    async def __aenter__(self) -> Batcher:
        self._loop = asyncio.get_running_loop()
        self._decoding = ThreadPoolExecutor(1, "other decoding")
        self._inference = ThreadPoolExecutor(1, "other inference")
        lanes = self.model.lanes[0]
        targets = [self._decode_all] * self.decoders.count + [self._infer_all] * lanes
        self._threads = [Thread(target=target, name=target.__name__) for target in targets]
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._waiting.put(None)
            self._ready.put(None)
        for thread in self._threads:
            await self._loop.run_in_executor(None, thread.join)
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
        job = Job(content, now, now + self.seconds, self._loop.create_future())
        with self._counted():
            self._waiting.put(job)
            return await job.answer

    async def predict_all(self, contents: Sequence[bytes]) -> list[Answer]:
        """Of one request; where one of them fails or nobody waits any more, none is computed."""
        if len(contents) == 1:
            return [await self.predict(contents[0])]
        tasks = [asyncio.create_task(self.predict(content)) for content in contents]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def decode(self, content: bytes, preprocessing: Preprocessing) -> Decoded:
        """For other uses of a photo than a prediction."""
        return await self._loop.run_in_executor(self._decoding, self.decoders, content, preprocessing)

    async def between_batches(self, work: Callable[[], T]) -> T:
        """Something else that needs the network (an explanation) and takes long; only a few at a time. Raises
        Overloaded."""
        if self.others >= MOST_OTHERS:
            raise Overloaded("queue_full", 1.0)
        self.others += 1
        try:
            with self._counted():
                return await self._loop.run_in_executor(self._inference, work)
        finally:
            self.others -= 1

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def _decode_all(self) -> None:
        while (first := self._waiting.get()) is not None:
            model, started = self.model, time.monotonic()
            jobs = [job for job in self._together(first, model.info.preprocessing) if self._wanted(job)]
            found = self._decode(jobs, model.info.preprocessing)
            if not found:
                continue
            seconds = time.monotonic() - started
            for job, decoded in zip(jobs, found, strict=True):
                job.model, job.decoded, job.content = model, decoded, b""
                job.waited, job.decoding = started - job.arrived, seconds / len(jobs)
                if decoded.pixels is None:
                    self._tell([job], [model.predict_batch([decoded])[0]], 0.0)
            for job in jobs:
                if job.decoded.pixels is not None:
                    self._room.acquire()
                    self._ready.put(job)

    def _decode(self, jobs: list[Job], preprocessing: Preprocessing) -> list[Decoded]:
        """Empty where a file broke the decoder: then each of them waits for a decoder once more, for itself."""
        if len(jobs) == 1:
            return [self.decoders(jobs[0].content, preprocessing)]
        try:
            return self.decoders.together([job.content for job in jobs], preprocessing) if jobs else []
        except Died:
            for job in jobs:
                job.alone = True
                self._waiting.put(job)
            return []

    def _together(self, first: Job, preprocessing: Preprocessing) -> Iterator[Job]:
        """It, and of those behind it what the other decoders do not need."""
        yield first
        size = len(first.content)
        if first.alone or size >= ENOUGH_BYTES:
            return
        share = self._waiting.qsize() // self.decoders.count
        for job in _more(self._waiting, min(share, self.decoders.most_together(preprocessing) - 1)):
            if job.alone:
                self._waiting.put(job)
                return
            yield job
            size += len(job.content)
            if size >= ENOUGH_BYTES:
                return

    def _infer_all(self) -> None:
        while (job := self._ready.get()) is not None:
            jobs = [job, *_more(self._ready, job.model.lanes[1] - 1)]
            self._room.release(len(jobs))
            for model, batch in groupby(jobs, key=lambda job: job.model):
                wanted = [job for job in batch if self._wanted(job)]
                if wanted:
                    started = time.monotonic()
                    outcomes = _predict(model, [job.decoded for job in wanted])
                    self._tell(wanted, outcomes, time.monotonic() - started)

    def _wanted(self, job: Job) -> bool:
        """Whether somebody still waits for it; one that is too late is told so."""
        if not job.answer.done() and time.monotonic() > job.deadline:
            self._tell([job], [Overloaded("too_late", self.inside * self.seconds_an_image)], 0.0)
            return False
        return not job.answer.done()

    def _tell(self, jobs: list[Job], outcomes: Sequence[Prediction | Exception], inference: float) -> None:
        self._loop.call_soon_threadsafe(partial(self._finish, jobs, outcomes, inference))

    def _finish(self, jobs: list[Job], outcomes: Sequence[Prediction | Exception], inference: float) -> None:
        now = time.monotonic()
        idle_until = max(self._done, min(job.arrived for job in jobs))
        self._done = now
        self.seconds_an_image += RECENT * ((now - idle_until) / len(jobs) - self.seconds_an_image)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.answer.done():
                continue
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                answer = Answer(outcome, job.model, job.waited, job.decoding, inference, len(jobs))
                job.answer.set_result(answer)


def _more(queue: SimpleQueue[Job | None], most: int) -> Iterator[Job]:
    """Those that are there too."""
    for _ in range(most):
        try:
            job = queue.get_nowait()
        except Empty:
            return
        if job is None:
            queue.put(None)  # for the thread that it was meant for
            return
        yield job


def _predict(model: Predictor, batch: Sequence[Decoded]) -> list[Prediction | Exception]:
    """Where a whole batch fails, each image alone: one that cannot be computed spoils no other."""
    try:
        return list(model.predict_batch(batch))
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to one of the images, which gets it back
        return [error] if len(batch) == 1 else [outcome for item in batch for outcome in _predict(model, [item])]
