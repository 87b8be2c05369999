"""kava bench: how fast, once it is shown that the fast way gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kava.cli.many import ManyCommand

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
Output = Annotated[Path | None, typer.Option(help="also write the result as JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")]
Threads = Annotated[int, typer.Option(min=0, help="torch threads; 0 = as it comes")]


@app.callback(context_settings={"help_option_names": ["--help", "-h"]})
def bench() -> None:
    """Time this machine. Every comparison first checks that both sides give the same result."""


@app.command(cls=ManyCommand)
def decode(
    model: Annotated[str, typer.Option(help="hub name, local folder, or kava:embedded (the shipped checkpoint)")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest text per prompt; it may end earlier")] = 50,
    prompts: Annotated[list[str] | None, typer.Option(help='"p1" "p2" ...; default: four of different length')] = None,
    num_warmup: Annotated[int, typer.Option(min=0, help="rounds before the clock counts")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="rounds; each times every way once")] = 5,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        typer.Option(help="of the weights; in half precision equal text cannot be expected"),
    ] = "float32",
    device: Device = "auto",
    threads: Threads = 0,
    output: Output = None,
    quiet: Quiet = False,
) -> int:
    """Greedy decoding of a plain model: everything again for each token, our cache, and the library's generate.

    The texts are compared token by token first; if they differ, nothing is timed and the exit code is 1.
    """
    _prepare(threads, output)
    from kava.evaluate.bench_decode import PROMPTS
    from kava.evaluate.bench_decode import bench as run

    asked = prompts or list(PROMPTS)
    result = run(model, asked, max_new_tokens, dtype, device, num_warmup, repeats, progress=not quiet)
    hint = "half precision rounds differently in each way; try --dtype float32" if "16" in result["dtype"] else None
    return _show(result, _decode_text, result["differences"], "the texts differ", quiet, output, hint)


@app.command(cls=ManyCommand)
def latent(
    checkpoint: Annotated[
        Path,
        typer.Option("--checkpoint", "--checkpoint_dir", help="a student's folder, such as a run's best_checkpoint"),
    ],
    batch_sizes: Annotated[list[int] | None, typer.Option(min=1, help="beside 1: n1 n2 ...; default: 16")] = None,
    questions: Annotated[int, typer.Option(min=1, help="so many of the test set, always the same ones")] = 64,
    dataset: Annotated[str | None, typer.Option(help="default: the first of the recipe's evaluation.datasets")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer; default: the recipe's")] = None,
    num_warmup: Annotated[int, typer.Option(min=0, help="rounds before the clock counts")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="rounds; each times every way once")] = 3,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="of the weights; auto = as trained")
    ] = "auto",
    device: Device = "auto",
    base: Annotated[
        str | None, typer.Option(help="where the base model of a LoRA student is, if not where it was")
    ] = None,
    threads: Threads = 0,
    output: Output = None,
    quiet: Quiet = False,
) -> int:
    """A student's latents against the chain of thought that the same weights write: cost, and accuracy beside it.

    Answers at every batch size are compared first; if they differ, nothing is timed and the exit code is 1.
    """
    from kava.cli.student import stored_recipe

    recipe = stored_recipe(checkpoint)
    _prepare(threads, output)
    from kava.evaluate.bench_latent import bench as run
    from kava.evaluate.bench_latent import open_student
    from kava.evaluate.sets import open_asked

    asked = open_asked(recipe, dataset or recipe.evaluation.datasets[0], questions)
    student = open_student(checkpoint, dtype, device, base)
    found = run(student, asked, batch_sizes or (16,), max_new_tokens, num_warmup, repeats, progress=not quiet)
    result = {"checkpoint": str(checkpoint), **found}
    hint = "half precision rounds differently in each batch; try --dtype float32" if "16" in found["dtype"] else None
    return _show(result, _latent_text, found["differences"], "the answers differ", quiet, output, hint)


@app.command()
def train(
    layers: Annotated[int, typer.Option(min=1, help="layers of the random Llama")] = 6,
    width: Annotated[int, typer.Option(min=8, help="its width")] = 512,
    heads: Annotated[int, typer.Option(min=1, help="query heads")] = 8,
    kv_heads: Annotated[int, typer.Option(min=1, help="key/value heads")] = 4,
    vocabulary: Annotated[int, typer.Option(min=16, help="tokens; 12000 = the head's share in Llama-3.2-1B")] = 12000,
    question: Annotated[int, typer.Option(min=1, help="tokens of a question")] = 64,
    cot: Annotated[int, typer.Option(min=1, help="tokens of a chain of thought")] = 60,
    latents: Annotated[int, typer.Option(min=1, help="M")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="T")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="samples per step")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="rounds; each times every order once")] = 7,
    threads: Threads = 0,
    device: Device = "cpu",
    output: Output = None,
    quiet: Quiet = False,
) -> int:
    """One training step, forward and backward: packed, unpacked, and PCCoT's order of passes, side by side."""
    from kava.errors import ConfigError

    if width % heads or heads % kv_heads or width // heads % 2:
        raise ConfigError(
            f"width {width}, heads {heads} and kv_heads {kv_heads} do not fit",
            "width must be an even multiple of heads, and heads a multiple of kv_heads",
        )
    _prepare(threads, output)
    from kava.evaluate.bench_train import Sizes, unequal
    from kava.evaluate.bench_train import bench as run

    sizes = Sizes(layers, width, heads, kv_heads, vocabulary, question, cot, latents, rounds, batch_size)
    result = run(sizes, repeats, device, progress=not quiet)
    return _show(result, _train_text, unequal(result["terms"]), "the losses differ", quiet, output)


