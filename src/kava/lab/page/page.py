"""Sections to one page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import kava
from kava.lab.analysis.study import Study
from kava.lab.page.figures import Plot
from kava.lab.page.markup import Html, details, join, table, tag, text
from kava.lab.page.sections.ablations import ablations
from kava.lab.page.sections.accuracy import accuracy, by_steps
from kava.lab.page.sections.claims import claims
from kava.lab.page.sections.held_out import held_out
from kava.lab.page.sections.passes import passes
from kava.lab.page.sections.section import Section
from kava.lab.page.sections.selection import kept
from kava.lab.page.sections.settings import settings
from kava.lab.page.sections.summary import default_title, head
from kava.lab.page.sections.teachers import teachers
from kava.lab.page.sections.training import health, losses
from kava.lab.page.style import css


def sections(study: Study) -> list[Section]:
    """Everything there is to say about a study, in the order of the page."""
    of_latents = () if study.explicit else (health, kept, ablations)
    makers = (accuracy, by_steps, passes, losses, teachers, *of_latents, held_out, claims, settings)
    return [section for make in makers if (section := make(study)) is not None]


def plots(found: Sequence[Section]) -> list[Plot]:
    return [part for section in found for part in section.parts if isinstance(part, Plot)]


def page(study: Study, found: Sequence[Section], drawn: Mapping[str, str], title: str | None = None) -> str:
    """The page; `drawn` holds each figure's SVG by its name."""
    title = title or default_title(study)
    numbers = {plot.name: i for i, plot in enumerate(plots(found), 1)}
    toc = join(tag("li", tag("a", section.title, href=f"#{section.name}")) for section in found)
    body = []
    for i, section in enumerate(found, 1):
        heading = tag("h2", join([tag("span", i, class_="no"), text(section.title)], ""), id=section.name)
        parts = [_figure(p, numbers[p.name], drawn[p.name]) if isinstance(p, Plot) else p for p in section.parts]
        body.append(tag("section", join([heading, *parts]), aria_labelledby=section.name))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="kava report">
<title>{text(title)}</title>
<style>
{css()}
</style>
</head>
<body>
<div class="page">
<header>
<h1>{text(title)}</h1>
</header>
<nav aria-label="Contents"><div><h2>Contents</h2><ol>
{toc}
</ol></div></nav>
<main>
{head(study)}
{join(body)}
</main>
<footer>
Made by kava report {kava.__version__} from the files of the runs; every number is in a table of this page.
</footer>
</div>
</body>
</html>
"""


def _figure(plot: Plot, number: int, svg: str) -> Html:
    name = tag("b", f"Figure {number}. {plot.title}.")
    behind = details("Numbers behind this figure", table(plot.header, plot.rows, plot.title))
    return Html(
        f'<figure id="figure-{plot.name}">\n<div class="frame" tabindex="0">{svg}</div>\n'
        f"<figcaption>{name} {text(plot.caption)}</figcaption>\n{behind}\n</figure>"
    )
