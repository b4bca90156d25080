"""Things to click in a notebook: pick a clip and see it, turn the rules of decoding, walk through the weights.

Plain functions that return an ipywidget; the one place that imports ipywidgets. A bad choice is told inside the
widget and never stops the kernel. Nothing is computed by importing this, and no notebook depends on a widget.
"""

from __future__ import annotations

import html
import io
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import soundfile
from mlx.utils import tree_flatten

from .. import viz as plots
from ..audio.features import log_mel
from ..audio.load import load_audio
from ..audio.segment import is_silent
from ..checkpoints.layout import component_of, mlx_shape
from ..constants import SAMPLE_RATE
from ..decoding.loop_detector import find_loop
from ..decoding.sampling import Penalties, Sampling
from ..errors import ConfigError, StepAudioError
from ..evaluation.manifest import Clip, read_manifest
from ..evaluation.word_errors import count_errors
from ..model import StepAudio2
from ..models.kv_cache import CachePolicy
from ..resources import speech_manifest
from . import style as canvas

MAX_SECONDS = 25.0  # of a clip that is drawn, played or decoded: what one piece holds
MAX_VALUES = 1 << 20  # of a tensor that are read: the published head has half a billion
LIMITS = (32, 64, 96, 128, 192, 256, 384, 512, 1024, 4096)  # positions of a cache
STACK = re.compile(r"encoder\.blocks\.\d+|model\.layers\.\d+")


def _ipywidgets():
    try:
        import ipywidgets
    except ImportError:
        raise ConfigError("widgets need ipywidgets, which is not installed: install stepaudio[notebook]") from None
    return ipywidgets


def _picture(w):
    """Where a figure goes: never stretched, never wider than the cell."""
    return w.Image(format="png", layout=w.Layout(align_self="flex-start", max_width="100%"))


def _told(where, work: Callable[[], None]) -> None:
    """Do the work; what goes wrong is shown in `where` (an HTML widget) and goes no further."""
    try:
        work()
    except StepAudioError as error:
        where.value = _paragraph(f"This does not work: {error}")
    except Exception as error:  # a callback that raises would vanish in a log, or stop the kernel's next cell
        where.value = _paragraph(f"This failed ({type(error).__name__}: {error}); choose something else")


def _paragraph(text: str) -> str:
    return f"<p style='max-width: 46em; overflow-wrap: anywhere'>{html.escape(text)}</p>"


def _observe(controls: Sequence, work: Callable[[], None], where) -> None:
    for control in controls:
        control.observe(lambda _: _told(where, work), names="value")


def _named(clips: Sequence[Clip] | str | Path | None) -> dict[str, Clip]:
    """File name -> clip; by default the bundled recordings."""
    if clips is None or isinstance(clips, (str, Path)):
        clips = read_manifest(clips or speech_manifest())
    named = {Path(clip.file).name: clip for clip in clips}
    if not named:
        raise ConfigError("no clips to choose from: expected at least one")
    return named


def _load(clip: Clip) -> np.ndarray:
    """The first `MAX_SECONDS` of a clip."""
    return load_audio(clip.file)[: round(MAX_SECONDS * SAMPLE_RATE)]


def _wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


# ---------------------------------------------------------------- recordings


def clip_viewer(clips: Sequence[Clip] | str | Path | None = None):
    """Pick a recording, listen to it, see its waveform and mel.

    Parameters
    ----------
    clips : `evaluate.Clip`s or the path of a manifest; by default the bundled recordings. At most 25 s are shown.

    Returns
    -------
    ipywidgets.VBox

    Raises
    ------
    ConfigError : ipywidgets or matplotlib is not installed, or there is no clip.
    DataError : the manifest cannot be read.
    """
    w, named = _ipywidgets(), _named(clips)
    clip = w.Dropdown(options=list(named), description="clip")
    said, sound, picture = w.HTML(), w.Audio(format="wav", autoplay=False), _picture(w)

    def show() -> None:
        chosen = named[clip.value]
        samples = _load(chosen)
        sound.value = _wav(samples)
        picture.value = canvas.png(plots.waveform_and_mel(samples, log_mel(samples), clip.value)[0])
        said.value = _paragraph(f"{len(samples) / SAMPLE_RATE:.1f} s. Said: {chosen.text or '(nothing)'}")

    _observe([clip], show, said)
    _told(said, show)
    return w.VBox([clip, said, sound, picture])


# ---------------------------------------------------------------- rules of decoding


