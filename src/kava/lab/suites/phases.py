"""Several teachers against one and against none: the same data, order, updates, tokens and seeds for all.

phases   what the guide's phases 3 to 5 claim, beside the baselines that they must beat: plain fine-tuning on the same
         text (sft), and every teacher alone (single_NAME).
stages   the guide's fixed -> similarity -> learnable, each begun where the one before ended. The last stage has had three
         times the updates of the first, so fixed weights are continued as often (fixed_2, fixed_3).
"""

from __future__ import annotations

import json

from kava.config import Recipe, TeacherSpec
from kava.lab.plan import Member, Suite

FIXED = ("mixture.fusion=fixed", "mixture.space=kv")
SIMILARITY = ("mixture.fusion=similarity", "mixture.space=kv")
LEARNABLE = ("mixture.fusion=learnable", "mixture.space=kv")
NEEDS = "several teachers: a recipe such as multi_teacher or multi_teacher_embedded, or mixture.teachers=[A, B]"
# The guide's ranges, 0-12 and 12-24 of 28 layers, as shares.
RANGES = {"shallow": (0, 12 / 28), "middle": (12 / 28, 24 / 28)}
ROUTERS = ("mlp", "gate", "attention")


def members(recipe: Recipe) -> tuple[Member, ...]:
    """sft, every teacher alone, and every way to have them together that the recipe's line knows."""
    if not recipe.mixture.on:
        return ()
    explicit = recipe.explicit.enabled
    mode = "cot" if explicit else "latent"
    sample = ("explicit.choose=sample",) if explicit else ()
    found = [Member("sft", "no teacher: cross-entropy on the same text", ("loss.alpha2_kv=0",), mode)]
    found += [
        Member(f"single_{one.label}", f"{one.label} alone", (*only(recipe, [one]), *FIXED), mode)
        for one in recipe.mixture.teachers
    ]
    found.append(Member("fixed", "fixed weights", FIXED, mode))
    if explicit:
        found.append(Member("similarity", "weights by similarity to prototypes", SIMILARITY, mode))
    query = () if explicit else ("mixture.query=embedding",)
    found.append(Member("learnable", "weights from a trained router", (*LEARNABLE, *query), mode))
    if explicit:
        found.append(Member("z", "fixed weights, trained codes", (FIXED[0], "mixture.space=z", *sample), mode))
    return tuple(found)


def stages(recipe: Recipe) -> tuple[Member, ...]:
    if not (recipe.mixture.on and recipe.explicit.enabled):
        return ()
    return (
        Member("fixed", "stage 1: fixed weights", FIXED, "cot"),
        Member("similarity", "stage 2: by similarity", SIMILARITY, "cot", after="fixed"),
        Member("learnable", "stage 3: from a trained router", LEARNABLE, "cot", after="similarity"),
        Member("fixed_2", "control: fixed weights for as long as stage 2", FIXED, "cot", after="fixed"),
        Member("fixed_3", "control: fixed weights for as long as stage 3", FIXED, "cot", after="fixed_2"),
    )


def only(recipe: Recipe, teachers: list[TeacherSpec]) -> tuple[str, ...]:
    """Settings that leave these teachers of the recipe, as equals."""
    mixture = recipe.mixture
    specs = [one.model_dump(mode="json", exclude_defaults=True) | {"name": one.label} for one in teachers]
    settings = [f"mixture.teachers={json.dumps(specs, ensure_ascii=False)}"]
    settings += ["mixture.weights=null"] if mixture.weights is not None else []
    if mixture.layer_map_files:
        files = [file for one, file in zip(mixture.teachers, mixture.layer_map_files, strict=True) if one in teachers]
        settings.append(f"mixture.layer_map_files={json.dumps(files, ensure_ascii=False)}")
    return tuple(settings)


def ablations(recipe: Recipe) -> list[Member]:
    """How the teachers are weighed, how many there are, keys or values alone, and how tokens are paired."""
    mixture, explicit = recipe.mixture, recipe.explicit.enabled
    here = {"learnable": mixture.router}.get(mixture.fusion, mixture.fusion)
    found = []
    for name in ("fixed", "similarity", *ROUTERS):
        settings = [f"mixture.fusion={name}"]
        if name in ROUTERS:
            settings = ["mixture.fusion=learnable", f"mixture.router={name}"]
            settings += [] if explicit else ["mixture.query=embedding"]
        if name != here and (explicit or name != "similarity"):
            found.append((f"routing_{name}", f"weights: {name}", settings))
    for count in range(1, len(mixture.teachers)):
        first = mixture.teachers[:count]
        labels = ", ".join(one.label for one in first)
        found.append((f"teachers_{count}", f"of the teachers only {labels}", [*only(recipe, list(first))]))
    if mixture.space == "kv" and explicit:
        parts = [part for part in ("k", "v") if part != recipe.explicit.parts]
        found += [(f"only_{part}", f"only {part}", [f"explicit.parts={part}"]) for part in parts]
    time = "truncate" if mixture.time == "soft" else "soft"
    found.append((f"align_{time}", f"tokens paired: {time}", [f"mixture.time={time}"]))
    mode = "cot" if explicit else "latent"
    return [Member(name, title, tuple(settings), mode) for name, title, settings in found]


def by_layer(recipe: Recipe, count: int) -> tuple[Member, ...]:
    """The KV term on a part of the student's `count` layers."""
    if not (recipe.mixture.on and recipe.explicit.enabled and recipe.explicit.form == "per_layer"):
        return ()
    ranges = {name: (round(a * count), round(b * count) - 1) for name, (a, b) in RANGES.items()}
    return tuple(
        Member(f"layers_{name}", f"the KV term on layers {a}-{b} of {count}", (f"explicit.layers={a}-{b}",), "cot")
        for name, (a, b) in ranges.items()
        if a <= b and recipe.explicit.layers != f"{a}-{b}"
    )


PHASES = Suite(
    "phases",
    "several teachers (fixed, similarity, learnable, z) against each alone and none",
    lambda recipe: "phases",
    members,
    needs=NEEDS,
)
STAGES = Suite(
    "stages",
    "fixed, similarity, learnable in turn, each from the one before, with controls",
    lambda recipe: "stages",
    stages,
    needs=NEEDS + ", on the explicit line",
)
