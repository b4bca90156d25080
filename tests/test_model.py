"""The model's methods on tiny random nets: transcription, answers, refusals."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import soundfile as sf
import tiny

from stepaudio.audio.features import log_mel
from stepaudio.audio.load import load_audio
from stepaudio.constants import n_audio_embeddings, n_mel_frames
from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import AudioError, ConfigError, DecodeError, PromptError, StepAudioError
from stepaudio.evaluation import evaluate
from stepaudio.evaluation.manifest import Clip
from stepaudio.model import StepAudio2
from stepaudio.models.kv_cache import CachePolicy
from stepaudio.models.speech_lm import Slot
from stepaudio.text.chat_template import SPOKEN, Message
from stepaudio.text.prompts import asr_prompt

OPEN = {"role": "assistant", "content": None}
ASK = [{"role": "human", "content": "what is the time now"}, OPEN]


def ids_of(transcript):
    return [segment.tokens for segment in transcript.segments]


def with_audio(audio):
    return [
        {"role": "human", "content": [{"type": "audio", "audio": audio}, {"type": "text", "text": "what?"}]},
        OPEN,
    ]


# ---- prompts: audio lands where the reference puts it ----


def test_audio_of_one_message_is_encoded_in_its_place(tiny_model):
    x = tiny.noise(2)
    request = tiny_model.request(with_audio(x))
    n = n_audio_embeddings(n_mel_frames(len(x)))
    ((start, length),) = request.spans
    patch = tiny_model.tokenizer.audio_patch
    assert length == n and list(request.tokens[start : start + n]) == [patch] * n
    assert request.tokens[start - 1] == tiny_model.tokenizer.audio_start
    rows = tiny_model.net.encode_audio([log_mel(x)])[0]
    np.testing.assert_allclose(np.array(request.embeddings[start : start + n]), np.array(rows), rtol=1e-5, atol=1e-5)
    plain = tiny_model.net.embed(np.array(request.tokens))[0]
    outside = [i for i in range(len(request.tokens)) if not start <= i < start + n]
    np.testing.assert_array_equal(np.array(request.embeddings)[outside], np.array(plain)[outside])


def test_more_than_25_seconds_makes_two_slots(tiny_model):
    x = tiny.noise(27)
    spans = tiny_model.request(with_audio(x)).spans
    assert [n for _, n in spans] == [
        n_audio_embeddings(n_mel_frames(400_000)),
        n_audio_embeddings(n_mel_frames(32_000)),
    ]
    assert spans[1][0] == spans[0][0] + spans[0][1] + 2  # <audio_end><audio_start> between them


def test_a_remainder_too_short_for_a_row_keeps_its_markers(tiny_model):
    request = tiny_model.request(with_audio(tiny.noise(25.005)))
    t = tiny_model.tokenizer
    assert len(request.spans) == 1
    assert list(request.tokens).count(t.audio_start) == 2 == list(request.tokens).count(t.audio_end)


def test_two_clips_share_one_padded_batch(tiny_model):
    """As the reference runs them: the shorter is encoded beside the longer, not alone."""
    long, short = tiny.noise(3), tiny.noise(1.29, seed=1)  # 302 and 131 frames: their masks begin differently
    items = [{"type": "audio", "audio": long}, {"type": "audio", "audio": short}]
    request = tiny_model.request([{"role": "human", "content": items}, OPEN])
    together = tiny_model.net.encode_audio([log_mel(long), log_mel(short)], independent=False)
    assert mx.abs(together[1] - tiny_model.net.encode_audio([log_mel(short)])[0]).max() > 1e-3
    for (start, n), rows in zip(request.spans, together, strict=True):
        np.testing.assert_allclose(
            np.array(request.embeddings[start : start + n]), np.array(rows), rtol=1e-5, atol=1e-5
        )


def test_audio_from_a_file_in_a_message(tiny_model, tmp_path):
    sf.write(tmp_path / "a.wav", tiny.noise(1), 16_000, subtype="FLOAT")
    a = tiny_model.generate_text(with_audio(tmp_path / "a.wav"), max_tokens=8)
    assert a == tiny_model.generate_text(with_audio(tiny.noise(1)), max_tokens=8)
    assert a.tokens != tiny_model.generate_text(with_audio(tiny.noise(1, level=1e-3) + 0.5), max_tokens=8).tokens


@pytest.mark.parametrize(("messages", "message"), [
    (None, "list of messages"), (Message("human", "hi"), "list of messages"),
    ([{"role": "human"}], "role, content"), ([{"role": "boss", "content": "hi"}], "unknown role"),
    ([{"role": "human", "content": [{"type": "audio"}]}], 'under "audio"'),
    ([{"role": "human", "content": ["hi"]}], "expected an item"),
    ([], "empty"),
])  # fmt: skip
def test_messages_that_are_none(tiny_model, messages, message):
    with pytest.raises(PromptError, match=message):
        tiny_model.generate_text(messages)


def test_missing_recording_in_a_message(tiny_model, tmp_path):
    with pytest.raises(AudioError, match="none.wav"):
        tiny_model.generate_text(with_audio(tmp_path / "none.wav"))


# ---- the ways of generating ----


def test_text_and_codes_split_the_ids_as_the_reference_does(tiny_model):
    t = tiny_model.tokenizer
    found = tiny_model.generate_with_audio(ASK, max_tokens=60, sampling=Sampling(temperature=1.5, seed=3))
    assert found.codes == tuple(
        i - t.first_audio_code for i in found.tokens if 0 <= i - t.first_audio_code < tiny.N_AUDIO
    )
    assert found.codes and found.text == t.decode([i for i in found.tokens if i < t.audio_start], skip_special=True)
    text = tiny_model.generate_text(ASK, max_tokens=60, sampling=Sampling(temperature=1.5, seed=3))
    assert text.codes == () and text.tokens == found.tokens and text.text == found.text


def test_audio_tokens_start_from_the_seeded_turn(tiny_model):
    """Whether the caller opens no turn, an empty one or the seeded one, the prompt is StepFun's."""
    human = {"role": "human", "content": "say it"}
    seeded = [human, {"role": "assistant", "content": SPOKEN, "eot": False}]
    runs = [tiny_model.generate_audio_tokens(m, max_tokens=9) for m in ([human], [human, OPEN], seeded)]
    assert runs[0] == runs[1] == runs[2] == tiny_model.generate_with_audio(seeded, max_tokens=9)
    assert tiny_model.request(seeded).tokens[-1] == tiny_model.tokenizer.tts_start


