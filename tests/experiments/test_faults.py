"""Every known mistake changes what it is about, and nothing of the model it was made from."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten

from stepaudio.audio.features import log_mel
from stepaudio.audio.load import load_audio
from stepaudio.audio.save import save_audio
from stepaudio.constants import CHUNK_SAMPLES
from stepaudio.decoding.options import DecodingOptions
from stepaudio.decoding.sampling import Penalties, Sampling
from stepaudio.errors import ConfigError
from stepaudio.experiments import faults
from stepaudio.experiments.faults import FAULTS, faulty
from stepaudio.experiments.faulty_mel import WrongMel, htk_filterbank
from stepaudio.interp.recorder import transcription
from stepaudio.model import StepAudio2
from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.text.prompts import ASR_SYSTEM, asr_prompt

GREEDY = Sampling.greedy()


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    """Two channels that have nothing in common."""
    path = tmp_path_factory.mktemp("stereo") / "noise.wav"
    save_audio(path, np.stack([tiny.noise(1.5, 1), tiny.noise(1.5, 2)], axis=1))
    return path


LONG = tiny.noise(16)  # more than one of the shorter segments


def said(model, source, sampling=GREEDY):
    return [s.tokens for s in model.transcribe(source, sampling=sampling, max_tokens=6).segments]


def values(model):
    return {name: np.array(a.astype(mx.float32)) for name, a in tree_flatten(model.net.parameters())}


def fingerprint(model, stereo):
    """What a fault could touch, measured: audio embeddings, prompt tokens, sampling, all weights."""
    request = model.request(transcription(stereo))
    options = model.engine.run_options(DecodingOptions(GREEDY, max_tokens=8, on_loop="off"))
    return {
        "ids": np.array(request.tokens),
        "embeddings": np.array(request.embeddings),
        "sampling": options.sampling,
        "spans": request.spans,
        "weights": values(model),
    }


def same(a, b):
    keys = a["weights"].keys() == b["weights"].keys()
    return (
        keys
        and all(np.array_equal(a["weights"][k], b["weights"][k]) for k in a["weights"])
        and np.array_equal(a["ids"], b["ids"])
        and np.array_equal(a["embeddings"], b["embeddings"])
        and a["sampling"] == b["sampling"]
        and a["spans"] == b["spans"]
    )


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_changes_something_and_leaves_the_model_alone(tiny_model, stereo, name):
    recording = LONG if name == "chunk" else stereo
    before = fingerprint(tiny_model, recording)
    wrong = faulty(tiny_model, name)
    assert wrong is not tiny_model
    assert not same(fingerprint(wrong, recording), before)
    said(wrong, recording)  # it runs
    assert same(fingerprint(tiny_model, recording), before)


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_the_same_twice(tiny_model, stereo, name):
    assert same(fingerprint(faulty(tiny_model, name), stereo), fingerprint(faulty(tiny_model, name), stereo))


def test_leaving_restores_exactly(tiny_checkpoint, stereo):
    """A model that all faults were made from says, bit for bit, what one that never saw a fault says."""
    used, untouched = StepAudio2.load(tiny_checkpoint), StepAudio2.load(tiny_checkpoint)
    for name in FAULTS:
        said(faulty(used, name), stereo)
    assert same(fingerprint(used, stereo), fingerprint(untouched, stereo))
    assert said(used, stereo) == said(untouched, stereo)


def test_faults_say_what_they_are():
    for fault in FAULTS.values():
        assert fault.description and fault.reference and fault.wrong and fault.reference != fault.wrong


def test_none_is_the_model_itself(tiny_model):
    assert faulty(tiny_model, "none") is tiny_model and faulty(tiny_model, []) is tiny_model


def test_all_faults_together_run_and_order_does_not_matter(tiny_model, stereo):
    names = [n for n in FAULTS if n not in ("bits_4", "bits_3", "bits_2", "decoder_2")]
    one, other = faulty(tiny_model, "+".join(names)), faulty(tiny_model, names[::-1])
    assert same(fingerprint(one, stereo), fingerprint(other, stereo))
    assert said(one, stereo) == said(other, stereo)


def test_pairs_keep_both_effects(tiny_model):
    model = faulty(tiny_model, "mel_scale+framing+chatml+audio_end+system_text+padding_mask+norm_pool")
    assert model.pipeline.mel == WrongMel("htk", "uncentred")
    assert model.pipeline.build_prompt == faults.WrongPrompt(chatml=True, system=False, audio_end=False)
    mask = model.net.encoder.key_mask(9, mx.array([7]), True)
    assert (
        mask.shape == (1, 1, 1, 5)
        and not mask.any()
        and isinstance(model.net.encoder.after_norm, type(faulty(tiny_model, "norm_pool").net.encoder.after_norm))
    )


@pytest.mark.parametrize(
    "names, message",
    [
        ("mel", "no fault is called 'mel'"),
        ("chunk+chunk", "each once"),
        ("mel:log", "no fault is called 'mel:log'"),
        ("mel:ln+mel_scale+mel:standard", "at most one of mel:amplitude, mel:by_band, mel:ln, mel:standard"),
        ("bits_4+bits_8", "at most one of bits_2, bits_3, bits_4, bits_8, decoder_2"),
        (["none", "chunk"], "no fault is called 'none'"),
    ],
)
def test_nonsense_is_refused(tiny_model, names, message):
    with pytest.raises(ConfigError, match=message):
        faulty(tiny_model, names)


# ---- audio ----


def test_the_front_end_with_no_wrong_choice_is_the_faithful_one():
    for n in (1_600, 16_000, 16_077, 40_001):
        x = tiny.noise(n / tiny.RATE)
        np.testing.assert_allclose(WrongMel()(x), log_mel(x), atol=2e-5)


def test_framing_loses_two_frames_and_moves_the_rest_by_one():
    x = np.zeros(16_000, np.float32)
    x[8_000] = 1.0  # strongest in the frame in whose middle it lies
    right, wrong = log_mel(x), WrongMel(framing="uncentred")(x)
    assert wrong.shape[1] == right.shape[1] - 2
    assert right.sum(axis=0).argmax() == 50 and wrong.sum(axis=0).argmax() in (48, 49)


def test_htk_filters_have_height_one_and_some_are_empty():
    filters = htk_filterbank()
    assert filters.shape == (128, 201) and filters.max() <= 1 and (filters[64:].max(axis=1) > 0.5).all()
    assert 0 < np.count_nonzero(filters.max(axis=1) == 0) < 20
    tops = np.arange(201)[filters[100:].argmax(axis=1)] * 40  # Hz; HTK's formula at the middles of the last filters
    middles = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 130)[101:129]
    np.testing.assert_allclose(2595 * np.log10(1 + tops / 700), middles, atol=10)


def test_wrong_values_follow_from_the_faithful_ones():
    """Noise without a quiet frame: each mistake is undone by arithmetic, where it is not 8 below the loudest value."""
    x = tiny.noise(1.0)[:15_000]
    right = log_mel(x)[:, :90] * 4 - 4  # log10 of power
    ln = WrongMel(values="ln")(x)[:, :90] * 4 - 4
    np.testing.assert_allclose(ln, np.maximum(right * np.log(10), ln.max() - 8), atol=2e-3)
    assert (ln > ln.max() - 8).mean() > 0.5
    loud, quiet = (WrongMel(values="amplitude")(gain * x)[:, :90] for gain in (10, 1))
    np.testing.assert_allclose(loud - quiet, 0.25, atol=1e-4)  # a tenth of amplitude is one log10, of power two
    for values, axis in (("standard", None), ("by_band", 1)):
        found, whole = WrongMel(values=values)(x), log_mel(x)
        np.testing.assert_allclose(found.mean(axis=axis), 0, atol=1e-4)
        np.testing.assert_allclose(found.std(axis=axis), 1, atol=1e-4)
        assert all(np.corrcoef(a, b)[0, 1] > 0.9999 for a, b in zip(found, whole, strict=True))
        assert np.isfinite(WrongMel(values=values)(np.zeros(800, np.float32))).all()


def test_wrong_values_join_with_the_other_front_ends(tiny_model):
    both = faulty(tiny_model, "mel:ln+mel_scale").pipeline.mel
    assert both == WrongMel(scale="htk", values="ln") == faulty(tiny_model, "mel_scale+mel:ln").pipeline.mel


def test_a_wrong_mel_refuses_unknown_choices():
    for wrong in ({"scale": "bark"}, {"values": "log2"}):
        with pytest.raises(ConfigError, match="htk"):
            WrongMel(**wrong)


def test_a_clip_too_short_for_an_uncentred_frame_gives_none():
    assert WrongMel(framing="uncentred")(np.zeros(1, np.float32)).shape == (128, 0)


def test_downmix_is_the_mean_whatever_is_asked_for(tiny_model, stereo):
    wrong = faulty(tiny_model, "downmix")
    mean = load_audio(stereo, downmix="mean")
    for asked in ("first", "mean"):
        np.testing.assert_array_equal(wrong.pipeline.load(stereo, downmix=asked), mean)
    mono = tiny.noise(2)
    assert said(wrong, mono) == said(tiny_model, mono)


def test_segments_of_15_seconds(tiny_model):
    wrong = faulty(tiny_model, "chunk")
    assert len(said(tiny_model, LONG)) == 1 and len(said(wrong, LONG)) == 2
    assert [n for _, n in wrong.request(transcription(LONG)).spans] == [188, 13]
    assert tiny_model.pipeline.chunk_samples == CHUNK_SAMPLES


def test_without_the_mask_padding_is_heard(tiny_model):
    mels = [log_mel(tiny.noise(s)) for s in (3.0, 1.0)]
    right, wrong = (
        m.net.encode_audio(mels, independent=False) for m in (tiny_model, faulty(tiny_model, "padding_mask"))
    )
    gaps = [float(mx.abs(a - b).max()) for a, b in zip(right, wrong, strict=True)]
    assert gaps[1] > 10 * gaps[0]  # the long clip has one masked key, the short one is mostly padding


def test_norm_then_pool_by_hand(tiny_model):
    """Rows of the wrong encoder from the recorded last block of the right one, norm and pooling written out."""
    found = {}
    net, mel = tiny_model.net, log_mel(tiny.noise(1.0))

    def tap(name, array):
        found[name] = np.array(array)

    net.encode_audio([mel], tap=tap)
    x = found["encoder.0.resid_post"][0]
    norm = net.encoder.after_norm
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = x * np.array(norm.weight) + np.array(norm.bias)
    wanted = x[: len(x) // 2 * 2].reshape(-1, 2, x.shape[1]).mean(axis=1)
    faulty(tiny_model, "norm_pool").net.encode_audio([mel], tap=tap)
    np.testing.assert_allclose(found["encoder.out"][0], wanted, atol=1e-4)


# ---- prompt ----


def built(model, n_rows=5):
    from stepaudio.text.prompts import asr_turns

    return model.pipeline.build_prompt(asr_turns(), model.tokenizer, [[n_rows]])


def test_the_prompt_builder_with_no_wrong_choice_is_the_faithful_one(tiny_model):
    from stepaudio.text.prompts import asr_turns

    reference = asr_prompt(tiny_model.tokenizer, [5])
    assert built(tiny_model) == reference == faults.WrongPrompt()(asr_turns(), tiny_model.tokenizer, [[5]])


def test_chatml_prompt(tiny_model):
    prompt = built(faulty(tiny_model, "chatml"))
    audio = "<audio_start>" + "<audio_patch>" * 5 + "<audio_end>"
    text = f"<|im_start|>system\n{ASR_SYSTEM}<|im_end|>\n<|im_start|>user\n{audio}<|im_end|>\n<|im_start|>assistant\n"
    assert tiny_model.tokenizer.decode(prompt.tokens) == text
    assert {prompt.tokens[i] for s in prompt.slots for i in range(s.start, s.start + s.length)} == {
        tiny_model.tokenizer.audio_patch
    }


def test_prompt_without_audio_end(tiny_model):
    t, prompt = tiny_model.tokenizer, built(faulty(tiny_model, "audio_end"))
    assert list(prompt.tokens) == [i for i in built(tiny_model).tokens if i != t.audio_end]
    messages = [{"role": "human", "content": [{"type": "audio"}, {"type": "audio"}]}]
    two = faults.WrongPrompt(audio_end=False)(messages, t, [[3, 0], [2]])
    patches = [i for i, token in enumerate(two.tokens) if token == t.audio_patch]
    assert patches == [i for s in two.slots for i in range(s.start, s.start + s.length)]
    assert t.audio_end not in two.tokens


def test_prompt_without_system_text(tiny_model):
    t = tiny_model.tokenizer
    assert t.decode(built(faulty(tiny_model, "system_text")).tokens).startswith("<|BOT|>human\n<audio_start>")


# ---- weights and sampling ----


def test_partly_loaded_replaces_the_tensors_it_names_and_no_others(tiny_model):
    lost = set(faults.left_out(tiny_model.config, 0.9))
    right, wrong = values(tiny_model), values(faulty(tiny_model, "partly_loaded"))
    assert len(right) - len(lost) == round(0.9 * len(right))
    assert {name for name in right if not np.array_equal(right[name], wrong[name])} == lost
    assert set(faults.left_out(tiny_model.config, 0.9, seed=1)) != lost


def test_partly_loaded_at_both_ends(tiny_model):
    right = values(tiny_model)
    assert all(np.array_equal(a, right[n]) for n, a in values(faults.partly_loaded(1.0)(tiny_model)).items())
    fresh = values(faults.partly_loaded(0.0)(tiny_model))
    assert not any(np.array_equal(a, right[n]) for n, a in fresh.items())
    assert (fresh["model.norm.weight"] == 1).all() and (fresh["encoder.after_norm.bias"] == 0).all()
    kernel = fresh["model.layers.0.mlp.down_proj.weight"]
    assert np.abs(kernel).max() <= 48**-0.5 and kernel.std() == pytest.approx(48**-0.5 / 3**0.5, rel=0.1)


def test_partly_loaded_comes_before_what_moves_tensors(tiny_model):
    with pytest.raises(ConfigError, match="apply this first"):
        faults.partly_loaded(0.0)(faulty(tiny_model, "norm_pool"))


def test_fewer_bits_hold_fewer_values(tiny_model):
    errors = {}
    weight = np.array(tiny_model.net.lm_head.weight)
    for bits in (8, 4):
        net = faulty(tiny_model, f"bits_{bits}").net
        head = net.lm_head
        held, x = np.array(head.weight), mx.random.normal((3, weight.shape[1]), key=mx.random.key(bits))
        packed = nn.QuantizedLinear.from_linear(tiny_model.net.lm_head, 32, bits)
        assert np.allclose(np.array(head(x)), np.array(packed(x)), atol=1e-5)
        assert max(len(np.unique(group)) for group in held.reshape(-1, 32)) <= 2**bits
        errors[bits] = np.abs(held - weight).max()
        assert net.model.embed_tokens.weight is tiny_model.net.model.embed_tokens.weight
    assert 0 < 8 * errors[8] < errors[4]
    assert tiny_model.net.lm_head.weight.dtype == mx.float32


def test_bits_of_the_decoder_leave_the_rest(tiny_model):
    before, found = values(tiny_model), values(faulty(tiny_model, "decoder_2"))
    changed = {name for name in before if name not in found or not np.array_equal(found[name], before[name])}
    assert changed and all(name.startswith("model.layers.") for name in changed)


def test_bits_on_a_model_too_narrow(tiny_model):
    net = faults.copy_of(tiny_model.net)
    net.encoder.blocks = []  # the only layers 128 wide
    assert len(tiny_model.net.encoder.blocks) == 1
    with pytest.raises(ConfigError, match="multiple of 128"):
        faults.fewer_bits(4, group_size=128)(tiny_model.altered(net=net))


def test_penalty_is_fixed_and_counts_the_answer_only(tiny_model):
    options = faulty(tiny_model, "penalty_scope").engine.run_options(
        DecodingOptions(Sampling.reference("chat"), max_tokens=8, on_loop="off")
    )
    fixed = Penalties(repetition=1.3, include_prompt=False)
    assert options.sampling.text == options.sampling.audio == fixed and options.sampling.temperature == 0.7


def test_the_configs_of_both_are_one(tiny_model):
    assert isinstance(faulty(tiny_model, "bits_8").config, StepAudioConfig)
    assert faulty(tiny_model, "bits_8").config is tiny_model.config


def test_lost_tensors_are_those_under_the_prefix_and_no_others(tiny_model):
    found, before = values(faulty(tiny_model, "lost:model.layers.1.")), values(tiny_model)
    changed = {name for name in before if not np.array_equal(found[name], before[name])}
    assert changed and changed == {name for name in before if name.startswith("model.layers.1.")}


def test_lost_joins_with_what_moves_tensors_in_any_order(tiny_model):
    def query(names):
        return np.array(faulty(tiny_model, names).net.model.layers[1].self_attn.q_proj["weight"])

    both = query("bits_4+lost:model.layers.1.")
    assert np.array_equal(both, query("lost:model.layers.1.+bits_4")) and not np.array_equal(both, query("bits_4"))


def test_a_prefix_of_nothing_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="no tensor"):
        faulty(tiny_model, "lost:model.layers.9.")
