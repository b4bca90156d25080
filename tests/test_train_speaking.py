"""Training the speaking half on seconds of made-up sound and nets of a few channels.

Front ends and losses are compared with the host's or PyTorch's; each net's gradient reaches every weight, its loss
falls on one batch, and what is written loads as the nets of the product.
"""

import json
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from stepaudio.backend import on_cuda
from stepaudio.errors import DataError
from stepaudio.mel import log_mel
from stepaudio.mel_speaking import flow_mel, kaldi_fbank
from stepaudio.token2wav.components import build
from stepaudio.token2wav.config import HiftConfig
from stepaudio.token2wav.random_weights import sizes
from stepaudio.token2wav.s3 import S3Config, S3Tokenizer
from stepaudio.token2wav.speaker import BatchNorm, SpeakerConfig
from stepaudio.token2wav.synthesizer import Synthesizer
from stepaudio.train import fit, flow, front_ends, speaking, speech_tokenizer, vocoder, voices
from stepaudio.train.speaking_corpus import CODE_HOP, LEAD, PHONEME_HOP, PITCH_HOP, SpeakingCorpus, melody

RATE = 24_000
SMALL = sizes("small")
TOKENIZER = S3Config(n_audio_state=32, n_audio_head=2, n_audio_layer=1)
SPEAKER = SpeakerConfig(embedding_size=8, growth_rate=4, bn_size=2, init_channels=8, blocks=((2, 3, 1), (2, 3, 2)),
                        fcm_channels=4)
SMALL_FLOW = flow.size
HIFT = HiftConfig(base_channels=16, f0_cond_channels=16)