def test_audio_tokens_with_a_recording(tiny_model):
    assert len(tiny_model.generate_audio_tokens(with_audio(tiny.noise(1))[:1], max_tokens=5).tokens) == 5


def test_stream_gives_the_same_ids_one_by_one(tiny_model):
    steps = list(tiny_model.stream(ASK, max_tokens=12))
    whole = tiny_model.generate_with_audio(ASK, max_tokens=12)
    assert tuple(s.token for s in steps) == whole.tokens and steps[-1].stop == whole.stop == "length"
    assert whole.mean_logprob == pytest.approx(np.mean([s.logprob for s in steps])) and whole.kv_bytes > 0


def test_seed_decides(tiny_model):
    def run(seed):
        return tiny_model.generate_text(ASK, max_tokens=20, sampling=Sampling(temperature=1.0, seed=seed)).tokens

    assert run(1) == run(1) != run(2)


def test_end_of_turn_is_not_part_of_the_answer(tiny_checkpoint, tmp_path):
    """A head that answers every prompt with the end of the turn."""
    model = StepAudio2.load(tiny_checkpoint)
    eot, head = model.tokenizer.eot, np.array(model.net.lm_head.weight)
    after = np.array(model.net.model(model.request(ASK).embeddings[None], _no_cache(model))[0, -1])
    head[eot] = after * 100
    model.net.lm_head.weight = mx.array(head)
    found = model.generate_text(ASK, max_tokens=5)
    assert (found.tokens, found.text, found.stop) == ((), "", "eos")
    assert model.transcribe(tiny.noise(1), max_tokens=50).segments[0].stop in ("eos", "length")


