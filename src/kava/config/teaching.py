"""The sections about separate teachers: the explicit line, one teacher, a mixture of several, the projector."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kava.config import idle
from kava.config.fields import (
    PROMPTS,
    Flag,
    FusionName,
    GgufFile,
    MatchStart,
    Names,
    Ramp,
    RecipeSection,
    RouterName,
    as_tuple,
    knob,
)


# fmt: off
class ExplicitConfig(RecipeSection):
    """The second line: student and frozen teacher read the same text; no latents."""

    enabled: Flag = knob(False, "ours", "regress the student's keys and values on those of a separate teacher")
    form: Literal["per_layer", "aggregated"] = knob("per_layer", "ours",
        "compare layer by layer, or one vector per token made of all layers", idle=idle.KV_OFF)
    choose: Literal["head", "sample"] = knob("head", "ours",
        "positions are chosen per layer and head, or once per sample from mean scores", idle=idle.KV_OFF)
    aggregation: Literal["concat", "mean", "weighted"] = knob("concat", "ours", "aggregated: how layers become one",
        idle=(idle.KV_OFF, idle.PER_LAYER))
    use_all_layers: Flag = knob(True, "ours", "aggregated: all layers; false = the last one only",
        idle=(idle.KV_OFF, idle.PER_LAYER))
    layer_map: Literal["ratio", "blend", "uniform", "skip"] = knob("ratio", "ours",
        "per_layer: teacher layers of each student layer", idle=(idle.NO_LAYERS_COMPARED, idle.MIXTURE))
    layers: Annotated[str | None, Field(pattern=r"^\d+-\d+$")] = knob(None, "ours",
        "per_layer: student layers a-b (from 0, b included) whose keys and values are compared; null = all",
        idle=(idle.KV_OFF, idle.AGGREGATED))
    parts: Literal["both", "k", "v"] = knob("both", "ours", "keys and values, or only one of them",
        idle=(idle.KV_OFF, idle.CODES))
    target_len: int = knob(8, "noted", "entries kept of each chain of thought", "the guide", ge=1,
        idle=(idle.KV_OFF, idle.ALL_KEPT))
    attention_weighted: Flag = knob(False, "ours", "weigh each entry by the importance the teacher gives it",
        idle=(idle.KV_OFF, idle.CODES))
    attention_weighted_after: int = knob(1000, "noted", "from this update on", "the guide", ge=0,
        idle=(idle.KV_OFF, idle.NOT_WEIGHTED, idle.CODES))
    lambda_k: float = knob(1.0, "noted", "weight of the keys' half of the KV term", "the plan", ge=0,
        idle=(idle.KV_OFF, idle.CODES))
    lambda_v: float = knob(1.0, "noted", "weight of the values' half of the KV term", "the plan", ge=0,
        idle=(idle.KV_OFF, idle.CODES))
    beta_cos: float = knob(0.0, "noted", "weight of 1 - cosine beside the KV term's distance", "the plan: 0.1", ge=0,
        idle=(idle.KV_OFF, idle.CODES))
    gamma_kl: float = knob(0.0, "noted", "weight of KL(teacher || student) of what the answer attends to",
        "the plan: 0.01", ge=0, idle=idle.KV_OFF)
    gamma_ramp: Ramp = knob((0.0, 0.0), "noted", "gamma_kl rises from 0 between these shares of the updates",
        "the plan", idle=(idle.KV_OFF, idle.GAMMA_OFF))
    ce_ramp: Ramp = knob((0.0, 0.0), "noted", "so does the cross-entropy", "the plan", idle=idle.CE_OFF)
    cka_weight: float = knob(0.0, "noted", "weight of 1 - CKA of the hidden keys", "the guide: 0.05", ge=0)
    cka_layers: str = knob("middle", "noted", "middle, last, or a list of student layers (0,5,11)", "the guide",
        idle=idle.CKA_OFF)


class TeacherConfig(RecipeSection):
    """Read by the explicit line only; the latent line is its own teacher."""

    name: str | None = knob(None, "ours", "hub name or local folder; null = a frozen copy of the student's base",
        idle=idle.STORED)
    revision: str | None = knob(None, "ours", "branch, tag or commit on the hub", idle=idle.STORED)
    gguf_file: GgufFile = knob(None, "ours", "the .gguf file of its folder or repository to read, as model.gguf_file",
        idle=idle.STORED)
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = knob("float32", "ours", "type of the teacher's weights",
        idle=idle.STORED)
    quantization: Literal["none", "nf4", "int8"] = knob("none", "noted", "load it quantised (bitsandbytes)",
        "the guide: nf4", idle=idle.STORED)
    device_map: Literal["none", "auto"] = knob("none", "ours", "auto: spread the teacher over the GPUs of this machine",
        idle=idle.STORED)
    store: str | None = knob(None, "ours", "read its keys and values from this folder of kava extract")
    trust_remote_code: Flag = knob(False, "ours", "run code that comes with the teacher", idle=idle.STORED)


RESERVED = ("start", "mean_predictor", "unexplained", "unexplained_start")  # eval_kv_<name> are other metrics


class TeacherSpec(RecipeSection):
    """One teacher of a mixture: an entry of mixture.teachers. A plain string stands for {model: that}."""

    name: str = ""  # empty: the last part of the model's name, or "own"
    model: str | None = None  # null: a frozen copy of the student's base
    revision: str | None = None
    gguf_file: GgufFile = None
    prompt: str = "default"  # one of PROMPTS, or a text that contains {question}
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    quantization: Literal["none", "nf4", "int8"] = "none"
    store: str | None = None
    trust_remote_code: Flag = False

    @model_validator(mode="after")
    def _prompt_has_a_place(self) -> "TeacherSpec":
        if self.prompt not in PROMPTS and "{question}" not in self.prompt:
            raise ValueError(
                f"prompt {self.prompt!r} is none of {', '.join(PROMPTS)} and has no {{question}} where the question goes"
            )
        return self

    @property
    def label(self) -> str:
        """The teacher's name in logs, tables and files."""
        return self.name or (self.model or "own").rstrip("/").rpartition("/")[2]

    @property
    def template(self) -> str:
        return PROMPTS.get(self.prompt, self.prompt)


