"""Which tokens of the chain of thought each compressor kept: kept.json, drawn layer by head by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

from kava.errors import DataError
from kava.lab.analysis.runs import read_mapping
from kava.lab.analysis.study import Study
from kava.lab.page.charts import shown_token
from kava.lab.page.figures import GRID, INK, MARK, MUTED, WIDTH, Plot
from kava.lab.page.heat import BLUE, rectangles
from kava.lab.page.markup import Html, Row, code, counted, join, listed, missing, paragraph, percent, seed_name, table
from kava.lab.page.sections.section import Section

FILE = "kept.json"
SHOWN = 3  # examples drawn; the counts are over all
TITLE = "Which tokens each compressor keeps"
AGAIN = "make it again with kava selection"
Kept = Mapping[str, Sequence[Sequence[Sequence[int]]]]  # compressor -> layer -> head -> indices of tokens


@dataclass(frozen=True)
class Example:
    name: str
    question: str
    tokens: Sequence[str]
    is_result: Sequence[bool]
    kept: Kept


def kept(study: Study) -> Section:
    places = {run.folder / FILE: (m, run) for m in study.members for run in m.runs if (run.folder / FILE).is_file()}
    if not places:
        what = "No run has a kept.json."
        return Section("kept", TITLE, (missing(what, "kava selection --checkpoint RUN/best_checkpoint"),))
    path, (member, run) = next(iter(places.items()))
    data = read_mapping(path)
    examples = read_examples(data, path)
    others = [str(place) for place in places if place != path]
    intro = paragraph(
        f"Chosen with the weights of {member.label}, seed {seed_name(run.seed)}: {data.get('keep')} tokens of each chain per "
        "layer and head.",
        *([f"Not shown: {listed(others)}."] if others else []),
    )
    parts: list[Any] = [intro, _counts(examples)]
    for i, example in enumerate(examples[:SHOWN], 1):
        parts.append(_picture(i, example, data.get("resampled", ())))
    if len(examples) > SHOWN:
        parts.append(paragraph(f"{SHOWN} of {counted(len(examples), 'example')} of", code(path.name), "are drawn."))
    return Section("kept", TITLE, tuple(parts))


def read_examples(data: Mapping[str, Any], path: Path) -> list[Example]:
    """The examples of kept.json, every index checked against the tokens."""
    found = []
    try:
        for one in data["examples"]:
            example = Example(str(one["id"]), str(one["question"]), one["tokens"], one["is_result"], one["kept"])
            indices = {i for layers in example.kept.values() for heads in layers for head in heads for i in head}
            if len(example.is_result) != len(example.tokens) or not indices <= set(range(len(example.tokens))):
                raise DataError(f"{path}: example {example.name} marks or keeps tokens that are not there", AGAIN)
            found.append(example)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of kept tokens ({type(error).__name__}: {error})", AGAIN) from error
    if not found:
        raise DataError(f"{path} holds no examples", AGAIN)
    return found


def _counts(examples: Sequence[Example]) -> Html:
    """How much of what each compressor keeps is a step's result."""
    chance = fmean(fmean(map(bool, example.is_result)) for example in examples)
    rows: list[Row] = []
    for name in examples[0].kept:
        rows.append((name, percent(_mean(_share_of_results(e, name) for e in examples)),
                     percent(_mean(_share_of_tokens(e, name) for e in examples)),
                     percent(_mean(_same_in_all(e, name) for e in examples))))  # fmt: skip
    rows.append(("all tokens", percent(chance), "100.0", ""))
    words = paragraph(
        f"Means over {counted(len(examples), 'example')}, layers and heads. The last line is the chain itself: "
        "what a choice at random would give."
    )
    head = ("compressor", "results among the kept, %", "tokens kept in some head, %", "kept alike in all heads, %")
    return join([table(head, rows, "Kept tokens by compressor"), words])


def _heads(example: Example, name: str) -> list[list[int]]:
    return [list(head) for heads in example.kept.get(name, ()) for head in heads]


def _share_of_results(example: Example, name: str) -> float | None:
    shares = [fmean(bool(example.is_result[i]) for i in head) for head in _heads(example, name) if head]
    return fmean(shares) if shares else None


def _share_of_tokens(example: Example, name: str) -> float | None:
    used = {i for head in _heads(example, name) for i in head}
    return len(used) / len(example.tokens) if example.tokens else None


def _same_in_all(example: Example, name: str) -> float | None:
    """The share of the kept tokens that every layer and head kept."""
    heads = [set(head) for head in _heads(example, name)]
    union = set().union(*heads) if heads else set()
    return len(set.intersection(*heads)) / len(union) if union else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@dataclass(frozen=True)
