"""Small files read whole: each way in which one can be no such file ends in the caller's own error, in one line."""

import json
import os
import re

import pytest

from stepaudio.errors import DataError
from stepaudio.reading import MAX_DEPTH, is_file, is_folder, parse_object, read_bytes, read_object, read_text

ADVICE = "expected a thing; do this"


def nested(depth: int) -> bytes:
    """An object that holds `depth` containers one in another, itself counted."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "expected a JSON object, found list"),
        (b"\xff\xfe{\x00}\x00", "invalid start byte"),
        ('{"a": 1}'.encode("utf-16"), "invalid start byte"),
        (b'{"a": "\xed\xa0\x80"}', "invalid continuation byte"),
        (b'{"a": 1, "b": 2, "a": 1}', "names 'a' twice"),
        (b'{"x": {"a": 1, "a": 1}}', "names 'a' twice"),
        (b'{"' + b"k" * 5000 + b'": 1, "' + b"k" * 5000 + b'": 1}', "twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "integer string"),
        (nested(MAX_DEPTH + 1), "nested more than 64 deep"),
        (nested(100_000), "recursion"),
        (b"{" + b" " * 100_000, "Expecting property name"),
    ],
)
def test_what_is_no_json_object_is_one_error(data, found):
    with pytest.raises(DataError, match=rf"^f: .*{found}.*{ADVICE}$") as caught:
        parse_object(data, "f", DataError, ADVICE)
    assert len(str(caught.value)) < 1000


def test_a_byte_order_mark_is_no_text(tmp_path):
    """As Windows' editor writes it; Python's own reader of the `utf-8-sig` encoding is the witness."""
    (tmp_path / "f").write_text('{"a": "ü"}', encoding="utf-8-sig")
    assert read_object(tmp_path / "f", DataError, ADVICE) == {"a": "ü"}
    (tmp_path / "f").write_text("a\nb", encoding="utf-8-sig", newline="\r\n")
    assert read_text(tmp_path / "f", DataError, ADVICE) == "a\nb"


def test_deep_enough_for_everything_that_is_read_here():
    assert parse_object(nested(MAX_DEPTH), "f", DataError, ADVICE) == json.loads(nested(MAX_DEPTH))


def test_a_pipe_a_device_and_a_folder_are_no_files(tmp_path):
    """A pipe without a writer would wait for ever, and some devices never end."""
    os.mkfifo(tmp_path / "pipe")
    for path, found in (
        (tmp_path / "pipe", "no regular file"),
        ("/dev/zero", "no regular file"),
        (tmp_path, "a folder"),
    ):
        assert not is_file(path, DataError)
        with pytest.raises(DataError, match=f"{re.escape(str(path))}: is {found}; {ADVICE}"):
            read_bytes(path, DataError, ADVICE)
    assert is_folder(tmp_path, DataError)


@pytest.mark.parametrize(
    ("name", "found"), [("a" * 300, "File name too long"), ("a\0b", "null byte"), ("loop", "symbolic links")]
)
def test_a_path_that_the_system_refuses(tmp_path, name, found):
    (tmp_path / "loop").symlink_to("loop")
    for ask in (is_file, is_folder, lambda path, error: read_bytes(path, error, ADVICE)):
        with pytest.raises(DataError, match=found):
            ask(f"{tmp_path}/{name}", DataError)


def test_a_link_to_nothing_is_not_nothing(tmp_path):
    """Also on the way: a folder in a cache of downloads is a link as well."""
    (tmp_path / "link").symlink_to("../../blobs/0123abcd")
    (tmp_path / "second").symlink_to("link")
    for path in (tmp_path / "link", tmp_path / "second", tmp_path / "link" / "config.json"):
        for ask in (is_file, is_folder, lambda path, error: read_bytes(path, error, ADVICE)):
            with pytest.raises(DataError, match="is a link to '.*', which is not there; download it again"):
                ask(path, DataError)


def test_nothing_there(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none", tmp_path / "file" / "below", tmp_path / "none" / "none"):
        assert not is_file(path, DataError) and not is_folder(path, DataError)
        with pytest.raises(DataError, match=f"no such file; {ADVICE}"):
            read_bytes(path, DataError, ADVICE)


def test_no_permission_is_called_that(tmp_path, monkeypatch):
    """The superuser may read everything, so the system's answer is imitated."""

    def refused(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "f").write_text("{}")
    for name in ("os.stat", "builtins.open"):
        with monkeypatch.context() as patched:
            patched.setattr(name, refused)
            with pytest.raises(DataError, match="f: no permission to read it"):
                read_bytes(tmp_path / "f", DataError, ADVICE)


def test_a_file_larger_than_any_such_file_is_not_read(tmp_path):
    with open(tmp_path / "f", "wb") as stream:
        stream.truncate(1 << 40)  # a terabyte that takes no room
    with pytest.raises(DataError, match="more than 1000 bytes"):
        read_bytes(tmp_path / "f", DataError, ADVICE, most=1000)
