"""Loads models and tokenizers for a recipe; the only place where pretrained weights are read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kava.backbone.attention import NAME
from kava.backbone.cached import TOKENIZERS, cached, cached_gguf_problem, own_copy
from kava.backbone.custom_generate import never_run
from kava.backbone.families import Family, family_of, known
from kava.backbone.foreign import Foreign, stretch
from kava.backbone.gguf import reader, refuse_gguf
from kava.backbone.lora import add_lora
from kava.backbone.model import Backbone, LatentModel
from kava.backbone.model_sizes import check_sizes
from kava.backbone.quantize import quantization_config
from kava.backbone.recompute import recompute_layers
from kava.backbone.tokens import add_special_tokens, make_room, names_own_class
from kava.backbone.unreadable import UNREADABLE, naming_files, reason
from kava.config import LatentConfig, ModelConfig, Recipe, TeacherConfig, TeacherSpec
from kava.config.trust import check_allowed, code_refused
from kava.errors import ConfigError, ModelError
from kava.progress import progress

# Tokenizers of one vocabulary may still split these texts otherwise.
PROBES = ("3+4=7; 12 - 5 is 7.", " Zwei  Worte\n", "\u4e2d\u6587 \U0001f600")
ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = {f"kava:{name}": ASSETS / name for name in ("embedded", "long_chains")}
# The tokenizer and family of the shipped checkpoint, smaller and untrained: a student for the explicit line.
BLANK = {"kava:blank": ("kava:embedded", {"n_embd": 64, "n_inner": 192, "n_head": 4, "n_layer": 2})}
_SIZES_ONLY: ContextVar[bool] = ContextVar("sizes only", default=False)


def load_tokenizer(source: str | Path, model: ModelConfig) -> Any:
    """A fast tokenizer (spans need its offsets); a slow one is refused."""
    inside = model.gguf_file is not None or any((Path(source) / name).is_file() for name in TOKENIZERS)
    if Path(source).is_dir() and not inside:  # it would be empty
        raise ModelError(
            f"{source} has no tokenizer, none of {', '.join(TOKENIZERS)}", "put the tokenizer's files there"
        )
    tokenizer = _fetch(AutoTokenizer, source, model, "tokenizer")
    if not model.trust_remote_code and names_own_class(tokenizer, source, model.revision):
        raise code_refused(str(source))
    if not tokenizer.is_fast:
        raise ModelError(
            f"{source}: the tokenizer {type(tokenizer).__name__} is a slow one, which gives no character offsets",
            "use a checkpoint with a tokenizer.json, or convert it: AutoTokenizer.from_pretrained(...).save_pretrained",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{source}: the tokenizer has no end-of-text token", "set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so any token will do
    return tokenizer


def build_model(recipe: Recipe) -> tuple[LatentModel, Any]:
    """The model to train and its tokenizer, from the base checkpoint: special tokens, then LoRA, then the projection."""
    source = locate(recipe.model.name, recipe.model.gguf_file)
    tokenizer = load_tokenizer(source, recipe.model)
    config = load_config(recipe.model)
    family = family_of(config, recipe.model.name)
    if _SIZES_ONLY.get():
        lm = _read_lm(recipe.model, dtype=_dtype(recipe.model.dtype))
    elif recipe.model.name in BLANK:
        with torch.random.fork_rng():  # weights depend on the seed alone
            torch.manual_seed(recipe.system.seed)
            lm = AutoModelForCausalLM.from_config(
                config, dtype=_dtype(recipe.model.dtype), trust_remote_code=recipe.model.trust_remote_code
            )
    else:
        lm = _read_lm(recipe.model, dtype=_dtype(recipe.model.dtype))
    return assemble(lm, family, tokenizer, recipe), tokenizer


def load_config(model: ModelConfig) -> Any:
    """A model's config.json."""
    config = _fetch(AutoConfig, locate(model.name, model.gguf_file), model, "config.json")
    if model.name in BLANK:
        config.update(BLANK[model.name][1])
    return config


