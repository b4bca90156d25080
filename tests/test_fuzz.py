"""Hurt files: every reader gives a result or one short error of ours, within limits, and no result that is wrong.

`make fuzz N=100000` runs many more of the same cases. A case that failed once has a row in `ROWS`, kept for good.
"""

import json

import pytest
from fuzz.mutate import at, mutated, paths, put
from fuzz.readers import READERS, prepared
from fuzz.run import GOOD, Worker, case_of

SEEDS = 700
LARGE = ("1000000", str(2**31), "1" + "0" * 30, "1" + "0" * 400)


@pytest.fixture(scope="module")
def worker():
    with Worker() as worker:
        yield worker


def hurt(name: str, content: bytes) -> dict:
    return {"reader": name, "content": content.decode("latin-1")}


def json_with(name: str, path: str, raw: str | None) -> dict:
    """The valid file of a reader with this at a path of keys and places."""
    keys = tuple(int(k) if k.isdecimal() else k for k in path.split("/"))
    return hurt(name, put(prepared(name)[1], keys, raw))


# What failed once: a name, and the case. Long rows of digits are more than Python turns into a number.
DIGITS, DEEP, LONG = "1" + "0" * 5000, "[" * 20_000 + "]" * 20_000, '"' + "x" * 3000 + '"'
ROWS = {
    "a grid's number of 5001 digits": lambda: json_with("grid", "seeds/0", DIGITS),
    "a grid nested too deep": lambda: json_with("grid", "faults", DEEP),
    "a vocabulary's number of 5001 digits": lambda: json_with("vocab.json", "a", DIGITS),
    "a long value is quoted": lambda: json_with("grid", "settings/planned/max_tokens", LONG),
    "a long value of a config is quoted": lambda: json_with("config.json", "text_config/hidden_size", LONG),
    "a long line of flow.yaml is quoted": lambda: hurt("flow.yaml", b"x" * 3000),
    "a table without its columns": lambda: hurt("table", b"\n".join(prepared("table")[1].split(b"\n")[1:])),
    "a manifest without an end": lambda: json_with("grid", "clips", '"/dev/zero"'),
    "a number of 5001 digits in flow.yaml": lambda: hurt(
        "flow.yaml", prepared("flow.yaml")[1].replace(b"80", DIGITS.encode(), 1)),
    "half a character as the name of a clip": lambda: json_with("grid", "clips/0/file", '"\\ud800"'),
    "a cut inside the last frame of an MP3": lambda: hurt("sound: mp3", prepared("sound: mp3")[1][:-4]),
    "an MP3 that lost a byte of one frame": lambda: hurt(
        "sound: mp3", prepared("sound: mp3")[1][:900] + prepared("sound: mp3")[1][901:]),
    "an AU of open length that begins behind its end": lambda: hurt(
        "sound: au", b".snd\0\0\xff\0\xff\xff\xff\xff" + prepared("sound: au")[1][12:]),
    "an encoder without its first kernel": lambda: hurt(
        "encoder of a run", prepared("encoder of a run")[1].replace(b"encoder.conv1.weight", b"encoder.conv9.weight")),
    "a WAV without its last sample": lambda: hurt("sound: wav", prepared("sound: wav")[1][:-2]),
    "an AU without its last half": lambda: hurt("sound: au", prepared("sound: au")[1][:8024]),
    "a checkpoint of a million layers": lambda: json_with(
        "checkpoint, its config", "text_config/num_hidden_layers", "1000000"),
    "half a character as a token": lambda: json_with("tokenizer.json", "added_tokens/0/content", '"\\ud800"'),
    "a shard's name of 3000 characters": lambda: hurt(
        "index of shards", json.dumps({"weight_map": {"a": "x" * 3000}}).encode()),
    "an added token that is a number": lambda: json_with("tokenizer_config.json", "added_tokens_decoder/392", "1.5"),
    "an added token that is true": lambda: json_with("tokenizer_config.json", "added_tokens_decoder/392", "true"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_failed_once(worker, name):
    found = worker.ask(ROWS[name]())
    assert found["kind"] in GOOD, found


def test_seeded_damage(worker):
    bad = [(case, found) for case in (case_of(s, list(READERS)) for s in range(SEEDS))
           if (found := worker.ask(case))["kind"] not in GOOD]  # fmt: skip
    assert bad == []


@pytest.mark.parametrize("raw", LARGE, ids=["10**6", "2**31", "10**30", "10**400"])
@pytest.mark.parametrize("name", ["config.json", "checkpoint, its config", "converted.json", "grid"])
def test_no_integer_of_a_config_is_believed_too_early(worker, name, raw):
    whole = json.loads(prepared(name)[1])
    numbers = [p for p in paths(whole) if type(at(whole, p)) is int][:60]
    assert len(numbers) >= 2
    bad = [(path, found) for path in numbers
           if (found := worker.ask(hurt(name, put(prepared(name)[1], path, raw))))["kind"] not in GOOD]  # fmt: skip
    assert bad == []


# ---- the harness itself ----


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read_and_agree_with_the_witness(worker, name):
    assert worker.ask(hurt(name, prepared(name)[1]))["kind"] == "result"


def test_the_same_seed_does_the_same_damage():
    for name, reader in READERS.items():
        whole = prepared(name)[1]
        some = [mutated(whole, reader.form, seed) for seed in range(12)]
        assert some == [mutated(whole, reader.form, seed) for seed in range(12)] and len(set(some)) > 6


def test_witnesses_notice():
    """A number that is not reported, a value that did not arrive, a sound that is short, a line that is lost."""
    whole = prepared("config.json")[1]
    other = put(whole, ("text_config", "vocab_size"), "65")
    assert "vocab_size" in READERS["config.json"].check(whole, other, json.loads(whole))
    whole = prepared("safetensors")[1]
    values = READERS["safetensors"].read(prepared("safetensors")[0])
    assert READERS["safetensors"].check(whole, whole, values) is None
    assert "values of" in READERS["safetensors"].check(whole, whole[:-1] + b"\x99", values)
    whole = prepared("sound: wav")[1]
    assert "10 of 8000 samples" in READERS["sound: wav"].check(whole, whole[:64], (10, True))
    whole = prepared("manifest")[1]
    assert "texts" in READERS["manifest"].check(whole, whole, [("a.wav", "one two")])


def test_a_worker_that_takes_too_long_is_replaced(worker, monkeypatch):
    monkeypatch.setattr("fuzz.run.WALL_SECONDS", 0)
    assert worker.ask(hurt("words.txt", b"x"))["kind"] == "hang"
    monkeypatch.undo()
    assert worker.ask(hurt("words.txt", b"the\t1\n"))["kind"] == "result"
