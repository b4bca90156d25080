"""Things to click in a notebook: pick or upload a recording and see it, change decoding options, walk the weights.

Plain functions that return an ipywidget. A bad choice is reported inside the widget and never stops the kernel. Nothing
is computed by importing this, and no notebook depends on a widget. `conversation.chat` is one more.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..audio.segment import is_silent
from ..checkpoints.layout import component_of, mlx_shape
from ..choices import CacheKind, LoopAction
from ..constants import SAMPLE_RATE
from ..decoding.loop_detector import find_loop
from ..decoding.sampling import Penalties, Sampling
from ..evaluation.manifest import Clip
from ..evaluation.word_errors import count_errors, count_errors_of_beginning
from ..model import StepAudio2
from ..models.kv_cache import CachePolicy
from . import style
from .audio import waveform_and_mel
from .panel import Panel, load_ipywidgets, paragraph, wav
from .recordings import MAX_SECONDS, Recording, Recordings
from .runs import token_raster
from .weights import histograms

MAX_VALUES = 1 << 20  # of a tensor that are read: the published head has half a billion
LIMITS = (32, 64, 96, 128, 192, 256, 384, 512, 1024, 4096)  # positions of a cache
STACK = re.compile(r"encoder\.blocks\.\d+|model\.layers\.\d+")
CUSTOM = "custom"
COLUMN = "19em"  # wide enough that no number is cut off
PRESETS = {
    "reference": Sampling.reference(),
    "planned": Sampling.planned(),
    "literal": Sampling.literal(),
    "frequency penalty": Sampling.greedy().override({"frequency": 1.2}),
    "published chat": Sampling.reference("chat"),
}


# ---------------------------------------------------------------- recordings


def clip_viewer(clips: Sequence[Clip] | str | Path | None = None, model: StepAudio2 | None = None) -> Any:
    """Pick or upload a recording, listen to it, see its waveform and mel, and read what a model makes of it.

    Parameters
    ----------
    clips : sequence of Clip, or path of a manifest, optional
        By default the bundled recordings. At most 25 s are shown.
    model : StepAudio2, optional
        Transcribes what is chosen, as the reference decodes.

    Returns
    -------
    ipywidgets.VBox

    Raises
    ------
    ConfigError
        ipywidgets or matplotlib is not installed, or there is no clip.
    DataError
        The manifest cannot be read.
    """
    w = load_ipywidgets()
    recordings, panel = Recordings(w, clips), Panel(w)

    def show() -> None:
        name, recording = recordings.chosen
        samples, _ = recording.samples()
        panel.sound.value = wav(samples)
        panel.picture.value = style.png(waveform_and_mel(samples, title=style.plain(name))[0])
        lines = [f"{len(samples) / SAMPLE_RATE:.1f} s. {recording.said()}"]
        if model is not None:
            found = model.transcribe(samples, sampling=Sampling.reference(), progress=False)
            lines.append(f"Transcribed: {found.text or '(nothing)'}")
        panel.text.value = "".join(map(paragraph, lines))

    panel.on_change([recordings.menu], show)
    panel.run(show)
    return w.VBox([recordings.box, panel.busy, panel.text, panel.sound, panel.picture])


# ---------------------------------------------------------------- decoding options


class _Options:
    """Controls of everything that a run depends on; those without effect on the present choice are disabled."""

    def __init__(self, w: Any, panel: Panel):
        def slider(name: str, least: float, most: float, step: float, value: float = 0) -> Any:
            bounds = {"min": least, "max": most, "step": step, "layout": w.Layout(width=COLUMN)}
            return w.FloatSlider(value, **bounds, description=name, continuous_update=False)

        self._panel = panel
        self.preset = w.Dropdown(options=[*PRESETS, CUSTOM], description="preset")
        self.temperature, self.top_p = slider("temperature", 0, 2, 0.1), slider("top-p", 0.05, 1, 0.05, 1)
        self.top_k = w.IntSlider(0, min=0, max=100, description="top-k", continuous_update=False)
        self.seed = w.BoundedIntText(0, min=0, max=2**31 - 1, description="seed")
        self.repetition = slider("repetition", 1, 2, 0.05, 1)
        self.frequency, self.presence = slider("frequency", 0, 2, 0.1), slider("presence", 0, 2, 0.1)
        self.ngram = w.IntSlider(0, min=0, max=6, description="n-gram ban", continuous_update=False)
        self.window = w.IntSlider(0, min=0, max=128, description="window (0: all)", continuous_update=False)
        self.loops = w.Dropdown(
            options=list(LoopAction.values()), value=LoopAction.REPORT.value, description="on a loop"
        )
        self.prompt = w.Checkbox(False, description="penalties count the prompt", indent=False)
        self.kind = w.Dropdown(options=list(CacheKind.values()), description="cache")
        self.limit = w.SelectionSlider(options=LIMITS, value=512, description="limit", continuous_update=False)
        for control in (self.preset, self.seed, self.kind, self.limit, self.top_k, self.ngram, self.window, self.loops):
            control.layout.width = COLUMN
        self._drawn = (self.top_k, self.top_p, self.seed)
        self._penalties = (self.repetition, self.frequency, self.presence, self.ngram)
        self._rules = (self.temperature, *self._drawn, *self._penalties, self.window, self.prompt, self.loops)
        self.controls = (*self._rules, self.kind, self.limit)
        self.box = w.HBox(
            [
                w.VBox([self.preset, self.temperature, *self._drawn]),
                w.VBox([*self._penalties, self.window, self.prompt]),
                w.VBox([self.loops, self.kind, self.limit]),
            ],
            layout=w.Layout(flex_flow="row wrap"),
        )
        self.preset.observe(self._take_preset, names="value")
        for control in self.controls:
            control.observe(self._settle, names="value")
        self._settle(None)

    def _take_preset(self, _: object) -> None:
        if self.preset.value == CUSTOM:
            return
        chosen = PRESETS[self.preset.value]
        rules, values = chosen.text, {self.temperature: chosen.temperature, self.top_k: chosen.top_k}
        values |= {self.top_p: chosen.top_p, self.repetition: rules.repetition, self.frequency: rules.frequency}
        values |= {self.presence: rules.presence, self.ngram: rules.no_repeat_ngram, self.prompt: rules.include_prompt}
        values |= {self.window: rules.window or 0, self.loops: str(chosen.on_loop)}
        with self._panel.muted():
            for control, value in values.items():
                control.value = value
        self._settle(None)

    def _settle(self, _: object) -> None:
        """Disable what has no effect; name the preset that the controls amount to."""
        if self._panel.is_muted:
            return
        for control in self._drawn:
            control.disabled = self.temperature.value == 0
        self.prompt.disabled = self.window.disabled = self._penalties_off()
        self.limit.disabled = self.kind.value == CacheKind.FULL
        same = [name for name, rules in PRESETS.items() if self._matches(rules)]
        with self._panel.muted():
            self.preset.value = same[0] if same else CUSTOM

    def _penalties_off(self) -> bool:
        return self.repetition.value == 1 and not any(c.value for c in self._penalties[1:])

    def _matches(self, preset: Sampling) -> bool:
        mine = self.sampling()
        fixed = ("temperature", "text", "on_loop")
        return all(getattr(mine, name) == getattr(preset, name) for name in fixed) and (
            not mine.temperature or (mine.top_k, mine.top_p) == (preset.top_k, preset.top_p)
        )

    def sampling(self) -> Sampling:
        """The rules that the controls show."""
        unused = self._penalties_off()
        window = None if unused else self.window.value or None
        counted = self.prompt.value and not unused
        rules = Penalties(*(c.value for c in self._penalties), window=window, include_prompt=counted)
        drawn = {"top_k": self.top_k.value, "top_p": self.top_p.value, "seed": self.seed.value}
        return Sampling(self.temperature.value, **drawn, text=rules, audio=rules, on_loop=self.loops.value)

    def cache(self) -> CachePolicy:
        """The cache that the controls show."""
        return CachePolicy(self.kind.value, None if self.kind.value == CacheKind.FULL else self.limit.value)


def decoding_explorer(
    model: StepAudio2, clips: Sequence[Clip] | str | Path | None = None, *, max_tokens: int = 160
) -> Any:
    """Change sampling, penalties and cache; see text, word errors, every token of the run, and speed.

    Parameters
    ----------
    model : StepAudio2
        The model that decodes.
    clips : sequence of Clip, or path of a manifest, optional
        As in `clip_viewer`; the first 25 s are decoded. One's own recording can be uploaded.
    max_tokens : int
        At least 1, most tokens of a run, so that one that loops ends soon.

    Returns
    -------
    ipywidgets.VBox
        Opens with the preset `reference` and a full cache.

    Raises
    ------
    ConfigError, DataError
        As `clip_viewer`.
    """
    w = load_ipywidgets()
    recordings, panel = Recordings(w, clips), Panel(w)
    options = _Options(w, panel)

    def show() -> None:
        _, recording = recordings.chosen
        lines, panel.picture.value = _decode(model, recording, options.sampling(), options.cache(), max_tokens)
        panel.text.value = "".join(map(paragraph, lines))

    panel.on_change([recordings.menu, options.preset, *options.controls], show)
    panel.run(show)
    return w.VBox([recordings.box, options.box, panel.busy, panel.text, panel.picture])


def _decode(
    model: StepAudio2, recording: Recording, sampling: Sampling, cache: CachePolicy, max_tokens: int
) -> tuple[list[str], bytes]:
    """(Lines of text, PNG) of one run."""
    samples, seconds = recording.samples()
    if is_silent(samples):
        part = "this clip" if seconds <= MAX_SECONDS else f"the first {MAX_SECONDS:.0f} s of this clip"
        return [f"Nothing in {part} rises above -60 dBFS; such segments are not decoded."], b""
    found = model.transcribe(samples, sampling=sampling, cache=cache, max_tokens=max_tokens, progress=False)
    segment = found.segments[0]
    tokens = segment.tokens
    loop = find_loop(tokens)
    ending = f"repeats {loop.period} tokens from token {loop.onset} on" if loop else "no loop"
    score = ""
    if recording.text is not None:
        score = _word_errors(recording.text, found.text or "", seconds)
    speed = len(tokens) / found.wall_seconds
    lines = [
        recording.said(),
        f"Transcribed: {found.text or '(nothing)'}",
        f"{score}{ending}; ended by {segment.stop}; {speed:.0f} tokens/s",
    ]
    if not tokens:
        return lines, b""
    reader = model.tokenizer
    texts = None if reader is None else [reader.decode([t], skip_special=False) for t in tokens]
    return lines, style.png(token_raster(tokens, "Every token of this run", texts=texts, loop=loop))


def _word_errors(said: str, written: str, seconds: float) -> str:
    """A line on the errors. Of a recording that was decoded in part, only that part is scored."""
    if seconds <= MAX_SECONDS:
        words, errors = count_errors(said, written)
        return f"{errors} errors in {words} words; "
    words, errors = count_errors_of_beginning(said, written)
    return (
        f"only the first {MAX_SECONDS:.0f} s of {seconds:.0f} s were decoded: at least {errors} errors in {words} "
        "words, the beginning of the text that fits best, without what was missed at the end; "
    )


# ---------------------------------------------------------------- weights


def weight_explorer(model: StepAudio2) -> Any:
    """Click a layer, see its tensors; click a tensor, see how its values are spread.

    Parameters
    ----------
    model : StepAudio2
        The model whose weights are shown.

    Returns
    -------
    ipywidgets.VBox
        Shapes are those on disk. Of a tensor with more than 2^20 values, evenly spaced ones are read.

    Raises
    ------
    ConfigError
        ipywidgets or matplotlib is not installed.
    """
    w, tensors = load_ipywidgets(), dict(tree_flatten(model.net.parameters()))
    layers, panel = _by_layer(tensors), Panel(w)
    layer = w.Select(options=list(layers), description="layer", rows=9)
    tensor = w.Select(options=layers[layer.value], description="tensor", rows=9, layout=w.Layout(width="32em"))

    def show() -> None:
        text, panel.picture.value = _tensor(tensor.value, tensors[tensor.value])
        panel.text.value = paragraph(text)

    def other_layer(_: object) -> None:
        tensor.options = layers[layer.value]  # selects the first, which shows it

    layer.observe(other_layer, names="value")
    panel.on_change([tensor], show)
    panel.run(show)
    return w.VBox([w.HBox([layer, tensor]), panel.busy, panel.text, panel.picture])


def _by_layer(names: Iterable[str]) -> dict[str, list[str]]:
    """Layer of a stack, or component -> names of its tensors."""
    layers = defaultdict(list)
    for name in names:
        found = STACK.match(name)
        layers[found[0] if found else component_of(name)].append(name)
    return dict(layers)


def _tensor(name: str, array: mx.array) -> tuple[str, bytes]:
    """(Text, PNG) of one tensor."""
    step = -(-array.size // MAX_VALUES)
    values = np.array(array.reshape(-1)[::step].astype(mx.float32))
    read = f" (every {step}th value)" if step > 1 else ""
    dtype = str(array.dtype).removeprefix("mlx.core.")
    text = (
        f"{name}: {mlx_shape(name, tuple(array.shape))}, {dtype}, {array.size:,} values{read}; mean "
        f"{values.mean():.4g}, standard deviation {values.std():.4g}, from {values.min():.4g} to {values.max():.4g}"
    )
    return text, style.png(histograms({name: values}, "How its values are spread", of="weight"))
