"""The work of `kava report`: reads runs, draws their figures, writes the page."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kava.errors import ConfigError, RunError
from kava.files import write_text


def write_report(
    runs: Sequence[Path],
    output: Path,
    figures: Path,
    title: str | None = None,
    sets: Sequence[str] = (),
    progress: Callable[[Any], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Writes the page `output` and every figure into the folder `figures`; returns what was written, with counts.

    `progress` gets the figures to draw and gives them back one after the other.
    """
    _need_libraries()
    _check_writable(output, figures)

    from kava.lab.analysis.load_study import load_study
    from kava.lab.page.figures import render
    from kava.lab.page.page import plots, render_page, sections

    study = load_study(runs, sets)
    page_sections = sections(study)
    figures.mkdir(parents=True, exist_ok=True)
    drawn = {plot.name: render(plot, figures) for plot in progress(plots(page_sections))}
    write_text(output, render_page(study, page_sections, drawn, title))
    return {
        "page": str(output),
        "figures": str(figures),
        "drawn": list(drawn),
        "members": len(study.members),
        "runs": len(study.runs),
        "sets": list(study.sets),
    }


def _need_libraries() -> None:
    """Fails where matplotlib, scipy or jinja2 is not installed; all are of the extra `report`."""
    import importlib.util

    absent = [name for name in ("matplotlib", "scipy", "jinja2") if importlib.util.find_spec(name) is None]
    if absent:
        words = " and ".join(absent)
        raise ConfigError(f"kava report needs {words}, not installed here", "pip install 'kava[report]'")


def _check_writable(output: Path, figures: Path) -> None:
    """Fails before minutes of drawing where the page or its figures could not be written."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output {output} is no page", "name a .html file")
    if output.is_dir():
        raise RunError(f"cannot write {output}: it is a folder", "choose another --output")
    for path in (output.parent, figures):
        above = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            flag = "--output" if path == output.parent else "--figures"
            raise RunError(f"cannot write into {path}: {above} is {'not writable' if above.is_dir() else 'a file'}",
                           f"choose another {flag}")  # fmt: skip
