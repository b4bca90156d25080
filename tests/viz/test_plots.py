"""What each figure shows: its data, its labels with units, and that it can be read in grey."""

import subprocess
import sys

import numpy as np
import pytest
from plot_readings import bar_of, image, is_grey, legend, mesh

from stepaudio import viz
from stepaudio.checkpoints.report import ComponentReport, Misshaped, WeightReport
from stepaudio.decoding.loop_detector import Loop, find_loop
from stepaudio.errors import ConfigError
from stepaudio.evaluation.intervals import Interval
from stepaudio.interp.ablation import HeadTable
from stepaudio.interp.patching import Patched, TraceMap
from stepaudio.interp.probes import Probes

pyplot = pytest.importorskip("matplotlib.pyplot", reason="plots need the extra `notebook`")
pyplot.switch_backend("Agg")
RNG = np.random.default_rng(0)
TITLE = "What this shows"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


# ---- runs ----


def test_token_raster():
    tokens = [7, 900, 5, *[3, 900, 4] * 12]
    loop = find_loop(tokens)
    ax = viz.token_raster(tokens, TITLE, loop=loop, text_limit=800)
    text, other = ax.get_lines()
    order = [7, 900, 5, 3, 4]  # of first use
    drawn = {int(s): order[int(r)] for line in (text, other) for s, r in zip(*line.get_data(), strict=True)}
    assert [drawn[i] for i in range(len(tokens))] == tokens
    assert {order[int(r)] for r in other.get_ydata()} == {900}
    assert [t.get_text() for t in ax.get_yticklabels()] == [str(v) for v in order]
    shaded = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (shaded.x0, shaded.x1) == pytest.approx((loop.onset - 0.5, len(tokens) - 0.5))
    assert "loop: 3 tokens" in legend(ax)[-1] and f"from step {loop.onset}" in legend(ax)[-1]
    assert ax.get_xlabel() == "step (tokens generated)" and "token" in ax.get_ylabel() and ax.get_title() == TITLE
    assert is_grey(ax)


def test_token_raster_writes_texts_on_its_axis():
    ax = viz.token_raster([5, 2, 5, 9], TITLE, texts=[" six", " two", " six", "$"])
    assert [t.get_text() for t in ax.get_yticklabels()] == [" six", " two", r"\$"]
    assert ax.yaxis_inverted()  # the first token on top


def test_what_the_font_cannot_draw_is_written_as_its_code():
    ax = viz.token_raster([1, 2, 3], TITLE, texts=["\u4f60", "a\n", "\x08"])
    ax.figure.canvas.draw()  # would warn of a missing glyph
    assert [t.get_text() for t in ax.get_yticklabels()] == [r"\u4f60", r"a\n", r"\x08"]


def test_a_run_without_a_loop_is_not_shaded():
    ax = viz.token_raster(list(range(40)), TITLE)
    assert not ax.patches and legend(ax) == ["text token"] and ax.get_yticks().tolist() == [*range(0, 40, 3)]


