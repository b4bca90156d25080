"""What is written for people: the README and docs say what is so, and what they show runs."""

import ast
import importlib
import inspect
import re
import shutil
import tempfile
import tomllib
from functools import cache
from pathlib import Path

import documents
import pytest
from documents import ROOT, Block
from test_layers import LAYERS

README = "README.md"
EXECUTED = [README, "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md"))]
PAGES = EXECUTED + sorted(
    p.relative_to(ROOT).as_posix()
    for p in [ROOT / "CHANGELOG.md", *ROOT.glob("data/*/README.md"), *ROOT.glob("notebooks/README.md")]
)


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    return documents.blocks(page, text_of(page))


@cache
def helped(*verb: str) -> str:
    """What `stepaudio VERB --help` prints; an unknown command fails."""
    import contextlib
    import io

    from stepaudio.cli.main import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as left:
        main([*verb, "--help"])
    assert left.value.code == 0, verb
    return printed.getvalue()


def options_of(*verb: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", helped(*verb)))


@cache
def verbs() -> tuple[str, ...]:
    return tuple(re.findall(r"^    ([a-z][a-z0-9-]+)", helped(), re.M))


# ---------------------------------------------------------------- the README


def test_readme_is_short():
    assert len(text_of(README).splitlines()) <= 200


def map_of_folders() -> list[str]:
    """The names of the README's map of the package, in order."""
    rows = re.search(r"^\| in `stepaudio/` .*\n\|[-| ]+\n((?:\|.*\n)+)", text_of(README), re.M)[1]
    return [name for row in rows.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_readme_maps_every_folder_and_front_room_once():
    package = ROOT / "stepaudio"
    folders = [p.parent.relative_to(package).as_posix() + "/" for p in package.rglob("*/__init__.py")]
    rooms = [p.stem for p in package.glob("*.py") if not p.stem.startswith("__")]
    assert sorted(map_of_folders()) == sorted(
        {*folders, *rooms, "engine", "lazy", "choices"}
    )  # the three that are coming


def test_readme_maps_folders_in_the_order_of_imports():
    assert [name.rstrip("/") for name in map_of_folders() if "/" not in name.rstrip("/")] == LAYERS


def test_index_names_every_page():
    named = set(documents.links(text_of("docs/README.md")))
    pages = {p.name for p in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= named


# ---------------------------------------------------------------- what pages name exists


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    lost = []
    for link in documents.links(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not target.exists() or (fragment and fragment not in documents.anchors(target.read_text(encoding="utf-8"))):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page):
    """Of blocks, run or not, and of code spans: every command, and every option of that command."""
    named = [c for block in blocks_of(page) if block.language == "sh" for c in documents.stepaudio_commands(block)]
    named += [documents.words(s)[1:] for s in documents.spans(text_of(page)) if s.startswith("stepaudio ")]
    for verb, *rest in named:
        if verb.startswith("-"):
            assert verb in options_of(), verb
            continue
        assert verb in verbs(), f"stepaudio {verb}"
        options = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert options <= options_of(verb), f"stepaudio {verb} {' '.join(rest)}"


@pytest.mark.parametrize("page", EXECUTED)
def test_options_in_prose_exist(page):
    """`--option` by itself is one of some command, or of the programs that the project's own files call."""
    known = {option for verb in verbs() for option in options_of(verb)} | options_of()
    known |= set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", (ROOT / "Makefile").read_text(encoding="utf-8")))
    named = {o for s in documents.spans(text_of(page)) for o in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", s)}
    assert named <= known


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_modules_exist(page):
    """Code spans that look like a file of the project, or like a name of the package, are one."""
    lost = []
    for span in documents.spans(text_of(page)):
        name = span.split("(")[0]
        if re.fullmatch(r"(stepaudio|tests|docs|data|notebooks)/[\w./-]+", name):
            lost += [] if (ROOT / name).exists() else [span]
        elif re.fullmatch(r"stepaudio(\.\w+)+", name) and not found(name):
            lost.append(span)
    assert lost == []


def found(dotted: str) -> bool:
    """Whether a dotted name can be imported, or is an attribute of what can."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_what_would_be_installed_exists(page):
    """Targets of make, extras of the package: lines that a test does not run are looked up."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.M)[1].split())
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    lines = [line for b in blocks_of(page) if b.language == "sh" for line in documents.commands(b.text)]
    lines = [*lines, *(s for s in documents.spans(text_of(page)) if s.startswith(("make ", "pip ")))]
    for line in lines:
        if line.startswith("make "):
            named = {word for word in documents.words(line)[1:] if "=" not in word and word != "…"}
            assert named <= targets, line
        elif line.startswith("pip "):
            assert set(re.findall(r"\w+", "".join(re.findall(r"\[([\w,]+)\]", line)))) <= extras, line


@pytest.mark.parametrize("page", PAGES)
def test_calls_in_prose_can_be_made(page):
    """A code span that calls a method of a model or a transcript names one, and options that it takes."""
    import stepaudio
    from stepaudio.decoding.options import KEYWORDS

    owners = {"model": stepaudio.StepAudio2, "transcript": stepaudio.Transcript}
    for span in documents.spans(text_of(page)):
        if not re.match(r"(model|transcript)\.\w+\(.*\)$", span):
            continue
        call = ast.parse(span.replace("…", "..."), mode="eval").body
        method = getattr(owners[span.split(".")[0]], call.func.attr, None)
        assert method is not None, span
        options = {keyword.arg for keyword in call.keywords}
        assert options <= {*inspect.signature(method).parameters, *KEYWORDS}, span


def test_python_of_the_published_model_compiles():
    shown = [b for page in EXECUTED for b in blocks_of(page) if b.language == "python" and not b.runs]
    for block in shown:
        compile(block.text, f"{block.page}:{block.line}", "exec")


def test_most_blocks_are_run():
    all_blocks = [b for page in EXECUTED for b in blocks_of(page) if b.language in documents.RUN]
    assert sum(b.runs for b in all_blocks) >= 0.9 * len(all_blocks)


def test_fences_name_what_is_run():
    """No block escapes for want of a name: a fence without a language would be neither run nor seen as left out."""
    known = {"sh", "python", "text", "json", "toml", "yaml"}
    assert [f"{b.page}:{b.line}" for page in PAGES for b in blocks_of(page) if b.language not in known] == []


# ---------------------------------------------------------------- what pages show runs


@pytest.fixture(scope="module")
def runner():
    with tempfile.TemporaryDirectory() as folder:
        runner = documents.Runner(Path(folder))
        yield runner
        runner.close()


@pytest.mark.parametrize("page", [p for p in EXECUTED if any(b.runs for b in blocks_of(p))])
def test_blocks_run(page, runner, nano, tmp_path):
    documents.make_folder(tmp_path)
    runner.run(blocks_of(page), tmp_path)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "assert 1 + 1 == 3"),
        ("python", "raise SystemExit('no')"),
        ("sh", "false\ntrue"),
        ("sh", "stepaudio transcribe none.wav\ntrue"),
        ("sh", "stepaudio inform | cat"),
        ("sh", 'test "$(cat talk.wav | stepaudio transcribe - --text)" = "$(stepaudio transcribe a.wav --text)"'),
    ],
)
def test_a_block_that_fails_is_seen_and_the_next_page_runs(runner, nano, tmp_path, language, text):
    documents.make_folder(tmp_path)
    with pytest.raises(AssertionError, match=r"a block failed(?s:.)*page.md:3"):
        runner.run([documents.Block("page.md", 3, language, text)], tmp_path)
    (tmp_path / "a").mkdir()
    shutil.copy(tmp_path / "a.wav", tmp_path / "a" / "b.wav")
    test = 'test "$(cd a && stepaudio transcribe b.wav --text)" = "$(stepaudio transcribe - --text < a.wav)"'
    runner.run([documents.Block("page.md", 1, "sh", test)], tmp_path)
