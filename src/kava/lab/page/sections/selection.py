"""Which tokens of the chain of thought each compressor kept: kept.json, drawn layer by head by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

from kava.errors import DataError
from kava.lab.analysis.runs import read_mapping
from kava.lab.analysis.study import Study
from kava.lab.page.blocks import Block, Missing, PageSection, Paragraph, Plot, Row, Table
from kava.lab.page.charts import add_panel, visible_token
from kava.lab.page.figures import GRID, INK, MARK, MUTED, WIDTH
from kava.lab.page.formats import code, counted, join, listed, percent, seed_name
from kava.lab.page.heat import BLUE, mean_of_known, rectangles, stretches

FILE = "kept.json"
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
    data = read_mapping(path)
    examples = read_examples(data, path)
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


def read_examples(data: Mapping[str, Any], path: Path) -> list[SelectionExample]:
    """The examples of kept.json, every index checked against the tokens."""
    examples = []
    try:
        for entry in data["examples"]:
            name, question = str(entry["id"]), str(entry["question"])
            example = SelectionExample(name, question, entry["tokens"], entry["is_result"], entry["kept"])
            indices = {i for layers in example.kept.values() for heads in layers for head in heads for i in head}
            if len(example.is_result) != len(example.tokens) or not indices <= set(range(len(example.tokens))):
                raise DataError(f"{path}: example {example.name} marks or keeps tokens that are not there", AGAIN)
            examples.append(example)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of kept tokens ({type(error).__name__}: {error})", AGAIN) from error
    if not examples:
        raise DataError(f"{path} holds no examples", AGAIN)
    return examples


def _counts(examples: Sequence[SelectionExample]) -> list[Block]:
    """How much of what each compressor keeps is a step's result."""
    measures = (_share_of_results, _share_of_tokens, _same_in_all)
    rows: list[Row] = [
        (name, *(percent(mean_of_known(measure(e, name) for e in examples)) for measure in measures))
        for name in examples[0].kept
    ]
    chance = fmean(fmean(map(bool, example.is_result)) for example in examples)
    rows.append(("all tokens", percent(chance), "100.0", ""))
    words = Paragraph(
        f"Means over {counted(len(examples), 'example')}, layers and heads. The last line is the chain itself: "
        "what a choice at random would give."
    )
    header = ("compressor", "results among the kept, %", "tokens kept in some head, %", "kept alike in all heads, %")
    return [Table(header, rows, "Kept tokens by compressor"), words]


def _share_of_results(example: SelectionExample, name: str) -> float | None:
    """The share of results among the kept tokens, mean over heads."""
    return mean_of_known(fmean(bool(example.is_result[i]) for i in head) for head in example.heads(name) if head)


def _share_of_tokens(example: SelectionExample, name: str) -> float | None:
    """The share of the tokens that some head keeps."""
    return len(set().union(*example.heads(name))) / len(example.tokens) if example.tokens else None


def _same_in_all(example: SelectionExample, name: str) -> float | None:
    """The share of the kept tokens that every layer and head keeps."""
    heads = [set(head) for head in example.heads(name)]
    union = set().union(*heads)
    return len(set.intersection(*heads)) / len(union) if union else None


@dataclass(frozen=True)
class _Layout:
    """Panels of one example, in inches: as many side by side as their tokens leave room for."""

    example: SelectionExample
    left: float = 0.5
    top: float = 0.26
    gap: float = 0.12

    @property
    def tokens(self) -> int:
        return len(self.example.tokens)

    @property
    def columns(self) -> int:
        return ceil(len(self.example.kept) / self.rows)

    @property
    def rows(self) -> int:
        cell = max(0.12, self.longest) if self.longest < 0.3 else 0.12
        most = max(1, int((WIDTH - self.left) / max(1.2, cell * self.tokens + self.gap)))
        return ceil(len(self.example.kept) / most)

    @property
    def longest(self) -> float:
        """Inches that the longest token takes."""
        return 0.02 + 0.056 * max(map(len, map(visible_token, self.example.tokens)), default=1)

    @property
    def upright(self) -> bool:
        """Whether the tokens fit below their columns upright; else they are turned."""
        return self.longest <= self.width / max(1, self.tokens)

    @property
    def width(self) -> float:
        return (WIDTH - self.left - 0.05) / self.columns - self.gap

    @property
    def lines(self) -> int:
        """Layers times heads, of the compressor that has most."""
        return max(len(self.example.heads(name)) for name in self.example.kept)

    @property
    def height(self) -> float:
        return min(2.6, max(0.5, 0.11 * self.lines))

    @property
    def below(self) -> float:
        """The height of the tokens below a panel."""
        return 0.28 if self.upright else 0.12 + self.longest

    @property
    def row_height(self) -> float:
        return self.top + self.height + self.below

    @property
    def size(self) -> tuple[float, float]:
        return WIDTH, self.rows * self.row_height + 0.05

    def panel(self, figure: Any, index: int) -> Any:
        row, column = divmod(index, self.columns)
        left, top = self.left + column * (self.width + self.gap), row * self.row_height + self.top
        return add_panel(figure, left, top, self.width, self.height)


