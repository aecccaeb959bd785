"""Files are whole or absent: whatever goes wrong while one is written, the old one stays as it was."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.files import read_json, replacing, write_json, write_text, write_with
from synthetic.errors import DataError, LabError, UsageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=40)
@given(JSON)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "deeper" / "value.json"
    assert write_json(path, value) == path
    assert read_json(path) == value
    assert os.listdir(path.parent) == ["value.json"]


@pytest.mark.parametrize(
    ("raised", "seen", "message"),
    [
        (RuntimeError("stop"), RuntimeError, "stop"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (OSError(errno.ENOSPC, "No space left on device"), LabError, "disk is full: could not write .*kept.txt"),
        (RuntimeError("I/O error: No space left on device"), LabError, "disk is full"),
        (OSError(errno.EACCES, "Permission denied"), LabError, "could not write .*kept.txt: Permission denied"),
    ],
)
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, raised: BaseException, seen: type[BaseException], message: str
) -> None:
    path = write_text(tmp_path / "kept.txt", "old")
    with pytest.raises(seen, match=message), replacing(path) as temporary:
        temporary.write_text("half of the n", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        raise raised
    assert path.read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == ["kept.txt"]


def test_the_new_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new.txt"
    with replacing(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text(encoding="utf-8") == "new"
    write_with(path, lambda file: file.write_bytes(b"newer"))
    assert path.read_bytes() == b"newer" and os.listdir(tmp_path) == ["new.txt"]


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="could not write"):
        write_with(tmp_path / "nothing.txt", lambda file: None)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """A real one: /dev/full refuses every write."""

    def write(file: Path) -> None:
        file.symlink_to("/dev/full")
        with open(file, "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(LabError, match="disk is full") as caught:
        write_with(tmp_path / "big.bin", write)
    assert not isinstance(caught.value, UsageError) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {1, 2}, {"a": object()}, {(1, 2): 3}])
def test_what_json_cannot_hold_is_refused_before_writing(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*v\.json"):
        write_json(tmp_path / "v.json", value)
    assert os.listdir(tmp_path) == []


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(UsageError, match="is a directory"):
        read_json(tmp_path)
    (tmp_path / "broken.json").write_bytes(b'{"a": 1')
    with pytest.raises(DataError, match=r"broken\.json is not valid JSON"):
        read_json(tmp_path / "broken.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary\.json is not valid JSON"):
        read_json(tmp_path / "binary.json")
