"""What is recorded: names, shapes, bytes, caches, memory."""

import mlx.core as mx
import numpy as np
import pytest
import tiny
from recorded_run import GREEDY, N_IDS, SECONDS

from stepaudio.audio.save import save_audio
from stepaudio.constants import n_audio_embeddings, n_mel_frames
from stepaudio.decoding.generate import collect
from stepaudio.engine import Engine
from stepaudio.errors import ConfigError, DecodeError
from stepaudio.interp import lens, names
from stepaudio.interp import recorder as recording
from stepaudio.interp.memory import watch_memory
from stepaudio.model import StepAudio2
from stepaudio.models.kv_cache import CachePolicy, FullCache


def run(model, messages, **options):
    return collect(model.stream(messages, sampling=GREEDY, max_tokens=N_IDS, **options), 1)[0]


# ---- what the folder offers ----


def test_names_of_the_folder_are_those_of_its_modules():
    from stepaudio import interp

    assert set(interp.__all__) <= set(dir(interp))
    for name in interp.__all__:
        assert getattr(interp, name) is not None
    assert interp.record is recording.record and interp.logit_lens is lens.logit_lens
    with pytest.raises(AttributeError, match="no attribute 'probe'"):
        _ = interp.probe


# ---- names and shapes ----


def test_every_name_of_the_glossary_is_recorded_and_no_other(tiny_model, trace):
    assert set(trace.recorder.names) == set(names.activation_names(tiny_model.config))


