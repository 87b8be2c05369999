"""The request of `kava extract`, the examples that it reads, and the manifest of its store."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kava.backbone.load import foreign_model, spec_of, stored_dtype, without_weights
from kava.backbone.model import Backbone
from kava.compress import compressor_of
from kava.config import BUILTIN_DATASETS, Recipe, TeacherSpec
from kava.config.fields import METHOD_ALIASES
from kava.data.encode import EncodedSet, Encoder, encode_split
from kava.data.example import content_hash
from kava.data.load import ExampleStream, load_examples
from kava.data.teacher_texts import TeacherTokenization, texts_of
from kava.errors import ConfigError, DataError
from kava.teachers.manifest import DTYPES, RAW, Manifest

METHODS = (RAW, "rkv", "rkv_original", "crop", "steps", "uniform")
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Request:
    """What to store. `dtype` None: the dtype of the teacher's weights.

    spec: a teacher of a mixture, with its own tokens; None: the recipe's one teacher with the student's tokens.
    """

    method: str = RAW
    target_len: int | None = None
    dtype: str | None = None
    with_importance: bool = False
    with_cue: bool = False
    examples_per_shard: int = 200
    splits: tuple[str, ...] = SPLITS
    with_question: bool = False
    spec: TeacherSpec | None = None

    def checked(self, recipe: Recipe) -> "Request":
        """The request with names and defaults filled in; invalid ones are refused."""
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
        self._check_spec(method)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"unknown --dtype {self.dtype!r}", f"one of: {', '.join(DTYPES)}")
        if unknown := [name for name in self.splits if name not in SPLITS]:
            raise ConfigError(f"unknown split {unknown[0]!r}", f"--splits takes {' '.join(SPLITS)}")
        target_len = None if method == RAW else self.target_len or recipe.explicit.target_len
        splits = tuple(name for name in SPLITS if name in self.splits)
        importance = self.with_importance or (method != RAW and compressor_of(recipe.rkv, method).needs_importance)
        return replace(self, method=method, target_len=target_len, with_importance=importance, splits=splits)

    def _check_spec(self, method: str) -> None:
        if self.spec is None:
            if self.with_question:
                raise ConfigError(
                    "--with_question is read by mixtures only", "leave it out, or add --teacher or --own_tokenizer"
                )
            return
        if method != RAW:
            raise ConfigError(
                f"--kv_method {method} chooses among the student's tokens, but a teacher of a mixture reads its own",
                "store raw: columns are chosen after its tokens are matched",
            )
        if self.with_cue:
            raise ConfigError("--with_cue is read by a run with one teacher only", "leave it out")
        if self.spec.store is not None:
            raise ConfigError(
                f"teacher {self.spec.label} has a store, but extraction needs the teacher itself",
                "leave store out of its entry in mixture.teachers",
            )

    def lacks(self, recipe: Recipe) -> list[str]:
        """The missing flags without which the store cannot serve the recipe itself."""
        explicit, loss = recipe.explicit, recipe.loss
        if not explicit.enabled:
            return []
        importance = explicit.attention_weighted or explicit.gamma_kl > 0 or loss.kv_loss_type == "structural"
        if recipe.rkv.method != "full":
            importance = importance or compressor_of(recipe.rkv).needs_importance
        flags = ["--with_importance"] if importance and loss.alpha2_kv > 0 and not self.with_importance else []
        if recipe.mixture.on:
            similar = recipe.mixture.fusion == "similarity" and not self.with_question
            return flags + (["--with_question"] if similar else [])
        return flags + (["--with_cue"] if loss.alpha1_codi > 0 and not self.with_cue else [])


@dataclass(frozen=True)
class ExtractionData:
    """The examples in the order of the store, and their description in the manifest."""

    encoded: EncodedSet
    facts: dict[str, Any]


def read_source(
    recipe: Recipe,
    tokenizer: Any,
    splits: Sequence[str],
    progress: bool = True,
    tokenization: TeacherTokenization | None = None,
) -> ExtractionData:
    """Training examples within the length limit, then all validation examples.

    Lengths are those of the student's tokens; the examples are returned in the tokens of `tokenization`, if given.
    """
    dataset = recipe.dataset
    encoder = Encoder.of(tokenizer, dataset)
    used = encoder if tokenization is None else tokenization.encoder
    whole, hashes = EncodedSet(used.cue, used.eos), {}
    counts: dict[str, int] = {}
    for split in splits:
        held_out = dataset.generator.val_size if dataset.name in BUILTIN_DATASETS else dataset.val_size
        if split == "validation" and not held_out:
            continue
        examples = load_examples(dataset, split)
        assert not isinstance(examples, ExampleStream)
        limit = dataset.max_length if split == "train" else None
        rows = encode_split(examples, encoder, limit, progress=progress).encoded
        if tokenization is not None:
            texts = texts_of(examples)
            rows = used.encode_all([tokenization.apply_prompt(texts[key]) for key in rows.ids], progress=progress)
        for row in rows:
            whole.append(row)
        hashes[split], counts[split] = content_hash(examples), len(rows)
    if len(set(whole.ids)) != len(whole):
        raise DataError(f"data set {dataset.name}: two examples have one id", "give every example an id of its own")
    if not len(whole):
        raise DataError(f"data set {dataset.name} has nothing to extract in: {', '.join(splits)}")
    keys = ("name", "config", "cot_type", "drop_last_step", "max_length", "subset_size")
    facts = {key: getattr(dataset, key) for key in keys}
    facts |= {"prompt": dataset.prompt} if dataset.prompt != "plain" else {}  # stores of plain text have no such entry
    facts |= {"step_text": dataset.step_text} if dataset.step_text != "whole" else {}
    return ExtractionData(whole, facts | {"examples": counts, "sha256": hashes})


def planned(request: Request, recipe: Recipe, num_examples: int) -> Manifest:
    """The manifest without what needs the weights: enough for sizes."""
    spec = request.spec or spec_of(recipe)
    model = without_weights(foreign_model(spec, recipe.model), any_family=request.spec is not None)
    dtype = stored_dtype(model) if spec.dtype == "auto" else spec.dtype
    return manifest_of(request, recipe, model, num_examples, dtype)


def manifest_of(request: Request, recipe: Recipe, model: Backbone, num_examples: int, dtype: str) -> Manifest:
    """The manifest of a checked request; `dtype` is that of a request without one."""
    compressor: Any = None if request.method == RAW else compressor_of(recipe.rkv, request.method)
    copied = (
        "method", "target_len", "with_importance", "with_cue", "with_question", "examples_per_shard"
    )  # fmt: skip
    return Manifest(
        teacher={}, tokenizer="", data={}, shape=model.kv_shape, dtype=request.dtype or dtype, num_examples=num_examples,
        settings={} if compressor is None else asdict(compressor), **{name: getattr(request, name) for name in copied},
    )  # fmt: skip
