"""E1 to E5 and their controls: everything but the key/value treatment is equal - data, order, steps, tokens, seed.

E1 switches the KV term off and nothing else; CODI stays as the recipe has it. E0 switches both off. On the explicit line
the students write their steps, so that pause tokens, no thoughts and the explicit chain of thought have no place there.
"""

from kava.config import Recipe
from kava.lab.suites.member import Suite, SuiteMember

NO_KV, NO_CODI = "loss.alpha2_kv=0", "loss.alpha1_codi=0"

MEMBERS = (
    SuiteMember("E0_ce_only", "cross-entropy only", (NO_KV, NO_CODI)),
    SuiteMember("E1_baseline", "no KV term", (NO_KV,)),
    SuiteMember("E2_full_kv", "full KV, resampled in time", ("rkv.method=full",)),
    SuiteMember("E3_right_crop", "the last entries", ("rkv.method=crop",)),
    SuiteMember("E4_rkv", "R-KV, the paper's score", ("rkv.method=rkv",)),
    SuiteMember("E5_shuffled", "control: R-KV, shuffled in time", ("rkv.method=rkv", "rkv.shuffle=time")),
    SuiteMember("steps", "the tokens of each step's result (ours)", ("rkv.method=steps",)),
    SuiteMember("random", "control: random entries", ("rkv.method=random",)),
    SuiteMember("uniform", "control: evenly spaced entries", ("rkv.method=uniform",)),
    SuiteMember("rkv_examples", "control: R-KV of another question", ("rkv.method=rkv", "rkv.shuffle=examples")),
    SuiteMember("steps_examples", "control: steps of another question", ("rkv.method=steps", "rkv.shuffle=examples")),
    SuiteMember("pause", "pause tokens: T = 0, no KV term", ("latent.num_iterations=0", NO_KV)),
    SuiteMember("no_cot", "no thoughts: M = 0", ("latent.num_tokens=0", NO_KV, NO_CODI)),
    SuiteMember("full_cot", "explicit chain of thought", ("loss.student_ce=0", NO_KV, NO_CODI), mode="cot"),
)
LATENT_ONLY = ("pause", "no_cot", "full_cot")


def members(recipe: Recipe) -> tuple[SuiteMember, ...]:
    """The members that the recipe's line has."""
    if not recipe.explicit.enabled:
        return MEMBERS
    explicit = (member for member in MEMBERS if member.name not in LATENT_ONLY)
    return tuple(member._replace(title=member.title.replace(", resampled in time", "")) for member in explicit)


def line(recipe: Recipe) -> str:
    return "explicit" if recipe.explicit.enabled else "latent"


SUITE = Suite("e1-e5", "E1 to E5 with every control", line, members)
