"""What a recipe may say: every section, key, type, range and default, each with where it comes from.

A field is the only default. Tags say how well a value is known: known (several sources or official code agree),
noted (one second-hand source), open (the paper's choice is unknown, ours is given), ours.
Reading, merging and explaining recipe files is `kava.config`; import the models from there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, Strict, model_validator

TAGS = ("known", "noted", "open", "ours")
BUILTIN_DATASETS = ("chains", "chains_nl", "variables", "variables_nl")
METHODS = ("rkv", "rkv_original", "full", "crop", "random", "uniform", "steps")
METHOD_ALIASES = {"r-kv": "rkv", "right_crop": "crop", "right": "crop"}
TABLE_ROW = "Table 6, row "
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# A TrainingArguments field that a key of ours already sets: naming it under training.hf would set it twice.
HF_OWNED = {
    "output_dir": "--output_dir",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.max_steps",
    "per_device_train_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "learning_rate": "training.learning_rate",
    "weight_decay": "training.weight_decay",
    "optim": "training.optimizer",
    "lr_scheduler_type": "training.lr_scheduler",
    "warmup_ratio": "training.warmup_ratio",
    "warmup_steps": "training.warmup_ratio",
    "max_grad_norm": "training.gradient_clipping",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "bf16": "system.mixed_precision",
    "fp16": "system.mixed_precision",
    "dataloader_num_workers": "system.num_workers",
    "use_cpu": "system.device",
    "seed": "system.seed",
    "data_seed": "system.seed",
    "logging_steps": "logging.logging_steps",
    "eval_steps": "logging.eval_steps",
    "save_steps": "logging.save_steps",
    "save_total_limit": "logging.save_total_limit",
    "report_to": "logging.report_to",
    "project": "logging.project",
    "logging_dir": "--output_dir",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "save_strategy": "logging.save_steps",
    "eval_strategy": "logging.eval_steps",
    "remove_unused_columns": "the trainer itself",
    "label_names": "the trainer itself",
}


def _spelling(table: dict[Any, str]) -> BeforeValidator:
    """Other spellings of a choice (upper case too); anything unknown passes on to the type's own check."""

    def canonical(value: Any) -> Any:
        word = value.lower() if isinstance(value, str) else value
        return table.get(word, word) if isinstance(word, str | bool | None) else value

    return BeforeValidator(canonical)


def _as_tuple(value: Any) -> Any:
    """`a` and `[a]` mean the same list."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _known_method(value: Any) -> Any:
    """A compressor's name, an alias of one, or "package.module:Name"."""
    if not isinstance(value, str):
        return value
    name = METHOD_ALIASES.get(value.lower(), value)
    if name not in METHODS and ":" not in name:
        raise ValueError(f"one of {', '.join(METHODS)}, or package.module:Name")
    return name


Flag = Annotated[bool, Strict(False)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
DISTANCES = ("smooth_l1", "mse", "l1")
DistanceLoss = Annotated[Literal["smooth_l1", "mse", "l1"], _spelling({"smoothl1": "smooth_l1"})]
KVLoss = Annotated[
    Literal["smooth_l1", "mse", "l1", "cosine", "mercator", "hybrid", "structural"],
    _spelling({"smoothl1": "smooth_l1"}),
]
Method = Annotated[str, BeforeValidator(_known_method)]
Shuffle = Annotated[Literal["none", "time", "examples"], _spelling({True: "time", False: "none", None: "none"})]
Precision = Annotated[Literal["no", "bf16", "fp16"], _spelling({False: "no"})]
Optimizer = Annotated[str, _spelling({"adamw": "adamw_torch"})]
Scheduler = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "polynomial", "cosine_with_restarts", "inverse_sqrt"
]


