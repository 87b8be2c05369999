"""kava bench: how fast, once it is shown that the fast way gives the same numbers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback(context_settings={"help_option_names": ["--help", "-h"]})
def bench() -> None:
    """Time this machine. Every comparison first checks that both sides give the same result."""


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
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 = as it comes")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")] = False,
) -> int:
    """One training step, forward and backward: packed, unpacked, and PCCoT's order of passes, side by side."""
    from kava.cli.common import show_result
    from kava.errors import ConfigError

    if width % heads or heads % kv_heads or width // heads % 2:
        raise ConfigError(
            f"width {width}, heads {heads} and kv_heads {kv_heads} do not fit",
            "width must be an even multiple of heads, and heads a multiple of kv_heads",
        )
    import torch

    from kava.evaluate.bench_train import Sizes, unequal
    from kava.evaluate.bench_train import bench as run

    if threads:
        torch.set_num_threads(threads)
    sizes = Sizes(layers, width, heads, kv_heads, vocabulary, question, cot, latents, rounds, batch_size)
    result = run(sizes, repeats, device, progress=not quiet)
    if result["equal"]:
        show_result(result, _text(result), quiet)
        return 0
    show_result(result, "the losses differ, so nothing was timed\n  " + "\n  ".join(unequal(result["terms"])), quiet)
    return 1


def _text(result: dict[str, Any]) -> str:
    from kava.cli.common import table

    rows = [
        (
            order["title"],
            str(order["passes"]),
            f"{1000 * order['seconds']:.0f}",
            f"{result['ratio'][name]:.2f}",
            f"{1000 * order['cpu_seconds']:.0f}",
            f"{result['cpu_ratio'][name]:.2f}",
            f"{result['terms'][name]['loss']:.5f}",
        )
        for name, order in result["orders"].items()
    ]
    header = ("order of passes", "passes", "ms/step", "x packed", "CPU ms", "x packed", "loss")
    machine = ", ".join(f"{name} {value}" for name, value in result["hardware"].items() if value is not None)
    sizes = ", ".join(f"{name} {value}" for name, value in result["sizes"].items())
    return f"{machine}\n{sizes}\nmedian of {result['repeats']} interleaved rounds\n\n{table(rows, header)}"
