"""Widgets without a browser: set a control's value, read what the others then hold."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny

pytest.importorskip("matplotlib", reason="widgets need the extra `notebook`")
pytest.importorskip("ipywidgets", reason="widgets need the extra `notebook`")

import matplotlib

matplotlib.use("Agg")

import ipywidgets
import soundfile
from matplotlib import pyplot

from stepaudio.audio.save import save_audio
from stepaudio.checkpoints.layout import expected_layout
from stepaudio.errors import ConfigError
from stepaudio.evaluation.manifest import Clip
from stepaudio.viz import widgets

PNG = b"\x89PNG"


def parts(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)


def control(widget, name):
    return next(p for p in parts(widget) if getattr(p, "description", None) == name)


def only(widget, kind):
    found = [p for p in parts(widget) if type(p) is kind]
    assert len(found) == 1
    return found[0]


def picture(widget):
    return bytes(only(widget, ipywidgets.Image).value)


def told(widget):
    return re.sub("<[^>]+>", "\n", only(widget, ipywidgets.HTML).value)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    sounds = {"a.wav": tiny.noise(1.0), "b.wav": tiny.noise(2.5, seed=1), "still.wav": np.zeros(16_000, np.float32)}
    for name, samples in sounds.items():
        save_audio(folder / name, samples)
    (folder / "broken.wav").write_bytes(b"no sound")
    return [
        Clip(folder / name, text)
        for name, text in [("a.wav", "the cat & the mat"), ("b.wav", "time"), ("still.wav", ""), ("broken.wav", "x")]
    ]


# ---- recordings ----


def test_a_picked_clip_is_played_and_drawn(clips):
    viewer = widgets.clip_viewer(clips)
    assert control(viewer, "clip").options == ("a.wav", "b.wav", "still.wav", "broken.wav")
    first = picture(viewer)
    assert first.startswith(PNG) and "1.0 s. Said: the cat &amp; the mat" in told(viewer)
    control(viewer, "clip").value = "b.wav"
    sound, rate = soundfile.read(io.BytesIO(bytes(only(viewer, ipywidgets.Audio).value)))
    assert rate == 16_000 and len(sound) == 40_000
    np.testing.assert_allclose(sound, soundfile.read(clips[1].file)[0], atol=1e-4)
    assert picture(viewer) != first and "2.5 s. Said: time" in told(viewer)


def test_an_unreadable_clip_is_told_inside_and_the_next_one_works(clips):
    viewer = widgets.clip_viewer(clips)
    control(viewer, "clip").value = "broken.wav"
    assert "This does not work" in told(viewer) and "broken.wav" in told(viewer)
    control(viewer, "clip").value = "b.wav"
    assert "Said: time" in told(viewer)


def test_bundled_recordings_are_the_default():
    assert "human_0880.flac" in control(widgets.clip_viewer(), "clip").options


def test_no_clips_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        widgets.clip_viewer([])


# ---- decoding ----


def test_a_penalty_changes_the_run(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=48)
    before = told(explorer), picture(explorer)
    heard = tiny_model.transcribe(clips[0].file, sampling=widgets.Sampling.greedy(), max_tokens=48)
    assert heard.text.split("\n")[0][:20].strip() in widgets.html.unescape(before[0])
    control(explorer, "n-gram ban").value = 1  # no id twice
    after = told(explorer), picture(explorer)
    assert "no loop" in after[0] and after != before and after[1].startswith(PNG)
    control(explorer, "n-gram ban").value = 0
    assert without_speed(told(explorer)) == without_speed(before[0])  # nothing sticks


def without_speed(text):
    assert re.search(r"\d+ ids/s", text)
    return re.sub(r"\d+ ids/s", "", text)


def test_a_cache_limit_changes_the_run_and_an_impossible_one_is_told(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=48)
    control(explorer, "clip").value = "b.wav"
    full = without_speed(told(explorer))
    control(explorer, "cache").value = "window"
    assert without_speed(told(explorer)) == full  # 512 positions hold all of it
    control(explorer, "limit").value = 32
    assert without_speed(told(explorer)) != full
    control(explorer, "cache").value = "pinned"  # 4 sinks and 32 rows of audio do not fit
    assert "This does not work: cache limit of 32" in told(explorer)
    control(explorer, "limit").value = 512
    assert without_speed(told(explorer)) == full


def test_silence_is_not_decoded(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=8)
    control(explorer, "clip").value = "still.wav"
    assert "-60 dBFS" in told(explorer) and picture(explorer) == b""


def test_an_error_that_is_not_ours_does_not_leave_the_widget(clips, tiny_model, monkeypatch):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=8)
    monkeypatch.setattr(widgets, "_load", lambda clip: 1 / 0)
    control(explorer, "frequency").value = 1.0
    assert "ZeroDivisionError" in told(explorer)


# ---- weights ----


def test_every_tensor_can_be_reached_under_its_published_name(tiny_model):
    explorer = widgets.weight_explorer(tiny_model)
    layer, tensor, seen = control(explorer, "layer"), control(explorer, "tensor"), []
    for name in layer.options:
        layer.value = name
        seen += tensor.options
    assert sorted(seen) == sorted(expected_layout(tiny_model.config)) and "model.layers.1" in layer.options


def test_a_clicked_tensor_tells_shape_and_values(tiny_model):
    explorer = widgets.weight_explorer(tiny_model)
    control(explorer, "layer").value = "encoder"
    control(explorer, "tensor").value = "encoder.conv1.weight"
    values = np.array(tiny_model.net.encoder.conv1.weight)
    assert "encoder.conv1.weight: (32, 128, 3)" in told(explorer)  # as on disk, not as in memory
    assert f"deviation {values.std():.4g}" in told(explorer)
    first = picture(explorer)
    control(explorer, "layer").value = "model.layers.1"
    assert picture(explorer) != first and "model.layers.1." in told(explorer)


def test_a_large_tensor_is_read_in_part(tiny_model, monkeypatch):
    monkeypatch.setattr(widgets, "MAX_VALUES", 1000)
    explorer = widgets.weight_explorer(tiny_model)
    control(explorer, "layer").value = "lm_head"
    size = tiny_model.net.lm_head.weight.size
    assert f"every {-(-size // 1000)}th value" in told(explorer)


def test_no_figure_stays_open(tiny_model, clips):
    before = pyplot.get_fignums()
    explorer = widgets.weight_explorer(tiny_model)
    control(explorer, "layer").value = "lm_head"
    widgets.clip_viewer(clips)
    assert pyplot.get_fignums() == before


def test_only_this_module_imports_ipywidgets_and_only_when_called():
    code = (
        "import sys; sys.modules['ipywidgets'] = None; import stepaudio.viz.widgets as w\n"
        "try: w.clip_viewer()\nexcept w.ConfigError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install stepaudio[notebook]" in done.stdout
