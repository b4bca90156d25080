"""What each figure of synthesis shows: its data, its labels with units, and that it can be read in grey."""

import numpy as np
import pytest
from plot_readings import bar_label, image, is_grey, legend

from stepaudio import viz
from stepaudio.errors import ConfigError
from stepaudio.interp.streaming import ChunkTrace, Streamed, listening_difference
from stepaudio.interp.token2wav import Interleaving, Stages
from stepaudio.viz.audio import mel_band_edges

pyplot = pytest.importorskip("matplotlib.pyplot", reason="plots need the extra `notebook`")
pyplot.switch_backend("Agg")
RNG = np.random.default_rng(0)
TITLE = "What this shows"
RATE = 24_000


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def made(frames: int = 50) -> Stages:
    f0 = np.where(np.arange(frames) < frames // 2, 120.0, 0.0)
    return Stages(
        RNG.integers(0, 6561, frames // 2),
        RNG.normal(size=(frames, 8)),
        RNG.normal(size=(3, frames, 8)),
        f0,
        RNG.normal(0, 0.1, frames * 480),
        RNG.normal(0, 0.1, frames * 480),
        RATE,
    )


def run(noise_start=(10, 60, 60)) -> Streamed:
    chunks = [
        ChunkTrace(28 + 25 * i, 20_160 * i, 20_160, 50 * i, 50, start, start, 0.2)
        for i, start in enumerate(noise_start)
    ]
    return Streamed(np.zeros((150, 8)), np.zeros(60_480), tuple(chunks), 0.1, 480, RATE)


def test_interleaving():
    kinds = np.array([3, 0, 0, 1, 1, 2, 1, 0])
    found = Interleaving(kinds, np.array([0, 0, 0, 0, 1, 2, 2, 3]) / 25, 3, 3, 1, "length")
    top, below = viz.interleaving(found, TITLE)
    drawn = {int(x): int(y) for line in top.get_lines()[:4] for x, y in zip(*line.get_data(), strict=True)}
    assert [drawn[i] for i in range(8)] == kinds.tolist()
    assert [t.get_text() for t in top.get_yticklabels()] == ["text", "codes", "padding", "marker"]
    assert legend(top) == ["text: 3 tokens", "codes: 3 tokens", "padding: 1 tokens", "marker: 1 tokens"]
    x, y = below.get_lines()[0].get_data()
    assert x.tolist() == list(range(8)) and y.tolist() == found.seconds.tolist()
    assert legend(below) == ["audio (1.0 codes a text token)\n1 text tokens after it", "no end mark (stop: length)"]
    assert [line.get_xdata()[0] for line in (top.get_lines()[-1], below.get_lines()[-1])] == [7.5, 7.5]
    assert top.get_title() == TITLE and top.get_ylabel() == "kind of token"
    assert (below.get_xlabel(), below.get_ylabel()) == ("step (tokens generated)", "audio written (s)")
    assert is_grey(top) and is_grey(below)


def test_an_answer_with_an_end_has_no_dashed_line():
    top, below = viz.interleaving(Interleaving(np.array([1, 1]), np.array([0, 0.04]), 0, 2, 0, "eos"), TITLE)
    assert len(top.get_lines()) == 4 and len(below.get_lines()) == 1 and "no text" in legend(below)[0]


def test_stages_share_one_axis_of_seconds():
    found = made()
    codes, mu, mel, wave = axes = viz.synthesis_stages(found, TITLE)
    x, y = codes.get_lines()[0].get_data()
    np.testing.assert_allclose(x, (np.arange(25) + 0.5) / 25)
    assert y.tolist() == found.codes.tolist()
    np.testing.assert_array_equal(image(mu), found.mu.T)
    np.testing.assert_array_equal(image(mel), found.steps[-1].T)
    (mesh,) = mel.collections
    assert (mesh.get_coordinates()[0, 0, 0], mesh.get_coordinates()[0, -1, 0]) == (0, 1)
    np.testing.assert_allclose(mesh.get_coordinates()[:, 0, 1], mel_band_edges(8))
    assert np.abs(wave.get_lines()[0].get_ydata()).max() == np.abs(found.wave).max()
    assert {ax.get_xlim() for ax in axes} == {(0, 1)} and wave.get_xlabel() == "time (s)"
    assert [ax.get_ylabel().split("\n")[0] for ax in axes] == ["code", "conformer", "mel", "amplitude"]
    assert bar_label(mel) == "natural log\nof amplitude" and codes.get_title() == TITLE
    assert all(is_grey(ax) for ax in axes)


def test_pitch_and_source():
    found = made()
    pitch, source = viz.pitch_and_source(found, TITLE, start=0.25, seconds=0.05)
    x, y = pitch.get_lines()[0].get_data()
    np.testing.assert_allclose(x, (np.arange(50) + 0.5) / 50)
    assert y.tolist() == found.f0.tolist()
    assert legend(pitch) == ["pitch (50% of frames voiced)", "voiced above 10 Hz", "drawn below"]
    x, y = source.get_lines()[0].get_data()
    np.testing.assert_allclose(x, 0.25 + np.arange(1200) / RATE)
    np.testing.assert_array_equal(y, found.source[6000:7200])
    assert pitch.get_ylabel() == "pitch (Hz)" and "amplitude" in source.get_ylabel() and pitch.get_title() == TITLE
    assert pitch.get_xlabel() == source.get_xlabel() == "time (s)" and is_grey(pitch) and is_grey(source)


def test_wave_difference():
    x = RNG.normal(0, 0.1, 12_000).astype(np.float32)
    found = listening_difference(x, x * 1.1, RATE)
    wave, level = viz.wave_difference(found, TITLE, names=("whole", "stream"))
    assert np.abs(wave.get_lines()[0].get_ydata()).max() == np.abs(found.difference).max()
    first, second, difference = (line.get_ydata() for line in level.get_lines())
    np.testing.assert_allclose(second - first, 20 * np.log10(1.1), atol=1e-3)
    np.testing.assert_allclose(difference - first, -20, atol=1e-2)
    np.testing.assert_allclose(level.get_lines()[0].get_xdata(), (np.arange(25) + 0.5) * 0.02)
    assert legend(level) == ["whole", "stream", "difference"] and wave.get_ylabel().startswith("whole - stream")
    assert (level.get_xlabel(), level.get_ylabel()) == ("time (s)", "level (dB of full scale)")
    assert len({line.get_linestyle() for line in level.get_lines()}) == 3 and wave.get_title() == TITLE
    assert is_grey(wave) and is_grey(level)


def test_stream_timeline():
    ax = viz.stream_timeline(run(), TITLE, codes_per_second=50)
    spans = [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches]
    assert len(spans) == 9 and len({p.get_y() for p in ax.patches}) == 3
    first = 28 / 50 + 0.2
    np.testing.assert_allclose(spans[:3], [(0, 28 / 50), (28 / 50, first), (first, first + 0.84)])
    np.testing.assert_allclose(spans[3:6], [(28 / 50, 53 / 50), (53 / 50, 53 / 50 + 0.2), (first + 0.84, first + 1.68)])
    assert legend(ax) == ["first sound after 0.76 s", "codes arrive", "computing", "playing"]
    assert "(s)" in ax.get_xlabel() and ax.get_ylabel() == "chunk (number)" and ax.get_ylim() == (2.5, -0.5)
    assert ax.get_title() == TITLE and is_grey(ax)


def test_mel_distance():
    ax = viz.mel_distance({"noise again": np.full(150, 2.0), "noise by place": np.zeros(150)}, run(), TITLE)
    x, y = ax.get_lines()[0].get_data()
    np.testing.assert_allclose(x, (np.arange(150) + 0.5) / 50)
    assert (y == 2).all()
    assert legend(ax) == [
        "noise again (mean 2.00 dB)",
        "noise by place (mean 0.00 dB)",
        "chunk boundary",
    ]
    assert [line.get_xdata()[0] for line in ax.get_lines()[2:]] == [1, 2]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "distance of the mels (dB)") and is_grey(ax)
    assert ax.get_title() == TITLE and ax.get_ylim()[0] == 0


def test_flow_noise():
    ax = viz.flow_noise({"as the reference": run(), "by place": run((10, 60, 110))}, TITLE)
    x, y = ax.get_lines()[0].get_data()
    assert y.tolist() == [*range(10, 60), *range(60, 110), *range(60, 110)] and x[-1] == pytest.approx(149.5 / 50)
    assert legend(ax) == ["as the reference (50 frames again)", "by place (0 frames again)"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "frame of the noise (number)") and is_grey(ax)
    assert len({line.get_linestyle() for line in ax.get_lines()}) == 2 and ax.get_title() == TITLE


@pytest.mark.parametrize(
    "draw",
    [
        lambda: viz.pitch_and_source(made(), TITLE, start=1.0),
        lambda: viz.pitch_and_source(made(), TITLE, seconds=0),
        lambda: viz.stream_timeline(run(), TITLE, codes_per_second=0),
        lambda: viz.mel_distance({}, run(), TITLE),
        lambda: viz.flow_noise({}, TITLE),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_figure_is_made(draw):
    with pytest.raises(ConfigError):
        draw()
    assert not pyplot.get_fignums()
