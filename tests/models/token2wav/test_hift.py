"""Mel to sound, and streams of it: against the reference's numbers, MLX's own operations, and measured pitch."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from layout_twins import hift_kernels, hift_layout
from mlx.utils import tree_flatten

from stepaudio.checkpoints.arrays import net_arrays
from stepaudio.checkpoints.convert.flow_yaml import flow_config
from stepaudio.checkpoints.tensors import read_arrays
from stepaudio.checkpoints.weight_norm import DIRECTION, MAGNITUDE, merge_weight_norm
from stepaudio.errors import ConfigError, DecodeError, WeightsError
from stepaudio.models.token2wav.hift import (
    F0Predictor,
    Hift,
    HiftConfig,
    IstftConfig,
    Source,
    harmonic_phase,
    inverse_stft,
    short_stft,
)
from stepaudio.models.token2wav.layers import Conv1d, ConvTranspose1d, overlap_add
from stepaudio.parity.run import _verify_file
from stepaudio.synthesis import streaming as stream

ASSETS = Path(__file__).parents[2] / "assets"
SMALL = HiftConfig(
    in_channels=6,
    base_channels=16,
    f0_cond_channels=8,
    nb_harmonics=3,
    upsample_rates=(4, 5),
    upsample_kernel_sizes=(8, 9),
    istft=IstftConfig(12, 3),
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (1, 3)),
    source_resblock_kernel_sizes=(3, 5),
    source_resblock_dilation_sizes=((1, 2), (1,)),
)
PER_FRAME = 60


@pytest.fixture(scope="module")
def parts():
    return read_arrays(ASSETS / "hift_parts.safetensors")


def published(config, seed=0):
    """Random tensors in the layout of `hift.pt`."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in hift_layout(config).items():
        tensors[name] = rng.normal(size=shape).astype(np.float32)
        if name.endswith(MAGNITUDE):
            tensors[name] = np.abs(tensors[name]) + 0.3
        if name.endswith("alpha"):
            tensors[name] = np.abs(tensors[name]) + 0.5
    tensors["f0_predictor.classifier.bias"][:] = 120
    return tensors


@pytest.fixture(scope="module")
def hift():
    net = Hift(SMALL)
    net.load_weights(net_arrays(published(SMALL), SMALL))
    return net


def mel_of(n, seed=0):
    return mx.array(np.random.default_rng(seed).normal(size=(1, n, 6)).astype(np.float32))


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.array(a), np.array(b), rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------------- layout


def test_published_layout(shared):
    tensors = json.loads((shared / "published_layout.json").read_text())["hift"]["tensors"]
    assert hift_layout(HiftConfig()) == {name: tuple(shape) for name, shape in tensors.items()}
    assert len(tensors) == 328


@pytest.mark.parametrize("config", [HiftConfig(), SMALL])
def test_net_has_the_merged_layout_and_nothing_else(config):
    kernels = hift_kernels(config)
    expected = {n: tuple(s[i] for i in kernels.get(n, range(len(s)))) for n, s in hift_layout(config, True).items()}
    assert {name: a.shape for name, a in tree_flatten(Hift(config).parameters())} == expected


def test_merged_and_unmerged_files_give_the_same_net():
    tensors = published(SMALL)
    merged = {}
    for name, array in tensors.items():
        if name.endswith(DIRECTION):
            stem = name.removesuffix(DIRECTION)
            merged[stem + ".weight"] = merge_weight_norm(tensors[stem + MAGNITUDE], array)
        elif not name.endswith(MAGNITUDE):
            merged["generator." + name] = array
    one, other = dict(net_arrays(tensors, SMALL)), dict(net_arrays(merged, SMALL))
    assert set(one) == set(other) and all(mx.array_equal(one[n], other[n]) for n in one)


def test_weight_norm_gives_each_row_its_length():
    rng = np.random.default_rng(0)
    g, v = rng.normal(size=(4, 1, 1)), rng.normal(size=(4, 3, 5))
    kernel = merge_weight_norm(g, v)
    close(np.linalg.norm(kernel.reshape(4, -1), axis=1), np.abs(g[:, 0, 0]))
    close(kernel / g * np.linalg.norm(v.reshape(4, -1), axis=1)[:, None, None], v)
    with pytest.raises(WeightsError, match="length zero"):
        merge_weight_norm(g, v * 0)


