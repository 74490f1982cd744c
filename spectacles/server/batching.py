"""Images of many clients, computed in batches: a bounded queue, with a deadline from arrival.

A batch is whatever has been decoded by the time the network is free: one image under little load, more under high load.
No image waits for a batch to fill up. Threads decode and compute; the event loop only hands over and answers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import Any, TypeVar

from spectacles.data.preprocessing import Decoded, Preprocessing
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.server.decoders import DecoderDied, Decoders, NoDecoder

T = TypeVar("T")
RECENT = 0.1
"""Weight of the newest batch in the estimate of the seconds per image."""
INITIAL_SECONDS = 0.02
"""Seconds per image, before any has been measured."""
AHEAD = 2
"""Batches per thread that are decoded in advance; the images behind them are then decoded in larger groups."""
ENOUGH_BYTES = 1 << 22
"""Total size of files decoded together, after which no more are added: the overhead of a call is small by then."""
LATE_SECONDS = 15.0
"""That an image which was begun in time may take beyond its deadline, such as one that a decoder dies of."""
MAX_EXPLANATIONS = 2
"""Explanations waiting or being computed: predictions must not wait for more."""


class Overloaded(Exception):
    """No room, or no time before the deadline: the client should retry after `seconds`."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seconds = max(1, math.ceil(seconds))


@dataclass(frozen=True)
class Answer:
    prediction: Prediction
    model: Predictor
    """The one that predicted it; the next answer may come from another one."""
    waited: float
    decoding: float
    inference: float
    """Seconds; the inference is that of the whole batch."""
    batch: int


@dataclass(eq=False)
class Job:
    content: bytes
    arrived: float
    deadline: float
    answer: asyncio.Future[Answer]
    model: Any = None
    """The Predictor that it is decoded for and answered by."""
    decoded: Any = None
    waited: float = 0.0
    decoding: float = 0.0
    alone: bool = False
    """To be decoded by itself: a decoder died on it, or on one beside it."""


