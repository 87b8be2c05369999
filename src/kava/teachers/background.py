"""A background thread that runs jobs in order with a bounded queue and re-raises their errors."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def background(ahead: int = 2) -> Iterator[Callable[..., None]]:
    """`with background() as later: later(job, ...)` runs jobs one after the other in a thread.

    At most `ahead` jobs are queued; then `later` blocks. A job's error is raised by the next call, or at the end of the
    block, and the jobs after it are dropped.
    """
    waiting: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(max_workers=1)

    def later(job: Callable[..., object], *args: Any) -> None:
        waiting.append(pool.submit(job, *args))
        while len(waiting) > ahead or (waiting and waiting[0].done()):
            waiting.popleft().result()

    try:
        yield later
        while waiting:
            waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Sent:
    """Tensors on their way to the host; `arrive`, called in another thread, waits for them.

    On CUDA they are copied on a separate stream, so that the next pass does not wait for the copy.
    """

    def __init__(self, tensors: dict[str, Tensor], streams: dict[torch.device, Any]):
        self._tensors = tensors
        self._device = next(iter(tensors.values())).device
        self._stream, self._ready = None, None
        if self._device.type == "cuda":
            self._stream = streams.setdefault(self._device, torch.cuda.Stream(self._device))
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(self._device))

    def arrive(self) -> dict[str, Tensor]:
        tensors, self._tensors = self._tensors, {}
        if self._stream is None or self._ready is None:
            return {name: tensor.cpu() for name, tensor in tensors.items()}
        host = {name: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for name, t in tensors.items()}
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._ready)
            for name, tensor in tensors.items():
                host[name].copy_(tensor, non_blocking=True)
        self._stream.synchronize()  # the tensors' memory may be reused only now
        return host
