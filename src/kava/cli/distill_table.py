"""The flags of the guides' training scripts as data: what each one sets in a recipe, or why it is refused."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kava.config import KEYS
from kava.errors import ConfigError

# What a flag sets that is no key of a recipe: the hub's cache, warm-up in updates, who the teachers of a mixture are.
CACHE, WARMUP = "cache_dir", "warmup_steps"
PHASE, MODELS, PROMPTS, STORES = "phase", "teacher_models", "teacher_prompts", "teacher_stores"
AUTO = ("auto", "probe")


@dataclass(frozen=True)
class Flag:
    """A flag: `names` are its spellings, `sets` is the key it sets, or a function from its value to keys and values.

    note      what --help adds to the description of the key
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
    note: str = ""
    switch: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    along: Mapping[str, str] = field(default_factory=dict)
    teacher: str | None = None
    many: bool = False
    mixture: str | None = None

    @property
    def usage(self) -> str:
        """Every spelling, and V for a value."""
        names = ", ".join(f"--{name}" for name in self.names.split())
        return names + ("" if self.switch else " V ..." if self.many else " V")

    @property
    def help(self) -> str:
        """The key it sets, its description and choices; then the note."""
        key = KEYS.get(self.sets) if isinstance(self.sets, str) else None
        if key is None:
            return self.note
        if self.switch is not None:
            return f"{key.name}={self.switch}: {self.note or key.description}"
        choices = f" ({key.kind})" if key.kind.startswith("one of") else ""
        return f"{key.name}: {key.description}{choices}{self.note and '; ' + self.note}"


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
        Flag("model_name model_name_or_path student_model student_model_name_or_path", "model.name"),
        Flag("teacher_name teacher_model teacher_model_name_or_path", "teacher.name", mixture=MODELS),
        Flag("torch_dtype", "model.dtype", "also the teacher's", values=_DTYPES, teacher="teacher.dtype"),
        Flag("quantization", "teacher.quantization", "4bit = nf4, 8bit = int8", values={"4bit": "nf4", "8bit": "int8"},
             mixture="quantization"),
        Flag("load_in_4bit", "teacher.quantization", switch="nf4", mixture="quantization"),
        Flag("load_in_8bit", "teacher.quantization", switch="int8", mixture="quantization"),
        Flag("device_map", "teacher.device_map"),
        Flag("teacher_store teacher_stores", STORES,
             "folder written by kava extract, read instead of running the teacher; one for each teacher", many=True),
        Flag("trust_remote_code", "model.trust_remote_code", "run code that comes with the models", switch="true",
             teacher="teacher.trust_remote_code"),
        Flag("cache_dir", CACHE, "the hub's cache for models and data sets; it holds models--ORG--NAME"),
    ),
    "Data": (
        Flag("dataset_name", "dataset.name"),
        Flag("dataset_config", "dataset.config"),
        Flag("split dataset_split", _only("train", "validation is its own split, or held out of train"),
             "train; no other value is accepted"),
        Flag("train_file", "dataset.name", "a JSONL file with the fields prompt (question) and target (answer)",
             along={"dataset.config": "null"}),
        Flag("subset_size max_samples n_samples", "dataset.subset_size"),
        Flag("streaming", "dataset.streaming", switch="true"),
        Flag("max_length", "dataset.max_length"),
    ),
    "Training": (
        Flag("batch_size", "training.batch_size", "auto = by GPU memory, probe = the largest that fits, measured"),
        Flag("gradient_accumulation_steps gradient_accumulation", "training.gradient_accumulation_steps",
             "auto = up to 32 examples per update"),
        Flag("auto_tune", lambda _: dict.fromkeys(
             ("training.batch_size", "training.gradient_accumulation_steps"), "auto"),
             "the same as --batch_size auto --gradient_accumulation auto", switch="true"),
        Flag("epochs", "training.epochs", "takes the place of max_steps", along={"training.max_steps": "null"}),
        Flag("max_steps", "training.max_steps"),
        Flag("lr learning_rate lr_student", "training.learning_rate"),
        Flag("lr_projector", "projector.learning_rate"),
        Flag("weight_decay", "training.weight_decay"),
        Flag("warmup_steps", WARMUP, "warm-up in updates, where the number of updates is known (--max_steps)"),
        Flag("warmup_ratio", "training.warmup_ratio"),
        Flag("fp16", "system.mixed_precision", switch="fp16"),
        Flag("bf16", "system.mixed_precision", switch="bf16"),
        Flag("gradient_checkpointing", "training.gradient_checkpointing", switch="true"),
        Flag("on_oom", "training.on_oom"),
        Flag("device", "system.device", values={"cuda:0": "cuda"}),
        Flag("num_workers", "system.num_workers"),
    ),
    "Distillation": (
        Flag("kv_method kv_compression", "rkv.method", "right_crop and right = crop, r-kv = rkv",
             refused={"rkv_official": _NO_OFFICIAL}),
        Flag("kv_weight kv_loss_weight alpha2", "loss.alpha2_kv", "0 = off"),
        Flag("codi_weight", "loss.alpha1_codi", "0 = off"),
        Flag("ce_weight delta_ce", "loss.student_ce"),
        Flag("kv_loss kv_loss_type", "loss.kv_loss_type", refused={"smooth_l1_alpha": _NO_ALPHA}),
        Flag("target_len", "explicit.target_len"),
        Flag("rkv_lambda", "rkv.lambda"),
        Flag("rkv_keep_recent", _only("None", _SCORE), "None; no other value is accepted"),
        Flag("shuffle_kv", "rkv.shuffle", "control experiment: targets in another order of time", switch="time"),
        Flag("alignment_mode", _form,
             "explicit.form: flat = aggregated, one vector per token; structured = per_layer, layer by layer"),
        Flag("kv_aggregation_method aggregation_method", "explicit.aggregation"),
        Flag("use_all_layers", "explicit.use_all_layers", switch="true"),
        Flag("layer_mapping_strategy layer_map_strategy", "explicit.layer_map", mixture="mixture.layer_map"),
        Flag("distill_layers", _layers, "explicit.layers: student layers a to b - 1, written a-b; per_layer only"),
        Flag("distill_k_only", "explicit.parts", "keys only", switch="k"),
        Flag("distill_v_only", "explicit.parts", "values only", switch="v"),
        Flag("projector_direction", "projector.direction"),
        Flag("use_attention_weighted_kv use_teacher_attention", "explicit.attention_weighted", switch="true"),
        Flag("attention_weighted_kv_warmup", "explicit.attention_weighted_after"),
        Flag("lambda_k", "explicit.lambda_k"),
        Flag("lambda_v", "explicit.lambda_v"),
        Flag("beta_cos", "explicit.beta_cos"),
        Flag("gamma_kl", "explicit.gamma_kl"),
        Flag("cka_weight", "explicit.cka_weight"),
        Flag("cka_layers", "explicit.cka_layers"),
    ),
    "Several teachers": (
        Flag("phase", PHASE, "1 to 5: the recipe phase1 ... phase5; with --config, that recipe changed to this phase"),
        Flag("teacher_models", MODELS, "hub names or local folders of the teachers", many=True),
        Flag("teacher_prompts", PROMPTS,
             "default, cot, direct, or texts with {question}; one for each teacher, or several for one model",
             many=True),
        Flag("fusion_method fusion_strategy", "mixture.fusion"),
        Flag("fixed_weights", _weights, "mixture.weights: with fixed fusion one for each teacher; their sum is 1",
             many=True),
        Flag("similarity_metric", "mixture.similarity", "euclidean = l2", values={"euclidean": "l2"}),
        Flag("prototype_method", "mixture.prototype"),
        Flag("num_clusters", "mixture.centres"),
        Flag("router_type learnable_router_type", "mixture.router"),
        Flag("entropy_reg_strength entropy_reg_weight router_entropy_weight", "mixture.entropy_weight"),
        Flag("entropy_target", "mixture.entropy"),
        Flag("alignment_strategy", "mixture.time", "soft_matrix = soft, hard and hard_truncate = truncate",
             values={"hard": "truncate", "hard_truncate": "truncate", "soft_matrix": "soft"}),
        Flag("rope_scaling_method", "mixture.rope"),
        Flag("layer_mapping_path", "mixture.layer_map_files", many=True, along={"mixture.layer_map": "cka"}),
        Flag("use_cka_layer_mapping", "mixture.layer_map", "use the files of --layer_mapping_path (which implies it)",
             switch="cka"),
    ),
    "Checkpoints and logs": (
        Flag("save_steps save_interval", "logging.save_steps"),
        Flag("eval_steps eval_interval", "logging.eval_steps"),
        Flag("logging_steps", "logging.logging_steps"),
    ),
}  # fmt: skip
FLAGS: tuple[Flag, ...] = tuple(flag for group in GROUPS.values() for flag in group)
BY_NAME: dict[str, Flag] = {name: flag for flag in FLAGS for name in flag.names.split()}

_NO_MAP = "there is no map projection here; see --projector_direction"
REFUSED: dict[str, str] = {
    "use_segment_resampling": "question, steps and answer are always tokenized and aligned one by one here",
    **dict.fromkeys(("map_proj_share_dim", "map_proj_init_uniform"), _NO_MAP),
}