def decoding_explorer(model: StepAudio2, clips: Sequence[Clip] | str | Path | None = None, *, max_tokens: int = 160):
    """Move penalties and cache limits; see text, word errors, loop raster and speed.

    Parameters
    ----------
    model : StepAudio2
    clips : as in `clip_viewer`; the first 25 s are decoded.
    max_tokens : >= 1, most ids of a run, so that one that loops ends soon.

    Returns
    -------
    ipywidgets.VBox

    Raises
    ------
    As `clip_viewer`.
    """
    w, named = _ipywidgets(), _named(clips)

    def slider(name: str, least: float, most: float, step: float, value: float):
        return w.FloatSlider(value, min=least, max=most, step=step, description=name, continuous_update=False)

    clip = w.Dropdown(options=list(named), description="clip")
    repetition, frequency = slider("repetition", 1, 2, 0.05, 1), slider("frequency", 0, 2, 0.1, 0)
    presence = slider("presence", 0, 2, 0.1, 0)
    ngram = w.IntSlider(0, min=0, max=6, description="n-gram ban", continuous_update=False)
    kind = w.Dropdown(options=["full", "window", "sinks", "pinned"], description="cache")
    limit = w.SelectionSlider(options=LIMITS, value=512, description="limit", continuous_update=False)
    told, picture = w.HTML(), _picture(w)

    def show() -> None:
        penalties = Penalties(repetition.value, frequency.value, presence.value, ngram.value)
        cache = CachePolicy(kind.value, None if kind.value == "full" else limit.value)
        told.value, picture.value = _decode(model, named[clip.value], penalties, cache, max_tokens)

    controls = [clip, repetition, frequency, presence, ngram, kind, limit]
    _observe(controls, show, told)
    _told(told, show)
    rows = w.HBox([w.VBox([repetition, frequency, presence, ngram]), w.VBox([kind, limit])])
    return w.VBox([clip, rows, told, picture])


def _decode(model: StepAudio2, clip: Clip, penalties: Penalties, cache: CachePolicy, max_tokens: int):
    """(HTML, PNG) of one run."""
    samples = _load(clip)
    if is_silent(samples):
        return _paragraph("Nothing in this clip rises above -60 dBFS; such pieces are not decoded."), b""
    sampling = Sampling(text=penalties, audio=penalties)
    heard = model.transcribe(samples, sampling=sampling, cache=cache, max_tokens=max_tokens, progress=False)
    segment, (words, errors) = heard.segments[0], count_errors(clip.text, heard.text or "")
    loop = find_loop(segment.ids)
    circles = f"goes in circles of {loop.period} ids from id {loop.onset}" if loop else "no loop"
    speed = len(segment.ids) / heard.wall_seconds
    lines = [
        f"Said: {clip.text or '(nothing)'}",
        f"Heard: {heard.text or '(nothing)'}",
        f"{errors} errors in {words} words; {circles}; ended by {segment.stop}; {speed:.0f} ids/s",
    ]
    if not segment.ids:
        return "".join(map(_paragraph, lines)), b""
    ax = plots.loop_raster(segment.ids, "Every id of this run", loop=loop)
    return "".join(map(_paragraph, lines)), canvas.png(ax)


# ---------------------------------------------------------------- weights


def weight_explorer(model: StepAudio2):
    """Click a layer, see its tensors; click a tensor, see its values.

    Parameters
    ----------
    model : StepAudio2

    Returns
    -------
    ipywidgets.VBox
        Shapes are those on disk. Of a tensor with more than 2^20 values, evenly spaced ones are read.

    Raises
    ------
    ConfigError : ipywidgets or matplotlib is not installed.
    """
    w, tensors = _ipywidgets(), dict(tree_flatten(model.net.parameters()))
    layers = _by_layer(tensors)
    layer = w.Select(options=list(layers), description="layer", rows=9)
    tensor = w.Select(options=layers[layer.value], description="tensor", rows=9, layout=w.Layout(width="32em"))
    told, picture = w.HTML(), _picture(w)

    def show() -> None:
        told.value, picture.value = _tensor(tensor.value, tensors[tensor.value])

    def other_layer() -> None:
        tensor.options = layers[layer.value]  # selects the first, which shows it

    _observe([layer], other_layer, told)
    _observe([tensor], show, told)
    _told(told, show)
    return w.VBox([w.HBox([layer, tensor]), told, picture])


def _by_layer(names: Sequence[str]) -> dict[str, list[str]]:
    """Layer of a stack, or component -> names of its tensors."""
    layers = defaultdict(list)
    for name in names:
        found = STACK.match(name)
        layers[found[0] if found else component_of(name)].append(name)
    return dict(layers)


def _tensor(name: str, array: mx.array) -> tuple[str, bytes]:
    """(HTML, PNG) of one tensor."""
    step = -(-array.size // MAX_VALUES)
    values = np.array(array.reshape(-1)[::step].astype(mx.float32))
    read = f" (every {step}th value)" if step > 1 else ""
    dtype = str(array.dtype).removeprefix("mlx.core.")
    text = (
        f"{name}: {mlx_shape(name, tuple(array.shape))}, {dtype}, {array.size:,} values{read}; mean "
        f"{values.mean():.4g}, deviation {values.std():.4g}, from {values.min():.4g} to {values.max():.4g}"
    )
    return _paragraph(text), canvas.png(plots.histograms({name: values}, "How its values are spread"))
