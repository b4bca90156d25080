"""What all widgets are made of: a panel with a busy sign, a text, a sound and a figure, which shows errors.

The one place that imports ipywidgets.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
import soundfile

from ..constants import SAMPLE_RATE
from ..errors import ConfigError, StepAudioError

BUSY = "<b style='color: #b2182b'>&#9203; working …</b>"


def load_ipywidgets() -> Any:
    """The module; `ConfigError` where it is not installed."""
    try:
        import ipywidgets
    except ImportError:
        raise ConfigError("widgets need ipywidgets, which is not installed: install stepaudio[notebook]") from None
    return ipywidgets


def picture_box(w: Any) -> Any:
    """Where a figure goes: never stretched, never wider than the cell."""
    return w.Image(format="png", layout=w.Layout(align_self="flex-start", max_width="100%"))


def paragraph(text: str) -> str:
    """A text as HTML, no wider than can be read well."""
    return f"<p style='max-width: 46em; overflow-wrap: anywhere'>{html.escape(text)}</p>"


class Panel:
    """Controls, a busy sign, a text and a figure. While work runs, the sign shows; what goes wrong becomes the text."""

    def __init__(self, w: Any):
        self.busy, self.text, self.picture = w.HTML(), w.HTML(), picture_box(w)
        self.sound = w.Audio(format="wav", autoplay=False)  # in the widgets that play something
        self._muted = False

    @property
    def is_muted(self) -> bool:
        """Whether values are being set by the widget itself."""
        return self._muted

    def run(self, work: Callable[[], None]) -> None:
        """Do the work between showing and hiding the busy sign."""
        self.busy.value = BUSY
        try:
            work()
        except StepAudioError as error:
            self._fail(f"This does not work: {error}")
        except Exception as error:  # a callback that raises would vanish in a log, or stop the kernel's next cell
            self._fail(f"This failed ({type(error).__name__}: {error}); choose something else")
        finally:
            self.busy.value = ""

    def _fail(self, text: str) -> None:
        """Nothing of an earlier choice stays beside the message."""
        self.text.value, self.picture.value, self.sound.value = paragraph(text), b"", b""

    def on_change(self, controls: Iterable[Any], work: Callable[[], None]) -> None:
        """Run the work whenever one of the controls takes another value, unless `muted`."""
        for control in controls:
            control.observe(lambda _: None if self._muted else self.run(work), names="value")

    @contextmanager
    def muted(self):
        """Values may be set without a run for each."""
        before, self._muted = self._muted, True
        try:
            yield
        finally:
            self._muted = before


def wav(samples: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    """Samples as the bytes of a WAV file of 16 bits; what is beyond full scale is cut."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