def knob(default: Any, tag: str, description: str, source: str = "", **limits: Any) -> Any:
    """One key of a recipe: its default, how well that default is known, what it does, and its range."""
    extra: Any = {"tag": tag, "source": source or ("" if tag == "ours" else TABLE_ROW + "Llama-1B AUG")}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """Frozen; unknown keys, wrong types, NaN and infinity are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=False, populate_by_name=True
    )


class About(Section):
    """What a recipe file says about itself; its tag and source hold for the values which that file changes."""

    name: str = knob("", "ours", "the recipe's name; empty: the file's")
    title: str = knob("", "ours", "one line on what the recipe is for")
    tag: Literal["known", "noted", "open", "ours"] = knob("ours", "ours", "how well this file's values are known")
    source: str = knob("", "ours", "where this file's values come from")


class ModelConfig(Section):
    name: str = knob("kava:embedded", "ours", "hub name, local folder, or kava:embedded (the shipped checkpoint)")
    revision: str | None = knob(None, "ours", "branch, tag or commit on the hub")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = knob("float32", "ours", "type the weights are loaded in")
    trust_remote_code: Flag = knob(False, "ours", "run code that comes with the model")


class GeneratorConfig(Section):
    """Read by the built-in data sets only."""

    train_size: int = knob(20000, "ours", "training problems", ge=1)
    val_size: int = knob(500, "ours", "validation problems", ge=0)
    test_size: int = knob(2000, "ours", "test problems", ge=1)
    min_steps: int = knob(1, "ours", "fewest steps of a problem", ge=1)
    max_steps: int = knob(3, "ours", "most steps of a problem", ge=1)
    modulus: int = knob(5, "ours", "the arithmetic is modulo this number", ge=2)

    @model_validator(mode="after")
    def _ordered(self) -> GeneratorConfig:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps} is above max_steps = {self.max_steps}")
        return self


class DatasetConfig(Section):
    name: str = knob("chains", "ours", "hub name, local file or folder, or a built-in set (chains, variables, *_nl)")
    config: str | None = knob(None, "ours", "the hub data set's configuration, e.g. main")
    cot_type: Literal["equation", "natural_language"] = knob(
        "equation", "known", "form of the chain of thought", "the AUG and AUG-NL data sets"
    )
    drop_last_step: Flag = knob(
        True, "noted", "leave the last step out of the chain of thought", "keeping it costs 5 points (56.5 to 51.2)"
    )
    subset_size: int | None = knob(None, "ours", "use only so many training examples; null = all", ge=1)
    streaming: Flag = knob(False, "ours", "read training examples while training, never all at once")
    max_length: int | None = knob(None, "ours", "skip (and count) examples of more tokens; null = none", ge=8)
    val_size: int = knob(500, "noted", "examples held out of train where no validation set exists", "the guide", ge=0)
    seed: int = knob(0, "ours", "seed of generated sets, splits and subsets", ge=0)
    generator: GeneratorConfig = GeneratorConfig()


class LatentConfig(Section):
    num_tokens: int = knob(24, "known", "M, the number of latents; 0 = none", "PCCoT's official code", ge=0, le=4096)
    num_iterations: int = knob(
        3, "known", "T, Jacobi iterations; 0 = pause tokens", "PCCoT's official code", ge=0, le=4096
    )
    method: Literal["jacobi", "sequential"] = knob("jacobi", "known", "how latents are made", "PCCoT's official code")

    @property
    def thinks(self) -> bool:
        """False for pause tokens (T = 0) and for no latents at all (M = 0): then nothing is fed back."""
        return self.num_tokens > 0 and (self.method == "sequential" or self.num_iterations > 0)


class LossConfig(Section):
    alpha1_codi: float = knob(10.0, "known", "weight of the hidden-state term at the last cue token", ge=0)
    alpha2_kv: float = knob(1.0, "known", "weight of the key/value term", ge=0)
    kv_loss_type: KVLoss = knob(
        "smooth_l1", "known", "distance between keys and values; cosine and after it: the explicit line only"
    )
    codi_loss_type: DistanceLoss = knob(
        "smooth_l1", "open", "distance between hidden states", "parents' code smooth_l1, the paper l1"
    )
    layerwise_std: Flag = knob(True, "known", "divide by the teacher's standard deviation of each layer")
    std_scope: Literal["sample", "batch"] = knob(
        "sample", "ours", "std per sample (any batch gives the same loss) or, as in the parents' code, per batch"
    )
    use_projection: Flag = knob(True, "known", "two-layer MLP + LayerNorm between a hidden state and the next latent")
    student_ce: float = knob(1.0, "known", "weight of the student's cross-entropy", "parents' code", ge=0)
    teacher_ce: float = knob(1.0, "known", "weight of the teacher's cross-entropy", "parents' code", ge=0)


class RkvConfig(Section):
    lambda_: float = knob(0.1, "known", "weight of importance; redundancy has 1 - lambda", alias="lambda", ge=0, le=1)
    method: Method = knob("rkv", "known", "which entries of the chain of thought are kept", "the paper")
    shuffle: Shuffle = knob("none", "ours", "control: permute targets in time, or take a batch partner's")
    crop_keep: Literal["last", "first"] = knob("last", "open", "crop: which end is kept", "sources disagree")
    rotary: Literal["after", "before"] = knob(
        "after", "open", "keys are taken after rotary embedding (as cached) or before it", "not said in any source"
    )
    full_slots: Flag = knob(False, "ours", "full: as many latents as the longest chain of thought, no resampling")


class ExplicitConfig(Section):
    """The second line: student and frozen teacher read the same text; no latents."""

    enabled: Flag = knob(False, "ours", "regress the student's keys and values on those of a separate teacher")
    form: Literal["per_layer", "aggregated"] = knob(
        "per_layer", "ours", "compare layer by layer, or one vector per token made of all layers"
    )
    choose: Literal["head", "sample"] = knob(
        "head", "ours", "positions are chosen per layer and head, or once per sample from mean scores"
    )
    aggregation: Literal["concat", "mean", "weighted"] = knob("concat", "ours", "aggregated: how layers become one")
    use_all_layers: Flag = knob(True, "ours", "aggregated: all layers; false = the last one only")
    layer_map: Literal["ratio", "uniform", "skip"] = knob(
        "ratio", "ours", "per_layer: teacher layers of each student layer"
    )
    layers: Annotated[str | None, Field(pattern=r"^\d+-\d+$")] = knob(
        None,
        "ours",
        "per_layer: student layers a-b (from 0, b included) whose keys and values are compared; null = all",
    )
    parts: Literal["both", "k", "v"] = knob("both", "ours", "keys and values, or only one of them")
    target_len: int = knob(8, "noted", "entries kept of each chain of thought", "the guide", ge=1)
    attention_weighted: Flag = knob(False, "ours", "weigh each entry by the importance the teacher gives it")
    attention_weighted_after: int = knob(1000, "noted", "from this update on", "the guide", ge=0)
    cka_weight: float = knob(0.0, "noted", "weight of 1 - CKA of the hidden keys", "the guide: 0.05", ge=0)
    cka_layers: str = knob("middle", "noted", "middle, last, or a list of student layers (0,5,11)", "the guide")


class TeacherConfig(Section):
    """Read by the explicit line only; the latent line is its own teacher."""

    name: str | None = knob(None, "ours", "hub name or local folder; null = a frozen copy of the student's base")
    revision: str | None = knob(None, "ours", "branch, tag or commit on the hub")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = knob("float32", "ours", "type of the teacher's weights")
    quantization: Literal["none", "nf4", "int8"] = knob(
        "none", "noted", "load it quantised (bitsandbytes)", "the guide: nf4"
    )
    device_map: Literal["none", "auto"] = knob("none", "ours", "auto: spread the teacher over the GPUs of this machine")
    store: str | None = knob(None, "ours", "read its keys and values from this folder of kava extract")
    trust_remote_code: Flag = knob(False, "ours", "run code that comes with the teacher")


class ProjectorConfig(Section):
    """Between a teacher and a student of other sizes; explicit line only."""

    direction: Literal["none", "teacher_to_student", "student_to_teacher"] = knob(
        "none", "noted", "which side is projected; none = sizes must be equal", "the guide: teacher_to_student"
    )
    mlp_ratio: float = knob(1.0, "noted", "width of the hidden layer over the teacher's", "the guide", gt=0, le=8)
    dropout: float = knob(0.1, "noted", "dropout inside the projector", "the guide", ge=0, lt=1)
    init: Literal["xavier", "kaiming", "normal"] = knob("xavier", "noted", "start of its linear layers", "the guide")
    match_start: Flag = knob(
        True, "ours", "teacher_to_student: begin with the mean and spread of the student's own entries"
    )
    trainable: Flag = knob(True, "noted", "false: a fixed random projection", "the guide")
    learning_rate: float = knob(1e-3, "noted", "its own learning rate", "the guide", gt=0, le=1)
    guard: Literal["variance", "none"] = knob(
        "variance", "ours", "teacher_to_student: keeps the projected targets from shrinking to a point"
    )
    guard_weight: float = knob(1.0, "ours", "weight of the guard", ge=0)


class LoraConfig(Section):
    enabled: Flag = knob(True, "known", "train LoRA matrices; false = train every weight")
    r: int = knob(128, "known", "rank", ge=1)
    alpha: float = knob(32, "known", "scale, alpha / r", gt=0)
    dropout: float = knob(0.1, "known", "dropout on the LoRA path", ge=0, lt=1)
    target_modules: Names | None = knob(
        None,
        "open",
        "linear layers with LoRA; null = all seven of the family (both parents' code)",
        "one note says q, k, v, o only: set lora.target_modules=[q_proj,k_proj,v_proj,o_proj]",
        min_length=1,
    )


class TrainingConfig(Section):
    epochs: int = knob(10, "known", "passes over the training set", ge=1)
    max_steps: int | None = knob(None, "ours", "optimiser updates; null = as epochs say", ge=1)
    batch_size: int = knob(128, "known", "examples per process and micro-batch", ge=1)
    gradient_accumulation_steps: int = knob(1, "noted", "micro-batches per update", "the guide", ge=1)
    learning_rate: float = knob(8e-4, "known", "peak learning rate", gt=0, le=1)
    weight_decay: float = knob(0.1, "known", "AdamW's weight decay", ge=0, le=1)
    optimizer: Optimizer = knob("adamw_torch", "known", "a name that transformers knows")
    lr_scheduler: Scheduler = knob("cosine", "known", "learning-rate schedule")
    warmup_ratio: float = knob(
        0.05, "open", "share of the updates spent warming up", "0.05 in the guide, 0.03 in both parents", ge=0, lt=1
    )
    gradient_clipping: float = knob(2.0, "known", "largest gradient norm; 0 = no clipping", ge=0)
    gradient_checkpointing: Flag = knob(False, "ours", "less memory, more time")
    packed: Flag = knob(True, "ours", "teacher and student in T + 1 passes instead of T + 2; same losses")
    on_oom: Literal["error", "reduce_batch"] = knob(
        "error", "ours", "out of GPU memory: stop, or go on in smaller pieces of the same batch"
    )
    hf: dict[str, Any] = knob({}, "ours", "any other TrainingArguments field of transformers, by its own name")

    @model_validator(mode="after")
    def _nothing_set_twice(self) -> TrainingConfig:
        for name in self.hf:
            if name in HF_OWNED:
                raise ValueError(f"hf.{name} is set by {HF_OWNED[name]}; leave training.hf.{name} out")
        return self


class SystemConfig(Section):
    mixed_precision: Precision = knob("no", "ours", "autocast type")
    num_workers: int = knob(4, "noted", "processes that prepare batches", "the guide", ge=0, le=256)
    device: Literal["auto", "cpu", "cuda", "mps"] = knob("auto", "ours", "where to run")
    seed: int = knob(42, "noted", "seed of weights, order, dropout and draws", "the guide: 42, 123, 456", ge=0)
    gradient_accumulation_steps: int | None = knob(
        None, "ours", "another place for training.gradient_accumulation_steps (moved there when read)", ge=1
    )


class LoggingConfig(Section):
    logging_steps: int = knob(50, "noted", "updates between log lines", "the guide", ge=1)
    eval_steps: int = knob(500, "noted", "updates between validations", "the guide", ge=1)
    save_steps: int = knob(1000, "noted", "updates between checkpoints", "the guide", ge=1)
    save_total_limit: int = knob(2, "ours", "checkpoints kept of each kind (step, epoch), the newest", ge=1)
    report_to: Names = knob(("tensorboard",), "noted", "tensorboard, wandb, trackio; [] = none", "the guide")
    project: str = knob("kava-reproduction", "noted", "project name for wandb and trackio", "the guide")


class EvaluationConfig(Section):
    datasets: Names = knob(("gsm8k", "gsm8k-hard", "svamp"), "noted", "sets to evaluate on", "the guide", min_length=1)
    max_new_tokens: int = knob(256, "noted", "longest answer", "Table 6", ge=1)
    temperature: float = knob(0.0, "noted", "0 = greedy", "the guide", ge=0)
    top_p: float = knob(1.0, "noted", "nucleus sampling, only with temperature above 0", "the guide", gt=0, le=1)
    batch_size: int = knob(32, "ours", "questions answered at once", ge=1)
    cue: Literal["given", "generated"] = knob(
        "given", "known", "the cue before the answer is given, or the model writes it", "PCCoT gives it, CODI does not"
    )
    validation_size: int | None = knob(None, "ours", "validation examples used during training; null = all", ge=1)


class Origin(NamedTuple):
    """Where a value was set ("my.yaml", "command line"), and that file's tag and source."""

    place: str
    tag: str
    source: str


