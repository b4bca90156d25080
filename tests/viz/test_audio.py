"""Mels, waveforms, filters and words, drawn: what stands where on the axes."""

import numpy as np
import pytest
from plot_readings import bar_label, bar_of, image, is_grey, legend, mesh

from stepaudio import viz
from stepaudio.audio.features import log_mel
from stepaudio.audio.filters import mel_filterbank
from stepaudio.audio.save import save_audio
from stepaudio.errors import AudioError
from stepaudio.viz.audio import mel_band_edges

pyplot = pytest.importorskip("matplotlib.pyplot", reason="plots need the extra `notebook`")
pyplot.switch_backend("Agg")
RNG = np.random.default_rng(0)
TITLE = "What this shows"


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def test_a_mel_stands_in_seconds_and_hertz(tmp_path):
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32) * 0.5
    save_audio(tmp_path / "tone.wav", tone)
    ax = viz.mel(tmp_path / "tone.wav")
    x, y, values = mesh(ax)
    loudest = values.mean(axis=1).argmax()
    assert y[loudest] < 1000 < y[loudest + 1]  # a pure tone is where its frequency is written
    np.testing.assert_allclose(values, log_mel(tone), atol=1e-3)
    assert (x[0], x[1]) == pytest.approx((-0.005, 0.005)) and ax.get_xlim() == (0, 1)
    assert ax.get_title() == "tone.wav" and ax.get_xlabel() == "time (s)" and "Hz" in ax.get_ylabel()
    assert {"1000", "4000"} <= {t.get_text() for t in ax.get_yticklabels()}
    assert "log10 power" in bar_of(ax).get_ylabel() and is_grey(ax)


def test_mel_bands_stand_at_the_peaks_of_their_filters():
    edges = mel_band_edges(128)
    fine = mel_filterbank(16_000, 1 << 16)  # so many bins that a peak is known to 0.25 Hz
    peaks = fine.argmax(axis=1) * 16_000 / (1 << 16)
    assert len(edges) == 129 and (edges[:-1] < peaks).all() and (peaks < edges[1:]).all()


def test_mel_and_waveform_take_arrays_at_any_rate_under_either_name():
    samples = RNG.normal(0, 0.1, 8_000).astype(np.float32)
    for draw in (viz.mel, viz.waveform):
        assert draw(samples, sr=8_000).get_xlim() == draw(samples, sample_rate=8_000).get_xlim() == (0, 1)
        assert draw(samples).get_xlim() == (0, 0.5)
    with pytest.raises(AudioError, match="nowhere"):
        viz.mel("nowhere.wav")


def test_labels_stand_over_their_second():
    ax = viz.mel(np.zeros(16_000, np.float32), TITLE, labels=[("a", 0.25), ("b$", 0.75)])
    assert [(t.get_text(), t.xy[0]) for t in ax.texts] == [("a", 0.25), (r"b\$", 0.75)]
    assert [line.get_xdata()[0] for line in ax.get_lines()] == [0.25, 0.75]
    wave, below = viz.waveform_and_mel(np.zeros(16_000, np.float32), labels=[("3", 0.5)])
    assert [t.get_text() for t in wave.texts] == ["3"] and not below.texts
    assert wave.get_lines()[-1].get_xdata()[0] == below.get_lines()[0].get_xdata()[0] == 0.5


def test_waveform_and_mel_share_one_axis_of_seconds():
    samples, mel = RNG.normal(0, 0.1, 1_600).astype(np.float32), RNG.normal(size=(128, 12))
    wave, below = viz.waveform_and_mel(samples, mel, TITLE)
    x, y = wave.get_lines()[0].get_data()
    np.testing.assert_allclose(x, np.arange(1_600) / 16_000)
    np.testing.assert_array_equal(y, samples)
    np.testing.assert_array_equal(mesh(below)[2], mel)
    assert wave.get_xlim() == below.get_xlim() == pytest.approx((0, 0.12))
    assert wave.get_title() == TITLE and below.get_xlabel() == "time (s)"
    assert "full scale" in wave.get_ylabel() and "Hz" in below.get_ylabel()
    assert "log10 power" in bar_label(below) and is_grey(wave) and is_grey(below)


