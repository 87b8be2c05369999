"""Cases about settings and recipe files: `kava config` reads them as every other verb does, and costs nothing."""

import json
from collections.abc import Callable
from typing import Any

from behaviour import Case
from hypothesis import strategies as st

from kava.config import KEYS, list_recipes, load_recipe
from kava.config.keys import SECTIONS, RecipeKey
from kava.config.text import dump_yaml

HUGE = str(10**30)
DEEP = 100_000
# values that no key of the kind can have, as they would be typed
NOT_A_NUMBER = (
    "x",
    "nan",
    ".nan",
    "inf",
    "-.inf",
    "1e999",
    "true",
    "null]",
    "[1]",
    "{a: 1}",
    "1,5",
    "1 2",
    "0x10",
    "1_0",
)
NOT_AN_INTEGER = (*NOT_A_NUMBER, "1.5", "1e3", HUGE, "-" + HUGE, "9" * 5000)
NOT_A_VARIANT = (":X", "a:", ":", "::", "1:2", "a b:C", "..:X", "os.path:", "-:-", "a:b:c", "nothing_of_this_name")
NOT_A_CHOICE = ("", "nothing_of_this_name", "1", "[1]", "{a: 1}", "a,b")
NOT_A_LIST_OF_NAMES = ("1", "[1]", "[[a]]", "{a: 1}", "true", "[null]")
NOT_TEACHERS = ("1", "[1]", "[[a]]", "{a: 1}", "[{}, {}]", "[{model: 1}]", "[{modle: a}]", "[{model: a, dtype: int3}]",
                "[{model: a, prompt: no place}]", "[{name: 'a b'}]", "[null]")  # fmt: skip
NOT_A_MAPPING = ("1", "x", "[1]", "true")
ODD_TEXT = ("", " ", "\t", "a" * 5000, "\udcff\udcfe", "../..", "/dev/null", "~", "null", "a\nb", "\u202e", "\x1b[2J")
ODD_NAMES = ("", ".", "..", "/", "/dev/null", "a" * 300, "a" * 10_000, "no/such/file.yaml", "debug.yaml", "folder",
             "\udcff\udcfe", "a\nb", "\x1b[2J", "debug ", "DEBUG", "~/x.yaml", "file.yaml/x.yaml", "-",
             "--", "\u4e2d\u6587")  # fmt: skip


def impossible_values(key: RecipeKey) -> tuple[str, ...]:
    """Texts that the key can never have."""
    if key.name == "mixture.teachers":
        return NOT_TEACHERS
    for begins, values in {
        "one of": NOT_A_VARIANT if "package.module:Name" in key.kind else NOT_A_CHOICE,
        "an integer": NOT_AN_INTEGER,
        "a number": (*NOT_A_NUMBER, "9" * 5000),
        "true or false": ("x", "2", "[true]", "nan", "{a: 1}"),
        "a list of names": NOT_A_LIST_OF_NAMES,
        "a list of numbers": ("x", "[x]", "[nan]", "[1e999]", "{a: 1}", "true", HUGE),
        "a mapping": NOT_A_MAPPING,
    }.items():
        if key.kind.startswith(begins):
            return values
    return ()


@st.composite
def settings(draw: st.DrawFn) -> Case:
    """`kava config --get debug section.key=value` with one setting of any key."""
    key = draw(st.sampled_from(list(KEYS.values())))
    impossible = impossible_values(key)
    wrong = ""
    if impossible and draw(st.integers(0, 3)):
        value = draw(st.sampled_from(impossible))
        wrong = f"{key.name} is {key.kind}"
        if value == "" and key.kind.endswith("or null"):
            wrong = ""
    else:
        value = draw(st.sampled_from(ODD_TEXT) | st.text(max_size=20).filter(lambda text: "\0" not in text))
    recipe = draw(st.sampled_from(("debug", "explicit_embedded", "multi_teacher_embedded")))
    words = draw(st.sampled_from([(f"{key.name}={value}",), (f"--{key.name}={value}",), (f"--{key.name}", value)]))
    if words[-1].startswith("--") and len(words) == 2:
        words = (f"{key.name}={value}",)
    return Case(("config", "--get", recipe, *words), wrong=wrong)


@st.composite
def setting_words(draw: st.DrawFn) -> Case:
    """Words in the place of settings that are none."""
    key = draw(st.sampled_from(list(KEYS)))
    section = draw(st.sampled_from(sorted(SECTIONS)))
    letter = draw(st.integers(1, len(key) - 1))
    word = draw(
        st.sampled_from((
            key, f"{key}x=1", f"{key[:letter]}{key[letter + 1 :]}=1", f"{section}=1", f"{section}={{}}", f"{section}.=1",
            f".{key}=1", f"{key}.=1", f"{key}.{key}=1", f"--{key}", f"={key}", "=", "x", "-x", "--", "---", "--=", "--.=", ".=",
            f"{key.replace('.', '..')}=1", f"{key.upper()}=1", "training.hf.=1", "training.hf..=1", "training.hf=1",
            "training.hf.nothing_of_this_name=1", f"{key} =1", f"{key}==1", "a" * 10_000, "\udcff=1", f"{key}\n=1",
        ))
    )  # fmt: skip
    harmless = (
        word in ("--", f"{section}={{}}")
        or word.startswith(f"{key}==")
        or word.split("=")[0].removeprefix("--") in KEYS
    )
    harmless = harmless or word.startswith("training.hf.")  # TrainingArguments knows its own names
    return Case(("config", "--get", "debug", word), wrong="" if harmless else f"{word[:40]!r} is no setting")


