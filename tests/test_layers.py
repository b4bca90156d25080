"""Imports go one way: a file may import folders below its own, and files before it in its folder."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "stepaudio"

# Lowest first. Each name is a folder or a front room (a file at the top of the package).
LAYERS = [
    "lazy", "errors", "choices", "constants", "reading", "schema", "files", "targets", "resources",
    "backend", "audio", "text", "models", "checkpoints", "decoding", "synthesis",
    "pipeline", "engine", "transcript", "transcribe", "thinking", "answering", "model", "speech_model", "conversation",
    "evaluation", "parity", "interp", "bench", "experiments", "viz", "train", "cli",
]  # fmt: skip
TOP = ("__init__", "__main__")  # the first loads the BLAS before anything else, the second is the command


def module_of(path: Path) -> tuple[str, ...]:
    """Path of a module below the package; a folder's `__init__` is the folder itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path) -> set[tuple[str, ...]]:
    """Modules of the package that a file imports anywhere, also inside functions; of a name, its own module if any."""
    here = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - node.level + 1]
            elif node.module and node.module.split(".")[0] == "stepaudio":
                base = ()
            else:
                continue
            module = (*base, *[part for part in (node.module or "").split(".") if part and part != "stepaudio"])
            for alias in node.names:
                whole = (*module, alias.name)
                found.add(whole if PACKAGE.joinpath(*whole).with_suffix(".py").is_file() else module)
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("stepaudio.")}
    return found - {()}


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).with_suffix("").as_posix() not in TOP)


def test_the_table_names_every_folder_once():
    assert sorted(LAYERS) == sorted({module_of(p)[0] for p in FILES})


def test_no_module_lies_at_the_top_but_the_front_rooms():
    rooms = {"lazy", "errors", "choices", "constants", "reading", "schema", "files", "targets", "resources", "pipeline",
             "engine", "transcript", "transcribe", "thinking", "answering", "model", "speech_model"}  # fmt: skip
    assert {p.stem for p in PACKAGE.glob("*.py")} - set(TOP) == rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    me = module_of(path)
    up = {name for name in imported(path) if LAYERS.index(name[0]) > LAYERS.index(me[0])}
    assert not up, f"{'.'.join(me)} imports {sorted(map('.'.join, up))}, which the table puts above it"


def test_no_two_modules_need_each_other():
    """Within a folder any order will do, but there is one: no chain of imports leads back to its start."""
    needs = {module_of(p): imported(p) for p in FILES}
    done: set[tuple[str, ...]] = set()

    def visit(name, chain):
        assert name not in chain, f"a circle of imports: {' -> '.join(map('.'.join, (*chain, name)))}"
        if name not in done:
            for other in sorted(needs.get(name, ())):
                visit(other, (*chain, name))
            done.add(name)

    for name in sorted(needs):
        visit(name, ())


def private_imports(path: Path) -> list[str]:
    """Private names that a file takes from another module of the package, by import or as an attribute of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found, modules = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("stepaudio")):
            found += [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            modules |= {a.asname or a.name for a in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in modules:
            found.append(f"{node.value.id}.{node.attr}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_stay_private(path):
    assert private_imports(path) == []


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p)[0] not in ("cli", "train")],
                         ids=lambda p: str(p.relative_to(PACKAGE)))  # fmt: skip
def test_importing_does_nothing(path):
    """No statement at module level calls into a file, device or seed: bare calls are not there at all."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [n for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    assert not calls
