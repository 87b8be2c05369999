"""Methods of latent reasoning side by side: one data set, order, start and number of updates for all.

Each member is what its method's official code does, as settings of the recipe (docs/paper-map.md, section 13). What is no
part of a method, such as M, the projection, the scope of standard deviations and the learning rate, is the recipe's for all.
The CODI term has one weight in every member that has it, so that kava differs from pccot by the KV term alone.
"""

from kava.config import Recipe, parse_overrides
from kava.lab.suites.member import Suite, SuiteMember
from kava.lab.suites.passes import passes_per_update

NO_KV, NO_CODI, NO_TEACHER = "loss.alpha2_kv=0", "loss.alpha1_codi=0", "loss.teacher_ce=0"
ANSWER_ALONE = (NO_KV, NO_CODI, NO_TEACHER)  # trained on question and answer, as Coconut's baselines of these names
TEXT_ALONE = ("loss.student_ce=0", NO_KV, NO_CODI)
JACOBI, SEQUENTIAL = "latent.method=jacobi", "latent.method=sequential"
NEEDS = "latents that learn from their own weights: a recipe such as embedded or llama1b_aug"


def members(recipe: Recipe) -> tuple[SuiteMember, ...]:
    """The methods on this recipe; a weight that the recipe has switched off is 1, the default of the official codes."""
    if recipe.explicit.enabled or recipe.mixture.on or not recipe.latent.feeds_back:
        return ()
    codi, kv = f"loss.alpha1_codi={recipe.loss.alpha1_codi or 1:g}", f"loss.alpha2_kv={recipe.loss.alpha2_kv or 1:g}"
    return (
        SuiteMember("no_cot", "no thoughts: M = 0, question and answer alone", ("latent.num_tokens=0", *ANSWER_ALONE)),
        SuiteMember(
            "pause", "pause tokens: T = 0, question and answer alone",
            (JACOBI, "latent.num_iterations=0", *ANSWER_ALONE),
        ),
        SuiteMember(
            "short_cot", "writes each step's result and nothing else", (*TEXT_ALONE, "dataset.step_text=results"), "cot"
        ),
        SuiteMember(
            "full_cot", "writes the whole chain of thought",
            (*TEXT_ALONE, "dataset.drop_last_step=false", "dataset.step_text=whole"), "cot",
        ),
        SuiteMember("codi", "CODI: one latent after the other, its hidden-state term", (SEQUENTIAL, codi, NO_KV)),
        SuiteMember(
            "sim_cot", "SIM-CoT: CODI, and a decoder in training that must write step t from latent t",
            (SEQUENTIAL, codi, NO_KV, "loss.step_decoder=1"),
        ),
        SuiteMember(
            "coconut", "Coconut: steps give way to latents, stage by stage; no teacher, no projection",
            (*ANSWER_ALONE, SEQUENTIAL, *stages(recipe.latent.num_tokens), "loss.use_projection=false",
             "dataset.drop_last_step=false"),
        ),
        SuiteMember("pccot", "PCCoT: T Jacobi rounds, CODI's term", (JACOBI, codi, NO_KV)),
        SuiteMember("kava", "KaVa: PCCoT and the KV term on R-KV's choice", (JACOBI, codi, kv, "rkv.method=rkv")),
        SuiteMember(
            "kava_steps", "KaVa on the tokens of each step's result (ours)", (JACOBI, codi, kv, "rkv.method=steps")
        ),
    )  # fmt: skip


def stages(latents: int) -> tuple[str, str]:
    """Coconut's schedule (max_latent_stage 3, 3 of 25 epochs for each stage), with the M of the recipe: c = M / 3, or with
    fewer stages where M is no multiple of 3."""
    most = next(number for number in (3, 2, 1) if latents % number == 0)
    return f"latent.stage_latents={latents // most}", "latent.stage_share=0.12"


def with_equal_passes(recipe: Recipe) -> tuple[SuiteMember, ...]:
    """The same members, each for as many updates as cost the forward passes that the recipe's updates cost."""
    updates, passes = recipe.training.max_steps, passes_per_update(recipe.to_dict())
    if updates is None or passes is None:
        return ()
    equal: list[SuiteMember] = []
    for member in members(recipe):
        data = recipe.to_dict()
        for key, value in parse_overrides(member.settings).items():
            section, _, name = key.partition(".")
            data[section][name] = value
        own = max(1, round(updates * passes / (passes_per_update(data) or passes)))
        equal.append(member._replace(settings=(*member.settings, f"training.max_steps={own}")))
    return tuple(equal)


SUITE = Suite(
    "methods",
    "CODI, SIM-CoT, Coconut, PCCoT, KaVa, pause tokens, no, short and whole chain of thought on one recipe",
    lambda recipe: "methods",
    members,
    NEEDS,
)
EQUAL_PASSES = Suite(
    "methods-passes",
    "the same with as many forward passes in training, and so unlike numbers of updates",
    lambda recipe: "methods_passes",
    with_equal_passes,
    f"{NEEDS}; and training.max_steps, from which each member's number of updates follows",
    derived=("training.max_steps",),
    analyze=("--unequal_budget",),
)
