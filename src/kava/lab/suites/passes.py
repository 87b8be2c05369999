"""How many forward passes of training a recipe costs: the measure by which runs of unequal numbers of updates can be equal."""

from collections.abc import Mapping
from typing import Any

STUDENT_TERMS = ("student_ce", "alpha1_codi", "alpha2_kv", "step_decoder")


def passes_per_update(recipe: Mapping[str, Any]) -> float | None:
    """Passes of a micro-batch in the packed form: 1 with the text and the slots, T rounds (or M, one after the other), and
    1 of a decoder of steps; of a curriculum of stages the mean over the run. None where the recipe does not say it.

    A pass over M slots is cheaper than one over a text; FLOPs are `kava bench train`'s.
    """
    loss, latent, explicit = (recipe.get(name) or {} for name in ("loss", "latent", "explicit"))
    if explicit.get("enabled"):
        return 1
    if not {"num_tokens", "num_iterations", "method"} <= set(latent) or "student_ce" not in loss:
        return None
    decoder = 1 if loss.get("step_decoder") else 0
    if latent["num_tokens"] == 0 or not any(loss.get(term) for term in STUDENT_TERMS):
        return 1 + decoder
    if share := latent.get("stage_share"):
        stages = range(0, latent["num_tokens"] + 1, latent["stage_latents"])
        return 1 + share * sum(stages) + (1 - share * len(stages)) * latent["num_tokens"]
    rounds = latent["num_tokens"] if latent["method"] == "sequential" else latent["num_iterations"]
    return 1 + int(rounds) + decoder
