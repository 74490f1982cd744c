"""A model that answers: loaded and checked before it is ready, exchanged while it answers, drained before it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np

from spectacles.core.device import cpu_count, prepare_device, resolve_device
from spectacles.core.errors import UserError
from spectacles.inference.predictor import Predictor
from spectacles.server import telemetry
from spectacles.server.auth import RateLimit, Rejected
from spectacles.server.batching import Batcher, Overloaded
from spectacles.server.decoders import Decoders
from spectacles.server.settings import Settings
from spectacles.server.telemetry import Metrics

log = logging.getLogger("spectacles.api")

MAX_PIXELS = 25_000_000
"""An image: enough for a phone's photo, and some 100 MB of memory for each one that is being decoded."""
SWITCH_SECONDS = 0.0005
"""After which a thread lets another one run Python. With Python's own 5 ms, threads that decode and compute wait that
long many times an image while the event loop turns away a flood."""
TURNED_AWAY = 10
"""Times as many requests as can be answered are rejected at once. Whoever comes on top of that waits for the rejection:
clients that ask again at once would otherwise be rejected so often that no time is left for photos."""
TOO_BUSY = "The server has more photos to look at than it can: come back a little later."
LOADING = "The model is being loaded."


class Service:
    """State of one server; everything that requests need."""

    def __init__(self, settings: Settings, problem: str = "") -> None:
        """`problem`: why nothing can be served, whatever is loaded."""
        self.settings = settings
        self.metrics = Metrics(lambda: self.batcher.inside if self.batcher else 0)
        self.rate_limit = RateLimit(settings.rate)
        self.batcher: Batcher | None = None
        self.problem = problem or LOADING
        """Why there is no model; '' where there is one."""
        self.draining = False
        self.admitted = 0
        """Requests with photos that have arrived and have no answer yet."""
        self.uploading = 0
        """Large ones that were let in and are on their way."""
        self.loop = asyncio.get_running_loop()
        self._swapping = asyncio.Lock()
        self._last_rejection = 0.0

    def ready_batcher(self) -> Batcher:
        """Raises Rejected (503) while there is no model."""
        if self.batcher is None:
            raise Rejected(503, "not_ready", self.problem, {"Retry-After": "1"})
        return self.batcher

    def check_room(self, images: int = 1) -> None:
        """Raises Rejected (503) where images that come now could not be answered in time."""
        try:
            self.ready_batcher().check_room(images)
        except Overloaded as overload:
            raise busy(overload) from None

    def busy_for(self, large: bool = False) -> int:
        """As `check_room` for one image, in next to no time: seconds after which to come back, 0 where there is room.
        Requests that are not yet in the queue take room too; large ones, which take time to read, before they have
        arrived. Counts the rejection."""
        if self.batcher is None:
            return 0  # why, the app says
        coming = self.admitted + self.uploading * large - self.batcher.inside
        try:
            self.batcher.check_room(1 + max(0, coming))
        except Overloaded as overload:
            self.metrics.reject(overload.reason)
            return overload.seconds
        return 0

    def reject_after(self) -> float:
        """Seconds until the next rejection may be said: 0 up to TURNED_AWAY times the load that can be borne."""
        now = self.loop.time()
        pause = self.ready_batcher().seconds_an_image / TURNED_AWAY
        self._last_rejection = max(self._last_rejection + pause, now)
        return self._last_rejection - now

    async def run(self, stack: AsyncExitStack) -> None:
        """Loads the first model and keeps what it takes in `stack`. Without a model the server says why."""
        try:
            if self.problem != LOADING:
                raise UserError(self.problem)
            await self._start(stack)
        except (UserError, OSError) as error:
            self.problem = str(error)
            telemetry.write("not ready", error=self.problem)
        except Exception:
            self.problem = "The model could not be loaded: the server's log says why."
            log.exception("loading failed")

    async def _start(self, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        decoders = await loop.run_in_executor(None, Decoders, cpu_count(), MAX_PIXELS)
        stack.enter_context(decoders)
        model = await loop.run_in_executor(None, load, self.settings)
        await loop.run_in_executor(None, decoders.warm, model.info.preprocessing)
        batcher = Batcher(model, decoders, self.settings.queue, self.settings.deadline)
        self.batcher, self.problem = await stack.enter_async_context(batcher), ""
        spare_garbage_collection()
        telemetry.write("ready", model_id=model.model_id, device=str(model.device), engine=model.engine)

    async def swap(self, folder: Path | None = None) -> str:
        """Loads what is in the bundle's folder now, or in another one, and serves it from then on; the id of the model.

        The old one goes on until the new one is checked and warm, and for good where it cannot be used (UserError).
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
            spare_garbage_collection()
            self.metrics.swaps("done").inc()
            telemetry.write("swapped", model_id=model.model_id)
            return model.model_id


def spare_garbage_collection() -> None:
    """What has been loaded stays: searching the objects of torch and its like for garbage again and again would take
    half of the event loop's time."""
    gc.collect()
    gc.freeze()


def busy(overload: Overloaded) -> Rejected:
    return Rejected(503, overload.reason, TOO_BUSY, {"Retry-After": str(overload.seconds)})


def load(settings: Settings, folder: Path | None = None) -> Predictor:
    """The bundle, its hashes checked, after a first pass, which takes several times as long as all that follow. Raises
    UserError."""
    device = prepare_device(resolve_device(settings.device))
    model = Predictor(folder or settings.bundle_folder(), device, engine=settings.engine)
    for images in (1, model.batch_size):
        outputs = model.probabilities(np.zeros((images, *model.info.preprocessing.shape), dtype=np.uint8))
        if not np.isfinite(outputs).all():
            raise UserError(f"the model {model.model_id} gives numbers that are not finite: train it again.")
    return model


@asynccontextmanager
async def started(settings: Settings, problem: str = "") -> AsyncIterator[Service]:
    """A service that loads its model while it already answers that it is alive."""
    sys.setswitchinterval(SWITCH_SECONDS)
    service = Service(settings, problem)
    async with AsyncExitStack() as stack:
        loading = asyncio.create_task(service.run(stack))
        try:
            yield service
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