def test_misfits_are_named():
    tensors = published(SMALL)
    name = "ups.1" + MAGNITUDE
    for change, message in (
        ({n: a for n, a in tensors.items() if n != name}, f"tensors are missing: {name}"),
        ({**tensors, "extra": np.zeros(1)}, "no place in the net: extra"),
        ({**tensors, "ups.1" + DIRECTION: tensors["ups.1" + DIRECTION].swapaxes(0, 1)}, "ups.1.* has shape"),
    ):
        with pytest.raises(WeightsError, match=message):
            net_arrays(change, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_rates": [8, 5]}, "equally long"),
        ({"upsample_rates": 8}, "upsample_rates: expected a list"),
        ({"resblock_dilation_sizes": [[1], [1], ["a"]]}, "resblock_dilation_sizes: expected a list"),
        ({"base_channels": 100}, "halved 3 times"),
        ({"upsample_kernel_sizes": [16, 10, 7]}, "even number"),
        ({"resblock_kernel_sizes": [3, 4, 5]}, "must be odd"),
        ({"speed": 2}, "unknown key speed"),
        ({"istft": {"n_fft": 15}}, "n_fft 15 must be even"),
        ({"istft": {"hops": 4}}, "hift.istft: unknown key hops"),
        ({"sampling_rate": 22050}, "22050"),
        ({"in_channels": "80"}, "hift.in_channels: expected int"),
    ],
)
def test_config_is_a_closed_world(change, message):
    with pytest.raises(ConfigError, match=message):
        HiftConfig.from_dict(change)


# ---------------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("component", ["hift", "token2wav"])
def test_goldens(goldens, component):
    rows = _verify_file(goldens / f"{component}.json", goldens.parent)
    left = [r.stage for r in rows if r.verdict == "not covered"]
    assert len(rows) > 15 and [r for r in rows if not r.good] == []
    assert left == (["rand_ini_effect"] if component == "hift" else [])


def test_pitch_equals_the_reference(parts):
    weights = {n.removeprefix("w."): a for n, a in parts.items() if n.startswith("w.f0_predictor")}
    channels, in_channels, _ = weights["f0_predictor.condnet.0" + DIRECTION].shape
    net = F0Predictor(in_channels, channels)
    for i in range(0, 10, 2):
        stem = f"f0_predictor.condnet.{i}"
        kernel = merge_weight_norm(weights[stem + MAGNITUDE], weights[stem + DIRECTION])
        net.condnet[i].weight = mx.array(kernel.swapaxes(1, 2))
        net.condnet[i].bias = mx.array(weights[stem + ".bias"])
    net.classifier.weight = mx.array(weights["f0_predictor.classifier.weight"])
    net.classifier.bias = mx.array(weights["f0_predictor.classifier.bias"])
    close(net(mx.array(parts["in.mel"]).swapaxes(1, 2)), parts["out.f0"], 1e-3)


def test_source_equals_the_reference(parts):
    net = Source(HiftConfig())
    net.load_weights([(n.removeprefix("w.m_source."), mx.array(a)) for n, a in parts.items() if "m_source" in n])
    close(net(mx.array(parts["out.f0"]), None), parts["out.source_no_noise"][:, 0], 5e-5)


def test_inverse_stft_equals_the_reference(parts):
    magnitude, phase = (mx.array(parts[f"in.istft.{n}"]).swapaxes(1, 2) for n in ("magnitude", "phase"))
    close(inverse_stft(magnitude, phase, 16, 4, 100.0), parts["out.istft.wav"], 1e-4)


def test_cross_fade_equals_the_reference(parts):
    faded = stream.cross_fade(mx.array(parts["out.stream.wav_start"]), mx.array(parts["out.wav_end"]))
    close(faded, parts["out.stream.faded_start"], 1e-6)  # both sounds are the reference's own
    rising, falling = stream.fade_halves(3840)
    assert (rising + falling).max() == pytest.approx(1.08, abs=1e-3)
    rising, falling = stream.fade_halves(3840, "even")
    close(rising + falling, np.ones(3840), 1e-6)


# ------------------------------------------------------------------------------------------------ references


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (7, 5), (1, 3)])
def test_spread_convolution_equals_mlx(kernel, dilation):
    net = Conv1d(4, 5, kernel, padding=(kernel - 1) * dilation // 2, dilation=dilation)
    x = mx.random.normal((2, 37, 4), key=mx.random.key(0))
    close(net(x), mx.conv1d(x, net.weight, padding=net.padding, dilation=dilation) + net.bias)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 1, 3), (1, 1, 0), (6, 3, 1)])
def test_convolution_of_many_frames_equals_mlx(kernel, stride, padding):
    net = Conv1d(4, 5, kernel, stride=stride, padding=padding)
    net.bias = mx.arange(5.0)
    x = mx.random.normal((2, 37, 4), key=mx.random.key(0))
    close(net(x), mx.conv1d(x, net.weight, stride=stride, padding=padding) + net.bias)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(16, 8, 4), (11, 5, 3), (7, 3, 2), (3, 3, 0), (9, 2, 1)])
