"""A figure is described once: matplotlib draws it for the page (SVG that follows light and dark) and as PNG and PDF."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.errors import ConfigError
from kava.files import PARTIAL, usual_mode
from kava.lab.analysis.study import Look
from kava.lab.page.markup import Row
from kava.lab.page.style import LIGHT, PALETTE

INK, MUTED, GRID, PAPER, MARK = LIGHT["ink"], LIGHT["muted"], LIGHT["grid"], LIGHT["paper"], LIGHT["mark"]
DPI = 200
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kava",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same picture everywhere
    "text.parse_math": False,  # a token may be a dollar sign
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-5, 7),
    "font.size": 7.2,
    "axes.labelsize": 7.2,
    "axes.titlesize": 7.6,
    "xtick.labelsize": 6.8,
    "ytick.labelsize": 6.8,
    "legend.fontsize": 6.8,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "ytick.major.pad": 3,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.labelspacing": 0.35,
}
WIDTH = 7.2  # inches: the text of an A4 page
_TIP = "tip "


@dataclass(frozen=True)
class Plot:
    """What a figure shows and how: `draw` fills an empty matplotlib figure of `size` inches; `rows` hold its numbers."""

    name: str
    title: str
    caption: str
    alt: str
    size: tuple[float, float]
    draw: Callable[[Any], None]
    header: Sequence[str]
    rows: Sequence[Row]


def need_libraries() -> None:
    """matplotlib draws and scipy gives intervals; both are extras."""
    import importlib.util

    absent = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(f"kava report needs {' and '.join(absent)}, not installed here", "pip install 'kava[report]'")


def render(plot: Plot, folder: Path | None = None) -> str:
    """The figure as SVG for a page; with `folder` also as <name>.png and <name>.pdf there."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=plot.size)
        plot.draw(figure)
        with _quiet_about_glyphs():
            if folder is not None:
                _save(figure, folder / f"{plot.name}.png", dpi=DPI, facecolor=PAPER, metadata={"Software": None})
                _save(figure, folder / f"{plot.name}.pdf", facecolor=PAPER, metadata={"CreationDate": None})
            svg = io.StringIO()
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return page_svg(svg.getvalue(), plot.name, plot.title, plot.alt)


def colour(look: Look) -> str:
    return PALETTE[look.colour % len(PALETTE)][0]


def tip(artist: Any, words: str) -> None:
    """What a page shows when the mouse rests on it."""
    artist.set_gid(_TIP + words)


def page_svg(svg: str, name: str, title: str, alt: str) -> str:
    """matplotlib's SVG as part of a page: no fixed size, fonts or colours, ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)
    head = f'<svg class="kava" viewBox="{box[1] if box else ""}" role="img" aria-labelledby="{name}-title {name}-alt">'
    words = f'<title id="{name}-title">{_escaped(title)}</title><desc id="{name}-alt">{_escaped(alt)}</desc>'
    body = svg[svg.index(">") + 1 :]
    body = re.sub(rf'<g id="{_TIP}([^"]*)">', r"<g><title>\1</title>", body)
    body = _own_ids(body.replace("xlink:href", "href"), name)
    body = re.sub(r"font: ([^;\"]*?)([\d.]+)px [^;\"]*", _font, body)  # matplotlib 3.9
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = body.replace("stroke: #000000; stroke-opacity: 0", "stroke: none")
    body = re.sub(r'\b(d|x|y|points|transform)="([^"]*)"', _rounded, body)
    for role, shade in {**LIGHT, **{f"c{i}": pair[0] for i, pair in enumerate(PALETTE)}}.items():
        body = body.replace(shade, f"var(--{role})")
    body = re.sub(r"\n\s*", "\n", body)
    return head + words + body.strip()


def _own_ids(body: str, name: str) -> str:
    """Ids that something refers to become <name>-1, <name>-2, ...; the others go."""
    used = re.findall(r'(?:url\(|href=")#([\w-]+)', body)
    new = {old: f"{name}-{i}" for i, old in enumerate(dict.fromkeys(used), 1)}
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{new[m[1]]}"' if m[1] in new else "", body)
    return re.sub(r'(url\(|href=")#([\w-]+)', lambda m: f"{m[1]}#{new[m[2]]}", body)


def _font(match: re.Match[str]) -> str:
    style = "font-style: italic; " if "italic" in match[1] else ""
    weight = "font-weight: 700; " if re.search("bold|700", match[1]) else ""
    return f"{style}{weight}font-size: {match[2]}px"


def _rounded(match: re.Match[str]) -> str:
    numbers = re.sub(r"-?\d+\.\d{3,}", lambda one: f"{float(one[0]):.2f}", match[2])
    return f'{match[1]}="{" ".join(numbers.split())}"'


def _escaped(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _save(figure: Any, path: Path, **settings: Any) -> None:
    """Written beside its place, then renamed."""
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        figure.savefig(partial, **settings)
        usual_mode(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _quiet_about_glyphs() -> Iterator[None]:
    """A token in a script that matplotlib's font lacks is a box in PNG and PDF; the page shows it with its own fonts."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