def _no_cache(model):
    from stepaudio.models.kv_cache import NoCache

    return NoCache(model.net.model.rope)


def test_an_answer_is_opened_where_the_messages_do_not(tiny_model):
    asked = [{"role": "system", "content": "Say a word."}, {"role": "human", "content": "Now."}]
    opened = [*asked, {"role": "assistant", "content": None}]
    given = [[s.token for s in tiny_model.stream(m, max_tokens=8)] for m in (asked, opened)]
    assert given[0] == given[1] and len(given[0]) > 0
    closed = [*asked, {"role": "assistant", "content": "No."}]
    assert len(tiny_model.request(closed).tokens) > len(tiny_model.request(opened).tokens)


def test_stop_string_that_spans_ids(tiny_model):
    free = tiny_model.generate_text(ASK, max_tokens=40)
    steps = [(i, t) for i, t in enumerate(free.tokens) if t < tiny_model.tokenizer.audio_start]
    k = next(
        k
        for k in range(2, len(steps))
        if steps[k][0] == steps[k - 1][0] + 1
        and "\ufffd" not in tiny_model.tokenizer.decode(free.tokens[: steps[k][0] + 1])[-3:]
    )
    end = steps[k][0] + 1
    text = tiny_model.tokenizer.decode(free.tokens[:end], skip_special=True)
    wanted = text[-2:]
    found = tiny_model.generate_text(ASK, max_tokens=40, stop=[wanted, "never said"])
    assert found.stop == "stop string" and found.tokens == free.tokens[: len(found.tokens)] and len(found.tokens) <= end
    assert wanted in tiny_model.tokenizer.decode(found.tokens, skip_special=True)
    assert wanted not in tiny_model.tokenizer.decode(found.tokens[:-1], skip_special=True)


@pytest.mark.parametrize("stop", ["word", [""], [3], None])
def test_stop_strings_that_are_none(tiny_model, stop):
    with pytest.raises(DecodeError, match="non-empty strings"):
        tiny_model.generate_text(ASK, stop=stop)


def test_loop_is_told(tiny_checkpoint):
    """A head of zeros says the first id for ever."""
    model = StepAudio2.load(tiny_checkpoint)
    model.net.lm_head.weight = mx.zeros_like(model.net.lm_head.weight)
    options = {"max_tokens": 80, "sampling": Sampling.greedy()}
    found = model.generate_text(ASK, **options)
    assert set(found.tokens) == {0} and found.stop == "length"
    assert (found.loop.period, found.loop.onset, found.loop.repeats) == (1, 0, 80)
    stopped = model.generate_text(ASK, on_loop="stop", **options)
    assert stopped.stop == "loop" and len(stopped.tokens) < 40
    assert model.generate_text(ASK, on_loop="off", **options).loop is None
    assert model.transcribe(tiny.noise(1), **options).loops == 1


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"on_loop": "maybe"}, {"batch": 0}, {"batch": -1}])
def test_impossible_options(tiny_model, options):
    with pytest.raises(DecodeError):
        tiny_model.transcribe(tiny.noise(1), **options)


# ---- without a tokenizer ----


def test_ids_in_ids_out(tiny_checkpoint, tiny_model):
    """With the tokens of the reference's prompt, the same answer as with the tokenizer."""
    mute = StepAudio2.load(tiny_checkpoint, tokenizer=None)
    prompt = asr_prompt(tiny_model.tokenizer, [1])
    start = prompt.slots[0].start
    pair = prompt.tokens[:start], prompt.tokens[start + 1 :]
    found = mute.transcribe(tiny.noise(2), prompt=pair, max_tokens=16)
    assert found.text is None and found.segments[0].text is None
    assert ids_of(found) == ids_of(tiny_model.transcribe(tiny.noise(2), max_tokens=16))


