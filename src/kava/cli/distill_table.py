"""The flags of the guides' training scripts as data: what each one sets in a recipe, or why it is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kava.errors import ConfigError

# What a flag sets that is no key of a recipe: the hub's cache, warm-up in updates, who the teachers of a mixture are.
CACHE, WARMUP = "cache_dir", "warmup_steps"
PHASE, MODELS, PROMPTS, STORES = "phase", "teacher_models", "teacher_prompts", "teacher_stores"
AUTO = ("auto", "probe")


@dataclass(frozen=True)
class Flag:
    """A flag: `names` are its spellings, `sets` is the key it sets, or a function from its value to keys and values.

    switch    the flag takes no value and sets this one
    values    other spellings of a value
    refused   values that other programs have and kava does not, with the reason
    along     what it also sets where the command line does not
    teacher   a second key that it sets where the run loads one separate teacher
    many      it takes all words up to the next flag or setting; its value is a JSON list
    mixture   what it sets instead where there are several teachers: a key, or a field of each teacher
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

    @property
    def usage(self) -> str:
        """All spellings, as --help shows them."""
        return ", ".join(f"--{name}" for name in self.names.split()) + (
            "" if self.switch else " V ..." if self.many else " V"
        )


def _only(word: str, reason: str) -> Callable[[str], Mapping[str, str]]:
    """A flag that can have one value, which is what happens anyway; it sets nothing."""

    def check(value: str) -> Mapping[str, str]:
        if value != word:
            raise ConfigError(f"it can only be {word}, not {value!r}: {reason}")
        return {}

    return check


def _form(value: str) -> Mapping[str, str]:
    if value not in ("flat", "structured"):
        raise ConfigError(f"it is flat or structured, not {value!r}")
    if value == "structured":
        return {"explicit.form": "per_layer"}
    return {"explicit.form": "aggregated", "explicit.choose": "sample"}


