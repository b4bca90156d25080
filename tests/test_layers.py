"""Imports go one way: a module may import what stands in a lower layer, or earlier in its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "stepaudio"

# Lowest first. Within one layer, modules import only those written before them.
LAYERS = [
    ["errors", "units", "config", "samples"],
    ["backend", "activations"],
    ["audio", "audio_out", "mel", "mel_speaking", "cut"],
    ["cache", "encoder", "llm", "net"],
    ["headers", "layout", "audit", "repair", "report"],
    ["tokenizer", "prompt", "sentences", "sampling", "loops", "generate", "answer"],
    ["token2wav"],
    ["weights", "transcribe", "pipeline"],
    ["model", "speech"],
    ["evaluate"],
    [
        "golden",
        "verify_voice",
        "verify_hearing",
        "verify_llm",
        "verify_text",
        "verify_speaking",
        "verify",
        "bench_torch",
        "bench",
        "train",
        "demo",
        "lab",
    ],
    ["cli_speaking", "cli"],
]
PLACE = {name: (layer, i) for layer, names in enumerate(LAYERS) for i, name in enumerate(names)}
TOP = ("__init__", "__main__")  # the first loads the BLAS before anything else, the second is the command


def name_of(path: Path) -> str:
    """The module, or the subpackage it belongs to, as the table spells it."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, also inside functions."""
    here = ["stepaudio", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            whole = [*base, *(node.module.split(".") if node.module else [])]
            names = [whole] if len(whole) > 1 else [[*whole, alias.name] for alias in node.names]
            found |= {parts[1] for parts in names if parts[0] == "stepaudio"}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("stepaudio.")}
    return {name for name in found if not name.startswith("__")}


FILES = sorted(p for p in PACKAGE.rglob("*.py") if name_of(p) not in TOP)


def test_the_table_names_every_module_once():
    assert sorted(PLACE) == sorted({name_of(p) for p in FILES})
    assert sum(map(len, LAYERS)) == len(PLACE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    me = name_of(path)
    up = {name for name in imported(path) - {me} if PLACE[name] >= PLACE[me]}
    assert not up, f"{me} imports {', '.join(sorted(up))}, which the table puts above it"


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p) not in ("cli", "train")], ids=lambda p: p.stem)
def test_importing_does_nothing(path):
    """No statement at module level calls into a file, device or seed: bare calls are not there at all."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [n for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    assert not calls
