"""One thing at a time away from the recipe, and the grid of M and T."""

from itertools import product

from kava.config import Recipe
from kava.lab.suites import phases
from kava.lab.suites.member import Suite, SuiteMember

LAMBDAS = (0.0, 0.1, 0.5, 1.0)
DISTANCES = ("l1", "mse", "smooth_l1")


def members(recipe: Recipe) -> list[SuiteMember]:
    """Every single change that means something in this recipe; the recipe itself is `base`."""
    if recipe.mixture.on and recipe.loss.alpha2_kv > 0:
        changes = phases.ablations(recipe)
    elif recipe.explicit.enabled:
        changes = _explicit(recipe)
    else:
        changes = [*_grid(recipe), *_score(recipe), *_distances(recipe, DISTANCES), *_switches(recipe)]
    return [SuiteMember("base", "the recipe as it is"), *changes]


def _explicit(recipe: Recipe) -> list[SuiteMember]:
    """Keys or values alone, the lengths kept, the distances, and no guard."""
    explicit = recipe.explicit
    if recipe.loss.alpha2_kv == 0:
        return []
    changes = phases.parts_alone(recipe)
    if recipe.rkv.method != "full":
        lengths = sorted({max(1, explicit.target_len // 2), 2 * explicit.target_len})
        changes += [SuiteMember(f"keep_{n}", f"{n} entries kept", (f"explicit.target_len={n}",)) for n in lengths]
    changes += _distances(recipe, (*DISTANCES, "cosine", "mercator", "hybrid"))
    if recipe.projector.direction == "teacher_to_student":
        changes += [SuiteMember("no_guard", "nothing keeps the projector from collapsing", ("projector.guard=none",))]
    return changes


def _grid(recipe: Recipe) -> list[SuiteMember]:
    """Half, equal and double M against no, one, equal and double T."""
    latents, rounds = recipe.latent.num_tokens, recipe.latent.num_iterations
    if latents == 0 or recipe.latent.method == "sequential":
        return []
    sizes = product(sorted({max(1, latents // 2), latents, 2 * latents}), sorted({0, 1, rounds, 2 * rounds}))
    return [
        SuiteMember(
            f"M{m}_T{t}", f"{m} latents, {t} iterations", (f"latent.num_tokens={m}", f"latent.num_iterations={t}")
        )
        for m, t in sizes
        if (m, t) != (latents, rounds)
    ]


def _score(recipe: Recipe) -> list[SuiteMember]:
    """R-KV from redundancy alone (0) to importance alone (1)."""
    if recipe.loss.alpha2_kv == 0:
        return []
    return [
        SuiteMember(f"lambda_{value:g}", f"R-KV, lambda {value:g}", ("rkv.method=rkv", f"rkv.lambda={value:g}"))
        for value in LAMBDAS
        if (recipe.rkv.method, recipe.rkv.lambda_) != ("rkv", value)
    ]


def _distances(recipe: Recipe, kinds: tuple[str, ...]) -> list[SuiteMember]:
    if recipe.loss.alpha2_kv == 0:
        return []
    others = [kind for kind in kinds if kind != recipe.loss.kv_loss_type]
    return [SuiteMember(f"loss_{kind}", f"KV loss {kind}", (f"loss.kv_loss_type={kind}",)) for kind in others]


def _switches(recipe: Recipe) -> list[SuiteMember]:
    """Projection, last step and standard deviation, each the other way round."""
    latent, loss, last = recipe.latent, recipe.loss, recipe.dataset.drop_last_step
    spread = bool(loss.alpha1_codi or (loss.alpha2_kv and loss.kv_scale is None))  # the teacher's divides something
    changes: list[SuiteMember] = []
    for applies, key, current, on, off in (
        (latent.num_tokens and latent.num_iterations, "loss.use_projection", loss.use_projection,
         ("projection", "projection"), ("no_projection", "no projection")),
        (True, "dataset.drop_last_step", last, ("drop_last_step", "drop last step"), ("keep_last_step", "keep last step")),
        (spread, "loss.layerwise_std", loss.layerwise_std,
         ("layerwise_std", "one per layer"), ("no_std", "no division by the teacher's spread")),
    ):  # fmt: skip
        if applies:
            name, title = off if current else on
            changes.append(SuiteMember(name, title, (f"{key}={'false' if current else 'true'}",)))
    if spread and loss.layerwise_std and loss.std_scope == "sample":
        changes += [SuiteMember("std_batch", "one spread per batch, as the parents have it", ("loss.std_scope=batch",))]
    return changes


SUITE = Suite(
    "ablations",
    "M x T, lambda, loss type, projection, last step, standard deviation; of several teachers: routing, number, layers",
    lambda recipe: "explicit_ablations" if recipe.explicit.enabled else "ablations",
    members,
    by_layer=phases.by_layer,
    analyze=None,
)
