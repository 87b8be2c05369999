"""What every benchmark shares: interleaved timing, waiting for the device, peak memory, and the machine's name."""

import os
import platform
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev
from typing import Any, TypeVar

import torch

from kava.progress import track

MEMORY = {
    "cuda": "largest sum of allocated tensors above the weights (torch.cuda.max_memory_allocated)",
    "cpu": "largest sum of allocated tensors above the weights (allocations recorded by torch.profiler)",
}
Key = TypeVar("Key", bound=Hashable)
NO_MEMORY = "not measured: torch keeps no record of the peak on this kind of device"


@dataclass(frozen=True)
class Times:
    """Seconds on the clock and seconds of processor time, one of each per round."""

    wall: list[float]
    cpu: list[float]

    def facts(self) -> dict[str, Any]:
        """Median, sample standard deviation (null for one round) and every round, under the keys of the results file."""
        spread = stdev(self.wall) if len(self.wall) > 1 else None
        return {"seconds": median(self.wall), "sd": spread, "cpu_seconds": median(self.cpu), "rounds": self.wall}


def take_turns(
    ways: Mapping[Key, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warmup: int = 1,
    progress: bool = False,
) -> dict[Key, Times]:
    """The times of every way, from rounds in which each runs once and a different one is first, so that noise affects all
    of them alike. The first `warmup` rounds are not kept; the clock is read when the device has finished.
    """
    names = list(ways)
    times = {name: Times([], []) for name in names}
    for turn in track(range(-warmup, repeats), "timing", unit="rounds", show=progress):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize(device)
            began, spent = time.perf_counter(), time.process_time()
            ways[name]()
            synchronize(device)
            if turn >= 0:
                times[name].wall.append(time.perf_counter() - began)
                times[name].cpu.append(time.process_time() - spent)
    return times


def ratio(times: list[float], reference: list[float]) -> float:
    """The median over rounds of one way's time to the reference's in the same round."""
    return median(a / b for a, b in zip(times, reference, strict=True))


def ratios(times: Mapping[str, Times], reference: str) -> dict[str, dict[str, float]]:
    """Each way's time to that of the way `reference`: `ratio` of clock times, `cpu_ratio` of processor times."""
    base = times[reference]
    return {
        "ratio": {name: ratio(way.wall, base.wall) for name, way in times.items()},
        "cpu_ratio": {name: ratio(way.cpu, base.cpu) for name, way in times.items()},
    }


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """The peak of bytes in tensors that `run` allocates, or None where MEMORY has no entry."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    with _no_native_messages(), torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as recorded:  # fmt: skip
        run()
    now = peak = 0
    results = recorded.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@contextmanager
def _no_native_messages() -> Iterator[None]:
    """Sends file descriptor 2 to nowhere: the profiler's C++ part writes to it whatever its log level."""
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nothing)
        os.close(kept)


def hardware(device: torch.device) -> dict[str, Any]:
    """The device, processor, threads, torch version and load under which times are taken."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if "model name" in line]
        if cpuinfo.is_file()
        else []
    )
    cpu = names[0].split(":")[1].strip() if names else platform.processor()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
