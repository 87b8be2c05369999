"""Draw docs/two-passes.svg and docs/two-passes-dark.svg, the picture of the README: python scripts/draw_two_passes.py

The sequence of each pass is a strip of tiles; below or above the chain of thought and the latents stand their keys and
values, a column per position and a row per layer. Plain Python; the same code gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH, HEIGHT = 1000, 640
FONT = "-apple-system, 'Segoe UI', 'Helvetica Neue', 'Noto Sans', Helvetica, Arial, sans-serif"
LAYERS, M = 3, 4
QUESTION, CUE = "(3 * 4 - 2) / 2 = ?", "The answer is:"
COT = ["3", "*", "4", "=", "12", "12", "-", "2", "=", "10"]
KEPT = [(0, 4, 6, 9), (2, 4, 7, 9), (1, 4, 5, 9)]  # columns kept in each layer
Q_LEFT, Q_WIDTH = 36, 250
COT_LEFT, COT_STEP, COT_TILE = 300, 42, 38
SLOT_LEFT, SLOT_STEP, SLOT_TILE = 362, 74, 70
CUE_LEFT, CUE_WIDTH = 730, 150
ROW, CELL = 23, 19  # a layer's pitch and height


class Theme(NamedTuple):
    """Colors of one picture; a tint is the fill of a tile, a strong color its border and text."""

    ink: str
    muted: str
    panel: str
    border: str
    paper: str
    grey: str
    grey_tint: str
    blue: str
    blue_tint: str
    violet: str
    violet_tint: str
    green: str
    green_tint: str
    red: str
    orange: str
    teal: str


LIGHT = Theme(
    ink="#1f2328", muted="#59636e", panel="#f6f8fa", border="#d1d9e0", paper="#ffffff",
    grey="#6e7781", grey_tint="#eaeef2", blue="#0969da", blue_tint="#ddf0ff", violet="#8250df", violet_tint="#f1e7ff",
    green="#1a7f37", green_tint="#dcf7e3", red="#cf222e", orange="#bc4c00", teal="#0a7d83",
)  # fmt: skip
DARK = Theme(
    ink="#f0f6fc", muted="#9198a1", panel="#151b23", border="#3d444d", paper="#0d1117",
    grey="#9198a1", grey_tint="#262c36", blue="#58a6ff", blue_tint="#12294a", violet="#bc8cff", violet_tint="#2d1f4e",
    green="#3fb950", green_tint="#12321c", red="#ff7b72", orange="#f0883e", teal="#39c5cf",
)  # fmt: skip


class Picture:
    """SVG elements in drawing order."""

    def __init__(self, theme: Theme):
        self.theme = theme
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", r: float = 6
    ) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{r:g}" fill="{fill}" stroke="{stroke}"/>'
        )

    def text(
        self, x: float, y: float, words: str, color: str, size: float = 15, anchor: str = "start", weight: int = 400
    ) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{color}" font-size="{size:g}" text-anchor="{anchor}"'
            f' font-weight="{weight}">{escape(words)}</text>'
        )

    def line(self, path: str, color: str, width: float = 2, arrow: bool = False, dash: str = "") -> None:
        extra = f' marker-end="url(#{color[1:]})"' if arrow else ""
        extra += f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{extra}/>')

    def tile(self, x: float, y: float, width: float, words: str, color: str, tint: str, size: float = 15) -> None:
        self.box(x, y, width, 34, tint, color)
        self.text(x + width / 2, y + 22.5, words, color, size, "middle", 600)

    def pill(self, x: float, y: float, words: str, color: str, width: float = 96) -> None:
        """A filled label centred on (x, y)."""
        self.box(x - width / 2, y - 14, width, 28, color, r=14)
        self.text(x, y + 5.5, words, self.theme.paper, 15, "middle", 700)

    def svg(self) -> str:
        heads = [
            f'<marker id="{color[1:]}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="9" markerHeight="9"'
            f' markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 10 5 0 10z" fill="{color}"/></marker>'
            for color in (self.theme.red, self.theme.orange, self.theme.violet)
        ]
        label = (
            "Two passes of one model. The teacher pass reads question, chain of thought and answer; its KV cache is "
            "compressed to M entries. The student pass reads question, M latents and answer; the KV loss matches the "
            "latents' keys and values to those entries, the CODI loss matches hidden states at the cue."
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{FONT}" role="img">',
                f"<title>{label}</title>",
                "<defs>", *heads, "</defs>",
                *self.parts,
                "</svg>\n",
            ]
        )  # fmt: skip


def draw(theme: Theme) -> str:
    """The picture in the colors of `theme`, as SVG."""
    picture = Picture(theme)
    picture.box(12, 12, 976, 208, theme.panel, theme.border, 12)
    picture.box(12, 356, 976, 232, theme.panel, theme.border, 12)
    _compression(picture)
    _losses(picture)
    _teacher(picture, 88)
    _student(picture, 482)
    _one_model(picture)
    _formula(picture)
    return picture.svg()


def _teacher(picture: Picture, y: float) -> None:
    theme = picture.theme
    picture.text(Q_LEFT, 44, "Teacher pass", theme.ink, 21, weight=700)
    picture.text(Q_LEFT + 142, 44, "training only", theme.muted)
    for x, name in ((Q_LEFT, "question"), (COT_LEFT, "chain of thought"), (CUE_LEFT, "answer")):
        picture.text(x, y - 9, name, theme.muted)
    picture.tile(Q_LEFT, y, Q_WIDTH, QUESTION, theme.grey, theme.grey_tint)
    for column, token in enumerate(COT):
        picture.tile(COT_LEFT + COT_STEP * column, y, COT_TILE, token, theme.blue, theme.blue_tint)
    _answer(picture, y)
    picture.text(COT_LEFT - 14, y + 70, "KV cache of the chain of thought", theme.ink, 15, "end", 600)
    picture.text(COT_LEFT - 14, y + 90, "a row per layer; filled: kept", theme.muted, 15, "end")


def _compression(picture: Picture) -> None:
    """The teacher's cache, what is kept of it, and the M entries that remain."""
    theme = picture.theme
    top, target = 132, 256
    label = ((theme.ink, 15, "start", 600), (theme.muted, 15))
    for layer, kept in enumerate(KEPT):
        for column in range(len(COT)):
            fill, edge = (theme.blue, theme.blue) if column in kept else (theme.blue_tint, theme.border)
            picture.box(COT_LEFT + COT_STEP * column, top + ROW * layer, COT_TILE, CELL, fill, edge, 3)
    _entries(picture, target, theme.blue)
    bottom = top + ROW * LAYERS
    for slot, column in enumerate(KEPT[-1]):
        start, end = COT_LEFT + COT_STEP * column + COT_TILE / 2, SLOT_LEFT + SLOT_STEP * slot + SLOT_TILE / 2
        picture.line(
            f"M{start:g} {bottom} C{start:g} {bottom + 32} {end:g} {target - 32} {end:g} {target - 5}", theme.blue
        )
    for line, words in enumerate(("compressed", "to M entries", "per layer and head")):
        picture.text(SLOT_LEFT + SLOT_STEP * M + 10, target + 16 + 20 * line, words, *label[line > 0])


