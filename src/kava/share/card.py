"""The model card: README.md from a student's own files. A line without a source is left out or says "not measured"."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kava.config import BUILTIN_DATASETS, MODULAR, Recipe
from kava.data.generator import Generator
from kava.infer.checks import own_mode, untrained
from kava.share.facts import CardScore, StudentFacts

PAPER = "arXiv:2510.02312"
Z = 1.959964  # the normal distribution's 97.5 %
HASHED = 16  # digits of a hash that a line gives; files have it whole


@dataclass(frozen=True)
class Form:
    """What is uploaded. Of a merged folder: sha256 of the file that answers in transformers alone; the weights' dtype."""

    repo: str
    merged: bool = False
    generate_sha256: str | None = None
    dtype: str | None = None


def model_card(facts: StudentFacts, form: Form, licence: str | None = None) -> str:
    """README.md: front matter of the hub, then what is known."""
    sections = (
        _introduction(facts, form),
        _use(facts, form),
        _scores(facts),
        _ablations(facts),
        _training(facts),
        _limits(facts),
        _licence(facts, licence),
    )
    return f"{_front_matter(facts, form, licence)}\n" + "\n\n".join(sections) + "\n"


def _front_matter(facts: StudentFacts, form: Form, licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=str(score.fields["dataset"]),
            dataset_name=str(score.fields["dataset"]),
            metric_type="accuracy",
            metric_name=f"accuracy, {score.fields['mode']}, n = {score.total}",
            metric_value=score.correct / score.total,
            verified=False,
        )
        for score in _own(facts)
    ]
    base: dict[str, Any] = {"base_model": facts.base, "base_model_relation": "finetune" if form.merged else "adapter"}
    if not facts.recipe.lora.enabled:
        base["base_model_relation"] = "finetune"
    data = ModelCardData(
        library_name="transformers" if form.merged else "kava",
        pipeline_tag="text-generation",
        tags=["kava", "latent-reasoning", "arxiv:2510.02312"],
        license=licence,
        model_name=form.repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
        **(base if facts.base_on_hub else {}),
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _own(facts: StudentFacts) -> list[CardScore]:
    """Scores of the student as trained, on whole sets: nothing replaced, drawn or left out."""
    return [score for score in facts.scores if _plain(score) and score.total == score.fields.get("set_size")]


def _plain(score: CardScore) -> bool:
    return not _changes(score) and score.fields.get("ablate") is None


def _changes(score: CardScore) -> str:
    """M, T and sampling, where they are not the student's own."""
    words = {"num_tokens": "M = {}", "num_iterations": "T = {}", "samples": "majority of {}"}
    return ", ".join(
        text.format(score.fields[name]) for name, text in words.items() if score.fields.get(name) is not None
    )


def _introduction(facts: StudentFacts, form: Form) -> str:
    recipe, latent = facts.recipe, facts.recipe.latent
    if facts.card.method == "latent":
        thinks = f"thinks in {latent.num_tokens} latent vectors"
        thinks += (
            f" ({latent.num_iterations} rounds of Jacobi iteration)"
            if latent.method == "jacobi"
            else " (one after the other)"
        )
        what = f"{thinks} before it answers; it was distilled from its own chain of thought's compressed KV cache"
    else:
        what = "writes its chain of thought; it was distilled from the keys and values of a separate teacher"
    revision = f", revision `{recipe.model.revision}`" if recipe.model.revision else ""
    lines = [
        f"# {form.repo}",
        "",
        f"A student of `{facts.base}`{revision} that {what} (KaVa, {PAPER}). Made with kava {facts.card.kava_version}, recipe "
        f"`{recipe.about.name}`.",
    ]
    if facts.base.startswith("kava:"):
        lines += ["", f"The base model `{facts.base}` is a part of kava."]
    elif not facts.base_on_hub:
        lines += ["", f"The base model was a folder called `{facts.base}` on the machine of the training run."]
    return "\n".join(lines)


def _use(facts: StudentFacts, form: Form) -> str:
    question = _example_question(facts.recipe)
    with_kava = [
        "With kava:",
        "",
        "```python",
        "from kava import Student",
        "",
        f'student = Student.from_pretrained("{form.repo}")'
        + ("" if facts.base_on_hub or not facts.recipe.lora.enabled else '  # base="FOLDER"'),
        f'print(student.answer(["{question}"])[0].text)',
        "```",
    ]
    if not form.merged:
        without = [
            "These files are the trained weights by their own names"
            + (", adapters beside their base" if facts.recipe.lora.enabled else "")
            + "; without kava they do not answer. `kava export FOLDER NEW` makes a folder that does, with transformers alone.",
        ]
        return "\n".join(["## Use", "", *with_kava, "", *without])
    lines = [
        "## Use", "",
        "With transformers alone; the file `custom_generate/generate.py` in this repository thinks in latents (read it first: "
        "`trust_remote_code` runs it):", "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        f'name = "{form.repo}"',
        "tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)",
        f'inputs = tokenizer("{question}", return_tensors="pt")',
        "tokens = model.generate(**inputs, custom_generate=name, trust_remote_code=True)",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
        "```",
    ]  # fmt: skip
    if form.generate_sha256 is not None:
        lines += ["", f"sha256 of `custom_generate/generate.py`: `{form.generate_sha256}`"]
    if form.dtype is not None:
        lines += ["", f"The weights are stored in {form.dtype}; scores are those of the student's own weights."]
    return "\n".join(lines)


def interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, square = correct / total, Z * Z / total
    middle = share + square / 2
    half = Z * sqrt(share * (1 - share) / total + square / (4 * total))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


def _row(score: CardScore, name: str) -> str:
    low, high = interval(score.correct, score.total)
    fields = score.fields
    part = "" if score.total == fields.get("set_size") else f" of {fields.get('set_size', '?')}"
    passes = fields.get("avg_forward_passes")
    cells = (
        name, fields["mode"], f"{100 * score.correct / score.total:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %",
        f"{score.correct}/{score.total}{part}", fields.get("seed", "not recorded"),
        "not measured" if passes is None else f"{passes:.2f}", f"`{str(fields.get('data_sha256', 'not recorded'))[:HASHED]}`",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


HEADER = (
    "| set | mode | accuracy | 95 % interval | right | seed | forward passes | sha256 of the set |\n"
    "|---|---|---|---|---|---|---|---|"
)


def _scores(facts: StudentFacts) -> str:
    scores = [score for score in facts.scores if score.fields.get("ablate") is None]
    if not scores:
        return "## Scores\n\nNot measured. `kava evaluate` measures them."
    lines = ["## Scores", "", HEADER]
    for score in scores:
        changes = _changes(score)
        lines.append(_row(score, f"{score.fields['dataset']}" + (f" ({changes})" if changes else "")))
    lines += [
        "",
        "An answer is right if the number behind the cue is the gold number, and every item counts. Intervals are Wilson's, "
        "over the items; forward passes are the mean per question, 1 + T + generated tokens.",
    ]
    lines += _over_seeds(facts, scores)
    lines += [f"Note on {score.fields['mode']}: {note}." for score in scores if (note := score.fields.get("note"))]
    if facts.stale:
        names = ", ".join(f"`{path.name}`" for path in facts.stale)
        lines += ["", f"Left out, because they are results of another checkpoint: {names}."]
    return "\n".join(lines)


def _over_seeds(facts: StudentFacts, scores: Sequence[CardScore]) -> list[str]:
    """A line for each results file that other seeds of the recipe have, too."""
    lines = []
    for score in scores:
        several = [score, *(other for other in facts.siblings if other.file.name == score.file.name)]
        if len(several) > 1 and _plain(score):
            shares = [100 * other.correct / other.total for other in several]
            seeds = ", ".join(str(other.fields.get("seed")) for other in several)
            lines += [
                "",
                f"Over {len(several)} seeds ({seeds}) of the recipe, {score.fields['dataset']}, {score.fields['mode']}: "
                f"{fmean(shares):.1f} % +- {stdev(shares):.1f} (sample standard deviation). These weights are seed "
                f"{score.fields.get('seed')}.",
            ]
    return lines


def _ablations(facts: StudentFacts) -> str:
    scores = [score for score in facts.scores if score.fields.get("ablate") is not None]
    title = "## Are the latents used?"
    if facts.card.method != "latent":
        return f"{title}\n\nThis student has none: it writes its steps."
    if not scores:
        return f"{title}\n\nNot measured. `kava evaluate --ablate swap` replaces them by those of another question."
    own = {(score.fields["dataset"], score.fields["mode"]): score for score in facts.scores if _plain(score)}
    lines = [
        title,
        "",
        "| set | latents replaced by | accuracy | right | with its own latents |",
        "|---|---|---|---|---|",
    ]
    for score in scores:
        trained = own.get((score.fields["dataset"], score.fields["mode"]))
        same = trained is not None and trained.fields.get("data_sha256") == score.fields.get("data_sha256")
        beside = f"{100 * trained.correct / trained.total:.1f} %" if trained is not None and same else "not measured"
        lines.append(
            f"| {score.fields['dataset']} | {score.fields['ablate']} | {100 * score.correct / score.total:.1f} % | "
            f"{score.correct}/{score.total} | {beside} |"
        )
    return "\n".join(lines)


def _training(facts: StudentFacts) -> str:
    recipe, meta, card = facts.recipe, facts.meta, facts.card
    dataset = recipe.dataset
    data = (meta.get("data") or {}) if card.data_sha256 is None else {"sha256": card.data_sha256}
    pinned = f" at `{recipe.model.revision}`" if recipe.model.revision else ", revision not pinned"
    lora = (
        f"rank {recipe.lora.r}, alpha {recipe.lora.alpha:g}"
        if recipe.lora.enabled
        else "none, all weights were trained"
    )
    thinking = f"{recipe.latent.num_tokens}, {recipe.latent.num_iterations}" if card.method == "latent" else None
    known: list[tuple[str, Any]] = [
        ("recipe", f"`{recipe.about.name}`, all settings in `recipe.yaml`"),
        ("base model", f"`{facts.base}`{pinned}"),
        ("training data", f"`{_last(dataset.name)}`, steps as {dataset.cot_type}"),
        ("sha256 of the encoded training data", _code(data.get("sha256"))),
        ("examples", (meta.get("data") or {}).get("examples")),
        ("updates", card.step),
        ("examples per update", card.effective_batch_size or meta.get("effective_batch_size")),
        ("trained parameters", meta.get("trained_parameters")),
        ("seed", recipe.system.seed),
        ("LoRA", lora),
        ("latents M, rounds T", thinking),
        ("KV loss", f"{recipe.loss.kv_loss_type}, weight {recipe.loss.alpha2_kv:g}, kept entries: {recipe.rkv.method}"),
        ("device", meta.get("device")),
        ("source revision", _code(meta.get("git"))),
        ("versions", ", ".join(f"{name} {version}" for name, version in (meta.get("versions") or {}).items() if version)),
    ]  # fmt: skip
    lines = [
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in known if value not in (None, "")),
    ]
    if facts.command:
        lines += ["", "The command:", "", "```bash", shlex.join(facts.command), "```"]
    return "\n".join(lines)


def _last(name: str) -> str:
    """A path's last part; the name of a set as it is."""
    return name if name.count("/") == 1 and not Path(name).exists() else Path(name).name


def _example_question(recipe: Recipe) -> str:
    dataset = recipe.dataset
    if dataset.name in MODULAR:
        return "3+4*2-1?"
    if dataset.name in BUILTIN_DATASETS:
        return Generator(dataset.name, dataset.generator).questions(1)[0]
    return "Ann has 3 bags of 4 apples and eats 2. How many are left?"


def _code(text: str | None) -> str | None:
    return None if text is None else f"`{text}`"


def _limits(facts: StudentFacts) -> str:
    recipe = facts.recipe
    lines = [
        f"- It was trained on `{_last(recipe.dataset.name)}` alone; what it does with other questions is "
        + ("what the scores above say." if facts.scores else "not measured."),
        f"- Answers were measured up to {recipe.evaluation.max_new_tokens} tokens; a longer one is cut off.",
        "- One question at a time: earlier questions and answers are not part of its prompt.",
    ]
    if recipe.dataset.name in MODULAR:
        lines.append(f"- The data are arithmetic modulo {recipe.dataset.generator.modulus}: it is a toy.")
    if facts.card.method == "latent":
        lines.append("- The latents are no text: nothing here says what they mean.")
    for mode in ("latent", "cot", "direct"):
        if mode != own_mode(recipe) and (why := untrained(recipe, mode)):
            lines.append(f"- Mode `{mode}`: {why}.")
    return "\n".join(["## Limits", "", *lines])


def _licence(facts: StudentFacts, licence: str | None) -> str:
    own = (
        f"These weights: {licence}."
        if licence
        else "The licence of these weights was not stated when they were uploaded."
    )
    return (
        f"## Licence\n\n{own} The terms of the base model (`{facts.base}`) and of the training data "
        f"(`{_last(facts.recipe.dataset.name)}`) apply as well. kava itself is under Apache-2.0."
    )