def test_wer_against_loops():
    ax = viz.wer_against_loops(
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


def test_dose_response():
    curves = {
        "white": [(20, 0.04, 0.01, 0.08), (0, 0.3, 0.2, 0.4)],
        "pink": [(20, 0.05, 0.02, 0.1), (0, 0.2, 0.1, 0.3)],
    }
    ax = viz.dose_response(curves, TITLE)
    for container, (name, points) in zip(ax.containers, curves.items(), strict=True):
        line, _, (bars,) = container
        for i, (dose, rate, low, high) in enumerate(points):
            assert line.get_ydata()[i] == pytest.approx(100 * rate)
            assert line.get_xdata()[i] == pytest.approx(dose, abs=0.5)  # beside the other
            assert bars.get_segments()[i][:, 1] == pytest.approx([100 * low, 100 * high])
        assert container.get_label() == name
    left, right = ax.get_xlim()
    assert left > right and ax.get_ylim()[0] == 0 and legend(ax) == ["white", "pink"] and is_grey(ax)
    with pytest.raises(ConfigError, match="low <= rate"):
        viz.dose_response({"white": [(0, 0.1, 0.2, 0.3)]}, TITLE)
    with pytest.raises(ConfigError, match="found 0"):
        viz.dose_response({}, TITLE)


def test_settings_at_one_point_share_a_mark_that_names_them_all():
    here, there = (0.0, 0.0, 0.0, 0.03, 0.01, 0.06), (0.1, 0.0, 0.2, 0.03, 0.01, 0.06)
    ax = viz.wer_against_loops({"a": here, "b": there, "c": here}, TITLE)
    assert legend(ax) == ["a\n= c", "b"] and len(ax.containers) == 2
    ax = viz.wer_against_bytes({"a": (1024, *here[3:]), "b": (1024, *here[3:])}, TITLE)
    assert legend(ax) == ["a\n= b"] and ax.get_xlabel() == "keys and values held (KiB)"
    far = viz.wer_against_bytes({"a": (30 * MIB, *here[3:])}, TITLE, what="weights")
    assert far.get_xlabel() == "weights (MiB)" and far.containers[0][0].get_xdata()[0] == 30


def test_points_at_one_place_are_drawn_side_by_side_and_keep_their_values():
    points = {f"setting {i}": (0.0, 0.0, 0.0, 0.03 + i / 100, 0.01, 0.09) for i in range(3)}
    ax = viz.wer_against_loops(points, TITLE)
    marks = [container[0] for container in ax.containers]
    assert [m.get_xdata()[0] for m in marks] == [0, 0, 0]
    assert ax.get_ylim()[1] > 9 and ax.get_xlim()[0] < 0  # all of the bars is inside
    ax.figure.canvas.draw()
    drawn = [m.get_transform().transform(m.get_xydata())[0, 0] for m in marks]
    np.testing.assert_allclose(np.diff(drawn), 9 / 72 * ax.figure.dpi)


def test_points_at_one_place_stay_there_where_they_can_be_told_apart():
    points = {f"setting {i}": (0.0, 0.0, 0.0, i / 10, i / 10 - 0.01, i / 10 + 0.01) for i in range(1, 4)}
    ax = viz.wer_against_loops(points, TITLE)
    ax.figure.canvas.draw()
    drawn = [c[0].get_transform().transform(c[0].get_xydata())[0, 0] for c in ax.containers]
    np.testing.assert_allclose(np.diff(drawn), 0, atol=1e-9)


def test_wer_against_bytes():
    names = [f"limit {i}" for i in range(11)]
    ax = viz.wer_against_bytes({n: (1024 * (i + 1), 0.3, 0.25, 0.36) for i, n in enumerate(names)}, TITLE)
    point, _, (upright,) = ax.containers[10]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((11, 30))
    assert upright.get_segments()[0][:, 1].tolist() == pytest.approx([25, 36])
    looks = {(c[0].get_marker(), str(c[0].get_markerfacecolor())) for c in ax.containers}
    assert len(looks) == 11 and legend(ax) == names and ax.get_title() == TITLE
    assert ax.get_xlim()[1] > 11 and ax.get_ylim()[1] > 36  # all of the marks and bars is inside
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("keys and values held (KiB)", "word error rate (%)")
    assert ax.get_xlim()[0] == ax.get_ylim()[0] == 0 and is_grey(ax)


def test_memory():
    curves = np.array([[4, 5, 6], [0, 1, 1], [8, 8, 9], [1, 1, 2]]) * MIB
    ax = viz.memory(*curves, TITLE)
    for line, curve in zip(ax.get_lines(), curves, strict=True):
        x, y = line.get_data()
        assert x.tolist() == [1, 2, 3]
        np.testing.assert_allclose(y, np.where(curve > 0, curve / MIB, np.nan))
    assert [t.split("\n")[0] for t in legend(ax)] == ["active", "cached", "peak", "keys and values"]
    assert "9 MiB" in legend(ax)[2] and ax.get_ylabel() == "memory (MiB)" and ax.get_yscale() == "log"
    assert ax.get_xlabel() == "step (tokens generated)" and ax.get_title() == TITLE
    assert len({line.get_linestyle() for line in ax.get_lines()}) == 4 and is_grey(ax)


def test_bytes_of_caches_of_runs_of_unlike_length():
    ax = viz.kv_bytes({"full": [1024, 1024, 2048], "window": [512]}, TITLE)
    full, window = ax.get_lines()
    assert full.get_xdata().tolist() == [1, 2, 3] and full.get_ydata().tolist() == [1, 1, 2]
    assert window.get_ydata().tolist() == [0.5] and legend(ax) == ["full\n(2 KiB)", "window\n(0 KiB)"]
    assert ax.get_ylim()[0] == 0 and "KiB" in ax.get_ylabel() and ax.get_title() == TITLE and is_grey(ax)
    assert ax.get_yscale() == "linear" and full.get_linestyle() != window.get_linestyle()


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
    ax = viz.weight_map(found, TITLE)
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
    ax = viz.weight_map(report(missing=("encoder.conv1.weight",)), TITLE, stack="single")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["encoder", "adapter", "lm_head"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["conv1.weight", "conv.weight", "weight"]
    assert image(ax).filled(-1).tolist() == [[3, -1, -1], [-1, 0, -1], [-1, -1, 0]]
    assert ax.get_ylabel() == "component"
    ax = viz.weight_map(report(), TITLE, stack="encoder")
    assert image(ax).tolist() == [[0]] and ax.get_ylabel() == "encoder layer (number)"


def test_weight_map_of_a_real_report(tiny_model):
    ax = viz.weight_map(tiny_model.report, TITLE)
    assert image(ax).shape == (2, 12) and (image(ax) == 0).all()


def test_change_sizes():
    names = ["model.layers.10.mlp.up_proj.weight", "model.layers.2.self_attn.q_proj.weight"]
    sizes = {names[0]: 0.25, names[1]: 1.5, "model.layers.2.mlp.up_proj.weight": 0.0, "lm_head.weight": 9.0}
    ax = viz.change_sizes(sizes, TITLE)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["2", "10"]  # numbers, not strings; no lm_head
    assert [t.get_text() for t in ax.get_xticklabels()] == ["mlp.up_proj.weight", "self_attn.q_proj.weight"]
    x, y, values = mesh(ax)
    assert values.filled(-1).tolist() == [[0.0, 1.5], [0.25, -1]] and ax.yaxis_inverted()
    assert (x.tolist(), y.tolist()) == ([0, 1, 2], [0, 1, 2]) and ax.get_xticks().tolist() == [0.5, 1.5]
    written = {(t.get_position(), t.get_text()) for t in ax.texts}
    assert written == {((0.5, 0.5), "0.00"), ((1.5, 0.5), "1.50"), ((0.5, 1.5), "0.25")}
    assert ax.collections[0].get_clim() == (0, 1.5) and bar_of(ax).get_ylabel() == "change / tensor (norms)"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("tensor (published name)", "decoder layer (number)")
    assert ax.get_title() == TITLE and is_grey(ax)
    for bad in ({"lm_head.weight": 1.0}, {names[0]: -1.0}, {names[0]: float("nan")}, {names[0]: float("inf")}):
        with pytest.raises(ConfigError, match="change sizes"):
            viz.change_sizes(bad, TITLE)
    with pytest.raises(ConfigError, match="stack"):
        viz.change_sizes(sizes, TITLE, stack="single")


def test_histograms():
    narrow, wide = RNG.normal(0, 1, (50, 40)), RNG.normal(0, 3, 3_000)
    wide[:7] = np.nan
    ax = viz.histograms({"narrow": narrow, "wide": wide}, TITLE, bins=30, of="activation (nats)")
    for patch, values in zip(ax.patches, (narrow.ravel(), wide[7:]), strict=True):
        density, edges, _ = patch.get_data()
        wanted, _ = np.histogram(values.astype(np.float32), edges, density=True)
        assert len(edges) == 31 and (edges[0], edges[-1]) == pytest.approx((np.nanmin(wide), np.nanmax(wide)))
        np.testing.assert_allclose(density, wanted)
    assert legend(ax)[1].endswith("7 not finite)") and f"standard deviation {narrow.std():.3g}" in legend(ax)[0]
    assert len({p.get_linestyle() for p in ax.patches}) == 2 and ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("activation (nats)", "density (1 / activation)")
    assert ax.get_title() == TITLE and is_grey(ax)


# ---- all of them ----


def test_a_constant_tensor_has_a_histogram():
    assert viz.histograms({"zeros": np.zeros(9)}, TITLE).patches[0].get_data()[0].tolist() == [1]


def test_the_caller_may_bring_the_axes():
    _, ax = pyplot.subplots()
    assert viz.token_raster([1, 2], TITLE, ax=ax) is ax
    assert len(pyplot.get_fignums()) == 1


@pytest.mark.parametrize(
    "draw",
    [
        lambda: viz.waveform_and_mel(np.zeros(1600, np.float32), np.zeros(2), TITLE),
        lambda: viz.filterbanks({}, TITLE),
        lambda: viz.filterbank(hertz=(500, 100)),
        lambda: viz.mel_difference(np.zeros((3, 4)), np.zeros((2, 4)), TITLE),
        lambda: viz.audio_attention(np.zeros((2, 3)), np.zeros(3), ["one"], TITLE),
        lambda: viz.word_times(np.zeros(1600, np.float32), {}, TITLE),
        lambda: viz.word_times(np.zeros(1600, np.float32), {"x": [("a", 0.2, 0.1)]}, TITLE),
        lambda: viz.token_raster([], TITLE, loop=Loop(1, 0, 4)),
        lambda: viz.token_raster([1, 2], TITLE, texts=["one"]),
        lambda: viz.kv_bytes({"x": []}, TITLE),
        lambda: viz.wer_against_loops({"x": (0.1, 0.2, 0.3, 0.1, 0.0, 0.2)}, TITLE),
        lambda: viz.wer_against_bytes({"x": (1024, 0.1, 0.2, 0.3)}, TITLE),
        lambda: viz.wer_against_bytes({}, TITLE),
        lambda: viz.memory(np.ones(2), np.ones(2), np.ones(2), np.ones(3), TITLE),
        lambda: viz.weight_map(WeightReport("here"), TITLE),
        lambda: viz.weight_map(report(), TITLE, stack="vocoder"),
        lambda: viz.histograms({"x": np.array([np.nan])}, TITLE),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_figure_is_made(draw):
    with pytest.raises(ConfigError):
        draw()
    assert not pyplot.get_fignums()


def test_matplotlib_is_imported_only_when_something_is_drawn_and_missed_in_one_line():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from stepaudio import viz\n"
        "from stepaudio.errors import ConfigError\n"
        "try: viz.token_raster([1], 'x')\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "stepaudio[notebook]" in done.stdout


# ---- patches ----


def test_a_causal_map_stands_in_seconds_and_layers():
    patched = Patched(("",) * 6, "logit_difference", 3.0, 1.0, np.array([1, 1, 3, 1, 2, 0.5]), np.zeros((6, 0)))
    found = TraceMap(("decoder.0.resid_post", "decoder.1.resid_post"), np.array([0, 0.4, 0.8, 1.0]), patched)
    ax = viz.causal_map(found, TITLE)
    x, y, values = mesh(ax)
    np.testing.assert_allclose(x, [0, 0.4, 0.8, 1.0])
    np.testing.assert_allclose(values, [[0, 0, 100], [0, 50, -25]])
    assert [t.get_text() for t in ax.get_yticklabels()] == list(found.names) and y.tolist() == [-0.5, 0.5, 1.5]
    assert ax.get_xlabel() == "audio time (s)" and bar_of(ax).get_ylabel() == "difference restored (%)"
    assert [t.get_position()[1] for t in ax.texts] == [1] and ax.get_title() == TITLE
    same = Patched(("",) * 6, "wer", 1.0, 1.0, np.ones(6), np.zeros((6, 0)))
    with pytest.raises(ConfigError, match="measure the same"):
        viz.causal_map(TraceMap(found.names, found.edges, same), TITLE)


def test_a_head_map_is_the_mean_over_clips():
    lost = RNG.normal(size=(3, 2, 4))
    ax = viz.head_map(HeadTable(("decoder.0.z", "decoder.1.z"), lost), TITLE)
    np.testing.assert_allclose(mesh(ax)[2], lost.mean(axis=0))
    assert ax.get_xlabel() == "head" and "nats per token" in bar_of(ax).get_ylabel()


def test_a_difference_map_writes_what_it_shades():
    cells = [Interval("wer", e, e - 0.1, e + 0.1, 0.95, 9) for e in (-0.05, 0.3, 0.0, 2.0)]
    found = {"encoder": dict(zip("ab", cells[:2], strict=True)), "head": dict(zip("ab", cells[2:], strict=True))}
    ax = viz.difference_map(found, TITLE, most=0.5)
    np.testing.assert_allclose(mesh(ax)[2], [[-5, 30], [0, 200]])
    texts = [t.get_text() for t in ax.texts]
    assert texts[:4] == ["-5.0", "-15 … +5", "+30.0", "+20 … +40"] and texts[6] == "+200.0"
    assert [t.get_weight() for t in ax.texts[::2]] == ["normal", "bold", "normal", "bold"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["encoder", "head"] and ax.yaxis_inverted()
    assert "points" in bar_of(ax).get_ylabel() and ax.get_title() == TITLE
    with pytest.raises(ConfigError, match="same columns"):
        viz.difference_map({"encoder": {"a": cells[0]}, "head": {"b": cells[0]}}, TITLE)


# ---- probes ----


def test_probe_scores_stand_over_their_controls():
    scores = tuple(Interval("accuracy", e, e - 0.1, e + 0.05, 0.95, 9) for e in (0.5, 0.9))
    controls = np.array([[0.2, 0.4], [0.1, 0.3]])
    names = ("encoder.0.resid_post", "adapter.out")
    found = Probes(names, scores, controls, scores, 0.25, np.zeros((2, 4)), 9, 4)
    ax = viz.probe_scores(found, TITLE)
    (probe, *_), mean, guess = (
        ax.containers[0].lines,
        *(line for line in ax.get_lines() if line.get_linestyle() in ("--", ":")),
    )
    np.testing.assert_allclose(probe.get_ydata(), [50, 90])
    np.testing.assert_allclose(mean.get_ydata(), [30, 20])
    np.testing.assert_allclose(guess.get_ydata(), [25, 25])
    bars = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[40, 55], [80, 95]])
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((10, 40))
    assert [t.get_text() for t in ax.get_xticklabels()] == list(names) and ax.get_ylabel() == "accuracy (%)"
    assert legend(ax) == ["controls", "mean of controls", "guess", "probe, 95% interval"] and is_grey(ax)
