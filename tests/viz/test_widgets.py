"""Widgets without a browser: set a control's value, read what the others then hold."""

import datetime
import html
import io
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tiny

from stepaudio.audio.save import save_audio
from stepaudio.checkpoints.layout import expected_layout
from stepaudio.errors import ConfigError
from stepaudio.evaluation.manifest import Clip
from stepaudio.evaluation.word_errors import normalise
from stepaudio.viz import recordings, widgets

pyplot = pytest.importorskip("matplotlib.pyplot", reason="widgets need the extra `notebook`")
ipywidgets = pytest.importorskip("ipywidgets", reason="widgets need the extra `notebook`")
pyplot.switch_backend("Agg")
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


def shown(widget):
    """The texts of the widget, the busy sign among them."""
    return re.sub("<[^>]+>", "\n", "".join(p.value for p in parts(widget) if type(p) is ipywidgets.HTML))


def upload(widget, name, samples, rate=16_000):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    one = {"name": name, "type": "audio/wav", "size": 1, "content": memoryview(file.getvalue())}
    control(widget, "your own").value = ({**one, "last_modified": datetime.datetime(2026, 1, 1)},)


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
    assert first.startswith(PNG) and "1.0 s. Said: the cat &amp; the mat" in shown(viewer)
    control(viewer, "clip").value = "b.wav"
    sound, rate = soundfile.read(io.BytesIO(bytes(only(viewer, ipywidgets.Audio).value)))
    assert rate == 16_000 and len(sound) == 40_000
    np.testing.assert_allclose(sound, soundfile.read(clips[1].file)[0], atol=1e-4)
    assert picture(viewer) != first and "2.5 s. Said: time" in shown(viewer)


def test_an_unreadable_clip_is_reported_inside_and_the_next_one_works(clips):
    viewer = widgets.clip_viewer(clips)
    control(viewer, "clip").value = "broken.wav"
    assert "This does not work" in shown(viewer) and "broken.wav" in shown(viewer)
    assert picture(viewer) == b"" == bytes(only(viewer, ipywidgets.Audio).value)  # nothing of a.wav stays beside it
    control(viewer, "clip").value = "b.wav"
    assert "Said: time" in shown(viewer)


def test_clips_of_one_name_do_not_hide_each_other(tmp_path):
    for folder, seconds in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        save_audio(tmp_path / folder / "1.wav", tiny.noise(seconds))
    viewer = widgets.clip_viewer([Clip(tmp_path / f / "1.wav", f) for f in "ab"])
    assert control(viewer, "clip").options == ("a/1.wav", "b/1.wav") and "1.0 s. Said: a" in shown(viewer)
    control(viewer, "clip").value = "b/1.wav"
    assert "2.0 s. Said: b" in shown(viewer)
    for name, seconds in (("b/1.wav", 3.0), ("b/1.wav", 4.0)):  # uploads take no name that is there
        upload(viewer, name, tiny.noise(seconds))
        assert f"{seconds} s. Said: not given" in shown(viewer)
    assert control(viewer, "clip").options[2:] == ("b/1.wav (2)", "b/1.wav (3)")
    control(viewer, "clip").value = "b/1.wav"
    assert "2.0 s. Said: b" in shown(viewer)


def test_bundled_recordings_are_the_default():
    assert "human_0880.flac" in control(widgets.clip_viewer(), "clip").options


def test_no_clips_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        widgets.clip_viewer([])


# ---- decoding ----


def test_a_penalty_changes_the_run(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=48)
    before = shown(explorer), picture(explorer)
    found = tiny_model.transcribe(clips[0].file, sampling=widgets.Sampling.greedy(), max_tokens=48)
    assert found.text.split("\n")[0][:20].strip() in html.unescape(before[0])
    control(explorer, "n-gram ban").value = 1  # no id twice
    after = shown(explorer), picture(explorer)
    assert "no loop" in after[0] and after != before and after[1].startswith(PNG)
    control(explorer, "n-gram ban").value = 0
    assert without_speed(shown(explorer)) == without_speed(before[0])  # nothing sticks


def without_speed(text):
    assert re.search(r"\d+ tokens/s", text)
    return re.sub(r"\d+ tokens/s", "", text)


