"""Settings without effect are errors: one row per reason.

A setting is judged only against a setting made at the same place or before it. A recipe that chooses a compressor is
not at fault when the command line then switches the key/value term off; a command line that does both is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from kava.config.schema import BUILTIN_DATASETS, DISTANCES, METHODS, Recipe


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


def _no_layers_compared(recipe: Recipe) -> bool:
    """CODI and CKA go layer by layer in both forms."""
    whole = recipe.explicit.form == "aggregated" or recipe.loss.alpha2_kv == 0
    return whole and recipe.loss.alpha1_codi == recipe.explicit.cka_weight == 0


def _student_alone_is_trained(recipe: Recipe) -> bool:
    """No projector, no map of CODI's, no weights of layers."""
    explicit, loss, projector = recipe.explicit, recipe.loss, recipe.projector
    mapped = projector.direction != "none" and projector.trainable and (loss.alpha2_kv > 0 or loss.alpha1_codi > 0)
    weighted = explicit.form == "aggregated" and explicit.aggregation == "weighted" and explicit.use_all_layers
    return not mapped and not (weighted and loss.alpha2_kv > 0)


RULES: tuple[Rule, ...] = (
    Rule(("explicit.", "teacher.", "projector."), ("explicit.enabled",), lambda r: not r.explicit.enabled,
         "only the explicit line has a separate teacher"),
    Rule(("latent.", "loss.teacher_ce", "loss.use_projection", "training.packed", "rkv.rotary", "rkv.full_slots"),
         ("explicit.enabled",), lambda r: r.explicit.enabled, "the explicit line has no latents"),
    Rule(("explicit.form", "explicit.choose", "explicit.aggregation", "explicit.use_all_layers", "explicit.parts",
          "explicit.layers", "explicit.target_len", "explicit.attention_weighted", "explicit.attention_weighted_after",
          "projector.mlp_ratio", "projector.dropout", "projector.init", "projector.guard", "projector.guard_weight",
          "projector.match_start"),
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
    Rule(("projector.mlp_ratio", "projector.dropout", "projector.guard", "projector.guard_weight",
          "projector.match_start"), ("projector.direction",), lambda r: r.projector.direction != "teacher_to_student",
         "only teacher_to_student has an MLP that could collapse"),
    Rule(("projector.init", "projector.trainable"), ("projector.direction",),
         lambda r: r.projector.direction == "none", "nothing is projected"),
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


def without_effect(recipe: Recipe, changed: Mapping[str, int]) -> tuple[str, str] | None:
    """The first key that was changed and does nothing, with the reason; None if every change matters.

    `changed` maps each key that differs from its default to the place (a rising number) that set it.
    """
    for rule in RULES:
        if not rule.idle(recipe):
            continue
        blame = max((changed[cause] for cause in rule.cause if cause in changed), default=-1)
        for key, place in changed.items():
            named = any(key.startswith(name) if name.endswith(".") else key == name for name in rule.keys)
            if named and place >= blame:
                return key, f"{rule.reason} ({_because(recipe, rule)})"
    return None


def _because(recipe: Recipe, rule: Rule) -> str:
    """The values of the causes, e.g. "loss.alpha2_kv = 0"."""
    values = []
    for cause in rule.cause:
        section, _, name = cause.partition(".")
        values.append(f"{cause} = {getattr(getattr(recipe, section), name)}")
    return ", ".join(values)
