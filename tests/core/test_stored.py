"""What is read back: ordinary files of bounded size, and JSON that nothing is believed of."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.core.stored import open_stored, parse_json, parse_object, read_lines, read_object, read_stored

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_what_is_plain_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.binary(max_size=80) | st.text(alphabet='{}[]",:0123456789.-+eENaInfity\\u ', max_size=80).map(str.encode))
def test_anything_is_a_value_or_a_value_error(text: bytes) -> None:
    for parse in (parse_json, parse_object, lambda text: parse_json(text, finite=False)):
        with suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"[" * 10**6, "it is nested too deeply"),
        (b'{"a":' * 10**5, "it is nested too deeply"),
        (b"[" * 51 + b"]" * 51, "it is nested too deeply"),
        (b"9" * 400, "a number has 400 digits"),
        (b"-" + b"9" * 10**6, "a number has 1000001 digits"),
        (b"1e999", "1e999 is no finite number"),
        (b"[NaN]", "NaN is no finite number"),
        (b"-Infinity", "-Infinity is no finite number"),
        (b'{"a": 1, "a": 2}', "a key is there twice"),
        (b"\xff\xfe\x00\xd8", "it is not JSON: .*"),
        (b"", "it is not JSON: .*"),
        (b'{"a"', "it is not JSON: .*"),
    ],
    ids=range(12),
)
def test_what_is_refused_says_why(text: bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=f"^{cause}$"):
        parse_json(text)


@pytest.mark.parametrize("text", [b"5", b"null", b"[]", b'"{}"'])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is not an object$"):
        parse_object(text)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1}')
    assert read_object(path, most=8) == {"a": 1}
    with pytest.raises(ValueError, match=r"^it has more than 7 bytes$"):
        read_object(path, most=7)
    os.truncate(path, 1 << 40)
    with pytest.raises(ValueError, match=r"^it has more than 10 bytes$"):
        read_stored(path, most=10)


def test_only_ordinary_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    for name in ("link", "gone"):
        with pytest.raises(OSError, match="it is a link, and none is followed here"):
            open_stored(tmp_path / name)
    assert read_stored(tmp_path / "link", follow=True) == b"x"
    for path in (tmp_path / "pipe", tmp_path / "to_pipe", tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(OSError, match="no ordinary file"):
            open_stored(path, follow=True)
    with pytest.raises(FileNotFoundError):
        open_stored(tmp_path / "none")


def test_of_a_file_of_lines_what_is_whole_is_read(tmp_path: Path) -> None:
    lines = [b'{"step": 1, "loss": NaN}', b'{"st{"step": 2}', b"", b"[1]", b"\0\0", b'{"step": 3}', b'{"step": 4']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert [line["step"] for line in read_lines(tmp_path / "a.jsonl")] == [1, 3]