def _student(picture: Picture, y: float) -> None:
    theme = picture.theme
    picture.text(Q_LEFT, 390, "Student pass", theme.ink, 21, weight=700)
    picture.text(Q_LEFT, 414, "training, and all that runs", theme.muted)
    picture.text(Q_LEFT, 434, "when a question is answered", theme.muted)
    picture.tile(Q_LEFT, y, Q_WIDTH, QUESTION, theme.grey, theme.grey_tint)
    picture.tile(COT_LEFT, y, 58, "bot", theme.violet, "none")
    picture.tile(SLOT_LEFT + SLOT_STEP * M, y, 58, "eot", theme.violet, "none")
    _entries(picture, 404, theme.violet)
    picture.text(SLOT_LEFT + SLOT_STEP * M + 10, 440, "KV of the latents", theme.ink, 15, weight=600)
    for slot in range(M):
        picture.tile(
            SLOT_LEFT + SLOT_STEP * slot, y, SLOT_TILE, f"latent {slot + 1}", theme.violet, theme.violet_tint, 14.5
        )
    _answer(picture, y)
    left, right, low = SLOT_LEFT + SLOT_TILE / 2, SLOT_LEFT + SLOT_STEP * (M - 1) + SLOT_TILE / 2, y + 54
    picture.line(
        f"M{right:g} {y + 38} V{low - 8} Q{right:g} {low} {right - 8:g} {low} H{left + 8:g} Q{left:g} {low} {left:g} {low - 8}"
        f" V{y + 38}", theme.violet, arrow=True,
    )  # fmt: skip
    picture.text(
        (left + right) / 2, low + 23, "T Jacobi rounds, all M latents in parallel", theme.violet, 15, "middle", 600
    )