def _document(name: str) -> dict[str, Any]:
    return load_recipe(name).to_dict()


def _section(data: dict[str, Any], value: Any) -> Callable[[st.DrawFn], dict[str, Any]]:
    return lambda draw: {**data, draw(st.sampled_from(list(data))): value}


RIGHT = dump_yaml(_document("debug"))
# a whole file's text, and whether it may be accepted
TEXTS: dict[str, tuple[bytes, bool]] = {
    "an empty file": (b"", True),
    "comments alone": (b"# nothing\n", True),
    "a byte-order mark": (b"\xef\xbb\xbf" + RIGHT.encode(), True),
    "lines as on Windows": (RIGHT.replace("\n", "\r\n").encode(), True),
    "two documents": (b"training: {epochs: 1}\n---\ntraining: {epochs: 2}\n", False),
    "a list": (b"- training\n- 1\n", False),
    "a number": (b"1\n", False),
    "a word": (b"training\n", False),
    "a repeated section": (b"training: {epochs: 1}\ntraining: {epochs: 2}\n", False),
    "a repeated key": (b"training: {epochs: 1, epochs: 2}\n", False),
    "a tab": (b"training:\n\tepochs: 1\n", False),
    "a key that is a list": (b"training: {[epochs]: 1}\n", False),
    "a key that is a mapping": (b"? {training: 1}\n: 1\n", False),
    "a key that is a number": (b"training: {1: 1}\n1: 1\n", False),
    "a key that is null": (b"~: 1\n", False),
    "a merge key": (b"training:\n  <<: {epochs: 1}\n", False),
    "a merge of a list": (b"training:\n  <<: [1]\n", False),
    "an alias without its anchor": (b"training: *none\n", False),
    "an alias of itself": (b"training: &a\n  hf: {x: *a}\n", False),
    "aliases of aliases": (b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", False),
    "a Python object": (b"training: !!python/object/apply:os.system [exit]\n", False),
    "an unknown tag": (b"training: !nothing {epochs: 1}\n", False),
    "a date": (b"training: {epochs: 2020-01-01}\n", False),
    "binary": (b"training: {epochs: !!binary aGk=}\n", False),
    "a set": (b"training: !!set {epochs}\n", False),
    "a NUL": (b"training: {epochs: \0}\n", False),
    "an escaped NUL": (b'model: {name: "a\\0b"}\n', False),
    "an escaped surrogate": (b'model: {name: "\\ud800"}\n', False),
    "Latin-1": ("about: {title: caf\u00e9}\n".encode("latin-1"), False),
    "UTF-16": ("training: {epochs: 1}\n".encode("utf-16"), False),
    "bytes at random": (bytes(range(128, 256)) * 4, False),
    "brackets without an end": (b"training: " + b"[" * 3000, False),
    "braces without an end": (b"{a: " * 2000, False),
    "lists in lists": (b"training: {epochs: " + b"[" * 2000 + b"]" * 2000 + b"}", False),
    "lists in lists that can be read": (b"training: {hf: {x: " + b"[" * 100 + b"]" * 100 + b"}}", True),
    "dashes in dashes": (b"- " * 2000 + b"1", False),
    "a number of 5,000 digits": (b"training: {epochs: " + b"9" * 5000 + b"}\n", False),
    "a fraction of 5,000 digits": (b"training: {learning_rate: 0." + b"1" * 5000 + b"}\n", True),
    "a fraction beyond floats": (b"training: {learning_rate: 1e999}\n", False),
    "a line of 100,000 letters": (b"about: {title: " + b"a" * DEEP + b"}\n", True),
    "a quote without an end": (b"about: {title: 'x}\n", False),
    "a parent that is a list": (b"extends: [debug]\n", False),
    "a parent that is a number": (b"extends: 1\n", False),
    "a parent that is itself": (b"extends: my.yaml\n", False),
    "a parent that is not there": (b"extends: nothing_of_this_name\n", False),
    "a parent that is a folder": (b"extends: ..\n", False),
    "a parent that is a device": (b"extends: /dev/null\n", True),
    "a parent with too long a name": (b"extends: " + b"a" * 5000 + b"\n", False),
    "a parent with a NUL": (b'extends: "a\\0"\n', False),
    "an empty parent": (b"extends: ''\n", False),
}  # fmt: skip
JSONS: dict[str, tuple[bytes, bool]] = {
    "an empty file": (b"", False),
    "null": (b"null", False),
    "a list": (b"[]", False),
    "a repeated key": (b'{"training": {"epochs": 1, "epochs": 2}}', False),
    "not a number": (b'{"training": {"learning_rate": NaN}}', False),
    "infinity": (b'{"training": {"learning_rate": Infinity}}', False),
    "brackets without an end": (b"[" * DEEP, False),
    "lists in lists": (b'{"training": ' + b"[" * DEEP + b"]" * DEEP + b"}", False),
    "lists in lists that can be read": (b'{"training": {"hf": {"x": ' + b"[" * 900 + b"]" * 900 + b"}}}", True),
    "a number of 5,000 digits": (b'{"training": {"epochs": ' + b"9" * 5000 + b"}}", False),
    "a lone surrogate": (b'{"model": {"name": "\\ud800"}}', False),
    "an escaped NUL": (b'{"model": {"name": "\\u0000"}}', False),
    "an end too early": (json.dumps(_document("debug")).encode()[:-9], False),
    "a comma at the end": (b'{"training": {"epochs": 1,}}', False),
    "a byte-order mark": (b'\xef\xbb\xbf{"training": {"epochs": 1}}', True),
}


@st.composite
def recipe_texts(draw: st.DrawFn) -> Case:
    """A recipe file that holds one of the texts above."""
    ending, texts = draw(st.sampled_from((("yaml", TEXTS), ("json", JSONS))))
    what, (content, right) = draw(st.sampled_from(list(texts.items())))
    return _reading(draw, f"my.{ending}", content, "" if right else what)


@st.composite
def recipe_bytes(draw: st.DrawFn) -> Case:
    """A right recipe file with a few bytes changed, left out or put in."""
    content = bytearray(RIGHT.encode())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content) - 1))
        kind = draw(st.sampled_from(("change", "leave out", "put in", "cut")))
        if kind == "cut":
            del content[place + 1 :]
        content[place : place + (kind != "put in")] = b"" if kind == "leave out" else bytes([draw(st.integers(0, 255))])
        content = content or bytearray(b"x")
    return _reading(draw, "my.yaml", bytes(content), "")


