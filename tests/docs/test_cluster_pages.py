"""docs/hpc.md, docs/oom.md, docs/quick-reference.md: commands parse, keys and flags exist, messages are those of the source."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from test_from_the_guides import parse

from kava.cli.verbs import verb_command
from kava.cluster.presets import PRESETS, SIZES
from kava.cluster.site_file import RESOURCES, read_site
from kava.config import KEYS

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("hpc", "oom", "quick-reference")}
HPC = PAGES["hpc"]
INVENTED = {"RECIPE", "FOLDER"}  # what a reader fills in


def commands() -> list[str]:
    """Every line of ours in a block, and every inline command that is written out."""
    lines = []
    for text in PAGES.values():
        for block in re.findall(r"```(?:bash|text)\n(.*?)```", text, re.DOTALL):
            lines += [line for line in block.splitlines() if line.startswith("kava ")]
        outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += [
            line for line in re.findall(r"`([^`\n]+)`", outside) if re.match(r"(torchrun .*-m )?kava \w+ -", line)
        ]
        lines += re.findall(r"`(kava submit \w+[^`\n]*)`", outside)
    lines = [re.sub(r"^torchrun .*-m ", "", line) for line in lines]
    return list(dict.fromkeys(line for line in lines if "..." not in line and not INVENTED & set(line.split())))


def parse_line(line: str) -> None:
    """A command of ours; what follows `kava submit VERB` is a command line of that verb, too."""
    words = shlex.split(line, comments=True)[1:]
    if words[0] != "submit":
        return parse(words)
    import kava.cli.submit as module

    context = verb_command("submit", module).make_context("submit", words[1:])
    own = context.params
    assert own["preset"] is None or own["preset"] in PRESETS
    rest = list(context.args)
    if own["verb"] == "seeds":  # several recipes, or none: the six of the paper
        names = rest[rest.index("--config") + 1 :] if "--config" in rest else ["llama1b_aug"]
        for name in [name for name in names if not name.startswith("--")]:
            parse(["seeds", "--config", name, *(["--quick_test"] if "--quick_test" in rest else [])])
        return None
    return parse([own["verb"], *rest])


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parse_line(line)


def test_there_are_commands_of_every_cluster_verb() -> None:
    lines = commands()
    for verb in ("submit train", "submit seeds", "submit suite", "submit extract", "submit distill", "submit evaluate",
                 "jobs", "assets fetch", "assets verify"):  # fmt: skip
        assert any(line.startswith(f"kava {verb}") for line in lines), verb


def test_settings_that_are_named_exist() -> None:
    known = set(KEYS)
    sections = {key.split(".")[0] for key in known}
    for name, text in PAGES.items():
        for key in re.findall(r"`(?:kava [^`]*?)?([a-z]+\.[a-z_0-9.]+)(?:=[^`]*)?`", text):
            if key.split(".")[0] in sections and not key.endswith((".json", ".yaml", ".jsonl", ".log")):
                assert key in known, f"{name}: {key}"


def test_presets_are_those_of_the_code() -> None:
    for name, resources in PRESETS.items():
        row = next(line for line in HPC.splitlines() if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:5] == [
            f"{resources.nodes} x {resources.gpus}", str(resources.cpus), f"{resources.mem // 1024} GB",
            f"{resources.time // 3600} h",
        ]  # fmt: skip
    for name, settings in SIZES.items():
        row = [line for line in HPC.splitlines() if line.startswith(f"| {name} |")][1]
        for key in ("training.epochs", "training.batch_size", "training.gradient_accumulation_steps",
                    "training.learning_rate", "dataset.max_length", "explicit.target_len"):  # fmt: skip
            assert f" {settings[key]} " in row, f"{name} {key}"
        size, pieces = (int(settings[f"training.{key}"]) for key in ("batch_size", "gradient_accumulation_steps"))
        assert row.rstrip(" |").endswith(str(size * pieces * PRESETS[name].processes))


def test_the_site_file_of_the_page_is_read(tmp_path: Path) -> None:
    text = re.search(r"```yaml\n(.*?)```", HPC, re.DOTALL)[1]
    path = tmp_path / "kava_site.yaml"
    path.write_text(text)
    site = read_site(path)
    assert site.scheduler == "slurm"
    assert dict(site.environment)["HF_HUB_OFFLINE"] == "1"
    assert site.directives["slurm"] == ("--constraint=a100",)
    also = re.search(r"Also `qos`.*", HPC)[0]
    assert all(f"`{name}`" in also or f"{name}:" in text for name in (*RESOURCES, "container", "launcher", "sge"))


def texts() -> str:
    """Every string of the source, parts of an f-string joined by a mark."""
    strings = []
    for path in (ROOT / "src" / "kava").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                strings.append("".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    return "\n".join(strings)


def test_what_kava_says_stands_in_the_source() -> None:
    table = HPC.partition("Messages of `kava` itself:")[2].partition("Messages of other programs:")[0]
    rows = [line.strip("|").split("|")[0] for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 15
    source = texts()
    said = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert [text for text in said if text not in source] == []
