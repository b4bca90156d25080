"""What `--help` promises: a phrase and a default for every option, examples that are understood, exit statuses."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import test_documents

from stepaudio import __version__
from stepaudio.choices import CacheKind, LoopAction, Positions
from stepaudio.cli import main as command
from stepaudio.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
VERBS = test_documents.verbs()


def helped(*verb: str) -> str:
    return " ".join(test_documents.helped(*verb).split())


def entries(verb: str) -> list[str]:
    """The entries of a command's help, one per option, each in one line."""
    text = test_documents.helped(verb).split("\nexamples:")[0]
    return [" ".join(e.split()) for e in re.split(r"\n(?=  -)", text)[1:]]


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(argv))
    assert left.value.code == 2
    return capsys.readouterr().err


def test_the_commands():
    assert set(VERBS) == {"transcribe", "speak", "say-codes", "respond", "translate", "chat", "evaluate", "weights",
                          "convert", "quantize", "export", "plan", "verify", "download", "bench", "sweep", "info",
                          "demo"}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_phrase_and_a_default(verb):
    for entry in entries(verb):
        names = re.match(r"(-\S+( \S+)?, )*--?\S+( [A-Z{]\S*)?", entry)
        phrase = entry[names.end() :].split("(default:")[0]
        assert len(phrase.split()) >= 2, entry
        takes_value = names[3] is not None
        assert ("(default: " in entry or "(required)" in entry) == takes_value, entry
        assert "None" not in entry and "==SUPPRESS==" not in entry


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_understood_and_statuses_named(verb):
    text = test_documents.helped(verb)
    shown = re.search(r"^examples:\n((?:  .+\n)+)\nexit status:\n((?:  \d+  .+\n)+)", text, re.M)
    examples = [line.strip() for line in shown[1].splitlines()]
    assert len(examples) == 2 or (verb == "transcribe" and len(examples) == 3)
    for line in examples:
        words = shlex.split(line.split(" < ")[0].split("stepaudio ", 1)[1].split(" | ")[0])
        assert words[0] == verb
        command.parsed(words)  # ends the process if it is not understood
    codes = [int(code) for code in re.findall(r"^  (\d+)  ", shown[2], re.M)]
    assert codes == sorted(codes) and {0, 2} <= set(codes)


def test_choices_come_from_the_enums():
    for verb in ("transcribe", "speak", "respond", "translate", "chat", "evaluate"):
        text = helped(verb)
        for option, kind in (("cache", CacheKind), ("on-loop", LoopAction), ("positions", Positions)):
            assert f"--{option} {{{','.join(kind.values())}}}" in text


@pytest.mark.parametrize(("argv", "said"), [
    (["transcrib", "a.wav"], "unknown command 'transcrib'; did you mean 'transcribe'?"),
    (["sing"], "unknown command 'sing'; expected transcribe, "),
    (["transcribe", "a.wav", "--sampeling", "greedy"], "--sampeling greedy; did you mean '--sampling'?"),
    (["transcribe", "a.wav", "--max_tokens=9"], "--max_tokens=9; did you mean '--max-tokens'?"),
    (["transcribe", "a.wav", "--cache", "sink"], "--cache: expected full, window, sinks or pinned, found 'sink'; "
                                                 "did you mean 'sinks'?"),
    (["transcribe", "a.wav", "--on-loop", "zzz"], "--on-loop: expected off, report, stop or escape, found 'zzz'\n"),
    (["transcribe", "a.wav", "--format", "str"], "text, srt, vtt or tsv, found 'str'; did you mean 'srt'?"),
    (["speak", "x", "-o", "a.wav", "--nois", "positions"], "did you mean 'position'?"),
    (["--text", "transcribe", "a.wav"], "--text; options come after the command\n"),
    (["bench", "--token2wave"], "--token2wave; did you mean '--token2wav'?"),
    (["info", "now"], "unrecognized arguments: now\n"), ([], "expected a COMMAND: transcribe, "),
    (["--versoin"], "--versoin; did you mean '--version'?"), 
    (["transcribe", "a.wav", "--speculate", "lokup"], "found 'lokup'; did you mean 'lookup'?"),
    (["evaluate", "--speculate", "nowhere/at/all"], "folder or name of a model, found 'nowhere/at/all'"),
    (["transcribe", "a.wav", "--top-k", "many"], "--top-k: expected a whole number, found 'many'"),
])  # fmt: skip
def test_wrong_words_are_refused_with_what_was_meant(capsys, argv, said):
    err = refused(capsys, *argv)
    assert said in err and err.startswith("usage: stepaudio") and len(err.splitlines()) <= 3


def test_the_page_on_the_command_line_names_every_option():
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page))
    assert {o for verb in VERBS for o in test_documents.options_of(verb) if o.startswith("--")} <= named


def test_version(capsys):
    for option in ("--version", "-V"):
        with pytest.raises(SystemExit) as left:
            main([option])
        assert left.value.code == 0 and capsys.readouterr().out == f"stepaudio {__version__}\n"


# ---- without MLX ----


@pytest.fixture(scope="module")
def without_mlx(tmp_path_factory) -> list[str]:
    """A Python that sees everything installed here but MLX, as if the package had been installed without an extra."""
    folder = tmp_path_factory.mktemp("packages")
    for place in (p for p in sys.path if p.endswith("site-packages")):
        for entry in Path(place).iterdir():
            if not entry.name.startswith(("mlx", "__editable", "_stepaudio", "stepaudio")) and entry.suffix != ".pth":
                target = folder / entry.name
                if not target.exists():
                    target.symlink_to(entry)
    start = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(folder)!r}]; from stepaudio.cli.main import main"
    return [sys.executable, "-S", "-E", "-c", f"{start}; sys.exit(main())"]


@pytest.mark.parametrize("argv", [
    ["transcribe", "a.wav"], ["transcribe", "a.wav", "--no-tokenizer"], ["info"], ["demo"], ["weights"],
    ["convert", "x"], ["speak", "x", "-o", "a.wav"],
])  # fmt: skip
def test_without_mlx_one_line_says_what_to_install(without_mlx, argv):
    done = subprocess.run([*without_mlx, *argv], capture_output=True, text=True, timeout=120, env={**os.environ})
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r'stepaudio: MLX is not installed.*pip install "stepaudio.*\n', done.stderr)


def test_help_and_version_need_no_mlx(without_mlx):
    for argv in (["--version"], ["--help"], ["transcribe", "--help"]):
        done = subprocess.run([*without_mlx, *argv], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
