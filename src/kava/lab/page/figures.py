"""Figures drawn by matplotlib: as SVG for the page, in colours that follow light and dark, and as PNG and PDF."""

import io
import re
import warnings
from html import escape
from pathlib import Path
from typing import Any

from kava.files import write_bytes
from kava.lab.analysis.study import Look
from kava.lab.page.blocks import Plot

_CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
LIGHT = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", _CSS.partition("@media")[0]))  # the page's variables
INK, MUTED, GRID, PAPER, MARK, SHADE = (LIGHT[name] for name in ("ink", "muted", "grid", "paper", "mark", "shade"))
PALETTE = [LIGHT[f"c{i}"] for i in range(7)]
DPI = 200
STYLE = Path(__file__).with_name("figures.mplstyle")
SETTINGS = {
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}  # over STYLE
WIDTH = 7.2  # inches: the width of text on an A4 page
_TIP = "tip "


def render(plot: Plot, folder: Path | None = None) -> str:
    """The figure as SVG for a page; with `folder` also as <name>.png and <name>.pdf there."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS, STYLE), warnings.catch_warnings():
        # A token in a script that matplotlib's font lacks is a box in PNG and PDF; the page shows it in its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=plot.size)
        plot.draw(figure)
        svg = _saved(figure, "svg", transparent=True, metadata={"Date": None})
        if folder is not None:
            png = _saved(figure, "png", dpi=DPI, facecolor=PAPER, metadata={"Software": None})
            pdf = _saved(figure, "pdf", facecolor=PAPER, metadata={"CreationDate": None})
            write_bytes(folder / f"{plot.name}.png", png)
            write_bytes(folder / f"{plot.name}.pdf", pdf)
    return page_svg(svg.decode(), plot.name, plot.title, plot.alt)


def _saved(figure: Any, file_format: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, **settings)
    return buffer.getvalue()


def colour(look: Look) -> str:
    return PALETTE[look.colour % len(PALETTE)]


def tip(artist: Any, words: str) -> None:
    """Text that the page shows while the mouse is over the artist."""
    artist.set_gid(_TIP + words)


def plot_with_tip(axes: Any, words: str, x: Any, y: Any, **style: Any) -> None:
    """Draws a line or marks that have a tip."""
    (line,) = axes.plot(x, y, **style)
    tip(line, words)


def page_svg(svg: str, name: str, title: str, alt: str) -> str:
    """matplotlib's SVG as part of a page: no fixed size, fonts or colours, ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)
    head = f'<svg class="kava" viewBox="{box[1] if box else ""}" role="img" aria-labelledby="{name}-title {name}-alt">'
    title, alt = escape(title, quote=False), escape(alt, quote=False)
    description = f'<title id="{name}-title">{title}</title><desc id="{name}-alt">{alt}</desc>'
    body = svg[svg.index(">") + 1 :]
    body = re.sub(rf'<g id="{_TIP}([^"]*)">', r"<g><title>\1</title>", body)
    body = _own_ids(body.replace("xlink:href", "href"), name)
    body = re.sub(r"font: ([^;\"]*?)([\d.]+)px [^;\"]*", _font, body)  # matplotlib 3.9
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = body.replace("stroke: #000000; stroke-opacity: 0", "stroke: none")
    body = re.sub(r'\b(d|x|y|points|transform)="([^"]*)"', _rounded, body)
    for variable, shade in LIGHT.items():
        body = body.replace(shade, f"var(--{variable})")
    body = re.sub(r"\n\s*", "\n", body)
    return head + description + body.strip()


def _own_ids(body: str, name: str) -> str:
    """Renames ids that are referred to into <name>-1, <name>-2, ...; drops the others."""
    used = re.findall(r'(?:url\(|href=")#([\w-]+)', body)
    new = {old: f"{name}-{i}" for i, old in enumerate(dict.fromkeys(used), 1)}
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{new[m[1]]}"' if m[1] in new else "", body)
    return re.sub(r'(url\(|href=")#([\w-]+)', lambda m: f"{m[1]}#{new[m[2]]}", body)


def _font(match: re.Match[str]) -> str:
    style = "font-style: italic; " if "italic" in match[1] else ""
    weight = "font-weight: 700; " if re.search("bold|700", match[1]) else ""
    return f"{style}{weight}font-size: {match[2]}px"


def _rounded(match: re.Match[str]) -> str:
    numbers = re.sub(r"-?\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}", match[2])
    return f'{match[1]}="{" ".join(numbers.split())}"'
