"""A section of the page: a heading, then text and figures."""

from __future__ import annotations

from dataclasses import dataclass

from kava.lab.page.figures import Plot
from kava.lab.page.markup import Html


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    parts: tuple[Html | Plot, ...]
