"""Settings without effect are errors: one row per reason.

A setting is judged only against a setting made at the same place or before it. A recipe that chooses a compressor is
not at fault when the command line then switches the key/value term off; a command line that does both is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from kava.config.fields import BUILTIN_DATASETS, DISTANCES, METHODS
from kava.config.schema import Recipe


class Rule(NamedTuple):
    """`keys` (or whole sections, ending in a dot) do nothing where `idle` holds; `cause` names what makes it so."""

    keys: tuple[str, ...]
    cause: tuple[str, ...]
    idle: Callable[[Recipe], bool]
    reason: str


def _uses_lambda(recipe: Recipe) -> bool:
    return recipe.rkv.method in ("rkv", "rkv_original") or recipe.rkv.method not in METHODS


def _never_divided(recipe: Recipe) -> bool:
    """Neither CODI nor a KV term of elementwise distances is there to be divided by a standard deviation."""
    loss = recipe.loss
    return loss.alpha1_codi == 0 and (loss.alpha2_kv == 0 or loss.kv_loss_type not in DISTANCES)


def _standard_deviation_idle(recipe: Recipe) -> bool:
    """std_scope matters to CODI always, to the KV term only layer by layer."""
    return _never_divided(recipe) or (recipe.loss.alpha1_codi == 0 and not recipe.loss.layerwise_std)


def _no_mixture(recipe: Recipe) -> bool:
    return not recipe.mixture.on


def _not_routed(recipe: Recipe) -> bool:
    return recipe.mixture.fusion == "fixed"


def _one_way_of_seeing(recipe: Recipe) -> bool:
    """An MLP stands on the teacher's side, or the adapters of a mixture do."""
    return recipe.projector.direction != "teacher_to_student" and not recipe.mixture.on


def _no_layers_compared(recipe: Recipe) -> bool:
    """CODI and CKA go layer by layer in both forms."""
    whole = recipe.explicit.form == "aggregated" or recipe.loss.alpha2_kv == 0
    return whole and recipe.loss.alpha1_codi == recipe.explicit.cka_weight == 0


def _student_alone_is_trained(recipe: Recipe) -> bool:
    """No projector, no map of CODI's, no weights of layers, no adapters or router."""
    explicit, loss, projector, mixture = recipe.explicit, recipe.loss, recipe.projector, recipe.mixture
    if mixture.on and loss.alpha2_kv > 0 and (projector.trainable or mixture.fusion == "learnable"):
        return False
    mapped = projector.direction != "none" and projector.trainable and (loss.alpha2_kv > 0 or loss.alpha1_codi > 0)
    weighted = explicit.form == "aggregated" and explicit.aggregation == "weighted" and explicit.use_all_layers
    return not mapped and not (weighted and loss.alpha2_kv > 0)