def test_waveform_and_mel_of_a_file_draws_what_the_encoder_is_given(tmp_path):
    samples = RNG.normal(0, 0.1, 4_800).astype(np.float32)
    save_audio(tmp_path / "a.wav", samples)
    wave, below = viz.waveform_and_mel(tmp_path / "a.wav")
    np.testing.assert_allclose(mesh(below)[2], log_mel(samples), atol=1e-2)
    assert wave.get_title() == "a.wav"


def test_a_long_waveform_keeps_its_peaks():
    samples = np.zeros(160_000, np.float32)
    samples[77_777], samples[123_456] = 0.9, -0.8
    x, y = viz.waveform(samples, TITLE).get_lines()[0].get_data()
    assert len(x) <= 4_002 and (y.max(), y.min()) == (np.float32(0.9), np.float32(-0.8))
    assert x[y.argmax()] == pytest.approx(77_777 / 16_000, abs=0.01)
    assert x[y.argmin()] == pytest.approx(123_456 / 16_000, abs=0.01)


def test_every_filter_is_drawn_and_the_empty_ones_are_marked():
    one, other = np.eye(4, 201) * 0.5, np.eye(4, 201, k=8) * 3
    other[2] = 0
    upper, lower = viz.filterbanks({"one": one, "other": other}, TITLE, hertz=(0, 800))
    lines = upper.get_lines()
    assert len(lines) == 4
    x, y = lines[2].get_data()
    assert x[y.argmax()] == 2 * 40 and y.max() == 1  # the third filter peaks in bin 2, 40 Hz apart
    assert legend(upper) == ["4 of 4 filters\n(highest 0.5)"]
    assert legend(lower) == ["3 of 4 filters\n(highest 3)", "1 empty filters:\n2"]
    cross = lower.get_lines()[-1]
    assert cross.get_marker() == "X" and cross.get_xdata().tolist() == [400]  # between the peaks at 360 and 440 Hz
    assert lower.get_xlabel() == "frequency (Hz)" and lower.get_xlim() == (0, 800) and upper.get_title() == TITLE
    assert "one" in upper.get_ylabel() and "highest" in upper.get_ylabel() and is_grey(upper)


def test_the_front_end_s_own_filters_are_the_default():
    ax = viz.filterbank()
    assert len(ax.get_lines()) == 128 and legend(ax) == ["128 of 128 filters\n(highest 0.0417)"]
    bank = mel_filterbank()
    np.testing.assert_allclose(ax.get_lines()[40].get_ydata(), bank[40] / bank.max())


def test_filters_that_peak_elsewhere_are_left_out_of_a_narrow_figure():
    ax = viz.filterbank(hertz=(0, 100))
    assert legend(ax)[0].startswith("4 of 128 filters")  # at 40, 40, 80 and 80 Hz


def test_mel_difference_over_the_frames_that_both_have():
    first, second = RNG.normal(size=(128, 30)), RNG.normal(size=(128, 28))
    ax = viz.mel_difference(first, second, TITLE, names=("right", "wrong"))
    np.testing.assert_allclose(mesh(ax)[2], first[:, :28] - second)
    (drawn,) = [c for c in ax.collections if type(c).__name__ == "QuadMesh"]
    low, high = drawn.get_clim()
    assert low == -high and high == pytest.approx(np.abs(first[:, :28] - second).max())
    assert bar_label(ax).startswith("right - wrong") and "40 dB" in bar_label(ax)
    assert (ax.get_xlabel(), ax.get_title()) == ("time (s)", TITLE) and "Hz" in ax.get_ylabel()