def test_every_shape_is_that_of_the_glossary(tiny_model, trace):
    """Lengths come from the config, the audio and the prompt, never from the arrays themselves."""
    frames = n_mel_frames(round(SECONDS * tiny.RATE))
    after_conv = -(-frames // 2)
    fixed = {
        **names.axis_sizes(tiny_model.config),
        "B": 1,
        "T": frames,
        "S": after_conv,
        "P": after_conv // 2,
        "R": (after_conv // 2 - 1) // 2 + 1,
    }
    for name, meaning in names.activation_names(tiny_model.config).items():
        arrays = trace[name]
        decoder = name.startswith(("decoder", "logits"))
        assert len(arrays) == (len(trace.tokens) if decoder else 1), name
        for i, array in enumerate(arrays):
            new = trace.n_prompt if i == 0 else 1
            sizes = fixed | {"n": new, "L": trace.n_prompt + i}
            assert array.shape == tuple(sizes[axis] for axis in meaning.axes), (name, i)
            assert array.dtype == (np.int32 if name in names.FIXED else np.float32)


def test_attention_rows_sum_to_one(trace):
    for name in ("encoder.0.pattern", "decoder.0.pattern", "decoder.1.pattern"):
        for array in trace[name]:
            np.testing.assert_allclose(array.sum(axis=-1), 1, atol=1e-5)


def test_a_recorded_run_says_what_an_unwatched_run_says(tiny_model, messages, trace):
    alone = run(tiny_model, messages)
    assert trace.tokens == alone.tokens
    assert [s.logprob for s in trace.steps] == list(alone.logprobs)


def test_a_run_that_ends_early_keeps_no_pass_beyond_its_end(tiny_model, messages, trace):
    class Ends(Engine):
        def stop_ids(self):
            return frozenset([trace.tokens[stop]])

    stop = next(i for i in range(1, N_IDS) if trace.tokens[i] not in trace.tokens[:i])
    ended = StepAudio2(Ends(tiny_model.net, tiny_model.tokenizer), tiny_model.report)
    short = recording.record(ended, messages, ("decoder.out", "decoder.positions"), sampling=GREEDY, max_tokens=N_IDS)
    assert len(short.steps) == stop + 1 < N_IDS
    assert len(short["decoder.out"]) == len(short["decoder.positions"]) == len(short.steps)


def test_prompt_geometry(tiny_model, trace):
    request = tiny_model.request(recording.transcription(tiny.noise(SECONDS)))
    assert trace.n_prompt == len(request.tokens) and trace.spans == request.spans
    patch = tiny_model.tokenizer.audio_patch
    assert [i for i, t in enumerate(request.tokens) if t == patch] == trace.audio_positions.tolist()
    assert len(trace.audio_seconds) == n_audio_embeddings(n_mel_frames(round(SECONDS * tiny.RATE)))
    np.testing.assert_allclose(np.diff(trace.audio_seconds), 0.08)


def test_rows_of_a_second_piece_start_at_25_seconds(tiny_model):
    trace = recording.record(tiny_model, recording.transcription(tiny.noise(26.0)), "decoder.positions", max_tokens=1)
    first, second = (length for _, length in trace.spans)
    assert trace.audio_seconds[first] == 25.0 and len(trace.audio_seconds) == first + second


def test_a_recording_can_be_given_as_it_is(tiny_model, tmp_path):
    """A path, or samples: the same as the messages of a transcription."""
    samples = np.round(tiny.noise(SECONDS) * 32768).astype(np.float32) / 32768  # what 16 bits hold
    save_audio(tmp_path / "a.wav", samples, tiny.RATE)
    sources = recording.transcription(samples), tmp_path / "a.wav", str(tmp_path / "a.wav"), samples
    runs = [recording.record(tiny_model, source, "logits", sampling=GREEDY, max_tokens=3) for source in sources]
    for run in runs:
        assert run.steps == runs[0].steps and run.spans == runs[0].spans


# ---- names of the version before ----


OLD_AND_NEW = [
    ("layer0", {"decoder.0.resid_post"}),
    ("layer?", {"decoder.0.resid_post", "decoder.1.resid_post"}),
    ("layer*.attention", {"decoder.0.pattern", "decoder.1.pattern"}),
    ("layer1.k*", {"decoder.1.k_cache"}),
    ("block0*", {"encoder.0.resid_post", "encoder.0.pattern"}),
    ("*attention", {"encoder.0.pattern", "decoder.0.pattern", "decoder.1.pattern"}),
    ("norm", {"decoder.out"}),
    ("adapter", {"adapter.out"}),
]


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW, ids=lambda x: x if isinstance(x, str) else "")
def test_former_names_are_read_with_a_warning(tiny_model, messages, old, new):
    with pytest.warns(DeprecationWarning, match="is of an earlier version"):
        trace = recording.record(tiny_model, messages, old, max_tokens=1)
    assert set(trace.recorder.names) == new


def test_a_recording_answers_to_former_names(trace):
    for old, new in (("layer1.attention", "decoder.1.pattern"), ("embedded", "encoder.0.resid_pre")):
        with pytest.warns(DeprecationWarning, match=f"'{old}' .* '{new}'"):
            assert trace[old] is trace[new]


def test_every_former_name_has_one_of_today(tiny_model):
    known = names.activation_names(tiny_model.config)
    for former in names.FORMER_NAMES:
        assert names.current_name(former.replace("{i}", "0")) in known
    assert names.current_name("layer11.values") == "decoder.11.v_cache"
    assert names.current_name("decoder.out") == "decoder.out" and names.current_name("layer") == "layer"


# ---- edits ----


def test_a_recorder_behind_an_edit_records_the_edit(tiny_model, messages, trace):
    def silence(name, x):
        return mx.zeros_like(x) if name == "adapter.out" else None

    edited = recording.record(
        tiny_model, messages, ("adapter.out", "logits"), sampling=GREEDY, max_tokens=3, tap=silence
    )
    assert not edited["adapter.out"][0].any()
    assert np.abs(edited["logits"][0] - trace["logits"][0]).max() > 0.1


def test_a_donors_residual_stream_gives_the_donors_next_token(tiny_model, messages, trace):
    """Patch the last layer at the last position of the prompt with that of another recording."""
    donor = recording.record(tiny_model, tiny.noise(SECONDS, 7), sampling=GREEDY, max_tokens=1)
    value = mx.array(donor["decoder.1.resid_post"][0][:, -1:])

    def patch(name, x):
        if name == "decoder.1.resid_post" and x.shape[1] > 1:
            return mx.concatenate([x[:, :-1], value], axis=1)
        return None

    edited = recording.record(tiny_model, messages, "logits", sampling=GREEDY, max_tokens=1, tap=patch)
    np.testing.assert_allclose(edited["logits"][0], donor["logits"][0], atol=1e-4)
    assert np.abs(donor["logits"][0] - trace["logits"][0]).max() > 0.1


# ---- what is kept ----


def test_the_filter_keeps_only_what_it_names(tiny_model, messages):
    trace = recording.record(tiny_model, messages, ("decoder.?.resid_post", "logits"), max_tokens=2)
    assert set(trace.recorder.names) == {"decoder.0.resid_post", "decoder.1.resid_post", "logits"}


def test_a_reducer_bounds_what_is_kept(tiny_model, messages, trace):
    reduced = recording.record(
        tiny_model,
        messages,
        "decoder.*.pattern",
        sampling=GREEDY,
        max_tokens=N_IDS,
        reduce={"decoder.0.*": recording.last_query, "decoder.1.*": recording.head_mean},
    )
    for i in range(N_IDS):
        newest = trace["decoder.0.pattern"][i][:, :, -1:]
        np.testing.assert_allclose(reduced["decoder.0.pattern"][i], newest, atol=1e-6)
        mean = trace["decoder.1.pattern"][i].mean(1, keepdims=True)
        np.testing.assert_allclose(reduced["decoder.1.pattern"][i], mean, atol=1e-6)


def test_bytes_are_counted_and_the_limit_holds(tiny_model, messages, trace):
    assert trace.recorder.nbytes == sum(a.nbytes for n in trace.recorder.names for a in trace[n])
    needed = recording.record(tiny_model, messages, "decoder.?.*", max_tokens=N_IDS, sampling=GREEDY).recorder.nbytes
    with pytest.raises(DecodeError, match=r"recording decoder.\d.* needs .* bytes.*last_query"):
        recording.record(tiny_model, messages, "decoder.?.*", max_tokens=N_IDS, sampling=GREEDY, byte_limit=needed - 1)


def test_what_does_not_fit_is_never_computed(tiny_model):
    recorder = recording.Recorder(tiny_model.config, "logits", byte_limit=1000)
    with pytest.raises(DecodeError):
        recorder("logits", mx.zeros((1 << 20, 1 << 20)))  # 4 TB, were it made
    assert recorder.nbytes == 0


@pytest.mark.parametrize("names, reduce", [("lyer*", None), ("layer9", None), ("*", {"x": recording.last_query})])
def test_a_name_that_nobody_has_is_refused(tiny_model, names, reduce):
    with pytest.raises(ConfigError, match="no activation is called"):
        recording.Recorder(tiny_model.config, names, reduce)


def test_asking_for_what_was_not_recorded(tiny_model, messages):
    trace = recording.record(tiny_model, messages, "decoder.out", max_tokens=1)
    with pytest.raises(ConfigError, match="decoder.0.resid_post was not recorded; recorded are decoder.out"):
        trace.residual(0)


# ---- caches ----


POLICIES = [
    CachePolicy("window", 24),
    CachePolicy("sinks", 24, sinks=3),
    CachePolicy("sinks", 24, positions="renumbered"),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.kind}-{p.positions}")
def test_watching_a_cache_changes_nothing_and_positions_name_its_slots(tiny_model, messages, policy):
    trace = recording.record(tiny_model, messages, sampling=GREEDY, cache=policy, max_tokens=N_IDS)
    assert trace.tokens == run(tiny_model, messages, cache=policy).tokens
    for i, (slots, keys) in enumerate(
        zip(trace.writing("decoder.positions"), trace.writing("decoder.0.k_cache"), strict=True)
    ):
        newest = trace.n_prompt - 1 + i
        assert slots.shape == (keys.shape[2],) and newest in slots and slots.max() == newest
        assert len(set(slots.tolist())) == len(slots)
        if i:
            kept = set(range(policy.sinks if policy.kind == "sinks" else 0))
            assert set(slots.tolist()) == kept | set(range(newest + 1 - (24 - len(kept)), newest + 1))


def test_values_of_a_slot_are_those_of_its_position(tiny_model, messages, trace):
    """Layer 0 sees embeddings only, so the value at a position does not depend on what was forgotten."""
    window = recording.record(
        tiny_model,
        messages,
        ("decoder.0.v_cache", "decoder.positions"),
        sampling=GREEDY,
        max_tokens=N_IDS,
        cache=CachePolicy("window", 24),
    )
    whole = trace["decoder.0.v_cache"][-1][0]
    for i in range(N_IDS):
        if window.tokens[:i] != trace.tokens[:i]:
            break
        slots, values = window.writing("decoder.positions")[i], window.writing("decoder.0.v_cache")[i]
        np.testing.assert_allclose(values[0], whole[:, slots], atol=1e-4)
    assert i >= 1


# ---- memory ----


def test_memory_along_a_run(tiny_model, messages):
    steps, memory = watch_memory(tiny_model.stream(messages, sampling=GREEDY, max_tokens=N_IDS))
    assert len(steps) == len(memory.kv) == N_IDS
    assert memory.kv.tolist() == [s.kv_bytes for s in steps] and (memory.kv > 0).all()
    assert (np.diff(memory.peak) >= 0).all() and (memory.active > memory.kv).all()


def test_the_faithful_decoder_takes_no_explicit_softmax_without_a_tap(tiny_model, monkeypatch):
    from stepaudio.models import attention

    def explicit(*_):
        raise AssertionError("the pattern was computed")

    cache = FullCache(2, tiny_model.net.model.rope)
    monkeypatch.setattr(attention, "attention_pattern", explicit)
    tiny_model.net.next_logits(mx.zeros((1, 3, 32)), cache)
    with pytest.raises(AssertionError, match="was computed"):
        tiny_model.net.next_logits(mx.zeros((1, 3, 32)), cache, lambda name, x: None)
