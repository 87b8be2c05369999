"""Measures what one update costs as its sizes grow, and draws docs/costs.svg from the figures.

    python scripts/draw_costs.py measure    processor time and peak memory -> docs/results/costs.json
    python scripts/draw_costs.py draw       docs/results/costs.json -> docs/costs.svg

One forward and backward pass of the latent line on a small random Llama (2 layers x 128), on one CPU thread: over the
length of the chain of thought, the number of latents, the batch, and the rows of a piece; ours, ours under one dense mask
or with whole batches, and the library's plain model on as many tokens.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kava.config import LatentConfig
from kava.data.cut import cut
from kava.files import write_json
from kava.lab.bench.real_lengths import library_step
from kava.lab.bench.timing import hardware, peak_memory
from kava.lab.bench.train import TrainBenchSizes, _step, a_batch, objectives
from kava.training.memory import auto_budget

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES, PICTURE = DOCS / "results" / "costs.json", DOCS / "costs.svg"
CPU, ROUNDS = torch.device("cpu"), 2
CUT = 32  # the batch that is cut into pieces of several sizes
SMALL = TrainBenchSizes(
    layers=2, width=128, heads=4, kv_heads=2, vocabulary=2000, question=64, cot=60, batch_size=4, latents=24, rounds=3
)
AXES: dict[str, tuple[str, list[int]]] = {
    "cot": ("tokens of the chain of thought (batch 4)", [60, 120, 240, 480, 960, 1920]),
    "latents": ("latents M (batch 4)", [6, 12, 24, 48, 96]),
    "batch_size": ("batch, lengths of GSM8K", [8, 32, 128]),
    "tokens": (f"tokens of a piece, batch {CUT}", [256, 512, 1024, 2048, 4096]),
}
NAMES = {
    "ours": "ours",
    "dense": "under one dense mask",
    "whole": "the batch whole",
    "library": "a plain model on as many tokens",
}
COLOURS = {"ours": "#0969da", "dense": "#cf222e", "whole": "#bc4c00", "library": "#6e7781"}


def ways(axis: str, value: int) -> dict[str, Callable[[], None]]:
    """What is measured at one place of an axis."""
    real = axis in ("batch_size", "tokens")
    sizes = replace(SMALL, **({"batch_size": CUT} if axis == "tokens" else {axis: value}))
    sizes = replace(sizes, lengths="gsm8k") if real else sizes
    model = sizes.model(LatentConfig(num_tokens=sizes.latents, num_iterations=sizes.rounds))
    batch, packed = a_batch(sizes, CPU), objectives(model)["packed"][2]
    pieces = cut(batch, value if axis == "tokens" else auto_budget(CPU)) if real else [batch]

    def dense() -> None:
        model.dense_attention = True
        _step(packed, pieces)
        model.dense_attention = False

    others = {"whole": partial(_step, packed, [batch])} if real else {"dense": dense}
    return {"ours": partial(_step, packed, pieces), **others, "library": library_step(model, batch, len(pieces))}


def measure() -> None:
    torch.set_num_threads(1)
    points: list[dict[str, Any]] = []
    for axis, (_, values) in AXES.items():
        for value in values:
            steps = ways(axis, value)
            spent: dict[str, list[float]] = {name: [] for name in steps}
            peaks = {name: peak_memory(step, CPU) for name, step in steps.items()}
            for _ in range(ROUNDS):
                for name, step in steps.items():
                    began = time.process_time()
                    step()
                    spent[name].append(time.process_time() - began)
            of_ways = {name: {"cpu_seconds": median(spent[name]), "peak_bytes": peaks[name]} for name in steps}
            points.append({"axis": axis, "value": value, "ways": of_ways})
            print(axis, value, {name: round(way["cpu_seconds"], 3) for name, way in of_ways.items()}, flush=True)
    sizes = {name: value for name, value in vars(SMALL).items() if name != "lengths"}
    write_json(FIGURES, {"hardware": hardware(CPU), "rounds": ROUNDS, "sizes": sizes, "points": points})


def draw() -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    points = json.loads(FIGURES.read_text(encoding="utf-8"))["points"]
    settings = {"svg.hashsalt": "kava", "svg.fonttype": "none", "font.size": 8, "axes.spines.top": False,
                "axes.spines.right": False}  # fmt: skip
    with matplotlib.rc_context(settings):
        figure, rows = plt.subplots(2, len(AXES), figsize=(12, 5), layout="constrained")
        for column, (axis, (label, values)) in enumerate(AXES.items()):
            at = [point for point in points if point["axis"] == axis]
            for plot, what, unit in zip(rows[:, column], ("cpu_seconds", "peak_bytes"), (1, 2**20), strict=True):
                for name in at[0]["ways"]:
                    heights = [point["ways"][name][what] / unit for point in at]
                    plot.plot(values, heights, marker="o", markersize=3, color=COLOURS[name], label=NAMES[name])
                plot.set(xscale="log", yscale="log", xlabel=label)
                plot.set_xticks(values, [str(value) for value in values])
                plot.minorticks_off()
        rows[0, 0].set_ylabel("CPU seconds of an update")
        rows[1, 0].set_ylabel("peak of tensors, MiB")
        lines = {line.get_label(): line for plot in rows[0] for line in plot.get_lines()}
        figure.legend(list(lines.values()), list(lines), loc="outside upper center", ncols=len(lines), frameon=False)
        figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    {"measure": measure, "draw": draw}[sys.argv[1]]()
