"""Sparse autoencoders: planted dictionaries found again, files of SAELens' layout written by hand, edits in a model."""

import json

import mlx.core as mx
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from stepaudio.errors import ConfigError, WeightsError
from stepaudio.interp import sae_training
from stepaudio.interp.frames import Frames, audio_frames
from stepaudio.interp.recorder import record
from stepaudio.interp.sae_training import STATE_FILE, SAEOptions, train_sae
from stepaudio.interp.sparse_autoencoder import SparseAutoencoder

RNG = np.random.default_rng(0)
GREEDY = {"sampling": "greedy", "max_tokens": 1}


def planted(rows=3000, features=24, channels=16, active=2):
    """Sums of few directions out of more than there are channels, around a mean; and the directions."""
    draw = np.random.default_rng(1)
    directions = draw.normal(size=(features, channels))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    which = np.argsort(draw.random((rows, features)))[:, :active]
    weights = np.zeros((rows, features))
    np.put_along_axis(weights, which, draw.uniform(0.7, 1.5, (rows, active)), axis=1)
    return (30 * weights @ directions + 5 * draw.normal(size=channels)).astype(np.float32), directions


def random_sae(d_in=6, d_sae=10, k=3, **how):
    draw = np.random.default_rng(2)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    return SparseAutoencoder(**{key: draw.normal(size=s).astype(np.float32) for key, s in shapes.items()}, k=k, **how)


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("subtract", [True, False])
def test_encoding_and_decoding_by_hand(subtract):
    sae, x = random_sae(subtract=subtract), RNG.normal(size=(2, 5, 6)).astype(np.float32)
    features = sae.encode(x)
    for row, found in zip(x.reshape(-1, 6), features.reshape(-1, 10), strict=True):
        before = [(row - subtract * sae.b_dec) @ sae.W_enc[:, j] + sae.b_enc[j] for j in range(10)]
        kept = sorted(range(10), key=lambda j: -before[j])[:3]
        np.testing.assert_allclose(found, [max(before[j], 0) if j in kept else 0 for j in range(10)], atol=1e-5)
    by_hand = [sum(f[j] * sae.W_dec[j] for j in range(10)) + sae.b_dec for f in features.reshape(-1, 10)]
    np.testing.assert_allclose(sae.decode(features).reshape(-1, 6), by_hand, atol=1e-5)
    left = np.square(x - sae.decode(features)).sum() / np.square(x - x.reshape(-1, 6).mean(0)).sum()
    assert sae.explained(x) == pytest.approx(1 - left, abs=1e-5)
    assert sae.encode(np.zeros((0, 6))).shape == (0, 10)


def test_an_autoencoder_that_is_exact_explains_everything():
    both = np.concatenate([np.eye(4), -np.eye(4)])
    exact = SparseAutoencoder(both.T, np.zeros(8), both, np.zeros(4), 4)
    assert exact.explained(RNG.normal(size=(50, 4))) == pytest.approx(1)
    nothing = SparseAutoencoder(both.T, np.full(8, -99), both, np.full(4, 9), 4)
    assert nothing.explained(RNG.normal(size=(50, 4))) < -1


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def trained():
    told = []
    x, directions = planted()
    options = SAEOptions(features=48, k=2, steps=400, batch=128, rate=5e-3, dead_after=40)
    return train_sae(x, options, progress=told.append), x, directions, told


def test_a_planted_dictionary_is_found(trained):
    sae, x, directions, told = trained
    likeness = (sae.W_dec @ directions.T).max(axis=0)
    assert (likeness > 0.95).mean() > 0.9
    assert sae.explained(x) > 0.9
    np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1, atol=1e-5)
    assert [t.step for t in told] == [100, 200, 300, 400] and told[-1].left < 0.1
    assert told[-1].left == pytest.approx(1 - sae.explained(x), abs=0.03)  # the same in the units of the data


def test_dead_features_begin_anew(monkeypatch):
    """All but eight features begin where nothing excites them; the eight alone explain much less."""
    begin, x, explained = sae_training._begin, planted()[0], {}

    def mostly_quiet(*given):
        return begin(*given) | {"b_enc": mx.where(mx.arange(48) < 8, 0.0, -20.0)}

    monkeypatch.setattr(sae_training, "_begin", mostly_quiet)
    for dead_after in (20, 999):
        explained[dead_after] = train_sae(x, SAEOptions(48, 2, 250, 64, 5e-3, dead_after)).explained(x)
    assert explained[20] > 0.85 > 0.7 > explained[999]