def _layers(value: str) -> Mapping[str, str]:
    """a-b without b, as in the guides (0-12, 12-24); the recipe's key includes its last layer."""
    first, dash, end = value.partition("-")
    if not (dash and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise ConfigError(f"{value!r} is no range of layers", "write a-b with a < b; b itself is left out: 0-12, 12-24")
    return {"explicit.layers": f"{first}-{int(end) - 1}"}


def _weights(value: str) -> Mapping[str, str]:
    """Written 0.7 0.3, or 0.7,0.3."""
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
             "student model: hub name or local folder"),
        Flag("teacher_name teacher_model teacher_model_name_or_path", "teacher.name",
             "teacher model; None = a frozen copy of the student's base model", mixture=MODELS),
        Flag("torch_dtype", "model.dtype",
             "dtype of the weights, also the teacher's: float32, bfloat16, float16, auto", values=_DTYPES,
             teacher="teacher.dtype"),
        Flag("quantization", "teacher.quantization",
             "load the teacher quantised (bitsandbytes): nf4 (4bit), int8 (8bit) or none",
             values={"4bit": "nf4", "8bit": "int8"}, mixture="quantization"),
        Flag("load_in_4bit", "teacher.quantization", "the same as --quantization nf4", switch="nf4",
             mixture="quantization"),
        Flag("load_in_8bit", "teacher.quantization", "the same as --quantization int8", switch="int8",
             mixture="quantization"),
        Flag("device_map", "teacher.device_map", "auto = spread the teacher over all GPUs of this machine"),
        Flag("teacher_store teacher_stores", STORES,
             "folder written by kava extract, read instead of running the teacher; several teachers: one each",
             many=True),
        Flag("trust_remote_code", "model.trust_remote_code",
             "run the Python code that comes with the models", switch="true", teacher="teacher.trust_remote_code"),
        Flag("cache_dir", CACHE, "the hub's cache for models and data sets (holds models--ORG--NAME)"),
    ),
    "Data": (
        Flag("dataset_name", "dataset.name", "data set: hub name, local folder or a built-in set (chains)"),
        Flag("dataset_config", "dataset.config", "configuration of a hub data set, e.g. main"),
        Flag("split dataset_split", _only("train", "validation is its own split, or held out of train"),
             "accepted for compatibility; can only be train"),
        Flag("train_file", "dataset.name",
             "local JSONL file to train on instead (fields prompt|question and target|answer)",
             along={"dataset.config": "null"}),
        Flag("subset_size max_samples n_samples", "dataset.subset_size", "number of training examples; None = all"),
        Flag("streaming", "dataset.streaming",
             "read examples during training instead of loading them all first", switch="true"),
        Flag("max_length", "dataset.max_length", "skip examples of more tokens (their number is reported)"),
    ),
    "Training": (
        Flag("batch_size", "training.batch_size",
             "examples per process; auto = by GPU memory, probe = measure the largest that fits"),
        Flag("gradient_accumulation_steps gradient_accumulation", "training.gradient_accumulation_steps",
             "batches per update; auto = as many as make 32 examples"),
        Flag("auto_tune", lambda _: dict.fromkeys(
             ("training.batch_size", "training.gradient_accumulation_steps"), "auto"),
             "the same as --batch_size auto --gradient_accumulation auto", switch="true"),
        Flag("epochs", "training.epochs",
             "passes over the training set, instead of --max_steps", along={"training.max_steps": "null"}),
        Flag("max_steps", "training.max_steps", "number of optimiser updates"),
        Flag("lr learning_rate lr_student", "training.learning_rate", "peak learning rate of the student"),
        Flag("lr_projector", "projector.learning_rate", "learning rate of the projector"),
        Flag("weight_decay", "training.weight_decay", "weight decay of AdamW"),
        Flag("warmup_steps", WARMUP, "warm-up in updates; the total number must be known (--max_steps)"),
        Flag("warmup_ratio", "training.warmup_ratio", "warm-up as a share of all updates"),
        Flag("fp16", "system.mixed_precision", "mixed precision in float16", switch="fp16"),
        Flag("bf16", "system.mixed_precision", "mixed precision in bfloat16", switch="bf16"),
        Flag("gradient_checkpointing", "training.gradient_checkpointing",
             "recompute activations: less memory, more time", switch="true"),
        Flag("on_oom", "training.on_oom",
             "when the GPU runs out of memory: error, or reduce_batch (the same batch in smaller parts)"),
        Flag("device", "system.device", "device to train on: auto, cpu, cuda, mps", values={"cuda:0": "cuda"}),
        Flag("num_workers", "system.num_workers", "processes that prepare batches (data loader workers)"),
    ),
    "Distillation": (
        Flag("kv_method kv_compression", "rkv.method",
             "how the teacher's cache is compressed: full, right_crop (right), rkv (r-kv), random, uniform, steps",
             refused={"rkv_official": _NO_OFFICIAL}),
        Flag("kv_weight kv_loss_weight alpha2", "loss.alpha2_kv", "weight of the KV loss; 0 = off"),
        Flag("codi_weight", "loss.alpha1_codi", "weight of the CODI loss on hidden states; 0 = off"),
        Flag("ce_weight delta_ce", "loss.student_ce", "weight of the student's cross-entropy"),
        Flag("kv_loss kv_loss_type", "loss.kv_loss_type",
             "distance of keys and values: smooth_l1, mse, l1, cosine, mercator, hybrid, structural",
             refused={"smooth_l1_alpha": _NO_ALPHA}),
        Flag("target_len", "explicit.target_len", "cache entries kept of each chain of thought"),
        Flag("rkv_lambda", "rkv.lambda", "rkv: weight of importance against redundancy"),
        Flag("rkv_keep_recent", _only("None", _SCORE), "accepted for compatibility; can only be None"),
        Flag("shuffle_kv", "rkv.shuffle", "control experiment: shuffle the targets in time", switch="time"),
        Flag("alignment_mode", _form, "what is compared: flat = one vector per token, structured = layer by layer"),
        Flag("kv_aggregation_method aggregation_method", "explicit.aggregation",
             "flat: how layers become one vector: concat, mean, weighted"),
        Flag("use_all_layers", "explicit.use_all_layers", "flat: use all layers, not only the last", switch="true"),
        Flag("layer_mapping_strategy layer_map_strategy", "explicit.layer_map",
             "structured: teacher layers of each student layer: ratio, blend, uniform, skip",
             mixture="mixture.layer_map"),
        Flag("distill_layers", _layers, "structured: compare student layers a to b-1, written a-b"),
        Flag("distill_k_only", "explicit.parts", "compare keys only", switch="k"),
        Flag("distill_v_only", "explicit.parts", "compare values only", switch="v"),
        Flag("projector_direction", "projector.direction",
             "which side is projected: none, teacher_to_student, student_to_teacher"),
        Flag("use_attention_weighted_kv use_teacher_attention", "explicit.attention_weighted",
             "weight entries by the teacher's attention to them", switch="true"),
        Flag("attention_weighted_kv_warmup", "explicit.attention_weighted_after", "first update with those weights"),
        Flag("lambda_k", "explicit.lambda_k", "weight of the keys in the KV loss"),
        Flag("lambda_v", "explicit.lambda_v", "weight of the values in the KV loss"),
        Flag("beta_cos", "explicit.beta_cos", "weight of 1 - cosine, added to the distance"),
        Flag("gamma_kl", "explicit.gamma_kl", "weight of KL(teacher || student) of the answer's attention"),
        Flag("cka_weight", "explicit.cka_weight", "weight of 1 - CKA of keys and values, layer by layer"),
        Flag("cka_layers", "explicit.cka_layers", "layers of the CKA term: middle, last, or a list such as 0,5,11"),
    ),
    "Several teachers": (
        Flag("phase", PHASE, "1 to 5: the recipe phase1 ... phase5; with --config, that recipe changed to phase N"),
        Flag("teacher_models", MODELS, "teacher models: hub names or local folders", many=True),
        Flag("teacher_prompts", PROMPTS,
             "default, cot, direct, or texts with {question}; one for each teacher, or several for one model",
             many=True),
        Flag("fusion_method fusion_strategy", "mixture.fusion",
             "how teachers are weighted: fixed, similarity, learnable"),
        Flag("fixed_weights", _weights, "fixed: one weight for each teacher; their sum is 1", many=True),
        Flag("similarity_metric", "mixture.similarity",
             "similarity: measure between a question and a teacher's prototype: cosine, dot, l2 (euclidean)",
             values={"euclidean": "l2"}),
        Flag("prototype_method", "mixture.prototype", "similarity: how a prototype is made: mean, cls, max, kmeans"),
        Flag("num_clusters", "mixture.centres", "kmeans: number of clusters"),
        Flag("router_type learnable_router_type", "mixture.router", "learnable: kind of router: mlp, gate, attention"),
        Flag("entropy_reg_strength entropy_reg_weight router_entropy_weight", "mixture.entropy_weight",
             "learnable: strength of the regularisation of the weights' entropy"),
        Flag("entropy_target", "mixture.entropy",
             "learnable: diverse = high entropy, specialized = low, none = no regularisation"),
        Flag("alignment_strategy", "mixture.time",
             "matching of tokens: soft = by shared characters, truncate (hard) = by position",
             values={"hard": "truncate", "hard_truncate": "truncate", "soft_matrix": "soft"}),
        Flag("rope_scaling_method", "mixture.rope",
             "RoPE scaling of the teachers' keys: auto = as each model says, ntk, linear, dynamic"),
        Flag("layer_mapping_path", "mixture.layer_map_files",
             "for each teacher its layer map, a file written by kava align precompute",
             many=True, along={"mixture.layer_map": "cka"}),
        Flag("use_cka_layer_mapping", "mixture.layer_map",
             "use the layer maps of --layer_mapping_path (implied by it)", switch="cka"),
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
