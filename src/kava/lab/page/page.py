"""The sections of a study, and the one self-contained file made of them: no script, font or picture from outside."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import kava
from kava.lab.analysis.study import Study
from kava.lab.page.blocks import Missing, PageSection, Plot, section_by_set
from kava.lab.page.sections.ablations import ablations
from kava.lab.page.sections.accuracy import EVALUATE, accuracy, accuracy_by_steps
from kava.lab.page.sections.claims import claims
from kava.lab.page.sections.examples import examples
from kava.lab.page.sections.held_out import held_out
from kava.lab.page.sections.kv_parts import kv_parts
from kava.lab.page.sections.passes import passes
from kava.lab.page.sections.selection import selection
from kava.lab.page.sections.settings import settings
from kava.lab.page.sections.summary import default_title, summary
from kava.lab.page.sections.teachers import teachers
from kava.lab.page.sections.training import latents, losses


def sections(study: Study) -> list[PageSection]:
    """All sections of a study, in the order of the page: verdicts and examples first, where they are known."""
    no_passes, command = "The results hold no forward passes.", f"{EVALUATE} --losses"
    uncounted = "The results count no problems by number of steps: their sets do not tell their steps."
    of_latents = () if study.explicit else (latents(study), selection(study), ablations(study))
    every = (
        section_by_set(study, "accuracy", "Accuracy", accuracy, Missing("No run has results on any set.", EVALUATE)),
        section_by_set(study, "steps", "Accuracy by number of steps", accuracy_by_steps, Missing(uncounted)),
        section_by_set(
            study,
            "passes",
            "Accuracy against forward passes",
            passes,
            Missing(no_passes, EVALUATE),
        ),
        losses(study),
        kv_parts(study),
        teachers(study),
        *of_latents,
        section_by_set(study, "held-out", "Held-out losses", held_out, Missing("No results hold losses.", command)),
        settings(study),
    )
    verdicts, questions = claims(study), [part for label in study.sets for part in examples(study, label)]
    first = [PageSection("examples", "Questions and answers", tuple(questions))] if questions else []
    present = [*first, *(section for section in every if section is not None)]
    analysed = not any(isinstance(part, Missing) for part in verdicts.parts)
    return [verdicts, *present] if analysed else [*present[:-1], verdicts, present[-1]]


def plots(page_sections: Sequence[PageSection]) -> list[Plot]:
    return [part for section in page_sections for part in section.parts if isinstance(part, Plot)]


def render_page(
    study: Study, page_sections: Sequence[PageSection], drawn: Mapping[str, str], title: str | None = None
) -> str:
    """The page as HTML; `drawn` holds each figure's SVG by its name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("page.html.j2").render(
        title=title or default_title(study),
        head=summary(study),
        sections=page_sections,
        drawn=drawn,
        numbers={plot.name: i for i, plot in enumerate(plots(page_sections), 1)},
        version=kava.__version__,
    )