def _as_specs(value: Any) -> Any:
    """A teacher may be written as its model's name alone."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple({"model": entry} if isinstance(entry, str) else entry for entry in value)
    return value


class MixtureConfig(RecipeSection):
    """Several teachers, of any family: their keys and values are aligned to the student's and fused."""

    teachers: Annotated[tuple[TeacherSpec, ...], BeforeValidator(_as_specs)] = knob((), "ours",
        "the teachers, as names or mappings (name, model, revision, gguf_file, prompt, dtype, quantization, store)")
    residence: Literal["together", "one_at_a_time"] = knob("together", "ours",
        "where live teachers stay: all on the device, or only the one that reads")
    iou_threshold: float = knob(0.1, "noted", "overlap below which two tokens are not matched", "the guide", ge=0, le=1,
        idle=idle.PAIRED)
    coverage_floor: float = knob(0.5, "ours", "least share of the CoT tokens that a teacher must match", ge=0, le=1)
    time: Literal["soft", "truncate"] = knob("soft", "noted",
        "soft: by overlap of characters; truncate: token by token, cut to the shorter", "the guide")
    layer_map: Literal["ratio", "blend", "uniform", "skip", "cka"] = knob("ratio", "noted",
        "teacher layers of each student layer", "the guide")
    layer_map_files: Names = knob((), "ours", "cka: a file of kava align precompute for each teacher",
        idle=idle.NO_MAP_FILES)
    heads: Literal["group_mean", "conv", "matched"] = knob("group_mean", "noted",
        "teacher heads of each student head: neighbours, trained, or by alike attention", "the plan", idle=idle.CODES)
    rope: Literal["auto", "ntk", "linear", "dynamic"] = knob("auto", "noted",
        "how teachers' keys were rotated: as each model says, or scaled to the student's length so", "S3",
        idle=idle.CODES)
    share_adapters: Flag = knob(False, "ours", "teachers of one shape share their adapters")
    fusion: FusionName = knob("fixed", "noted", "how teachers are weighted",
        "the guide")
    weights: Annotated[tuple[float, ...] | None, BeforeValidator(as_tuple)] = knob(None, "noted",
        "fixed: one weight per teacher, summing to 1; null = equal", "the guide", idle=idle.NOT_FIXED)
    router: RouterName = knob("mlp", "noted", "learnable: what weighs", "the guide",
        idle=idle.NO_ROUTER)
    router_layers: int = knob(2, "noted", "learnable: linear layers of the mlp", "the plan", ge=1,
        idle=(idle.NO_ROUTER, idle.NO_MLP_ROUTER))
    router_dropout: float = knob(0.1, "noted", "learnable: dropout of the mlp", "the plan", ge=0, lt=1,
        idle=(idle.NO_ROUTER, idle.NO_MLP_ROUTER))
    query: Literal["hidden", "embedding"] = knob("hidden", "ours",
        "learnable: what of the question is looked at; never the answer", idle=idle.NO_ROUTER)
    per_layer: Flag = knob(False, "noted", "learnable, similarity: other weights for every student layer", "the plan",
        idle=idle.FIXED_FUSION)
    per_token: Flag = knob(False, "noted", "learnable: other weights for every token", "the plan", idle=idle.NO_ROUTER)
    similarity: Literal["cosine", "dot", "l2"] = knob("cosine", "noted", "similarity to a teacher's prototype",
        "the guide", idle=idle.NO_PROTOTYPES)
    prototype: Literal["mean", "cls", "max", "kmeans"] = knob("mean", "noted", "similarity: what stands for a teacher",
        "S3", idle=idle.NO_PROTOTYPES)
    centres: int = knob(8, "noted", "kmeans: how many", "the plan", ge=1, idle=(idle.NO_PROTOTYPES, idle.NO_CENTRES))
    prototype_examples: int = knob(256, "ours", "similarity: training examples a prototype is made of", ge=1,
        idle=idle.NO_PROTOTYPES)
    temperature: float = knob(1.0, "noted", "of the softmax over teachers", "the plan", gt=0, idle=idle.FIXED_FUSION)
    temperature_step: float = knob(0.0, "noted", "taken off the temperature after every epoch", "the plan: 0.1", ge=0,
        idle=idle.FIXED_FUSION)
    temperature_floor: float = knob(0.5, "noted", "and never below", "the plan", gt=0,
        idle=(idle.FIXED_FUSION, idle.TEMPERATURE_STAYS))
    entropy: Literal["none", "diverse", "specialized"] = knob("none", "ours",
        "push weights apart (specialized) or together (diverse); the guide's default is specialized",
        idle=idle.NO_ROUTER)
    entropy_weight: float = knob(0.01, "noted", "weight of that push", "the guide", ge=0,
        idle=(idle.NO_ROUTER, idle.ENTROPY_OFF))
    collapse_alarm: float = knob(0.95, "noted", "warn when one teacher's mean weight is above", "the plan", gt=0, le=1,
        idle=idle.FIXED_FUSION)
    layer_warmup: float = knob(0.0, "noted",
        "share of the updates with a KV loss on the first third of the layers only", "the plan: 0.3",
        idle=idle.LATENT_LAYERS, ge=0, lt=1)
    space: Literal["kv", "z"] = knob("kv", "noted", "compare keys and values, or trained codes of both", "the plan")
    z_size: int = knob(64, "ours", "z: size of the codes", ge=1, idle=idle.NO_CODES)
    z_loss: Literal["mse", "cosine", "barlow"] = knob("mse", "noted", "z: distance of codes", "the plan",
        idle=idle.NO_CODES)
    z_variance: float = knob(1.0, "ours", "z: weight of what keeps codes from shrinking to a point", ge=0,
        idle=idle.NO_CODES)

    @property
    def on(self) -> bool:
        return bool(self.teachers)

    @model_validator(mode="after")
    def _consistent(self) -> "MixtureConfig":
        labels = [teacher.label for teacher in self.teachers]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(
                    f"two teachers are called {label!r}; give them a name: {{name: {label}_2, model: ...}}"
                )
            if label in RESERVED:
                raise ValueError(f"a teacher cannot be called {label!r}, which names a number of the log")
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", label):
                raise ValueError(f"a teacher is called {label!r}; letters, digits, _ . - only")
        if self.weights is not None and self.teachers:
            if len(self.weights) != len(self.teachers):
                raise ValueError(f"{len(self.weights)} weights for {len(self.teachers)} teachers ({', '.join(labels)})")
            if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
                raise ValueError(
                    f"weights {list(self.weights)} sum to {sum(self.weights):g}; they must be >= 0 and sum to 1"
                )
        if self.layer_map == "cka" and self.teachers and len(self.layer_map_files) != len(self.teachers):
            raise ValueError(
                f"layer_map = cka needs layer_map_files, one for each of {len(self.teachers)} teachers "
                "(kava align precompute)"
            )
        return self


