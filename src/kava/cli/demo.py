"""kava demo: the whole method in minutes on a CPU, with its controls."""

from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import show_result


def demo(
    output_dir: Annotated[Path, typer.Option(help="where the runs, the table and the plot go")] = Path("outputs/demo"),
    seed: Annotated[int, typer.Option(help="seed of all three students")] = 42,
    config: Annotated[str, typer.Option(help="the recipe of the latent student with the KV term")] = "embedded",
    jobs: Annotated[int, typer.Option(help="students trained at once; 0 = all three, so that no core is idle")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")] = False,
) -> int:
    """Distil the shipped checkpoint on built-in arithmetic: about five minutes on two cores.

    Three students start from the same checkpoint and train for the same steps on the same data: one without latents,
    one with latents but no KV term, one with the KV term. The table compares them with the explicit chain of thought
    that the last student's weights write in teacher mode, on held-out problems; the tests are paired and exact.
    """
    from kava.lab.demo import run_demo

    result, text = run_demo(output_dir, config, seed, jobs, quiet)
    show_result(result, f"\n{text}\n\ntable, plot and runs: {output_dir}", quiet)
    return 0