def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path, monkeypatch):
    x, options = planted(rows=300)[0], SAEOptions(features=20, k=2, steps=40, batch=32, dead_after=5)
    whole = train_sae(x, options)
    monkeypatch.setattr("stepaudio.interp.sae_training.SAVE_EVERY", 15)
    monkeypatch.setattr("stepaudio.interp.sae_training.TELL_EVERY", 1)

    def stop(told):
        if told.step == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(x, options, folder=tmp_path, progress=stop)
    seen = []
    again = train_sae(x, options, folder=tmp_path, progress=seen.append)
    assert [t.step for t in seen] == list(range(31, 41))
    for key in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_array_equal(getattr(again, key), getattr(whole, key))
    third = train_sae(x, options, folder=tmp_path)  # nothing is left to do
    np.testing.assert_array_equal(third.W_dec, whole.W_dec)
    with pytest.raises(ConfigError, match="other options"):
        train_sae(x, SAEOptions(features=20, k=3, steps=40, batch=32, dead_after=5), folder=tmp_path)
    with pytest.raises(ConfigError, match="other activations"):
        train_sae(x[:-1], options, folder=tmp_path)
    (tmp_path / STATE_FILE).write_bytes(b"no state")
    with pytest.raises(WeightsError, match=STATE_FILE):
        train_sae(x, options, folder=tmp_path)


@pytest.mark.parametrize(("given", "message"), [
    (np.ones((5, 3)), "one value throughout"), (np.full((5, 3), np.nan), "finite"), (np.ones(5), "rows, channels"),
    ([], "frames: expected"), ([np.ones((5, 3))], "frames: expected"), ("talk.wav", "frames: expected"),
    ([Frames(np.ones((2, c)), np.zeros(2), 50, 1.0) for c in (3, 4)], "several numbers of channels"),
])  # fmt: skip
def test_what_cannot_be_learned_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        train_sae(given, SAEOptions(features=4, k=1, steps=1))


@pytest.mark.parametrize(("how", "message"), [
    ({"features": 4, "k": 5}, "k: expected at most 4"), ({"steps": 0}, "steps"), ({"rate": 0}, "rate"),
    ({"rate": True}, "rate"), ({"dead_after": 0}, "dead_after"), ({"seed": -1}, "seed"), ({"batch": 1.5}, "batch"),
])  # fmt: skip
def test_options_out_of_range_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        SAEOptions(**how)


# ---------------------------------------------------------------- files


def test_the_written_folder_is_what_saelens_reads(tmp_path):
    """Names, shapes and keys as `TopKSAEConfig` and `SAE.load_from_disk` of SAELens 6 take them."""
    sae = random_sae(name="encoder.0.resid_post", model_name="nano")
    sae.save(tmp_path / "sae")
    stored = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in stored.items()} == {
        "W_enc": (np.float32, (6, 10)), "b_enc": (np.float32, (10,)),
        "W_dec": (np.float32, (10, 6)), "b_dec": (np.float32, (6,)),
    }  # fmt: skip
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "encoder.0.resid_post" and config["metadata"]["model_name"] == "nano"
    assert int(config["metadata"].pop("sae_lens_version").split(".")[0]) >= 6  # else it is taken for an older layout
    del config["metadata"]
    assert config == {
        "architecture": "topk", "d_in": 6, "d_sae": 10, "k": 3, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }  # fmt: skip
    again = SparseAutoencoder.load(tmp_path / "sae")
    x = RNG.normal(size=(7, 6)).astype(np.float32)
    np.testing.assert_array_equal(again.encode(x), sae.encode(x))
    assert (again.name, again.model_name, again.k) == (sae.name, sae.model_name, sae.k)


def write_by_hand(folder, config, **change):
    sae = random_sae()
    arrays = {key: np.array(getattr(sae, key)) for key in ("W_enc", "b_enc", "W_dec", "b_dec")} | change
    folder.mkdir(exist_ok=True)
    save_file({k: v for k, v in arrays.items() if v is not None}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


NEW = {"architecture": "topk", "k": 3, "d_in": 6, "d_sae": 10, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}
OLD = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "hook_name": "a"}


