"""The result of the GPU kit as a table of 80 columns, and as an entry of docs/LOG.md that waits for its conclusions."""

from typing import Any

from kava.text_table import table

COLUMNS = 80


def kit_text(result: dict[str, Any]) -> str:
    """The machine, and a row for each item."""
    facts, versions = result["hardware"], result["versions"]
    rows = [[item["name"], item["state"], f"{item['seconds']:.0f}", item["text"]] for item in result["items"]]
    states = [item["state"] for item in result["items"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    sizes = ", toy sizes: no figure here means anything" if result["tiny"] else ""
    return "\n".join([
        f"GPU kit on {facts.get('device', 'a device that was not opened')}{sizes}",
        *_wrapped(_named(facts, "capability", "memory_bytes", "half", "cuda", "cpu", "threads")),
        *_wrapped(_named(versions)),
        f"revision {result.get('git') or 'unknown'}",
        "",
        table(rows, ("item", "state", "s", "what was seen"), width=COLUMNS),
        "",
        f"{counts or 'nothing run'} in {result.get('seconds', 0):.0f} s",
    ])  # fmt: skip


def log_entry(result: dict[str, Any]) -> str:
    """An entry for docs/LOG.md: the conclusions are for whoever ran it to write."""
    facts, date = result["hardware"], str(result.get("started", ""))[:10]
    lines = [f"| {item['name']} | {item['state']} | {item['seconds']} | {item['text']} |" for item in result["items"]]
    return "\n".join([
        f"## {date} - The GPU kit on {facts.get('device', 'a device that was not opened')}",
        "",
        "**Question.** Does everything run on this device as on a CPU, and how fast?",
        "",
        f"**Method.** `kava bench gpu`{' --tiny' if result['tiny'] else ''}: {_named(facts)}; {_named(result['versions'])}; "
        f"revision {result.get('git')}. Random weights; one process; median of three interleaved rounds.",
        "",
        "| item | state | s | what was seen |",
        "|---|---|---|---|",
        *lines,
        "",
        "**Conclusions.** (to be written: what holds, what does not, what cannot be concluded)",
        "",
    ])  # fmt: skip


def _named(facts: dict[str, Any], *names: str) -> str:
    chosen = {name: facts[name] for name in names or facts if name in facts}
    return ", ".join(f"{name} {'not installed' if value is None else value}" for name, value in chosen.items())


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, COLUMNS, break_on_hyphens=False)
