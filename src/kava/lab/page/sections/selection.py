"""Which tokens of the chain of thought each compressor kept: kept.json, drawn layer by head by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

from kava.config.typed_file import read_dict
from kava.errors import DataError
from kava.lab.analysis.study import Study
from kava.lab.page.blocks import Block, Missing, PageSection, Paragraph, Plot, Row, Table
from kava.lab.page.charts import visible_token
from kava.lab.page.figures import GRID, INK, MARK, MUTED, WIDTH
from kava.lab.page.formats import code, counted, join, listed, percent, seed_name
from kava.lab.page.heat import BLUE, Panels, add_rectangles, mean_of_known, stretches
from kava.run_files import KeptTokens

FILE = "kept.json"
LEFT, GAP = 0.5, 0.12  # inches left of the first panel and between panels
DRAWN = 3  # examples; the counts are over all
TITLE = "Which tokens each compressor keeps"
AGAIN = "make it again with kava selection"
Kept = Mapping[str, Sequence[Sequence[Sequence[int]]]]  # compressor -> layer -> head -> indices of tokens


@dataclass(frozen=True)
class SelectionExample:
    name: str
    question: str
    tokens: Sequence[str]
    is_result: Sequence[bool]
    kept: Kept

    def heads(self, compressor: str) -> list[list[int]]:
        """The tokens that every head of every layer keeps."""
        return [list(head) for heads in self.kept.get(compressor, ()) for head in heads]


def selection(study: Study) -> PageSection:
    places = {run.folder / FILE: (m, run) for m in study.members for run in m.runs if (run.folder / FILE).is_file()}
    if not places:
        nothing = Missing("No run has a kept.json.", "kava selection --checkpoint RUN/best_checkpoint")
        return PageSection("kept", TITLE, (nothing,))
    path, (member, run) = next(iter(places.items()))
    data = read_dict(path, KeptTokens, AGAIN)
    examples = read_examples(path, data["examples"])
    others = [str(place) for place in places if place != path]
    intro = (
        f"Chosen with the weights of {member.label}, seed {seed_name(run.seed)}: {data.get('keep')} tokens of each chain per "
        "layer and head." + (f" Not shown: {listed(others)}." if others else "")
    )
    parts: list[Block] = [Paragraph(intro), *_counts(examples)]
    parts += [_picture(i, example, data.get("resampled", ())) for i, example in enumerate(examples[:DRAWN], 1)]
    if len(examples) > DRAWN:
        drawn = f"{DRAWN} of {counted(len(examples), 'example')} of"
        parts.append(Paragraph(join([drawn, code(path.name), "are drawn."])))
    return PageSection("kept", TITLE, tuple(parts))


def read_examples(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[SelectionExample]:
    """The examples of kept.json, every index checked against the tokens."""
    examples = []
    for entry in entries:
        parts = (entry["question"], entry["tokens"], entry["is_result"], entry["kept"])
        example = SelectionExample(str(entry["id"]), *parts)
        indices = {i for layers in example.kept.values() for heads in layers for head in heads for i in head}
        if len(example.is_result) != len(example.tokens) or not indices <= set(range(len(example.tokens))):
            raise DataError(f"{path}: example {example.name} marks or keeps tokens that are not there", AGAIN)
        examples.append(example)
    return examples


def _counts(examples: Sequence[SelectionExample]) -> list[Block]:
    """How much of what each compressor keeps is a step's result."""
    rows: list[Row] = []
    for name in examples[0].kept:
        measures = zip(*(_shares(example, name) for example in examples), strict=True)
        rows.append((name, *map(percent, map(mean_of_known, measures))))
    chance = fmean(fmean(map(bool, example.is_result)) for example in examples)
    rows.append(("all tokens", percent(chance), "100.0", ""))
    words = Paragraph(
        f"Means over {counted(len(examples), 'example')}, layers and heads. The last line is the chain itself: "
        "what a choice at random would give."
    )
    header = ("compressor", "results among the kept, %", "tokens kept in some head, %", "kept alike in all heads, %")
    return [Table(header, rows, "Kept tokens by compressor"), words]


def _shares(example: SelectionExample, name: str) -> tuple[float | None, ...]:
    """Of results among the kept tokens (mean over heads), of tokens that a head keeps, of these that all heads keep."""
    heads = [set(head) for head in example.heads(name)]
    results = mean_of_known(fmean(bool(example.is_result[i]) for i in head) for head in heads if head)
    union = set().union(*heads)
    in_some = len(union) / len(example.tokens) if example.tokens else None
    return results, in_some, len(set.intersection(*heads)) / len(union) if union else None