def load_plain(model: ModelConfig, dtype: torch.dtype) -> Any:
    """A causal LM of transformers with its weights, as it is."""
    return _fetch(AutoModelForCausalLM, locate(model.name, model.gguf_file), model, "weights", dtype=dtype).eval()


def step_decoder(recipe: Recipe) -> Backbone:
    """The decoder of loss.step_decoder, trained in full: the base model, or its first layers."""
    lm = _read_lm(recipe.model, dtype=_dtype(recipe.model.dtype))
    family, count = family_of(lm.config, recipe.model.name), recipe.loss.step_decoder_layers
    decoder = getattr(lm, family.decoder)
    name = "h" if hasattr(decoder, "h") else "layers"
    layers = getattr(decoder, name)
    if count is not None and count > len(layers):
        raise ConfigError(
            f"loss.step_decoder_layers = {count}, but {recipe.model.name} has {len(layers)} layers",
            f"set at most {len(layers)}, or null for all",
        )
    if count is not None:
        setattr(decoder, name, layers[:count])
        lm.config.num_hidden_layers = count
        if getattr(lm.config, "layer_types", None):
            lm.config.layer_types = lm.config.layer_types[:count]
    if next(lm.parameters()).dtype.itemsize < 4:
        lm = lm.float()
    return _read_by_attention(lm, family).requires_grad_(True)


def without_weights(model: ModelConfig, any_family: bool = False) -> Backbone:
    """A model with sizes but no weights. `any_family`: also for families read through their cache, by their config."""
    config = load_config(model)
    if any_family and not known(config):
        return Backbone(SimpleNamespace(config=config.get_text_config()), Family(str(config.model_type), rotary=False))
    return Backbone(SimpleNamespace(config=config), family_of(config, model.name))


def stored_dtype(model: Backbone) -> str:
    """The dtype of a checkpoint's weights by its config; float32 if it has none."""
    dtype = getattr(model.config, "dtype", None) or getattr(model.config, "torch_dtype", None) or "float32"
    return str(dtype).removeprefix("torch.")


def num_layers(model: ModelConfig) -> int:
    """Layers of a model of any family, by its config."""
    return int(without_weights(model, any_family=True).kv_shape.num_layers)


def assemble(lm: Any, family: Family, tokenizer: Any, recipe: Recipe) -> LatentModel:
    """Adds special tokens, LoRA and the projection to a causal LM."""
    lm.set_attn_implementation(NAME)
    special, latent, use_projection = None, recipe.latent, recipe.loss.use_projection
    if recipe.explicit.enabled:
        latent, use_projection = LatentConfig(num_tokens=0, num_iterations=0), False
    else:
        special = add_special_tokens(tokenizer)
        make_room(lm, special)
    lm.config.use_cache = False
    if recipe.training.gradient_checkpointing:
        recompute_layers(lm, family)
    backbone = add_lora(lm, family, special, recipe.lora) if recipe.lora.enabled else lm
    model = LatentModel(backbone, family, special, latent, use_projection)
    model.dense_attention = recipe.system.attention == "dense"
    return model


def teacher_model(recipe: Recipe) -> ModelConfig:
    """The model of the explicit line's teacher."""
    return foreign_model(spec_of(recipe), recipe.model)


def spec_of(recipe: Recipe) -> TeacherSpec:
    """The section teacher as an entry of mixture.teachers."""
    settings = recipe.teacher.model_dump(
        include={"revision", "gguf_file", "dtype", "quantization", "trust_remote_code"}
    )
    return TeacherSpec(model=recipe.teacher.name, **settings)


def foreign_model(spec: TeacherSpec, student: ModelConfig) -> ModelConfig:
    """The model of a mixture's teacher: the named one, or the student's base."""
    own = spec.model is None
    return ModelConfig(
        name=spec.model or student.name,
        revision=student.revision if own else spec.revision,
        gguf_file=student.gguf_file if own and spec.gguf_file is None else spec.gguf_file,
        trust_remote_code=spec.trust_remote_code or (own and student.trust_remote_code),
    )