@pytest.mark.parametrize(("prompt", "error"), [
    (5, "two lists"), (([1],), "two lists"), ((["a"], [1]), "two lists"), (([10**6], []), "outside the vocabulary"),
])  # fmt: skip
def test_prompt_ids_that_are_none(tiny_model, prompt, error):
    with pytest.raises(PromptError, match=error):
        tiny_model.transcribe(tiny.noise(1), prompt=prompt)


def test_audio_alone_is_a_prompt(tiny_model):
    assert len(tiny_model.transcribe(tiny.noise(1), prompt=([], []), max_tokens=3).segments[0].tokens) == 3


def test_text_needs_a_tokenizer(tiny_checkpoint):
    mute = StepAudio2.load(tiny_checkpoint, tokenizer=None)
    for ask in (
        lambda: mute.transcribe(tiny.noise(1)),
        lambda: mute.generate_text(ASK),
        lambda: mute.generate_audio_tokens(ASK),
    ):
        with pytest.raises(PromptError, match="needs a tokenizer"):
            ask()


# ---- caches ----


@pytest.mark.parametrize(
    "policy",
    [CachePolicy("full"), CachePolicy("window", 60), CachePolicy("sinks", 60), CachePolicy("pinned", 200)],
    ids=lambda p: p.kind,
)
def test_every_cache_can_be_asked_for(tiny_model, policy):
    found = tiny_model.transcribe(tiny.noise(2), cache=policy, max_tokens=90)
    assert len(found.segments[0].tokens) == 90 or found.segments[0].stop == "eos"


def test_a_limit_that_cannot_bite_changes_nothing(tiny_model):
    options = {"max_tokens": 20, "sampling": Sampling.greedy()}
    full = tiny_model.transcribe(tiny.noise(2), cache=CachePolicy("full"), **options)
    assert ids_of(full) == ids_of(tiny_model.transcribe(tiny.noise(2), cache=CachePolicy("sinks", 4096), **options))


def test_errors_are_all_of_one_family():
    assert issubclass(ConfigError, StepAudioError) and issubclass(DecodeError, StepAudioError)


def test_embedding_refuses_a_slot_that_does_not_fit(tiny_model):
    rows = tiny_model.net.encode_audio([log_mel(tiny.noise(1))])
    with pytest.raises(PromptError, match="14 positions, its audio 13 embeddings"):
        tiny_model.net.embed(np.arange(40), [Slot(0, 2, len(rows[0]) + 1)], rows)


# ---- the bundled model ----


def test_nano_is_whole_and_small(nano):
    model = StepAudio2.load(nano)
    assert model.report.whole
    assert sum(f.stat().st_size for f in nano.iterdir()) <= 64e6
    assert json.loads((nano / "config.json").read_text())["audio_encoder_config"]["n_audio_ctx"] == 1500


# ---- how recordings are read ----


def test_every_way_in_reads_with_the_resampler_that_is_asked_for(tiny_model, tmp_path):
    asked = []
    sf.write(tmp_path / "a.wav", tiny.noise(1), 44_100)

    def load(source, **options):
        asked.append(options["resampler"])
        return load_audio(source, **options)

    model, clip = tiny_model.altered(pipeline=replace(tiny_model.pipeline, load=load)), tiny.noise(1)
    few = {"max_tokens": 2}
    for given, want in (({}, "reference"), ({"resampler": "soxr"}, "soxr")):
        asked.clear()
        model.transcribe(clip, sr=44_100, **given, **few)
        list(model.stream(clip, sr=44_100, **given, **few))
        model.request(with_audio(clip), **given)
        for answer in (model.generate_text, model.generate_with_audio, model.generate_audio_tokens):
            answer(with_audio(clip), **given, **few)
        evaluate(model, [Clip(tmp_path / "a.wav", "he was")], **given, **few)
        assert asked[:7] == [want] * 7  # what `evaluate` has read at 16 kHz goes through `transcribe`
    with pytest.raises(ConfigError, match="resampler: expected soxr or reference, found 'sox'; did you mean 'soxr'"):
        model.transcribe(clip, resampler="sox")
