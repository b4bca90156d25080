"""Grids: what they mean, what they refuse, and their JSON."""

import hashlib
import inspect
import json
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx
import pytest

from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import ConfigError, DecodeError, StepAudioError
from stepaudio.evaluation.manifest import Clip
from stepaudio.experiments.grid import Grid, Setting, sampling_from
from stepaudio.models.kv_cache import CachePolicy


def test_trials_are_every_combination_once(grid):
    trials = list(grid.trials())
    assert len(trials) == len({t.key for t in trials}) == len(grid) == 12 * 2 * 5


def test_setting_says_what_it_means():
    found = Setting.of(
        {
            "sampling": {"base": "greedy", "repetition": 1.3, "temperature": 0.5, "audio": {"window": 9}},
            "cache": {"kind": "window", "max_len": 64},
            "on_loop": "stop",
        }
    )
    assert found.sampling.text == replace(Sampling.greedy().text, repetition=1.3)
    assert found.sampling.audio == replace(Sampling.greedy().audio, repetition=1.3, window=9)
    assert (found.sampling.temperature, found.cache, found.on_loop) == (0.5, CachePolicy("window", 64), "stop")


def test_the_resampler_is_part_of_a_setting():
    plain, other = Setting.of({}), Setting.of({"resampler": "soxr"})
    assert plain.to_dict()["resampler"] == "reference" and other.to_dict()["resampler"] == "soxr" and plain != other
    with pytest.raises(ConfigError, match="resampler: expected soxr or reference, found 'sinc'"):
        Setting.of({"resampler": "sinc"})


def no_three(ids, logits):
    return mx.where(mx.arange(logits.shape[1]) == 3, -mx.inf, logits)


@dataclass(frozen=True)
class Ban:
    token: int

    def __call__(self, ids, logits):
        return mx.where(mx.arange(logits.shape[1]) == self.token, -mx.inf, logits)


def test_processors_count_in_what_a_row_says_of_its_setting():
    said = [Setting(Sampling(processors=p)).to_dict()["sampling"] for p in ((no_three,), (Ban(3),), (Ban(4),))]
    names = [s["processors"][0] for s in said]
    source = hashlib.sha256(inspect.getsource(no_three).encode()).hexdigest()
    assert names[0] == f"{no_three.__module__}.no_three {source[:16]}" and "Ban(token=3)" in names[1]
    assert len(set(names)) == 3 and json.loads(json.dumps(said)) == json.loads(json.dumps(said))
    assert "processors" not in Setting().to_dict()["sampling"] and "contrast" not in Setting().to_dict()["sampling"]
    for nameless in (lambda ids, logits: logits, partial(no_three), max):
        with pytest.raises(ConfigError, match="functions of a module, or frozen dataclasses"):
            Setting(Sampling(processors=(nameless,)))
    with pytest.raises(ConfigError, match="JSON holds no functions"):
        Setting.of({"sampling": {"processors": names}})


def test_setting_comes_back_from_its_own_json():
    for spec in (
        {},
        {"sampling": {"base": "greedy", "temperature": 0.8}, "max_tokens": 40},
        {"sampling": {"base": "greedy", "contrast": {"against": "layers", "weight": 0.5, "layers": [0, 1]}}},
        {"sampling": "reference", "cache": {"kind": "pinned", "positions": "renumbered"}},
    ):
        setting = Setting.of(spec)
        assert Setting.of(json.loads(json.dumps(setting.to_dict()))) == setting


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"samplign": {}}, "unknown key samplign"),
        ({"sampling": {"temprature": 1}}, "unknown key temprature"),
        ({"sampling": {"text": {"windw": 1}}}, "sampling.text: unknown key windw"),
        ({"cache": {"size": 1}}, "unknown key size"),
        ({"kv_bits": 8}, r'unknown key kv_bits; .*kv_bits is "cache": \{"bits": …\} of a setting'),
        ({"--kv-bits": 8}, r'--kv-bits is "cache": \{"bits": …\}'),
        ({"bits": 8}, r'bits is "cache": \{"bits": …\}'),
        ({"cache": {"kind": "full", "kv_bits": 8}}, r'cache: unknown key kv_bits; .*"cache": \{"bits": …\}'),
        ({"sampling": {"kv_bits": 8}}, r'sampling: unknown key kv_bits; .*"cache": \{"bits": …\}'),
        ({"max_cache_len": 8}, r'max_cache_len is "cache": \{"max_len": …\}'),
        ({"temperature": 1}, r'temperature is "sampling": \{"temperature": …\}'),
        ({"cache": {"top-k": 1, "bits": 8}}, r'known are [a-z_, ]*; top-k is "sampling": \{"top_k": …\} of a setting$'),
        ({"sampling": {"seed": 3}}, "seeds belong to the grid"),
        ({"sampling": {"temperature": "hot"}}, "wrong type"),
        ({"max_tokens": 0}, "at least 1"),
        ({"on_loop": "cry"}, "on_loop"),
        ({"downmix": "left"}, "downmix"),
        ([], "a JSON object"),
        ({"cache": {"sinks": "few"}}, "wrong type|sinks"),
    ],
)
def test_bad_settings_are_refused_by_name(spec, message):
    with pytest.raises((ConfigError, DecodeError), match=message):
        Setting.of(spec)