@st.composite
def recipe_values(draw: st.DrawFn) -> Case:
    """A recipe file with one key of another type, one unknown key, or a section that is none."""
    data = _document(draw(st.sampled_from(("debug", "explicit_embedded"))))
    kind = draw(st.sampled_from(("value", "key", "section", "top")))
    section = draw(st.sampled_from([name for name in data if isinstance(data[name], dict) and data[name]]))
    other = draw(st.sampled_from((None, [], [1], {}, {"a": 1}, 1, 1.5, True, "x", 10**30, float("nan"), [[]], [None])))
    wrong = ""
    if kind == "value":
        data[section][draw(st.sampled_from(list(data[section])))] = other
    elif kind == "key":
        name = draw(st.sampled_from(list(data[section])))
        data[section][name[:-1] + "_x"] = data[section][name]
        wrong = f"{name[:-1]}_x is no key"
    elif kind == "section":
        data[section] = other
        wrong = "" if other in (None, {}) else f"{section} is a section"
    else:
        data[section + "s"] = data[section]
        wrong = f"{section}s is no section"
    if section == "training" and kind == "key":
        wrong = "" if "hf" in data[section].get("_x", {}) else wrong
    ending = draw(st.sampled_from(("yaml", "json")))
    text = dump_yaml(data) if ending == "yaml" else json.dumps(data)
    return _reading(draw, f"my.{ending}", text.encode(), wrong)


@st.composite
def recipe_names(draw: st.DrawFn) -> Case:
    """A recipe's name or path that is none."""
    name = draw(st.sampled_from(ODD_NAMES) | st.text(max_size=12).filter(lambda text: "\0" not in text))
    words = draw(
        st.sampled_from(
            [("--get", name), ("--get=" + name,), ("--compare", "debug", name), ("--compare", name, "debug")]
        )
    )
    wrong = (
        "" if name in list_recipes() or name.startswith("-") or name == "file.yaml" else f"{name[:40]!r} is no recipe"
    )
    if name == "/dev/null":  # empty, as a recipe file may be
        wrong = ""
    return Case(("config", *words), {"folder/x": b"", "file.yaml": b"about: {title: x}\n"}, wrong=wrong)


def _reading(draw: st.DrawFn, name: str, content: bytes, wrong: str) -> Case:
    """A command line that reads the recipe file `name`."""
    words = draw(
        st.sampled_from(
            [
                ("--get", name),
                ("--compare", "debug", name),
                ("--get", name, "--format", "json"),
                ("--get", name, "--quiet"),
            ]
        )
    )
    return Case(("config", *words), {name: content}, wrong=wrong)


CASES = st.one_of(
    settings(), settings(), setting_words(), recipe_texts(), recipe_bytes(), recipe_values(), recipe_names()
)
