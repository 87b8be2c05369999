"""From a recipe and the flags of `kava extract` to what is read and what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kava.backbone.artifact import fingerprint
from kava.backbone.load import teacher_model
from kava.backbone.model import Backbone
from kava.backbone.sizes import stored_dtype, without_weights
from kava.compress import Compressor, make_compressor
from kava.config import BUILTIN_DATASETS, Recipe
from kava.config.fields import METHOD_ALIASES
from kava.data.encode import EncodedSet, Encoder, encode_split
from kava.data.example import content_hash
from kava.data.load import ExampleStream, load_examples
from kava.errors import ConfigError, DataError
from kava.provenance import versions
from kava.teachers.live import shape_of
from kava.teachers.manifest import DTYPES, RAW, Manifest, tokenizer_hash

METHODS = (RAW, "rkv", "rkv_original", "crop", "steps", "uniform")
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Request:
    """What to store. `dtype` None: the type of the teacher's weights."""

    method: str = RAW
    target_len: int | None = None
    dtype: str | None = None
    with_importance: bool = False
    with_cue: bool = False
    examples_per_shard: int = 200
    splits: tuple[str, ...] = SPLITS

    def checked(self, recipe: Recipe) -> Request:
        """The request with names and defaults filled in, or a refusal."""
        method = METHOD_ALIASES.get(self.method.lower(), self.method)
        method = RAW if method == "full" else method
        if method == "random":
            raise ConfigError(
                "--kv_method random draws anew in every epoch, so its choice cannot be stored",
                "store raw and set rkv.method=random in the run",
            )
        if method not in METHODS:
            raise ConfigError(f"unknown --kv_method {self.method!r}", f"one of: {', '.join(METHODS)}")
        if method == RAW and self.target_len is not None:
            raise ConfigError("--target_len has no effect with --kv_method raw", "leave it out, or choose a method")
        if method != RAW and recipe.rkv.shuffle != "none":
            raise ConfigError(
                f"rkv.shuffle={recipe.rkv.shuffle} draws anew in every epoch, so it cannot be stored",
                "extract with rkv.shuffle=none and set it in the run",
            )
        if recipe.dataset.streaming:
            raise ConfigError("a stream has no known length to divide into shards", "set dataset.streaming=false")
        if recipe.teacher.store is not None:
            raise ConfigError(
                "teacher.store is set, but extraction needs the teacher itself", "leave teacher.store out"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"unknown --dtype {self.dtype!r}", f"one of: {', '.join(DTYPES)}")
        if strange := [name for name in self.splits if name not in SPLITS]:
            raise ConfigError(f"unknown split {strange[0]!r}", f"--splits takes {' '.join(SPLITS)}")
        target_len = None if method == RAW else self.target_len or recipe.explicit.target_len
        splits = tuple(name for name in SPLITS if name in self.splits)
        looked = self.with_importance or (method != RAW and _compressor(method, recipe).needs_importance)
        return replace(self, method=method, target_len=target_len, with_importance=looked, splits=splits)

    def lacks(self, recipe: Recipe) -> list[str]:
        """The flags without which a store of this (checked) request cannot serve the recipe itself."""
        explicit, loss = recipe.explicit, recipe.loss
        if not explicit.enabled:
            return []
        looks = explicit.attention_weighted or loss.kv_loss_type == "structural"
        if recipe.rkv.method != "full":
            looks = looks or _compressor(recipe.rkv.method, recipe).needs_importance
        found = ["--with_importance"] if looks and loss.alpha2_kv > 0 and not self.with_importance else []
        return found + (["--with_cue"] if loss.alpha1_codi > 0 and not self.with_cue else [])


@dataclass(frozen=True)
class Source:
    """The examples in the order of the store, and what the manifest says of them."""

    encoded: EncodedSet
    facts: dict[str, Any]


def read_source(recipe: Recipe, tokenizer: Any, splits: Sequence[str], progress: bool = True) -> Source:
    """Training examples that are not too long, then all validation examples."""
    dataset = recipe.dataset
    encoder = Encoder(tokenizer, dataset.drop_last_step, dataset.cot_type)
    whole, hashes = EncodedSet(encoder.cue, encoder.eos), {}
    counts: dict[str, int] = {}
    for split in splits:
        held_out = dataset.generator.val_size if dataset.name in BUILTIN_DATASETS else dataset.val_size
        if split == "validation" and not held_out:
            continue
        examples = load_examples(dataset, split)
        assert not isinstance(examples, ExampleStream)
        found = encode_split(examples, encoder, dataset.max_length if split == "train" else None, progress=progress)
        for one in found.encoded:
            whole.append(one)
        hashes[split], counts[split] = content_hash(examples), len(found.encoded)
    if len(set(whole.ids)) != len(whole):
        raise DataError(f"data set {dataset.name}: two examples have one id", "give every example an id of its own")
    if not len(whole):
        raise DataError(f"data set {dataset.name} has nothing to extract in: {', '.join(splits)}")
    keys = ("name", "config", "cot_type", "drop_last_step", "max_length", "subset_size")
    facts = {key: getattr(dataset, key) for key in keys}
    return Source(whole, facts | {"examples": counts, "sha256": hashes})


def planned(request: Request, recipe: Recipe, num_examples: int) -> Manifest:
    """The manifest as far as the config.json of the teacher tells: enough for sizes."""
    model = without_weights(teacher_model(recipe))
    dtype = stored_dtype(model) if recipe.teacher.dtype == "auto" else recipe.teacher.dtype
    return _manifest(request, recipe, model, num_examples, dtype)


def described(request: Request, recipe: Recipe, model: Backbone, tokenizer: Any, source: Source) -> Manifest:
    """The manifest of a store that this frozen teacher makes of these examples."""
    weight = next(model.parameters())
    teacher = recipe.teacher
    named = teacher_model(recipe)
    dtype = str(model.causal_lm.dtype).removeprefix("torch.")
    facts = {"name": named.name, "revision": named.revision, "quantization": teacher.quantization, "dtype": dtype}
    return _manifest(
        request,
        recipe,
        model,
        len(source.encoded),
        dtype if weight.is_floating_point() and dtype in DTYPES else "float32",
        teacher=facts | {"weights": fingerprint(model)},
        tokenizer=tokenizer_hash(tokenizer),
        data=source.facts,
        versions=versions(),
    )


def _manifest(
    request: Request, recipe: Recipe, model: Backbone, num_examples: int, dtype: str, **facts: Any
) -> Manifest:
    settings: dict[str, Any] = {}
    if request.method != RAW:
        settings = asdict(_compressor(request.method, recipe))  # type: ignore[call-overload]
    return Manifest(
        **{"teacher": {}, "tokenizer": "", "data": {}, **facts},
        shape=shape_of(model),
        dtype=request.dtype or dtype,
        method=request.method,
        settings=settings,
        target_len=request.target_len,
        with_importance=request.with_importance,
        with_cue=request.with_cue,
        num_examples=num_examples,
        examples_per_shard=request.examples_per_shard,
    )


def _compressor(method: str, recipe: Recipe) -> Compressor:
    return make_compressor(method, lambda_=recipe.rkv.lambda_, side=recipe.rkv.crop_keep)
