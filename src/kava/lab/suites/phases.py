"""Several teachers against one and against none: the same data, order, updates, tokens and seeds for all.

phases   what the guide's phases 3 to 5 claim, and the baselines that they must beat: plain fine-tuning on the same
         text (sft), and every teacher alone (single_NAME).
stages   the guide's fixed -> similarity -> learnable, each begun where the one before ended. The last stage has had three
         times the updates of the first, so fixed weights are continued as often (fixed_2, fixed_3).
"""

import json
from collections.abc import Sequence

from kava.config import Recipe, TeacherSpec
from kava.config.fields import ROUTERS
from kava.lab.suites.member import Suite, SuiteMember

FIXED = ("mixture.fusion=fixed", "mixture.space=kv")
SIMILARITY = ("mixture.fusion=similarity", "mixture.space=kv")
LEARNABLE = ("mixture.fusion=learnable", "mixture.space=kv")
NEEDS = "several teachers: a recipe such as multi_teacher or multi_teacher_embedded, or mixture.teachers=[A, B]"
# The guide's ranges, 0-12 and 12-24 of 28 layers, as shares.
RANGES = {"shallow": (0, 12 / 28), "middle": (12 / 28, 24 / 28)}


def members(recipe: Recipe) -> tuple[SuiteMember, ...]:
    """sft, every teacher alone, and every way of combining them that the recipe's line knows."""
    if not recipe.mixture.on:
        return ()
    alone = [
        SuiteMember(f"single_{teacher.label}", f"{teacher.label} alone", (*only(recipe, [teacher]), *FIXED))
        for teacher in recipe.mixture.teachers
    ]
    sft = SuiteMember("sft", "no teacher: cross-entropy on the same text", ("loss.alpha2_kv=0",))
    fixed = SuiteMember("fixed", "fixed weights", FIXED)
    learnable = SuiteMember("learnable", "weights from a trained router", LEARNABLE)
    if not recipe.explicit.enabled:
        return (sft, *alone, fixed, learnable._replace(settings=(*LEARNABLE, "mixture.query=embedding")))
    similarity = SuiteMember("similarity", "weights by similarity to prototypes", SIMILARITY)
    codes = SuiteMember("z", "fixed weights, trained codes", (FIXED[0], "mixture.space=z", "explicit.choose=sample"))
    return (sft, *alone, fixed, similarity, learnable, codes)


def stages(recipe: Recipe) -> tuple[SuiteMember, ...]:
    """The guide's three stages, and fixed weights for as long as the second and the third."""
    if not (recipe.mixture.on and recipe.explicit.enabled):
        return ()
    return (
        SuiteMember("fixed", "stage 1: fixed weights", FIXED),
        SuiteMember("similarity", "stage 2: by similarity", SIMILARITY, after="fixed"),
        SuiteMember("learnable", "stage 3: from a trained router", LEARNABLE, after="similarity"),
        SuiteMember("fixed_2", "control: fixed weights for as long as stage 2", FIXED, after="fixed"),
        SuiteMember("fixed_3", "control: fixed weights for as long as stage 3", FIXED, after="fixed_2"),
    )


def only(recipe: Recipe, teachers: Sequence[TeacherSpec]) -> tuple[str, ...]:
    """Settings that leave these teachers of the recipe, as equals."""
    mixture = recipe.mixture
    specs = [teacher.model_dump(mode="json", exclude_defaults=True) | {"name": teacher.label} for teacher in teachers]
    settings = [f"mixture.teachers={json.dumps(specs, ensure_ascii=False)}"]
    settings += ["mixture.weights=null"] if mixture.weights is not None else []
    if mixture.layer_map_files:
        maps = zip(mixture.teachers, mixture.layer_map_files, strict=True)
        files = [file for teacher, file in maps if teacher in teachers]
        settings.append(f"mixture.layer_map_files={json.dumps(files, ensure_ascii=False)}")
    return tuple(settings)


def parts_alone(recipe: Recipe) -> list[SuiteMember]:
    """Keys alone, values alone."""
    parts = [part for part in ("k", "v") if part != recipe.explicit.parts]
    return [SuiteMember(f"only_{part}", f"only {part}", (f"explicit.parts={part}",)) for part in parts]


def ablations(recipe: Recipe) -> list[SuiteMember]:
    """How the teachers are weighed, how many there are, keys or values alone, and how tokens are paired."""
    mixture, explicit = recipe.mixture, recipe.explicit.enabled
    current = {"learnable": mixture.router}.get(mixture.fusion, mixture.fusion)
    query = () if explicit else ("mixture.query=embedding",)
    routings: dict[str, tuple[str, ...]] = {"fixed": ("mixture.fusion=fixed",)}
    routings |= {"similarity": ("mixture.fusion=similarity",)} if explicit else {}
    routings |= {name: ("mixture.fusion=learnable", f"mixture.router={name}", *query) for name in ROUTERS}
    changes = [
        SuiteMember(f"routing_{n}", f"weights: {n}", settings) for n, settings in routings.items() if n != current
    ]
    for count in range(1, len(mixture.teachers)):
        teachers = mixture.teachers[:count]
        labels = ", ".join(teacher.label for teacher in teachers)
        changes.append(SuiteMember(f"teachers_{count}", f"of the teachers only {labels}", only(recipe, teachers)))
    changes += parts_alone(recipe) if mixture.space == "kv" and explicit else []
    time = "truncate" if mixture.time == "soft" else "soft"
    changes.append(SuiteMember(f"align_{time}", f"tokens paired: {time}", (f"mixture.time={time}",)))
    return changes


def by_layer(recipe: Recipe, count: int) -> tuple[SuiteMember, ...]:
    """The KV term on a part of the student's `count` layers."""
    if not (recipe.mixture.on and recipe.explicit.enabled and recipe.explicit.form == "per_layer"):
        return ()
    ranges = {name: (round(a * count), round(b * count) - 1) for name, (a, b) in RANGES.items()}
    return tuple(
        SuiteMember(f"layers_{name}", f"the KV term on layers {a}-{b} of {count}", (f"explicit.layers={a}-{b}",), "cot")
        for name, (a, b) in ranges.items()
        if a <= b and recipe.explicit.layers != f"{a}-{b}"
    )


PHASES = Suite(
    "phases",
    "several teachers (fixed, similarity, learnable, z) against each alone and none",
    lambda recipe: "phases",
    members,
    NEEDS,
)
STAGES = Suite(
    "stages",
    "fixed, similarity, learnable in turn, each from the one before, with controls",
    lambda recipe: "stages",
    stages,
    NEEDS + ", on the explicit line",
)
