"""Which BLAS is taken, and what is said where there is none. Nothing here is really loaded but the C library."""

import ctypes
import importlib.metadata
import subprocess
import sys
import warnings

import pytest

from stepaudio import resources
from stepaudio.backend import blas, device
from stepaudio.errors import DataError


class Library:
    """Stands for a loaded library with these symbols."""

    def __init__(self, *symbols):
        for name in symbols:
            setattr(self, name, None)


@pytest.fixture
def linux(monkeypatch):
    """A fresh Linux process without CUDA and without MLX, on which only the named libraries exist."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(blas, "loaded", None)
    monkeypatch.setattr(blas, "cuda_installed", lambda: False)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.delenv("STEPAUDIO_BLAS", raising=False)
    there, opened = {}, []

    def load(path, mode=None):
        opened.append(path)
        if path not in there:
            raise OSError(path)
        assert mode == ctypes.RTLD_GLOBAL
        return there[path]

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(blas, "_candidates", lambda: ["/mkl.so", "/openblas.so"])
    return there, opened


def test_the_first_that_works_is_taken_once(linux):
    there, opened = linux
    there["/openblas.so"] = Library("cblas_sgemm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert blas.preload_blas() == "/openblas.so" == blas.preload_blas()
    assert opened == ["/mkl.so", "/openblas.so"]


def test_a_library_that_is_no_blas_is_passed_over(linux):
    there, _ = linux
    there |= {"/mkl.so": Library("printf"), "/openblas.so": Library("cblas_sgemm")}
    assert blas.preload_blas() == "/openblas.so"


def test_one_clear_warning_where_there_is_none(linux):
    with pytest.warns(RuntimeWarning) as caught:
        assert blas.preload_blas() is None
    assert len(caught) == 1
    for part in ("no fast BLAS", "30 times slower", "stepaudio[cpu]", "libopenblas0-pthread", "STEPAUDIO_BLAS"):
        assert part in str(caught[0].message)


def test_a_named_library_that_does_not_work_is_named(linux, monkeypatch):
    monkeypatch.setenv("STEPAUDIO_BLAS", "/my/blas.so")
    with pytest.warns(RuntimeWarning, match="STEPAUDIO_BLAS=/my/blas.so is no CBLAS library"):
        blas.preload_blas()


def test_candidates_by_the_environment(monkeypatch):
    monkeypatch.setenv("STEPAUDIO_BLAS", "/my/blas.so")
    assert blas._candidates() == ["/my/blas.so"]
    monkeypatch.setenv("STEPAUDIO_BLAS", "none")
    assert blas._candidates() == []


def test_mkl_of_the_environment_is_found(monkeypatch, tmp_path):
    monkeypatch.delenv("STEPAUDIO_BLAS", raising=False)
    (tmp_path / "lib" / "python3" / "site-packages").mkdir(parents=True)
    (tmp_path / "lib" / "libmkl_rt.so.2").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "lib" / "python3" / "site-packages"), "site-packages"])
    assert str(tmp_path / "lib" / "libmkl_rt.so.2") in blas._candidates()


def test_none_is_asked_for_and_nothing_said(linux, monkeypatch):
    monkeypatch.setenv("STEPAUDIO_BLAS", "none")
    monkeypatch.setattr(blas, "_candidates", lambda: [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert blas.preload_blas() is None


def test_mlx_came_first(linux, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx.core", object())
    with pytest.warns(RuntimeWarning, match="import stepaudio first"):
        assert blas.preload_blas() is None


@pytest.mark.parametrize("why", ["mac", "cuda"])
def test_where_none_is_needed(linux, monkeypatch, why):
    monkeypatch.setattr(*((sys, "platform", "darwin") if why == "mac" else (blas, "cuda_installed", lambda: True)))
    assert blas.preload_blas() is None and linux[1] == []


@pytest.mark.parametrize(
    ("name", "cuda"),
    [("mlx-cuda", True), ("mlx-cuda-12", True), ("mlx-cuda-13", True), ("mlx-cpu", False), ("mlx-cuda-tools", False)],
)
def test_the_cuda_backend_is_asked_for_by_name(tmp_path, monkeypatch, name, cuda):
    """As a list of all packages has it; the empty folder of one that was removed is none."""
    there = tmp_path / f"{name.replace('-', '_')}-0.32.0.dist-info"
    there.mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not blas.cuda_installed()
    (there / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.32.0\n")
    assert [d.metadata["Name"] for d in importlib.metadata.distributions() if d.metadata] == [name]
    assert blas.cuda_installed() == cuda


def test_default_dtype_follows_the_device(monkeypatch):
    import mlx.core as mx

    monkeypatch.setattr(device, "on_cpu", lambda: True)
    assert device.default_dtype() == mx.float32
    monkeypatch.setattr(device, "on_cpu", lambda: False)
    assert device.default_dtype() == mx.bfloat16


def test_info_names_what_runs():
    found = device.info()
    assert found["backend"] in ("cpu", "cuda", "metal") and found["dtype"] in ("float32", "bfloat16")
    assert (found["dtype"] == "float32") == (found["backend"] == "cpu") and found["blas"]


# ---- where the data lie ----


def test_data_inside_an_installed_package_wins(monkeypatch, tmp_path):
    """What lies beside an installed package belongs to others."""
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "stepaudio" / "resources.py"))
    with pytest.raises(DataError, match="whole"):
        resources.data_folder()
    (tmp_path / "data").mkdir()
    assert resources.data_folder() == tmp_path / "data"
    (tmp_path / "stepaudio" / "data").mkdir(parents=True)
    assert resources.data_folder() == tmp_path / "stepaudio" / "data"
    assert resources.speech_manifest() == tmp_path / "stepaudio" / "data" / "speech" / "manifest.tsv"


def test_default_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", "~/mine")
    assert resources.default_checkpoint().is_absolute() and resources.default_checkpoint().name == "mine"
    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", "")
    monkeypatch.setattr(resources, "data_folder", lambda: tmp_path)
    with pytest.raises(DataError, match="STEPAUDIO_CHECKPOINT"):
        resources.default_checkpoint()
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "config.json").touch()
    assert resources.default_checkpoint() == tmp_path / "nano"


COUNT_FAULTS = """
import ctypes, resource, sys
import stepaudio
import mlx.core as mx
if sys.argv[1] == "without":
    # glibc's defaults for what may stay free at the heap's end, and from what size on memory is mapped. Of the first
    # alone it would depend on what else lies in the heap how many arrays are given back.
    for option in (-1, -3):
        assert ctypes.CDLL(None).mallopt(option, 128 << 10)