def luminance(rgb):
    """Relative luminance of linear light (ITU-R BT.709), what a grey print keeps."""
    linear = np.where(np.asarray(rgb) <= 0.04045, np.asarray(rgb) / 12.92, ((np.asarray(rgb) + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_signed_difference_is_white_at_zero_and_keeps_size_and_sign_in_grey():
    values = np.zeros((8, 20))
    values[:4, :10], values[4:, 10:] = -1, 1
    ax = viz.mel_difference(values, np.zeros((8, 20)), TITLE)
    (drawn,) = [c for c in ax.collections if type(c).__name__ == "QuadMesh"]
    shade = [luminance(drawn.to_rgba(x)[:3]) for x in np.linspace(-1, 1, 21)]
    assert shade[10] > 0.9 and np.ptp(drawn.to_rgba(0.0)[:3]) < 0.02  # white
    assert (np.diff(shade[:11]) > 0).all() and (np.diff(shade[10:]) < 0).all()  # darker is larger, either way
    assert drawn.to_rgba(1.0)[0] > drawn.to_rgba(1.0)[2] and drawn.to_rgba(-1.0)[0] < drawn.to_rgba(-1.0)[2]
    (dots,) = [c for c in ax.collections if type(c).__name__ == "QuadContourSet"]
    inside = [p.vertices for p in dots.get_paths() if len(p.vertices)]
    assert dots.hatches == [".."] and inside and np.concatenate(inside)[:, 0].max() < 0.105  # only where negative
    assert "dotted" in bar_label(ax)


def test_two_equal_mels_differ_nowhere():
    ax = viz.mel_difference(np.ones((8, 3)), np.ones((8, 3)), TITLE)
    (drawn,) = ax.collections
    assert (drawn.get_array() == 0).all() and drawn.get_clim() == (-1, 1)


def test_attention_to_audio_time():
    weights = np.array([[0.1, 0.3, 0.2], [0.0, 0.05, 0.1]])
    ax = viz.audio_attention(weights, np.array([0.0, 0.08, 0.16]), ["a", "b$"], TITLE)
    np.testing.assert_allclose(image(ax), [[1 / 3, 1, 2 / 3], [0, 0.5, 1]])
    x, y = ax.get_lines()[0].get_data()
    np.testing.assert_allclose(x, [0.12, 0.20])
    assert list(y) == [0, 1] and ax.get_ylim() == (1.5, -0.5)  # the first token on top
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", r"b\$"]
    assert ax.get_xlabel() == "audio time (s)" and ax.get_title() == TITLE and legend(ax) == ["highest weight"]
    assert bar_label(ax) == "attention / highest of the token" and "token" in ax.get_ylabel() and is_grey(ax)


def test_words_stand_at_their_times():
    rows = {"known": [("a", 0.1, 0.3), ("b$", 0.3, 0.7)], "found": [("a", 0.08, 0.32)]}
    wave, below = viz.word_times(np.zeros(16_000, np.float32), rows, TITLE)
    boxes = [c.get_paths()[0].get_extents() for c in below.collections]
    np.testing.assert_allclose([(b.x0, b.x1) for b in boxes], [(0.1, 0.3), (0.3, 0.7), (0.08, 0.32)])
    assert [round((b.y0 + b.y1) / 2) for b in boxes] == [0, 0, 1] and below.get_ylim() == (1.5, -0.5)
    assert [(t.get_text(), t.get_position()[0]) for t in below.texts] == [
        ("a", pytest.approx(0.2)), (r"b\$", pytest.approx(0.5)), ("a", pytest.approx(0.2))
    ]  # fmt: skip
    assert [line.get_xdata()[0] for line in below.get_lines()] == [0.1, 0.3]
    assert [t.get_text() for t in below.get_yticklabels()] == ["known", "found"] and wave.get_title() == TITLE
    assert below.get_xlim() == wave.get_xlim() == (0, 1) and below.get_xlabel() == "time (s)" and is_grey(below)