RULES: tuple[Rule, ...] = (
    Rule(("explicit.", "teacher."), ("explicit.enabled",), lambda r: not r.explicit.enabled,
         "only the explicit line has a separate teacher"),
    Rule(("projector.",), ("explicit.enabled", "mixture.teachers"),
         lambda r: not r.explicit.enabled and not r.mixture.on, "there is no separate teacher"),
    Rule(("latent.", "loss.teacher_ce", "loss.use_projection", "training.packed", "rkv.rotary", "rkv.full_slots"),
         ("explicit.enabled",), lambda r: r.explicit.enabled, "the explicit line has no latents"),
    Rule(("explicit.form", "explicit.choose", "explicit.aggregation", "explicit.use_all_layers", "explicit.parts",
          "explicit.layers", "explicit.target_len", "explicit.attention_weighted", "explicit.attention_weighted_after",
          "explicit.lambda_k", "explicit.lambda_v", "explicit.beta_cos", "explicit.gamma_kl", "explicit.gamma_ramp",
          "projector.mlp_ratio", "projector.dropout", "projector.init", "projector.guard", "projector.guard_weight",
          "projector.match_start", "mixture."),
         ("loss.alpha2_kv",), lambda r: r.loss.alpha2_kv == 0, "the key/value term is off"),
    Rule(("projector.direction", "projector.trainable"), ("loss.alpha2_kv", "loss.alpha1_codi"),
         lambda r: r.loss.alpha2_kv == r.loss.alpha1_codi == 0, "nothing is projected"),
    Rule(("projector.learning_rate",),
         ("projector.direction", "projector.trainable", "explicit.aggregation", "loss.alpha2_kv", "loss.alpha1_codi"),
         _student_alone_is_trained, "nothing is trained beside the student"),
    Rule(("explicit.aggregation", "explicit.use_all_layers"), ("explicit.form",),
         lambda r: r.explicit.form == "per_layer", "layers are compared one by one"),
    Rule(("explicit.layers",), ("explicit.form",), lambda r: r.explicit.form == "aggregated",
         "all layers make one vector"),
    Rule(("explicit.layer_map",), ("explicit.form", "loss.alpha2_kv", "loss.alpha1_codi", "explicit.cka_weight"),
         _no_layers_compared, "no layer is compared with the teacher's"),
    Rule(("explicit.target_len",), ("rkv.method",), lambda r: r.explicit.enabled and r.rkv.method == "full",
         "full keeps every entry"),
    Rule(("explicit.attention_weighted_after",), ("explicit.attention_weighted",),
         lambda r: not r.explicit.attention_weighted, "entries are not weighted"),
    Rule(("explicit.cka_layers",), ("explicit.cka_weight",), lambda r: r.explicit.cka_weight == 0,
         "the CKA term is off"),
    Rule(("projector.mlp_ratio", "projector.dropout"), ("projector.direction",),
         lambda r: r.projector.direction != "teacher_to_student", "only teacher_to_student has an MLP"),
    Rule(("projector.guard", "projector.guard_weight", "projector.match_start"),
         ("projector.direction", "mixture.teachers"), _one_way_of_seeing,
         "nothing is trained on the teacher's side, so nothing could collapse"),
    Rule(("projector.init",), ("projector.direction",), lambda r: r.projector.direction == "none",
         "nothing is projected"),
    Rule(("projector.trainable",), ("projector.direction", "mixture.teachers"),
         lambda r: r.projector.direction == "none" and not r.mixture.on, "nothing is projected"),
    Rule(("mixture.",), ("mixture.teachers",), _no_mixture, "there is one teacher"),
    Rule(("teacher.", "explicit.layer_map"), ("mixture.teachers",), lambda r: r.mixture.on,
         "the teachers are those of mixture.teachers"),
    Rule(("mixture.weights",), ("mixture.fusion",), lambda r: r.mixture.fusion != "fixed", "weights are not fixed"),
    Rule(("mixture.router", "mixture.router_layers", "mixture.router_dropout", "mixture.query", "mixture.per_token",
          "mixture.entropy", "mixture.entropy_weight"),
         ("mixture.fusion",), lambda r: r.mixture.fusion != "learnable", "no router is trained"),
    Rule(("mixture.similarity", "mixture.prototype", "mixture.centres", "mixture.prototype_examples"),
         ("mixture.fusion",), lambda r: r.mixture.fusion != "similarity", "nothing is compared with prototypes"),
    Rule(("mixture.per_layer", "mixture.temperature", "mixture.temperature_step", "mixture.temperature_floor",
          "mixture.collapse_alarm"), ("mixture.fusion",), _not_routed, "weights are fixed"),
    Rule(("mixture.router_layers", "mixture.router_dropout"), ("mixture.router",),
         lambda r: r.mixture.router != "mlp", "only the mlp has hidden layers"),
    Rule(("mixture.entropy_weight",), ("mixture.entropy",), lambda r: r.mixture.entropy == "none",
         "the weights' entropy is left alone"),
    Rule(("mixture.temperature_floor",), ("mixture.temperature_step",), lambda r: r.mixture.temperature_step == 0,
         "the temperature stays as it is"),
    Rule(("mixture.centres",), ("mixture.prototype",), lambda r: r.mixture.prototype != "kmeans", "only kmeans has centres"),
    Rule(("mixture.layer_map_files",), ("mixture.layer_map",), lambda r: r.mixture.layer_map != "cka",
         "the layer map is made without them"),
    Rule(("mixture.iou_threshold",), ("mixture.time",), lambda r: r.mixture.time == "truncate",
         "tokens are paired by their numbers"),
    Rule(("mixture.heads", "mixture.rope", "explicit.parts", "explicit.lambda_k", "explicit.lambda_v",
          "explicit.beta_cos", "explicit.attention_weighted", "explicit.attention_weighted_after", "loss.kv_loss_type",
          "loss.layerwise_std", "loss.std_scope"), ("mixture.space",), lambda r: r.mixture.on and r.mixture.space == "z",
         "codes are compared, not keys and values"),
    Rule(("mixture.z_size", "mixture.z_loss", "mixture.z_variance"), ("mixture.space",),
         lambda r: r.mixture.space == "kv", "keys and values are compared, not codes"),
    Rule(("explicit.gamma_ramp",), ("explicit.gamma_kl",), lambda r: r.explicit.gamma_kl == 0, "that term is off"),
    Rule(("explicit.ce_ramp",), ("loss.student_ce",), lambda r: r.loss.student_ce == 0, "that term is off"),
    Rule(("projector.guard", "projector.guard_weight"), ("projector.trainable",),
         lambda r: not r.projector.trainable, "the projector is fixed"),
    Rule(("projector.guard_weight",), ("projector.guard",), lambda r: r.projector.guard == "none",
         "there is no guard"),
    Rule(("teacher.name", "teacher.revision", "teacher.dtype", "teacher.quantization", "teacher.device_map",
          "teacher.trust_remote_code"), ("teacher.store",), lambda r: r.teacher.store is not None,
         "the teacher's keys and values are read from a folder"),
    Rule(("teacher.",), ("loss.alpha2_kv", "loss.alpha1_codi", "explicit.cka_weight"),
         lambda r: r.loss.alpha2_kv == r.loss.alpha1_codi == r.explicit.cka_weight == 0, "no term needs a teacher"),
    Rule(("dataset.generator.",), ("dataset.name",), lambda r: r.dataset.name not in BUILTIN_DATASETS,
         f"only the built-in data sets ({', '.join(BUILTIN_DATASETS)}) are generated"),
    Rule(("dataset.config", "dataset.val_size", "dataset.streaming"), ("dataset.name",),
         lambda r: r.dataset.name in BUILTIN_DATASETS, "a built-in data set is generated (see dataset.generator)"),
    Rule(("latent.num_iterations", "latent.method", "loss.use_projection"), ("latent.num_tokens",),
         lambda r: r.latent.num_tokens == 0, "there are no latents"),
    Rule(("latent.num_iterations",), ("latent.method",), lambda r: r.latent.method == "sequential",
         "sequential decoding makes one latent after the other"),
    Rule(("loss.use_projection",), ("latent.num_iterations", "latent.method"),
         lambda r: r.latent.num_iterations == 0 and r.latent.method == "jacobi", "pause tokens are not projected"),
    Rule(("rkv.", "loss.kv_loss_type"), ("loss.alpha2_kv",), lambda r: r.loss.alpha2_kv == 0,
         "the key/value term is off"),
    Rule(("loss.codi_loss_type",), ("loss.alpha1_codi",), lambda r: r.loss.alpha1_codi == 0, "the CODI term is off"),
    Rule(("loss.layerwise_std",), ("loss.alpha1_codi", "loss.alpha2_kv", "loss.kv_loss_type"), _never_divided,
         "nothing is divided by a standard deviation"),
    Rule(("loss.std_scope",), ("loss.alpha1_codi", "loss.alpha2_kv", "loss.layerwise_std", "loss.kv_loss_type"),
         _standard_deviation_idle, "nothing is divided by a standard deviation"),
    Rule(("rkv.lambda",), ("rkv.method",), lambda r: not _uses_lambda(r), "this compressor has no score"),
    Rule(("rkv.crop_keep",), ("rkv.method",), lambda r: r.rkv.method != "crop", "only crop has two ends"),
    Rule(("rkv.full_slots",), ("rkv.method",), lambda r: r.rkv.method != "full", "only full can fill every slot"),
    Rule(("lora.r", "lora.alpha", "lora.dropout", "lora.target_modules"), ("lora.enabled",),
         lambda r: not r.lora.enabled, "every weight is trained"),
    Rule(("training.epochs",), ("training.max_steps",), lambda r: r.training.max_steps is not None,
         "training.max_steps decides"),
    Rule(("training.warmup_ratio",), ("training.lr_scheduler",), lambda r: r.training.lr_scheduler == "constant",
         "a constant schedule does not warm up"),
    Rule(("evaluation.top_p",), ("evaluation.temperature",), lambda r: r.evaluation.temperature == 0,
         "temperature 0 is greedy"),
    Rule(("logging.project",), ("logging.report_to",),
         lambda r: not {"wandb", "trackio"} & set(r.logging.report_to), "only wandb and trackio have projects"),
)  # fmt: skip


def without_effect(recipe: Recipe, changed: Mapping[str, int], back: Collection[str] = ()) -> tuple[str, str] | None:
    """The first key that was changed and does nothing, with the reason; None if every change matters.

    `changed` maps each key that was set to the place (a rising number) that set it last; those of `back`, set to their
    defaults again, are causes and not judged.
    """
    for rule in RULES:
        if not rule.idle(recipe):
            continue
        blame = max((changed[cause] for cause in rule.cause if cause in changed), default=-1)
        for key, place in changed.items():
            named = any(key.startswith(name) if name.endswith(".") else key == name for name in rule.keys)
            if named and place >= blame and key not in back:
                return key, f"{rule.reason} ({_because(recipe, rule)})"
    return None


def _because(recipe: Recipe, rule: Rule) -> str:
    """The values of the causes, e.g. "loss.alpha2_kv = 0"."""
    values = []
    for cause in rule.cause:
        section, _, name = cause.partition(".")
        value = getattr(getattr(recipe, section), name)
        shown = [teacher.label for teacher in value] if cause == "mixture.teachers" else value
        values.append(f"{cause} = {shown}")
    return ", ".join(values)