def load_teacher(recipe: Recipe, tokenizer: Any, device: torch.device) -> Backbone:
    """The explicit line's frozen teacher on its device; its tokenizer must give the same ids as the student's."""
    settings, model = recipe.teacher, teacher_model(recipe)
    _refuse_blank(model, "set teacher.name")
    _same_tokens(load_tokenizer(locate(model.name, model.gguf_file), model), tokenizer, model.name, recipe.model.name)
    family = family_of(load_config(model), model.name)
    extra: dict[str, Any] = {}
    if settings.device_map == "auto":
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError(
                "teacher.device_map is auto, which spreads the teacher over all GPUs, but several processes share them",
                "leave teacher.device_map out under torchrun",
            )
        extra["device_map"] = "auto"
    teacher = _read_by_attention(_frozen(model, settings, device, **extra), family)
    teacher.dense_attention = recipe.system.attention == "dense"
    return teacher


def load_foreign(
    spec: TeacherSpec, student: ModelConfig, device: torch.device, rope: str = "auto", student_len: int | None = None
) -> Backbone:
    """A mixture's frozen teacher on its device: of a supported family, or any other with a KV cache (`Foreign`).

    rope: scaling of its rotary embedding to `student_len`; auto: as in the checkpoint.
    """
    model = foreign_model(spec, student)
    _refuse_blank(model, "name another model in mixture.teachers")
    config = load_config(model)
    lm = _frozen(model, spec, device)
    if rope != "auto":
        stretch(lm, model.name, rope, student_len)
    return _read_by_attention(lm, family_of(config, model.name)) if known(config) else Foreign(lm, model.name)


def locate(name: str, gguf_file: str | None = None) -> str | Path:
    """The shipped checkpoint, a folder (also one of KAVA_MODEL_PATH), or a name for the hub and its cache."""
    if name in BLANK:
        name = BLANK[name][0]
    if name in SHIPPED and gguf_file is not None:
        raise ModelError(f"{name} has no .gguf files", "leave gguf_file out")
    if name in SHIPPED:
        return SHIPPED[name]
    if name.startswith("kava:"):
        raise ModelError(f"no checkpoint {name!r} is shipped", "shipped: " + ", ".join([*SHIPPED, *BLANK]))
    _refuse_no_model(name, gguf_file)
    return own_copy(name, gguf_file) or os.path.expanduser(name)


def locate_tokenizer(name: str) -> str | Path:
    """A folder with a tokenizer, a student's too; otherwise where the model of this name is."""
    folder = Path(os.path.expanduser(name))
    return folder if any(os.path.isfile(folder / file) for file in TOKENIZERS) else locate(name)


def _refuse_no_model(name: str, gguf_file: str | None) -> None:
    """Refuses a path that is no model's folder, before a library takes it for a name of the hub."""
    path, give = Path(os.path.expanduser(name)), "give the folder of a model with config.json, weights and tokenizer"
    try:
        is_student = (path / "kava.json").is_file()
    except OSError as error:  # a name too long for this system, a folder that may not be read
        raise ModelError(f"model {name!r}: {error.strerror}", give) from error
    if is_student:
        problem = f"model {name!r} is a student of kava, which is no model of its own"
        raise ModelError(problem, f"to begin with its weights: training.start_from={name}")
    if path.is_dir():
        refuse_gguf(name, path, gguf_file)
    if path.is_dir() and gguf_file is None and not (path / "config.json").is_file():
        what = "has no config.json" if any(path.iterdir()) else "is empty"
        raise ModelError(f"model {name!r}: the folder {what}", give)
    if not path.is_dir() and (path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise ModelError(f"model {name!r}: {'a file, not a folder' if path.exists() else 'no such folder'}", give)


def _frozen(model: ModelConfig, settings: TeacherConfig | TeacherSpec, device: torch.device, **extra: Any) -> Any:
    """A frozen causal LM on its device, in evaluation mode."""
    extra = {"dtype": _dtype(settings.dtype), **extra}
    if settings.quantization != "none" and not _SIZES_ONLY.get():
        extra["quantization_config"] = quantization_config(settings.quantization, device)
        extra.setdefault("device_map", {"": str(device)})
    lm = _read_lm(model, **extra)
    return (lm if "device_map" in extra else lm.to(device)).eval().requires_grad_(False)


@contextmanager
def sizes_only() -> Iterator[None]:
    """Inside it a model is built from its config, on the meta device: it has sizes, and no weights are read."""
    token = _SIZES_ONLY.set(True)
    try:
        yield
    finally:
        _SIZES_ONLY.reset(token)


def _read_lm(model: ModelConfig, **extra: Any) -> Any:
    """A causal LM with its weights, or without them inside `sizes_only`."""
    if not _SIZES_ONLY.get():
        return _fetch(AutoModelForCausalLM, locate(model.name, model.gguf_file), model, "weights", **extra)
    config = load_config(model)
    stored = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    dtype = stored if extra["dtype"] == "auto" else extra["dtype"]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=model.trust_remote_code)