def test_a_cache_limit_changes_the_run_and_an_impossible_one_is_shown(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=48)
    control(explorer, "clip").value = "b.wav"
    full = without_speed(shown(explorer))
    control(explorer, "cache").value = "window"
    assert without_speed(shown(explorer)) == full  # 512 positions hold all of it
    control(explorer, "limit").value = 32
    assert without_speed(shown(explorer)) != full
    control(explorer, "cache").value = "pinned"  # 4 sinks and 32 rows of audio do not fit
    assert "This does not work: cache limit of 32" in shown(explorer)
    control(explorer, "limit").value = 512
    assert without_speed(shown(explorer)) == full


def test_of_a_long_clip_only_what_was_heard_is_scored(tiny_model, tmp_path):
    save_audio(tmp_path / "long.wav", tiny.noise(30.0))
    heard = tiny_model.transcribe(
        tiny.noise(30.0)[: 25 * 16_000], sampling=widgets.Sampling.greedy(), max_tokens=8
    ).text
    clip = Clip(tmp_path / "long.wav", f"{heard} {'and so on ' * 40}")
    text = shown(widgets.decoding_explorer(tiny_model, [clip], max_tokens=8))
    n = len(normalise(heard).split())
    assert f"only the first 25 s of 30 s were decoded: at least 0 errors in {n} words" in text
    quiet = np.concatenate([np.zeros(25 * 16_000, np.float32), tiny.noise(2.0)])
    save_audio(tmp_path / "quiet.wav", quiet)
    text = shown(widgets.decoding_explorer(tiny_model, [Clip(tmp_path / "quiet.wav", "x")], max_tokens=8))
    assert "Nothing in the first 25 s of this clip" in text and "errors" not in text


def test_silence_is_not_decoded(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=8)
    control(explorer, "clip").value = "still.wav"
    assert "-60 dBFS" in shown(explorer) and picture(explorer) == b""


def test_an_error_that_is_not_ours_does_not_leave_the_widget(clips, tiny_model, monkeypatch):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=8)
    monkeypatch.setattr(recordings, "load_audio", lambda source: 1 / 0)
    control(explorer, "frequency").value = 1.0
    assert "ZeroDivisionError" in shown(explorer) and picture(explorer) == b""


def test_a_preset_sets_the_controls_and_runs_once(tiny_model, clips, monkeypatch):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=4)
    runs, decode = [], widgets._decode

    def counted(*args):
        runs.append(args)
        return decode(*args)

    monkeypatch.setattr(widgets, "_decode", counted)
    control(explorer, "preset").value = "published chat"
    names = ("temperature", "top-k", "top-p", "repetition", "penalties count the prompt")
    assert [control(explorer, n).value for n in names] == [0.7, 50, 0.9, 1.05, True]
    assert len(runs) == 1 and runs[0][2] == widgets.Sampling.reference("chat")
    control(explorer, "temperature").value = 0.5
    assert control(explorer, "preset").value == "custom" and len(runs) == 2 and runs[1][2].temperature == 0.5
    control(explorer, "temperature").value = 0.7
    assert control(explorer, "preset").value == "published chat" and len(runs) == 3


def test_every_preset_is_reached_by_its_name(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=2)
    assert control(explorer, "preset").value == "reference"
    for name in widgets.PRESETS:
        control(explorer, "preset").value = name
        assert control(explorer, "preset").value == name


def test_options_without_effect_are_disabled(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=2)

    def off():
        return {c.description for c in parts(explorer) if getattr(c, "disabled", False)}

    drawn = {"top-k", "top-p", "seed"}
    assert off() == drawn | {"penalties count the prompt", "window (0: all)", "limit"}
    control(explorer, "temperature").value = 1.0
    control(explorer, "cache").value = "window"
    assert off() == {"penalties count the prompt", "window (0: all)"}
    control(explorer, "presence").value = 0.5
    assert off() == set()


def test_the_seed_decides_the_draw(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=32)
    control(explorer, "temperature").value = 2.0
    first = without_speed(shown(explorer))
    control(explorer, "seed").value = 1
    assert without_speed(shown(explorer)) != first
    control(explorer, "seed").value = 0
    assert without_speed(shown(explorer)) == first


def test_the_axis_says_tokens_as_text(tiny_model, clips, monkeypatch):
    texts, draw = [], widgets.token_raster
    monkeypatch.setattr(widgets, "token_raster", lambda *a, **k: texts.append((a[0], k["texts"])) or draw(*a, **k))
    widgets.decoding_explorer(tiny_model, clips, max_tokens=16)
    ((ids, written),) = texts
    assert written == [tiny_model.tokenizer.decode([i], skip_special=False) for i in ids]


