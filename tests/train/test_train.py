"""Training on seconds of sound and nets of a few channels: exact where it can be, the same twice where not."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten, tree_map

from stepaudio.audio.features import log_mel
from stepaudio.backend.ops import softmax_attention
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.constants import n_mel_frames, n_prompt_rows
from stepaudio.errors import ConfigError, DataError
from stepaudio.model import StepAudio2
from stepaudio.models.decoder import TextConfig
from stepaudio.models.encoder import AudioEncoderConfig
from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.resources import default_checkpoint
from stepaudio.text.prompts import asr_prompt
from stepaudio.text.tokenizer import Tokenizer
from stepaudio.train import augment, batches, corpus, loop, nano
from stepaudio.train.batches import IGNORE, BatchMaker, Bucket, transcription_ids
from stepaudio.train.corpus import Corpus

RATE = 16_000
BUCKETS = (Bucket(2.0, 3, 12, 0.5), Bucket(3.0, 2, 20, 0.5))
TEXTS = ["the cat", "sat on", "the mat", "what is", "the time now"]


def clip_lines(n=5, seconds=0.6):
    """Equal clips; each has two phonemes beside the silence at both ends, in frames of 25 ms."""
    size, lines = round(seconds * RATE), []
    for i in range(n):
        frames = round(seconds / 0.025)
        words = TEXTS[i].split()
        ids = [0, *[p for w in range(len(words)) for p in ([40 + w] if w == 0 else [16, 40 + w])], 0]
        durations = [2, *[3] * (len(ids) - 2), frames - 2 - 3 * (len(ids) - 2)]
        lines.append(
            {
                "id": str(i),
                "offset": i * size,
                "n_samples": size,
                "text": TEXTS[i],
                "ids": ids,
                "durations": durations,
            }
        )
    return lines


def write_corpus(folder, lines=None, tail=b"", name="a"):
    lines = clip_lines() if lines is None else lines
    folder.mkdir(exist_ok=True)
    n = max(line["offset"] + line["n_samples"] for line in lines)
    samples = np.random.default_rng(0).integers(-9000, 9000, n).astype(np.int16)
    samples.tofile(folder / f"{name}.pcm")
    (folder / f"{name}.jsonl").write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + tail)
    return samples


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    found = Tokenizer.train([" " + t for t in TEXTS] * 3, vocab_size=280, n_audio=4)
    found.save(tmp_path_factory.mktemp("words"))
    return found


@pytest.fixture
def encode(tokenizer):
    return loop.AnswerEncoder(tokenizer)


@pytest.fixture
def shelf(tmp_path, encode):
    write_corpus(tmp_path / "c")
    return Corpus([tmp_path / "c"], encode)


@pytest.fixture
def maker(shelf, tokenizer):
    return BatchMaker(shelf, transcription_ids(tokenizer), list(BUCKETS), seed=3)


def sizes(rows):
    text = TextConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
        vocab_size=rows,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
    )
    audio = AudioEncoderConfig(
        n_mels=128,
        n_audio_ctx=1500,
        n_audio_state=16,
        n_audio_head=2,
        n_audio_layer=1,
        llm_dim=16,
        kernel_size=3,
        adapter_stride=2,
        adapter_hidden=24,
    )
    return StepAudioConfig(text, audio)


@pytest.fixture
def trainer(tokenizer):
    return new_trainer(tokenizer)


def new_trainer(tokenizer, **changes):
    recipe = loop.Recipe(steps=50, warmup=2, buckets=BUCKETS, **changes)
    return loop.Trainer(
        recipe, sizes(-(-tokenizer.n_ids // 64) * 64), transcription_ids(tokenizer), tokenizer.text_limit
    )


# ---- mels ----


def test_mels_of_a_batch_equal_the_front_end_of_each_row():
    N, lengths = 24_000, [24_000, 23_999, 9000, 4000]
    wave = np.stack([tiny.noise(1.5, seed=i, level=10.0**-i) for i in range(4)])
    for row, n in zip(wave, lengths, strict=True):
        row[n:] = 0.5  # what stands past a row's end must not be heard
    found = np.array(augment.log_mel_batch(mx.array(wave), mx.array(lengths), augment.clean_filters()))
    assert found.shape == (4, n_mel_frames(N), 128)
    for row, mel, n in zip(wave, found, lengths, strict=True):
        np.testing.assert_allclose(mel[: n_mel_frames(n)], log_mel(row[:n]).T, atol=1e-4)
        assert not mel[n_mel_frames(n) :].any()


def test_filters_of_each_row():
    wave, n = mx.array(np.stack([tiny.noise(1)] * 2)), mx.array([RATE, RATE])
    filters = mx.stack([augment.clean_filters(), augment.warped_filters()[0]])
    a, b = augment.log_mel_batch(wave, n, filters)
    alone = augment.log_mel_batch(wave[:1], n[:1], augment.clean_filters())[0]
    np.testing.assert_allclose(np.array(a), np.array(alone), atol=1e-5)
    assert mx.abs(a - b).max() > 0.05


def test_clips_are_put_in_their_places_at_their_speeds(maker, shelf):
    pcm = shelf.samples(0)
    batch = {k: np.array([v]) for k, v in {"begin": [100, 9000], "stop": [4000, 9500], "start": [20, 50]}.items()}
    batch["rate"] = np.array([[1.0, 0.5]], np.float32)
    wave = np.array(augment.gather_wave(mx.array(pcm), {k: mx.array(v) for k, v in batch.items()}, 12_000))[0]
    wanted = np.zeros(12_000)
    wanted[100:4000] = pcm[20:3920] / 32768
    wanted[9000:9500] = np.interp(np.arange(500) / 2, np.arange(400), pcm[50:450]) / 32768
    np.testing.assert_allclose(wave, wanted, atol=1e-4)


def test_breaths_sound_where_they_are_put_and_as_loud_as_asked():
    wave = np.zeros((2, 2 * RATE), np.float32)
    wave[:, 16_000:] = np.sin(np.arange(16_000) * 0.3)  # root mean square 0.71 where there is sound
    batch = {
        "breath_begin": mx.array([[2000, 12_000, 0]] * 2),
        "breath_length": mx.array([[4000, 1000, 1]] * 2),
        "breath_level": mx.array([[0.1, 0.5, 0.0], [0.0, 0.0, 0.0]]),
        "breath_hertz": mx.array([1000.0, 1000.0]),
        "floor": mx.array([0.0, 0.0]),
    }
    mx.random.seed(0)
    added = np.array(augment.breathing(mx.array(wave), augment.loudness(mx.array(wave)), batch)) - wave
    assert not added[1].any() and np.flatnonzero(added[0])[[0, -1]].tolist() == [2000, 12_999]
    assert not added[0, 6000:12_000].any()
    swell = np.sqrt(3 / 8) * np.sqrt(0.5)  # of a squared sine, times the loudness
    assert added[0, 2000:6000].std() == pytest.approx(0.1 * swell, rel=0.3)
    assert added[0, 12_000:13_000].std() == pytest.approx(0.5 * swell, rel=0.5)
    power = np.abs(np.fft.rfft(added[0, 2000:6000])) ** 2
    hertz = np.arange(len(power)) * RATE / 4000
    assert power[(hertz > 350) & (hertz < 2800)].sum() > 0.8 * power.sum()  # an octave and a half to either side


def test_a_breath_is_heard_in_the_room_and_nothing_else_if_all_is_calm():
    wave = mx.array(np.stack([tiny.noise(1, seed=1)] * 2))
    calm = {name: mx.zeros(2) for name in ("reverb", "babble", "noise", "floor", "colour")}
    calm |= {"decay": mx.ones(2), "gain": mx.abs(wave).max(1), "clip": mx.full(2, 10.0)}
    breath = {"breath_begin": mx.array([[4000]] * 2), "breath_length": mx.array([[800]] * 2)}
    breath |= {"breath_level": mx.array([[0.1], [0.0]]), "breath_hertz": mx.array([1000.0] * 2)}
    added = np.abs(np.array(augment.room_and_noise(wave, calm | breath) - wave))
    assert added[1].max() < 1e-5 and added[0, 4000:4800].max() > 1e-3
    assert np.delete(added[0], np.s_[4000:4800]).max() < 1e-5


def test_breaths_stand_between_the_words():
    rows = [{"segments": [(4000, 20_000, None, 1.0), (30_000, 50_000, None, 1.0)], "length": 56_000}] * 500
    rows += [{"segments": [], "length": 9000}] * 500
    found = batches.breaths(np.random.default_rng(0), rows)
    begin, n, level = (found["breath_" + name] for name in ("begin", "length", "level"))
    assert (begin >= 0).all() and (n >= 1).all() and (n <= 0.6 * RATE).all()
    assert 0.17 < (level > 0).mean() < 0.23 and level.max() < 10 ** (-3 / 20)
    reach = RATE // 7
    gaps = [(0, 4000 + reach), (20_000 - reach, 30_000 + reach), (50_000 - reach, 56_000 + reach)]
    within = [(begin[:500] >= a) & (begin[:500] + n[:500] <= b) for a, b in gaps]
    assert np.logical_or.reduce(within).all() and all(w.mean() > 0.25 for w in within)
    assert (begin[500:] + n[500:] <= 9000 + reach).all()


def test_masks_hide_only_their_own_row():
    mel = mx.array(np.random.default_rng(0).normal(size=(2, 50, 128)).astype(np.float32))
    batch = {
        "length": mx.array([50 * 160 - 479 + 160, 20 * 160]),
        "time_mask": mx.array([[[60, 5]], [[3, 0]]]),
        "band_mask": mx.array([[[7, 2]], [[1, 0]]]),
    }
    found = np.array(augment.mask_some(mel, batch))
    hidden = found != np.array(mel)
    assert hidden[0, 10:15].all() and hidden[0, :, 7:9][:48].all() and not hidden[1].any()
    assert hidden[0].sum() <= 5 * 128 + 50 * 2


# ---- corpus ----


def test_clips_and_samples(tmp_path, encode):
    samples = write_corpus(tmp_path / "c")
    shelf = Corpus([tmp_path / "c"], encode)
    assert shelf.hours == pytest.approx(5 * 0.6 / 3600) and len(shelf.shards) == 1
    pcm = shelf.samples(0)
    for clip in shelf.shards[0]:
        i = TEXTS.index(clip["text"])
        np.testing.assert_array_equal(
            pcm[clip["start"] : clip["start"] + clip["n"]], samples[i * 9600 : (i + 1) * 9600]
        )
        assert clip["ids"] == encode(TEXTS[i])


@pytest.mark.parametrize("tail", [b'{"id": "9", "offset": 0, "n_sam', b'{"id": "9", "text": "caf\xc3', b"\n"])
def test_an_unfinished_last_line_is_left_out(tmp_path, encode, tail):
    write_corpus(tmp_path / "c", tail=tail)
    assert sum(map(len, Corpus([tmp_path / "c"], encode).shards)) == 5


def test_clips_whose_samples_are_not_yet_there(tmp_path, encode):
    samples = write_corpus(tmp_path / "c")
    samples[:-1].tofile(tmp_path / "c" / "a.pcm")
    write_corpus(tmp_path / "c", name="b")
    (tmp_path / "c" / "b.pcm").unlink()
    assert sorted(c["text"] for c in Corpus([tmp_path / "c"], encode).shards[0]) == sorted(TEXTS[:4])


def test_texts_by_id_and_lengths(tmp_path, encode):
    lines = clip_lines()
    for line in lines[:3]:
        del line["text"]
    del lines[4]["id"]  # its text stands in the line
    write_corpus(tmp_path / "c", lines)
    (tmp_path / "t.jsonl").write_text('{"id": "0", "text": "the time now"}\n{"id": "1", "text": "what is"}\n')
    found = Corpus([tmp_path / "c"], encode, tmp_path / "t.jsonl").shards[0]
    assert sorted(c["text"] for c in found) == sorted(["the time now", "what is", "what is", "the time now"])
    with pytest.raises(DataError, match="no clips"):
        Corpus([tmp_path / "c"], encode, max_seconds=0.5)


def test_shards_hold_every_clip_once(tmp_path, encode, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_SAMPLES", 20_000)
    write_corpus(tmp_path / "c")
    shelf = Corpus([tmp_path / "c"], encode)
    assert [len(s) for s in shelf.shards] == [2, 2, 1]
    assert sorted(c["text"] for s in shelf.shards for c in s) == sorted(TEXTS)
    assert len({shelf.samples(i).shape for i in range(3)}) == 1


# ---- batches ----


def same(a, b):
    return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_step_decides_its_batch(maker, shelf, tokenizer):
    again = BatchMaker(shelf, transcription_ids(tokenizer), list(BUCKETS), seed=3)
    assert all(same(maker(step), again(step)) for step in (7, 0, 7))
    other = BatchMaker(shelf, transcription_ids(tokenizer), list(BUCKETS), seed=4)
    assert not same(maker(0), maker(1)) and not same(maker(0), other(0))


def rows_of(maker, steps=40):
    for step in range(steps):
        batch = maker(step)
        for b in range(len(batch["length"])):
            yield batch, b, batch["begin"][b][batch["begin"][b] < 1 << 30]


def test_the_answer_follows_the_reference_s_prompt(maker, tokenizer, shelf, monkeypatch):
    monkeypatch.setattr(batches, "CUT", 0)  # whole clips are known by where they start
    for batch, b, placed in rows_of(maker, 10):
        n = n_prompt_rows(n_mel_frames(int(batch["length"][b])))
        wanted = asr_prompt(tokenizer, [n])
        rows = batch["spoken"].shape[1]
        prompt = transcription_ids(tokenizer)
        sources = [*prompt.before, *[prompt.patch] * rows, *prompt.after, *batch["answers"][b].tolist()]
        ids = [sources[i] for i in batch["place"][b] if i >= 0]
        labels = batch["labels"][b]
        assert tuple(ids[: len(wanted.ids)]) == wanted.ids
        (start,) = {s.start for s in wanted.slots}
        np.testing.assert_array_equal(batch["place"][b][start : start + n], start + np.arange(n))
        answer = labels[: np.count_nonzero(labels >= 0)]
        assert batch["asks"][b] == len(wanted.ids) - 1 and (labels[len(answer) :] == -1).all()
        np.testing.assert_array_equal(answer, ids[len(wanted.ids) :])
        assert answer[-1] == tokenizer.eot
        text = tokenizer.decode(answer[:-1].tolist())
        clips = {c["start"]: c["text"] for c in shelf.shards[0]}
        said = [clips[s] for s in batch["start"][b][: len(placed)]]
        assert text == "".join(" " + t for t in said)


def test_everything_lies_inside_the_row(maker):
    for batch, b, placed in rows_of(maker):
        bucket, k = BUCKETS[batch["bucket"]], len(placed)
        assert batch["length"][b] <= bucket.samples
        assert (batch["stop"][b][:k] <= batch["length"][b]).all() and (placed[1:] >= batch["stop"][b][:k][:-1]).all()


def test_a_row_without_words_holds_nobody_else_s(maker, monkeypatch):
    """Neither babble nor an answer but the end; and such rows do come."""
    draw = batches.augmentation
    everywhere = lambda rng, B: draw(rng, B) | {"babble": np.full(B, 0.5, np.float32)}
    monkeypatch.setattr(batches, "augmentation", everywhere)
    silent = [(batch, b) for batch, b, placed in rows_of(maker, 150) if len(placed) == 0]
    assert len(silent) > 3
    for batch, b in silent:
        assert batch["babble"][b] == 0 and np.count_nonzero(batch["labels"][b] >= 0) == 1
        assert (batch["phonemes"][b] == IGNORE).all() and (batch["spoken"][b] == IGNORE).all()
    assert any(batch["babble"][b] > 0 for batch, b, placed in rows_of(maker, 150) if len(placed))


def test_silence_lasts_as_long_as_speech_may(shelf, tokenizer):
    bucket = Bucket(25.575, 8, 177, 1.0)
    silent = BatchMaker(shelf, transcription_ids(tokenizer), [bucket], seed=3, empty=1.0)
    batches = [silent(step) for step in range(12)]
    lengths = np.concatenate([b["length"] for b in batches]) / RATE
    assert all((b["labels"][:, 1:] < 0).all() and (b["begin"] == 1 << 30).all() for b in batches)
    assert all(np.histogram(lengths, 5, (0, 25.6))[0] > 8)  # of 96 rows


@pytest.mark.parametrize(("share", "empty"), [(0.0, 0.1), (-1.0, 0.1), (1.0, 1.5), (1.0, float("nan"))])
def test_shares_are_shares(shelf, tokenizer, share, empty):
    with pytest.raises(DataError, match="shares of buckets"):
        BatchMaker(shelf, transcription_ids(tokenizer), [Bucket(5.1, 8, 49, share)], seed=3, empty=empty)


# ---- alignment ----


def test_phonemes_stand_at_the_middle_of_their_frames():
    """Against a walk through time, frame by frame."""
    clip = {"phonemes": [0, 40, 16, 41, 0], "frames": [2, 5, 1, 9, 3]}
    for first, rate in ((0, 1.0), (5000, 1.0), (3333, 1.25), (777, 0.8)):
        labels = np.zeros(60, np.int32)
        batches._align(labels, clip, first, rate)
        spoken = np.repeat(clip["phonemes"], clip["frames"])
        for i, label in enumerate(labels):
            at = ((i * 640 + 320) - first) * rate / RATE / 0.025
            if label != IGNORE:
                assert label == spoken[min(int(at), len(spoken) - 1)] + 1, (i, at)
        covered = np.flatnonzero(labels)
        assert covered[0] * 640 >= first - 640 and abs(len(covered) - 20 * 0.025 / 0.04 / rate) <= 2


def test_spoken_ids_pair_with_their_words(tokenizer, encode, shelf):
    for clip in shelf.shards[0]:
        spans = batches._token_spans(clip, encode)
        assert [int(t) for t in spans[:, 0]] == clip["ids"]
        assert spans[0, 1] == 2 and (spans[1:, 1] >= spans[:-1, 2]).all() and (spans[:, 2] > spans[:, 1]).all()
        labels = np.zeros(40, np.int32)
        batches._align_tokens(labels, spans, 3200, 1.0)
        for i, label in enumerate(labels):
            at = (i * 1280 + 640 - 3200) / RATE / 0.025
            here = [int(t) for t, a, b in spans if a <= at <= b]
            assert (label - 1 in here) if label else not here or at >= spans[-1, 2]


def test_words_are_cut_where_they_are_spoken(encode):
    """Phonemes and samples of a part are those of the whole, at the same place."""
    clip = {
        "start": 1000,
        "n": 400 * 20,
        "text": "the cat sat",
        "ids": encode("the cat sat"),
        "phonemes": [0, 40, 41, 16, 42, 5, 16, 43, 44, 0],
        "frames": [3, 1, 2, 1, 4, 1, 2, 2, 1, 3],
    }
    ranges = batches._word_ranges(clip)
    assert ranges == [(1, 3), (4, 5), (7, 9)]
    spoken = np.repeat(clip["phonemes"], clip["frames"])
    for first, stop in ((0, 1), (1, 2), (1, 3), (0, 3)):
        part = batches.cut_words(clip, ranges, first, stop, encode)
        assert part["text"] == " ".join(clip["text"].split()[first:stop]) and part["ids"] == encode(part["text"])
        place, size = (part["start"] - 1000) // 400, part["n"] // 400
        inside = np.repeat(part["phonemes"], part["frames"])
        np.testing.assert_array_equal(inside, spoken[place : place + size])
        assert inside[0] >= 40 and inside[-1] >= 40
        spans, whole = batches._token_spans(part, encode), batches._token_spans(clip, encode)
        wanted = [s for s in whole if place <= s[1] and s[2] <= place + size]
        np.testing.assert_allclose(spans[:, 1:] + place, np.array(wanted)[:, 1:])


def test_short_rows_speak(maker):
    """Rows shorter than any clip hold words more often than silence does."""
    short = [len(placed) for batch, b, placed in rows_of(maker, 300) if batch["length"][b] < 0.44 * RATE]
    assert len(short) > 20 and np.mean(np.array(short) > 0) > 0.5


def test_words_that_do_not_pair_up_are_left_alone(encode):
    clip = {
        "text": "one two three",
        "phonemes": [0, 40, 16, 41, 0],
        "frames": [1] * 5,
        "ids": encode("one two three"),
    }
    assert batches._token_spans(clip, encode) is None


# ---- the step ----


def test_gradients_pass_through_attention_as_this_machine_computes_it():
    """Large enough for the form made for CPUs; the twin that a tap asks for is plain softmax."""
    q, k, v = (mx.array(np.random.default_rng(i).normal(size=(2, 4, 64, 8)).astype(np.float32)) for i in range(3))

    def slope(tap):
        return mx.grad(lambda q: softmax_attention(q, k, v, 0.5, "causal", tap).square().sum())(q)

    np.testing.assert_allclose(np.array(slope(None)), np.array(slope(lambda *_: None)), atol=2e-5)


def test_flat_and_back():
    tree = {"a": {"b": mx.array([[1.0, 2], [3, 4]])}, "c": [mx.array([5.0]), mx.array([[[6.0]], [[7]]])]}
    flat = loop.Flat(tree)
    vector = flat.join(tree)
    assert sorted(vector.tolist()) == [1, 2, 3, 4, 5, 6, 7]
    for (n, a), (m, b) in zip(tree_flatten(tree), tree_flatten(flat.split(vector)), strict=True):
        assert n == m and a.shape == b.shape and mx.array_equal(a, b)
    doubled = flat.split(vector * 2)
    assert mx.array_equal(doubled["c"][1], tree["c"][1] * 2)


def test_adamw_is_the_textbook_s(trainer):
    """Two steps of the flat optimiser against plain numpy, decay on matrices only, gradient clipped to norm 1."""
    p = np.array(trainer.state["params"], np.float64)
    decay = np.array(
        trainer.flat.join(
            tree_map(lambda a: mx.full(a.shape, float(a.ndim >= 2)), trainer.flat.split(trainer.state["params"]))
        )
    )
    m = v = np.zeros_like(p)
    for t, scale in ((1, 5.0), (2, 1e-4)):
        g = np.random.default_rng(t).normal(0, scale, p.size)
        trainer._adamw(mx.array(g.astype(np.float32)), 0.01)
        trainer.step_number += 1
        g = g * min(1.0, 1 / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        p = p * (1 - 0.01 * 0.03 * decay) - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
    np.testing.assert_allclose(np.array(trainer.state["params"]), p, atol=2e-5)


def test_learning_rate():
    recipe = loop.Recipe(peak_rate=1.0, warmup=10)
    assert recipe.rate(0, 0) == pytest.approx(0.1) and recipe.rate(0, 99) == pytest.approx(1)
    assert recipe.rate(1, 99) == pytest.approx(0.01) == recipe.rate(2, 99) and recipe.rate(0.5, 99) == pytest.approx(
        0.505
    )
    assert type(recipe.rate(0.3, 4)) is float  # NumPy's scalars take arrays of MLX for their own


def test_the_bucket_stays_for_a_block_of_steps(shelf, tokenizer):
    prompt = transcription_ids(tokenizer)
    blocks = BatchMaker(shelf, prompt, list(BUCKETS), seed=3, block=5)
    found = [blocks(step)["bucket"] for step in range(60)]
    assert all(len(set(found[i : i + 5])) == 1 for i in range(0, 60, 5)) and len(set(found)) == 2
    assert not same(blocks(0), blocks(1))


def test_a_batch_travels_whole(maker):
    batch = maker(1)
    there = loop.on_device(batch)
    assert there.keys() == {k for k, v in batch.items() if isinstance(v, np.ndarray)}
    for name, array in there.items():
        np.testing.assert_array_equal(np.array(array), batch[name], err_msg=name)


def test_a_run_can_start_from_a_checkpoint(tokenizer, maker, shelf, tmp_path):
    taught = new_trainer(tokenizer)
    take(taught, maker, shelf, range(3))
    nano.export(taught.average, taught.config, tmp_path)
    other = new_trainer(tokenizer, seed=99)
    heads = other.flat.split(other.state["params"])["head"]
    other.start_from(tmp_path)
    for state in ("params", "average"):
        found, wanted = other.flat.split(other.state[state]), taught.average
        for (name, a), (_, b) in zip(tree_flatten(found["net"]), tree_flatten(wanted), strict=True):
            np.testing.assert_array_equal(np.array(a), np.array(b.astype(mx.float16).astype(mx.float32)), err_msg=name)
        np.testing.assert_array_equal(np.array(found["head"]["weight"]), np.array(heads["weight"]))


def take(trainer, maker, shelf, steps):
    pcm, shown = mx.array(shelf.samples(0)), []
    for step in steps:
        mx.random.seed(step)
        shown.append([float(x) for x in trainer.step(pcm, maker(step), 0.1)])
    return shown


def test_steps_lower_the_loss(tokenizer, maker, shelf):
    trainer = new_trainer(tokenizer, peak_rate=0.02)
    shown = np.array(take(trainer, maker, shelf, range(12)))
    assert np.isfinite(shown).all() and shown[-3:, 0].mean() < 0.9 * shown[:2, 0].mean()
    loss, right = trainer.evaluate(maker, mx.array(shelf.samples(0)), 1)
    assert np.isfinite(loss) and 0 <= right <= 1


def test_a_resumed_run_takes_the_same_next_step(tokenizer, maker, shelf, tmp_path):
    whole = new_trainer(tokenizer)
    take(whole, maker, shelf, range(2))
    whole.save(tmp_path / "s")
    wanted = take(whole, maker, shelf, [2])
    other = new_trainer(tokenizer, seed=99)  # starts elsewhere
    assert not other.resume(tmp_path / "nothing") and other.step_number == 0
    assert other.resume(tmp_path / "s") and other.step_number == 2
    assert take(other, maker, shelf, [2]) == wanted
    for name in whole.state:
        np.testing.assert_array_equal(np.array(whole.state[name]), np.array(other.state[name]), err_msg=name)


def test_clean_loss_is_that_of_the_facade(trainer, tokenizer, shelf, maker, tmp_path):
    """What training calls the log-probability of an answer is what the exported model gives to it."""
    take(trainer, maker, shelf, range(3))
    trainer.config, folder = trainer.config, tmp_path / "m"
    nano.export(trainer.average, trainer.config, folder)
    tokenizer.save(folder)
    model = StepAudio2.load(folder)
    assert model.report.whole and model.net.lm_head.weight.dtype == mx.float32
    x = (shelf.samples(0)[:9600] / np.float32(32768)).astype(np.float32)
    one = replace(BUCKETS[0], rows=1)
    row = {
        "segments": [(0, 9600, {"start": 0, "phonemes": None}, 1.0)],
        "ids": [70, 80],
        "length": 9600,
    }
    arrays = {
        k: mx.array(v) for k, v in BatchMaker(shelf, transcription_ids(tokenizer), [one], 0)._stack([row], one).items()
    }
    mels = augment.log_mel_batch(
        augment.gather_wave(mx.array(shelf.samples(0)), arrays, one.samples),
        arrays["length"],
        augment.clean_filters(),
    )
    params = {**trainer.flat.split(trainer.state["average"]), "net": model.net.parameters()}
    _, (text, *_) = trainer.loss(params, mels, arrays, 0.0, 0.0)
    request = model._listen(model._together([x])[0], nano.ASR_SYSTEM)
    from stepaudio.models.kv_cache import NoCache

    answer = mx.concatenate([request.embeddings, model.net.model.embed_tokens(mx.array([70, 80]))])[None]
    logits = model.net.logits(answer, NoCache(model.net.model.rope))[0, len(request.ids) - 1 :]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    wanted = -np.mean([logprobs[i, t].item() for i, t in enumerate([70, 80, tokenizer.eot])])
    assert text.item() == pytest.approx(wanted, rel=1e-3)


def test_export_is_the_average_in_half_precision(trainer, tmp_path):
    nano.export(trainer.average, trainer.config, tmp_path)
    arrays = mx.load(str(tmp_path / "model.safetensors"))
    wanted = dict(tree_flatten(trainer.average))
    assert set(arrays) == set(wanted) and all(a.dtype == mx.float16 for a in arrays.values())
    name = "model.embed_tokens.weight"
    np.testing.assert_allclose(np.array(arrays[name]), np.array(wanted[name]), rtol=1e-3, atol=1e-6)


def test_the_mean_of_two_models(tmp_path):
    def tensors(folder):
        return {k: np.array(v.astype(mx.float32)) for k, v in mx.load(str(folder / "model.safetensors")).items()}

    a, b = tiny.write(tmp_path / "a", seed=1), tiny.write(tmp_path / "b", seed=2)
    nano.average_models([a, b], tmp_path / "mean")
    one, two, mean = tensors(a), tensors(b), tensors(tmp_path / "mean")
    assert set(mean) == set(one)
    for name, value in mean.items():
        assert np.allclose(value, (one[name] + two[name]) / 2, rtol=1e-3, atol=1e-6), name
        assert not np.allclose(value, one[name], rtol=1e-3, atol=1e-6) or np.allclose(one[name], two[name]), name


def test_models_of_other_sizes_have_no_mean(tmp_path):
    a, b = tiny.write(tmp_path / "a"), tiny.write(tmp_path / "b")
    sizes = tiny.config(512)
    save_checkpoint(b, sizes, tiny.weights(sizes))
    with pytest.raises(ConfigError, match="b: its sizes are not those of .*a"):
        nano.average_models([a, b], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_the_mean_of_two_states_goes_on(trainer, tokenizer, maker, shelf, tmp_path):
    pcm = mx.array(shelf.samples(0))
    for k in range(2):
        trainer.step(pcm, maker(k), 0.1)
        trainer.save(tmp_path / str(k))
    loop.average_states([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
    a, b, mean = (mx.load(str(tmp_path / name / "state.safetensors")) for name in ("0", "1", "mean"))
    for name in ("params", "average"):
        np.testing.assert_allclose(mean[name], (np.array(a["average"]) + np.array(b["average"])) / 2, atol=1e-6)
    np.testing.assert_allclose(mean["second"], (np.array(a["second"]) + np.array(b["second"])) / 2, atol=1e-6)
    assert not np.allclose(a["average"], b["average"], atol=1e-6)
    assert trainer.resume(tmp_path / "mean") and trainer.step_number == 1
    trainer.step(pcm, maker(2), 0.1)
    with pytest.raises(DataError, match="2: no state.safetensors"):
        loop.average_states([tmp_path / "0", tmp_path / "2"], tmp_path / "mean")
    (tmp_path / "2").mkdir()
    mx.save_safetensors(str(tmp_path / "2/state.safetensors"), {k: v[:9] for k, v in a.items()}, {"step": "1"})
    with pytest.raises(DataError, match="have no mean"):
        loop.average_states([tmp_path / "0", tmp_path / "2"], tmp_path / "mean")


def test_noise_on_weights_is_a_share_of_their_size(trainer):
    trainer.recipe = replace(trainer.recipe, weight_noise=0.1)
    params = trainer.state["params"]
    still, moved = (dict(tree_flatten(trainer.flat.split(p))) for p in (params, trainer._noisy(params)))
    for name, value in still.items():
        value, noise = np.array(value), np.array(moved[name] - value)
        if value.ndim < 2:
            assert not noise.any(), name
        elif value.size > 500:
            assert noise.std() == pytest.approx(0.1 * np.sqrt((value**2).mean()), rel=0.15), name
    trainer.recipe = replace(trainer.recipe, weight_noise=0.0)
    assert trainer._noisy(params) is params


def test_rows_of_all_buckets_fill_whole_tiles():
    """Where they do not, attention has no fused gradient on CUDA, which nothing but the clock would tell."""
    prompt = transcription_ids(Tokenizer.from_folder(default_checkpoint()))
    for bucket in loop.ALL_BUCKETS:
        frames = n_mel_frames(bucket.samples)
        rows = len(prompt.before) + n_prompt_rows(frames) + len(prompt.after) + bucket.max_text
        assert -(-frames // 2) % 128 == 0 and rows % 128 == 0, bucket


def test_nano_sizes():
    config = nano.nano_config(8384)
    from stepaudio.checkpoints.layout import expected_layout

    count = sum(int(np.prod(s)) for s in expected_layout(config).values())
    assert 10e6 <= count <= 15e6 and 2 * count <= 30e6


def test_fresh_weights(trainer):
    fresh = dict(tree_flatten(trainer.flat.split(trainer.state["params"])["net"]))
    table = np.array(fresh["encoder.positional_embedding.weight"])
    np.testing.assert_allclose(table[:, :8] ** 2 + table[:, 8:] ** 2, 1, atol=1e-5)
    assert len(fresh) == len(dict(tree_flatten(trainer.average)))
