"""Training steps on nets of a few channels: exact where they can be, repeatable where not."""

import json
from dataclasses import asdict, replace

import corpora
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from stepaudio.backend.ops import attention_pattern, softmax_attention, weighted_values
from stepaudio.errors import ConfigError, DataError, WeightsError
from stepaudio.model import StepAudio2
from stepaudio.models.encoder import AudioEncoder
from stepaudio.models.parameters import named_arrays
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet
from stepaudio.train import augment, loop, nano
from stepaudio.train.batches import BatchMaker, transcription_prompt
from stepaudio.train.losses import distance
from stepaudio.train.optimiser import Flat, average_states
from stepaudio.train.recipe import Recipe
from stepaudio.train.teacher import Teacher

RATE = 16_000


def test_gradients_pass_through_attention_as_this_machine_computes_it():
    """Large enough for the form made for CPUs, against the softmax written out."""
    q, k, v = (mx.array(np.random.default_rng(i).normal(size=(2, 4, 64, 8)).astype(np.float32)) for i in range(3))

    def explicit(q):
        return weighted_values(attention_pattern(q, k, 0.5, "causal"), v)

    quick, plain = (
        mx.grad(lambda q, f=f: f(q).square().sum())(q)
        for f in (lambda q: softmax_attention(q, k, v, 0.5, "causal"), explicit)
    )
    np.testing.assert_allclose(np.array(quick), np.array(plain), atol=2e-5)


def test_flat_and_back():
    tree = {"a": {"b": mx.array([[1.0, 2], [3, 4]])}, "c": [mx.array([5.0]), mx.array([[[6.0]], [[7]]])]}
    flat = Flat(tree)
    vector = flat.join(tree)
    assert sorted(value for value in vector.tolist() if value) == [1, 2, 3, 4, 5, 6, 7]
    for (n, a), (m, b) in zip(tree_flatten(tree), tree_flatten(flat.split(vector)), strict=True):
        assert n == m and a.shape == b.shape and mx.array_equal(a, b)
    doubled = flat.split(vector * 2)
    assert mx.array_equal(doubled["c"][1], tree["c"][1] * 2)


def test_every_array_begins_where_a_matrix_product_can_read_it():
    """Behind arrays of odd sizes too; the places between are zero, and no gradient reaches them."""
    tree = {f"p{n}": mx.full((n,), float(n)) for n in (2, 64, 1, 300, 7)}
    flat = Flat(tree)
    vector = flat.join(tree)
    assert [start * 4 % 256 for start in flat.starts] == [0] * 5
    assert vector.size == 64 + 64 + 64 + 320 + 64 and vector.sum().item() == 2**2 + 64**2 + 1 + 300**2 + 7**2
    assert all((part == tree[name]).all().item() for name, part in flat.split(vector).items())
    slope = np.array(mx.grad(lambda v: sum(part.sum() for part in flat.split(v).values()))(vector))
    assert slope.sum() == 2 + 64 + 1 + 300 + 7 and (slope == (np.array(vector) != 0)).all()