x = mx.zeros(6_000_000)  # 24 MB
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    mx.eval([x + i for i in range(12)])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sum([faults() for _ in range(8)][2:]))  # at first the heap grows
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt") or blas.cuda_installed(), reason="needs glibc and MLX's CPU backend"
)
def test_large_arrays_are_not_mapped_afresh():
    """Twelve large arrays, made six times: without the setting each faults for its pages, with it hardly one."""
    faults = {}
    for how in ("with", "without"):
        run = subprocess.run([sys.executable, "-c", COUNT_FAULTS, how], capture_output=True, text=True, check=True)
        faults[how] = int(run.stdout)
    assert faults["with"] < faults["without"] / 10


# ---- other packages that are not there, and a working folder that is gone ----

WITHOUT = """
import importlib.machinery
found = importlib.machinery.PathFinder.find_spec
def find_spec(cls, name, *rest):
    return None if name.partition(".")[0] == {package!r} else found(name, *rest)
importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""


def python(code, **more):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **more)


@pytest.mark.parametrize("package", device.NEEDED)
def test_a_package_that_is_needed_and_missing_is_named(package):
    module = {"tokenizers": "text.tokenizer", "tqdm": "transcribe", "jiwer": "evaluation.word_errors"}
    use = f"import stepaudio.{module.get(package, 'audio.load')}"
    if package == "huggingface_hub":  # imported when it is first used
        use = "import stepaudio.checkpoints.hub as hub\nexec('import huggingface_hub', vars(hub))"
    done = python(WITHOUT.format(package=package) + use)
    said = f"{package} is not installed, and nothing here works without it: pip install stepaudio"
    assert done.stderr.splitlines()[-1] == f"stepaudio.errors.BackendError: {said}"


def test_others_may_look_for_what_is_missing():
    code = WITHOUT.format(package="soundfile") + (
        "import stepaudio, importlib.util\n"
        "assert importlib.util.find_spec('soundfile') is None\n"
        "try:\n    import soundfile\nexcept ModuleNotFoundError:\n    print('as ever')"
    )
    assert python(code).stdout == "as ever\n"


def test_needed_packages_are_those_of_the_project():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(device.NEEDED) == {
        line.partition(">")[0].replace("-", "_") for line in project["dependencies"] if ";" not in line
    }


def test_a_working_folder_that_was_deleted(tmp_path):
    """MKL would end the process."""
    gone = tmp_path / "gone"
    code = (
        f"import os; os.mkdir({str(gone)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n"
        "import stepaudio, mlx.core as mx\n"
        "print((mx.ones((8, 8)) @ mx.ones((8, 8))).sum().item())\n"
        "try:\n    os.getcwd()\nexcept FileNotFoundError:\n    print('still there')"
    )
    assert python(code).stdout == "512.0\nstill there\n"
