"""Token ids of large sets: kept, read back, never of another tokenizer or set."""

from collections.abc import Sequence
from pathlib import Path

import pytest

import zoo_tokenizers as zoo
from kava.data import token_cache
from kava.data.encode import Encoded, Encoder, encode_split
from kava.data.example import Example
from kava.data.token_cache import encode_kept
from kava.errors import DataError

EXAMPLES = [Example(str(i), f"{'very ' * (i % 4)}{i}+1?", (f"{i}+1={i + 1}", "1*1=1"), str(i + 1)) for i in range(25)]


class CountingEncoder(Encoder):
    """Counts the examples that it encodes, and stops after `most`."""

    encoded, most = 0, 1000

    def encode_batch(self, examples: Sequence[Example]) -> list[Encoded]:
        self.encoded += len(examples)
        if self.encoded > self.most:
            raise KeyboardInterrupt
        return super().encode_batch(examples)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(token_cache, "ROWS", 10)
    monkeypatch.setenv("KAVA_CACHE_PATH", str(tmp_path))
    return tmp_path / "tokens"


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("limited", [False, True])
def test_what_was_kept_is_what_would_be_encoded(folder: Path, limited: bool) -> None:
    lengths = sorted(map(len, Encoder(zoo.byte_level()).encode_all(EXAMPLES)))
    max_length = lengths[12] if limited else None
    wanted = encode_split(EXAMPLES, Encoder(zoo.byte_level()), max_length)
    for encodes in (25, 0):
        encoder = CountingEncoder(zoo.byte_level())
        split = encode_kept(EXAMPLES, encoder, max_length)
        assert list(split.encoded) == list(wanted.encoded)
        assert (split.skipped, split.total) == (wanted.skipped, 25)
        assert encoder.encoded == encodes
    assert (wanted.skipped > 0) == limited
    assert [path.stem for path in files(folder)] == ["000000000", "000000010", "000000020"]


def test_a_stopped_run_leaves_what_it_has_done(folder: Path) -> None:
    stopped, encoder = CountingEncoder(zoo.byte_level()), CountingEncoder(zoo.byte_level())
    stopped.most = 15
    with pytest.raises(KeyboardInterrupt):
        encode_kept(EXAMPLES, stopped)
    assert len(files(folder)) == 1
    encode_kept(EXAMPLES, encoder)
    assert encoder.encoded == 15


def test_other_text_other_tokens_and_other_settings_are_kept_apart(folder: Path) -> None:
    changed = [*EXAMPLES[:-1], Example("24", "24+1?", (), "25")]
    for number, (examples, encoder) in enumerate(
        [
            (EXAMPLES, CountingEncoder(zoo.byte_level())),
            (changed, CountingEncoder(zoo.byte_level())),
            (EXAMPLES, CountingEncoder(zoo.byte_level(), drop_last_step=False)),
            (EXAMPLES, CountingEncoder(zoo.word_level())),
        ],
        start=1,
    ):
        assert list(encode_kept(examples, encoder).encoded) == list(encode_split(examples, encoder).encoded)
        assert len(list(folder.iterdir())) == number


def test_a_file_of_another_tokenizer_is_refused(folder: Path) -> None:
    encode_kept(EXAMPLES, Encoder(zoo.byte_level()))
    first, second = files(folder)[:2]
    second.write_bytes(files(folder)[2].read_bytes())
    with pytest.raises(DataError, match=f"{second} holds the tokens of another"):
        encode_kept(EXAMPLES, Encoder(zoo.byte_level()))
    second.write_bytes(b"torn")
    first.unlink()
    encoder = CountingEncoder(zoo.byte_level())
    encode_kept(EXAMPLES, encoder)
    assert encoder.encoded == 20


def test_a_folder_that_cannot_be_written_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("no folder")
    split = encode_kept(EXAMPLES, Encoder(zoo.byte_level()))
    assert len(split.encoded) == 25
    assert len([message for message in caplog.messages if "are not kept" in message]) == 1
