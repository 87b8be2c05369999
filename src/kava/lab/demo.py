"""The demo's table and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kava import text_table
from kava.lab.analysis.stats import McNemarTest

Row = Mapping[str, Any]  # name, by_steps {n: {correct, total}}, avg_forward_passes, ms


def table(rows: Sequence[Row]) -> str:
    """Accuracy by number of steps, forward passes, milliseconds per question, one line per model."""
    lengths = sorted(rows[0]["by_steps"])
    header = ["model", *[f"{n} step{'s' if n > 1 else ''}" for n in lengths], "passes", "ms/question"]
    lines = []
    for row in rows:
        cells = [f"{100 * share(row, n):.1f} %" for n in lengths]
        lines.append([row["name"], *cells, f"{row['avg_forward_passes']:.1f}", f"{row['ms']:.1f}"])
    lines.append(["problems", *[str(rows[0]["by_steps"][n]["total"]) for n in lengths], "", ""])
    return text_table.table(lines, header, left=1, foot=1)


def verdict(name: str, other: str, steps: int, paired: McNemarTest) -> str:
    """One sentence on a paired comparison, with the numbers it rests on."""
    if paired.p >= 0.01:
        word = "no significant difference"
    else:
        word = "better" if paired.only_first > paired.only_second else "worse"
    p = f"= {paired.p:.2g}" if paired.p > 0 else "< 1e-300"
    return (
        f"{name} against {other}, {steps}-step problems: {word} "
        f"(only the first right {paired.only_first}, only the second {paired.only_second}, exact paired p {p})"
    )


def share(row: Row, steps: int) -> float:
    cell = row["by_steps"][steps]
    return cell["correct"] / cell["total"]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy by number of steps beside accuracy of the longest problems against forward passes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    lengths = sorted(rows[0]["by_steps"])
    longest = lengths[-1]
    colours = ["#4d4d4d", "#d95f02", "#7570b3", "#1b9e77"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), constrained_layout=True)
    width = 0.8 / len(rows)
    for i, (row, colour) in enumerate(zip(rows, colours, strict=False)):
        values = [100 * share(row, n) for n in lengths]
        places = [x + (i - (len(rows) - 1) / 2) * width for x in range(len(lengths))]
        left.bar(places, values, width * 0.92, color=colour, label=row["name"])
        right.scatter(row["avg_forward_passes"], values[-1], s=90, color=colour, label=row["name"], zorder=3)
    left.set_xticks(range(len(lengths)), [f"{n} step{'s' if n > 1 else ''}" for n in lengths])
    left.set_ylabel("accuracy, %")
    left.set_title("accuracy by number of steps")
    left.set_ylim(0, 105)
    right.set_xlabel("forward passes per question")
    right.set_ylabel(f"accuracy on {longest}-step problems, %")
    right.set_title("accuracy against forward passes")
    right.set_ylim(0, 105)
    right.set_xlim(left=0)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    right.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
