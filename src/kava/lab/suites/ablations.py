"""One thing at a time away from the recipe, and the grid of M and T."""

from __future__ import annotations

from kava.config import Recipe
from kava.lab.plan import Member, Suite
from kava.lab.suites import phases

LAMBDAS = (0.0, 0.1, 0.5, 1.0)
DISTANCES = ("l1", "mse", "smooth_l1")


def members(recipe: Recipe) -> tuple[Member, ...]:
    """What there is to change in this recipe; the recipe itself is `base`."""
    if recipe.mixture.on and recipe.loss.alpha2_kv > 0:
        mode = "cot" if recipe.explicit.enabled else "latent"
        return (Member("base", "the recipe as it is", mode=mode), *phases.ablations(recipe))
    if recipe.explicit.enabled:
        return (Member("base", "the recipe as it is", mode="cot"), *_explicit(recipe))
    return (
        Member("base", "the recipe as it is"),
        *_grid(recipe),
        *_score(recipe),
        *_distances(recipe),
        *_switches(recipe),
    )


def _explicit(recipe: Recipe) -> list[Member]:
    """Keys or values alone, the lengths kept, the distances, and the guard where there is one."""
    explicit, found = recipe.explicit, []
    if recipe.loss.alpha2_kv == 0:
        return []
    found += [
        (f"only_{part}", f"only {part}", f"explicit.parts={part}") for part in ("k", "v") if part != explicit.parts
    ]
    if recipe.rkv.method != "full":
        lengths = sorted({max(1, explicit.target_len // 2), 2 * explicit.target_len})
        found += [(f"keep_{n}", f"{n} entries kept", f"explicit.target_len={n}") for n in lengths]
    kinds = (*DISTANCES, "cosine", "mercator", "hybrid")
    found += [
        (f"loss_{kind}", f"KV loss {kind}", f"loss.kv_loss_type={kind}")
        for kind in kinds
        if kind != recipe.loss.kv_loss_type
    ]
    if recipe.projector.direction == "teacher_to_student":
        found.append(("no_guard", "nothing keeps the projector from collapsing", "projector.guard=none"))
    return [Member(name, title, (setting,), mode="cot") for name, title, setting in found]


def _grid(recipe: Recipe) -> list[Member]:
    """Half, equal and double M against no, one, equal and double T."""
    latents, rounds = recipe.latent.num_tokens, recipe.latent.num_iterations
    if latents == 0 or recipe.latent.method == "sequential":
        return []
    lengths = sorted({max(1, latents // 2), latents, 2 * latents})
    times = sorted({0, 1, rounds, 2 * rounds})
    return [
        Member(f"M{m}_T{t}", f"{m} latents, {t} iterations", (f"latent.num_tokens={m}", f"latent.num_iterations={t}"))
        for m in lengths
        for t in times
        if (m, t) != (latents, rounds)
    ]


def _score(recipe: Recipe) -> list[Member]:
    """R-KV from redundancy alone (0) to importance alone (1)."""
    if recipe.loss.alpha2_kv == 0:
        return []
    return [
        Member(f"lambda_{value:g}", f"R-KV, lambda {value:g}", ("rkv.method=rkv", f"rkv.lambda={value:g}"))
        for value in LAMBDAS
        if (recipe.rkv.method, recipe.rkv.lambda_) != ("rkv", value)
    ]


def _distances(recipe: Recipe) -> list[Member]:
    if recipe.loss.alpha2_kv == 0:
        return []
    return [
        Member(f"loss_{kind}", f"KV loss {kind}", (f"loss.kv_loss_type={kind}",))
        for kind in DISTANCES
        if kind != recipe.loss.kv_loss_type
    ]


def _switches(recipe: Recipe) -> list[Member]:
    """Projection, last step and standard deviation, each the other way round."""
    loss, dataset = recipe.loss, recipe.dataset
    on = {True: "true", False: "false"}
    found = []
    if recipe.latent.num_tokens and recipe.latent.num_iterations:
        name = "no_projection" if loss.use_projection else "projection"
        found.append(Member(name, name.replace("_", " "), (f"loss.use_projection={on[not loss.use_projection]}",)))
    last = "keep_last_step" if dataset.drop_last_step else "drop_last_step"
    found.append(Member(last, last.replace("_", " "), (f"dataset.drop_last_step={on[not dataset.drop_last_step]}",)))
    if loss.alpha2_kv or loss.alpha1_codi:
        name = "no_std" if loss.layerwise_std else "layerwise_std"
        std = f"loss.layerwise_std={on[not loss.layerwise_std]}"
        found.append(
            Member(name, "no division by the teacher's spread" if loss.layerwise_std else "one per layer", (std,))
        )
        if loss.layerwise_std and loss.std_scope == "sample":
            found.append(Member("std_batch", "one spread per batch, as the parents have it", ("loss.std_scope=batch",)))
    return found


SUITE = Suite(
    "ablations",
    "M x T, lambda, loss type, projection, last step, standard deviation; of several teachers: routing, number, layers",
    lambda recipe: "explicit_ablations" if recipe.explicit.enabled else "ablations",
    members,
    by_layer=phases.by_layer,
)
