"""The form of the notebooks, read as JSON without a kernel.

`make test` runs them under nbval, which compares outputs. It compares nothing in a cell that was never executed, and
says nothing of size, length or prose: that is what is held here. Pass the folder of other notebooks to `faults`.
"""

import base64
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TAGS = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
UNCOMPARED = {"nbval-ignore-output", "nbval-skip"}
MAX_BYTES, MAX_LINES, MAX_COLUMNS, MAX_AUDIO_SECONDS = 600_000, 12, 88, 2.0
MIN_COMPARED = 0.7
CODE_CELLS = range(10, 20)
WORDS = range(400, 1501)
AUDIO = re.compile(r"data:audio/[\w.+-]+;base64,([A-Za-z0-9+/=]+)")


def text_of(source) -> str:
    return source if isinstance(source, str) else "".join(source)


def tags_of(cell) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def code_cells(notebook) -> list[dict]:
    return [c for c in notebook["cells"] if c["cell_type"] == "code"]


def prose(notebook) -> list[str]:
    return [text_of(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]


# Every rule: notebook (parsed), its text as stored -> list of faults.


def executed_in_order(notebook, _):
    """Counts run 1 … n: nothing escapes the comparison, and the outputs are of one clean run."""
    counts = [c["execution_count"] for c in code_cells(notebook) if "nbval-skip" not in tags_of(c)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def no_stray_error(notebook, _):
    faults = []
    for i, cell in enumerate(code_cells(notebook), 1):
        kinds = {o["output_type"] for o in cell["outputs"]}
        if ("error" in kinds) != ("raises-exception" in tags_of(cell)):
            faults.append(f"cell {i} ends in an error and is not tagged raises-exception, or the other way round")
        faults += [f"cell {i} writes to stderr" for o in cell["outputs"] if o.get("name") == "stderr"]
    return faults


def small(notebook, stored):
    size = len(stored.encode("utf-8"))
    return [] if size <= MAX_BYTES else [f"{size} bytes, at most {MAX_BYTES}"]


def known_tags(notebook, _):
    return [f"unknown tags {sorted(tags_of(c) - TAGS)}" for c in notebook["cells"] if tags_of(c) - TAGS]


def prose_between_code(notebook, _):
    kinds = [c["cell_type"] for c in notebook["cells"]]
    pairs = [i for i, pair in enumerate(itertools.pairwise(kinds), 1) if pair == ("code", "code")]
    return [f"cells {i} and {i + 1} are code without prose between them" for i in pairs]


def mostly_compared(notebook, _):
    cells = code_cells(notebook)
    share = sum(not tags_of(c) & UNCOMPARED for c in cells) / max(1, len(cells))
    return [] if share >= MIN_COMPARED else [f"only {share:.0%} of code cells are compared"]


def short_cells(notebook, _):
    faults = []
    for i, cell in enumerate(code_cells(notebook), 1):
        lines = text_of(cell["source"]).split("\n")
        if len(lines) > MAX_LINES:
            faults.append(f"code cell {i} has {len(lines)} lines, at most {MAX_LINES}")
        faults += [f"code cell {i}: line of {len(x)} columns" for x in lines if len(x) > MAX_COLUMNS]
    if len(code_cells(notebook)) not in CODE_CELLS:
        faults.append(f"{len(code_cells(notebook))} code cells, expected {CODE_CELLS.start} to {CODE_CELLS.stop - 1}")
    words = sum(len(p.split()) for p in prose(notebook))
    return faults if words in WORDS else [*faults, f"{words} words, expected {WORDS.start} to {WORDS.stop - 1}"]


def short_audio(notebook, _):
    faults = []
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            for data in AUDIO.findall(text_of(output.get("data", {}).get("text/html", ""))):
                info = soundfile.info(io.BytesIO(base64.b64decode(data)))
                if info.duration > MAX_AUDIO_SECONDS:
                    faults.append(f"{info.duration:.1f} s of sound, at most {MAX_AUDIO_SECONDS} s")
    return faults


def opens_and_closes_as_agreed(notebook, _):
    """A question, its answer and what is needed; at the end asserts, and what was not shown."""
    first, last = prose(notebook)[0], prose(notebook)[-1]
    faults = [] if re.match(r"# [^\n]+\?\n", first) else ["the title is no question"]
    faults += [
        f"the first cell lacks {part}" for part in ("**Answer.**", "**Needs.**", "**Explains.**") if part not in first
    ]
    if "## Check yourself" not in "\n".join(prose(notebook)) or "## What this did not show" not in last:
        faults.append("it does not end in Check yourself and What this did not show")
    return faults


def of_no_machine(notebook, stored):
    """No path of a machine, no package installed from a cell, no state of a widget, no other kernel."""
    faults = [
        f"mentions {word}"
        for word in ("/home/", "/root/", "/work/", "/Users/", "/tmp/", "pip install")
        if word in stored
    ]
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3" or "widgets" in notebook["metadata"]:
        faults.append("expected the kernel python3 and no stored widget state")
    return faults


def linked(notebook, _):
    """Other notebooks are named by links, the last cell leads on, and a recording of one's own has a place."""
    text, names = "\n".join(prose(notebook)), {p.stem for p in NOTEBOOKS}
    faults = [f"names {n} without a link" for n in names if re.search(rf"(?<![\[(]){n}(?!\.ipynb|\])", text)]
    if "(README.md)" not in prose(notebook)[-1] or "(../docs/gallery.md)" not in prose(notebook)[-1]:
        faults.append("the last cell does not link to the other notebooks and the gallery")
    code = "\n".join(text_of(c["source"]) for c in code_cells(notebook))
    if not re.search(r"my_\w+\.|your own", code) and "my_recording" not in text:
        faults.append("no place for a recording of one's own")
    return faults


LANGUAGE = {"codemirror_mode", "file_extension", "mimetype", "name", "nbconvert_exporter", "pygments_lexer", "version"}


def unchanged_by_opening(notebook, stored):
    """Metadata, cell ids and layout are those that JupyterLab writes, so that opening does not mark it as changed."""
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    metadata = notebook["metadata"]
    faults = [] if metadata.get("kernelspec") == kernel else [f"kernelspec: {metadata.get('kernelspec')}"]
    if set(metadata.get("language_info", ())) != LANGUAGE:
        faults.append("language_info is not complete")
    ids = [c.get("id") for c in notebook["cells"]]
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5) or None in ids or len(set(ids)) < len(ids):
        faults.append("expected nbformat 4.5 and an id for each cell")
    if json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n" != stored:
        faults.append("its layout is not the one of nbformat")
    return faults


RULES = [
    executed_in_order,
    no_stray_error,
    small,
    known_tags,
    prose_between_code,
    mostly_compared,
    short_cells,
    short_audio,
    opens_and_closes_as_agreed,
    of_no_machine,
    unchanged_by_opening,
    linked,
]


def faults(path: Path) -> list[str]:
    stored = path.read_text(encoding="utf-8")
    notebook = json.loads(stored)
    return [fault for rule in RULES for fault in rule(notebook, stored)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_has_the_form(path):
    assert faults(path) == []


def test_every_notebook_is_listed_and_named_in_order():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\(([^)]+\.ipynb)\)", readme)
    assert listed == [p.name for p in NOTEBOOKS] and len(listed) > 0
    assert [n for n in listed if not re.fullmatch(r"\d\d_[a-z]+(_[a-z]+)+\.ipynb", n)] == []


# ---- each rule finds its fault ----


def sound(seconds: float) -> str:
    file = io.BytesIO()
    soundfile.write(file, [0.0] * round(seconds * 8000), 8000, format="WAV")
    return f'<audio src="data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"/>'


def spoil(notebook, how):
    code = code_cells(notebook)
    if how == "count":
        code[2]["execution_count"] = None
    elif how == "error":
        code[1]["outputs"] = [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]
    elif how == "stderr":
        code[1]["outputs"] = [{"output_type": "stream", "name": "stderr", "text": "x"}]
    elif how == "bytes":
        code[1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * MAX_BYTES}]
    elif how == "unknown tags":
        code[1]["metadata"]["tags"] = ["nbval-ignore"]
    elif how == "without prose":
        notebook["cells"].insert(2, dict(code[0]))
    elif how == "compared":
        for cell in code[: len(code) // 2]:
            cell["metadata"]["tags"] = ["nbval-ignore-output"]
    elif how == "lines":
        code[1]["source"] = "\n".join(["a = 1"] * 13)
    elif how == "columns":
        code[1]["source"] = "a" * 89
    elif how == "s of sound":
        code[1]["outputs"] = [{"output_type": "display_data", "data": {"text/html": sound(2.5)}, "metadata": {}}]
    elif how == "no question":
        notebook["cells"][0]["source"] = "# A title\n**Answer.** **Needs.** **Explains.**"
    elif how == "Check yourself":
        notebook["cells"][-1]["source"] = "The end."
    elif how == "language_info":
        notebook["metadata"]["language_info"] = {"name": "python"}
    elif how == "kernelspec":
        notebook["metadata"]["kernelspec"]["display_name"] = "Python 3"
    elif how == "an id for each cell":
        notebook["cells"][1]["id"] = notebook["cells"][2]["id"]
    elif how == "without a link":
        notebook["cells"][0]["source"] = text_of(notebook["cells"][0]["source"]) + "See `30_match_weights`."
    elif how == "the gallery":
        notebook["cells"][-1]["source"] = "## What this did not show\n"
    elif how == "one's own":
        for cell in notebook["cells"]:
            cell["source"] = re.sub(r"my_\w+|your own", "", text_of(cell["source"]))
    elif how == "mentions":
        code[1]["source"] = "open('" + "/ho" + "me/me/a.wav')"


@pytest.mark.parametrize(
    "how",
    [
        "count",
        "error",
        "stderr",
        "bytes",
        "unknown tags",
        "without prose",
        "compared",
        "lines",
        "columns",
        "s of sound",
        "no question",
        "Check yourself",
        "mentions",
        "language_info",
        "kernelspec",
        "an id for each cell",
        "without a link",
        "the gallery",
        "one's own",
        "layout",
    ],
)
def test_a_spoilt_notebook_is_refused(tmp_path, how):
    if not NOTEBOOKS:
        pytest.skip("needs a notebook to spoil")
    notebook = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    spoil(notebook, how)
    path = tmp_path / "00_spoil_it.ipynb"
    indent = 2 if how == "layout" else 1
    stored = json.dumps(notebook, ensure_ascii=False, indent=indent, sort_keys=True) + "\n"
    path.write_text(stored, encoding="utf-8")
    assert any(how in fault for fault in faults(path))


# ---- the comparison can fail ----


def compared(path: Path) -> subprocess.CompletedProcess:
    """nbval on the notebooks of a folder, as `make notebooks` runs it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "--nbval-sanitize-with",
        str(ROOT / "tests" / "nb_sanitize.cfg"),
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
        str(path),
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def with_a_number(notebook) -> tuple[int, dict]:
    """Index of the first compared cell that prints a number, and that output."""
    for i, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code" and not tags_of(cell):
            for output in cell["outputs"]:
                if output["output_type"] == "stream" and re.search(r"\d", text_of(output["text"])):
                    return i, output
    raise AssertionError("no compared cell prints a number")


def test_a_changed_number_makes_the_run_fail(tmp_path):
    """A cell that prints what a notebook has stored, compared with that, and with that after a digit has changed."""
    pytest.importorskip("nbval", reason="needs the extras `test` and `notebook`")
    pytest.importorskip("ipykernel", reason="needs the extras `test` and `notebook`")
    notebook = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    i, output = with_a_number(notebook)
    cell, text = notebook["cells"][i], text_of(output["text"])
    cell |= {"source": f"print({text!r}, end='')", "outputs": [output]}
    notebook["cells"] = [cell]
    (tmp_path / "same.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    spot = re.search(r"\d", text).start()
    output["text"] = text[:spot] + str((int(text[spot]) + 1) % 10) + text[spot + 1 :]
    (tmp_path / "changed.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    done = compared(tmp_path)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout
    assert re.search(r"^FAILED .*changed\.ipynb", done.stdout, re.M)
