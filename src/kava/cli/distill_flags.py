"""The flags of the guides' training scripts as data: what each one sets in a recipe, or why it is refused.

`read_words` turns a command line into settings. A flag may be written with underscores or dashes (`cli/main.py` makes
them underscores), as `--flag value` or `--flag=value`; settings of the recipe stand between them as section.key=value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kava.config.text import parse_text
from kava.errors import ConfigError
from kava.registry import nearest

CACHE, WARMUP = "cache_dir", "warmup_steps"  # the two that are no keys of a recipe
AUTO = ("auto", "probe")
_HOMES = {"system.gradient_accumulation_steps": "training.gradient_accumulation_steps"}  # one key in two places


@dataclass(frozen=True)
class Flag:
    """`names` are its spellings, the first one is shown first; `sets` is a key, or what a value stands for.

    A `switch` takes no value and stands for this one. `values` are other spellings of a value, `refused` gives the reason
    for a value that is not there. `along` comes along unless it is given, `teacher` (the
    same key of the teacher) where the run has one.
    """

    names: str
    sets: str | Callable[[str], Mapping[str, str]]
    help: str
    switch: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    along: Mapping[str, str] = field(default_factory=dict)
    teacher: str | None = None


@dataclass(frozen=True)
class Asked:
    """What a command line says: settings by key, as text. `along` and `teacher` come along with flags (see Flag)."""

    given: dict[str, str] = field(default_factory=dict)
    along: dict[str, str] = field(default_factory=dict)
    teacher: dict[str, str] = field(default_factory=dict)


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
             "the teacher; null = a frozen copy of the student's base"),
        Flag("torch_dtype", "model.dtype", "type of the weights: float32, bfloat16, float16, auto", values=_DTYPES,
             teacher="teacher.dtype"),
        Flag("quantization", "teacher.quantization", "load the teacher in nf4 or int8 (bitsandbytes)",
             values={"4bit": "nf4", "8bit": "int8"}),
        Flag("load_in_4bit", "teacher.quantization", "the same as --quantization nf4", switch="nf4"),
        Flag("load_in_8bit", "teacher.quantization", "the same as --quantization int8", switch="int8"),
        Flag("device_map", "teacher.device_map", "auto: spread the teacher over the GPUs of this machine"),
        Flag("teacher_store", "teacher.store", "read the teacher's keys and values from this folder of kava extract"),
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
        Flag("subset_size", "dataset.subset_size", "use only so many training examples; None = all"),
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
        Flag("layer_mapping_strategy layer_map_strategy", "explicit.layer_map", "structured: ratio, uniform, skip"),
        Flag("distill_layers", _layers, "structured: student layers a-b, b left out"),
        Flag("distill_k_only", "explicit.parts", "keys only", switch="k"),
        Flag("distill_v_only", "explicit.parts", "values only", switch="v"),
        Flag("projector_direction", "projector.direction", "none, teacher_to_student, student_to_teacher"),
        Flag("use_attention_weighted_kv use_teacher_attention", "explicit.attention_weighted",
             "weigh entries by the attention that the teacher gives them", switch="true"),
        Flag("attention_weighted_kv_warmup", "explicit.attention_weighted_after", "from this update on"),
        Flag("cka_weight", "explicit.cka_weight", "weight of 1 - CKA"),
        Flag("cka_layers", "explicit.cka_layers", "middle, last, or a list such as 0,5,11"),
    ),
    "Checkpoints and logs": (
        Flag("save_steps save_interval", "logging.save_steps", "updates between checkpoints"),
        Flag("eval_steps eval_interval", "logging.eval_steps", "updates between validations"),
        Flag("logging_steps", "logging.logging_steps", "updates between log lines"),
    ),
}  # fmt: skip
FLAGS: tuple[Flag, ...] = tuple(flag for group in GROUPS.values() for flag in group)
BY_NAME: dict[str, Flag] = {name: flag for flag in FLAGS for name in flag.names.split()}

_MANY = "it belongs to a mixture of teachers, which is not there yet; this verb has one teacher (--teacher_name)"
_SAME_TEXT = (
    "student and teacher read the same tokens, so there is nothing to align; other tokenizers come with many teachers"
)
_NO_MAP = "there is no map projection here; see --projector_direction"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("phase", "teacher_models", "teacher_prompts", "fusion_method", "fusion_strategy", "fixed_weights", "router_type",
         "learnable_router_type", "entropy_reg_strength", "entropy_reg_weight", "router_entropy_weight", "entropy_target"),
        _MANY,
    ),
    **dict.fromkeys(("use_segment_resampling", "alignment_strategy", "rope_scaling_method"), _SAME_TEXT),
    **dict.fromkeys(("use_cka_layer_mapping", "layer_mapping_path"),
                    "layer maps by CKA come with many teachers; --layer_mapping_strategy is there"),
    **dict.fromkeys(("map_proj_share_dim", "map_proj_init_uniform"), _NO_MAP),
    **dict.fromkeys(("lambda_k", "lambda_v"), "keys and values share one weight; see --kv_weight, --distill_k_only"),
    "beta_cos": "the direction is a loss of its own here: --kv_loss mercator",
    "gamma_kl": "attention maps are a loss of their own here: --kv_loss structural",
}  # fmt: skip


def read_words(words: Sequence[str], declared: Sequence[str] = ()) -> Asked:
    """The settings that `words` stand for; the same one twice with different values, or an unknown flag, is an error.

    `declared` are names of the verb's own flags, for hints.
    """
    asked = Asked()
    said: dict[str, str] = {}
    for spelled, flag, text in _pairs(list(words), declared):
        if isinstance(flag, str):
            settings: Mapping[str, str] = {_HOMES.get(flag, flag): text}
        else:
            settings = _settings(spelled, flag, text)
            asked.along.update(flag.along)
            if flag.teacher is not None:
                asked.teacher[flag.teacher] = next(iter(settings.values()))
        for key, value in settings.items():
            if key in asked.given and _data(asked.given[key]) != _data(value):
                raise ConfigError(
                    f"command line: {key} is set twice, to {asked.given[key]} by {said[key]} and to {value} by {spelled}",
                    "leave one of them out",
                )
            asked.given[key] = value
            said[key] = spelled
    return asked


def _pairs(words: list[str], declared: Sequence[str]) -> Iterator[tuple[str, Flag | str, str]]:
    """Each flag (or recipe key) of the command line as it was spelled, what it is, and its value."""
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        flag: Flag | str
        if "." in name and (equals or word.startswith("--")):
            spelled, flag = name, name
        elif word.startswith("--"):
            spelled, flag = f"--{name}", _known(name, declared)
        else:
            raise ConfigError(f"command line: unexpected {word!r}", "settings are written section.key=value")
        if not isinstance(flag, str) and flag.switch is not None:
            if equals or (words and words[0].lower() in ("true", "false", "0", "1", "yes", "no")):
                raise ConfigError(f"{spelled} is a switch and takes no value", "give it alone, or leave it out")
            text = flag.switch
        elif not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"command line: {spelled} has no value", f"write {spelled} VALUE")
            text = words.pop(0)
        yield spelled, flag, "null" if text == "None" and not _keeps_none(flag) else text


def _keeps_none(flag: Flag | str) -> bool:
    return isinstance(flag, Flag) and callable(flag.sets)


def _known(name: str, declared: Sequence[str]) -> Flag:
    if name in REFUSED:
        raise ConfigError(f"--{name} is not supported: {REFUSED[name]}")
    if name not in BY_NAME:
        names = [*BY_NAME, *(word.removeprefix("--") for word in declared)]
        raise ConfigError(f"unknown flag '--{name}'", nearest(f"--{name}", [f"--{one}" for one in names]))
    return BY_NAME[name]


def _settings(spelled: str, flag: Flag, text: str) -> Mapping[str, str]:
    if text in flag.refused:
        raise ConfigError(f"{spelled} {text} is not supported: {flag.refused[text]}")
    if isinstance(flag.sets, str):
        return {flag.sets: flag.values.get(text, text)}
    try:
        return flag.sets(text)
    except ConfigError as error:
        raise ConfigError(f"{spelled}: {error.message}", error.hint) from error


def _data(text: str) -> object:
    """5e-5 and 0.00005 are one value."""
    return parse_text(text, "command line") if text[:1] not in "[{*&!|>%@`'\"" else text
