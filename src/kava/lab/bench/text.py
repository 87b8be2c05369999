"""The tables of `kava bench`."""

from __future__ import annotations

from typing import Any

from kava.text_table import table


def _header(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in result["hardware"].items() if value is not None)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def decode_text(result: dict[str, Any]) -> str:
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


def latent_text(result: dict[str, Any]) -> str:
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


def train_text(result: dict[str, Any]) -> str:
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


def extract_text(result: dict[str, Any]) -> str:
    rows = [
        (
            way["title"],
            _ms(way["seconds"]),
            _ms(way["sd"]),
            _ms(way["cpu_seconds"]),
            f"{way['tokens_per_second']:.0f}",
            f"{result['ratio'][name]:.3f}",
            f"{result['cpu_ratio'][name]:.3f}",
        )
        for name, way in result["ways"].items()
    ]
    header = ("way", "ms", "sd", "CPU ms", "tokens/s", "time / extract's", "CPU / extract's")
    sizes = ", ".join(f"{name} {value}" for name, value in result["sizes"].items() if value is not None)
    return "\n".join([
        _header(result),
        sizes,
        f"{result['tokens']} tokens read, {result['bytes'] / 1e6:.3g} MB stored; store and teacher agree bit for bit",
        f"median and standard deviation of {result['repeats']} interleaved rounds\n",
        table(rows, header),
        "",
        f"extraction runs at {result['ratio']['forward']:.3f} of the bare forward pass's tokens per second",
    ])  # fmt: skip
