"""Rows to examples: schemas, messages, the places a set may lie in, splits, subsets, streaming, cards. No network."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import zoo_tokenizers as zoo
from kava.data.cards import card, shipped_card
from kava.data.encode import Encoder
from kava.data.example import Example, content_hash
from kava.data.load import load_examples, load_file
from kava.data.places import open_set
from kava.data.rows import number_text, plain_number, sentences
from kava.data.sources import SOURCES, known_source
from kava.errors import DataError

ROOT = Path(__file__).parents[2]
GENERATOR = SimpleNamespace(train_size=50, val_size=10, test_size=20, min_steps=1, max_steps=2, modulus=5)
GSM8K = {
    "question": "Weng earns $12 an hour for babysitting. Yesterday, she did 50 minutes. How much did she earn?",
    "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = "
    "$<<0.2*50=10>>10.\n#### 1,010",
}


def section(name, **changes):
    fields = {
        "name": str(name), "config": None, "cot_type": "equation", "subset_size": None, "streaming": False,
        "val_size": 5, "seed": 0, "generator": GENERATOR,
    }  # fmt: skip
    return SimpleNamespace(**{**fields, **changes})


def rows(count, start=0):
    return [
        {"question": f"What is {i} plus {i} plus 1?", "steps": [f"<<{i}+{i}={2 * i}>>", f"<<{2 * i}+1={2 * i + 1}>>"],
         "answer": str(2 * i + 1)}
        for i in range(start, start + count)
    ]  # fmt: skip


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def questions(examples):
    return [e.question for e in examples]


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "cot_type", "steps", "answer"),
    [
        (GSM8K, "equation", ("<<12/60=0.2>>", "<<0.2*50=10>>"), "1010"),
        (
            GSM8K,
            "natural_language",
            ("Weng earns 12/60 = $0.2 per minute.", "Working 50 minutes, she earned 0.2 x 50 = $10."),
            "1010",
        ),
        ({"question": "q", "answer": "No annotation at all.\n#### -3"}, "equation", (), "-3"),
        ({"question": "q", "steps": ["<<1+1=2>>", " "], "answer": 2}, "equation", ("<<1+1=2>>",), "2"),
        ({"question": "q", "steps": [], "answer": "#### 2,000"}, "equation", (), "2000"),
        ({"question": "q", "steps": "<<1+1=2>> <<2*2=4>>", "answer": "4"}, "equation", ("<<1+1=2>>", "<<2*2=4>>"), "4"),
        ({"question": "q", "steps": "1+1=2; 2*2=4;", "answer": "4"}, "equation", ("1+1=2", "2*2=4"), "4"),
        (
            {"question": "q", "steps": "Mr. Fox has 2.5 hens. He buys 3. Now 5.5!", "answer": 5.5},
            "natural_language",
            ("Mr. Fox has 2.5 hens.", "He buys 3.", "Now 5.5!"),
            "5.5",
        ),
        ({"prompt": "q", "target": "A"}, "equation", (), "A"),
        ({"problem": "q", "answer_text": "7.0"}, "equation", (), "7"),
        ({"question": "q", "target": 12.0}, "equation", (), "12"),
        ({"input": "q", "code": "def solution(): ...", "target": 5186630.6}, "equation", (), "5186630.6"),
    ],
)
def test_schemas(tmp_path, row, cot_type, steps, answer):
    (example,) = load_file(write(tmp_path / "own.jsonl", [row]), cot_type)
    assert (example.steps, example.answer) == (steps, answer)
    assert example.id == "own/0"


def test_svamp_joins_body_and_question(tmp_path):
    path = tmp_path / "SVAMP.json"
    path.write_text(json.dumps([{"ID": "c", "Body": "Dan had $ 3 left. ", "Question": "How much?", "Answer": 51.0}]))
    assert load_file(path) == [Example("SVAMP/0", "Dan had $ 3 left. How much?", (), "51")]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-9867630.0, "-9867630"), (0.0016791648, "0.0016791648"), (1e-07, "0.0000001"), (3, "3"), (2e20, "2" + "0" * 20)],
)
def test_numbers_are_written_out(value, shown):
    assert number_text(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [("1,234,567", "1234567"), (" 51.00 ", "51"), ("-3.50", "-3.50"), ("1, 2", "1, 2"), ("1,2345", "1,2345")],
)
def test_plain_number(value, shown):
    assert plain_number(value) == shown


def test_lines_are_not_split_further():
    assert sentences("One. Two.\n\nThree.") == ("One. Two.", "Three.")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "q", "answer": ', r"own\.jsonl line 3 is not valid JSON: .* column \d+"),
        ('{"question": "q", "answer": 2', r"own\.jsonl line 3 is not valid JSON: Expecting ',' delimiter at column 30"),
        ('["question"]', r"own\.jsonl line 3 holds a list"),
        ('{"question": "q", "steps": []}', r"line 3: field 'answer' or 'target' or 'answer_text' is missing"),
        ('{"steps": [], "answer": "1"}', r"line 3: field 'question' or 'prompt' or 'problem' is missing"),
        ('{"question": 5, "answer": "1"}', r"line 3: field 'question' is a int, not text"),
        ('{"question": " ", "answer": "1"}', r"line 3: field 'question' is empty"),
        ('{"question": "q", "answer": true}', r"line 3: field 'answer' is a bool"),
        ('{"question": "q", "answer": NaN}', r"line 3: field 'answer' is nan"),
        ('{"question": "q", "steps": ["a", 2], "answer": "1"}', r"line 3: field 'steps\[1\]' is a int"),
        ('{"question": "q", "steps": {}, "answer": "1"}', r"line 3: field 'steps' is a dict"),
        ('{"question": "q", "answer": "so <<1+1=2>>2"}', r"line 3: field 'answer' has <<\.\.>> annotations"),
        ('{"question": "q", "answer": "text ####  "}', r"line 3: field 'answer' has no final answer"),
        (b'{"question": "\xff", "answer": "1"}', r"line 3 is not UTF-8"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, line, words):
    good = b'{"question": "q", "steps": [], "answer": "1"}\n'
    path = tmp_path / "own.jsonl"
    path.write_bytes(good + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good)
    with pytest.raises(DataError, match=words) as caught:
        load_examples(section(path), "train")
    assert str(path) in caught.value.message


def test_a_gsm8k_row_without_final_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "datasets/gsm8k/test.jsonl", [GSM8K, {"question": "q", "answer": "12"}])
    with pytest.raises(DataError, match=r"test\.jsonl line 2: field 'answer' has no final answer"):
        load_examples(section("gsm8k"), "test")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_set(tmp_path, content):
    path = tmp_path / "own.jsonl"
    path.write_text(content)
    for read in (
        lambda: load_examples(section(path), "train"),
        lambda: load_file(path),
        lambda: list(load_examples(section(path, streaming=True), "train")),
    ):
        with pytest.raises(DataError, match="is empty"):
            read()


def test_missing_file_and_unknown_kind(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        load_examples(section(tmp_path / "none.jsonl"), "train")
    with pytest.raises(DataError, match="does not exist"):
        load_file(tmp_path / "none.jsonl")
    (tmp_path / "own.dat").write_text("x")
    with pytest.raises(DataError, match=r"'\.dat' are not read"):
        load_examples(section(tmp_path / "own.dat"), "train")


# --- GSM8k-AUG's own text files -----------------------------------------------------------------------------------

AUG_LINES = (
    "A book costs $2. How much do 3 cost, plus 4?||<<2*3=6>> <<6+4=10>> #### 10\n"
    "\n"
    "What is 1,200?||#### 1,200\r\n"
    "Ann has 2 hens. Each lays 3 eggs a day.  How many?||Two hens lay 2*3=6 eggs. So 6. #### 6"
)


def test_text_files_of_gsm8k_aug_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "datasets" / "gsm8k-aug"
    folder.mkdir(parents=True)
    for name in ("train", "valid"):
        (folder / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + AUG_LINES.encode())
    (folder / "LICENSE").write_text("MIT")
    for name, split in ((folder / "valid.txt", "train"), ("gsm8k-aug", "train"), ("gsm8k-aug", "validation")):
        read = load_examples(section(name, val_size=0), split)
        assert [(row.steps, row.answer) for row in read][:2] == [(("<<2*3=6>>", "<<6+4=10>>"), "10"), ((), "1200")]
        assert read[0].question == "A book costs $2. How much do 3 cost, plus 4?"
    sentences_too = load_file(folder / "valid.txt", "natural_language")
    assert sentences_too[2].steps == ("Two hens lay 2*3=6 eggs.", "So 6.")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"How many? <<1+1=2>> #### 2", r"line 2 has no '\|\|'"),
        (b"How many?||<<1+1=2>> 2", "line 2 has no '####'"),
        (b"How many?||<<1+1=2>>||<<2+1=3>> #### 3", r"line 2 has '\|\|' twice"),
        (b"How many?||<<1+1=2>> #### ", "line 2: field 'answer' is empty"),
        (b"||<<1+1=2>> #### 2", "line 2: field 'question' is empty"),
        (b"\xff||<<1+1=2>> #### 2", r"line 2 is not UTF-8 text \(byte 0\)"),
    ],
)
def test_a_bad_line_of_a_text_file_is_named(tmp_path, line, words):
    path = tmp_path / "train.txt"
    path.write_bytes(b"How much is 1 + 1?||<<1+1=2>> #### 2\n" + line + b"\n")
    with pytest.raises(DataError, match=words):
        load_examples(section(path), "train")


def test_rows_come_first_where_a_folder_has_text_files_too(tmp_path):
    write(tmp_path / "train.jsonl", rows(3))
    (tmp_path / "train.txt").write_text("notes of the user")
    assert len(load_examples(section(tmp_path, val_size=0), "train")) == 3


# --- places -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["whynlp/gsm8k-aug", "gsm8k-aug"])
@pytest.mark.parametrize("folder", ["datasets/gsm8k-aug", "datasets/whynlp/gsm8k-aug", "datasets/gsm8k-aug/main"])
def test_local_folders_come_before_the_hub(tmp_path, monkeypatch, name, folder):
    if folder.startswith("datasets/whynlp") and "/" not in name:
        name = "GSM8k-AUG"  # case does not matter either
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 20), ("val", 3), ("test", 4)):
        write(tmp_path / folder / f"{split}.jsonl", rows(count))
    sizes = [len(load_examples(section(name), split)) for split in ("train", "validation", "test")]
    assert sizes == [20, 3, 4]
    assert load_examples(section(name), "validation")[0].id == "gsm8k-aug/validation/0"


def test_a_path_comes_first_and_exported_names_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "gsm8k/gsm8k_main_train.jsonl", [GSM8K] * 2)
    write(tmp_path / "gsm8k/gsm8k_main_test.jsonl", [GSM8K])
    write(tmp_path / "datasets/gsm8k/test.jsonl", [GSM8K] * 3)
    assert len(load_examples(section("gsm8k"), "test")) == 1
    assert len(load_examples(section("datasets/gsm8k"), "test")) == 3


def test_two_files_for_one_split_are_refused(tmp_path):
    for name in ("val", "dev"):
        write(tmp_path / f"{name}.jsonl", rows(2))
    with pytest.raises(DataError, match="two validation files"):
        open_set(str(tmp_path))


@pytest.mark.parametrize("layout", ["train.jsonl", "main/train.jsonl"])
def test_hub_cache_is_read_offline(tmp_path, monkeypatch, layout):
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub/datasets--openai--gsm8k"
    write(repo / "snapshots/abc" / layout, [GSM8K] * 30)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc")
    assert len(load_examples(section("openai/gsm8k"), "train")) == 30
    assert open_set("gsm8k").place.startswith(str(repo))


def nothing_anywhere(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_no_network_lists_every_place(tmp_path, monkeypatch):
    import datasets

    nothing_anywhere(tmp_path, monkeypatch)
    asked = []

    def offline(*args, **options):
        asked.append(args)
        raise ConnectionError("Couldn't reach 'ChilleD/SVAMP' on the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError) as caught:
        load_examples(section("svamp"), "test")
    for place in ("datasets/svamp", "datasets/ChilleD/SVAMP", "the hub's cache (ChilleD/SVAMP)", "Couldn't reach"):
        assert place in caught.value.message
    assert "\n" not in caught.value.message
    assert asked == [("ChilleD/SVAMP", None)]


def test_missing_datasets_package_names_the_pip_line(tmp_path, monkeypatch):
    nothing_anywhere(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="`datasets` is needed") as caught:
        load_examples(section("gsm8k"), "train")
    assert caught.value.hint == "pip install 'datasets>=4'"


def test_the_hub_answers_under_its_own_split_names(tmp_path, monkeypatch):
    import datasets

    nothing_anywhere(tmp_path, monkeypatch)
    hard = [{"input": f"q{i}", "code": "", "target": float(i)} for i in range(7)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: {"train": hard})
    assert len(load_examples(section("gsm8k-hard"), "test")) == 7
    with pytest.raises(DataError, match="no train split"):
        load_examples(section("gsm8k-hard"), "validation")
    with pytest.raises(DataError, match="no train split"):
        load_examples(section("gsm8k-hard"), "train")


def test_unknown_names_are_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'gsm8k-agu' was not found") as caught:
        load_examples(section("gsm8k-agu"), "train")
    assert "'gsm8k-aug'" in caught.value.hint


@pytest.mark.parametrize("with_splits", [True, False])
def test_save_to_disk_folders(tmp_path, with_splits):
    import datasets

    table = datasets.Dataset.from_list(rows(20))
    saved = (
        datasets.DatasetDict({"train": table, "val": datasets.Dataset.from_list(rows(3, 50))}) if with_splits else table
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    train, validation = (load_examples(section(tmp_path / "saved", val_size=2), s) for s in ("train", "validation"))
    assert (len(train), len(validation)) == ((20, 3) if with_splits else (18, 2))
    assert not set(questions(train)) & set(questions(validation))
    assert train[0].steps == ("<<0+0=0>>", "<<0+1=1>>") or not with_splits


def test_parquet_folder(tmp_path, monkeypatch):
    import datasets

    for split in ("train", "test"):
        (tmp_path / "set/main").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows(12)).to_parquet(str(tmp_path / f"set/main/{split}-00000-of-00001.parquet"))
    (tmp_path / "set/socratic").mkdir()
    datasets.Dataset.from_list(rows(3)).to_parquet(str(tmp_path / "set/socratic/train-00000-of-00001.parquet"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert len(load_examples(section(tmp_path / "set"), "test")) == 12
    stream = load_examples(section(tmp_path / "set", streaming=True, val_size=0), "train")
    assert len(list(stream)) == len(list(stream)) == 12


def test_a_row_of_a_table_is_named(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"question": "q", "answer": "1"}, {"question": "", "answer": "1"}]).save_to_disk(
        str(tmp_path / "saved")
    )
    with pytest.raises(DataError, match=r"saved row 2: field 'question' is empty"):
        load_examples(section(tmp_path / "saved"), "train")


# --- splits, subsets, streams -------------------------------------------------------------------------------------


def test_validation_is_held_out_of_train_deterministically(tmp_path):
    doubled = [*rows(100), *rows(20)]  # twenty questions occur twice
    path = write(tmp_path / "own.jsonl", doubled)
    train, validation = (load_examples(section(path, val_size=10), s) for s in ("train", "validation"))
    assert len(validation) == 10
    assert not set(questions(train)) & set(questions(validation))
    assert set(questions(train)) | set(questions(validation)) == {row["question"] for row in doubled}
    assert validation == load_examples(section(path, val_size=10), "validation")
    assert questions(validation) != questions(load_examples(section(path, val_size=10, seed=1), "validation"))
    shuffled = write(tmp_path / "other.jsonl", doubled[::-1])
    assert set(questions(load_examples(section(shuffled, val_size=10), "validation"))) == set(questions(validation))


@pytest.mark.parametrize(("count", "val_size", "held"), [(30, 5, 3), (100, 5, 5), (4, 500, 1)])
def test_at_most_a_tenth_is_held_out(tmp_path, count, val_size, held, caplog):
    path = write(tmp_path / "own.jsonl", rows(count))
    assert len(load_examples(section(path, val_size=val_size), "validation")) == held
    assert len(load_examples(section(path, val_size=val_size), "train")) == count - held
    assert ("held out" in caplog.text) == (held < val_size)


def test_own_validation_is_used_and_train_stays_whole(tmp_path):
    write(tmp_path / "train.jsonl", rows(30))
    write(tmp_path / "dev.jsonl", rows(4, 100))
    assert len(load_examples(section(tmp_path), "train")) == 30
    assert len(load_examples(section(tmp_path), "validation")) == 4


def test_train_is_never_test(tmp_path):
    path = write(tmp_path / "own.jsonl", rows(30))
    with pytest.raises(DataError, match="has no test split"):
        load_examples(section(path), "test")
    write(tmp_path / "set/test.jsonl", rows(3))
    with pytest.raises(DataError, match="has no train split; it has test"):
        load_examples(section(tmp_path / "set"), "validation")


def test_no_validation_is_asked_for_and_needed(tmp_path):
    path = write(tmp_path / "own.jsonl", rows(30))
    assert len(load_examples(section(path, val_size=0), "train")) == 30
    with pytest.raises(DataError, match=r"dataset\.val_size is 0"):
        load_examples(section(path, val_size=0), "validation")


def test_subsets_are_seeded_nested_and_train_only(tmp_path, caplog):
    path = write(tmp_path / "own.jsonl", rows(60))
    small, large = (load_examples(section(path, subset_size=n), "train") for n in (8, 20))
    assert len(small) == 8
    assert large[:8] == small
    assert small != load_examples(section(path), "train")[:8]
    assert small != load_examples(section(path, subset_size=8, seed=3), "train")
    assert len(load_examples(section(path, subset_size=1), "validation")) == 5
    assert len(load_examples(section(path, subset_size=1000), "train")) == 55
    assert "all are used" in caplog.text


def test_streaming_gives_the_same_rows(tmp_path):
    path = write(tmp_path / "own.jsonl", [*rows(60), *rows(5)])
    whole = load_examples(section(path), "train")
    stream = load_examples(section(path, streaming=True), "train")
    assert sorted(stream, key=lambda e: e.id) == sorted(whole, key=lambda e: e.id)
    assert list(stream) == list(stream)
    assert list(load_examples(section(path, streaming=True, subset_size=7), "train")) == whole[:7]
    assert load_examples(section(path, streaming=True), "validation") == load_examples(section(path), "validation")


def test_streaming_does_not_read_beyond_its_subset(tmp_path):
    path = write(tmp_path / "own.jsonl", rows(10))
    with path.open("a") as file:
        file.write("not JSON\n")
    assert len(list(load_examples(section(path, streaming=True, subset_size=6, val_size=0), "train"))) == 6


def test_built_in_sets_through_the_same_door():
    sizes = [len(load_examples(section("chains"), s)) for s in ("train", "validation", "test")]
    assert sizes == [50, 10, 20]
    assert len(load_examples(section("variables_nl", cot_type="natural_language", subset_size=9), "train")) == 9


@pytest.mark.parametrize("name", ["chains_nl", "datasets/gsm8k-aug-nl"])
def test_a_cot_type_that_does_not_fit_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "datasets/gsm8k-aug-nl/train.jsonl", rows(5))
    with pytest.raises(DataError, match="cot_type is 'equation'") as caught:
        load_examples(section(name), "train")
    assert "dataset.cot_type=natural_language" in caught.value.hint


def test_unknown_split():
    with pytest.raises(DataError, match="unknown split 'dev'"):
        load_examples(section("chains"), "dev")


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name)
def test_every_spelling_finds_its_source(source):
    for name in source.names:
        assert known_source(name) is source


# --- cards and the shipped sample ---------------------------------------------------------------------------------


def test_card_counts():
    examples = [
        Example("0", "A?", ("1+1=2", "2+2=4", "4+4=8"), "8"),
        Example("1", "B?", ("1+1=2", "2+2=4"), "4"),
        Example("2", "C?", ("1+1=2",), "2"),
        Example("3", "D?", ("no result", "2+2=4"), "4"),
    ]
    encoded = Encoder(zoo.byte_level()).encode_all(examples)
    lengths = [len(e.cot) for e in encoded]
    found = card(encoded, examples, keep=lengths[0], other=[Example("x", "a? ", (), "1")])
    assert found["examples"] == found["encoded"] == 4
    assert found["sha256"] == content_hash(examples)
    assert found["mean_cot_tokens"] == sum(lengths) / 4
    assert found["share_cot_below_keep"] == 3 / 4
    assert found["share_cot_empty"] == 1 / 4
    assert found["share_no_result"] == 1 / 3
    assert found["shared_questions"] == 1
    assert found == card(list(encoded), examples, keep=lengths[0], other=[Example("x", "a? ", (), "1")])
    assert card(encoded, examples, keep=1)["shared_questions"] is None


def test_content_hash_sees_content_only():
    a, b = Example("0", "A?", ("s", "t"), "1"), Example("9", "A?", ("s", "t"), "1")
    assert content_hash([a]) == content_hash([b])
    for other in (Example("0", "A?", ("st",), "1"), Example("0", "A?", ("s",), "t1"), Example("0", "A?s", ("t",), "1")):
        assert content_hash([a]) != content_hash([other])


@pytest.mark.parametrize("name", ["chains", *(s.name for s in SOURCES)])
def test_every_set_has_a_card_with_licence_and_rows(name):
    text = shipped_card(name)
    text.encode("ascii")
    for word in ("| licence |", "| rows |", "| fields |", "| cot_type |"):
        assert word in text
    source = known_source(name)
    assert source is None or source.hub_id in text


def test_shipped_sample_is_right_and_runs():
    path = ROOT / "data/sample_train.jsonl"
    examples = load_file(path)
    assert len(examples) == len(set(questions(examples))) == 64
    for example in examples:
        value = None
        for step in example.steps:
            left, symbol, right, result = re.fullmatch(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", step).groups()
            value = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right),
                     "/": int(left) / int(right)}[symbol]  # fmt: skip
            assert value == int(result) >= 0
        assert example.answer == str(int(value))
    assert len(load_examples(section(path, val_size=500), "train")) == 58