def _answer(picture: Picture, y: float) -> None:
    theme = picture.theme
    picture.tile(CUE_LEFT, y, CUE_WIDTH, CUE, theme.green, theme.green_tint)
    picture.tile(CUE_LEFT + CUE_WIDTH + 4, y, 36, "5", theme.green, theme.green_tint)
    picture.tile(CUE_LEFT + CUE_WIDTH + 44, y, 42, "eos", theme.green, theme.green_tint)


def _entries(picture: Picture, y: float, color: str) -> None:
    """M entries of each layer."""
    for layer in range(LAYERS):
        for slot in range(M):
            picture.box(SLOT_LEFT + SLOT_STEP * slot, y + ROW * layer, SLOT_TILE, CELL, color, color, 3)


def _losses(picture: Picture) -> None:
    theme = picture.theme
    middle = SLOT_LEFT + (SLOT_STEP * M - 4) / 2
    picture.line(f"M{middle:g} 328 V398", theme.red, 3, arrow=True)
    picture.pill(middle, 358, "KV loss", theme.red)
    cue = CUE_LEFT + CUE_WIDTH - 20
    picture.line(f"M{cue} 124 V478", theme.orange, 3, arrow=True)
    picture.pill(cue, 268, "CODI loss", theme.orange, 104)
    picture.text(cue + 14, 306, "hidden states", theme.ink, 15, weight=600)
    picture.text(cue + 14, 326, "at the cue", theme.muted)
    end = CUE_LEFT + CUE_WIDTH + 86
    picture.line(f"M{COT_LEFT} 64 V57 H{end} V64", theme.teal)
    picture.pill((COT_LEFT + end) / 2, 44, "cross-entropy", theme.teal, 124)
    picture.line(f"M{CUE_LEFT} 524 V531 H{end} V524", theme.teal)
    picture.pill((CUE_LEFT + end) / 2, 548, "cross-entropy", theme.teal, 124)


def _one_model(picture: Picture) -> None:
    theme = picture.theme
    picture.line("M161 220 V356", theme.border, 2, dash="5 5")
    picture.box(Q_LEFT, 258, Q_WIDTH, 62, theme.paper, theme.border, 10)
    picture.text(161, 284, "one set of weights", theme.ink, 16, "middle", 700)
    picture.text(161, 306, "in two modes", theme.muted, 15, "middle")


def _formula(picture: Picture) -> None:
    theme = picture.theme
    words = (
        ("L", theme.ink), (" = ", theme.muted), ("CE student + CE teacher", theme.teal), (" + ", theme.muted),
        ("\u03b1\u2081 CODI", theme.orange), (" + ", theme.muted), ("\u03b1\u2082 KV", theme.red),
    )  # fmt: skip
    spans = "".join(f'<tspan fill="{color}">{escape(text)}</tspan>' for text, color in words)
    picture.parts.append(
        f'<text x="{WIDTH / 2:g}" y="620" font-size="18" font-weight="600" text-anchor="middle"'
        f' xml:space="preserve">{spans}</text>'
    )


def main() -> int:
    for name, theme in (("two-passes.svg", LIGHT), ("two-passes-dark.svg", DARK)):
        (DOCS / name).write_text(draw(theme), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
