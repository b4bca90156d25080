"""What each picture shows: its data, its labels with units, and that it needs no colour."""

import subprocess
import sys

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib", reason="plots need the extra `notebook`")
matplotlib.use("Agg")

from matplotlib import pyplot
from plot_readings import bar_label, image, is_grey, legend

from stepaudio import viz as plots
from stepaudio.checkpoints.report import ComponentReport, Misshaped, WeightReport
from stepaudio.decoding.loop_detector import Loop, find_loop
from stepaudio.errors import ConfigError

RNG = np.random.default_rng(0)
TITLE = "What this shows"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


# ---- sound ----


def test_waveform_and_mel_share_one_axis_of_seconds():
    samples, mel = RNG.normal(0, 0.1, 1_600).astype(np.float32), RNG.normal(size=(128, 12))
    wave, below = plots.waveform_and_mel(samples, mel, TITLE)
    x, y = wave.get_lines()[0].get_data()
    np.testing.assert_allclose(x, np.arange(1_600) / 16_000)
    np.testing.assert_array_equal(y, samples)
    np.testing.assert_array_equal(image(below), mel)
    assert below.images[0].get_extent() == pytest.approx([-0.005, 0.115, -0.5, 127.5])  # frame t centred on t
    assert wave.get_xlim() == below.get_xlim() == pytest.approx((0, 0.12))
    assert wave.get_title() == TITLE and below.get_xlabel() == "time (s)"
    assert "full scale" in wave.get_ylabel() and below.get_ylabel() == "mel band (number)"
    assert "log10 power" in bar_label(below) and is_grey(wave) and is_grey(below)


def test_a_long_waveform_keeps_its_peaks():
    samples = np.zeros(160_000, np.float32)
    samples[77_777], samples[123_456] = 0.9, -0.8
    wave, _ = plots.waveform_and_mel(samples, np.zeros((128, 1000)), TITLE)
    x, y = wave.get_lines()[0].get_data()
    assert len(x) <= 4_002 and (y.max(), y.min()) == (np.float32(0.9), np.float32(-0.8))
    assert x[y.argmax()] == pytest.approx(77_777 / 16_000, abs=0.01)
    assert x[y.argmin()] == pytest.approx(123_456 / 16_000, abs=0.01)


def test_filterbanks():
    one, other = np.eye(4, 201) * 0.5, np.eye(4, 201, k=8) * 3
    other[3] = 0
    ax = plots.filterbanks({"one": one, "other": other}, TITLE, every=2)
    lines = ax.get_lines()
    assert len(lines) == 4
    x, y = lines[1].get_data()
    assert x[y.argmax()] == 2 * 40 and y.max() == 1  # the third filter peaks in bin 2, 40 Hz apart
    assert len({line.get_linestyle() for line in lines}) == 2
    assert legend(ax) == ["one (highest 0.5, 0 of 4 filters empty)", "other (highest 3, 1 of 4 filters empty)"]
    assert ax.get_xlabel() == "frequency (Hz)" and ax.get_xlim() == (0, 8000) and ax.get_title() == TITLE
    assert "highest" in ax.get_ylabel() and is_grey(ax)


def test_mel_difference_over_the_frames_that_both_have():
    first, second = RNG.normal(size=(128, 30)), RNG.normal(size=(128, 28))
    ax = plots.mel_difference(first, second, TITLE, names=("right", "wrong"))
    np.testing.assert_allclose(image(ax), first[:, :28] - second)
    low, high = ax.images[0].get_clim()
    assert low == -high and high == pytest.approx(np.abs(first[:, :28] - second).max())
    assert bar_label(ax).startswith("right - wrong") and "40 dB" in bar_label(ax)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("time (s)", "mel band (number)", TITLE)
    assert is_grey(ax)


def test_two_equal_mels_differ_nowhere():
    ax = plots.mel_difference(np.ones((8, 3)), np.ones((8, 3)), TITLE)
    assert (image(ax) == 0).all() and ax.images[0].get_clim() == (-1, 1)


def test_attention_to_audio_time():
    weights = np.array([[0.1, 0.3, 0.2], [0.0, 0.05, 0.1]])
    ax = plots.audio_attention(weights, np.array([0.0, 0.08, 0.16]), ["a", "b$"], TITLE)
    np.testing.assert_allclose(image(ax), [[1 / 3, 1, 2 / 3], [0, 0.5, 1]])
    x, y = ax.get_lines()[0].get_data()
    np.testing.assert_allclose(x, [0.12, 0.20])
    assert list(y) == [0, 1] and ax.get_ylim() == (1.5, -0.5)  # the first id on top
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", r"b\$"]
    assert ax.get_xlabel() == "audio time (s)" and ax.get_title() == TITLE and legend(ax) == ["most read 80 ms"]
    assert bar_label(ax) == "attention / highest of the id" and ax.get_ylabel() and is_grey(ax)