def test_transposed_convolution_equals_mlx(kernel, stride, padding):
    net = ConvTranspose1d(4, 5, kernel, stride, padding)
    x = mx.random.normal((2, 13, 4), key=mx.random.key(0))
    close(net(x), mx.conv_transpose1d(x, net.weight, stride=stride, padding=padding) + net.bias)


def test_overlap_add_equals_its_definition():
    pieces = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    total = np.zeros((2, 4 * 3 + 7, 3), np.float32)
    for t in range(5):
        total[:, 3 * t : 3 * t + 7] += pieces[:, t]
    close(overlap_add(mx.array(pieces), 3), total)


@pytest.mark.parametrize(("n_fft", "hop"), [(16, 4), (12, 3), (20, 5), (10, 4)])
def test_stft_equals_numpy_and_comes_back(n_fft, hop):
    x = np.random.default_rng(0).normal(size=(1, hop * 30)).astype(np.float32)
    spectrum = np.array(short_stft(mx.array(x), n_fft, hop))
    padded = np.pad(x[0], n_fft // 2, mode="reflect")
    window = np.hanning(n_fft + 1)[:-1]
    frames = [np.fft.rfft(padded[i : i + n_fft] * window) for i in range(0, len(padded) - n_fft + 1, hop)]
    close(spectrum[0], np.concatenate([np.real(frames), np.imag(frames)], axis=1), 1e-4)
    real, imaginary = np.split(spectrum, 2, axis=-1)
    back = inverse_stft(mx.array(np.hypot(real, imaginary)), mx.array(np.arctan2(imaginary, real)), n_fft, hop, 1e9)
    close(back, x, 1e-4)


def test_phase_is_the_sum_of_the_pitch():
    """Between the middles of frames the phase moves at the pitch of the frame ahead; in doubles."""
    f0 = np.array([[100.0, 150.0, 0.0, 200.0]], np.float32)
    got = np.array(harmonic_phase(mx.array(f0), 2, 24_000, 480))[0]
    middles = np.cumsum(f0[0].astype(np.float64)) * 480 / 24_000 * 2 * np.pi
    expected = np.interp(np.arange(4 * 480), np.arange(4) * 480 + 239.5, middles)
    close(got, np.stack([expected, 2 * expected], axis=1), 1e-4)


def test_source_sounds_at_the_pitch():
    net = Source(HiftConfig())
    net.l_linear.weight, net.l_linear.bias = mx.array([[1.0] + [0.0] * 8]), mx.zeros((1,))
    for hz in (100.0, 220.0):
        wave = np.array(net(mx.full((1, 50), hz), None))[0]
        assert np.argmax(np.abs(np.fft.rfft(wave))) == pytest.approx(hz, abs=1)  # one second, so bins are in Hz
    assert not np.array(net(mx.full((1, 50), 9.9), None)).any()  # below the threshold: no voice
    noisy = np.array(net(mx.full((1, 50), 9.9), 7))[0]
    assert noisy.std() == pytest.approx(0.1 / 3, rel=0.05)


# ------------------------------------------------------------------------------------- whole and streams


def test_sizes_limits_and_noise(hift):
    mel = mel_of(9)
    wave, source = hift(mel, None)
    assert wave.shape == source.shape == (1, 9 * PER_FRAME) and SMALL.samples_per_frame == PER_FRAME
    assert np.abs(np.array(wave)).max() <= np.float32(0.99)
    again, other, seeded = hift(mel, None)[0], hift(mel, 3)[0], hift(mel, 3)[0]
    assert mx.array_equal(wave, again) and mx.array_equal(other, seeded) and not mx.array_equal(wave, other)
    assert hift(mel_of(1), None)[0].shape == (1, PER_FRAME)
    with pytest.raises(DecodeError, match="vocoder: expected a mel of shape"):
        hift(mx.zeros((1, 9, 5)), None)
    with pytest.raises(DecodeError, match="noise: expected shape"):
        hift(mel, mx.zeros((1, 10, 4)))


def test_cached_source_stands_first(hift):
    cache = mx.full((1, 70), 0.25)
    _, source = hift(mel_of(9), None, cache)
    _, without = hift(mel_of(9), None)
    assert mx.array_equal(source[:, :70], cache) and mx.array_equal(source[:, 70:], without[:, 70:])


def run(hift, sizes, options, seed=0, noise=None):
    mel, state, sound, at = mel_of(sum(sizes), seed), stream.VocoderState(), [], 0
    for i, n in enumerate(sizes):
        wave, state, _ = stream.vocode(hift, mel[:, at : at + n], state, options, noise, i == len(sizes) - 1)
        sound.append(wave)
        at += n
    return sound


@pytest.mark.parametrize("sizes", [[30], [10, 10, 10], [2, 1, 27], [25, 5], [1] * 30])
def test_a_stream_is_as_long_as_its_mel(hift, sizes):
    sound = run(hift, sizes, stream.StreamOptions(mel_frames=4))
    assert sum(w.shape[1] for w in sound) == 30 * PER_FRAME
    assert all(np.isfinite(np.array(w)).all() for w in sound)


def test_a_stream_of_one_chunk_is_the_whole(hift):
    whole, _ = hift(mel_of(30), 5)
    assert mx.array_equal(run(hift, [30], stream.StreamOptions(), noise=5)[0], whole)


def test_chunks_join_where_the_source_is_the_same(hift):
    """The doubled stretch has one source: what a chunk sees first is what the one before saw last."""
    options, mel = stream.StreamOptions(mel_frames=4), mel_of(30)
    _, first, _ = stream.vocode(hift, mel[:, :15], stream.VocoderState(), options, 5)
    assert mx.array_equal(first.source, hift(mel[:, :15], 5)[1][:, 11 * PER_FRAME :])
    stages = {}
    hift(mx.concatenate([first.mel, mel[:, 15:]], axis=1), 5, first.source, first.position, stages.__setitem__)
    assert first.position == 11 * PER_FRAME and mx.array_equal(first.mel, mel[:, 11:15])
    assert mx.array_equal(stages["source"][:, : 4 * PER_FRAME], first.source)
    second, _, raw = stream.vocode(hift, mel[:, 15:], first, options, 5, last=True)
    overlap = 4 * PER_FRAME
    assert mx.array_equal(second[:, overlap:], raw[:, overlap:])
    rising, falling = stream.fade_halves(overlap)
    close(second[:, :overlap], np.array(raw[:, :overlap]) * rising + np.array(first.wave) * falling, 1e-6)


def test_vocoder_streams_do_not_disturb_each_other(hift):
    options = stream.StreamOptions(mel_frames=4)
    alone = [run(hift, [10, 10, 10], options, seed) for seed in (0, 1)]
    mels, states = [mel_of(30, seed) for seed in (0, 1)], [stream.VocoderState()] * 2
    for i in range(3):
        for s in (0, 1):
            chunk = mels[s][:, 10 * i : 10 * i + 10]
            wave, states[s], _ = stream.vocode(hift, chunk, states[s], options, None, i == 2)
            assert mx.array_equal(wave, alone[s][i])


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 6, 7, 20])
@pytest.mark.parametrize(("chunk", "ahead"), [(2, 1), (3, 3), (5, 2)])
def test_cutting_codes_loses_none(n, chunk, ahead):
    pieces = list(stream.chunked(iter(range(n)), chunk, ahead))
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True] * (n > 0)
    spoken = [c for codes, last in pieces for c in (codes[0] if last else codes[0, :chunk])]
    assert spoken == list(range(n))
    assert all(codes.shape == (1, chunk + ahead) for codes, last in pieces if not last)


