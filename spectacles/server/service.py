"""The model that is served: loaded and checked before the server is ready, swapped without a pause."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np

from spectacles.core.device import cpu_count, resolve_device
from spectacles.core.errors import UserError
from spectacles.inference.predictor import Predictor
from spectacles.models import engines
from spectacles.server import telemetry
from spectacles.server.auth import RateLimit, Rejected
from spectacles.server.batching import Batcher, Overloaded
from spectacles.server.decoders import Decoders, NoDecoder
from spectacles.server.limits import MAX_PIXELS
from spectacles.server.settings import Settings
from spectacles.server.telemetry import Metrics

log = logging.getLogger("spectacles.api")

SWITCH_SECONDS = 0.0005
"""Of the interpreter. With the default 5 ms, threads that decode and compute wait that long many times per image while
the event loop rejects a flood of requests."""
REJECTIONS_PER_IMAGE = 10
"""Rejections sent in the time that an image takes; more are delayed. Clients that retry at once would otherwise be
rejected so often that no time is left for photos."""
MAX_REJECTION_DELAY = 1.0
"""Seconds: those who come after a flood must not wait for the rejections of all of it."""
TOO_BUSY = "The server has more photos to look at than it can handle: try again a little later."
LOADING = "The model is being loaded."
URL_THREADS = 8
GPU_BATCH = 32


class Service:
    """State of one server, shared by all requests."""

    def __init__(self, settings: Settings, problem: str = "") -> None:
        """`problem`: why nothing can be served, such as settings that cannot be used."""
        self.settings = settings
        self.metrics = Metrics(lambda: self.batcher.inside if self.batcher else 0)
        self.rate_limit = RateLimit(settings.rate)
        self.batcher: Batcher | None = None
        self.problem = problem or LOADING
        """Why there is no model; '' once there is one."""
        self.draining = False
        self.uploading = 0
        """Large requests that were accepted and are being received."""
        self.loop = asyncio.get_running_loop()
        self.url_pool = ThreadPoolExecutor(URL_THREADS, "fetch")
        """Of its own: servers that do not answer must not take the threads that others need."""
        self._swapping = asyncio.Lock()
        self._last_rejection = 0.0

    def ready_batcher(self) -> Batcher:
        """Raises Rejected (503) while there is no model."""
        if self.batcher is None:
            raise Rejected(503, "not_ready", self.problem, {"Retry-After": "1"})
        return self.batcher

    def not_ready(self) -> str:
        """Why no photos should be sent here now; '' where they are welcome."""
        if self.draining:
            return "The server is about to end."
        return self.problem or self.ready_batcher().problem()

    def check_room(self, images: int = 1) -> None:
        """Raises Rejected (503) where images that come now could not be answered in time."""
        try:
            self.ready_batcher().check_room(images)
        except Overloaded as overload:
            raise busy(overload) from None

    def busy_for(self, large: bool = False) -> int:
        """Like `check_room` for one image, but fast: seconds after which to retry, 0 where there is room.

        For large ones those count too that are being received. Counts the rejection."""
        if self.batcher is None:
            return 0  # the app tells why
        try:
            self.batcher.check_room(1 + (self.uploading if large else 0))
        except Overloaded as overload:
            self.metrics.reject(overload.reason)
            return overload.seconds
        return 0

    def reject_after(self) -> float:
        """Seconds until the next rejection may be sent, at most MAX_REJECTION_DELAY: 0 up to REJECTIONS_PER_IMAGE times
        the rate of answers."""
        now = self.loop.time()
        pause = self.ready_batcher().seconds_per_image / REJECTIONS_PER_IMAGE
        self._last_rejection = min(max(self._last_rejection + pause, now), now + MAX_REJECTION_DELAY)
        return self._last_rejection - now

    def drain(self) -> None:
        """From now on not ready, so that load balancers send no more; what still arrives is answered."""
        self.draining = True
        telemetry.write("draining")

    async def run(self, stack: AsyncExitStack) -> None:
        """Loads the first model; `stack` closes what that takes. Where it fails, `problem` says why."""
        try:
            if self.problem != LOADING:
                raise UserError(self.problem)
            await self._start(stack)
        except (UserError, NoDecoder, OSError) as error:
            self.problem = str(error)
            telemetry.write("not ready", error=self.problem)
        except Exception:
            self.problem = "The model could not be loaded: see the server's log."
            log.exception("loading failed")

    async def _start(self, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        decoders = stack.enter_context(Decoders(cpu_count(), MAX_PIXELS))
        model = await loop.run_in_executor(None, load, self.settings)
        await loop.run_in_executor(None, decoders.warm, model.info.preprocessing)
        batcher = Batcher(model, decoders, self.settings.queue, self.settings.deadline)
        self.batcher = await stack.enter_async_context(batcher)
        self.problem = ""
        freeze_garbage_collector()
        telemetry.write("ready", model_id=model.model_id, device=model.device, engine=model.engine)

    async def swap(self, folder: Path | None = None) -> str:
        """Serves what the bundle's folder, or `folder`, holds now; returns the model id.

        The old model answers until the new one is checked and warm. Raises UserError, and keeps the old model, where
        the new one cannot be used.
        """
        async with self._swapping:
            try:
                batcher = self.ready_batcher()
                model = await asyncio.get_running_loop().run_in_executor(None, load, self.settings, folder)
            except (UserError, OSError, Rejected) as error:
                self.metrics.swaps("failed").inc()
                telemetry.write("swap failed", error=str(error))
                raise UserError(str(error)) from error
            batcher.model = model
            freeze_garbage_collector()
            self.metrics.swaps("done").inc()
            telemetry.write("swapped", model_id=model.model_id)
            return model.model_id


def freeze_garbage_collector() -> None:
    """Excludes what has been loaded: searching the objects of torch and other packages for garbage again and again
    would take half of the event loop's time."""
    gc.collect()
    gc.freeze()


def busy(overload: Overloaded) -> Rejected:
    return Rejected(503, overload.reason, TOO_BUSY, {"Retry-After": str(overload.seconds)})


def load(settings: Settings, folder: Path | None = None) -> Predictor:
    """The bundle, verified and warmed up: a first pass takes several times as long as the following ones. Raises
    UserError."""
    device = resolve_device(settings.device)
    model = Predictor(
        folder or settings.bundle_folder(),
        device,
        engines.CHUNK if device == "cpu" else GPU_BATCH,  # on a CPU, larger batches only take more memory
        engine=settings.engine,
        prior=settings.prior,
        precision=settings.precision,
    )
    for images in (1, model.batch_size):
        outputs = model.probabilities(np.zeros((images, *model.info.preprocessing.shape), dtype=np.uint8))
        if not np.isfinite(outputs).all():
            raise UserError(f"the model {model.model_id} gives numbers that are not finite: train it again.")
    return model


@asynccontextmanager
async def started(settings: Settings, problem: str = "") -> AsyncIterator[Service]:
    """A service that loads its model in the background, so that the server answers meanwhile that it is alive."""
    sys.setswitchinterval(SWITCH_SECONDS)
    service = Service(settings, problem)
    async with AsyncExitStack() as stack:
        stack.callback(service.url_pool.shutdown, wait=False, cancel_futures=True)
        loading = asyncio.create_task(service.run(stack))
        try:
            yield service
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
