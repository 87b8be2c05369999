"""What a recipe may say: every section, key, type, range and default, each with where it comes from.

A field is the only default. Tags say how well a value is known: known (several sources or official code agree),
noted (one second-hand source), open (the paper's choice is unknown, ours is given), ours.
Reading, merging and explaining recipe files is `kava.config`; import the models from there.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import PrivateAttr, model_validator

from kava.config import idle
from kava.config.fields import (
    DISTANCES,
    Count,
    DistanceLoss,
    Flag,
    FolderName,
    GgufFile,
    KVLoss,
    Method,
    Names,
    Optimizer,
    Precision,
    RecipeSection,
    Scheduler,
    Shuffle,
    knob,
    section,
)
from kava.config.teaching import ExplicitConfig, MixtureConfig, ProjectorConfig, TeacherConfig

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
    "fsdp": "system.sharding=fsdp2, which knows of the keys and values that latent passes take from a layer",
    "fsdp_config": "system.sharding=fsdp2, which knows of the keys and values that latent passes take from a layer",
    "deepspeed": "system.sharding=fsdp2, in place of DeepSpeed",
    "parallelism_config": "torchrun and system.sharding",
}

# Fields that the library would apply to its own loss or to the outermost module, neither of which trains here.
HF_IDLE = {
    "use_liger_kernel": "the loss has its own head, and the student is not the module that the library would patch",
    "liger_kernel_config": "Liger's kernels are not applied",
    "label_smoothing_factor": "the loss is not the library's",
}


# fmt: off
class About(RecipeSection):
    """What a recipe file says about itself; its tag and source hold for the values which that file changes."""

    name: FolderName = knob("", "ours", "the recipe's name; empty: the file's")
    title: str = knob("", "ours", "one line on what the recipe is for")
    tag: Literal["known", "noted", "open", "ours"] = knob("ours", "ours", "how well this file's values are known")
    source: str = knob("", "ours", "where this file's values come from")


class ModelConfig(RecipeSection):
    name: str = knob("kava:embedded", "ours", "hub name, local folder, or kava:embedded (the shipped checkpoint)")
    revision: str | None = knob(None, "ours", "branch, tag or commit on the hub")
    gguf_file: GgufFile = knob(None, "ours",
        "read config, tokenizer and weights from this .gguf file of the folder or repository, dequantised")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = knob("float32", "ours", "type the weights are loaded in")
    trust_remote_code: Flag = knob(False, "ours", "run code that comes with the model")


class GeneratorConfig(RecipeSection):
    """Read by the built-in data sets only."""

    train_size: int = knob(20000, "ours", "training problems", ge=1)
    val_size: int = knob(500, "ours", "validation problems", ge=0)
    test_size: int = knob(2000, "ours", "test problems", ge=1)
    min_steps: int = knob(1, "ours", "fewest steps of a problem", idle=idle.AS_MANY_AS_DIGITS, ge=1)
    max_steps: int = knob(3, "ours", "most steps of a problem", idle=idle.AS_MANY_AS_DIGITS, ge=1)
    modulus: int = knob(5, "ours", "the arithmetic is modulo this number", idle=idle.NOT_MODULAR, ge=2)
    digits: int = knob(2, "ours", "long chains: digits of every number and result; multiplication: of the factors",
        idle=idle.NO_DIGITS, ge=1, le=9)
    nodes: int = knob(20, "ours", "reachability: nodes of both trees together", idle=idle.NO_GRAPH, ge=4, le=90)

    @model_validator(mode="after")
    def _ordered(self) -> "GeneratorConfig":
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps} is above max_steps = {self.max_steps}")
        return self


class DatasetConfig(RecipeSection):
    name: str = knob("chains", "ours", "hub name, local file or folder, or a built-in set (`kava data list`)")
    config: str | None = knob(None, "ours", "the hub data set's configuration, e.g. main", idle=idle.BUILT_IN)
    cot_type: Literal["equation", "natural_language"] = knob("equation", "known", "form of the chain of thought",
        "the AUG and AUG-NL data sets")
    drop_last_step: Flag = knob(True, "noted", "leave the last step out of the chain of thought",
        "keeping it costs 5 points (56.5 to 51.2)")
    step_text: Literal["whole", "results"] = knob("whole", "ours",
        "results: a chain of thought of each step's result alone, without the rest of the step")
    prompt: Literal["plain", "chat"] = knob("plain", "open",
        "plain: the question and a new line; chat: the question in the tokenizer's chat template", "not said in any source")
    subset_size: int | None = knob(None, "ours", "use only so many training examples; null = all", ge=1)
    streaming: Flag = knob(False, "ours", "read training examples while training, never all at once",
        idle=idle.BUILT_IN)
    keep_tokens: Flag = knob(True, "ours", "keep the token ids of sets of 20,000 and more examples, in KAVA_CACHE_PATH or "
        "~/.cache/kava")
    shuffle_buffer: int = knob(10_000, "ours", "examples of a stream among which the next one is drawn; 0 = its own order",
        idle=idle.NO_STREAM, ge=0, le=10_000_000)
    max_length: int | None = knob(None, "ours", "skip (and count) examples of more tokens; null = none", ge=8)
    val_size: int = knob(500, "noted", "examples held out of train where no validation set exists", "the guide", ge=0,
        idle=idle.BUILT_IN)
    seed: int = knob(0, "ours", "seed of generated sets, splits and subsets", ge=0)
    generator: GeneratorConfig = section(GeneratorConfig(), idle.NOT_BUILT_IN)


class LatentConfig(RecipeSection):
    num_tokens: int = knob(24, "known", "M, the number of latents; 0 = none", "PCCoT's official code", ge=0, le=4096)
    num_iterations: int = knob(3, "known", "T, Jacobi iterations; 0 = pause tokens", "PCCoT's official code", ge=0,
        le=4096, idle=(idle.NO_LATENTS, idle.SEQUENTIAL))
    method: Literal["jacobi", "sequential"] = knob("jacobi", "known", "how latents are made", "PCCoT's official code",
        idle=idle.NO_LATENTS)

    stage_share: float = knob(0.0, "known",
        "Coconut's curriculum: the share of the updates of each stage, at which one more step is replaced by latents; the "
        "last stage has the rest; 0 = no stages", "Coconut's official code: 3 of 25 epochs", ge=0, lt=1,
        idle=idle.NO_LATENTS)
    stage_latents: int = knob(2, "known", "c, the latents that replace a step", "Coconut's official code", ge=1,
        idle=idle.NO_STAGES)
    stage_reset: Flag = knob(False, "known", "forget the optimizer's moments when a stage begins",
        "an option of Coconut's official code", idle=idle.NO_STAGES)

    @property
    def last_stage(self) -> int:
        """The stage at which no step is left: after those of 0, c, 2c .. M latents."""
        return self.num_tokens // self.stage_latents + 1

    @property
    def feeds_back(self) -> bool:
        """False for pause tokens (T = 0) and for no latents at all (M = 0): then nothing is fed back."""
        return self.num_tokens > 0 and (self.method == "sequential" or self.num_iterations > 0)


class LossConfig(RecipeSection):
    alpha1_codi: float = knob(10.0, "known", "weight of the hidden-state term at the last cue token", ge=0)
    alpha2_kv: float = knob(1.0, "known", "weight of the key/value term", ge=0)
    kv_loss_type: KVLoss = knob("smooth_l1", "known",
        "distance between keys and values; cosine and after it: the explicit line only", idle=(idle.CODES, idle.KV_OFF))
    codi_loss_type: DistanceLoss = knob("smooth_l1", "open", "distance between hidden states",
        "parents' code smooth_l1, the paper l1", idle=idle.CODI_OFF)
    layerwise_std: Flag = knob(True, "known", "divide by the teacher's standard deviation of each layer",
        idle=(idle.CODES, idle.NO_STD))
    kv_scale: Literal["layer", "dim", "none"] | None = knob(None, "ours",
        "what keys and values are divided by: layer (one std each), dim (both sides minus the mean over the std of each "
        "dimension, from calibration), none; null = as layerwise_std says",
        idle=(idle.CODES, idle.KV_OFF, idle.NO_NUMBERS))
    std_scope: Literal["sample", "batch"] = knob("sample", "ours",
        "std per sample (any batch gives the same loss) or, as in the parents' code, per batch",
        idle=(idle.CODES, idle.NO_STD_SCOPE))
    use_projection: Flag = knob(True, "known", "two-layer MLP + LayerNorm between a hidden state and the next latent",
        idle=(idle.EXPLICIT, idle.NO_LATENTS, idle.PAUSE_TOKENS))
    student_ce: float = knob(1.0, "known", "weight of the student's cross-entropy", "parents' code", ge=0)
    teacher_ce: float = knob(1.0, "known", "weight of the teacher's cross-entropy", "parents' code", ge=0,
        idle=idle.EXPLICIT)
    step_decoder: float = knob(0.0, "noted",
        "weight of a decoder's cross-entropy, in training only: it must write step t from latent t; 0 = none", "SIM-CoT",
        ge=0, idle=(idle.EXPLICIT, idle.NO_LATENTS, idle.PAUSE_TOKENS))
    step_decoder_layers: int | None = knob(None, "open",
        "layers of the decoder, which begins as the base model's first so many; null = all of them",
        "the decoder's size is not said in any source read", ge=1, idle=idle.NO_DECODER)

    @property
    def scale_of_kv(self) -> Literal["layer", "dim", "none"]:
        """What the key/value term is divided by."""
        return self.kv_scale or ("layer" if self.layerwise_std else "none")


class RkvConfig(RecipeSection):
    lambda_: float = knob(0.1, "known", "weight of importance; redundancy has 1 - lambda", alias="lambda", ge=0, le=1,
        idle=idle.NO_SCORE)
    centred: Flag = knob(False, "ours", "redundancy of keys without their mean over the chain of thought",
        idle=idle.NO_SCORE)
    method: Method = knob("rkv", "known", "which entries of the chain of thought are kept", "the paper")
    shuffle: Shuffle = knob("none", "ours", "control: permute targets in time, or take a batch partner's")
    crop_keep: Literal["last", "first"] = knob("last", "open", "crop: which end is kept", "sources disagree",
        idle=idle.NOT_CROP)
    rotary: Literal["after", "before"] = knob("after", "open",
        "keys are taken after rotary embedding (as cached) or before it", "not said in any source", idle=idle.EXPLICIT)
    full_slots: Flag = knob(False, "ours", "full: as many latents as the longest chain of thought, no resampling",
        idle=(idle.EXPLICIT, idle.NOT_FULL))


class LoraConfig(RecipeSection):
    enabled: Flag = knob(True, "known", "train LoRA matrices; false = train every weight")
    r: int = knob(128, "known", "rank", ge=1, idle=idle.ALL_WEIGHTS)
    alpha: float = knob(32, "known", "scale, alpha / r", gt=0, idle=idle.ALL_WEIGHTS)
    dropout: float = knob(0.1, "known", "dropout on the LoRA path", ge=0, lt=1, idle=idle.ALL_WEIGHTS)
    target_modules: Names | None = knob(None, "open",
        "linear layers with LoRA; null = all seven of the family (both parents' code)",
        "one note says q, k, v, o only: set lora.target_modules=[q_proj,k_proj,v_proj,o_proj]", min_length=1,
        idle=idle.ALL_WEIGHTS)


class TrainingConfig(RecipeSection):
    epochs: int = knob(10, "known", "passes over the training set", ge=1, idle=idle.MAX_STEPS)
    max_steps: int | None = knob(None, "ours", "optimiser updates; null = as epochs say", ge=1)
    batch_size: int = knob(128, "known", "examples per process and micro-batch", ge=1)
    gradient_accumulation_steps: int = knob(1, "noted", "micro-batches per update", "the guide", ge=1)
    learning_rate: float = knob(8e-4, "known", "peak learning rate", gt=0, le=1)
    weight_decay: float = knob(0.1, "known", "AdamW's weight decay", ge=0, le=1)
    optimizer: Optimizer = knob("adamw_torch", "known", "a name that transformers knows")
    lr_scheduler: Scheduler = knob("cosine", "known", "learning-rate schedule")
    warmup_ratio: float = knob(0.05, "open", "share of the updates spent warming up",
        "0.05 in the guide, 0.03 in both parents", ge=0, lt=1, idle=idle.NO_WARMUP)
    gradient_clipping: float = knob(2.0, "known", "largest gradient norm; 0 = no clipping", ge=0)
    gradient_checkpointing: Flag = knob(False, "ours", "less memory, more time")
    start_from: str | None = knob(None, "ours",
        "begin with the weights of this checkpoint (student and adapters), not with the base model's")
    packed: Flag = knob(True, "ours", "teacher and student in T + 1 passes instead of T + 2; same losses",
        idle=idle.EXPLICIT)
    tokens_per_piece: Literal["auto", "none"] | Count = knob("auto", "ours",
        "compute a batch in pieces of rows of like lengths, at most so many tokens each (rows x longest); same update",
        idle=idle.WHOLE_BATCHES)
    on_oom: Literal["error", "reduce_batch"] = knob("error", "ours",
        "out of GPU memory: stop, or go on in smaller pieces of the same batch")
    hf: dict[str, Any] = knob({}, "ours", "any other TrainingArguments field of transformers, by its own name")

    @model_validator(mode="after")
    def _nothing_set_twice(self) -> "TrainingConfig":
        for name in self.hf:
            if name in HF_OWNED:
                raise ValueError(f"hf.{name} is set by {HF_OWNED[name]}; leave training.hf.{name} out")
            if name in HF_IDLE and self.hf[name]:
                raise ValueError(f"hf.{name} has no effect: {HF_IDLE[name]}; leave training.hf.{name} out")
        return self


class SystemConfig(RecipeSection):
    mixed_precision: Precision = knob("no", "ours", "autocast type")
    num_workers: int = knob(4, "noted", "processes that prepare batches", "the guide", ge=0, le=256)
    device: Literal["auto", "cpu", "cuda", "mps"] = knob("auto", "ours", "where to run")
    sharding: Literal["auto", "none", "fsdp2", "fsdp2_whole"] = knob("auto", "ours",
        "several processes: each holds everything (none: DDP), or a shard of weights, gradients and optimizer, gathered "
        "layer by layer (fsdp2) or as a whole (fsdp2_whole); auto: fsdp2 from 7B on")
    cpu_offload: Flag = knob(False, "ours", "shards wait in the CPU's memory, where the optimizer works",
        idle=idle.NOT_SHARDED)
    attention: Literal["branches", "dense"] = knob("branches", "ours",
        "each branch of a pass by itself, causal without a mask, or all columns under one dense mask; same numbers")
    seed: int = knob(42, "noted", "seed of weights, order, dropout and draws", "the guide: 42, 123, 456", ge=0)
    gradient_accumulation_steps: int | None = knob(None, "ours",
        "another place for training.gradient_accumulation_steps (moved there when read)", ge=1)


class LoggingConfig(RecipeSection):
    logging_steps: int = knob(50, "noted", "updates between log lines", "the guide", ge=1)
    eval_steps: int = knob(500, "noted", "updates between validations", "the guide", ge=1)
    save_steps: int = knob(1000, "noted", "updates between checkpoints", "the guide", ge=1)
    save_total_limit: int = knob(2, "ours", "checkpoints kept of each kind (step, epoch), the newest", ge=1)
    report_to: Names = knob(("tensorboard",), "noted", "tensorboard, wandb, trackio; [] = none", "the guide")
    project: str = knob("kava-reproduction", "noted", "project name for wandb and trackio", "the guide",
        idle=idle.NO_TRACKER)


class EvaluationConfig(RecipeSection):
    datasets: Names = knob(("gsm8k", "gsm8k-hard", "svamp"), "noted", "sets to evaluate on", "the guide", min_length=1)
    max_new_tokens: int = knob(256, "noted", "longest answer", "Table 6", ge=1)
    temperature: float = knob(0.0, "noted", "0 = greedy", "the guide", ge=0)
    top_p: float = knob(1.0, "noted", "nucleus sampling, only with temperature above 0", "the guide", gt=0, le=1,
        idle=idle.GREEDY)
    batch_size: int = knob(32, "ours", "questions answered at once", ge=1)
    cue: Literal["given", "generated"] = knob("given", "known",
        "the cue before the answer is given, or the model writes it", "PCCoT gives it, CODI does not")
    validation_size: int | None = knob(None, "ours", "validation examples used during training; null = all", ge=1)

# fmt: on


class Origin(NamedTuple):
    """Where a value was set ("my.yaml", "command line"), and that file's tag and source."""

    place: str
    tag: str
    source: str