def test_updates_are_adamw_as_published(trainer):
    """Two steps of the flat optimiser against plain numpy, decay on matrices only, gradient clipped to norm 1."""
    p = np.array(trainer.state["params"], np.float64)
    decay = np.array(
        trainer.flat.join(
            tree_map(lambda a: mx.full(a.shape, float(a.ndim >= 2)), trainer.flat.split(trainer.state["params"]))
        )
    )
    m = v = np.zeros_like(p)
    average = p
    for t, scale in ((1, 5.0), (2, 1e-4)):
        g = np.random.default_rng(t).normal(0, scale, p.size)
        trainer._update(mx.array(g.astype(np.float32)), 0.01)
        trainer.step_number += 1
        g = g * min(1.0, 1 / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        p = p * (1 - 0.01 * 0.03 * decay) - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
        average = average * t / (t + 10) + p * 10 / (t + 10)  # which early on forgets sooner than 0.9995
    np.testing.assert_allclose(np.array(trainer.state["params"]), p, atol=2e-5)
    np.testing.assert_allclose(np.array(trainer.state["average"]), average, atol=2e-5)


def test_learning_rate():
    recipe = Recipe(peak_rate=1.0, warmup=10)
    assert recipe.rate(0, 0) == pytest.approx(0.1) and recipe.rate(0, 99) == pytest.approx(1)
    assert recipe.rate(1, 99) == pytest.approx(0.01) == recipe.rate(2, 99) and recipe.rate(0.5, 99) == pytest.approx(
        0.505
    )
    assert type(recipe.rate(0.3, 4)) is float  # NumPy's scalars take arrays of MLX for their own


def test_a_batch_travels_whole(maker):
    batch = maker(1)
    there = loop.on_device(batch)
    assert there.keys() == {k for k, v in batch.items() if isinstance(v, np.ndarray)}
    for name, array in there.items():
        np.testing.assert_array_equal(np.array(array), batch[name], err_msg=name)


def test_a_run_can_start_from_a_checkpoint(tokenizer, maker, stock, tmp_path):
    taught = corpora.new_trainer(tokenizer)
    take(taught, maker, stock, range(3))
    nano.export(taught.average, taught.config, tmp_path)
    other = corpora.new_trainer(tokenizer, seed=99)
    heads = other.flat.split(other.state["params"])["head"]
    other.start_from(tmp_path)
    for state in ("params", "average"):
        found, wanted = other.flat.split(other.state[state]), taught.average
        for (name, a), (_, b) in zip(tree_flatten(found["net"]), tree_flatten(wanted), strict=True):
            np.testing.assert_array_equal(np.array(a), np.array(b.astype(mx.float16).astype(mx.float32)), err_msg=name)
        np.testing.assert_array_equal(np.array(found["head"]["weight"]), np.array(heads["weight"]))


def an_encoder(tokenizer):
    """Arrays of an encoder of the size that small trainers have, with one layer more."""
    sizes = corpora.new_trainer(tokenizer).config.audio_encoder_config
    net = AudioEncoder(replace(sizes, n_audio_layer=sizes.n_audio_layer + 1))
    return {name: value.astype(mx.float16) for name, value in named_arrays(net.parameters())}


def test_a_kept_encoder_stays_as_it_is_and_the_rest_learns(tokenizer, maker, stock, tmp_path):
    kept = an_encoder(tokenizer)
    trainer = corpora.new_trainer(tokenizer, encoder=kept, peak_rate=0.02, dropout=0.2)
    shown = np.array(take(trainer, maker, stock, range(12)))
    assert np.isfinite(shown).all() and shown[-3:, 0].mean() < 0.9 * shown[:2, 0].mean()
    assert shown[-3:, 1].mean() < shown[:2, 1].mean()  # the phonemes, told from the audio embeddings
    nano.export(trainer.average, trainer.config, tmp_path)
    tokenizer.save(tmp_path)
    net = StepAudio2.load(tmp_path).net
    for name, value in named_arrays(net.encoder.parameters()):
        np.testing.assert_array_equal(np.array(value), np.array(kept[name].astype(mx.float32)), err_msg=name)
    trainer.save(tmp_path / "s")
    wanted = take(trainer, maker, stock, [12])
    other = corpora.new_trainer(tokenizer, encoder=kept, peak_rate=0.02, dropout=0.2, seed=99)
    assert other.resume(tmp_path / "s") and take(other, maker, stock, [12]) == wanted


def test_beside_a_kept_encoder_a_checkpoint_gives_its_decoder(tokenizer, trainer, tmp_path):
    nano.export(trainer.average, trainer.config, tmp_path)
    other = corpora.new_trainer(tokenizer, encoder=an_encoder(tokenizer), seed=99)
    adapter = dict(named_arrays(other.average["adapter"]))
    other.start_from(tmp_path)
    for part in ("model", "lm_head"):
        for (name, a), (_, b) in zip(
            named_arrays(other.average[part]), named_arrays(trainer.average[part]), strict=True
        ):
            np.testing.assert_array_equal(np.array(a), np.array(b.astype(mx.float16).astype(mx.float32)), err_msg=name)
    for name, value in named_arrays(other.average["adapter"]):
        np.testing.assert_array_equal(np.array(value), np.array(adapter[name]), err_msg=name)
    wide = replace(other.config.text_config, intermediate_size=32)
    other.config = replace(other.config, text_config=wide)
    with pytest.raises(ConfigError, match="neither its encoder nor its decoder"):
        other.start_from(tmp_path)


def of_another_width(tokenizer, folder):
    """A saved model with an encoder twice as wide, other mel bands, and the audio embeddings of small trainers."""
    config = corpora.sizes(-(-tokenizer.n_ids // 64) * 64)
    audio = replace(config.audio_encoder_config, n_audio_state=32, n_audio_head=4, n_mels=80)
    config = replace(config, audio_encoder_config=audio)
    nano.export(loop.initialise(StepAudioNet(config)), config, folder)
    tokenizer.save(folder)
    return folder


def test_a_teacher_hears_the_examples_as_they_were_spoken(tokenizer, maker, stock, tmp_path):
    """Its audio embeddings are those that the saved model gives to the same samples, each example alone."""
    model = StepAudio2.load(of_another_width(tokenizer, tmp_path / "m"))
    config, pcm = corpora.new_trainer(tokenizer).config, mx.array(stock.samples(0))
    teacher, whole, seen = Teacher(tmp_path / "m", config, mx.float32), stock.samples(0) / np.float32(32768), 0
    for step in range(4):
        batch = maker(step)
        N = corpora.BUCKETS[batch["bucket"]].samples
        found, counts = (np.array(x) for x in teacher(pcm, loop.on_device(batch), N))
        for b, n in enumerate(batch["length"]):
            wave = np.zeros(n, np.float32)
            for first, last, start, rate in zip(
                *(batch[k][b] for k in ("begin", "stop", "start", "rate")), strict=True
            ):
                at = np.arange(max(0, min(last, n) - first)) * rate
                wave[first : first + len(at)] = np.interp(at + start, np.arange(len(whole)), whole)
            (wanted,) = model.engine.encode_audio([model.engine.log_mel(wave)])
            np.testing.assert_allclose(found[b, : len(wanted)], np.array(wanted), atol=2e-3 * np.abs(wanted).max())
            assert counts[b].sum() == len(wanted) * batch["taught"][b]
            seen += batch["taught"][b]
    assert seen > 4


def test_the_audio_embeddings_come_near_to_a_teacher_s(tokenizer, maker, stock, tmp_path):
    folder = of_another_width(tokenizer, tmp_path)
    trainer = corpora.new_trainer(tokenizer, encoder=an_encoder(tokenizer), teacher=folder, peak_rate=0.02)
    shown = np.array(take(trainer, maker, stock, range(16)))
    assert shown.shape[1] == len(loop.SHOWN)
    assert shown[-4:, 4].mean() < shown[0, 4] / 3  # of clips of white noise, hardly below 1: what their mean would have
    text, audio = trainer.config.text_config, trainer.config.audio_encoder_config
    wide = StepAudioConfig(replace(text, hidden_size=32), replace(audio, llm_dim=32))
    with pytest.raises(ConfigError, match=r"have \(channels, stride\) \(16, 2\), those of .* \(32, 2\)"):
        Teacher(folder, wide, mx.float32)


def test_distance_from_a_teacher():
    """Against numpy's variance; places that do not count change nothing."""
    rng = np.random.default_rng(0)
    found, wanted = rng.normal(size=(2, 3, 5, 4)) * [1, 2, 3, 40]
    counts = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    hidden = np.where(counts[..., None], wanted, 1e3)
    near = float(distance(mx.array(found), mx.array(hidden), mx.array(counts)))
    assert near == pytest.approx((((found - wanted)[counts] ** 2).mean(0) / wanted[counts].var(0)).mean(), rel=1e-4)
    assert float(distance(mx.array(wanted), mx.array(wanted), mx.array(counts))) == 0
    assert float(distance(mx.array(found), mx.array(wanted), mx.array(counts & False))) == 0


def test_a_decoder_can_stay_as_it_is_or_follow_slowly(tokenizer, maker, stock, tmp_path):
    """At rate 0 to the bit, also after it is saved, resumed and exported; at a hundredth it moves less than a tenth."""
    taught = corpora.new_trainer(tokenizer)
    take(taught, maker, stock, range(2))
    nano.export(taught.average, taught.config, tmp_path / "m")
    moved = {}
    for rate in (0.0, 0.01, 1.0):
        trainer = corpora.new_trainer(tokenizer, encoder=an_encoder(tokenizer), decoder_rate=rate, peak_rate=0.02)
        trainer.start_from(tmp_path / "m")
        shown = np.array(take(trainer, maker, stock, range(6)))
        assert np.isfinite(shown).all()
        moved[rate] = max(
            np.abs(np.array(a) - np.array(b.astype(mx.float16).astype(mx.float32))).max()
            for part in loop.DECODER
            for (_, a), (_, b) in zip(
                named_arrays(trainer.average[part]), named_arrays(taught.average[part]), strict=True
            )
        )
        if rate == 0:
            logits = trainer.net.lm_head.weight
            np.testing.assert_array_equal(np.array(logits), np.array(trainer.kept["lm_head"]["weight"]))
            nano.export(trainer.average, trainer.config, tmp_path / "n")
            for name, value in mx.load(str(tmp_path / "n/model.safetensors")).items():
                if name.startswith(loop.DECODER):
                    was = mx.load(str(tmp_path / "m/model.safetensors"))[name]
                    np.testing.assert_array_equal(np.array(value), np.array(was), err_msg=name)
    assert moved[0.0] == 0 < moved[0.01] < moved[1.0] / 10


def test_a_decoder_kept_from_nowhere_is_refused(tokenizer, tmp_path):
    corpora.write(tmp_path / "c")
    tokenizer.save(tmp_path / "words")
    recipe = Recipe(steps=1, workers=1, buckets=corpora.BUCKETS, decoder_rate=0.0)
    with pytest.raises(ConfigError, match="no checkpoint to start from"):
        loop.run(recipe, corpora.sizes(384), [tmp_path / "c"], tmp_path / "words", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_s_file_is_read_or_refused(tmp_path):
    (tmp_path / "text").write_text("no tensors")
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {"model.norm.weight": mx.zeros(3)})
    with pytest.raises(WeightsError, match="text: claims a header"):
        nano.read_encoder(tmp_path / "text")
    with pytest.raises(DataError, match="expected arrays named encoder"):
        nano.read_encoder(tmp_path / "other.safetensors")


def take(trainer, maker, stock, steps):
    pcm, shown = mx.array(stock.samples(0)), []
    for step in steps:
        mx.random.seed(step)
        shown.append([float(x) for x in trainer.step(pcm, maker(step), 0.1)])
    return shown


def test_steps_lower_the_loss(tokenizer, maker, stock):
    trainer = corpora.new_trainer(tokenizer, peak_rate=0.02)
    shown = np.array(take(trainer, maker, stock, range(12)))
    assert np.isfinite(shown).all() and shown[-3:, 0].mean() < 0.9 * shown[:2, 0].mean()
    loss, right = trainer.evaluate(maker, mx.array(stock.samples(0)), 1)
    assert np.isfinite(loss) and 0 <= right <= 1


def test_a_resumed_run_takes_the_same_next_step(tokenizer, maker, stock, tmp_path):
    whole = corpora.new_trainer(tokenizer)
    take(whole, maker, stock, range(2))
    whole.save(tmp_path / "s")
    wanted = take(whole, maker, stock, [2])
    other = corpora.new_trainer(tokenizer, seed=99)  # starts elsewhere
    assert not other.resume(tmp_path / "nothing") and other.step_number == 0
    assert other.resume(tmp_path / "s") and other.step_number == 2
    assert take(other, maker, stock, [2]) == wanted
    for name in whole.state:
        np.testing.assert_array_equal(np.array(whole.state[name]), np.array(other.state[name]), err_msg=name)


def test_clean_loss_is_that_of_the_exported_model(trainer, tokenizer, stock, maker, tmp_path):
    """What training calls the log-probability of an answer is what the exported model gives to it."""
    take(trainer, maker, stock, range(3))
    trainer.config, folder = trainer.config, tmp_path / "m"
    nano.export(trainer.average, trainer.config, folder)
    tokenizer.save(folder)
    model = StepAudio2.load(folder)
    assert model.report.whole and model.net.lm_head.weight.dtype == mx.float32
    x = (stock.samples(0)[:9600] / np.float32(32768)).astype(np.float32)
    one = replace(corpora.BUCKETS[0], rows=1)
    row = {
        "segments": [(0, 9600, {"start": 0, "phonemes": None}, 1.0)],
        "tokens": [70, 80],
        "length": 9600,
    }
    arrays = {
        k: mx.array(v)
        for k, v in BatchMaker(stock, transcription_prompt(tokenizer), [one], 0)._stack([row], one).items()
    }
    mels = augment.log_mel_batch(
        augment.gather_wave(mx.array(stock.samples(0)), arrays, one.samples),
        arrays["length"],
        augment.clean_filters(),
    )
    params = {**trainer.flat.split(trainer.state["average"]), "net": model.net.parameters()}
    _, (text, *_) = trainer.loss(params, mels, arrays, 0.0, 0.0)
    (encoded,) = model.engine.encode_audio([model.engine.log_mel(x)])
    request = model.engine.transcription_request(encoded, nano.ASR_SYSTEM)
    from stepaudio.models.kv_cache import NoCache

    answer = mx.concatenate([request.embeddings, model.net.model.embed_tokens(mx.array([70, 80]))])[None]
    logits = model.net.logits(answer, NoCache(model.net.model.rope))[0, len(request.tokens) - 1 :]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    wanted = -np.mean([logprobs[i, t].item() for i, t in enumerate([70, 80, tokenizer.eot])])
    assert text.item() == pytest.approx(wanted, rel=1e-3)


def test_the_mean_of_two_states_goes_on(trainer, tokenizer, maker, stock, tmp_path):
    pcm = mx.array(stock.samples(0))
    for k in range(2):
        trainer.step(pcm, maker(k), 0.1)
        trainer.save(tmp_path / str(k))
    average_states([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
    a, b, mean = (mx.load(str(tmp_path / name / "state.safetensors")) for name in ("0", "1", "mean"))
    for name in ("params", "average"):
        np.testing.assert_allclose(mean[name], (np.array(a["average"]) + np.array(b["average"])) / 2, atol=1e-6)
    np.testing.assert_allclose(mean["second"], (np.array(a["second"]) + np.array(b["second"])) / 2, atol=1e-6)
    assert not np.allclose(a["average"], b["average"], atol=1e-6)
    assert trainer.resume(tmp_path / "mean") and trainer.step_number == 1
    trainer.step(pcm, maker(2), 0.1)
    with pytest.raises(DataError, match="2: no state.safetensors"):
        average_states([tmp_path / "0", tmp_path / "2"], tmp_path / "mean")
    (tmp_path / "2").mkdir()
    mx.save_safetensors(str(tmp_path / "2/state.safetensors"), {k: v[:9] for k, v in a.items()}, {"step": "1"})
    with pytest.raises(DataError, match="have no mean"):
        average_states([tmp_path / "0", tmp_path / "2"], tmp_path / "mean")


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


def test_a_run_writes_what_it_rests_on_and_can_go_on(tokenizer, tmp_path):
    corpora.write(tmp_path / "c")
    tokenizer.save(tmp_path / "words")
    recipe = Recipe(steps=4, warmup=2, workers=1, log_every=2, buckets=corpora.BUCKETS)
    saved = []

    def go_on(recipe, **options):
        return loop.run(recipe, corpora.sizes(384), [tmp_path / "c"], tmp_path / "words", tmp_path / "out",
                        on_save=lambda t: saved.append(t.step_number), **options)  # fmt: skip

    assert go_on(recipe).step_number == 4 and saved == [4]
    assert go_on(replace(recipe, steps=6), resume=tmp_path / "out" / "checkpoint").step_number == 6
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 2, 4, None, 4, 6]
    assert lines[0]["clips"] == 5 and lines[3] == lines[0] | {"seconds": lines[3]["seconds"]}
    assert lines[4]["event"] == "resumed" and all(np.isfinite(line["text"]) for line in lines if "text" in line)
    words = dict(line.split("\t") for line in (tmp_path / "out" / "words.txt").read_text().splitlines())
    assert words == {"the": "3", "cat": "1", "sat": "1", "on": "1", "mat": "1", "what": "1", "is": "1", "time": "1",
                     "now": "1"}  # fmt: skip
    facts = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert (facts["clips"], facts["words"], facts["distinct_words"]) == (5, 11, 9)
    assert facts["recipe"]["steps"] == 6 and facts["recipe"]["buckets"][0] == asdict(corpora.BUCKETS[0])


def test_fresh_weights(trainer):
    fresh = dict(tree_flatten(trainer.flat.split(trainer.state["params"])["net"]))
    table = np.array(fresh["encoder.positional_embedding.weight"])
    np.testing.assert_allclose(table[:, :8] ** 2 + table[:, 8:] ** 2, 1, atol=1e-5)
    assert len(fresh) == len(dict(tree_flatten(trainer.average)))