class _Layout:
    """Panels of one example, in inches: as many side by side as their tokens leave room for."""

    example: Example
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
        return 0.02 + 0.056 * max(map(len, map(shown_token, self.example.tokens)), default=1)

    @property
    def upright(self) -> bool:
        """Whether the tokens fit below their columns as they are; else they are turned."""
        return self.longest <= self.width / max(1, self.tokens)

    @property
    def width(self) -> float:
        return (WIDTH - self.left - 0.05) / self.columns - self.gap

    @property
    def lines(self) -> int:
        """Layers times heads, of the compressor that has most."""
        return max(len(_heads(self.example, name)) for name in self.example.kept)

    @property
    def height(self) -> float:
        return min(2.6, max(0.5, 0.11 * self.lines))

    @property
    def words(self) -> float:
        """Below a panel: its tokens."""
        return 0.28 if self.upright else 0.12 + self.longest

    @property
    def size(self) -> tuple[float, float]:
        return WIDTH, self.rows * (self.top + self.height + self.words) + 0.05

    def box(self, index: int) -> tuple[float, float, float, float]:
        width, height = self.size
        column, row = index % self.columns, index // self.columns
        bottom = height - row * (self.top + self.height + self.words) - self.top - self.height
        return (self.left + column * (self.width + self.gap)) / width, bottom / height, self.width / width, (
            self.height / height
        )  # fmt: skip


def _picture(number: int, example: Example, resampled: Sequence[str]) -> Plot:
    layout = _Layout(example)
    rows: list[Row] = []
    for name, layers in example.kept.items():
        for i, heads in enumerate(layers):
            for j, head in enumerate(heads):
                rows.append(
                    (name, i, j, " ".join(shown_token(example.tokens[k]) for k in head), " ".join(map(str, head)))
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
        one = figure.add_axes(layout.box(index))
        lines = [len(heads) for heads in layers]
        total = sum(lines)
        one.set_xlim(0, layout.tokens)
        one.set_ylim(total, 0)
        for i, result in enumerate(example.is_result):
            if result:
                one.add_patch(Rectangle((i, 0), 1, total, color=MARK, linewidth=0, zorder=0.5))
        one.add_patch(_cells(_heads(example, name)))
        one.grid(visible=False)
        for place in range(1, layout.tokens):
            one.axvline(place, color=GRID, linewidth=0.35, zorder=0.8)
        starts = [sum(lines[:i]) for i in range(len(lines) + 1)]
        for start in starts:
            one.axhline(start, color=MUTED, linewidth=0.5, zorder=3, clip_on=False)
        one.spines[["left", "bottom"]].set_visible(False)
        first = index % layout.columns == 0
        middles = [(a + b) / 2 for a, b in pairwise(starts)] if first else []
        every = max(1, ceil(len(middles) * 0.12 / layout.height))
        one.set_yticks(middles[::every], [f"layer {i}" for i in range(len(middles))][::every])
        one.set_title(name, pad=4, x=0)
        _write_tokens(one, layout)


def _cells(heads: Sequence[Sequence[int]]) -> Any:
    """All filled cells as one shape; neighbours in a row are one rectangle."""
    boxes = [(a, y + 0.1, b, y + 0.9) for y, head in enumerate(heads) for a, b in _stretches(sorted(set(head)))]
    return rectangles(boxes, BLUE)


def _stretches(places: Sequence[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for place in places:
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


def _write_tokens(one: Any, layout: _Layout) -> None:
    """The tokens' text below their columns; where they are too many, results and every n-th."""
    every = 1 if layout.upright else ceil(0.078 * layout.tokens / layout.width)
    turned = {"ha": "center", "va": "top"} if layout.upright else {"rotation": 90, "ha": "right", "va": "center"}
    one.set_xticks([])
    for i, (token, result) in enumerate(zip(layout.example.tokens, layout.example.is_result, strict=True)):
        if result or i % every == 0:
            one.text(
                i + 0.5, 1.02, shown_token(token), transform=_below(one), rotation_mode="anchor", size=5.4,
                color=INK if result else MUTED, weight="bold" if result else "normal", **turned,
            )  # fmt: skip


def _below(one: Any) -> Any:
    """x in tokens, y in panels counted downwards."""
    from matplotlib.transforms import Affine2D, blended_transform_factory

    return blended_transform_factory(one.transData, Affine2D().scale(1, -1).translate(0, 1) + one.transAxes)
