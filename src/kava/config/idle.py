"""When a setting is ignored, and why. `knob(..., idle=idle.KV_OFF)` says which of these rules a setting has."""

from collections.abc import Callable
from typing import Any

from kava.config.fields import BUILTIN_DATASETS, DISTANCES, LONG_CHAINS, METHODS, MODULAR, Idle

Recipe = Any  # schema.Recipe, whose settings carry these rules


def when(cause: str, reason: str, *values: Any) -> Idle:
    """Ignored if the setting `cause` has one of these values."""
    return _judged(cause, reason, lambda value: value in values)


def unless(cause: str, reason: str, *values: Any) -> Idle:
    """Ignored if the setting `cause` has none of these values; what a package.module:Name reads is not known here."""
    return _judged(cause, reason, lambda value: value not in values and ":" not in str(value))


def every(reason: str, *rules: Idle) -> Idle:
    """Ignored if all of these rules hold."""
    causes = [cause for rule in rules for cause in rule.causes]
    return Idle(lambda recipe: all(rule.when(recipe) for rule in rules), reason, *causes)


def _judged(cause: str, reason: str, ignored: Callable[[Any], bool]) -> Idle:
    section, _, name = cause.partition(".")
    return Idle(lambda recipe: ignored(getattr(getattr(recipe, section), name)), reason, cause)


# which line, which teachers
NOT_EXPLICIT = when("explicit.enabled", "only the explicit line has a separate teacher", False)
EXPLICIT = when("explicit.enabled", "the explicit line has no latents", True)
LATENT_LAYERS = when("explicit.enabled", "latents are compared at all layers from the start", False)
ONE_TEACHER = when("mixture.teachers", "there is one teacher", ())
MIXTURE = unless("mixture.teachers", "the teachers are those of mixture.teachers", ())
OWN_TEACHER = every("there is no separate teacher", NOT_EXPLICIT, ONE_TEACHER)
STORED = unless("teacher.store", "the teacher's keys and values are read from a folder", None)

# which terms of the loss
KV_OFF = when("loss.alpha2_kv", "the key/value term is off", 0)
CODI_OFF = when("loss.alpha1_codi", "the CODI term is off", 0)
CKA_OFF = when("explicit.cka_weight", "the CKA term is off", 0)
GAMMA_OFF = when("explicit.gamma_kl", "that term is off", 0)
NO_DECODER = when("loss.step_decoder", "there is no decoder of steps", 0)
CE_OFF = when("loss.student_ce", "that term is off", 0)
NO_TEACHER_TERM = every("no term needs a teacher", KV_OFF, CODI_OFF, CKA_OFF)


def _by_number(recipe: Recipe) -> bool:
    """There is a KV term, and it compares number by number, which a standard deviation can divide."""
    return recipe.loss.alpha2_kv > 0 and recipe.loss.kv_loss_type in DISTANCES


NO_STD = Idle(  # neither the CODI term nor the KV term asks layerwise_std
    lambda r: r.loss.alpha1_codi == 0 and not (_by_number(r) and r.loss.kv_scale is None),
    "nothing is divided by a standard deviation that it decides on",
    "loss.alpha1_codi", "loss.alpha2_kv", "loss.kv_loss_type", "loss.kv_scale",
)  # fmt: skip
NO_STD_SCOPE = Idle(  # the scope of the KV term matters only where each layer has its own std
    lambda r: r.loss.alpha1_codi == 0 and not (_by_number(r) and r.loss.scale_of_kv == "layer"),
    "nothing is divided by a standard deviation of a sample or batch",
    "loss.alpha1_codi", "loss.alpha2_kv", "loss.layerwise_std", "loss.kv_loss_type", "loss.kv_scale",
)  # fmt: skip
NO_NUMBERS = Idle(
    lambda r: r.loss.kv_scale in ("layer", "none") and not _by_number(r) and ":" not in r.loss.kv_loss_type,
    "directions are not divided by a standard deviation", "loss.kv_loss_type",
)  # fmt: skip

# latents and compressors
NO_LATENTS = when("latent.num_tokens", "there are no latents", 0)
NO_STAGES = when("latent.stage_share", "there are no stages", 0)
SEQUENTIAL = when("latent.method", "sequential decoding makes one latent after the other", "sequential")
PAUSE_TOKENS = every(
    "pause tokens are not projected", when("latent.num_iterations", "", 0), when("latent.method", "", "jacobi")
)
NO_SCORE = when("rkv.method", "this compressor has no score", *sorted(set(METHODS) - {"rkv", "rkv_original"}))
NOT_CROP = unless("rkv.method", "only crop has two ends", "crop")
NOT_FULL = unless("rkv.method", "only full can fill every slot", "full")
ALL_KEPT = Idle(lambda r: r.explicit.enabled and r.rkv.method == "full", "full keeps every entry", "rkv.method")

