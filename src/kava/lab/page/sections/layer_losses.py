"""The loss of every student layer over training, of runs with several teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kava.lab.analysis.mixture_logs import PARTS, LayerLoss, LogsByMember
from kava.lab.analysis.study import value
from kava.lab.page.blocks import Plot, Row
from kava.lab.page.charts import short
from kava.lab.page.formats import DASH, listed, number
from kava.lab.page.heat import Panels, Rows, heat, mean_of_known, scale_of, step_ticks, thinned_columns


def layer_losses(logs: LogsByMember) -> list[Plot]:
    """One figure: a row of panels per member (keys, values; or codes), student layers over updates."""
    means: dict[str, dict[str, tuple[Sequence[int], Rows]]] = {}
    names: dict[str, Sequence[Any]] = {}
    for label, seeds in logs.items():
        losses = [log.layer_loss for log in seeds.values() if log.layer_loss is not None]
        if losses and set.intersection(*(set(loss.steps) for loss in losses)):
            means[label] = {part: _mean_by_layer(losses, part) for part in losses[0].parts}
            recipe = next(log.run.recipe for log in seeds.values() if log.layer_loss is not None)
            names[label] = _layer_names(recipe, len(next(iter(losses[0].parts.values()))[0]))
    if not means:
        return []
    columns = max(map(len, means.values()))
    layers = max(len(rows) for parts in means.values() for _, rows in parts.values())
    panels = Panels(len(means) * columns, columns, height=min(2.2 if len(means) < 3 else 1.1, max(0.7, 0.1 * layers)))

    def draw(figure: Any) -> None:
        axes = panels.axes(figure)
        for i, (label, parts) in enumerate(means.items()):
            row = axes[i * columns : (i + 1) * columns]
            for panel in row[len(parts) :]:
                panel.set_visible(False)
            for panel, (part, (steps, rows)) in zip(row, parts.items(), strict=False):
                drawn_steps, cells = thinned_columns(steps, rows)
                scale = scale_of(cell for line in cells for cell in line)
                heat(panel, cells, scale)
                step_ticks(panel, drawn_steps, most=6)
                title = f"{short(label)}: {PARTS[part]}, {scale.words}"
                panels.label(panel, title, "updates", "student layer", names[label])

    table: list[Row] = []
    for label, parts in means.items():
        for part, (_, rows) in parts.items():
            for name, row in zip(names[label], rows, strict=True):
                known = [loss for loss in row if loss is not None]
                table.append((label, PARTS[part], name, *(number(known[k]) if known else DASH for k in (0, -1))))
    plot = Plot(
        name="layer_losses",
        title="Loss of every student layer over training",
        caption="The fuller the colour, the larger the loss; the ends of each panel's shades stand above it, between them "
        "the logarithm counts where they lie far apart. The first layer is on top; grey was not compared. Means over seeds.",
        alt=f"{listed(list(means))}: panels of student layers over updates; first and last values in the table below.",
        size=panels.size,
        draw=draw,
        header=("member", "part", "layer", "first", "last"),
        rows=table,
    )
    return [plot]


def _layer_names(recipe: Mapping[str, Any], count: int) -> Sequence[Any]:
    """The student's layers that were compared, in the order of the rows."""
    if value(recipe, "explicit.form") == "aggregated":
        return ["all"] * count
    first = int(str(value(recipe, "explicit.layers") or 0).partition("-")[0])
    return range(first, first + count)


def _mean_by_layer(losses: Sequence[LayerLoss], part: str) -> tuple[Sequence[int], Rows]:
    """Updates that all seeds logged, and for each layer its mean over seeds at them."""
    by_seed = [dict(zip(loss.steps, loss.parts[part], strict=True)) for loss in losses if part in loss.parts]
    steps = sorted(set.intersection(*map(set, by_seed)))
    layers = range(len(by_seed[0][steps[0]]))
    return steps, [[mean_of_known(seed[step][layer] for seed in by_seed) for step in steps] for layer in layers]
