"""When a setting is ignored, and why. `knob(..., idle=idle.KV_OFF)` says which of these rules a setting has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kava.config.fields import BUILTIN_DATASETS, DISTANCES, METHODS, Idle

if TYPE_CHECKING:
    from kava.config.schema import Recipe


def when(cause: str, value: Any, reason: str) -> Idle:
    """Ignored where the setting `cause` has this value."""
    return _judged(cause, reason, lambda current: current == value)


def unless(cause: str, value: Any, reason: str) -> Idle:
    """Ignored where the setting `cause` has another value."""
    return _judged(cause, reason, lambda current: current != value)


def _judged(cause: str, reason: str, ignored: Callable[[Any], bool]) -> Idle:
    section, _, name = cause.partition(".")
    return Idle(lambda recipe: ignored(getattr(getattr(recipe, section), name)), reason, cause)


# which line, which teachers
NOT_EXPLICIT = when("explicit.enabled", False, "only the explicit line has a separate teacher")
EXPLICIT = when("explicit.enabled", True, "the explicit line has no latents")
ONE_TEACHER = when("mixture.teachers", (), "there is one teacher")
MIXTURE = unless("mixture.teachers", (), "the teachers are those of mixture.teachers")
OWN_TEACHER = Idle(
    lambda r: not r.explicit.enabled and not r.mixture.on,
    "there is no separate teacher", "explicit.enabled", "mixture.teachers",
)  # fmt: skip
STORED = unless("teacher.store", None, "the teacher's keys and values are read from a folder")

# which terms of the loss
KV_OFF = when("loss.alpha2_kv", 0, "the key/value term is off")
CODI_OFF = when("loss.alpha1_codi", 0, "the CODI term is off")
CKA_OFF = when("explicit.cka_weight", 0, "the CKA term is off")
GAMMA_OFF = when("explicit.gamma_kl", 0, "that term is off")
CE_OFF = when("loss.student_ce", 0, "that term is off")
NO_TEACHER_TERM = Idle(
    lambda r: r.loss.alpha2_kv == r.loss.alpha1_codi == r.explicit.cka_weight == 0,
    "no term needs a teacher", "loss.alpha2_kv", "loss.alpha1_codi", "explicit.cka_weight",
)  # fmt: skip


def _no_std(recipe: Recipe) -> bool:
    """Neither CODI nor a KV term of elementwise distances is there to be divided by a standard deviation."""
    loss = recipe.loss
    return loss.alpha1_codi == 0 and (loss.alpha2_kv == 0 or loss.kv_loss_type not in DISTANCES)


NO_STD = Idle(
    _no_std, "nothing is divided by a standard deviation", "loss.alpha1_codi", "loss.alpha2_kv", "loss.kv_loss_type"
)
NO_STD_SCOPE = Idle(  # the scope of the KV term matters only where each layer has its own std
    lambda r: _no_std(r) or (r.loss.alpha1_codi == 0 and not r.loss.layerwise_std),
    NO_STD.reason, "loss.alpha1_codi", "loss.alpha2_kv", "loss.layerwise_std", "loss.kv_loss_type",
)  # fmt: skip

# latents and compressors
NO_LATENTS = when("latent.num_tokens", 0, "there are no latents")
SEQUENTIAL = when("latent.method", "sequential", "sequential decoding makes one latent after the other")
PAUSE_TOKENS = Idle(
    lambda r: r.latent.num_iterations == 0 and r.latent.method == "jacobi",
    "pause tokens are not projected", "latent.num_iterations", "latent.method",
)  # fmt: skip
NO_SCORE = Idle(
    lambda r: r.rkv.method in METHODS and r.rkv.method not in ("rkv", "rkv_original"),
    "this compressor has no score", "rkv.method",
)  # fmt: skip
NOT_CROP = unless("rkv.method", "crop", "only crop has two ends")
NOT_FULL = unless("rkv.method", "full", "only full can fill every slot")
ALL_KEPT = Idle(lambda r: r.explicit.enabled and r.rkv.method == "full", "full keeps every entry", "rkv.method")

# the explicit line's comparison
PER_LAYER = when("explicit.form", "per_layer", "layers are compared one by one")
AGGREGATED = when("explicit.form", "aggregated", "all layers make one vector")
NOT_WEIGHTED = when("explicit.attention_weighted", False, "entries are not weighted")
NO_LAYERS_COMPARED = Idle(  # CODI and CKA compare layer by layer in both forms
    lambda r: r.loss.alpha1_codi == r.explicit.cka_weight == 0
    and (r.explicit.form == "aggregated" or r.loss.alpha2_kv == 0),
    "no layer is compared with the teacher's",
    "explicit.form", "loss.alpha2_kv", "loss.alpha1_codi", "explicit.cka_weight",
)  # fmt: skip

# the projector
NO_PROJECTION = Idle(
    lambda r: r.loss.alpha2_kv == r.loss.alpha1_codi == 0, "nothing is projected", "loss.alpha2_kv", "loss.alpha1_codi"
)
NO_DIRECTION = when("projector.direction", "none", "nothing is projected")
NO_ADAPTERS = Idle(
    lambda r: r.projector.direction == "none" and not r.mixture.on,
    "nothing is projected", "projector.direction", "mixture.teachers",
)  # fmt: skip
NO_MLP = unless("projector.direction", "teacher_to_student", "only teacher_to_student has an MLP")
NO_COLLAPSE = Idle(
    lambda r: r.projector.direction != "teacher_to_student" and not r.mixture.on,
    "nothing is trained on the teacher's side, so nothing could collapse", "projector.direction", "mixture.teachers",
)  # fmt: skip
PROJECTOR_FIXED = when("projector.trainable", False, "the projector is fixed")
NO_GUARD = when("projector.guard", "none", "there is no guard")


def _only_student_trained(recipe: Recipe) -> bool:
    """No projector, no projection of the CODI term, no weights of layers, no adapters or router are trained."""
    explicit, loss, projector, mixture = recipe.explicit, recipe.loss, recipe.projector, recipe.mixture
    if mixture.on and loss.alpha2_kv > 0 and (projector.trainable or mixture.fusion == "learnable"):
        return False
    projected = projector.direction != "none" and projector.trainable and (loss.alpha2_kv > 0 or loss.alpha1_codi > 0)
    weighted = explicit.form == "aggregated" and explicit.aggregation == "weighted" and explicit.use_all_layers
    return not projected and not (weighted and loss.alpha2_kv > 0)


STUDENT_ALONE = Idle(
    _only_student_trained, "nothing is trained beside the student",
    "projector.direction", "projector.trainable", "explicit.aggregation", "loss.alpha2_kv", "loss.alpha1_codi",
)  # fmt: skip

# a mixture
FIXED_FUSION = when("mixture.fusion", "fixed", "weights are fixed")
NOT_FIXED = unless("mixture.fusion", "fixed", "weights are not fixed")
NO_ROUTER = unless("mixture.fusion", "learnable", "no router is trained")
NO_MLP_ROUTER = unless("mixture.router", "mlp", "only the mlp has hidden layers")
NO_PROTOTYPES = unless("mixture.fusion", "similarity", "nothing is compared with prototypes")
NO_CENTRES = unless("mixture.prototype", "kmeans", "only kmeans has centres")
ENTROPY_OFF = when("mixture.entropy", "none", "the weights' entropy is left alone")
TEMPERATURE_STAYS = when("mixture.temperature_step", 0, "the temperature stays as it is")
NO_MAP_FILES = unless("mixture.layer_map", "cka", "the layer map is made without them")
PAIRED = when("mixture.time", "truncate", "tokens are paired by their numbers")
CODES = Idle(
    lambda r: r.mixture.on and r.mixture.space == "z", "codes are compared, not keys and values", "mixture.space"
)
NO_CODES = when("mixture.space", "kv", "keys and values are compared, not codes")

# data, training, logs
NOT_BUILT_IN = Idle(
    lambda r: r.dataset.name not in BUILTIN_DATASETS,
    f"only the built-in data sets ({', '.join(BUILTIN_DATASETS)}) are generated", "dataset.name",
)  # fmt: skip
BUILT_IN = Idle(
    lambda r: r.dataset.name in BUILTIN_DATASETS,
    "a built-in data set is generated (see dataset.generator)", "dataset.name",
)  # fmt: skip
ALL_WEIGHTS = when("lora.enabled", False, "every weight is trained")
MAX_STEPS = unless("training.max_steps", None, "training.max_steps decides")
NO_WARMUP = when("training.lr_scheduler", "constant", "a constant schedule does not warm up")
GREEDY = when("evaluation.temperature", 0, "temperature 0 is greedy")
NO_TRACKER = Idle(
    lambda r: not {"wandb", "trackio"} & set(r.logging.report_to),
    "only wandb and trackio have projects", "logging.report_to",
)  # fmt: skip
