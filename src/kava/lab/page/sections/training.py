"""Curves from the logs: loss terms, validation numbers, and the state of the latents."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kava.lab.analysis.mixture_logs import counted_runs
from kava.lab.analysis.study import Study, StudyMember, panels
from kava.lab.page.blocks import Missing, PageSection, Plot, Row
from kava.lab.page.charts import Grid, Lines, Points, curves
from kava.lab.page.figures import MUTED
from kava.lab.page.formats import DASH, GREY_LINES, SEED_LINES, number, seed_name
from kava.lab.page.heat import scale_of, thinned_columns

TERMS = {
    "ce_student": "student's cross-entropy (ce_student)",
    "ce_teacher": "teacher's cross-entropy (ce_teacher)",
    "codi": "hidden states, student to teacher (codi)",
    "kv": "student's KV to the targets (kv)",
    "attention": "attention of answer to steps (attention)",
    "cka": "1 - CKA of the keys (cka)",
    "guard": "variation that projected targets lack, or have too much of (guard)",
    "entropy": "push on the weights of the teachers (entropy)",
}
VALIDATION = {"eval_accuracy": "accuracy on the validation problems, %"}
HELD_OUT = {
    "eval_ce": "cross-entropy of steps, cue and answer (eval_ce)",
    "eval_cossim": "CosSim of keys and values (eval_cossim)",
    "eval_cossim_centred": "CosSim, the targets' mean subtracted (eval_cossim_centred)",
    "eval_kv_unexplained": "KV distance / that of a constant (eval_kv_unexplained)",
    "eval_kv_unexplained_by_dim": "the same, every dimension counting alike (eval_kv_unexplained_by_dim)",
    "eval_gap_ce": "cross-entropy held out / trained - 1 (eval_gap_ce)",
    "eval_gap_kv": "KV distance held out / trained - 1 (eval_gap_kv)",
    "eval_target_variation": "variation of projected targets (eval_target_variation)",
}
HEALTH = {
    "latent_norm": "norm, against that of token embeddings (latent_norm)",
    "latent_cosine": "cosine of one latent to the others (latent_cosine)",
    "jacobi_residual": "what one more round would change (jacobi_residual)",
    "kept_share": "share of latents that have a target (kept_share)",
}
MOST_POINTS = 200


def losses(study: Study) -> PageSection:
    about = (
        "Every term alone and before its weight; members weigh terms differently, so that their sums do not compare. "
        "A distance is to the member's own targets."
    )
    held_out = "Measured during training, on problems held out from it."
    cosines = f"{held_out} CosSim: over all tokens of the chain of thought, in their right order whatever was trained."
    validation = (
        _plot(study, "validation", "Held-out numbers over training", cosines, HELD_OUT)
        if study.explicit
        else _plot(study, "validation", "Validation accuracy over training", held_out, VALIDATION, scale=100)
    )
    parts = (
        _plot(study, "losses", "Loss terms over training", about, TERMS, log=True)
        or Missing("No run has a log with loss terms (log.jsonl).", "kava train"),
        validation or Missing("No log has validations.", "kava train --config RECIPE logging.eval_steps=N"),
    )
    return PageSection("training", "Losses and validation over training", parts)


def latents(study: Study) -> PageSection:
    about = (
        "A cosine near 1: all latents say the same. A residual near 0: the iteration has converged, more rounds change "
        "nothing."
    )
    plot = _plot(study, "health", "Latents over training", about, HEALTH)
    nothing = Missing("No log holds the state of latents: no run has latents, or no log.", "kava train")
    return PageSection("health", "The latents over training", (plot or nothing,))


def _plot(
    study: Study, name: str, title: str, about: str, keys: Mapping[str, str], log: bool = False, scale: float = 1
) -> Plot | None:
    """A panel per key and group; None where no log has any of them."""
    every = {key: _lines(study, key, scale) for key in keys}
    lines = {key: by_member for key, by_member in every.items() if any(map(_longest, by_member.values()))}
    members = [m for m in study.members if any(_longest(by_member[m.label]) for by_member in lines.values())]
    if not members:
        return None
    groups = panels(members)
    grid = Grid({key: keys[key] for key in lines}, groups, height=1.7 if len(lines) == 1 else 1.3, xlabel="updates")
    ended = {member.label: {seed_name(run.seed) for run in counted_runs(member)} for member in members}
    drawn, cut = ({key: _part(of_key, ended, inside) for key, of_key in lines.items()} for inside in (True, False))

    def draw(figure: Any) -> None:
        for axes, key, group in grid.panels(figure):
            wide = scale_of(y for seeds in lines[key].values() for points in seeds.values() for _, y in points).log
            curves(axes, group, drawn[key], log and wide, cut=cut[key])
            if not any(_longest(lines[key][member.label]) for member in group.members):
                words = {"ha": "center", "va": "center", "color": MUTED, "style": "italic"}
                axes.text(0.5, 0.5, "not measured for these", transform=axes.transAxes, **words)

    def ends(member: StudyMember, seed: str) -> Row:
        points = [by_member[member.label].get(seed, []) for by_member in lines.values()]
        last = max((line[-1][0] for line in points if line), default=0)
        return (member.label, seed, f"{last:,}", *(number(p[i][1]) if p else DASH for p in points for i in (0, -1)))

    longest = max(_longest(seeds) for by_member in lines.values() for seeds in by_member.values())
    words = {
        about: True,
        SEED_LINES: len(study.seeds) > 1,
        GREY_LINES: len(groups) > 1,
        "Runs that were cut short are in no mean.": any(_longest(seeds) for c in cut.values() for seeds in c.values()),
        f"Lines of more than {MOST_POINTS} points are drawn as means of neighbours.": longest > MOST_POINTS,
    }
    return Plot(
        name=name,
        title=title,
        caption=" ".join(sentence for sentence, holds in words.items() if holds),
        alt=f"{len(lines)} by {len(groups)} panels of lines over updates; first and last values in the table below.",
        size=grid.size,
        draw=draw,
        header=("member", "seed", "updates", *(f"{key}, {when}" for key in lines for when in ("first", "last"))),
        rows=[
            ends(member, seed)
            for member in members
            for seed in dict.fromkeys(seed_name(run.seed) for run in member.runs)
            if any(by_member[member.label].get(seed) for by_member in lines.values())
        ],
    )


def _part(lines: Lines, ended: Mapping[str, set[str]], inside: bool) -> Lines:
    """The lines of seeds that are (or are not) among `ended`, with few enough points to draw."""
    return {
        label: {seed: thinned(points) for seed, points in seeds.items() if (seed in ended[label]) == inside}
        for label, seeds in lines.items()
        if label in ended
    }


def _longest(seeds: Mapping[str, Points]) -> int:
    return max(map(len, seeds.values()), default=0)


def _lines(study: Study, key: str, scale: float) -> Lines:
    return {
        label: {seed_name(n): series(log, key, scale) for n, log in seeds.items()}
        for label, seeds in study.logs.items()
    }


def series(log: Sequence[Mapping[str, Any]], key: str, scale: float = 1) -> Points:
    """(update, value) in order; of several values logged for an update, the last."""
    values = {int(line["step"]): line[key] for line in log if isinstance(line.get(key), int | float)}
    return [(step, scale * float(value)) for step, value in sorted(values.items()) if math.isfinite(value)]


def thinned(points: Points) -> Points:
    """At most 200 points: means of neighbours, at the last update of each."""
    if len(points) <= MOST_POINTS:
        return points
    steps, (values,) = thinned_columns([step for step, _ in points], [[value for _, value in points]], MOST_POINTS)
    return [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
