"""Counters, gauges and histograms in Prometheus' text format."""

from bisect import bisect_left
from collections.abc import Callable

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """`count` adds, `observe` puts seconds into a histogram, gauges are read when they are written out."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, float]] = {}
        self._times: dict[str, tuple[list[int], list[float]]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}

    def count(self, name: str, amount: float = 1, **labels: str | int) -> None:
        key = ",".join(f'{label}="{value}"' for label, value in labels.items())
        series = self._counts.setdefault(name, {})
        series[key] = series.get(key, 0) + amount

    def observe(self, name: str, seconds: float) -> None:
        counts, total = self._times.setdefault(name, ([0] * (len(SECONDS) + 1), [0.0]))
        counts[bisect_left(SECONDS, seconds)] += 1
        total[0] += seconds

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        self._gauges[name] = read

    def text(self) -> str:
        lines: list[str] = []
        for name, series in sorted(self._counts.items()):
            lines.append(f"# TYPE {name} counter")
            lines += [f"{name}{{{key}}} {value:g}" if key else f"{name} {value:g}" for key, value in series.items()]
        for name, read in sorted(self._gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {read():g}"]
        for name, (counts, total) in sorted(self._times.items()):
            lines.append(f"# TYPE {name} histogram")
            below = [sum(counts[: i + 1]) for i in range(len(counts))]
            for bound, value in zip((*SECONDS, "+Inf"), below, strict=True):
                lines.append(f'{name}_bucket{{le="{bound}"}} {value}')
            lines += [f"{name}_sum {total[0]:.6f}", f"{name}_count {below[-1]}"]
        return "\n".join(lines) + "\n"