def test_values_out_of_range_are_refused_by_their_own_records():
    with pytest.raises(DecodeError, match="top_p"):
        sampling_from({"top_p": 2})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": []}, "seeds: a grid needs at least one"),
        ({"seeds": [1, 1]}, "listed twice"),
        ({"seeds": [-1]}, "0 or more"),
        ({"seeds": [True]}, "list of int"),
        ({"faults": "htk"}, "list of str"),
        ({"dtype": "int4"}, "dtype"),
        ({"sedes": [1]}, "unknown key sedes"),
        ({"clips": [{"file": "a"}]}, "clips: expected"),
        ({"settings": []}, "settings"),
        ({"clips": [{"file": "clip0.wav", "text": "a"}, {"file": "clip0.wav", "text": "b"}]}, "different texts"),
    ],
)
def test_bad_grids_are_refused_by_name(grid_file, change, message):
    grid_file.write_text(json.dumps(json.loads(grid_file.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        Grid.from_file(grid_file)


def test_grid_reads_a_manifest_beside_it(grid_file):
    (grid_file.parent / "m.tsv").write_text("file\ttext\nclip3.wav\thello\n")
    grid_file.write_text(json.dumps({"clips": "m.tsv", "settings": {"a": {}}}))
    assert Grid.from_file(grid_file).clips == (Clip(grid_file.parent / "clip3.wav", "hello"),)


def test_clip_names_hold_no_machine_and_stay_apart(tmp_path):
    clips = [Clip(tmp_path / "clean" / "1.wav", "x"), Clip(tmp_path / "noisy" / "1.wav", "x")]
    assert Grid(clips, {"a": {}}).clip_names == ["clean/1.wav", "noisy/1.wav"]


def test_the_older_name_of_faults_is_read(grid_file):
    data = json.loads(grid_file.read_text())
    grid_file.write_text(json.dumps(data | {"defects": ["none", "htk"]}))
    assert Grid.from_file(grid_file).faults == ("none", "htk")
    grid_file.write_text(json.dumps(data | {"defects": ["htk"], "faults": ["htk"]}))
    with pytest.raises(ConfigError, match="found both"):
        Grid.from_file(grid_file)


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b'{"clips": ' + b"9" * 5000 + b"}",
    b'{"clips": "m.tsv", "clips": "n.tsv", "settings": {}}', b'{"clips": 3, "settings": {"a": {}}}',
    b'{"clips": [], "settings": []}', b'{"clips": [{"file": [], "text": 1}], "settings": {"a": {}}}',
    b'{"clips": [{"file": "a", "text": "b"}], "settings": {"a": []}}',
    b'{"clips": [{"file": "a", "text": "b"}], "settings": {"a": {}}, "seeds": {"a": 1}}',
    b'{"clips": [{"file": "a", "text": "b"}], "settings": {"a": {}}, "seeds": [NaN]}',
    b'{"clips": [{"file": "a", "text": "b"}], "settings": {"a": {}}, "dtype": ["float32"]}',
    b'{"clips": [{"file": "a", "text": "b"}], "settings": {"a": {}}, "faults": 1}',
    b'{"clips": [{"file": "a", "text": "b"}], "settings": {"a": {"sampling": {"base": []}}}}',
    b'{"clips": [{"file": "a", "text": "b"}], "settings": {"a": {"sampling": {"base": 1, "seed": {}}}}}',
    b'{"clips": [{"file": "a", "text": "b"}], "settings": {"a": {"downmix": [], "prompt": 1}}}',
    b'{"clips": [{"file": "a", "text": "b"}], "settings": {"a": {"max_tokens": 1e999, "on_loop": {}}}}',
])  # fmt: skip
def test_no_file_ends_in_a_foreign_error(tmp_path, data):
    (tmp_path / "g.json").write_bytes(data)
    with pytest.raises(StepAudioError):
        Grid.from_file(tmp_path / "g.json")


def test_places_that_are_no_grid(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / ("n" * 300)):
        with pytest.raises(StepAudioError):
            Grid.from_file(path)