# ---- runs ----


def test_loop_raster():
    ids = [7, 900, 5, *[3, 900, 4] * 12]
    loop = find_loop(ids)
    ax = plots.loop_raster(ids, TITLE, loop=loop, text_limit=800)
    text, other = ax.get_lines()
    values = sorted(set(ids))
    drawn = {int(s): values[int(r)] for line in (text, other) for s, r in zip(*line.get_data(), strict=True)}
    assert [drawn[i] for i in range(len(ids))] == ids
    assert {values[int(r)] for r in other.get_ydata()} == {900}
    assert [t.get_text() for t in ax.get_yticklabels()] == [str(v) for v in values]
    shaded = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (shaded.x0, shaded.x1) == pytest.approx((loop.onset - 0.5, len(ids) - 0.5))
    assert "loop: 3 ids" in legend(ax)[-1] and f"from step {loop.onset}" in legend(ax)[-1]
    assert ax.get_xlabel() == "step (ids written)" and "id" in ax.get_ylabel() and ax.get_title() == TITLE
    assert is_grey(ax)


def test_a_run_without_a_loop_is_not_shaded():
    ax = plots.loop_raster(list(range(40)), TITLE)
    assert not ax.patches and legend(ax) == ["text id"] and len(ax.get_yticks()) == 12


