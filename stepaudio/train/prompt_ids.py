"""Ids of the transcription prompt around the audio, in the form a training batch wants them."""

from __future__ import annotations

from ..prompt import asr_prompt
from ..tokenizer import Tokenizer
from .corpus import PromptIds


def transcription_ids(tokenizer: Tokenizer) -> PromptIds:
    """The reference's ASR prompt, cut at its audio rows."""
    prompt = asr_prompt(tokenizer, [1])
    ids, start = list(prompt.ids), prompt.slots[0].start
    return PromptIds(ids[:start], ids[start + 1 :], tokenizer.audio_patch, tokenizer.eot)
