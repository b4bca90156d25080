"""Files whole or not at all: killed processes leave the earlier file, and hashes are those of hashlib."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stepaudio import files
from stepaudio.files import move_into_place, printable_name, reason, replaced_file, sha256, staging_folder

ROOT = Path(files.__file__).parents[1]


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_a_file_appears_only_when_its_block_ends(tmp_path):
    target = tmp_path / "a.f32.wav"
    with replaced_file(target) as aside:
        aside.write_text("new")
        assert aside.suffix == ".wav" and aside.parent == tmp_path and not target.exists()
    assert target.read_text() == "new" and names(tmp_path) == {"a.f32.wav"}


def test_a_block_that_fails_leaves_the_earlier_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ValueError, match="half"), replaced_file(tmp_path / "a") as aside:
        aside.write_text("half")
        raise ValueError("half")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == {"a"}


def test_nothing_written_is_an_error_and_no_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError), replaced_file(tmp_path / "a"):
        pass
    assert not names(tmp_path)


def test_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(os.path.isdir(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("rename") or replace(a, b))
    with replaced_file(tmp_path / "a") as aside:
        aside.write_text("x")
    assert order == [False, "rename", True] or (sys.platform != "linux" and "rename" in order)


LEFT_ASIDE = """
import os, signal, sys
from stepaudio.files import replaced_file
with replaced_file(sys.argv[1]) as aside:
    aside.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    for name in ("a.txt", "b.txt"):
        subprocess.run([sys.executable, "-c", LEFT_ASIDE, str(tmp_path / name)], check=False,
                       env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    left = names(tmp_path)
    assert len(left) == 2 and not any(name.startswith(("a", "b")) for name in left)
    with replaced_file(tmp_path / "a.txt") as aside, replaced_file(tmp_path / "a.txt") as other:
        aside.write_text("first")
        other.write_text("second")  # a running process, this one, is at work on it too
    assert (tmp_path / "a.txt").read_text() == "first"
    assert len(names(tmp_path) & left) == 1, "what belongs to b.txt stays"


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="file systems of a Mac take UTF-8 alone")


@pytest.mark.parametrize(
    "name", ["a" * 251 + ".txt", "é" * 125 + ".txt", pytest.param(os.fsdecode(b"caf\xe9.txt"), marks=LINUX)]
)
def test_names_at_the_limit_of_the_system(tmp_path, name):
    with replaced_file(tmp_path / name) as aside:
        aside.write_text("x")
    assert names(tmp_path) == {name}


def test_a_folder_or_a_device_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", Path(os.devnull)):
        with pytest.raises(OSError, match="directory|regular"), replaced_file(place) as aside:
            aside.write_text("x")
    assert Path(os.devnull).is_char_device()


def test_a_name_that_is_not_utf_8_can_be_printed():
    assert printable_name(os.fsdecode(b"caf\xe9/\xc3\xa9.wav")) == "caf\\xe9/é.wav"


KILLED = """
import os, signal, sys
from pathlib import Path
from stepaudio.files import move_into_place, staging_folder
moves, replace = [], os.replace
def replace_some(source, target):
    if len(moves) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    moves.append(target)
    replace(source, target)
os.replace = replace_some
with staging_folder(sys.argv[1], ".new-") as aside:
    for name in ("a", "b", "seal"):
        (aside / name).write_text("new")
    move_into_place(aside, sys.argv[1], ["a", "b", "seal"], retire=["seal"])
"""


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3])
def test_a_seal_never_stands_over_a_mixture(tmp_path, stop_at):
    for name in ("a", "b", "seal"):
        (tmp_path / name).write_text("old")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(stop_at)], check=False,
                           env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert ended.returncode == (0 if stop_at == 3 else -signal.SIGKILL)
    assert (tmp_path / "seal").exists() == (stop_at == 3)
    assert len(list(tmp_path.glob(".new-*"))) == (0 if stop_at == 3 else 1)
    with staging_folder(tmp_path, ".new-") as aside:
        assert [p.name for p in tmp_path.glob(".new-*")] == [aside.name]  # what the killed one left is gone


def test_a_file_in_the_place_of_a_folder_stays(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(NotADirectoryError) as refused, staging_folder(tmp_path / "taken", ".new-"):
        pass
    assert reason(refused.value) == "it is a file, and a folder is written"
    assert reason(RuntimeError("[save] failed")) == "[save] failed"
    assert (tmp_path / "taken").read_text() == "mine" and names(tmp_path) == {"taken"}


def test_a_staged_file_that_is_missing_changes_nothing(tmp_path):
    (tmp_path / "seal").write_text("old")
    with pytest.raises(FileNotFoundError), staging_folder(tmp_path, ".new-") as aside:
        (aside / "a").write_text("new")
        move_into_place(aside, tmp_path, ["a", "seal"], retire=["seal"])
    assert names(tmp_path) == {"seal"} and (tmp_path / "seal").read_text() == "old"


def test_hash_of_several_files_is_that_of_their_bytes_in_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 7)
    (tmp_path / "a").write_bytes(bytes(range(50)))
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "c").write_bytes(b"xyz")
    expected = hashlib.sha256(bytes(range(50)) + b"xyz").hexdigest()
    assert sha256(tmp_path / "a", tmp_path / "b", tmp_path / "c") == expected