def test_wer_against_loops():
    ax = plots.wer_against_loops(
        {"planned": (0.02, 0, 0.05, 0.3, 0.25, 0.36), "none": (0.1, 0.06, 0.2, 0.28, 0.24, 0.33)}, TITLE
    )
    for container, x, y, spans in zip(
        ax.containers, (2, 10), (30, 28), (((0, 5), (25, 36)), ((6, 20), (24, 33))), strict=True
    ):
        point, _, bars = container
        assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((x, y))
        across, upright = (b.get_segments()[0] for b in bars)
        assert across[:, 0].tolist() == pytest.approx(spans[0])
        assert upright[:, 1].tolist() == pytest.approx(spans[1])
    assert len({c[0].get_marker() for c in ax.containers}) == 2 and legend(ax) == ["planned", "none"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("runs that loop (%)", "word error rate (%)")
    assert ax.get_title() == TITLE and ax.get_ylim()[0] == 0 and is_grey(ax)


def test_wer_against_bytes():
    names = [f"limit {i}" for i in range(11)]
    ax = plots.wer_against_bytes({n: (1024 * (i + 1), 0.3, 0.25, 0.36) for i, n in enumerate(names)}, TITLE)
    point, _, (upright,) = ax.containers[10]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((11, 30))
    assert upright.get_segments()[0][:, 1].tolist() == pytest.approx([25, 36])
    looks = {(c[0].get_marker(), str(c[0].get_markerfacecolor())) for c in ax.containers}
    assert len(looks) == 11 and legend(ax) == names and ax.get_title() == TITLE
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("keys and values held (KiB)", "word error rate (%)")
    assert ax.get_xlim()[0] == ax.get_ylim()[0] == 0 and is_grey(ax)


def test_memory():
    curves = np.array([[4, 5, 6], [0, 1, 1], [8, 8, 9], [1, 1, 2]]) * MIB
    ax = plots.memory(*curves, TITLE)
    for line, curve in zip(ax.get_lines(), curves, strict=True):
        x, y = line.get_data()
        assert x.tolist() == [1, 2, 3]
        np.testing.assert_allclose(y, np.where(curve > 0, curve / MIB, np.nan))
    assert [t.split("\n")[0] for t in legend(ax)] == ["active", "cached", "peak", "keys and values"]
    assert "9 MiB" in legend(ax)[2] and ax.get_ylabel() == "memory (MiB)" and ax.get_yscale() == "log"
    assert ax.get_xlabel() == "step (ids written)" and ax.get_title() == TITLE
    assert len({line.get_linestyle() for line in ax.get_lines()}) == 4 and is_grey(ax)


# ---- weights ----


def report(**changes):
    layer = ["self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight"]
    names = [f"model.layers.{i}.{n}" for i in (0, 1, 10) for n in layer]
    names += ["encoder.conv1.weight", "encoder.blocks.0.attn.query.weight", "adapter.conv.weight", "lm_head.weight"]
    lost = {
        n
        for found in changes.values()
        for n in (getattr(m, "name", m[0] if isinstance(m, tuple) else m) for m in found)
    }
    counts = ComponentReport("model", len(names), 0, 0, 0, 0, 0, 0, {})
    return WeightReport("here", (counts,), tuple(n for n in names if n not in lost), **changes)


def test_weight_map_of_the_decoder():
    found = report(
        missing=("model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"),
        misshaped=(Misshaped("model.layers.10.mlp.up_proj.weight", (1,), (2,), "none found"),),
        wrong_dtype=(("model.layers.0.input_layernorm.weight", "I8"),),
    )
    ax = plots.weight_map(found, TITLE)
    columns, rows = ([t.get_text() for t in a] for a in (ax.get_xticklabels(), ax.get_yticklabels()))
    assert rows == ["0", "1", "10"]  # numbers, not strings
    assert columns == ["input_layernorm.weight", "mlp.up_proj.weight", "self_attn.q_proj.weight"]
    assert image(ax).tolist() == [[2, 0, 0], [0, 3, 3], [0, 1, 0]]  # loaded, mis-shaped, wrong dtype, missing
    assert ax.get_xticks().tolist() == [0.5, 1.5, 2.5] and ax.yaxis_inverted()
    assert legend(ax) == ["loaded (5)", "mis-shaped (1)", "wrong dtype (1)", "missing (2)"]
    shades = [ax.collections[0].cmap(i)[0] for i in range(4)]
    assert shades == sorted(shades, reverse=True) and min(-np.diff(shades)) > 0.2
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("tensor (published name)", "decoder layer (number)")
    assert ax.get_title() == TITLE and is_grey(ax)


def test_weight_map_of_the_rest_and_of_the_encoder():
    ax = plots.weight_map(report(missing=("encoder.conv1.weight",)), TITLE, stack="single")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["encoder", "adapter", "lm_head"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["conv1.weight", "conv.weight", "weight"]
    assert image(ax).filled(-1).tolist() == [[3, -1, -1], [-1, 0, -1], [-1, -1, 0]]
    assert ax.get_ylabel() == "component"
    ax = plots.weight_map(report(), TITLE, stack="encoder")
    assert image(ax).tolist() == [[0]] and ax.get_ylabel() == "encoder layer (number)"


def test_weight_map_of_a_real_report(tiny_model):
    ax = plots.weight_map(tiny_model.report, TITLE)
    assert image(ax).shape == (2, 12) and (image(ax) == 0).all()


def test_histograms():
    narrow, wide = RNG.normal(0, 1, (50, 40)), RNG.normal(0, 3, 3_000)
    wide[:7] = np.nan
    ax = plots.histograms({"narrow": narrow, "wide": wide}, TITLE, bins=30)
    for patch, values in zip(ax.patches, (narrow.ravel(), wide[7:]), strict=True):
        density, edges, _ = patch.get_data()
        wanted, _ = np.histogram(values.astype(np.float32), edges, density=True)
        assert len(edges) == 31 and (edges[0], edges[-1]) == pytest.approx((np.nanmin(wide), np.nanmax(wide)))
        np.testing.assert_allclose(density, wanted)
    assert legend(ax)[1].endswith("7 not finite)") and f"deviation {narrow.std():.3g}" in legend(ax)[0]
    assert len({p.get_linestyle() for p in ax.patches}) == 2 and ax.get_yscale() == "log"
    assert "value" in ax.get_xlabel() and "density" in ax.get_ylabel() and ax.get_title() == TITLE and is_grey(ax)


# ---- all of them ----


def test_a_constant_tensor_has_a_histogram():
    assert plots.histograms({"zeros": np.zeros(9)}, TITLE).patches[0].get_data()[0].tolist() == [1]


def test_the_caller_may_bring_the_axes():
    _, ax = pyplot.subplots()
    assert plots.loop_raster([1, 2], TITLE, ax=ax) is ax
    assert len(pyplot.get_fignums()) == 1


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.waveform_and_mel(np.zeros((2, 2)), np.zeros((2, 2)), TITLE),
        lambda: plots.filterbanks({}, TITLE),
        lambda: plots.mel_difference(np.zeros((3, 4)), np.zeros((2, 4)), TITLE),
        lambda: plots.audio_attention(np.zeros((2, 3)), np.zeros(3), ["one"], TITLE),
        lambda: plots.loop_raster([], TITLE, loop=Loop(1, 0, 4)),
        lambda: plots.wer_against_loops({"x": (0.1, 0.2, 0.3, 0.1, 0.0, 0.2)}, TITLE),
        lambda: plots.wer_against_bytes({"x": (1024, 0.1, 0.2, 0.3)}, TITLE),
        lambda: plots.wer_against_bytes({}, TITLE),
        lambda: plots.memory(np.ones(2), np.ones(2), np.ones(2), np.ones(3), TITLE),
        lambda: plots.weight_map(WeightReport("here"), TITLE),
        lambda: plots.weight_map(report(), TITLE, stack="vocoder"),
        lambda: plots.histograms({"x": np.array([np.nan])}, TITLE),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_figure_is_made(draw):
    with pytest.raises(ConfigError):
        draw()
    assert not pyplot.get_fignums()


def test_matplotlib_is_imported_only_when_something_is_drawn_and_missed_in_one_line():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from stepaudio import viz as plots\n"
        "from stepaudio.errors import ConfigError\n"
        "try: plots.loop_raster([1], 'x')\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "stepaudio[notebook]" in done.stdout
