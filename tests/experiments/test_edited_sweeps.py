"""Edits as a dimension of a grid: what they do, what rows say of them, and what is refused before anything runs."""

import json
from dataclasses import replace

import mlx.core as mx
import pytest

from stepaudio.audio.load import load_audio
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError, DataError
from stepaudio.experiments.edited import EditPlan
from stepaudio.experiments.faults import faulty
from stepaudio.experiments.grid import Grid
from stepaudio.experiments.store import read_store, read_table
from stepaudio.experiments.sweep import run_sweep, transcribe_one
from stepaudio.experiments.table import LATER
from stepaudio.interp import Edits, Place, activations, run_with_edits, scale, zero
from stepaudio.interp.edits import patch, resample

GREEDY = {"sampling": "greedy", "max_tokens": 6, "vad": "off"}
FIRST = {"zero": "decoder.1.z", "heads": 1}


@pytest.fixture(scope="module")
def plain(real_grid) -> Grid:
    return Grid(real_grid.clips, {"greedy": GREEDY}, real_grid.model)


def rows_of(grid, path, **how):
    return run_sweep(grid, path / "s.jsonl", progress=False, **how).rows


def ids(rows, **which):
    return {r["clip"]: r["ids"] for r in rows if all(r[k] == v for k, v in which.items())}


@pytest.fixture(scope="module")
def edited(plain, tmp_path_factory):
    """Rows of both clips: without edits, with one that changes nothing, and with two that change something."""
    spec = {"none": [], "same": scale("decoder.*.z", 1.0), "head": [FIRST],
            "both": [FIRST, {"scale": "adapter.out", "factor": -1, "seconds": [0, 0.2]}]}  # fmt: skip
    grid = replace(plain, edits=spec)
    return grid, rows_of(grid, tmp_path_factory.mktemp("edited"))


def test_an_edit_that_changes_nothing_gives_the_row_without(edited):
    _, rows = edited
    assert len(rows) == 8 and ids(rows, edits="same") == ids(rows, edits="none")
    for name in ("text", "stops", "kv_bytes", "errors"):
        assert [r[name] for r in rows if r["edits"] == "same"] == [r[name] for r in rows if r["edits"] == "none"]


def test_a_row_is_the_run_with_edits_and_says_which(edited, tiny_model):
    grid, rows = edited
    made = zero("decoder.1.z", heads=1) + scale("adapter.out", -1, seconds=(0, 0.2))
    runs = run_with_edits(tiny_model, [c.file for c in grid.clips], made, sampling="greedy", max_tokens=6)
    mine = [r for r in rows if r["edits"] == "both"]
    for row, run in zip(mine, runs, strict=True):
        assert row["ids"][0] == list(run.tokens)[: len(row["ids"][0])] and row["n_ids"] >= len(run.tokens) - 1
        assert row["edits_hash"] == made.digest and row["edits_json"] == json.loads(json.dumps(made.to_list()))
    assert ids(rows, edits="both") != ids(rows, edits="none")
    assert all(r["edits_hash"] == "" and r["edits_json"] == [] for r in rows if r["edits"] == "none")


@pytest.mark.parametrize("spec, made", [
    ([FIRST], zero("decoder.1.z", heads=1)),
    ([{"zero": ["decoder.0.z", "logits"], "positions": [2, 5]}], zero(["decoder.0.z", "logits"], positions=(2, 5))),
    ([{"scale": "decoder.0.pattern", "factor": 2, "heads": "1:3", "keys": {"seconds": [0, 1]}}],
     scale("decoder.0.pattern", 2, heads=slice(1, 3), keys=Place(seconds=(0, 1)))),
    ([{"add": "decoder.out", "value": 0.5, "steps": "2:"}, FIRST], None),
])  # fmt: skip
def test_the_json_shape_means_the_functions(spec, made):
    plan = EditPlan.of(json.loads(json.dumps(spec)))
    assert made is None or plan.stand_in().digest == made.digest
    assert str(plan.stand_in().edits[0].at) == ("steps 2-" if made is None else str(made.edits[0].at))