def _picture(number: int, example: SelectionExample, resampled: Sequence[str]) -> Plot:
    layout = _Layout(example)
    rows: list[Row] = []
    for name, layers in example.kept.items():
        for i, heads in enumerate(layers):
            for j, head in enumerate(heads):
                rows.append(
                    (name, i, j, " ".join(visible_token(example.tokens[k]) for k in head), " ".join(map(str, head)))
                )
    near = [name for name in example.kept if name in resampled]
    note = f" {listed(near)} resamples in time: the nearest token is shown." if near else ""
    return Plot(
        name=f"kept_{number}",
        title=f"Kept tokens, example {example.name}",
        caption=f"\u201c{example.question}\u201d A row is a head, lines separate layers, the first layer is on top; a filled "
        f"cell is kept. Marked columns hold a step's result.{note}",
        alt=f"A panel for each of {listed(list(example.kept))}; {counted(layout.lines, 'row')} of heads by "
        f"{counted(layout.tokens, 'token')}; the kept tokens are in the table below.",
        size=layout.size,
        draw=lambda figure: _draw(figure, layout),
        header=("compressor", "layer", "head", "kept tokens", "their places"),
        rows=rows,
    )


def _draw(figure: Any, layout: _Layout) -> None:
    from matplotlib.patches import Rectangle

    example = layout.example
    for index, (name, layers) in enumerate(example.kept.items()):
        axes = layout.panel(figure, index)
        starts = [0, *accumulate(map(len, layers))]
        axes.set_xlim(0, layout.tokens)
        axes.set_ylim(starts[-1], 0)
        for i, result in enumerate(example.is_result):
            if result:
                axes.add_patch(Rectangle((i, 0), 1, starts[-1], color=MARK, linewidth=0, zorder=0.5))
        boxes = []
        for y, head in enumerate(example.heads(name)):
            filled = [i in set(head) for i in range(layout.tokens)]
            boxes += [(start, y + 0.1, end, y + 0.9) for start, end, kept in stretches(filled) if kept]
        axes.add_patch(rectangles(boxes, BLUE))
        axes.grid(visible=False)
        for place in range(1, layout.tokens):
            axes.axvline(place, color=GRID, linewidth=0.35, zorder=0.8)
        for start in starts:
            axes.axhline(start, color=MUTED, linewidth=0.5, zorder=3, clip_on=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        middles = [(a + b) / 2 for a, b in pairwise(starts)] if index % layout.columns == 0 else []
        every = max(1, ceil(len(middles) * 0.12 / layout.height))
        axes.set_yticks(middles[::every], [f"layer {i}" for i in range(len(middles))][::every])
        axes.set_title(name, pad=4, x=0)
        _write_tokens(axes, layout)


def _write_tokens(axes: Any, layout: _Layout) -> None:
    """Writes the tokens below their columns; where they are too many, results and every n-th."""
    from matplotlib.transforms import Affine2D, blended_transform_factory

    every = 1 if layout.upright else ceil(0.078 * layout.tokens / layout.width)
    turned = {"ha": "center", "va": "top"} if layout.upright else {"rotation": 90, "ha": "right", "va": "center"}
    # x in tokens, y in panels counted downwards
    below = blended_transform_factory(axes.transData, Affine2D().scale(1, -1).translate(0, 1) + axes.transAxes)
    axes.set_xticks([])
    for i, (token, result) in enumerate(zip(layout.example.tokens, layout.example.is_result, strict=True)):
        if result or i % every == 0:
            axes.text(
                i + 0.5, 1.02, visible_token(token), transform=below, rotation_mode="anchor", size=5.4,
                color=INK if result else MUTED, weight="bold" if result else "normal", **turned,
            )  # fmt: skip
