"""The work of `kava report`: reads runs, draws their figures, writes the page."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kava.errors import ConfigError
from kava.files import is_stream, make_folder, write_text
from kava.outputs import Output, check_outputs


def write_report(
    runs: Sequence[Path],
    output: Path,
    figures: Path,
    title: str | None = None,
    sets: Sequence[str] = (),
    progress: Callable[[Any], Iterable[Any]] = iter,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the page `output` and every figure into the folder `figures`; returns what was written, with counts.

    `progress` gets the figures to draw and gives them back one after the other.
    """
    _need_libraries()
    if output.suffix.lower() not in (".html", ".htm") and not is_stream(output):
        raise ConfigError(f"--output {output} is no page", "name a .html file")
    places = [Output("--output", output, is_page), Output("--figures", figures, is_folder=True)]
    check_outputs(places, overwrite=overwrite)

    from kava.lab.analysis.load_study import load_study
    from kava.lab.page.figures import render
    from kava.lab.page.page import plots, render_page, sections

    study = load_study(runs, sets)
    page_sections = sections(study)
    make_folder(figures)
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


def is_page(path: Path) -> bool:
    """Whether `kava report` wrote this file."""
    with path.open(encoding="utf-8") as file:
        return '<meta name="generator" content="kava report">' in file.read(4000)
