"""The processes that prepare batches: no stop signal ends them before the trainer does, and a dead one is one clear line."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from kava.errors import KavaError
from kava.stop_signals import STOP_SIGNALS

DEAD = "DataLoader worker (pid"  # how torch's message about a dead worker begins


@contextmanager
def fetching() -> Iterator[None]:
    """Around the fetch of batches, which starts the workers: they never get a stop signal, so batches keep coming.

    A signal to the process group or to every process of a job would otherwise end them first, and the update with them.
    Blocked signals are inherited, also by a process that is spawned; handlers are not.
    """
    with _default_sigchld():
        before = _block()
        try:
            yield
        except KavaError as error:
            if (plain := _as_raised(error)) is error:
                raise
            raise plain from error
        finally:
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_raised(error: KavaError) -> KavaError:
    """The error that a worker raised, where torch has put its traceback in the message's place."""
    kind = type(error)
    _, end, text = error.message.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
    if not (end and error.message.startswith("Caught ")):
        return error
    message, _, hint = text.rstrip("\n").partition("\n  hint: ")
    return kind(message, hint or None)


def more_than_cores(number: int) -> str | None:
    """A line on more workers than this process has cores; None where they are not more."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return None if number <= cores else f"system.num_workers is {number}, more than the {cores} cores of this process"


def _block() -> set[int]:
    """Blocks the stop signals; returns those blocked before."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return set()
    before = set(signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS))
    if multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()  # a helper of spawned processes, which unblocks signals when it is started
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    return before


@contextmanager
def ended_afterwards() -> Iterator[None]:
    """Around a training: no worker outlives it, not even one that hangs in a slow file system."""
    before = multiprocessing.active_children()
    with _default_sigchld():
        try:
            yield
        finally:
            for child in multiprocessing.active_children():
                if child.daemon and child not in before:
                    child.kill()


@contextmanager
def _default_sigchld() -> Iterator[None]:
    """Without torch's SIGCHLD handler outside: it raises wherever the trainer is, in an update or while it saves.

    The next fetch notices a dead worker as well.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def died(error: RuntimeError) -> bool:
    """Whether this is torch's error about a worker that was killed."""
    return str(error).startswith(DEAD)
