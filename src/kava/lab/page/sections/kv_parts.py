"""How much of the KV loss comes from the keys and the values of every layer, over training."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kava.lab.analysis.mixture_logs import PARTS, counted_runs
from kava.lab.analysis.study import Study
from kava.lab.page.blocks import PageSection, Plot, Row
from kava.lab.page.charts import short
from kava.lab.page.formats import number
from kava.lab.page.heat import Panels, Rows, mean_of_known, mean_over_seeds, scale_of

SHARE = re.compile(r"kv_share_([kvz])_(\d+)$")
Log = Sequence[Mapping[str, Any]]
Parts = dict[str, tuple[Sequence[int], Rows]]  # k, v or z -> updates, and a row for each layer


def kv_parts(study: Study) -> PageSection | None:
    """None where no log has shares of the KV loss."""
    logs = {m.label: [study.logs[m.label][run.seed] for run in counted_runs(m)] for m in study.members}
    means = {label: _parts(of_seeds) for label, of_seeds in logs.items()}
    means = {label: parts for label, parts in means.items() if parts}
    return PageSection("kv-parts", "What the KV loss is made of", (_plot(means),)) if means else None


def _parts(logs: Sequence[Log]) -> Parts:
    """Means over seeds, at the updates that all of them logged."""
    by_seed = [{int(line["step"]): _shares(line) for line in log if any(map(SHARE.match, line))} for log in logs]
    by_seed = [lines for lines in by_seed if lines]
    kinds = [kind for kind in PARTS if all(kind in shares for lines in by_seed for shares in lines.values())]
    if not by_seed or not set.intersection(*map(set, by_seed)):
        return {}
    return {kind: mean_over_seeds([{s: x[kind] for s, x in lines.items()} for lines in by_seed]) for kind in kinds}


def _shares(line: Mapping[str, Any]) -> dict[str, list[float]]:
    """The shares of a line of the log, by part and in the order of the layers."""
    shares: dict[str, list[tuple[int, float]]] = {}
    for name, share in line.items():
        if match := SHARE.match(name):
            shares.setdefault(match[1], []).append((int(match[2]), float(share)))
    return {kind: [share for _, share in sorted(layers)] for kind, layers in shares.items()}


def _plot(means: Mapping[str, Parts]) -> Plot:
    """A row of panels per member (keys, values; or codes), compared layers over updates."""
    columns = max(map(len, means.values()))
    layers = max(len(rows) for parts in means.values() for _, rows in parts.values())
    panels = Panels.of_layers(len(means), columns, layers)

    def draw(figure: Any) -> None:
        axes = panels.axes(figure)
        for i, (label, parts) in enumerate(means.items()):
            row = axes[i * columns : (i + 1) * columns]
            scale = scale_of(share for _, rows in parts.values() for layer in rows for share in layer)
            for panel in row[len(parts) :]:
                panel.set_visible(False)
            for panel, (kind, (steps, rows)) in zip(row, parts.items(), strict=False):
                title = f"{short(label)}: {PARTS[kind]}, {scale.words}"
                panels.draw_over_updates(panel, title, steps, rows, range(len(rows)), 6, scale)

    table: list[Row] = []
    for label, parts in means.items():
        for kind, (_, rows) in parts.items():
            sums = [sum(share or 0.0 for share in column) for column in zip(*rows, strict=True)]
            for name, row in (("all", sums), *enumerate(rows)):
                mean = mean_of_known(row)
                table.append((label, PARTS[kind], name, *(number(x, 3) for x in (row[0], row[-1], mean))))
    return Plot(
        name="kv_parts",
        title="Share of every layer's keys and values in the KV loss over training",
        caption="All panels of a member add up to 1 at every update. A layer with nearly all of it leaves nothing to learn "
        "from the others: keys of pretrained models have large constants, which loss.kv_scale=dim takes out. Means over "
        "seeds; the first compared layer is on top.",
        alt="Panels of layers over updates for each member; first and last shares in the table below.",
        size=panels.size,
        draw=draw,
        header=("member", "part", "layer", "first", "last", "mean"),
        rows=table,
    )
