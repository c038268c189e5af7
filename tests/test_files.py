"""Files: whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from robustdd_bench import files
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.files import (
    atomic_write,
    file_lock,
    file_sha256,
    read_json,
    read_safetensors,
    write_changed,
    write_json,
    write_safetensors,
    write_text,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert _names(path.parent) == ["c.txt"]


def test_nothing_is_at_the_path_until_the_writing_is_done(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"half"


def test_an_error_half_way_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def write_and_fail() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize("broken", ["fsync", "replace", "chmod"])
def test_a_full_disk_fails_the_run_and_leaves_the_old_file_and_no_temporary_one(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(RunFailedError, match=r"cannot write .*file: No space left on device") as e:
        write_text(path, "new")
    assert "\n" not in str(e.value)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_fills_up_while_writing_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    opened = os.fdopen

    def onto_full_disk(descriptor: int, mode: str) -> Any:
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
        return opened(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", onto_full_disk)
    with pytest.raises(RunFailedError, match="No space left on device"):
        write_text(path, "n" * 100_000)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunFailedError, match="cannot write"):
        write_text(tmp_path / "taken" / "file", "x")


def test_files_get_the_permissions_of_any_other_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_json_is_sorted_readable_and_ends_with_a_line_break(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": None})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": None, "b": [1, 2.5]}
    assert text.startswith('{\n  "a"')
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_refuses_what_json_cannot_say_and_leaves_the_old_file(
    value: float, tmp_path: Path
) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": [value]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert _names(tmp_path) == ["a.json"]


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1, 0.1, None, True]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 0.1, None, True]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b"[Infinity]", None])
def test_what_is_no_json_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.json is not readable JSON") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"no file .*b\.json"):
        read_json(tmp_path / "b.json")


def test_an_object_that_names_a_key_twice_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"a": {"b": 1, "c": 2, "b": 3}}')
    with pytest.raises(UsageError, match="key 'b' stands there twice"):
        read_json(path)


def test_of_several_files_those_that_change_are_written_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same, other, full = (tmp_path / name for name in ("same", "other", "full"))
    write_changed({same: "s", other: "old"})
    before = same.stat().st_mtime_ns
    calls: list[int] = []

    def fsync(_: int) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(RunFailedError, match="No space left"):
            write_changed({same: "s", other: "new", full: "f"})
    assert (other.read_text(), _names(tmp_path)) == ("old", ["other", "same"])
    write_changed({same: "s", other: "new", full: "f"})
    assert (other.read_text(), full.read_text()) == ("new", "f")
    assert same.stat().st_mtime_ns == before


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    held = file_lock(tmp_path / "lock", 0)
    assert held is not None
    assert file_lock(tmp_path / "lock", 0.01) is None
    held.release()
    again = file_lock(tmp_path / "lock", 0)
    assert again is not None
    again.release()


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_tensors_and_metadata_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "float": torch.tensor([0.1, float("nan"), -0.0]),
        "int": torch.arange(4).view(2, 2),
        "strided": torch.arange(6.0).view(2, 3).T,
        "scalar": torch.tensor(3.5, requires_grad=True),
        "empty": torch.zeros(0, 3),
    }
    write_safetensors(tmp_path / "t", tensors, {"a": "b"})
    read, metadata = read_safetensors(tmp_path / "t")
    assert metadata == {"a": "b"}
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert read[name].numpy().tobytes() == tensor.detach().contiguous().numpy().tobytes()


def test_tensors_that_share_memory_are_written_each_on_its_own(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    write_safetensors(tmp_path / "t", {"whole": whole, "again": whole, "part": whole[2:4]})
    read, _ = read_safetensors(tmp_path / "t")
    assert torch.equal(read["again"], whole)
    assert torch.equal(read["part"], whole[2:4])


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_safetensors(tmp_path / name, {"b": torch.ones(2), "a": torch.zeros(1)}, {"x": "y"})
    assert file_sha256(tmp_path / "one") == file_sha256(tmp_path / "two")


def test_runs_cleaning_and_boards_hold_their_locks_by_the_one_function_here() -> None:
    package = Path(files.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    importing = {
        path for path, text in sources.items() if re.search(r"(import|from) filelock", text)
    }
    assert importing == {package / "files.py"}


def test_a_missing_file_of_tensors_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*gone"):
        read_safetensors(tmp_path / "gone")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, "half", "folder"])
def test_a_damaged_file_of_tensors_is_one_line(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    if content == "folder":
        path.mkdir()
    elif content == "half":
        write_safetensors(path, {"a": torch.ones(100)})
        path.write_bytes(path.read_bytes()[:200])
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a readable safetensors file") as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)
