"""Output that cannot be written, names that are no text, and signals: one line or silence, and an exit status."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import one_line

from stepaudio.cli import main as command
from stepaudio.cli.main import main
from stepaudio.cli.streams import print_json

INFO = [sys.executable, "-m", "stepaudio", "info", "--json"]


@pytest.mark.parametrize("argv", [["info"], ["--help"], ["transcribe", "--help"], ["--version"]])
def test_a_full_disk_is_told(argv):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stepaudio", *argv], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and "standard output or a file: No space" in one_line(done.stderr)


def test_a_reader_that_went_away_is_no_fault():
    for argv in (INFO, [*INFO[:3], "--help"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, "")


def test_no_standard_output_at_all(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["info"]) == 2 and "standard output is closed" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_that_are_not_utf_8(monkeypatch, encoding):
    """As JSON every encoding gives back the same name, with a mark for the odd byte; as text nothing fails."""
    name = os.fsdecode(b"/tmp/caf\xe9-\xc3\xa9\xf0\x9f\x98\x80.wav")
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", out)

    def show(argv):
        print_json({"file": name})
        print(name)

    monkeypatch.setattr(command, "_run", show)
    main(["info"])
    as_json, as_text = out.buffer.getvalue().decode(encoding).splitlines()
    assert json.loads(as_json) == {"file": "/tmp/caf\\xe9-\u00e9\U0001f600.wav"}
    assert as_text.startswith("/tmp/caf\\xe9-") and as_text.endswith(".wav")


def test_json_has_no_infinity(capsys):
    print_json({"a": [float("inf"), (float("nan"), 1.5)]})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [None, 1.5]]}


@pytest.mark.parametrize(("error", "said"), [
    (OSError(36, "File name too long", "mmm"), "mmm: File name too long"), (MemoryError(), "out of memory"),
    (ModuleNotFoundError("No module named 'soundfile'", name="soundfile"), "soundfile is not installed"),
])  # fmt: skip
def test_what_the_system_refuses_is_one_line(capsys, monkeypatch, error, said):
    def fail(argv):
        raise error

    monkeypatch.setattr(command, "_run", fail)
    monkeypatch.setattr(command, "discard_output", lambda: None)
    assert main(["info"]) == 2 and said in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_in_one_line(capsys, monkeypatch, number, status):
    def busy(argv):
        os.kill(os.getpid(), number)
        time.sleep(30)

    before = signal.getsignal(number)
    monkeypatch.setattr(command, "_run", busy)
    assert main(["info"]) == status and one_line(capsys.readouterr().err)
    assert signal.getsignal(number) is before


def test_ctrl_c_while_the_package_is_imported():
    """No code of the command runs yet that could catch an exception."""
    start = (
        "import sys, os, signal; sys.argv = ['stepaudio']; import ctypes.util, stepaudio.cli.signals; "
        "os.kill(os.getpid(), signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "stepaudio: interrupted\n")


@pytest.mark.parametrize("flags", [[], ["-O"], ["-X", "dev"]])
@pytest.mark.parametrize("module", [["-m", "stepaudio"], ["-mstepaudio"]])
def test_ctrl_c_is_answered_from_the_first_import_on(tmp_path, flags, module):
    """The signal comes while the package's second module is looked for; more cannot be caught by a package."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *_):\n"
        "        if name.startswith('stepaudio.backend'):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    words = [sys.executable, *flags, *module, "info"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (130, "stepaudio: interrupted\n")


def test_a_library_s_ctrl_c_is_left_alone():
    start = "import signal, stepaudio; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("word", ["0x10", "1_000", "٣", "9" * 5000, "1.5", ""])
def test_odd_numbers_are_refused(capsys, word):
    with pytest.raises(SystemExit) as left:
        main(["transcribe", "a.wav", "--max-tokens", word])
    err = capsys.readouterr().err
    assert left.value.code == 2 and "expected a whole number" in err and len(err) < 1000