class Batcher:
    """Use as `async with`; all methods on one event loop."""

    def __init__(self, model: Predictor, decoders: Decoders, capacity: int, seconds: float) -> None:
        """`capacity`: most images waiting or being computed; `seconds`: from arrival to the deadline."""
        self.model = model
        """May be replaced at any time: an image is decoded for, and answered by, the model at that moment."""
        self.decoders = decoders
        self.capacity = capacity
        self.seconds = seconds
        self.seconds_per_image = INITIAL_SECONDS
        self.inside = 0
        """Images waiting or being computed."""
        self.explanations = 0
        self._done = time.monotonic()
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._ready: SimpleQueue[Job | None] = SimpleQueue()
        self._room = Semaphore(AHEAD * model.num_streams * model.stream_batch_size)

    async def __aenter__(self) -> Batcher:
        self._loop = asyncio.get_running_loop()
        self._decoding = ThreadPoolExecutor(1, "decode explained")
        self._inference = ThreadPoolExecutor(1, "explain")
        targets = [self._decode_all] * self.decoders.count + [self._infer_all] * self.model.num_streams
        self._threads: list[Thread] = []
        try:
            for target in targets:
                thread = Thread(target=target, name=target.__name__)
                thread.start()
                self._threads.append(thread)
            self._inference.submit(int)  # starts its thread now, where that can still be reported
            self._repair: Future[Any] = self._decoding.submit(int)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._waiting.put(None)
            self._ready.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._decoding.shutdown()
        self._inference.shutdown()

    def problem(self) -> str:
        """Why images are not answered; '' where all is at work. Starts what is missing, in the background."""
        if not all(thread.is_alive() for thread in self._threads):
            return "A thread of the server has ended: restart it."
        if self.decoders.problem and self._repair.done():
            self._repair = self._decoding.submit(self._start_decoders)
        return self.decoders.problem

    def _start_decoders(self) -> None:
        with suppress(NoDecoder):
            self.decoders.warm(self.model.info.preprocessing)

    def check_room(self, images: int = 1) -> None:
        """Raises Overloaded where so many more images would not fit in, or would miss their deadline."""
        expected = (self.inside + images) * self.seconds_per_image
        if self.inside + images > self.capacity:
            raise Overloaded("queue_full", expected)
        if self.inside and expected > self.seconds:
            raise Overloaded("too_late", expected - self.seconds)

    async def predict(self, content: bytes) -> Answer:
        """Cancelling it removes the image from the queue. Raises Overloaded where the deadline has passed."""
        now = time.monotonic()
        job = Job(content, now, now + self.seconds, self._loop.create_future())
        with self._counted():
            self._waiting.put(job)
            try:
                async with asyncio.timeout(self.seconds + LATE_SECONDS):
                    return await job.answer
            except TimeoutError:
                raise Overloaded("too_late", self.seconds) from None
            finally:
                job.content = b""  # it may stay in the queue a little longer

    async def predict_all(self, contents: Sequence[bytes]) -> list[Answer]:
        """The images of one request; where one fails or the request is cancelled, the others are not computed."""
        if len(contents) == 1:
            return [await self.predict(contents[0])]
        tasks = [asyncio.create_task(self.predict(content)) for content in contents]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def decode(self, content: bytes, preprocessing: Preprocessing) -> Decoded:
        """For explanations, beside the queue."""
        return await self._loop.run_in_executor(self._decoding, self.decoders, content, preprocessing)

    async def between_batches(self, work: Callable[[], T]) -> T:
        """Runs an explanation, which needs the network for long; only a few at a time. Raises Overloaded."""
        if self.explanations >= MAX_EXPLANATIONS:
            raise Overloaded("queue_full", 1.0)
        self.explanations += 1
        try:
            with self._counted():
                return await self._loop.run_in_executor(self._inference, work)
        finally:
            self.explanations -= 1

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def _decode_all(self) -> None:
        while (first := self._waiting.get()) is not None:
            model = self.model
            jobs = [job for job in self._together(first, model.info.preprocessing) if self._wanted(job)]
            try:
                self._decode_jobs(jobs, model)
            except Exception as error:  # noqa: BLE001 - whatever it is, it goes to the requests of these images
                self._resolve(jobs, [error] * len(jobs), 0.0)

    def _decode_jobs(self, jobs: list[Job], model: Predictor) -> None:
        started = time.monotonic()
        found = self._decode(jobs, model.info.preprocessing)
        if not found:
            return
        seconds = time.monotonic() - started
        for job, decoded in zip(jobs, found, strict=True):
            job.model = model
            job.decoded = decoded
            job.content = b""
            job.waited = started - job.arrived
            job.decoding = seconds / len(jobs)
            if decoded.pixels is None:
                self._resolve([job], [model.predict_batch([decoded])[0]], 0.0)
        for job in jobs:
            if job.decoded.pixels is not None:
                self._room.acquire()
                self._ready.put(job)

    def _decode(self, jobs: list[Job], preprocessing: Preprocessing) -> list[Decoded]:
        """Empty where a file killed the decoder: then each of them goes back to the queue, to be decoded alone."""
        if len(jobs) == 1:
            return [self.decoders(jobs[0].content, preprocessing)]
        try:
            return self.decoders.together([job.content for job in jobs], preprocessing) if jobs else []
        except DecoderDied:
            for job in jobs:
                job.alone = True
                self._waiting.put(job)
            return []

    def _together(self, first: Job, preprocessing: Preprocessing) -> Iterator[Job]:
        """The first, and those behind it that the other decoders do not need."""
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
            jobs = [job, *_more(self._ready, job.model.stream_batch_size - 1)]
            self._room.release(len(jobs))
            for model, batch in groupby(jobs, key=lambda job: job.model):
                wanted = [job for job in batch if self._wanted(job)]
                if wanted:
                    started = time.monotonic()
                    outcomes = _predict(model, [job.decoded for job in wanted])
                    self._resolve(wanted, outcomes, time.monotonic() - started)

    def _wanted(self, job: Job) -> bool:
        """Whether its request still waits for it; past the deadline it gets Overloaded."""
        if not job.answer.done() and time.monotonic() > job.deadline:
            self._resolve([job], [Overloaded("too_late", self.inside * self.seconds_per_image)], 0.0)
            return False
        return not job.answer.done()

    def _resolve(self, jobs: list[Job], outcomes: Sequence[Prediction | Exception], inference: float) -> None:
        self._loop.call_soon_threadsafe(partial(self._finish, jobs, outcomes, inference))

    def _finish(self, jobs: list[Job], outcomes: Sequence[Prediction | Exception], inference: float) -> None:
        now = time.monotonic()
        idle_until = max(self._done, min(job.arrived for job in jobs))
        self._done = now
        self.seconds_per_image += RECENT * ((now - idle_until) / len(jobs) - self.seconds_per_image)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.answer.done():
                continue
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                answer = Answer(outcome, job.model, job.waited, job.decoding, inference, len(jobs))
                job.answer.set_result(answer)


def _more(queue: SimpleQueue[Job | None], most: int) -> Iterator[Job]:
    """Up to `most` jobs that are in the queue already."""
    for _ in range(most):
        try:
            job = queue.get_nowait()
        except Empty:
            return
        if job is None:
            queue.put(None)  # for the thread that it was meant to stop
            return
        yield job


def _predict(model: Predictor, batch: Sequence[Decoded]) -> list[Prediction | Exception]:
    """Where a batch fails, each image is computed alone: one that cannot be computed must not affect the others."""
    try:
        return list(model.predict_batch(batch))
    except Exception as error:  # noqa: BLE001 - whatever it is, it goes to the request of the image
        return [error] if len(batch) == 1 else [outcome for item in batch for outcome in _predict(model, [item])]