def test_a_busy_sign_stands_while_work_runs_and_goes_after_an_error_too(tiny_model, clips, monkeypatch):
    explorer, seen = widgets.decoding_explorer(tiny_model, clips, max_tokens=2), []

    def watched(*_):
        seen.append(shown(explorer))
        raise ConfigError("no")

    monkeypatch.setattr(widgets, "_decode", watched)
    control(explorer, "frequency").value = 1.0
    assert "working" in seen[0] and "working" not in shown(explorer) and "no" in shown(explorer)


# ---- one's own recording ----


def test_an_upload_is_chosen_drawn_and_transcribed(tiny_model, clips):
    viewer = widgets.clip_viewer(clips, tiny_model)
    mine = tiny.noise(1.5, seed=7)
    upload(viewer, "mine.wav", np.stack([mine, mine], axis=1))
    assert control(viewer, "clip").value == "mine.wav" and len(control(viewer, "clip").options) == 5
    assert "1.5 s. Said: not given" in shown(viewer) and picture(viewer).startswith(PNG)
    file = io.BytesIO()
    soundfile.write(file, mine, 16_000, format="WAV")
    text = tiny_model.transcribe(soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")[0]).text
    assert f"Transcribed: {text[:20].strip()}" in html.unescape(shown(viewer))
    control(viewer, "clip").value = "a.wav"
    control(viewer, "clip").value = "mine.wav"  # it stays to be chosen again
    assert "1.5 s" in shown(viewer)


def test_an_upload_is_decoded_without_word_errors(tiny_model, clips):
    explorer = widgets.decoding_explorer(tiny_model, clips, max_tokens=8)
    assert "errors in 4 words" in shown(explorer)
    upload(explorer, "mine.wav", tiny.noise(1.0, seed=7))
    assert "errors" not in shown(explorer) and "tokens/s" in shown(explorer)


def test_an_upload_that_is_no_audio_is_reported(clips):
    viewer = widgets.clip_viewer(clips)
    one = {
        "name": "x.txt",
        "type": "",
        "size": 1,
        "content": b"no sound",
        "last_modified": datetime.datetime(2026, 1, 1),
    }
    control(viewer, "your own").value = (one,)
    assert "This does not work" in shown(viewer) and picture(viewer) == b""


# ---- weights ----


def test_every_tensor_can_be_reached_under_its_published_name(tiny_model):
    explorer = widgets.weight_explorer(tiny_model)
    layer, tensor, seen = control(explorer, "layer"), control(explorer, "tensor"), []
    for name in layer.options:
        layer.value = name
        seen += tensor.options
    assert sorted(seen) == sorted(expected_layout(tiny_model.config)) and "model.layers.1" in layer.options


def test_a_clicked_tensor_shows_shape_and_values(tiny_model):
    explorer = widgets.weight_explorer(tiny_model)
    control(explorer, "layer").value = "encoder"
    control(explorer, "tensor").value = "encoder.conv1.weight"
    values = np.array(tiny_model.net.encoder.conv1.weight)
    assert "encoder.conv1.weight: (32, 128, 3)" in shown(explorer)  # as on disk, not as in memory
    assert f"standard deviation {values.std():.4g}" in shown(explorer)
    first = picture(explorer)
    control(explorer, "layer").value = "model.layers.1"
    assert picture(explorer) != first and "model.layers.1." in shown(explorer)


def test_a_large_tensor_is_read_in_part(tiny_model, monkeypatch):
    monkeypatch.setattr(widgets, "MAX_VALUES", 1000)
    explorer = widgets.weight_explorer(tiny_model)
    control(explorer, "layer").value = "lm_head"
    size = tiny_model.net.lm_head.weight.size
    assert f"every {-(-size // 1000)}th value" in shown(explorer)


def test_no_figure_stays_open(tiny_model, clips):
    before = pyplot.get_fignums()
    explorer = widgets.weight_explorer(tiny_model)
    control(explorer, "layer").value = "lm_head"
    widgets.clip_viewer(clips)
    assert pyplot.get_fignums() == before


def test_ipywidgets_is_imported_only_when_a_widget_is_made():
    code = (
        "import sys; sys.modules['ipywidgets'] = None; import stepaudio.viz.widgets as w\n"
        "from stepaudio.errors import ConfigError\ntry: w.clip_viewer()\nexcept ConfigError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install stepaudio[notebook]" in done.stdout