def _picture(number: int, example: SelectionExample, resampled: Sequence[str]) -> Plot:
    """A panel per compressor, as many side by side as their tokens leave room for."""
    count, tokens = len(example.kept), len(example.tokens)
    lines = max(len(example.heads(name)) for name in example.kept)
    longest = 0.02 + 0.056 * max(map(len, map(visible_token, example.tokens)), default=1)  # inches
    cell = max(0.12, longest) if longest < 0.3 else 0.12
    rows = ceil(count / max(1, int((WIDTH - LEFT) / max(1.2, cell * tokens + GAP))))
    height = min(2.6, max(0.5, 0.11 * lines))
    panels = Panels(count, ceil(count / rows), height, GAP, above=0.26, right=0.05 + GAP, margin=LEFT - GAP)
    upright = longest <= panels.width / max(1, tokens)  # the tokens fit below their columns without being turned
    panels = replace(panels, below=0.28 if upright else 0.12 + longest)
    near = [name for name in example.kept if name in resampled]
    note = f" {listed(near)} resamples in time: the nearest token is shown." if near else ""
    return Plot(
        name=f"kept_{number}",
        title=f"Kept tokens, example {example.name}",
        caption=f"\u201c{example.question}\u201d A row is a head, lines separate layers, the first layer is on top; a filled "
        f"cell is kept. Marked columns hold a step's result.{note}",
        alt=f"A panel for each of {listed(list(example.kept))}; {counted(lines, 'row')} of heads by "
        f"{counted(tokens, 'token')}; the kept tokens are in the table below.",
        size=(WIDTH, panels.size[1] + 0.05),
        draw=lambda figure: _draw(figure, example, panels, upright),
        header=("compressor", "layer", "head", "kept tokens", "their places"),
        rows=[
            (name, i, j, " ".join(visible_token(example.tokens[k]) for k in head), " ".join(map(str, head)))
            for name, layers in example.kept.items()
            for i, heads in enumerate(layers)
            for j, head in enumerate(heads)
        ],
    )


def _draw(figure: Any, example: SelectionExample, panels: Panels, upright: bool) -> None:
    from matplotlib.patches import Rectangle

    tokens = len(example.tokens)
    for index, (axes, (name, layers)) in enumerate(zip(panels.axes(figure), example.kept.items(), strict=True)):
        starts = [0, *accumulate(map(len, layers))]
        axes.set_xlim(0, tokens)
        axes.set_ylim(starts[-1], 0)
        for i, result in enumerate(example.is_result):
            if result:
                axes.add_patch(Rectangle((i, 0), 1, starts[-1], color=MARK, linewidth=0, zorder=0.5))
        boxes = []
        for y, head in enumerate(example.heads(name)):
            filled = [i in set(head) for i in range(tokens)]
            boxes += [(start, y + 0.1, end, y + 0.9) for start, end, kept in stretches(filled) if kept]
        add_rectangles(axes, boxes, BLUE)
        axes.grid(visible=False)
        for place in range(1, tokens):
            axes.axvline(place, color=GRID, linewidth=0.35, zorder=0.8)
        for start in starts:
            axes.axhline(start, color=MUTED, linewidth=0.5, zorder=3, clip_on=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        middles = [(a + b) / 2 for a, b in pairwise(starts)] if index % panels.columns == 0 else []
        every = max(1, ceil(len(middles) * 0.12 / panels.height))
        axes.set_yticks(middles[::every], [f"layer {i}" for i in range(len(middles))][::every])
        axes.set_title(name, pad=4, x=0)
        _write_tokens(axes, example, 1 if upright else ceil(0.078 * tokens / panels.width), upright)


def _write_tokens(axes: Any, example: SelectionExample, every: int, upright: bool) -> None:
    """Writes the tokens below their columns: results, and `every` n-th of the others."""
    from matplotlib.transforms import Affine2D, blended_transform_factory

    turned = {"ha": "center", "va": "top"} if upright else {"rotation": 90, "ha": "right", "va": "center"}
    # x in tokens, y in panels counted downwards
    below = blended_transform_factory(axes.transData, Affine2D().scale(1, -1).translate(0, 1) + axes.transAxes)
    axes.set_xticks([])
    for i, (token, result) in enumerate(zip(example.tokens, example.is_result, strict=True)):
        if result or i % every == 0:
            axes.text(
                i + 0.5, 1.02, visible_token(token), transform=below, rotation_mode="anchor", size=5.4,
                color=INK if result else MUTED, weight="bold" if result else "normal", **turned,
            )  # fmt: skip
