"""kava data: look at data sets before training on them, and make rows of other ones."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kava.cli.common import OVERRIDES, Overwrite, parse_recipe_args, show_result
from kava.cli.student import Quiet, TrustRemoteCode
from kava.config import DatasetConfig, list_recipes
from kava.data.generator import BUILT_IN
from kava.data.load import SPLITS, load_examples, warn_shared
from kava.data.places import open_set
from kava.data.sources import SOURCES
from kava.data.tasks import TASKS
from kava.errors import ConfigError, DataError
from kava.files import make_folder, write_text
from kava.outputs import Output, check_outputs, rows_have
from kava.progress import loading_libraries
from kava.text_table import table

UNCOUNTED = ("encoded", "keep", "mean_cot_tokens", "max_cot_tokens")  # of a card without a tokenizer; and shares
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Data sets: what there is, counts, lengths and hashes of one, new rows from annotated ones."""


@app.command("list")
def list_sets(quiet: Quiet = False) -> int:
    """Every data set known by name: whether it is generated or where it is on the hub, and what its steps are.

    kava data check NAME prints the card of each.
    """
    sets: list[dict[str, str]] = [
        {"name": name, "steps": task.cot_type, "from": "generated", "recipe": _usual_recipe(name)}
        for name, task in TASKS.items()
    ]
    sets += [
        {
            "name": source.name,
            "steps": source.cot_type or "both or none",
            "from": f"hub: {source.hub_id}",
            "recipe": "-",
        }
        for source in SOURCES
    ]
    show_result(sets, table([[*each.values()] for each in sets], ["name", "steps", "from", "recipe"]), quiet)
    return 0


@app.command("check", context_settings=OVERRIDES)
def check(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="known name, hub name, file or folder")],
    config: Annotated[
        str | None, typer.Option(help="count tokens as this recipe does: its tokenizer, M and dataset.drop_last_step")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="count tokens with the tokenizer of this model")] = None,
    split: Annotated[Literal["train", "validation", "test", "all"], typer.Option(help="which part to read")] = "all",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> int:
    """Read a data set as training would and print its card: rows, hash, steps, share of N_C < M and of N_C = 0.

    Every row is read and checked; the first bad one is named by file, line and field. Token counts need a tokenizer:
    --config or --tokenizer. Settings can follow: dataset.drop_last_step=false.
    """
    with loading_libraries():
        from kava.backbone.silence_libraries import silence_libraries
        from kava.data.cards import card, shipped_card
        from kava.evaluation.eval_sets import cot_type_of

    silence_libraries()
    recipe = parse_recipe_args(config or _usual_recipe(name), ctx)
    cot_type = cot_type_of(name, recipe.dataset.cot_type)
    dataset = recipe.dataset.model_copy(update={"name": name, "cot_type": cot_type, "streaming": False})
    splits = _splits(dataset) if split == "all" else [split]
    parts = {part: list(load_examples(dataset, part)) for part in splits}
    if name not in BUILT_IN:
        warn_shared(parts, dataset)
    encoder = None
    if config is not None or tokenizer is not None:
        with loading_libraries():
            from kava.backbone.load import load_tokenizer, locate, locate_tokenizer
            from kava.data.encode import Encoder

        model = recipe.model.model_copy(update={"name": tokenizer} if tokenizer is not None else {})
        source = locate(model.name, model.gguf_file) if tokenizer is None else locate_tokenizer(tokenizer)
        reader = load_tokenizer(source, model)
        encoder = Encoder.of(reader, dataset)
    cards: dict[str, dict[str, Any]] = {}
    for part, examples in parts.items():
        encoded = [] if encoder is None else encoder.encode_all(examples, progress=not quiet)
        facts = card(encoded, examples, recipe.latent.num_tokens, parts.get("test") if part != "test" else None)
        if encoder is None:
            facts = {k: v for k, v in facts.items() if k not in UNCOUNTED and not k.startswith("share_")}
        cards[part] = facts
    try:
        about = shipped_card(name)
    except DataError:  # a data set of the user's own
        about = None
    text = "\n".join([f"{name} ({dataset.cot_type})", "", _table(cards), *(["", about.strip()] if about else [])])
    show_result({"name": name, "cot_type": dataset.cot_type, "splits": cards, "card": about}, text, quiet)
    return 0


@app.command("redraw")
def redraw_rows(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="annotated rows: gsm8k, a file or folder")],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="a .jsonl file, e.g. datasets/gsm8k-redrawn/train.jsonl")
    ],
    copies: Annotated[int, typer.Option(min=1, help="new rows of each row, at most")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="other seeds draw other numbers")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Make rows like GSM8k-AUG's from annotated ones: other numbers in the question, every equation recomputed.

    Reads the training rows. A row is left out, and counted, where it is not known what a number stands for, and where no
    draw is plausible: positive, whole where it was whole, of the same size.
    """
    from kava.data.redraw import redraw

    if output.suffix != ".jsonl":
        raise ConfigError(f"OUTPUT {output} is no .jsonl file", "name one, such as datasets/gsm8k-redrawn/train.jsonl")
    check_outputs([Output("OUTPUT", output, rows_have("id", "question", "steps", "answer"))], [Path(name)], overwrite)
    dataset = DatasetConfig().model_copy(update={"name": name, "cot_type": "equation", "val_size": 0})
    if name in BUILT_IN:
        raise DataError(f"data set {name} is generated: it has rows of any number already", "set dataset.generator")
    examples = list(load_examples(dataset, "train"))
    made = redraw(examples, copies, seed, not quiet)
    if not made.rows:
        reasons = "; ".join(f"{count} x {why}" for why, count in made.refused.most_common(3))
        raise DataError(
            f"data set {name}: none of {len(examples)} rows can be drawn again ({reasons})", "it needs <<a+b=c>>"
        )
    make_folder(output.parent)
    write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made.rows))
    reasons = "\n".join(f"  {count:>6,}  {why}" for why, count in made.refused.most_common())
    text = f"{len(made.rows):,} rows of {len(examples):,}; left out:\n{reasons}\nwrote {output}"
    summary = {"output": str(output), "rows": len(made.rows), "of": len(examples), "left_out": dict(made.refused)}
    show_result(summary, text, quiet)
    return 0


def _usual_recipe(name: str) -> str:
    """The recipe whose settings a data set is read with where none is named."""
    own = name.removesuffix("_nl")
    return "llama1b_aug" if name not in BUILT_IN else own if own in list_recipes() else "embedded"


def _splits(dataset: DatasetConfig) -> list[str]:
    """The splits that training and evaluation would use."""
    if dataset.name in BUILT_IN:
        return list(SPLITS)
    opened = open_set(dataset.name, dataset.config)
    names = set(opened.splits)
    if opened.whole is not None:
        names = {"test" if opened.source.whole_is_test else "train"}
    if "train" in names and dataset.val_size:
        names.add("validation")
    return [split for split in SPLITS if split in names]


def _table(cards: dict[str, dict[str, Any]]) -> str:
    keys = next(iter(cards.values()))
    return table([[key, *(_cell(card[key]) for card in cards.values())] for key in keys], ["", *cards])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else value[:16] if isinstance(value, str) else str(value)