def test_a_donor_is_a_run_of_the_grid(plain, tiny_model, tmp_path):
    """The clean mel in place of the wrong one gives the clean run; a placebo does not, nor does another clip's."""
    mel = {"patch": "encoder.mel", "donor": "none"}
    spec = {"none": [], "mel": [mel], "placebo": [mel | {"placebo": 3}], "other": [mel | {"further": 1}],
            "drawn": [{"resample": "decoder.0.v", "donor": "mel_scale", "seed": 2}]}  # fmt: skip
    grid = replace(plain, edits=spec, faults=("none", "mel_scale"))
    rows = rows_of(grid, tmp_path)
    assert not any(r["error"] for r in rows)
    clean, wrong = (ids(rows, defect=fault, edits="none") for fault in grid.faults)
    assert clean != wrong and ids(rows, defect="none", edits="mel") == clean
    assert ids(rows, defect="mel_scale", edits="mel") == clean != ids(rows, defect="mel_scale", edits="placebo")
    names, files = {"0.wav": "1.wav", "1.wav": "0.wav"}, {c.file.name: c.file for c in grid.clips}
    how = {"sampling": "greedy", "max_tokens": 6}
    for name, file in files.items():
        (mel, other, drawn) = (next(r for r in rows if (r["clip"], r["edits"], r["defect"]) == (name, e, "none"))
                               for e in ("mel", "other", "drawn"))  # fmt: skip
        made = patch("encoder.mel", activations(tiny_model, file, "encoder.mel", **how))
        assert mel["edits_hash"] == made.digest and mel["edits_json"][0]["donor"] == "none"
        made = patch("encoder.mel", activations(tiny_model, files[names[name]], "encoder.mel", **how))
        (run,) = run_with_edits(tiny_model, [file], made, **how)
        assert other["ids"][0] == list(run.tokens)[: other["n_ids"]] and other["edits_json"][0]["clip"] == names[name]
        assert other["mean_logprob"] == pytest.approx(run.mean_logprob, abs=1e-6)
        made = resample("decoder.0.v", activations(faulty(tiny_model, "mel_scale"), file, "decoder.0.v", **how), 2)
        tokens = run_with_edits(tiny_model, [file], made, **how)[0].tokens
        assert drawn["edits_hash"] == made.digest and drawn["ids"][0] == list(tokens)[: drawn["n_ids"]]


def test_a_sweep_with_edits_goes_on_where_it_stopped(plain, tmp_path):
    spec = {"none": [], "head": [FIRST], "mel": [{"patch": "encoder.mel"}]}
    calls = []

    def counted(model, clip, setting, seed, *edits):
        calls.append((clip.file.name, len(edits)))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return {"text": str(edits)[:5]}

    with pytest.raises(KeyboardInterrupt):
        rows_of(replace(plain, edits=spec), tmp_path, run_one=counted)
    assert len(read_store(tmp_path / "s.jsonl")) == 3
    rows = rows_of(replace(plain, edits=spec), tmp_path, run_one=counted)
    assert len(rows) == 6 and len(calls) == 7 and {n for _, n in calls} == {0, 1}
    with pytest.raises(DataError, match="edits 'head' from another sweep .*edits_json"):
        rows_of(replace(plain, edits=spec | {"head": [FIRST | {"heads": 2}]}), tmp_path)


def test_rows_of_before_there_were_edits_go_on(plain, tmp_path):
    first = rows_of(plain, tmp_path)
    old = [{k: v for k, v in row.items() if k not in LATER} for row in first]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    again = rows_of(replace(plain, edits={"none": [], "head": [FIRST]}), tmp_path)
    assert [r for r in again if r["edits"] == "none"] == list(first) and len(again) == 4