# the explicit line's comparison
PER_LAYER = when("explicit.form", "layers are compared one by one", "per_layer")
AGGREGATED = when("explicit.form", "all layers make one vector", "aggregated")
NOT_WEIGHTED = when("explicit.attention_weighted", "entries are not weighted", False)
NO_LAYERS_COMPARED = Idle(  # CODI and CKA compare layer by layer in both forms
    lambda r: CODI_OFF.when(r) and CKA_OFF.when(r) and (AGGREGATED.when(r) or KV_OFF.when(r)),
    "no layer is compared with the teacher's",
    "explicit.form", "loss.alpha2_kv", "loss.alpha1_codi", "explicit.cka_weight",
)  # fmt: skip

# the projector
NO_PROJECTION = every("nothing is projected", KV_OFF, CODI_OFF)
NO_DIRECTION = when("projector.direction", "nothing is projected", "none")
NO_ADAPTERS = every("nothing is projected", NO_DIRECTION, ONE_TEACHER)
NO_MLP = unless("projector.direction", "only teacher_to_student has an MLP", "teacher_to_student")
NO_COLLAPSE = every("nothing is trained on the teacher's side, so nothing could collapse", NO_MLP, ONE_TEACHER)
NO_START = Idle(
    lambda r: NO_COLLAPSE.when(r) and (r.projector.match_start != "least_squares" or r.projector.direction == "none"),
    "only what is projected has a start, and a projected student only one of least squares",
    *NO_COLLAPSE.causes, "projector.match_start",
)  # fmt: skip
PROJECTOR_FIXED = when("projector.trainable", "the projector is fixed", False)
NO_GUARD = when("projector.guard", "there is no guard", "none")


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
FIXED_FUSION = when("mixture.fusion", "weights are fixed", "fixed")
NOT_FIXED = unless("mixture.fusion", "weights are not fixed", "fixed")
NO_ROUTER = unless("mixture.fusion", "no router is trained", "learnable")
NO_MLP_ROUTER = unless("mixture.router", "only the mlp has hidden layers", "mlp")
NO_PROTOTYPES = unless("mixture.fusion", "nothing is compared with prototypes", "similarity")
NO_CENTRES = unless("mixture.prototype", "only kmeans has centres", "kmeans")
ENTROPY_OFF = when("mixture.entropy", "the weights' entropy is left alone", "none")
TEMPERATURE_STAYS = when("mixture.temperature_step", "the temperature stays as it is", 0)
NO_MAP_FILES = unless("mixture.layer_map", "the layer map is made without them", "cka")
PAIRED = when("mixture.time", "tokens are paired by their numbers", "truncate")
CODES = Idle(
    lambda r: r.mixture.on and r.mixture.space == "z", "codes are compared, not keys and values", "mixture.space"
)
NO_CODES = when("mixture.space", "keys and values are compared, not codes", "kv")

# data, training, logs
NOT_BUILT_IN = unless(
    "dataset.name", f"only the built-in data sets ({', '.join(BUILTIN_DATASETS)}) are generated", *BUILTIN_DATASETS
)
NOT_MODULAR = unless("dataset.name", f"only {', '.join(MODULAR)} have a modulus", *MODULAR)
NO_DIGITS = unless("dataset.name", "only long chains and multiplication have it", *LONG_CHAINS, "multiplication")
NO_GRAPH = unless("dataset.name", "only reachability has a graph", "reachability")
AS_MANY_AS_DIGITS = when("dataset.name", "there are as many steps as dataset.generator.digits", "multiplication")
NO_STREAM = when("dataset.streaming", "only a stream is shuffled in a buffer", False)
BUILT_IN = when("dataset.name", "a built-in data set is generated (see dataset.generator)", *BUILTIN_DATASETS)
WHOLE_BATCHES = Idle(
    lambda r: r.rkv.shuffle == "examples" or r.loss.std_scope == "batch",
    "the loss depends on which examples share a batch, so batches stay whole", "rkv.shuffle", "loss.std_scope",
)  # fmt: skip
ALL_WEIGHTS = when("lora.enabled", "every weight is trained", False)
NOT_SHARDED = when("system.sharding", "weights are not sharded", "none")
MAX_STEPS = unless("training.max_steps", "training.max_steps decides", None)
NO_WARMUP = when("training.lr_scheduler", "a constant schedule does not warm up", "constant")
GREEDY = when("evaluation.temperature", "temperature 0 is greedy", 0)
NO_TRACKER = Idle(
    lambda r: not {"wandb", "trackio"} & set(r.logging.report_to),
    "only wandb and trackio have projects", "logging.report_to",
)  # fmt: skip