def test_folders_that_others_wrote_are_read(tmp_path):
    x = RNG.normal(size=(7, 6)).astype(np.float32)
    expected = random_sae().encode(x)
    new = SparseAutoencoder.load(write_by_hand(tmp_path / "new", NEW))
    np.testing.assert_array_equal(new.encode(x), expected)
    assert new.name == "blocks.1.hook_resid_post"
    old = SparseAutoencoder.load(write_by_hand(tmp_path / "old", OLD), name="encoder.0.resid_post")
    np.testing.assert_array_equal(old.encode(x), expected)
    assert old.name == "encoder.0.resid_post" and old.k == 3


def test_activations_scaled_by_the_length_of_directions_are_folded_in(tmp_path):
    """SAELens then chooses by activation times length, and divides by it again where it decodes."""
    scaled = NEW | {"rescale_acts_by_decoder_norm": True}
    sae = SparseAutoencoder.load(write_by_hand(tmp_path / "a", scaled))
    raw, x = random_sae(), RNG.normal(size=(9, 6)).astype(np.float32)
    length = np.linalg.norm(raw.W_dec, axis=1)
    before = ((x - raw.b_dec) @ raw.W_enc + raw.b_enc) * length
    edge = np.sort(before, axis=1)[:, -3:-2]
    features = np.maximum(np.where(before >= edge, before, 0), 0)
    np.testing.assert_allclose(sae.encode(x), features, atol=1e-5)
    np.testing.assert_allclose(sae.decode(features), (features / length) @ raw.W_dec + raw.b_dec, atol=1e-4)


@pytest.mark.parametrize(("config", "change", "error", "message"), [
    (NEW | {"architecture": "jumprelu"}, {}, ConfigError, "architecture: expected topk, found 'jumprelu'"),
    (NEW | {"normalize_activations": "layer_norm"}, {}, ConfigError, "normalize_activations: expected none"),
    (NEW | {"reshape_activations": "hook_z"}, {}, ConfigError, "reshape_activations"),
    (NEW | {"k": None}, {}, ConfigError, "k: expected a whole number"),
    (NEW | {"k": 11}, {}, WeightsError, "k: expected 1 to 10"),
    (NEW, {"b_enc": None}, WeightsError, "lacks b_enc"),
    (NEW, {"W_dec": np.zeros((6, 10), np.float32)}, WeightsError, r"W_dec: expected \(10, 6\)"),
    (NEW, {"W_enc": np.zeros(6, np.float32)}, WeightsError, "b_enc: expected"),
    (NEW, {"b_dec": np.full(6, np.nan, np.float32)}, WeightsError, "b_dec: expected finite"),
    ([1], {}, WeightsError, "JSON object"),
])  # fmt: skip
def test_folders_of_another_kind_are_refused(tmp_path, config, change, error, message):
    with pytest.raises(error, match=message):
        SparseAutoencoder.load(write_by_hand(tmp_path / "sae", config, **change))