class Recipe(RecipeSection):
    """A whole run. Conflicts between sections are checked here, ignored settings in `effects.py`."""

    about: About = About()
    model: ModelConfig = ModelConfig()
    dataset: DatasetConfig = DatasetConfig()
    latent: LatentConfig = section(LatentConfig(), idle.EXPLICIT)
    loss: LossConfig = LossConfig()
    rkv: RkvConfig = section(RkvConfig(), idle.KV_OFF)
    explicit: ExplicitConfig = section(ExplicitConfig(), idle.NOT_EXPLICIT)
    teacher: TeacherConfig = section(TeacherConfig(), idle.NOT_EXPLICIT, idle.MIXTURE, idle.NO_TEACHER_TERM)
    projector: ProjectorConfig = section(ProjectorConfig(), idle.OWN_TEACHER)
    mixture: MixtureConfig = section(MixtureConfig(), idle.KV_OFF, idle.ONE_TEACHER)
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    system: SystemConfig = SystemConfig()
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)

    @property
    def reads_steps(self) -> bool:
        """Whether training needs to know which step a token belongs to."""
        return self.loss.step_decoder > 0 or self.latent.stage_share > 0

    def changed(self, section: str, **values: Any) -> "Recipe":
        """The recipe with these values in one section, which are not checked again."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for contradiction in self._contradictions():
            raise ValueError(contradiction)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Settings that do not go together; what to do stands after a semicolon."""
        loss, training, twin = self.loss, self.training, self.system.gradient_accumulation_steps
        if self.explicit.enabled:
            yield from self._explicit_contradictions()
        elif loss.kv_loss_type not in DISTANCES and ":" not in loss.kv_loss_type:
            choices = ", ".join(DISTANCES)
            yield (
                f"loss.kv_loss_type = {loss.kv_loss_type} belongs to the explicit line; use {choices}, or set "
                "explicit.enabled=true"
            )
        elif loss.alpha2_kv > 0 and self.latent.num_tokens == 0:
            yield (
                f"loss.alpha2_kv = {loss.alpha2_kv:g} compares keys and values of latents, but latent.num_tokens = 0; "
                "set loss.alpha2_kv=0"
            )
        if self.mixture.on:
            yield from self._mixture_contradictions()
        if self.latent.stage_share > 0 and not self.explicit.enabled:
            yield from self._stage_contradictions()
        if loss.step_decoder > 0 and (self.mixture.on or not self.latent.feeds_back):
            yield (
                f"loss.step_decoder = {loss.step_decoder:g} decodes latents that are fed back and learn from their own "
                "weights; set loss.step_decoder=0"
            )
        if self.rkv.shuffle == "examples" and training.batch_size == 1:
            yield "rkv.shuffle = examples takes the targets of a batch partner, but training.batch_size = 1; set it to 2 or more"
        if not self.explicit.enabled and loss.student_ce == loss.teacher_ce == loss.alpha1_codi == loss.alpha2_kv == 0:
            yield "every weight under loss is 0, so nothing would be trained; set loss.student_ce=1"
        if twin is not None and twin != training.gradient_accumulation_steps:
            yield (
                f"system.gradient_accumulation_steps = {twin}, but training.gradient_accumulation_steps = "
                f"{training.gradient_accumulation_steps}; set one of them"
            )

    def _stage_contradictions(self) -> Iterator[str]:
        latent, loss = self.latent, self.loss
        off = ("teacher_ce", "alpha1_codi", "alpha2_kv", "step_decoder")
        wrong = [f"loss.{name}=0" for name in off if getattr(loss, name) > 0]
        if wrong := wrong + ["latent.method=sequential"] * (latent.method != "sequential"):
            yield (
                f"latent.stage_share = {latent.stage_share:g} learns what is left of the text behind latents that are made "
                f"one by one, and nothing else; set {', '.join(wrong)}"
            )
        if latent.num_tokens % latent.stage_latents:
            yield (
                f"latent.num_tokens = {latent.num_tokens} is no multiple of latent.stage_latents = {latent.stage_latents}; "
                "set one of them otherwise"
            )
        begins = latent.last_stage * latent.stage_share
        if begins >= 1:
            yield (
                f"the stages are longer than the run: after {latent.last_stage} of latent.stage_share = "
                f"{latent.stage_share:g} of the updates each, the last one would begin at {begins:g} of the run; set "
                f"latent.stage_share below {1 / latent.last_stage:.3g}, or latent.stage_latents higher"
            )

    def _mixture_contradictions(self) -> Iterator[str]:
        mixture, explicit, loss = self.mixture, self.explicit, self.loss
        if self.projector.direction != "none":
            yield (
                f"projector.direction = {self.projector.direction} is for one teacher; those of a mixture have adapters, "
                "set it to none"
            )
        if self.dataset.streaming:
            yield "a mixture reads each text again in every teacher's tokens; set dataset.streaming=false"
        if explicit.enabled:
            whole = explicit.form == "aggregated" or explicit.choose == "head" or explicit.cka_weight > 0
            if mixture.space == "z" and whole:
                yield (
                    "mixture.space = z compares one code per token and layer; set explicit.form=per_layer, "
                    "explicit.choose=sample and explicit.cka_weight=0"
                )
            if explicit.cka_weight > 0 and loss.alpha2_kv == 0:
                yield (
                    f"explicit.cka_weight = {explicit.cka_weight:g} stands beside the KV term of a mixture, but "
                    "loss.alpha2_kv = 0; set one of them otherwise"
                )
            if loss.alpha1_codi > 0:
                yield (
                    "loss.alpha1_codi compares with the hidden states of one teacher, which several of other widths do not "
                    "have together; set loss.alpha1_codi=0"
                )
            return
        if self.rkv.rotary == "before":
            yield "rkv.rotary = before is for the latent line's own teacher; leave it out with mixture.teachers"
        routed_by_states = mixture.fusion == "learnable" and mixture.query == "hidden"
        if mixture.space == "z" or mixture.fusion == "similarity" or routed_by_states:
            yield (
                "latents learn from a mixture in KV space, with fusion fixed, or learnable by the question's embeddings; "
                "set mixture.space=kv, mixture.query=embedding, and mixture.fusion=fixed or learnable"
            )

    def _explicit_contradictions(self) -> Iterator[str]:
        explicit, loss, direction = self.explicit, self.loss, self.projector.direction
        if loss.student_ce == loss.alpha1_codi == loss.alpha2_kv == explicit.cka_weight == 0:
            yield "every weight of the explicit line is 0, so nothing would be trained; set loss.student_ce=1"
        first, _, last = (explicit.layers or "0-0").partition("-")
        if int(first) > int(last):
            yield f"explicit.layers = {explicit.layers} ends before it begins; write a-b with a <= b"
        if explicit.form == "aggregated" and explicit.choose == "head":
            yield (
                "explicit.form = aggregated has one vector per token for all heads, so positions cannot be chosen per "
                "head; set explicit.choose=sample"
            )
        if explicit.choose == "head" and direction != "none" and loss.alpha2_kv > 0:
            yield (
                f"explicit.choose = head compares head with head, but projector.direction = {direction} mixes heads; set "
                "explicit.choose=sample"
            )
        if loss.kv_loss_type == "structural" and self.rkv.shuffle != "none":
            yield "rkv.shuffle does not reach the attention maps of structural; use cosine or mercator"
        if loss.kv_loss_type == "structural" and (explicit.form == "aggregated" or direction == "teacher_to_student"):
            yield (
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
