"""Loss terms of the test items: how near every student's latents are to every compressor's targets."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from kava.lab.analysis.stats import spread
from kava.lab.analysis.study import Study, StudyMember, value
from kava.lab.page.blocks import Block, Paragraph, Table, rows_by_group, titled
from kava.lab.page.formats import DASH, counted, join, listed, styled

KV, BY_DIM = "kv_", "kv_by_dim_"
PPL = "ppl"  # exp(ce_student): left out
Losses = dict[str, list[float]]  # name -> a value per seed


def held_out(study: Study, label: str) -> list[Block]:
    losses = {member.label: _losses(study, member, label) for member in study.members}
    if not any(losses.values()):
        return []
    parts: list[Block] = [_table(study, label, losses), _about(study, label, losses)]
    return titled({label if len(study.sets) > 1 else "": parts})


def _losses(study: Study, member: StudyMember, label: str) -> Losses:
    losses: Losses = {}
    for _, result in study.score(member, label).results:
        for name, loss in (result.fields.get("losses") or {}).items():
            if isinstance(loss, int | float) and name != PPL:
                losses.setdefault(name, []).append(float(loss))
    return losses


def _table(study: Study, label: str, losses: dict[str, Losses]) -> Table:
    names = list(dict.fromkeys(name for of_member in losses.values() for name in of_member))
    names.sort(key=lambda name: (name.startswith(KV), name.startswith(BY_DIM)))
    means = {name: [fmean(of_member[name]) for of_member in losses.values() if name in of_member] for name in names}

    def row(member: StudyMember) -> Sequence[Any]:
        of_member = losses[member.label]
        cells = [_cell(member, name, of_member.get(name, []), means[name]) for name in names]
        return (member.label, max(map(len, of_member.values())), *cells)

    rows = rows_by_group([member for member in study.members if losses[member.label]], row)
    return Table(("member", "seeds", *names), rows, f"Held-out losses on {label}")


def _cell(member: StudyMember, name: str, values: list[float], column: list[float]) -> Any:
    """Mean (sd); distances are shaded, the nearest of the column darkest; a member's own targets are bold."""
    if not values:
        return DASH
    mean, sd = fmean(values), spread(values)
    words = join([_decimals(mean, column), *([styled(f"({_decimals(sd, column)})", "sub")] if sd is not None else [])])
    if not name.startswith(KV):
        return words
    low, high = min(column), max(column)
    near = 0.0 if high == low else (high - mean) / (high - low)
    if member.group != "none" and name == KV + str(value(member.runs[0].recipe, "rkv.method")):
        words = Markup("<b>{}</b>").format(words)
    return Markup('<span class="heat" style="--h: {:.2f}">{}</span>').format(near, words)


def _decimals(value: float, column: list[float]) -> str:
    """The value with as many decimals as its whole column: three digits of the smallest mean, three decimals at least."""
    small = min((abs(mean) for mean in column if mean), default=1.0)
    return f"{value:.{max(3, 1 - math.floor(math.log10(small)))}f}"


def _about(study: Study, label: str, losses: dict[str, Losses]) -> Paragraph:
    words = [
        "Means over seeds (sample standard deviation). kv_ columns: mean squared distance of the latents' keys and values "
        "to what the compressor keeps of the teacher's cache, divided by the teacher's variance; about 1 for the best "
        "constant; kv_by_dim_: the same of each dimension by itself, mean of all, so that large constants in some keys do not "
        "count. Darker is nearer, column by column; bold is the compressor that the member was trained on."
    ]
    members = [member for member in study.members if losses[member.label]]
    with_latents = [member for member in members if any(name.startswith(KV) for name in losses[member.label])]
    sizes = {value(run.recipe, "latent.num_tokens") for member in with_latents for run in member.runs} - {None}
    if len(sizes) > 1:
        words.append("These members differ in M, and distances compare between students of one M only.")
    items: dict[str, dict[str, None]] = {}
    for member in members:
        for _, result in study.score(member, label).results:
            for name, count in (result.fields.get("losses_items") or {}).items():
                items.setdefault(counted(int(count), "item"), {})[name] = None
    words += [f"{listed(list(names))} measured on {count}." for count, names in items.items()]
    return Paragraph(" ".join(words), "note")