def test_pcm_is_cut_and_truncated():
    wave = np.array([0, 0.5, -0.5, 1.07, -1.07, 0.99997, -0.99997], np.float32)
    assert stream.to_pcm(wave).tolist() == [0, 16383, -16383, 32767, -32767, 32766, -32766]
    assert stream.to_pcm(wave).dtype == np.int16


def test_options_are_checked():
    for bad in ({"cross_fade": "linear"}, {"chunk_codes": 0}, {"mel_frames": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            stream.StreamOptions(**bad)


def test_codes_to_sound_by_stream_and_whole(hift):
    """Flow and vocoder together: as many samples either way, and sound as codes arrive."""
    from tiny_flow import YAML, M, make_prompt, random_net

    from stepaudio.models.token2wav.flow import Flow, FlowOptions

    assert SMALL.in_channels == M
    flow, codes = random_net(Flow(flow_config(YAML))), np.arange(23)[None] % 30
    _, whole = stream.speak(flow, hift, codes, make_prompt(), 0, 1, FlowOptions(n_steps=2))
    assert whole.shape == (1, 23 * 2 * PER_FRAME)
    taken = []
    arriving = (taken.append(c) or c for c in codes[0].tolist())
    state = stream.begin(flow, make_prompt(), 0, 1, stream.StreamOptions(FlowOptions(n_steps=2), chunk_codes=6))
    sound = stream.stream(flow, hift, arriving, state)
    first = next(sound)
    assert len(taken) == 8 and first.shape == ((12 - 8) * PER_FRAME,)  # six codes and two ahead; eight frames held
    assert first.shape[0] + sum(w.shape[0] for w in sound) == whole.shape[1]
    assert list(stream.stream(flow, hift, [], state)) == []
