"""The house itself: the environment file, what is required, the bundled recordings, no stray paths or large files."""

import csv
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
SPEECH = ROOT / "data" / "speech"


def tracked_files() -> list[Path]:
    """What git tracks or would: every file of the project that is not ignored."""
    try:
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a clone")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_environment_holds_nothing_that_pyproject_does_not():
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text(encoding="utf-8").splitlines()]
    listed = [line.removeprefix("- ") for line in lines[lines.index("dependencies:") + 1 :] if line]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert listed[0] == "python" + project["requires-python"]
    assert listed[1:3] == ["pip", "pip:"]
    extras = re.fullmatch(r"-e \.\[([a-z0-9,]+)\]", listed[3])[1].split(",")
    assert len(listed) == 4 and set(extras) <= set(project["optional-dependencies"])


def test_only_torch_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    assert {re.split(r"[=<>\[]", r)[0] for r in wanted if "==" in r.split(";")[0]} == {"torch"}
    assert [r for r in wanted if ">=" not in r and "torch==" not in r] == []


def test_no_paths_of_a_machine():
    """No file names a home, a scratch folder or a package registry's host: what works here must work elsewhere."""
    stray = re.compile(r"(?<![\w.~/])/(?:work|root|home|Users|opt)/\w|pypi[.]org|pythonhosted|file:///|localhost")
    found = {}
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path != Path(__file__).resolve() and (hit := stray.search(text)):
            found[path.relative_to(ROOT).as_posix()] = hit[0]
    assert found == {}


def test_no_file_is_large():
    """The bundled model takes 30 MB at most; everything else is small, but for some golden tensors."""
    sizes = {p.relative_to(ROOT): p.stat().st_size for p in tracked_files()}
    nano = sum(size for path, size in sizes.items() if path.is_relative_to("data/nano"))
    large = {p: size for p, size in sizes.items() if size > 1_000_000 and not p.is_relative_to("data/nano")}
    assert nano <= 30_000_000 and sum(large.values()) <= 8_000_000 and {p.suffix for p in large} <= {".safetensors"}


def manifest() -> list[dict]:
    with open(SPEECH / "manifest.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_recordings_are_those_of_the_manifest():
    names = [row["file"] for row in manifest()]
    assert sorted(names) == sorted(p.name for p in SPEECH.glob("*.flac")) and len(set(names)) == len(names)
    assert {p.name for p in SPEECH.iterdir()} - set(names) == {"manifest.tsv", "README.md"}
    assert sum(p.stat().st_size for p in SPEECH.iterdir()) <= 3_000_000


@pytest.mark.parametrize("row", manifest(), ids=lambda row: row["file"])
def test_recording_is_what_its_row_says(row):
    samples, rate = soundfile.read(SPEECH / row["file"])
    assert len(samples) / rate == pytest.approx(float(row["seconds"]), abs=0.0051)
    assert row["licence"] and row["kind"] in ("human", "synthetic")
    assert re.fullmatch(r"[a-z' ]*", row["text"])
    spoken = row["file"].split("_")[0].removesuffix(".flac") not in ("silence", "noise")
    assert bool(row["text"]) == spoken and (abs(samples).max() > 0.05 or row["file"] == "silence.flac")


def test_recordings_differ_in_rate_and_channels():
    """Reading the folder exercises resampling and mixing down."""
    found = {(i.samplerate, i.channels) for i in map(soundfile.info, map(str, SPEECH.glob("*.flac")))}
    assert found == {(16_000, 1), (8_000, 1), (44_100, 2)}
