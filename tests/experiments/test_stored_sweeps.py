"""The tables in data/sweeps are those of their grids, of the clips beside them, and of the bundled weights."""

import csv
import json
from functools import cache
from pathlib import Path

import pytest

from stepaudio.evaluation.intervals import interval, paired_difference, pick
from stepaudio.evaluation.word_errors import count_errors
from stepaudio.experiments.grid import Grid, Setting
from stepaudio.experiments.provenance import file_hash, weights_hash
from stepaudio.experiments.store import read_table
from stepaudio.experiments.sweep import run_id
from stepaudio.experiments.table import SHARED

SWEEPS = Path(__file__).resolve().parents[2] / "data" / "sweeps"
GRIDS = sorted(SWEEPS.glob("*.json"))
STORED = ("clips", "long", "texts")  # folders of clips, or of texts; other recordings are made anew from these


@cache
def rows_of(name: str) -> list[dict]:
    """Of a stored table, read once."""
    pytest.importorskip("pyarrow", reason="stored tables need the extra `notebook`")
    return list(read_table(SWEEPS / f"{name}.parquet").rows)


def texts(manifest: Path) -> dict[str, str]:
    with open(manifest, encoding="utf-8", newline="") as file:
        return {row["file"]: row["text"] for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module", params=GRIDS, ids=lambda p: p.stem)
def stored(request):
    return json.loads(request.param.read_text(encoding="utf-8")), rows_of(request.param.stem)


def test_every_run_of_the_grid_is_there_once(stored):
    grid, rows = stored
    found = sorted((r["clip"], r["setting"], r["seed"], r["defect"], r["edits"]) for r in rows)
    clips = sorted({r["clip"] for r in rows})
    assert len(clips) >= (11 if "edits" in grid else 40) and found == sorted(
        (clip, setting, seed, defect, edits)
        for clip in clips
        for setting in grid["settings"]
        for seed in grid.get("seeds", [0])
        for defect in grid.get("faults", grid.get("defects", ["none"]))
        for edits in grid.get("edits", ["none"])
    )
    assert not any(r["error"] for r in rows)


def test_settings_are_those_of_the_grid(stored):
    grid, rows = stored
    found = {(r["setting"], json.dumps(r["setting_json"])) for r in rows}
    assert {name for name, _ in found} == set(grid["settings"])
    for name, spec in found:
        assert Setting.of(json.loads(spec)) == Setting.of(grid["settings"][name]), name


def test_grids_can_be_run_again(stored, request):
    """Each reads back, and its trials bear the names of the stored rows, old key or new, and their runs."""
    grid, rows = stored
    if grid["clips"].split("/")[0] not in STORED:
        pytest.skip("its recordings are joined anew, not stored")
    path = request.node.callspec.params["stored"]
    trials = {(t.clip_name, t.setting_name, t.seed, t.fault, t.edits_name): t for t in Grid.from_file(path).trials()}
    named = {(r["clip"], r["setting"], r["seed"], r["defect"], r["edits"]): r for r in rows}
    assert set(trials) == set(named)
    for name, row in list(named.items())[::101]:
        assert run_id(trials[name], {column: row[column] for column in SHARED}) == row["run"]


def test_runs_were_made_with_the_bundled_weights(stored, nano):
    _, rows = stored
    assert {r["weights_hash"] for r in rows} == {weights_hash(nano)}


def test_runs_used_the_clips_that_are_there(stored):
    grid, rows = stored
    if grid["clips"].split("/")[0] not in STORED:
        pytest.skip("its recordings are joined anew, not stored")
    folder = (SWEEPS / grid["clips"]).parent
    assert {r["clip"]: (r["clip_hash"], r["expected"]) for r in rows} == {
        name: (file_hash(folder / name), text) for name, text in texts(SWEEPS / grid["clips"]).items()
    }


@pytest.mark.parametrize("name", STORED)
def test_clips_are_those_of_the_manifest(name):
    found = texts(SWEEPS / name / "manifest.tsv")
    there = {p.name: p for p in (SWEEPS / name).iterdir() if p.suffix in (".ogg", ".txt")}
    assert sorted(found) == sorted(there) and len(found) >= 40
    assert all(p.read_text(encoding="utf-8") == found[n] + "\n" for n, p in there.items() if p.suffix == ".txt")


def of(rows, setting, kinds):
    return [r for r in rows if r["setting"] == setting and r["clip"].startswith(kinds)]


SPEECH = ("prose", "dictation", "lists", "minute", "sentence")
LENGTHS = ("windows_3s", "windows_20s", "windows_60s")
# Of the default's cost, as the page prints it.
UPPER = {"windows_3s": 0.0045, "windows_20s": 0.0125, "windows_60s": 0.0185}


@pytest.mark.parametrize("length", LENGTHS)
def test_the_default_shows_no_cost_on_continuous_speech(length):
    """As docs/decoding.md says: 8 tokens show none, 16 and the whole run do on long clips, and nothing loops."""
    rows = rows_of(length)
    plain = of(rows, "none", SPEECH)
    cost = {name: paired_difference(of(rows, name, SPEECH), plain, "loop_free_wer")
            for name in ("planned", "both, last 16", "literal")}  # fmt: skip
    assert len(plain) >= 40 and cost["planned"].low <= 0 < cost["planned"].high <= UPPER[length]
    assert cost["planned"].estimate < cost["both, last 16"].estimate < cost["literal"].estimate
    if length != "windows_3s":
        assert cost["both, last 16"].low > 0 and cost["literal"].low > 0.09
    assert not any(r["loops"] for r in of(rows, "planned", ""))


def test_the_default_ends_the_loops_of_speech_that_repeats():
    """And errs less than no rule over all clips of 20 s, whose loops it ends."""
    rows = rows_of("windows_20s")
    loops = {name: sum(r["loops"] > 0 for r in of(rows, name, "")) for name in ("none", "both, last 4", "planned")}
    wrong = {name: sum(r["errors"] for r in of(rows, name, "")) for name in loops}
    assert loops == {"none": 5, "both, last 4": 4, "planned": 0}
    assert wrong["planned"] < wrong["both, last 4"] < wrong["none"]


@pytest.mark.parametrize("half", [0, 1])
def test_what_either_half_of_the_clips_says_of_the_window(half):
    """The widest window whose estimated cost is below half a point in all lengths that have it is 4 tokens."""
    costs = {window: [] for window in ("both, last 4", "planned", "both, last 16", "literal")}
    for rows in map(rows_of, LENGTHS):
        chosen = set(sorted({r["clip"] for r in of(rows, "none", SPEECH)})[half::2])
        for window, found in costs.items():
            ruled, plain = ([r for r in of(rows, s, SPEECH) if r["clip"] in chosen] for s in (window, "none"))
            found += [paired_difference(ruled, plain, "loop_free_wer").estimate] if ruled else []
    assert [window for window, found in costs.items() if max(found) <= 0.005] == ["both, last 4"]


def test_the_default_ends_every_loop_of_eviction():
    """Caches that evict audio make runs loop; under the default none does, under another penalty some do."""
    loops = dict.fromkeys(("none", "planned", "escape", "repetition 1.3"), 0)
    for row in rows_of("evictions"):
        rule = row["setting"].split("; ")[1]
        if rule in loops:
            loops[rule] += row["loops"] > 0
    assert loops == {"none": 23, "planned": 0, "escape": 0, "repetition 1.3": 7}


def shown(difference) -> str:
    """A difference in points, as docs/decoding.md prints it."""
    ends = difference.estimate, difference.low, difference.high
    estimate, *ends = (f"{100 * x:+.1f}".replace("-", "−") for x in ends)
    return f"{estimate} [{', '.join(ends)}]" + "*" * difference.excludes_zero


def test_the_page_on_decoding_says_what_contrast_did():
    """Every row of its table, and that no contrast gained anything."""
    page = (SWEEPS.parents[1] / "docs" / "decoding.md").read_text(encoding="utf-8")
    found = {(d, s): [] for d in ("none", "white:-5", "white:-10", "lost:model.layers.2.self_attn.")
             for s in json.loads((SWEEPS / "contrasts.json").read_text(encoding="utf-8"))["settings"]}  # fmt: skip
    for row in rows_of("contrasts"):
        found[row["defect"], row["setting"]].append(row)
    conditions = list(dict.fromkeys(d for d, _ in found))
    for setting in dict.fromkeys(s for _, s in found if s != "none"):
        pairs = [(found[d, setting], found[d, "none"]) for d in conditions]
        errors = [paired_difference(*pair, "loop_free_wer") for pair in pairs]
        cells = [*setting.split(), *map(shown, errors), str(sum(r["loops"] for r in pairs[-1][0]))]
        assert f"| {' | '.join(cells)} |" in page
        assert all(d.high > 0 for d in (*errors, paired_difference(*pairs[-1], "loop_rate")))
    loops = [sum(r["loops"] for r in rows) for (d, _), rows in found.items() if d != conditions[-1]]
    assert not any(loops)


def test_the_page_on_caches_says_what_limits_do_to_speech():
    """Every row of its table, by nano and by whisper-base, and that no answer loops."""
    rows, page = rows_of("aloud"), (SWEEPS.parents[1] / "docs" / "caches.md").read_text(encoding="utf-8")
    with open(SWEEPS / "aloud_whisper.tsv", encoding="utf-8", newline="") as file:
        heard = {(r["setting"], r["clip"]): r["text"] for r in csv.DictReader(file, delimiter="\t")}
    assert set(heard) == {(r["setting"], r["clip"]) for r in rows}
    by = rows, [{**r, "errors": count_errors(r["expected"], heard[r["setting"], r["clip"]])[1]} for r in rows]
    asked = [(judged, kind) for kind in ("sentence", "passage") for judged in by]
    whole = (f"{100 * interval(of(judged, 'full', kind), 'loop_free_wer').estimate:.1f}" for judged, kind in asked)
    assert f"| `full`, words wrong | {' | '.join(whole)} |" in page
    for setting in json.loads((SWEEPS / "aloud.json").read_text(encoding="utf-8"))["settings"]:
        pairs = ((of(judged, setting, kind), of(judged, "full", kind)) for judged, kind in asked)
        cells = [shown(paired_difference(*pair, "loop_free_wer")) for pair in pairs]
        assert setting == "full" or f"| `{setting}` | {' | '.join(cells)} |" in page
    endless = {s: sum("length" in r["stops"] for r in of(rows, s, "")) for s in {r["setting"] for r in rows}}
    assert {s: n for s, n in endless.items() if n} == {"sinks 192, 100 of them": 9}
    assert not any(r["loops"] for r in rows)


def test_the_map_of_bits_is_that_of_its_sweep():
    """Every cell of docs/quantization.md, and what is said of all parts together and of the mix."""
    rows, page = rows_of("bits"), (SWEEPS.parents[1] / "docs" / "quantization.md").read_text(encoding="utf-8")
    parts = {p: p for p in ("encoder", "adapter", "embeddings", "head")}
    parts |= {"attention": "model.layers.*.self_attn.*", "MLP": "model.layers.*.mlp.*"}

    def cost(**rules):
        fault = "+".join(f"bits:{parts.get(part, part)}={bits}" for part, bits in rules.items())
        return paired_difference(pick(rows, defect=fault), pick(rows, defect="none"), "loop_free_wer")

    def written(d):
        return f"{100 * d.estimate:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"

    for part in parts:
        found = [cost(**{part: bits}) for bits in ("8/64", "4/64", "3/64", "3/32", "2/64", "2/32")]
        cells = [f"**{written(d)}**" if d.excludes_zero else written(d) for d in found]
        assert f"| {part} | {' | '.join(cells)} |\n" in page
    five = ("encoder", "adapter", "decoder", "embeddings", "head")
    for bits in ("4/64", "3/64"):
        assert written(cost(**dict.fromkeys(five, bits))) in page
    assert f"{100 * cost(**dict.fromkeys(five, '2/64')).estimate:+.1f}" in page
    mix = cost(encoder="4/64", adapter="2/64", decoder="3/64", embeddings="3/64", head="2/64")
    assert written(mix).removeprefix("+4.6 ") in page and mix.low > 0
    assert sum(r["loops"] > 0 for r in rows) == 5


def test_steering_silences_backward_speech_and_random_vectors_do_not():
    """As docs/looking_inside.md says, with what it costs."""
    found: dict[str, list] = {}
    for row in rows_of("steer"):
        found.setdefault(row["defect"], []).append(row)

    def writing(name):
        return sum(bool(r["text"]) for r in found[name])

    def wrong(name):
        return round(100 * sum(r["errors"] for r in found[name]) / sum(r["words"] for r in found[name]), 1)

    vector = "audio.1+silence+0.75"
    assert (writing("backwards"), writing(f"backwards+{vector}"), writing("noise")) == (48, 3, 0)
    assert [writing(f"backwards+{vector.replace('silence', f'silence.random{i}')}") for i in range(3)] == [48] * 3
    assert writing("backwards+audio.2+silence+1") == 48
    assert (wrong("clean"), wrong(f"clean+{vector}")) == (3.9, 8.2)
    assert (wrong("white:-5"), wrong(f"white:-5+{vector}")) == (63.7, 75.0)
