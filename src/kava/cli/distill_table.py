"""The flags of the guides' training scripts as data: what each one sets in a recipe, or why it is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kava.errors import ConfigError

# What is no key of a recipe: the hub's cache, warm-up in updates, and what says who the teachers of a mixture are.
CACHE, WARMUP = "cache_dir", "warmup_steps"
AUTO = ("auto", "probe")
PHASE, MODELS, PROMPTS, STORES = "phase", "teacher_models", "teacher_prompts", "teacher_stores"


@dataclass(frozen=True)
class Flag:
    """`names` are its spellings, the first one is shown first; `sets` is a key, or what a value stands for.

    A `switch` takes no value and stands for this one. `values` are other spellings of a value, `refused` gives the reason
    for a value that is not there. `along` comes along unless it is given, `teacher` (the same key of the teacher) where
    the run has one. A flag with `many` takes all words up to the next flag or setting; its value is a JSON list.
    `mixture` is what it sets instead where there are several teachers.
    """

    names: str
    sets: str | Callable[[str], Mapping[str, str]]
    help: str
    switch: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    along: Mapping[str, str] = field(default_factory=dict)
    teacher: str | None = None
    many: bool = False
    mixture: str | None = None


def _only(word: str, reason: str) -> Callable[[str], Mapping[str, str]]:
    """A flag that has one value here, and sets nothing."""

    def check(value: str) -> Mapping[str, str]:
        if value != word:
            raise ConfigError(f"it can only be {word}, not {value!r}: {reason}")
        return {}

    return check


def _form(value: str) -> Mapping[str, str]:
    if value not in ("flat", "structured"):
        raise ConfigError(f"it is flat or structured, not {value!r}")
    return (
        {"explicit.form": "aggregated", "explicit.choose": "sample"}
        if value == "flat"
        else {"explicit.form": "per_layer"}
    )


def _layers(value: str) -> Mapping[str, str]:
    """The guides' a-b leaves b out (0-12, 12-24, 0-28 of 28 layers); the recipe's includes it."""
    first, dash, end = value.partition("-")
    if not (dash and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise ConfigError(f"{value!r} is no range of layers", "write a-b with a < b; b itself is left out: 0-12, 12-24")
    return {"explicit.layers": f"{first}-{int(end) - 1}"}


def _weights(value: str) -> Mapping[str, str]:
    """0.7 0.3, or 0.7,0.3."""
    words = [word for text in json.loads(value) for word in str(text).split(",") if word]
    for word in words:
        if not re.fullmatch(r"[-+.\deE]+", word):
            raise ConfigError(f"{word!r} is no number", "write one weight for each teacher: 0.7 0.3")
    return {"mixture.weights": f"[{', '.join(words)}]"}


_DTYPES = {
    name: full
    for full in ("float32", "float16", "bfloat16")
    for name in (f"torch.{full}", {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[full])
}
_NO_ALPHA = "no document says what its alpha scales; smooth_l1 is the paper's loss, --kv_weight its weight"
_NO_OFFICIAL = "it needs a package that does not exist; rkv is the paper's score, rkv_original that of R-KV itself"
_SCORE = "the score alone decides which entries are kept"

GROUPS: dict[str, tuple[Flag, ...]] = {
    "Models": (
        Flag("model_name model_name_or_path student_model student_model_name_or_path", "model.name",
             "the student: hub name or local folder"),
        Flag("teacher_name teacher_model teacher_model_name_or_path", "teacher.name",
             "the teacher; None = a frozen copy of the student's base", mixture=MODELS),
        Flag("torch_dtype", "model.dtype", "type of the weights: float32, bfloat16, float16, auto", values=_DTYPES,
             teacher="teacher.dtype"),
        Flag("quantization", "teacher.quantization", "load the teacher in nf4 or int8 (bitsandbytes)",
             values={"4bit": "nf4", "8bit": "int8"}, mixture="quantization"),
        Flag("load_in_4bit", "teacher.quantization", "the same as --quantization nf4", switch="nf4",
             mixture="quantization"),
        Flag("load_in_8bit", "teacher.quantization", "the same as --quantization int8", switch="int8",
             mixture="quantization"),
        Flag("device_map", "teacher.device_map", "auto: spread the teacher over the GPUs of this machine"),
        Flag("teacher_store teacher_stores", STORES,
             "read the teacher's keys and values from this folder of kava extract; one for each teacher", many=True),
        Flag("trust_remote_code", "model.trust_remote_code", "run code that comes with the models", switch="true",
             teacher="teacher.trust_remote_code"),
        Flag("cache_dir", CACHE, "where models and data sets of the hub are kept (models--ORG--NAME)"),
    ),
    "Data": (
        Flag("dataset_name", "dataset.name", "hub name, local folder or a built-in set"),
        Flag("dataset_config", "dataset.config", "configuration of a hub data set, e.g. main"),
        Flag("split dataset_split", _only("train", "validation is its own split, or held out of train"),
             "train, nothing else"),
        Flag("train_file", "dataset.name", "a local JSONL file instead (prompt|question, target|answer)",
             along={"dataset.config": "null"}),
        Flag("subset_size max_samples n_samples", "dataset.subset_size", "use only so many training examples; None = all"),
        Flag("streaming", "dataset.streaming", "read examples while training, never all at once", switch="true"),
        Flag("max_length", "dataset.max_length", "skip (and count) examples of more tokens"),
    ),
    "Training": (
        Flag("batch_size", "training.batch_size",
             "examples per process; auto = by GPU memory, probe = the largest that fits, measured"),
        Flag("gradient_accumulation_steps gradient_accumulation", "training.gradient_accumulation_steps",
             "batches per update; auto = up to the target batch, 32"),
        Flag("auto_tune", lambda _: dict.fromkeys(
             ("training.batch_size", "training.gradient_accumulation_steps"), "auto"), "both auto", switch="true"),
        Flag("epochs", "training.epochs", "passes over the training set", along={"training.max_steps": "null"}),
        Flag("max_steps", "training.max_steps", "optimiser updates"),
        Flag("lr learning_rate lr_student", "training.learning_rate", "peak learning rate of the student"),
        Flag("lr_projector", "projector.learning_rate", "learning rate of the projector"),
        Flag("weight_decay", "training.weight_decay", "weight decay of AdamW"),
        Flag("warmup_steps", WARMUP, "updates of warm-up; needs a known number of updates"),
        Flag("warmup_ratio", "training.warmup_ratio", "the same as a share of all updates"),
        Flag("fp16", "system.mixed_precision", "mixed precision in float16", switch="fp16"),
        Flag("bf16", "system.mixed_precision", "mixed precision in bfloat16", switch="bf16"),
        Flag("gradient_checkpointing", "training.gradient_checkpointing", "less memory, more time", switch="true"),
        Flag("on_oom", "training.on_oom", "out of GPU memory: error, or reduce_batch (same batch in smaller pieces)"),
        Flag("device", "system.device", "auto, cpu, cuda, mps", values={"cuda:0": "cuda"}),
        Flag("num_workers", "system.num_workers", "processes that prepare batches"),
    ),
    "Distillation": (
        Flag("kv_method kv_compression", "rkv.method", "full, right_crop (right), rkv (r-kv), random, uniform, steps",
             refused={"rkv_official": _NO_OFFICIAL}),
        Flag("kv_weight kv_loss_weight alpha2", "loss.alpha2_kv", "weight of the key/value term; 0 = off"),
        Flag("codi_weight", "loss.alpha1_codi", "weight of the hidden-state term; 0 = off"),
        Flag("ce_weight delta_ce", "loss.student_ce", "weight of the cross-entropy"),
        Flag("kv_loss kv_loss_type", "loss.kv_loss_type",
             "smooth_l1, mse, l1, cosine, mercator, hybrid, structural", refused={"smooth_l1_alpha": _NO_ALPHA}),
        Flag("target_len", "explicit.target_len", "entries kept of each chain of thought"),
        Flag("rkv_lambda", "rkv.lambda", "weight of importance against redundancy"),
        Flag("rkv_keep_recent", _only("None", _SCORE), "None, nothing else"),
        Flag("shuffle_kv", "rkv.shuffle", "control: targets in another order of time", switch="time"),
        Flag("alignment_mode", _form, "flat = one vector per token, structured = layer by layer"),
        Flag("kv_aggregation_method aggregation_method", "explicit.aggregation", "flat: concat, mean, weighted"),
        Flag("use_all_layers", "explicit.use_all_layers", "flat: all layers, not the last one only", switch="true"),
        Flag("layer_mapping_strategy layer_map_strategy", "explicit.layer_map", "structured: ratio, blend, uniform, skip",
             mixture="mixture.layer_map"),
        Flag("distill_layers", _layers, "structured: student layers a-b, b left out"),
        Flag("distill_k_only", "explicit.parts", "keys only", switch="k"),
        Flag("distill_v_only", "explicit.parts", "values only", switch="v"),
        Flag("projector_direction", "projector.direction", "none, teacher_to_student, student_to_teacher"),
        Flag("use_attention_weighted_kv use_teacher_attention", "explicit.attention_weighted",
             "weigh entries by the attention that the teacher gives them", switch="true"),
        Flag("attention_weighted_kv_warmup", "explicit.attention_weighted_after", "from this update on"),
        Flag("lambda_k", "explicit.lambda_k", "weight of the keys in the key/value term"),
        Flag("lambda_v", "explicit.lambda_v", "weight of the values"),
        Flag("beta_cos", "explicit.beta_cos", "weight of 1 - cosine beside the distance"),
        Flag("gamma_kl", "explicit.gamma_kl", "weight of KL(teacher || student) of what the answer attends to"),
        Flag("cka_weight", "explicit.cka_weight", "weight of 1 - CKA"),
        Flag("cka_layers", "explicit.cka_layers", "middle, last, or a list such as 0,5,11"),
    ),
    "Several teachers": (
        Flag("phase", PHASE, "1 to 5: the recipe phase1 ... phase5, or what it changes on top of --config"),
        Flag("teacher_models", MODELS, "their hub names or local folders", many=True),
        Flag("teacher_prompts", PROMPTS, "default, cot, direct, or texts with {question}; one for each, or for one model",
             many=True),
        Flag("fusion_method fusion_strategy", "mixture.fusion", "fixed, similarity, learnable"),
        Flag("fixed_weights", _weights, "fixed: one weight for each teacher, summing to 1", many=True),
        Flag("similarity_metric", "mixture.similarity", "similarity: cosine, dot, l2 (euclidean)",
             values={"euclidean": "l2"}),
        Flag("prototype_method", "mixture.prototype", "similarity: mean, cls, max, kmeans"),
        Flag("num_clusters", "mixture.centres", "kmeans: how many"),
        Flag("router_type learnable_router_type", "mixture.router", "learnable: mlp, gate, attention"),
        Flag("entropy_reg_strength entropy_reg_weight router_entropy_weight", "mixture.entropy_weight",
             "weight of the push on the weights' entropy"),
        Flag("entropy_target", "mixture.entropy", "where it pushes: diverse, specialized, none"),
        Flag("alignment_strategy", "mixture.time", "soft = by overlap of characters, truncate = token by token",
             values={"hard": "truncate", "hard_truncate": "truncate", "soft_matrix": "soft"}),
        Flag("rope_scaling_method", "mixture.rope", "how teachers' keys were rotated: auto, ntk, linear, dynamic"),
        Flag("layer_mapping_path", "mixture.layer_map_files", "a file of kava align precompute for each teacher",
             many=True, along={"mixture.layer_map": "cka"}),
        Flag("use_cka_layer_mapping", "mixture.layer_map", "the layer map is in --layer_mapping_path", switch="cka"),
    ),
    "Checkpoints and logs": (
        Flag("save_steps save_interval", "logging.save_steps", "updates between checkpoints"),
        Flag("eval_steps eval_interval", "logging.eval_steps", "updates between validations"),
        Flag("logging_steps", "logging.logging_steps", "updates between log lines"),
    ),
}  # fmt: skip
FLAGS: tuple[Flag, ...] = tuple(flag for group in GROUPS.values() for flag in group)
BY_NAME: dict[str, Flag] = {name: flag for flag in FLAGS for name in flag.names.split()}


_NO_MAP = "there is no map projection here; see --projector_direction"
REFUSED: dict[str, str] = {
    "use_segment_resampling": "question, steps and answer are always tokenized and aligned one by one here",
    **dict.fromkeys(("map_proj_share_dim", "map_proj_init_uniform"), _NO_MAP),
}
