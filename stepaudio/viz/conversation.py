"""A conversation to click: ask by a recording or a text, hear the answer, see text and audio codes take turns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from ..conversation import Conversation
from ..decoding.options import DecodingKeywords, merge_options
from ..errors import ConfigError
from ..evaluation.manifest import Clip
from ..interp.token2wav import interleaving as kinds_of
from ..resources import voice_clip
from ..speech_model import SpeechModel
from ..text.prompts import ASR_SYSTEM
from . import style
from .panel import Panel, load_ipywidgets, paragraph, wav
from .recordings import Recordings
from .speech import interleaving

NO_RECORDING = "(none)"
MAX_TOKENS = 400  # of an answer, 13 s of speech at most, so that one that loops ends soon


class Chat:
    """The widget that `chat` gives: shown where it is the last line of a cell.

    Attributes
    ----------
    box : ipywidgets.VBox
        What is shown.
    conversation : Conversation
        The history so far; a question that failed is not in it.
    """

    def __init__(self, model: SpeechModel, conversation: Conversation, clips: Any, voice: Any, decoding: dict):
        w = load_ipywidgets()
        self.conversation, self._model, self._decoding = conversation, model, decoding
        self._beginning, self._voice = len(conversation), voice
        self._recordings, self._panel = Recordings(w, clips), Panel(w)
        self._recordings.menu.options = (NO_RECORDING, *self._recordings.menu.options)
        self._recordings.menu.index = 1
        self._text = w.Text(placeholder="words that are asked before the recording", description="text")
        system = conversation.turns[0].text if conversation.turns else ""
        speaks = model.model.capabilities.allow("speak") and system != ASR_SYSTEM
        self._spoken = w.Checkbox(speaks, description="spoken answer", indent=False)
        self._ask, self._back = w.Button(description="ask"), w.Button(description="take back", disabled=True)
        self._ask.on_click(lambda _: self._panel.run(self._answer))
        self._back.on_click(lambda _: self._panel.run(self._rewind))
        self._panel.run(lambda: self._show(None))
        panel, asking = self._panel, w.HBox([self._spoken, self._ask, self._back])
        shown_below = (panel.busy, panel.text, panel.sound, panel.picture)
        self.box = w.VBox([self._recordings.box, self._text, asking, *shown_below])

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.box._repr_mimebundle_(**options)

    def _answer(self) -> None:
        parts: list[Any] = [self._text.value] if self._text.value else []
        if self._recordings.menu.value != NO_RECORDING:
            parts.append(self._recordings.chosen[1].samples()[0])
        asked, spoken = self.conversation.ask(*parts), self._spoken.value
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            answered = asked.answer(self._model.model, spoken=spoken, **self._decoding)
        sound = None
        if answered.last.codes:
            synthesizer = self._model.synthesizer
            sound = synthesizer.decode(answered.last.codes, synthesizer.voice(self._voice), noise=0)
        self.conversation, self._back.disabled = answered, False
        self._show(sound, [str(note.message) for note in notes if note.category is UserWarning])

    def _rewind(self) -> None:
        self.conversation = self.conversation.rewind()
        self._back.disabled = len(self.conversation) == self._beginning
        self._show(None)

    def _show(self, sound: Any, notes: Sequence[str] = ()) -> None:
        """The history; of an answer that was just given its sound, and the kinds of its tokens."""
        lines = [*repr(self.conversation).splitlines()[1:], *notes]
        panel, found = self._panel, None
        panel.sound.value = b"" if sound is None else wav(sound.wave, sound.sample_rate)
        if len(self.conversation) > self._beginning:
            found = self.conversation.last.generation
            lines.append(f"ended by {self.conversation.last.stop}; {len(self.conversation.last.codes)} audio codes")
        panel.text.value = "".join(map(paragraph, lines))
        panel.picture.value = b""
        if found is not None and found.tokens:
            panel.picture.value = style.png(interleaving(kinds_of(found), "Every token of this answer")[0])


def chat(
    model: SpeechModel,
    conversation: Conversation | None = None,
    *,
    clips: Sequence[Clip] | str | Path | None = None,
    voice: Any = None,
    **changes: Unpack[DecodingKeywords],
) -> Chat:
    """Hold a conversation with recordings and texts; play each answer, and see its text and audio codes take turns.

    Parameters
    ----------
    model : SpeechModel
        One loaded with `speak=False` gives written answers.
    conversation : Conversation, optional
        The history to go on from; by default an empty one with the reference's system text.
    clips : sequence of Clip, or path of a manifest, optional
        As in `widgets.clip_viewer`; the first 25 s are asked. One's own recording can be uploaded.
    voice : Voice, recording or path, optional
        As `Synthesizer.voice` takes it; by default a bundled clip.
    **changes
        Decoding options, as in `Conversation.answer`; of `max_tokens` 400 if nothing else is said.

    Returns
    -------
    Chat
        `.conversation` is the history as it stands.

    Raises
    ------
    DecodeError
        An option that is none, or a value outside its range.
    ConfigError
        Not a speech model, or ipywidgets or matplotlib is not installed.
    DataError
        The manifest cannot be read.

    Examples
    --------
    >>> chat(stepaudio.SpeechModel.load())                                       # doctest: +SKIP
    """
    if not isinstance(model, SpeechModel):
        raise ConfigError(f"chat: expected a SpeechModel, found {type(model).__name__}; SpeechModel(model) makes one")
    options = {"max_tokens": MAX_TOKENS, **changes}
    merge_options(None, "chat", **options)  # what is wrong with them is said before anything is asked
    history = Conversation() if conversation is None else conversation
    voice = voice_clip() if voice is None else voice
    return Chat(model, history, clips, voice, options)