def test_what_is_no_folder_of_one_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"cfg\.json"):
        SparseAutoencoder.load(tmp_path)
    write_by_hand(tmp_path / "sae", NEW)
    (tmp_path / "sae" / "sae_weights.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match="sae_weights"):
        SparseAutoencoder.load(tmp_path / "sae")
    (tmp_path / "file").write_text("x")
    with pytest.raises(WeightsError, match="could not be written"):
        random_sae().save(tmp_path / "file")


# ---------------------------------------------------------------- in a model


NAME = "encoder.0.resid_post"


@pytest.fixture(scope="module")
def watched(tiny_model):
    clips = [tiny.noise(1.0, i) for i in range(3)]
    frames = [audio_frames(tiny_model, clip, NAME)[NAME] for clip in clips]
    return clips, frames, train_sae(frames, SAEOptions(features=12, k=3, steps=30, batch=64), name=NAME)


def test_places_are_the_strongest_frames(watched):
    _, frames, sae = watched
    every = np.stack([sae.encode(f.values) for f in frames])  # (clips, frames, features)
    feature = int(every.sum(axis=(0, 1)).argmax())
    found = sae.places(frames, feature, n=5, apart=0)
    order = np.argsort(-every[..., feature].ravel(), kind="stable")[:5]
    n = every.shape[1]
    assert [(p.clip, round(p.second * 50)) for p in found] == [(i // n, i % n) for i in order]
    np.testing.assert_allclose([p.activation for p in found], every[..., feature].ravel()[order])
    spread = sae.places(frames, feature, n=99, apart=0.4)
    assert spread[0] == found[0] and len(spread) < len(sae.places(frames, feature, n=999, apart=0))
    assert all(a.clip != b.clip or abs(a.second - b.second) >= 0.4 for a in spread for b in spread if a is not b)


def test_a_feature_is_added_and_ablated(tiny_model, watched):
    clips, frames, sae = watched
    feature = int(np.concatenate([sae.encode(f.values) for f in frames]).sum(axis=0).argmax())
    plain = record(tiny_model, clips[0], NAME, **GREEDY)[NAME][0]
    added = record(tiny_model, clips[0], NAME, edits=sae.add(feature, 2.5, seconds=(0, 0.1)), **GREEDY)[NAME][0]
    np.testing.assert_allclose(added[0, :5] - plain[0, :5], np.tile(2.5 * sae.W_dec[feature], (5, 1)), atol=1e-5)
    np.testing.assert_array_equal(added[0, 5:], plain[0, 5:])
    for factor in (0.0, 3.0):
        scaled = record(tiny_model, clips[0], NAME, tap=sae.scaling(feature, factor), **GREEDY)[NAME][0]
        active = sae.encode(plain)[..., feature, None]
        assert (active > 0).any()
        np.testing.assert_allclose(scaled, plain + (factor - 1) * active * sae.W_dec[feature], atol=1e-4)
    same = record(tiny_model, clips[0], NAME, tap=sae.scaling(feature, 1.0), **GREEDY)[NAME][0]
    np.testing.assert_array_equal(same, plain)


def test_an_activation_with_heads_is_taken_side_by_side(tiny_model):
    name, clip = "decoder.1.z", tiny.noise(1.0)
    rows = audio_frames(tiny_model, clip, name)[name].values
    sae = random_sae(32, 20, 20, name=name)  # everything that is above 0
    feature = int(sae.encode(rows).sum(axis=0).argmax())
    scaled = record(tiny_model, clip, name, tap=sae.scaling(feature), **GREEDY)
    trace = record(tiny_model, clip, name, **GREEDY)
    expected = rows - sae.encode(rows)[:, feature, None] * sae.W_dec[feature]
    found = scaled[name][0][0][:, scaled.audio_positions].transpose(1, 0, 2).reshape(len(rows), -1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not np.allclose(found, trace[name][0][0][:, trace.audio_positions].transpose(1, 0, 2).reshape(len(rows), -1))


@pytest.mark.parametrize(("call", "message"), [
    (lambda s: s.encode(np.zeros((3, 5))), r"expected \(…, 6\) numbers"),
    (lambda s: s.encode(np.full(6, np.inf)), "finite"), (lambda s: s.encode("abc"), "expected numbers"),
    (lambda s: s.decode(np.zeros(6)), r"\(…, 10\)"), (lambda s: s.explained(np.ones((4, 6))), "that differ"),
    (lambda s: s.places([], 10), "feature: expected 0 to 9"), (lambda s: s.places([], 0, n=0), "n from 1"),
    (lambda s: s.places([], 0, apart=-1), "apart"), (lambda s: s.scaling(-1), "feature"),
    (lambda s: s.add(True, 1.0), "feature"), (lambda s: s.add(0, 1.0), "of which activation"),
    (lambda s: s.scaling(0), "of which activation"), (lambda s: s.add(0, "much"), "amount: expected a finite"),
    (lambda s: s.scaling(0, float("nan")), "factor: expected a finite"),
    (lambda s: s.places({"encoder.out": 1}, 0), "frames: expected a list"),
    (lambda s: train_sae(np.eye(4), {"k": 3}), "options: expected SAEOptions"),
])  # fmt: skip
def test_calls_that_mean_nothing_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(random_sae())


def test_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        random_sae().W_dec[0] = 0
    assert repr(random_sae()) == "SparseAutoencoder(no name, 6 -> 10, k=3)" and isinstance(mx.array(1), mx.array)