WRONG = {
    "no such activation": ({"zero": "decoder.9.z"}, "no activation"),
    "no such head": ({"zero": "decoder.0.z", "heads": 9}, "head 9"),
    "beyond the shorter clip": ({"zero": "adapter.out", "seconds": [0.5, 0.55]}, "clip 0.wav.*second 0.55"),
    "no such step": ({"zero": "decoder.0.z", "steps": 6}, "at most 6 tokens"),
    "another size": ({"add": "decoder.out", "value": [1.0, 2.0]}, "values of shape"),
    "a placebo of a pattern": ({"patch": "decoder.0.pattern", "placebo": 0}, "two axes of time"),
    "a pattern of another clip": ({"patch": "decoder.0.pattern", "further": 1}, "two axes of time"),
    "no such fault": ({"patch": "decoder.0.z", "donor": "mel_scael"}, "no fault is called 'mel_scael'"),
    "a donor of another length": ({"patch": "decoder.0.z", "donor": "system_text"}, "so none means the same"),
    "two edits in one": ({"patch": "decoder.0.z", "zero": "decoder.0.z"}, "one of zero"),
    "no edit": ({"heads": 1}, "one of zero"),
    "an unknown key": ({"zero": "decoder.0.z", "head": 1}, "unknown key head"),
    "no value": ({"scale": "decoder.0.z"}, "missing key factor"),
    "no numbers": ({"zero": "decoder.0.z", "heads": "one"}, "such as"),
    "no seed": ({"patch": "decoder.0.z", "placebo": True}, "whole number"),
    "no text": ({"patch": "decoder.0.z", "donor": 3}, "name of a fault"),
    "no list": ("zero", "list of edits"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_one_wrong_edit_is_refused_before_anything_runs(plain, tmp_path, what):
    spec, message = WRONG[what]
    right = {"none": [], "head": [FIRST]}
    with pytest.raises(ConfigError, match=message) as raised:
        rows_of(replace(plain, edits=right | {"wrong": spec if isinstance(spec, str) else [spec]}), tmp_path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
    assert not (tmp_path / "s.jsonl").exists() or not (tmp_path / "s.jsonl").read_bytes()


@pytest.mark.parametrize("change, message", [
    ({"edits": {"none": [FIRST]}}, "the run without edits"),
    ({"edits": {"empty": []}}, "the run without edits"),
    ({"edits": {}}, "edits: a grid needs at least one"),
    ({"edits": [FIRST]}, "object of name to edits"),
    ({"edits": {"head": [FIRST]}, "settings": {"s": {}}}, "expected vad off"),
])  # fmt: skip
def test_grids_that_mean_nothing_are_refused(plain, change, message):
    with pytest.raises(ConfigError, match=message):
        replace(plain, **change)


def test_the_end_of_another_clip_is_the_end_of_its_own_answer(plain, tmp_path):
    """What the decoder has at every step decides the token: patched from another clip, its answer is written."""
    other = [{"patch": "decoder.out", "steps": "0:", "further": 1}]
    rows = rows_of(replace(plain, edits={"none": [], "other": other}), tmp_path)
    first, second = (ids(rows, edits=e) for e in ("none", "other"))
    assert first["0.wav"] != first["1.wav"]
    assert second == {"0.wav": first["1.wav"], "1.wav": first["0.wav"]}


def test_audio_of_another_clip_is_cut_or_repeated(plain, tiny_model, tmp_path):
    """As a run gives it whose audio embeddings are the other clip's, from the first on, going round."""
    patch = tiny_model.tokenizer.audio_patch
    other = [{"patch": "decoder.0.resid_pre", "tokens": patch, "further": 1}]
    rows = rows_of(replace(plain, edits={"none": [], "other": other}), tmp_path)
    files = [c.file for c in plain.clips]
    own = [tiny_model.engine.encode_audio([tiny_model.engine.log_mel(load_audio(f))])[0] for f in files]
    assert len(own[0]) < len(own[1])
    for i, file in enumerate(files):
        audio = [own[1 - i][mx.arange(len(own[i])) % len(own[1 - i])]]
        (run,) = run_with_edits(tiny_model, [file], Edits(), audio=audio, sampling="greedy", max_tokens=6)
        (found,) = ids(rows, edits="other")[file.name]
        mine = {r["edits"]: r["mean_logprob"] for r in rows if r["clip"] == file.name}
        assert found == list(run.tokens)[: len(found)] and mine["other"] == pytest.approx(run.mean_logprob, abs=1e-6)
        assert abs(mine["other"] - mine["none"]) > 1e-4


def test_an_error_of_a_donor_is_of_its_row(plain, tmp_path):
    """The last embedding of the longer clip is one that its donor, the shorter one, has not."""
    other = [{"patch": "adapter.out", "positions": [-1], "further": 1}]
    rows = rows_of(replace(plain, edits={"none": [], "other": other}), tmp_path)
    assert {r["clip"] for r in rows if "the donor has" in r["error"]} == {"1.wav"}
    assert [bool(r["ids"]) for r in rows] == [not r["error"] for r in rows] and len(rows) == 4


def test_another_clip_with_another_text_is_no_donor(plain, tmp_path):
    spec = {"none": [], "other": [{"patch": "decoder.out", "further": 1, "donor": "system_text"}]}
    rows = rows_of(replace(plain, edits=spec), tmp_path)
    assert ["as much text" in r["error"] for r in rows] == [r["edits"] == "other" for r in rows]


def test_alone_a_run_with_edits_is_the_same(plain, edited, tmp_path):
    grid, rows = edited
    alone = rows_of(grid, tmp_path, run_one=transcribe_one)
    assert [r["ids"] for r in alone] == [r["ids"] for r in rows]


def test_the_command_takes_edits(plain, tmp_path, capsys):
    grid = {"model": str(plain.model), "clips": [{"file": str(c.file), "text": c.text} for c in plain.clips],
            "settings": {"greedy": GREEDY}, "edits": {"none": [], "head": [FIRST]}}  # fmt: skip
    (tmp_path / "g.json").write_text(json.dumps(grid))
    table = tmp_path / "t.csv"
    assert main(["sweep", str(tmp_path / "g.json"), "-o", str(tmp_path / "s.jsonl"), "--table", str(table)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == 4
    assert {r["edits_hash"] for r in read_table(table).rows} == {"", zero("decoder.1.z", heads=1).digest}
    assert Edits() == EditPlan.of([]).stand_in()