def write_clips(folder, persons=2, each=4, seconds=1.0, name="a"):
    """Clips of harmonics at each person's pitch; phoneme 10 + person lasts the clip, silence a frame at both ends."""
    folder.mkdir(exist_ok=True)
    n, lines, pcm, f0 = round(seconds * RATE), [], [], []
    for k in range(persons * each):
        who = k % persons
        hertz, t = 110.0 * (1 + who) + k, np.arange(n) / RATE
        wave = sum(np.sin(2 * np.pi * hertz * h * t) / h for h in range(1, 12)) * 0.15
        wave = wave + np.random.default_rng(k).normal(0, 0.003, n)
        frames = n // PHONEME_HOP
        lines.append({"id": str(k), "offset": k * n, "n_samples": n, "person": who, "ids": [0, 10 + who, 0],
                      "durations": [1, frames - 2, 1]})
        pcm.append((wave * 32767).clip(-32768, 32767).astype(np.int16))
        f0.append(np.full(n // PITCH_HOP, hertz, np.float16))
    np.concatenate(pcm).tofile(folder / f"{name}.pcm")
    np.concatenate(f0).tofile(folder / f"{name}.f0")
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return SpeakingCorpus([write_clips(tmp_path_factory.mktemp("speech"))])


def some_sound(n, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(n) / RATE
    return (0.3 * np.sin(2 * np.pi * 300 * t) + rng.normal(0, 0.05, n)).astype(np.float32)


# ---- the corpus ----


def test_clips_are_sorted_by_person_with_all_that_belongs_to_them(tmp_path):
    """Each stretch of the row is a clip of the file, its pitch and its phonemes beside it."""
    folder = write_clips(tmp_path / "s", persons=3, each=2)
    found = SpeakingCorpus([folder])
    assert found.persons == [0, 1, 2] and found.edges.tolist() == [0, 2 * RATE, 4 * RATE, 6 * RATE]
    assert found.hours == pytest.approx(6 / 3600)
    raw, f0 = np.fromfile(folder / "a.pcm", np.int16), np.fromfile(folder / "a.f0", np.float16)
    for at in range(0, 6 * RATE, RATE):
        hertz = found.pitch[at // PITCH_HOP]
        clip = int(np.flatnonzero(f0 == hertz)[0]) // (RATE // PITCH_HOP)
        assert (found.pcm[at : at + RATE] == raw[clip * RATE : (clip + 1) * RATE]).all()
        heard = found.phonemes[at // PHONEME_HOP : (at + RATE) // PHONEME_HOP]
        assert set(heard[: -1 - LEAD]) == {11 + clip % 3} and set(heard[-1 - LEAD :]) == {1}


def test_hours_bound_the_corpus_and_broken_lines_are_left_out(tmp_path):
    folder = write_clips(tmp_path / "s", persons=1, each=6)
    assert SpeakingCorpus([folder], hours=2.5 / 3600).hours == pytest.approx(2 / 3600)
    text = (folder / "a.jsonl").read_text()
    (folder / "a.jsonl").write_text(text[:-20])
    assert SpeakingCorpus([folder]).hours == pytest.approx(5 / 3600)


def test_a_clip_that_is_no_whole_number_of_codes_is_refused(tmp_path):
    folder = write_clips(tmp_path / "s", persons=1, each=1, seconds=1.0)
    line = json.loads((folder / "a.jsonl").read_text())
    (folder / "a.jsonl").write_text(json.dumps(line | {"n_samples": RATE - 600}) + "\n")
    with pytest.raises(DataError, match="whole number of codes"):
        SpeakingCorpus([folder])
    with pytest.raises(DataError, match="no clips"):
        SpeakingCorpus([tmp_path])


def test_windows_lie_within_one_person(corpus):
    """Starts are whole codes; a window and its person agree; too long a window is refused."""
    start, who = corpus.windows(np.random.default_rng(0), 200, 2 * RATE)
    assert (start % CODE_HOP == 0).all() and set(who) == {0, 1}
    assert (start >= corpus.edges[who]).all() and (start + 2 * RATE <= corpus.edges[who + 1]).all()
    with pytest.raises(DataError, match="nobody speaks for 5.0 s"):
        corpus.windows(np.random.default_rng(0), 4, 5 * RATE)


def test_melody_is_the_logarithm_above_the_clips_mean():
    assert np.allclose(melody(np.array([0, 100, 400, 0], np.float32)), [0, -np.log(2), np.log(2), 0], atol=1e-6)
    assert (melody(np.zeros(5, np.float32)) == 0).all()


# ---- front ends ----


def test_flow_mels_are_the_hosts():
    """A mirrored row is `flow_mel`; a long recording agrees with it away from its ends, and whatever its blocks."""
    x = some_sound(24_000)
    mirrored = front_ends.flow_mel_batch(front_ends.mirrored(mx.array(x)[None], 720))[0]
    assert np.abs(np.array(mirrored).T - flow_mel(x)).max() < 2e-3
    pcm = (x * 32767).astype(np.int16)
    whole = np.array(front_ends.flow_mels(mx.array(pcm)).astype(mx.float32))
    assert whole.shape == (50, 80) and np.abs(whole[2:-2].T - flow_mel(x)[:, 2:-2]).max() < 0.05


def test_flow_mels_do_not_depend_on_blocks(monkeypatch):
    pcm = mx.array((some_sound(48_000) * 32767).astype(np.int16))
    whole = np.array(front_ends.flow_mels(pcm))
    monkeypatch.setattr(front_ends, "BLOCK", 480 * 7)
    assert (np.array(front_ends.flow_mels(pcm)) == whole).all()


def test_filterbanks_are_kaldis():
    for n in (8_000, 8_079, 8_160):
        x = some_sound(n)
        found = np.array(front_ends.fbank_batch(mx.array(np.stack([x, 2 * x]))))
        assert found.shape[1:] == kaldi_fbank(x).shape
        assert np.abs(found[0] - kaldi_fbank(x)).max() < 2e-3


def test_resampling_keeps_what_16k_can_hold(monkeypatch):
    """A tone of 3 kHz comes out as itself, one of 9 kHz not at all; blocks do not show."""
    t24, t16 = np.arange(48_000) / 24_000, np.arange(32_000) / 16_000
    for hertz, gain in ((3_000, 1), (9_000, 0)):
        x = (8_000 * np.sin(2 * np.pi * hertz * t24)).astype(np.int16)
        y = np.array(front_ends.at_16k(x)).astype(float)
        assert np.abs(y - gain * 8_000 * np.sin(2 * np.pi * hertz * t16))[200:-200].max() < 30
    monkeypatch.setattr(front_ends, "BLOCK", 999)
    assert (np.array(front_ends.at_16k(x)) == y).all()


def test_frames_stand_side_by_side():
    x = np.arange(100, dtype=np.float32)[None]
    found = np.array(front_ends.frames_of(mx.array(x), 20, 5))
    assert (found == np.lib.stride_tricks.sliding_window_view(x, 20, axis=1)[:, ::5]).all()


# ---- the speech tokenizer ----


def tokenizer_batch(corpus, rows=2, codes=12):
    return speech_tokenizer.Batches(corpus, rows, codes, seed=1)(0)


def test_rounding_passes_the_gradient():
    x = mx.array([-0.9, -0.2, 0.4, 0.6])
    assert np.array(speech_tokenizer.rounded(x)).tolist() == [-1, 0, 0, 1]
    slope = mx.grad(lambda x: (speech_tokenizer.rounded(x) * mx.array([1.0, 2.0, 3.0, 4.0])).sum())(x)
    assert np.array(slope).tolist() == [1, 2, 3, 4]


def test_trained_numbers_are_the_products_codes(corpus):
    """What the loss rounds are the digits of the code that the net gives in use."""
    net, params = speech_tokenizer.begin(TOKENIZER, 0)
    net.update(params["net"])
    mel = log_mel(some_sound(16_000), padding=0)
    soft = speech_tokenizer.soft_numbers(net, mx.array(mel.T)[None])
    digits = np.array(mx.round(soft))[0].astype(int) + 1
    assert ((digits * 3 ** np.arange(8)).sum(1) == net(mel[None])[0]).all()
    assert len(np.unique(digits)) > 1


def test_labels_are_the_phonemes_of_each_mel_frame(corpus):
    """At the rate 1, frame i of a row that begins at sample s of 16 kHz has the phoneme at s + 320 (i + 1/2)."""
    batches = speech_tokenizer.Batches(corpus, 3, 12, seed=1)
    told = batches.described(5)
    found = batches(5)
    for row in range(3):
        seconds = (told["start"][row] + (np.arange(24) + 0.5) * 320 * told["rate"][row]) / 16_000
        expected = corpus.phonemes[(seconds / 0.025 + 1e-4).astype(int)]
        assert (np.array(found["phonemes"])[row] == expected).mean() > 0.95
        assert (np.array(found["phonemes"])[row] == np.array(found["phonemes"])[row + 3]).all()
    assert found["mel"].shape == (6, 48, 128)


def test_codes_of_a_long_recording_are_those_of_the_clip():
    """Stretches with margins give what one clip gives, but near its ends."""
    net, params = speech_tokenizer.begin(TOKENIZER, 0)
    net.update(params["net"])
    x = some_sound(16_000 * 6)
    pcm = (x * 32767).astype(np.int16)
    found = speech_tokenizer.codes_of(net, mx.array(pcm), rows=2, seconds=3.2, margin=0.8)
    whole = net(log_mel(pcm.astype(np.float32) / 32768, padding=0)[None])[0]
    assert found.shape == whole.shape and (found == whole)[25:-25].mean() > 0.6


def test_rows_are_rounded_more_and_more(corpus):
    batches = speech_tokenizer.Batches(corpus, 64, 12, seed=1)
    shares = [batches.rounded_rows(step).mean() for step in (0, speech_tokenizer.ROUNDED_AT // 2, 10**6)]
    assert shares[0] == 0 and 0.25 < shares[1] < 0.55 and 0.7 < shares[2] < 0.9


def test_numbers_that_are_all_alike_cost_something(corpus):
    """With the net's last layer shut every code is the same, and `narrow` is all of the spread that is asked for."""
    net, params = speech_tokenizer.begin(TOKENIZER, 0)
    batch, shown = tokenizer_batch(corpus), []
    for gain in (1.0, 0.0):
        narrow = params["net"]["quantizer"]["_codebook"]["project_down"]
        narrow["weight"] = narrow["weight"] * gain
        shown.append(speech_tokenizer.loss(params, batch, net)[1]["narrow"].item())
    assert shown[0] < 0.3 and shown[1] == pytest.approx(speech_tokenizer.SPREAD, abs=0.01)


# ---- the vocoder ----


def test_the_source_is_the_products(corpus):
    """Without noise the source on the accelerator is that of the net in use, for a short row."""
    net, params = vocoder.begin(HIFT, 0)
    net.update(params)
    f0 = mx.array(np.array([[0, 0, 120, 130, 140, 150, 0, 0, 200, 210]], np.float32))
    quiet = HiftConfig(base_channels=16, f0_cond_channels=16, nsf_sigma=0.0, nsf_alpha=0.1)
    found = np.array(vocoder.source_of(net.m_source, f0, quiet, mx.random.key(0)))
    expected = np.array(net.m_source(f0, None))
    voiced = np.repeat(np.array(f0)[0] > 0, 480)
    assert np.abs(found - expected)[0, voiced].max() < 2e-3 and np.abs(found[0, ~voiced]).max() > 0


@pytest.mark.skipif(not on_cuda(), reason="needs CUDA")
def test_the_fused_snake_is_the_products_and_so_is_its_gradient():
    assert vocoder.can_fuse()


def test_spectral_loss_is_torchs():
    torch = pytest.importorskip("torch")
    a, b = some_sound(6_000, 0), some_sound(6_000, 1) * 0.5
    total = 0.0
    for size, hop in vocoder.RESOLUTIONS:
        spectra = []
        for x in (a, b):
            s = torch.stft(torch.tensor(x[: len(x) // hop * hop]), size, hop, window=torch.hann_window(size),
                           center=False, return_complex=True)
            spectra.append(torch.sqrt(s.real**2 + s.imag**2 + 1e-9))
        floor = vocoder.QUIET * (size / 1024) ** 0.5
        total += (torch.log(spectra[0] + floor) - torch.log(spectra[1] + floor)).abs().mean()
        total += torch.linalg.norm(spectra[0] - spectra[1]) / torch.linalg.norm(spectra[1])
    found = vocoder.spectral_loss(mx.array(a)[None], mx.array(b)[None]).item()
    assert found == pytest.approx(total.item() / len(vocoder.RESOLUTIONS), rel=1e-3)
    assert vocoder.spectral_loss(mx.array(a)[None], mx.array(a)[None]).item() < 1e-4


def test_the_vocoders_rows_are_its_mels_sound_and_pitch(corpus):
    """The clean mel is that of the sound of the row, and the pitch that of its person."""
    batch, n = vocoder.Batches(corpus, 3, 20, seed=2, blemish=0.0)(0), len(corpus.pcm) + 1 - 9600 - 720
    again = front_ends.flow_mel_batch(front_ends.mirrored(batch["wave"], 720))
    assert np.abs(np.array(again - batch["mel_clean"]))[:, 2:-2].max() < 1e-3
    assert (np.array(batch["mel"]) == np.array(batch["mel_clean"])).all()
    assert (np.array(batch["f0"]) > 100).all() and batch["wave"].shape == (3, 9600)
    for wave, first in zip(np.array(batch["wave"]), np.random.default_rng((2, 0)).integers(720, n, 3), strict=True):
        true = corpus.pcm[first : first + 9600] / 32768
        gain = (wave * true).sum() / (true * true).sum()
        assert 0.1 < gain < 1.5 and np.abs(wave - gain * true).max() < 1e-5


# ---- the speaker encoder ----


def test_live_norms_are_torchs_in_training_and_settle_to_what_they_saw():
    torch = pytest.importorskip("torch")
    net, _ = voices.begin(SPEAKER, 4, 0)
    x = mx.array(np.random.default_rng(0).normal(2, 3, (4, 50, 8)).astype(np.float32))
    norm = net.xvector.tdnn.nonlinear.batchnorm
    twin = torch.nn.BatchNorm1d(8)
    expected = twin(torch.tensor(np.array(x)).transpose(1, 2)).transpose(1, 2).detach().numpy()
    assert np.abs(np.array(norm(x)) - expected).max() < 1e-4
    features = mx.array(np.random.default_rng(1).normal(0, 1, (6, 120, 80)).astype(np.float32))
    before = np.array(net(features))
    voices.settle(net, [features])
    assert type(norm) is BatchNorm and np.abs(np.array(net(features)) - before).max() < 1e-2
    assert np.abs(np.array(norm.running_mean)).max() > 0


def test_the_margin_makes_the_right_answer_harder():
    """As the formula says, cos(angle + margin), in PyTorch."""
    torch = pytest.importorskip("torch")
    net, params = voices.begin(SPEAKER, 5, 0)
    batch = {"features": mx.random.normal((3, 60, 80), key=mx.random.key(0)), "voice": mx.array([0, 3, 4]),
             "margin": mx.array(0.3)}
    found, shown = voices.loss(params, batch, net)
    x = torch.tensor(np.array(net(batch["features"])))
    angle = torch.acos(torch.nn.functional.cosine_similarity(
        x[:, None], torch.tensor(np.array(params["voices"]))[None], dim=-1))
    angle[torch.arange(3), torch.tensor([0, 3, 4])] += 0.3
    expected = torch.nn.functional.cross_entropy(voices.SCALE * torch.cos(angle), torch.tensor([0, 3, 4]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-3) and "right" in shown


def test_the_margin_comes_late_and_gradually(corpus):
    batches = voices.Batches(corpus, 2, 0.5, seed=0)
    half = voices.MARGIN_FROM + voices.MARGIN_STEPS // 2
    found = [batches(step)["margin"].item() for step in (0, voices.MARGIN_FROM, half, 10 * half)]
    assert found == pytest.approx([0, 0, voices.MARGIN / 2, voices.MARGIN])


def test_each_speed_is_a_voice_of_its_own(corpus, monkeypatch):
    monkeypatch.setattr(voices, "SPEEDS", (0.88, 1.0, 1.13))
    batches = voices.Batches(corpus, 16, 0.5, seed=0)
    assert batches.n_voices == 2 * len(voices.SPEEDS)
    assert len(np.unique(np.array(batches(0)["voice"]))) > 2 and batches(0)["features"].shape == (16, 48, 80)


def test_vectors_come_from_each_person(tmp_path):
    """Stretches of the one who is silent are all alike, those of the other are not."""
    corpus = SpeakingCorpus([write_clips(tmp_path / "s")])
    corpus.pcm[corpus.edges[1] :] = 0
    net, _ = voices.begin(SPEAKER, 4, 0)
    heard = front_ends.at_16k(corpus.pcm)
    voices.settle(net, [front_ends.fbank_batch(heard[None, :16_000].astype(mx.float32) / 32768)])
    found = voices.vectors_of(net, corpus, heard, 3, 0.5)
    assert found.shape == (2, 3, 8)
    assert np.abs(found[1] - found[1, :1]).max() < 1e-5 < np.abs(found[0] - found[0, :1]).max()


# ---- the flow ----


def flow_batch(corpus, step=0):
    n = len(corpus.pcm) // CODE_HOP
    codes = np.random.default_rng(0).integers(0, 6561, n)
    vectors = np.random.default_rng(1).normal(0, 1, (2, 3, 32)).astype(np.float32)
    mels = front_ends.flow_mels(mx.array(corpus.pcm))
    return codes, flow.Batches(corpus, codes, mels, vectors, 3.0, 0, ((16, 0.5), (24, 0.5)))(step)


def test_the_flows_rows_are_codes_and_mels_of_one_place(corpus):
    """Nearly all codes stand in the row as in the corpus; the mel is two frames for each."""
    codes, batch = flow_batch(corpus)
    row, mel = np.array(batch["codes"])[0], np.array(batch["mel"])[0]
    mels = np.array(front_ends.flow_mels(mx.array(corpus.pcm)).astype(mx.float32))
    at = next(i for i in range(len(codes) - len(row)) if (codes[i : i + len(row)] == row).mean() > 0.8)
    assert (mels[2 * at : 2 * at + len(mel)] == mel).all() and len(mel) == 2 * len(row)
    assert (np.array(batch["prompt"]) <= flow.MOST_PROMPT * len(mel)).all()


def test_the_flow_in_use_follows_the_velocity_that_training_taught(corpus):
    """A net that always says mel - noise, as training wants it, ends at the mel from any noise, guided or not."""
    _, batch = flow_batch(corpus)
    net, params = flow.begin(SMALL["flow"], np.zeros(80), 0)
    net.update(params)
    mel, noise = batch["mel"][:1], batch["noise"][:1]

    class Perfect:
        def __call__(self, x, mu, t, speaker, cond, past=None):
            doubled = mx.concatenate([mel, mel])
            return doubled - mx.concatenate([noise, noise]), ()

    net.decoder.estimator = Perfect()
    found, _ = net.decoder(noise, mel, mx.zeros((1, 80)), mel, 4)
    assert np.abs(np.array(found - mel)).max() < 1e-3


def test_rows_without_conditions_see_none(corpus):
    """Codes, speaker and prompt change nothing where `told` is 0, and something where it is 1."""
    _, batch = flow_batch(corpus)
    net, params = flow.begin(SMALL["flow"], np.zeros(80), 0)
    weights = [(k, v + 0.1 * mx.random.normal(v.shape, key=mx.random.key(1))) for k, v in tree_flatten(params)]
    params = tree_unflatten(weights)
    other = batch | {"codes": (batch["codes"] + 1) % 6561, "speaker": batch["speaker"] + 1,
                     "prompt": batch["prompt"] * 0}
    for told, same in ((0.0, True), (1.0, False)):
        a, b = (flow.loss(params, x | {"told": mx.full(x["told"].shape, told)}, net)[1]["missed"].item()
                for x in (batch, other))
        assert (abs(a - b) < 1e-6) == same


# ---- all four ----


def cases(corpus):
    net, params = speech_tokenizer.begin(TOKENIZER, 0)
    yield "tokenizer", params, partial(speech_tokenizer.loss, net=net), tokenizer_batch(corpus)
    batches = voices.Batches(corpus, 8, 0.5, seed=0)
    net, params = voices.begin(SPEAKER, batches.n_voices, 0)
    yield "speaker", params, partial(voices.loss, net=net), batches(0)
    net, params = vocoder.begin(HIFT, 0)
    yield "hift", params, partial(vocoder.loss, net=net), vocoder.Batches(corpus, 2, 12, seed=2)(0)
    net, params = flow.begin(SMALL["flow"], np.zeros(80), 0)
    yield "flow", params, partial(flow.loss, net=net), flow_batch(corpus)[1]


@pytest.mark.parametrize("which", range(4))
def test_the_gradient_reaches_every_weight_and_the_loss_falls(corpus, which):
    """After a few steps (the flow's blocks begin closed), every weight has a gradient, and one batch is learnt."""
    name, params, loss, batch = list(cases(corpus))[which]
    trained = fit.Fit(fit.Schedule(peak_rate=3e-3, warmup=3, average=0.5), params, loss, compiled=False)
    first = loss(params, batch)[0].item()
    for _ in range(12):
        trained.step(batch, 0.0)
    assert loss(trained.average, batch)[0].item() < 0.9 * first
    gradient = mx.grad(lambda p: loss(p, batch)[0])(trained.flat.split(trained.state["params"]))
    idle = [n for n, g in tree_flatten(gradient) if not mx.isfinite(g).all().item() or mx.abs(g).max().item() == 0]
    assert not idle, name


def test_a_fit_is_adamw_as_torch_has_it():
    """One matrix and one vector, three steps: the same weights as torch.optim.AdamW, decay on the matrix alone."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w, b, x = rng.normal(0, 1, (3, 4)), rng.normal(0, 1, 3), rng.normal(0, 1, (5, 4))
    w, b, x = (a.astype(np.float32) for a in (w, b, x))
    loss = lambda p, batch: (mx.square(batch["x"] @ p["w"].T + p["b"]).mean(), {"a": mx.zeros(())})  # noqa: E731
    schedule = fit.Schedule(peak_rate=0.01, warmup=1, weight_decay=0.1, clip=1e9)
    ours = fit.Fit(schedule, {"w": mx.array(w), "b": mx.array(b)}, loss, compiled=False)
    tw, tb = (torch.tensor(a, requires_grad=True) for a in (w, b))
    theirs = torch.optim.AdamW([{"params": [tw], "weight_decay": 0.1}, {"params": [tb], "weight_decay": 0.0}], lr=0.01,
                               betas=(fit.FIRST_DECAY, fit.SECOND_DECAY))
    for _ in range(3):
        ours.step({"x": mx.array(x)}, 0.0)
        theirs.zero_grad()
        (torch.tensor(x) @ tw.T + tb).square().mean().backward()
        theirs.step()
    found = ours.flat.split(ours.state["params"])
    assert np.abs(np.array(found["w"]) - tw.detach().numpy()).max() < 1e-5
    assert np.abs(np.array(found["b"]) - tb.detach().numpy()).max() < 1e-5


def test_a_gradient_that_is_not_finite_moves_nothing():
    loss = lambda p, batch: (mx.log(p["w"] - 1).sum(), {})  # noqa: E731
    trained = fit.Fit(fit.Schedule(weight_decay=0.0), {"w": mx.ones((2, 2))}, loss, compiled=False)
    trained.step({}, 0.0)
    assert (np.array(trained.state["params"]) == 1).all()


def test_a_saved_state_goes_on_as_if_nothing_had_been(tmp_path):
    loss = lambda p, batch: (mx.square(p["w"] - batch["x"]).sum(), {"a": mx.zeros(())})  # noqa: E731
    make = lambda: fit.Fit(fit.Schedule(), {"w": mx.zeros((2, 3))}, loss, compiled=False)  # noqa: E731
    batch = {"x": mx.ones((2, 3))}
    one, other = make(), make()
    one.step(batch, 0.1)
    one.save(tmp_path)
    assert other.resume(tmp_path) and not make().resume(tmp_path / "none")
    for trained in (one, other):
        trained.step(batch, 0.2)
    assert (np.array(one.state["params"]) == np.array(other.state["params"])).all()


@pytest.mark.parametrize("component", ["tokenizer", "speaker", "flow", "hift"])
def test_a_written_net_is_read_as_it_was(tmp_path, component):
    net = build(SMALL[component])
    speaking.write_net(tmp_path, component, net)
    again = speaking.read_net(tmp_path, component)
    for (name, a), (other, b) in zip(tree_flatten(net.parameters()), tree_flatten(again.parameters()), strict=True):
        assert name == other and np.array_equal(np.array(a.astype(mx.float16)), np.array(b.astype(mx.float16))), name


def test_the_runs_make_a_speaking_half(tmp_path, corpus, monkeypatch):
    """All four commands on seconds of sound, then joined: the folder loads, hears codes and speaks."""
    folder = write_clips(tmp_path / "s", persons=2, each=8)
    monkeypatch.setattr(speech_tokenizer, "SIZE", TOKENIZER)
    monkeypatch.setattr(voices, "SIZE", SPEAKER)
    monkeypatch.setattr(vocoder, "SIZE", HIFT)
    monkeypatch.setattr(flow, "size", lambda speaker: SMALL_FLOW(speaker, 48, 32, 1, 1))
    monkeypatch.setattr(flow, "LENGTHS", ((16, 1.0),))
    monkeypatch.setattr(speaking, "VECTOR_SECONDS", 0.5)
    monkeypatch.setattr(speaking, "SETTLING", 2)
    common = ["--corpus", str(folder), "--steps", "2", "--log-every", "1"]
    for net, rows in (("tokenizer", "2"), ("voices", "4"), ("vocoder", "2"), ("flow", "2")):
        parts = ["--tokenizer", str(tmp_path / "tokenizer"), "--voices", str(tmp_path / "voices")]
        more = parts if net == "flow" else []
        extra = ["--codes", "12"] if net == "tokenizer" else []
        monkeypatch.setattr("sys.argv", ["speaking", net, *common, "--rows", rows, "--out", str(tmp_path / net), *more,
                                         *extra])
        speaking.main()
        assert "norm" in (tmp_path / net / "log.jsonl").read_text()
    parts = [str(tmp_path / net) for net in speaking.NETS]
    monkeypatch.setattr("sys.argv", ["speaking", "join", "--parts", *parts, "--out", str(tmp_path / "joined")])
    speaking.main()
    made = Synthesizer.load(tmp_path / "joined")
    assert isinstance(made.parts.tokenizer, S3Tokenizer)
    sound = made.decode([1, 2, 3, 4], made.voice(some_sound(24_000)))
    assert sound.seconds == pytest.approx(4 / 25) and np.isfinite(sound.wave).all()
    with pytest.raises(DataError, match="no flow.json"):
        speaking.join([tmp_path / "tokenizer", tmp_path / "voices"], tmp_path / "none")