def _prepare(threads: int, output: Path | None) -> None:
    """What can go wrong goes wrong before anything is timed."""
    from kava.errors import ConfigError

    if output is not None and (output.is_dir() or output.suffix != ".json"):
        raise ConfigError(f"--output {output} is not a .json file", "name a file that ends in .json")
    import torch

    from kava.backbone.hush import hush

    hush()
    if threads:
        torch.set_num_threads(threads)


def _show(
    result: dict[str, Any],
    text: Callable[[dict[str, Any]], str],
    differences: Sequence[str],
    what: str,
    quiet: bool,
    output: Path | None,
    hint: str | None = None,
) -> int:
    """Prints and writes the result; 1 if the check failed, so that there are no times in it."""
    from kava.cli.common import show_result
    from kava.files import write_json

    if output is not None:
        write_json(output, result)
    lines = [f"{what}, so nothing was timed", *differences, *([f"hint: {hint}"] if hint else [])]
    show_result(result, "\n  ".join(lines) if differences else text(result), quiet)
    return 1 if differences else 0


def _header(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in result["hardware"].items() if value is not None)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def _decode_text(result: dict[str, Any]) -> str:
    from kava.cli.common import table

    rows = [
        (
            row["way"],
            str(row["batch_size"]),
            _ms(row["seconds"]),
            _ms(row["sd"]),
            f"{row['tokens_per_second']:.1f}",
            str(row["forward_passes"]),
            str(row["tokens_read"]),
            f"{row['speed_up']:.2f}",
        )
        for row in result["measured"]
    ]
    header = ("way", "batch", "ms", "sd", "tokens/s", "passes", "tokens read", "x naive")
    lengths = ", ".join(map(str, result["prompt_tokens"]))
    return "\n".join([
        _header(result),
        f"{result['model']}: {result['family']}, {result['parameters'] / 1e6:.3g} M parameters, {result['dtype']}",
        f"{len(result['prompts'])} prompts of {lengths} tokens, {result['new_tokens']} new tokens "
        f"(at most {result['max_new_tokens']} each); all ways write the same",
        f"all prompts: median and standard deviation of {result['repeats']} interleaved rounds after "
        f"{result['warmup']} to warm up\n",
        table(rows, header),
    ])  # fmt: skip


def _latent_text(result: dict[str, Any]) -> str:
    from kava.cli.common import table

    rows = []
    for row in result["measured"]:
        mode = result["modes"][row["mode"]]
        memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.3g}"
        rows.append((
            row["mode"], str(row["batch_size"]), f"{100 * mode['accuracy']:.1f}",
            f"{mode['avg_forward_passes']:.2f}", f"{mode['avg_executed_calls']:.2f}",
            _ms(row["seconds_per_question"]), _ms(None if row["sd"] is None else row["sd"] / result["questions"]),
            f"{row['speed_up']:.2f}", memory,
        ))  # fmt: skip
    header = ("mode", "batch", "% correct", "passes", "calls", "ms/question", "sd", "x cot", "MiB")
    notes = [f"{name}: {mode['note']}" for name, mode in result["modes"].items() if "note" in mode]
    cues = ", ".join(f"{name} {mode['cue']}" for name, mode in result["modes"].items())
    return "\n".join([
        _header(result),
        f"{result['config']}, seed {result['seed']}, M {result['num_tokens']}, T {result['num_iterations']}, "
        f"{result['dtype']}, weights {result['weight_bytes'] / 2**20:.1f} MiB",
        f"{result['questions']} of {result['set_size']} questions of {result['dataset']}, same answers at every batch "
        f"size; cue: {cues}",
        f"median and standard deviation of {result['repeats']} interleaved rounds after {result['warmup']} to warm up\n",
        table(rows, header),
        "",
        "passes: 1 + T + generated tokens with the end token (the method's rule); calls: what the engine executed",
        f"MiB: {result['memory']}",
        *notes,
    ])  # fmt: skip


def _train_text(result: dict[str, Any]) -> str:
    from kava.cli.common import table

    rows = [
        (
            order["title"],
            str(order["passes"]),
            f"{order['gflop']:.0f}" if order["gflop"] >= 10 else f"{order['gflop']:.3f}",
            _ms(order["seconds"]),
            _ms(order["sd"]),
            f"{result['ratio'][name]:.2f}",
            _ms(order["cpu_seconds"]),
            f"{result['cpu_ratio'][name]:.2f}",
            f"{result['terms'][name]['loss']:.5f}",
        )
        for name, order in result["orders"].items()
    ]
    header = ("order of passes", "passes", "GFLOP", "ms/step", "sd", "x packed", "CPU ms", "x packed", "loss")
    sizes = ", ".join(f"{name} {value}" for name, value in result["sizes"].items())
    rounds = f"median and standard deviation of {result['repeats']} interleaved rounds\n"
    return "\n".join([_header(result), sizes, rounds, table(rows, header)])
