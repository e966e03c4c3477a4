"""Processes a request in steps (body, images, queue, model), each within the limits and the deadline."""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import torch
from starlette.requests import ClientDisconnect, Request

from detrs.errors import UserError
from detrs.predictor import Predictor
from detrs.serving.batching import Resized, Worker
from detrs.serving.images import check_header, resized
from detrs.serving.problems import Disconnected, RequestProblem
from detrs.serving.settings import ServerSettings
from detrs.serving.uploads import Upload, uploads
from detrs.structures import Batch, Detections

NUM_DECODERS = 2
"""Threads that decode and resize images; each holds at most one decoded image."""
MAX_RETRY_SECONDS = 60
CLOSE_SECONDS = 5.0
"""Time for the model to finish when the application ends: all requests were answered before, so only one that hangs or
computes for a request that was too late takes longer."""
ACCELERATOR_BATCH = 8

T = TypeVar("T")

logger = logging.getLogger("detrs.serving")


class Service:
    """What the routes share: the predictor, the queue, and the counts that limit it.

    Args:
        predictor: the detector.
        settings: limits.
        on_batch: called after each forward pass, with the number of images and the seconds it took.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings, on_batch: Callable[[int, float], None]) -> None:
        self.predictor = predictor
        self.settings = settings
        self.threshold = predictor.threshold if settings.threshold is None else settings.threshold
        default = 1 if predictor.device.type == "cpu" else ACCELERATOR_BATCH
        self.max_batch = settings.max_batch or default
        self.pending = 0
        """Images that the server holds."""
        self._bytes = 0
        self._clients: Counter[str] = Counter()
        self._counts = threading.Lock()
        self.worker = Worker(self._detect, self.max_batch, settings.batch_window_ms / 1000, on_batch)
        self._decoders = ThreadPoolExecutor(NUM_DECODERS, thread_name_prefix="detrs-decode")
        self._free_decoders = asyncio.Semaphore(NUM_DECODERS)

    @property
    def is_ready(self) -> bool:
        """Whether a request may be accepted now."""
        return self.worker.is_ready and self.pending < self.settings.queue_size

    def close(self) -> None:
        """End the threads; that of a model that hangs ends with the process."""
        self.worker.close(CLOSE_SECONDS)
        self._decoders.shutdown(cancel_futures=True)

    async def detect(self, request: Request) -> list[Detections]:
        """All detections of each image in a request, without a threshold.

        Raises:
            RequestProblem: the request is invalid or the server is full.
            Disconnected: the client closed the connection.
        """
        async with self.received(request) as (files, deadline):
            return await self.within_deadline(request, self._detections(files, deadline), deadline)

    async def call(self, request: Request, function: Callable[[Upload], T]) -> T:
        """Call ``function`` with the one image of a request in the thread of the model.

        Raises:
            RequestProblem: the request is invalid, has several images, or the server is full.
            Disconnected: the client closed the connection.
        """
        async with self.received(request) as (files, deadline):
            if len(files) > 1:
                raise RequestProblem(413, f"The request has {len(files)} images. Send one.")
            return await self.within_deadline(request, self._called(files[0], function, deadline), deadline)

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[tuple[list[Upload], float]]:
        """The images of a request, and the deadline of its answer on the clock of ``time.monotonic``.

        Inside, they occupy the queue and the client's share.
        """
        with contextlib.ExitStack() as counted:
            counted.enter_context(self._from_client(request.client.host if request.client else ""))
            with self._body_bytes() as add:
                body = await self._body(request, add)
                deadline = time.monotonic() + self.settings.timeout_seconds
                kind = request.headers.get("content-type", "")
                parsed = self._in_decoder(uploads, kind, body, self.settings.max_images)
                files = await self.within_deadline(request, parsed, deadline)
                del body, parsed
                counted.enter_context(self._places(len(files)))
                yield files, deadline

    async def within_deadline(self, request: Request, work: Coroutine[Any, Any, T], deadline: float) -> T:
        """The result of ``work``, which is cancelled at the deadline or if the client disconnects."""
        seconds = max(deadline - time.monotonic(), 0.0)
        task = asyncio.create_task(work)
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise Disconnected
            raise self._late()
        except TimeoutError:
            raise self._late() from None
        finally:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may still fail, unnoticed
            task.cancel()
            gone.cancel()

    async def _detections(self, files: Sequence[Upload], deadline: float) -> list[Detections]:
        images = []
        for number, file in enumerate(files, 1):
            name = "" if file.name is None else f" ({file.name})"
            label = "The image" if len(files) == 1 else f"Image {number}{name}"
            preprocessing, limit = self.predictor.detector.preprocessing, self.settings.max_pixels
            images.append(await self._in_decoder(resized, file, label, preprocessing, limit))
        return await asyncio.gather(*self._submitted(images, deadline))

    async def _called(self, file: Upload, function: Callable[[Upload], T], deadline: float) -> T:
        await self._in_decoder(check_header, file.content, "The image", self.settings.max_pixels)

        def call() -> T:
            try:
                return function(file)
            except (UserError, MemoryError, RuntimeError) as error:
                raise _of_model(error) or error from None

        return await self._submitted([call], deadline)[0]

    def _submitted(self, works: Sequence[Any], deadline: float) -> "list[asyncio.Future[Any]]":
        try:
            return [asyncio.wrap_future(future) for future in self.worker.submit(works, deadline)]
        except RuntimeError:
            raise RequestProblem(503, "The server is stopping.", 5) from None

    def _detect(self, images: Sequence[Resized]) -> list[Detections]:
        stacked = torch.stack([image for image, _, _ in images])
        padding = torch.zeros(len(images), *stacked.shape[-2:], dtype=torch.bool)  # (B, H, W)
        try:
            return self.predictor.detector.detect(
                Batch(stacked, padding, ()).to(self.predictor.device),
                [size for _, size, _ in images],
                [source for _, _, source in images],
            )
        except (UserError, MemoryError, RuntimeError) as error:
            raise _of_model(error) or error from None

    async def _in_decoder(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of ``function`` in one of the threads that decode.

        Calls wait here, not in the queue of the executor, which keeps the arguments of cancelled ones until a thread is
        free.
        """
        await self._free_decoders.acquire()
        future = asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

        def free(done: "asyncio.Future[T]") -> None:
            self._free_decoders.release()
            _ = done.cancelled() or done.exception()  # unnoticed, if the caller was cancelled

        future.add_done_callback(free)
        return await asyncio.shield(future)

    async def _body(self, request: Request, add: Callable[[int], None]) -> bytes:
        """The body of a request.

        Args:
            request: of which the head was read.
            add: counts bytes of all requests.
        """
        limit, body = self.settings.max_body_bytes, bytearray()
        too_large = RequestProblem(413, f"The body is larger than {limit:,} bytes. Send smaller or fewer images.")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestProblem(415, "Compressed bodies are not supported: omit the header Content-Encoding.")
        if int(request.headers.get("content-length", 0)) > limit:
            raise too_large
        try:
            async with asyncio.timeout(self.settings.body_timeout_seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > limit:
                        raise too_large
                    add(len(chunk))
                    body += chunk
        except TimeoutError:
            seconds = self.settings.body_timeout_seconds
            raise RequestProblem(408, f"The body did not arrive within {seconds:g} seconds.") from None
        except ClientDisconnect:
            raise Disconnected from None
        return bytes(body)

    @contextmanager
    def _body_bytes(self) -> Iterator[Callable[[int], None]]:
        """A function that counts the bytes of one body, until the end of the block.

        It raises ``RequestProblem`` if all bodies together are too large.
        """
        own = 0

        def add(number: int) -> None:
            nonlocal own
            with self._counts:
                if self._bytes + number > self.settings.max_total_bytes:
                    raise self._full()
                self._bytes += number
                own += number

        try:
            yield add
        finally:
            with self._counts:
                self._bytes -= own

    @contextmanager
    def _places(self, number: int) -> Iterator[None]:
        """Inside, ``number`` images occupy the queue. Raises ``RequestProblem`` if it has no place for them."""
        with self._counts:
            if self.pending + number > self.settings.queue_size:
                raise self._full()
            self.pending += number
        try:
            yield
        finally:
            with self._counts:
                self.pending -= number

    @contextmanager
    def _from_client(self, client: str) -> Iterator[None]:
        """Inside, a request counts as one of ``client``. Raises ``RequestProblem`` if it has too many."""
        with self._counts:
            limit = self.settings.max_per_client
            if limit is not None and self._clients[client] >= limit:
                raise RequestProblem(
                    429,
                    f"{limit} requests of this client are in progress. Wait for their answers.",
                    self._retry_after(),
                )
            self._clients[client] += 1
        try:
            yield
        finally:
            with self._counts:
                self._clients[client] -= 1
                if not self._clients[client]:
                    del self._clients[client]

    def _retry_after(self) -> int:
        """Seconds until the images that are here now are computed."""
        return max(1, min(math.ceil(self.pending * self.worker.seconds_per_image), MAX_RETRY_SECONDS))

    def _full(self) -> RequestProblem:
        return RequestProblem(503, "The queue of the server is full. Retry later.", self._retry_after())

    def _late(self) -> RequestProblem:
        seconds = self.settings.timeout_seconds
        return RequestProblem(
            503, f"The answer took longer than {seconds:g} seconds. Retry later.", self._retry_after()
        )


def _of_model(error: Exception) -> RequestProblem | None:
    """The answer to an image that the model does not accept, or for which memory is missing; ``None``: other errors."""
    memory = (MemoryError, torch.OutOfMemoryError)
    if (
        isinstance(error, memory) or isinstance(error.__context__, memory) or "allocate memory" in str(error)
    ):  # of the CPU: a plain RuntimeError
        return RequestProblem(503, "The model ran out of memory. Send a smaller image, or retry later.", 5)
    return RequestProblem(422, str(error)) if isinstance(error, UserError) else None


async def _disconnected(request: Request) -> None:
    """Returns when the client closes the connection; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