class ProjectorConfig(RecipeSection):
    """The projection between teacher and student sizes; for a mixture, the adapters on the teachers' side."""

    direction: Literal["none", "teacher_to_student", "student_to_teacher"] = knob("none", "noted",
        "which side is projected; none = sizes must be equal", "the guide: teacher_to_student", idle=idle.NO_PROJECTION)
    mlp_ratio: float = knob(1.0, "noted", "width of the hidden layer over the teacher's", "the guide", gt=0, le=8,
        idle=(idle.KV_OFF, idle.NO_MLP))
    dropout: float = knob(0.1, "noted", "dropout inside the projector", "the guide", ge=0, lt=1,
        idle=(idle.KV_OFF, idle.NO_MLP))
    init: Literal["xavier", "kaiming", "normal"] = knob("xavier", "noted", "start of its linear layers", "the guide",
        idle=(idle.KV_OFF, idle.NO_DIRECTION))
    match_start: MatchStart = knob("moments", "ours",
        "where projectors and adapters begin: with the mean and spread of the student's own entries (teacher_to_student and "
        "mixtures), with the map that predicts one side from the other best (least_squares), or none of these",
        idle=(idle.KV_OFF, idle.NO_START))
    trainable: Flag = knob(True, "noted", "false: a fixed random projection", "the guide",
        idle=(idle.NO_PROJECTION, idle.NO_ADAPTERS))
    learning_rate: float = knob(1e-3, "noted", "its own learning rate", "the guide", gt=0, le=1,
        idle=idle.STUDENT_ALONE)
    guard: Literal["variance", "band", "none"] = knob("variance", "ours",
        "teacher_to_student: keeps the projected targets from shrinking to a point (variance), or also from varying more "
        "than twice as much as the untrained student's entries (band)",
        idle=(idle.KV_OFF, idle.NO_COLLAPSE, idle.PROJECTOR_FIXED))
    guard_weight: float = knob(1.0, "ours", "weight of the guard", ge=0,
        idle=(idle.KV_OFF, idle.NO_COLLAPSE, idle.PROJECTOR_FIXED, idle.NO_GUARD))
