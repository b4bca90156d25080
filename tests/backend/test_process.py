"""Forked children, threads that end, and the folder in which MLX compiles, seen from outside."""

import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import namedtuple
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import tiny

from stepaudio.backend import process
from stepaudio.errors import BackendError

SPAWNED = """
import multiprocessing, sys
import stepaudio, numpy as np

def text(folder):
    sound = np.random.default_rng(0).normal(0, 0.1, 8000)
    return stepaudio.load(folder).transcribe(sound, sr=16000, max_tokens=3).segments[0].stop

def shape(_):
    import tiny
    from stepaudio.audio.features import log_mel
    return log_mel(tiny.noise(1.0)).shape
"""


def python(code: str, *args, **environment) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(Path(process.__file__).parents[2]), str(Path(__file__).parents[1])])
    env = os.environ | {"PYTHONPATH": paths} | environment
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, env=env)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "use", ["model = stepaudio.load(sys.argv[1])", "import mlx.core as mx; mx.eval(mx.ones(2) + 1)"]
)
def test_a_child_of_a_process_that_used_mlx_is_told_to_spawn(tiny_checkpoint, use):
    code = f"""{SPAWNED}
{use}
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map_async(shape, [0]).get(60))  # what needs no MLX still works
    try: pool.map_async(text, [sys.argv[1]]).get(60)
    except stepaudio.errors.BackendError as error: print(error)
"""
    shown = python(code, tiny_checkpoint)
    assert shown.stdout.splitlines() == ["[(128, 102)]", process.FORKED], shown.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_process_that_only_imported_it_computes(tiny_checkpoint):
    code = f"""{SPAWNED}
import stepaudio.model
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(*pool.map_async(text, [sys.argv[1]]).get(60))
"""
    assert python(code, tiny_checkpoint).stdout == "length\n"


def test_spawned_workers_compute(tiny_checkpoint, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(f"""{SPAWNED}
if __name__ == "__main__":
    model = stepaudio.load(sys.argv[1])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map_async(text, [sys.argv[1]]).get(60))
""")
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    found = python(code, script, tiny_checkpoint)
    assert found.stdout == "length\n", found.stderr


def test_a_thread_takes_its_streams_along(tiny_model, monkeypatch):
    """Left to the end of the process, they abort it now and then; so it is watched that they go, and where."""
    gone, clear = [], mx.clear_streams
    monkeypatch.setattr(mx, "clear_streams", lambda: gone.append(threading.get_ident()) or clear())
    sound, found = tiny.noise(0.5), []

    def work():
        for _ in range(2):
            found.append(tiny_model.transcribe(sound, sr=tiny.RATE, max_tokens=4).text)
        found.append(threading.get_ident())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert gone == [found[-1]]
    assert found[:2] == [tiny_model.transcribe(sound, sr=tiny.RATE, max_tokens=4).text] * 2
    assert gone == [found[-1]]  # those of the main thread stay


def test_no_net_compiles_into_the_shared_folder(tiny_model, synthesizer, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "mlx").write_text("a plain file, where MLX would make its folder")
    tiny_model.transcribe(tiny.noise(1.0), sr=tiny.RATE, max_tokens=4)
    tiny_model.altered(net=tiny_model.net).transcribe(tiny.noise(0.3), sr=tiny.RATE, temperature=1.0, max_tokens=4)
    voice = synthesizer.voice(tiny.noise(1.0))
    synthesizer.decode(range(30), voice)
    assert len(list(synthesizer.stream(range(60), voice))) == 3


Room = namedtuple("Room", "f_flag f_bavail f_frsize")


def test_a_folder_that_cannot_be_compiled_in_is_told(tmp_path, monkeypatch):
    folder = tmp_path / "mlx"
    assert process._folder_fault(folder) is None and folder.is_dir()
    (tmp_path / "file").write_text("")
    assert "File exists" in (process._folder_fault(tmp_path / "file") or "")
    assert "No such file" in (process._folder_fault(tmp_path / "no" / "mlx") or "")
    for room, told in ((Room(os.ST_NOEXEC, 1 << 20, 4096), "executed"), (Room(0, 10, 4096), "space")):
        monkeypatch.setattr(os, "statvfs", lambda _, room=room: room)
        assert told in (process._folder_fault(folder) or "")
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    assert "another user" in (process._folder_fault(folder) or "")


@pytest.mark.skipif(not process.on_cpu(), reason="compiles in memory")
def test_training_goes_on_without_compiling(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    with pytest.warns(RuntimeWarning, match="nothing is compiled"):
        assert not process.may_compile()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert process.may_compile()


def test_what_marks_a_child(monkeypatch):
    monkeypatch.setattr(process, "_forked", False)
    mx.eval(mx.array(np.ones(3)))
    process._before_fork()
    process._in_child()
    with pytest.raises(BackendError, match="spawn"):
        process.enter()
    monkeypatch.setattr(process, "_forked", False)
    process.enter()


@pytest.mark.parametrize(("asked", "found"), [({}, "0"), ({"MLX_ENABLE_CACHE_THRASHING_CHECK": "1"}, "1")])
def test_cuda_caches_take_any_number_of_shapes_unless_the_user_says_otherwise(asked, found):
    """MLX reads the C library's environment, so that is where it is looked for; before mlx.core is imported."""
    code = """
import sys
import stepaudio, ctypes
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(getenv(b"MLX_ENABLE_CACHE_THRASHING_CHECK").decode(), "mlx.core" in sys.modules)
"""
    environment = {k: v for k, v in os.environ.items() if k != "MLX_ENABLE_CACHE_THRASHING_CHECK"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment)
        assert python(code, **asked).stdout.split() == [found, "False"]
