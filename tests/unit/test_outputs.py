"""Files that are written: one step for regular files, through devices and links; places are checked before any work."""

import errno
import os
import stat
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from kava.errors import ConfigError, RunError
from kava.files import make_folder, naming, open_append, open_descriptor, write_text
from kava.outputs import Output, as_path, begins, check_folder, check_outputs, has_keys, problem_of, rows_have

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no FIFOs, devices or permission bits")


def device(path: Path, minor: int) -> Path:
    """A device of memory: 3 is null, 7 is full."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        path.open("rb").close()
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")
    return path


# ---- writing


@posix
def test_a_device_stays_a_device(tmp_path):
    null = device(tmp_path / "null", 3)
    write_text(null, "lost")
    assert stat.S_ISCHR(null.stat().st_mode)
    assert os.listdir(tmp_path) == ["null"]


@posix
def test_a_full_device_is_an_error_that_names_it(tmp_path):
    full = device(tmp_path / "full", 7)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(full, "too much")
    assert caught.value.filename == str(full)
    assert stat.S_ISCHR(full.stat().st_mode)


@posix
def test_a_pipe_reaches_its_reader(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    assert problem_of(pipe) is None
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "through\n")
    reader.join(10)
    assert received == ["through\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@posix
def test_an_open_file_is_written_where_it_stands(tmp_path):
    """/dev/stdout redirected to a file: what is printed before stays, and the file is the same one."""
    with (tmp_path / "out").open("w") as file:
        file.write("first\n")
        file.flush()
        write_text(f"/dev/fd/{file.fileno()}", "second\n")
        assert open_descriptor(f"/dev/fd/{file.fileno()}") == file.fileno()
    assert (tmp_path / "out").read_text() == "first\nsecond\n"
    assert open_descriptor("/dev/stdout") == 1
    assert open_descriptor(tmp_path / "out") is None


@posix
@pytest.mark.parametrize("links", [1, 3])
def test_a_link_stays_and_its_target_is_written(tmp_path, links: int):
    (tmp_path / "paper").mkdir()
    target = place = tmp_path / "paper" / "results.csv"
    target.write_text("old")
    for number in range(links):
        link = tmp_path / f"link{number}"
        link.symlink_to(os.path.relpath(place, tmp_path))
        place = link
    write_text(place, "new")
    assert place.is_symlink()
    assert target.read_text() == "new"
    with open_append(place) as file:
        file.write("er\n")
    assert target.read_text() == "newer\n"
    assert os.listdir(target.parent) == [target.name]


@posix
def test_a_link_to_nothing_is_an_error(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "drive" / "file")
    for write in (lambda path: write_text(path, ""), open_append):
        with pytest.raises(FileNotFoundError, match=r"a symlink to .*which does not exist"):
            write(tmp_path / "link")
    assert os.listdir(tmp_path) == ["link"]


@posix
def test_the_permissions_of_a_replaced_file_stay(tmp_path):
    path = tmp_path / "private"
    path.write_text("")
    path.chmod(0o600)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_text(tmp_path / "fresh", "")
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) & 0o600 == 0o600


def test_errors_name_the_users_path(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_text(tmp_path / "x.txt", "")
    assert caught.value.filename == str(tmp_path / "x.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises((NotADirectoryError, FileNotFoundError)) as caught:
        make_folder(tmp_path / "file" / "below")
    assert caught.value.filename == str(tmp_path / "file" / "below")
    with pytest.raises(ZeroDivisionError), naming(tmp_path):
        1 / 0  # noqa: B018


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system", "temporary")


# ---- places


def places(folder: Path) -> dict[str, Path]:
    """Places that no file can be written to, by the words that say why."""
    (folder / "file").write_text("")
    (folder / "folder").mkdir()
    bad = {
        "is a file, not a folder": folder / "file" / "x.json",
        "file name too long": folder / ("n" * 5000),
        "name too long": folder / "new" / ("n" * 300) / "x.json",
        "it is a folder": folder / "folder",
    }
    if sys.platform != "win32":
        (folder / "link").symlink_to(folder / "drive")
        (folder / "loop").symlink_to(folder / "loop")
        bad |= {"which does not exist": folder / "link", f"{folder / 'loop'} is a symlink": folder / "loop" / "x.json"}
    if sys.platform == "linux":
        bad["nothing can be made in /proc"] = Path("/proc/kava/x.json")
    return bad


def test_impossible_places_are_named_and_nothing_is_made(tmp_path):
    bad = places(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for words, place in bad.items():
        assert words in (problem_of(place) or ""), place
        with pytest.raises(RunError, match=r"--output .* cannot be written"):
            check_outputs([Output("--output", place)])
        if place.name != "folder":
            with pytest.raises(RunError, match=r"--output_dir .* cannot be written"):
                check_folder("--output_dir", place)
    for good in (tmp_path / "new" / "deep" / "x.json", tmp_path / "file"):
        assert problem_of(good) is None
    check_folder("--output_dir", tmp_path / "folder")
    assert problem_of("a\0b")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_read_only_file_system_is_found_before(tmp_path, monkeypatch):
    """Root may write by the permission bits, so that only a real attempt tells."""
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert "nothing can be made" in (problem_of(tmp_path / "x") or "")
    with pytest.raises(RunError, match="read-only file system"):
        check_folder("--output_dir", tmp_path)


def test_an_empty_path_is_no_folder():
    with pytest.raises(ConfigError, match="output_dir is empty"):
        as_path("output_dir", "")
    assert as_path("output_dir", None) is None


# ---- inputs, each other, and files of others


def test_an_output_is_no_input_and_no_other_output(tmp_path):
    read = tmp_path / "in.jsonl"
    read.write_text("{}")
    os.link(read, tmp_path / "hard")
    for place in (read, tmp_path / "hard", tmp_path / "." / "in.jsonl"):
        with pytest.raises(ConfigError, match="is an input"):
            check_outputs([Output("--output", place)], [read], overwrite=True)
    pair = [Output("--a", tmp_path / "x"), Output("--b", tmp_path / "y" / ".." / "x")]
    with pytest.raises(ConfigError, match="--a and --b would be written to"):
        check_outputs(pair)
    with pytest.raises(ConfigError, match="--a and --b"):
        check_outputs([Output("--a", tmp_path / "x"), Output("--b", tmp_path / "x" / "below", is_folder=True)])
    check_outputs([Output("--a", tmp_path / "x"), Output("--b", tmp_path, is_folder=True)])
    if sys.platform != "win32":
        check_outputs([Output("--a", Path("/dev/null")), Output("--b", Path("/dev/null"))])


@pytest.mark.parametrize(
    ("is_ours", "ours", "other"),
    [
        (begins("a,b"), "a,b\n1,2\n", "b,a\n"),
        (has_keys("rows"), '{"rows": []}', '{"row": []}'),
        (has_keys("rows"), '{"rows": []}', "[1]"),
        (has_keys("rows", below_root=True), '{"x": {"rows": 1}}', '{"x": {}, "rows": 1}'),
        (has_keys("rows"), '{"rows": []}', "{torn"),
        (rows_have("gold"), '{"gold": "1"}\n{"gold": "2"}\n', '{"gold": "1"}\n{"answer": 2}\n'),
        (rows_have("gold"), '{"gold": "1"}\n', "notes\n"),
        (begins("a"), "a", b"\xff\xfe"),
    ],
)
def test_only_files_of_kava_are_replaced_unasked(tmp_path, is_ours, ours: str, other: str | bytes):
    path = tmp_path / "out.json"
    output = [Output("--output", path, is_ours)]
    for fine in (ours, ""):
        path.write_text(fine)
        check_outputs(output)
    path.write_bytes(other if isinstance(other, bytes) else other.encode())
    with pytest.raises(ConfigError, match="kava did not write it") as caught:
        check_outputs(output)
    assert "--overwrite" in str(caught.value.hint)
    check_outputs(output, overwrite=True)
    assert path.read_bytes() == (other if isinstance(other, bytes) else other.encode())