def _read_by_attention(lm: Any, family: Family) -> Backbone:
    lm.set_attn_implementation(NAME)
    lm.config.use_cache = False
    return Backbone(lm, family).eval()


def _refuse_blank(model: ModelConfig, instead: str) -> None:
    """Refuses an untrained model as a teacher."""
    if model.name in BLANK:
        raise ModelError(
            f"{model.name} is a student's start, not a model that could teach",
            f"{instead}, for example {BLANK[model.name][0]}",
        )


def _same_tokens(teacher: Any, student: Any, teacher_name: str, student_name: str) -> None:
    """Refuses a pair of different tokenizers; tokens that the student has added do not count."""
    added = {token.content for token in student.added_tokens_decoder.values()}
    vocabularies = [
        {token: index for token, index in tokenizer.get_vocab().items() if token not in added}
        for tokenizer in (student, teacher)
    ]
    if vocabularies[0] != vocabularies[1] or any(
        teacher(text)["input_ids"] != student(text)["input_ids"] for text in PROBES
    ):
        raise ModelError(
            f"teacher {teacher_name!r} and student {student_name!r} have different tokenizers, so the same text gives them "
            "other tokens",
            "take a teacher of the student's family; pairs of other families need aligned tokens (many teachers)",
        )


def _fetch(kind: Any, source: str | Path, model: ModelConfig, what: str, **extra: Any) -> Any:
    read = reader(kind, model)
    folder = cached(source, model.revision, model.gguf_file) if isinstance(source, str) else None
    revision = None if folder else model.revision
    if model.gguf_file is None:
        check_sizes(Path(folder or source))
    if model.trust_remote_code:
        check_allowed(str(source))
    try:
        with (
            progress(
                f"loading the {what} of {Path(model.name).name}" + ("" if folder or Path(source).is_dir() else " (hub)")
            ),
            naming_files(folder or source),
            never_run(),
        ):
            return read(folder or source, revision=revision, trust_remote_code=model.trust_remote_code, **extra)
    except UNREADABLE as error:
        if "trust_remote_code" in str(error):
            raise code_refused(str(source)) from error
        if model.gguf_file is not None:
            if folder is None and (absent := cached_gguf_problem(str(source), revision, model.gguf_file)):
                raise ModelError(f"model {str(source)!r}: {absent} (in the hub's cache)", "name one of them") from error
            what = f"{what.removesuffix('.json')} in {model.gguf_file}"
        raise ModelError(
            f"cannot load the {what} of model {str(source)!r}: {reason(error)}",
            "give a local folder as model.name, set KAVA_MODEL_PATH to a folder that holds ORG/NAME or NAME, or HF_HOME to "
            "a cache with the model, or check network and login",
        ) from error


def _dtype(name: str) -> torch.dtype | str:
    return name if name == "auto" else getattr(torch, name)