class Recipe(Section):
    """A whole run. Conflicts between sections are checked here, settings without effect in `kava.config.effects`."""

    about: About = About()
    model: ModelConfig = ModelConfig()
    dataset: DatasetConfig = DatasetConfig()
    latent: LatentConfig = LatentConfig()
    loss: LossConfig = LossConfig()
    rkv: RkvConfig = RkvConfig()
    explicit: ExplicitConfig = ExplicitConfig()
    teacher: TeacherConfig = TeacherConfig()
    projector: ProjectorConfig = ProjectorConfig()
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    system: SystemConfig = SystemConfig()
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        loss, training = self.loss, self.training
        if self.explicit.enabled:
            self._explicit_consistent()
        elif loss.kv_loss_type not in DISTANCES:
            raise ValueError(
                f"loss.kv_loss_type = {loss.kv_loss_type} belongs to the explicit line; use {', '.join(DISTANCES)}, or "
                "set explicit.enabled=true"
            )
        elif loss.alpha2_kv > 0 and self.latent.num_tokens == 0:
            raise ValueError(
                f"loss.alpha2_kv = {loss.alpha2_kv:g} compares keys and values of latents, but latent.num_tokens = 0; "
                "set loss.alpha2_kv=0"
            )
        if self.rkv.shuffle == "examples" and training.batch_size == 1:
            raise ValueError(
                "rkv.shuffle = examples takes the targets of a batch partner, but training.batch_size = 1; set it to 2 "
                "or more"
            )
        if not self.explicit.enabled and loss.student_ce == loss.teacher_ce == loss.alpha1_codi == loss.alpha2_kv == 0:
            raise ValueError("every weight under loss is 0, so nothing would be trained; set loss.student_ce=1")
        twin = self.system.gradient_accumulation_steps
        if twin is not None and twin != training.gradient_accumulation_steps:
            raise ValueError(
                f"system.gradient_accumulation_steps = {twin}, but training.gradient_accumulation_steps = "
                f"{training.gradient_accumulation_steps}; set one of them"
            )
        return self

    def _explicit_consistent(self) -> None:
        explicit, kind = self.explicit, self.loss.kv_loss_type
        if self.loss.student_ce == self.loss.alpha1_codi == self.loss.alpha2_kv == explicit.cka_weight == 0:
            raise ValueError(
                "every weight of the explicit line is 0, so nothing would be trained; set loss.student_ce=1"
            )
        if explicit.layers is not None and int(explicit.layers.split("-")[0]) > int(explicit.layers.split("-")[1]):
            raise ValueError(f"explicit.layers = {explicit.layers} ends before it begins; write a-b with a <= b")
        if explicit.form == "aggregated" and explicit.choose == "head":
            raise ValueError(
                "explicit.form = aggregated has one vector per token for all heads, so positions cannot be chosen per "
                "head; set explicit.choose=sample"
            )
        if explicit.choose == "head" and self.projector.direction != "none" and self.loss.alpha2_kv > 0:
            raise ValueError(
                "explicit.choose = head compares head with head, but projector.direction = "
                f"{self.projector.direction} mixes heads; set explicit.choose=sample"
            )
        if kind == "structural" and self.rkv.shuffle != "none":
            raise ValueError("rkv.shuffle does not reach the attention maps of structural; use cosine or mercator")
        if kind == "structural" and (explicit.form == "aggregated" or self.projector.direction == "teacher_to_student"):
            raise ValueError(
                "loss.kv_loss_type = structural compares attention maps and needs heads on both sides; set "
                "explicit.form=per_layer and projector.direction=none, or use mercator"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers under the public key names (`lambda`), as a recipe file holds them."""
        return self.model_dump(mode="json", by_alias=True)

    def __eq__(self, other: object) -> bool:
        """Equal values; where they were set does not matter."""
        return isinstance(other, Recipe) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]
