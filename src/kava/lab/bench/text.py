"""The tables of `kava bench`. `cells` is the format of a row, times in milliseconds, with a bar between columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from kava.text_table import table

TIMES = ("seconds", "sd", "cpu_seconds", "seconds_per_question")


def decode_text(result: dict[str, Any]) -> str:
    header = ("way", "batch", "ms", "sd", "tokens/s", "passes", "tokens read", "x naive")
    cells = "{way}|{batch_size}|{seconds}|{sd}|{tokens_per_second:.1f}|{forward_passes}|{tokens_read}|{speed_up:.2f}"
    lengths = ", ".join(map(str, result["prompt_tokens"]))
    return _page(
        result,
        f"{result['model']}: {result['family']}, {result['parameters'] / 1e6:.3g} M parameters, {result['dtype']}",
        f"{len(result['prompts'])} prompts of {lengths} tokens, {result['new_tokens']} new tokens "
        f"(at most {result['max_new_tokens']} each); all ways write the same",
        f"all prompts: {_rounds(result)}",
        _table(header, cells, result["measured"]),
    )


def latent_text(result: dict[str, Any]) -> str:
    header = ("mode", "batch", "% correct", "passes", "calls", "ms/question", "sd", "x cot", "MiB")
    cells = "{mode}|{batch_size}|{percent:.1f}|{avg_forward_passes:.2f}|{avg_executed_calls:.2f}"
    cells += "|{seconds_per_question}|{sd}|{speed_up:.2f}|{memory}"
    modes, rows = result["modes"], []
    cues = ", ".join(f"{name} {mode['cue']}" for name, mode in modes.items())
    for row in result["measured"]:
        sd = None if row["sd"] is None else row["sd"] / result["questions"]
        memory, mode = _mib(row["peak_bytes"]), modes[row["mode"]]
        rows.append({**mode, **row, "percent": 100 * mode["accuracy"], "sd": sd, "memory": memory})
    return _page(
        result,
        f"{result['config']}, seed {result['seed']}, M {result['num_tokens']}, T {result['num_iterations']}, "
        f"{result['dtype']}, weights {result['weight_bytes'] / 2**20:.1f} MiB",
        f"{result['questions']} of {result['set_size']} questions of {result['dataset']}, same answers at every batch "
        f"size; cue: {cues}",
        _rounds(result),
        _table(header, cells, rows),
        "",
        "passes: 1 + T + generated tokens with the end token (the method's rule); calls: what the engine executed",
        f"MiB: {result['memory']}",
        *(f"{name}: {mode['note']}" for name, mode in modes.items() if "note" in mode),
    )


def answer_text(result: dict[str, Any]) -> str:
    header = ("what", "batch", "ms", "sd", "library ms", "sd", "x library", "CPU x library")
    rows = []
    for row in result["measured"]:
        cells = [f"{_ms(row[way]['seconds'])}|{_ms(row[way]['sd'])}" for way in ("kava", "library")]
        words = {"question": "whole question", "token": "one further token"}
        rows.append(
            f"{words[row['what']]}|{row['batch_size']}|{'|'.join(cells)}|{row['ratio']:.2f}|{row['cpu_ratio']:.2f}"
        )
    return _page(
        result,
        f"{result['model']}: {result['family']}, {result['parameters'] / 1e6:.3g} M parameters, {result['dtype']}, "
        f"M {result['num_tokens']}, {result['rounds']} rounds, {result['new_tokens']} tokens an answer",
        "same tokens as the library's model, called for the same columns in each pass; a further token: its generate",
        _rounds(result),
        table([row.split("|") for row in rows], header),
    )


def train_text(result: dict[str, Any]) -> str:
    header = ["order of passes", "passes", "GFLOP", "ms/step", "sd", "x packed", "CPU ms", "x packed", "loss"]
    cells = "{title}|{passes}|{work}|{seconds}|{sd}|{ratio:.2f}|{cpu_seconds}|{cpu_ratio:.2f}|{loss}"
    rows, lines = _with_ratios(result, "orders"), []
    base = result["orders"]["packed"]
    for row, name in zip(rows, result["orders"], strict=True):
        terms = result["terms"].get(name)
        row |= {"work": f"{row['gflop']:.{0 if row['gflop'] >= 10 else 3}f}", "loss": "-"}
        row |= {"loss": f"{terms['loss']:.5f}"} if terms else {}
        row["work_ratio"] = f"{row['gflop'] / base['gflop']:.2f}"
    if "real_tokens" in result:
        header[2:2], header[4:4] = ["pieces"], ["x packed"]
        cells = cells.replace("{work}", "{pieces}|{work}|{work_ratio}")
        padding = result["padding"]
        lines = [
            "",
            f"rows with the lengths of {result['sizes']['lengths']}: {result['real_tokens']} tokens in all passes; columns "
            f"over real tokens of the text {padding['whole']:.2f} whole, {padding['pieces']:.2f} in pieces",
        ]
    return _page(result, _listed(result["sizes"]), _rounds(result), _table(header, cells, rows), *lines)


def extract_text(result: dict[str, Any]) -> str:
    header = ("way", "ms", "sd", "CPU ms", "tokens/s", "time / extract's", "CPU / extract's")
    cells = "{title}|{seconds}|{sd}|{cpu_seconds}|{tokens_per_second:.0f}|{ratio:.3f}|{cpu_ratio:.3f}"
    return _page(
        result,
        _listed(result["sizes"]),
        f"{result['tokens']} tokens read, {result['bytes'] / 1e6:.3g} MB stored; store and teacher agree bit for bit",
        _rounds(result),
        _table(header, cells, _with_ratios(result, "ways")),
        "",
        f"extraction runs at {result['ratio']['forward']:.3f} of the bare forward pass's tokens per second",
    )


def _page(result: dict[str, Any], *lines: str) -> str:
    return "\n".join([_listed(result["hardware"]), *lines])


def _rounds(result: dict[str, Any]) -> str:
    warmup = f" after {result['warmup']} to warm up" if "warmup" in result else ""
    return f"median and standard deviation of {result['repeats']} interleaved rounds{warmup}\n"


def _with_ratios(result: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [row | {of: result[of][name] for of in ("ratio", "cpu_ratio")} for name, row in result[key].items()]


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _table(header: Sequence[str], cells: str, rows: Sequence[Mapping[str, Any]]) -> str:
    texts = [{**row, **{name: _ms(row[name]) for name in TIMES if name in row}} for row in rows]
    return table([cells.format(**row).split("|") for row in texts], header)


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.3g}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"
