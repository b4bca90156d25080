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
LONGEST = 400  # lines of a file of Python


def tracked_files() -> list[Path]:
    """What git tracks or would: every file of the project that is not ignored."""
    try:
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a clone")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_is_too_long_to_be_read_at_once():
    names = {p.relative_to(ROOT).as_posix(): p for p in tracked_files() if p.suffix == ".py"}
    names.pop("data/recipe/phrases.py", None)  # a list of phrases
    lengths = {name: len(p.read_text(encoding="utf-8").splitlines()) for name, p in names.items()}
    assert lengths and {name: n for name, n in lengths.items() if n > LONGEST} == {}


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


def recipe_of(target: str) -> list[str]:
    """The commands of a target of the Makefile, as a shell sees them."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = re.search(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", makefile, re.M)[1].splitlines()
    return [line.removeprefix("\t@").replace("$(PY)", ".venv/bin/python") for line in lines]


def test_hooks_before_a_commit_are_those_of_make_lint():
    yaml = pytest.importorskip("yaml")
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert [hook["entry"] for hook in repos[0]["hooks"]] == recipe_of("lint")


def test_workflow_runs_what_make_runs_on_both_systems():
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"].values()
    commands = [step["run"].split() for job in jobs for step in job["steps"] if "run" in step]
    targets = set(re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split())
    assert {c[0] for c in commands} == {"make"} and {c[1] for c in commands} <= targets
    tested = {
        job["runs-on"].split("-")[0] for job in jobs for step in job["steps"] if "make test" in step.get("run", "")
    }
    assert tested == {"ubuntu", "macos"}


def test_version_and_licence_are_said_alike():
    import stepaudio

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M))
    assert citation["version"] == stepaudio.__version__ and citation["license"] == project["license"] == "Apache-2.0"
    assert f"\n## {stepaudio.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 10_000


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
    """The bundled model takes 64 MB at most; all else is small, or golden."""
    sizes = {p.relative_to(ROOT): p.stat().st_size for p in tracked_files()}
    nano = sum(size for path, size in sizes.items() if path.is_relative_to("data/nano"))
    large = {p: n for p, n in sizes.items() if n > 1_000_000 and not p.is_relative_to("data/nano")}
    assert (
        nano <= 64_000_000
        and sum(large.values()) <= 8_000_000
        and {p.suffix for p in large} <= {".safetensors", ".parquet"}
    )


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
