"""Ready prompts: StepFun's system texts and the turns of each task."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from ..errors import PromptError
from .chat_template import SPOKEN, AudioSlot, Message, Prompt, build_prompt
from .tokenizer import Tokenizer

# System texts of StepFun's examples, word for word: the model was trained on them.
DEFAULT_SYSTEM = "You are a helpful assistant."
ASR_SYSTEM = "请记录下你所听到的语音内容。"  # write down what you hear
S2TT_SYSTEM_ZH = "请仔细聆听这段语音，然后将其内容翻译成中文。"  # listen closely, then translate into Chinese
S2TT_SYSTEM_EN = "Please listen carefully to this audio and then translate its content into Chinese."
S2ST_SYSTEM = "请仔细聆听这段语音，然后将其内容翻译成中文并用语音播报。"  # … and speak the translation
CODES_PER_TEXT = 4  # audio codes that follow each text token of a spoken answer
READ_ALOUD = "以自然的语速读出下面的文字。\n"  # read the text below at a natural pace
LANGUAGES = {"zh": "中文", "en": "英文", "ja": "日文"}  # targets of a translation; the examples have Chinese only


def asr_prompt(tokenizer: Tokenizer, n_rows: Sequence[int], system: str = ASR_SYSTEM) -> Prompt:
    """The reference's prompt for one recording: system text, the audio as the human turn, an open answer.

    Parameters
    ----------
    tokenizer : Tokenizer
    n_rows : sequence of int >= 0
        Audio embeddings of each segment of at most 25 s of the recording.
    system : str
        What to do with it; `S2TT_SYSTEM_EN` asks for a translation instead.
    """
    return build_prompt(asr_turns(system), tokenizer, [n_rows])


def asr_turns(system: str = ASR_SYSTEM) -> list[Message]:
    """The turns of `asr_prompt`."""
    return [Message("system", system), Message("human", [{"type": "audio"}]), Message("assistant", None)]


def translation_turns(to: str = "zh", spoken: bool = False) -> list[Message]:
    """The turns that have one recording translated, as text or as speech; the audio item waits for its recording.

    `to` is a key of `LANGUAGES`. For "zh" the system text is that of StepFun's examples; for the others it is the same
    sentence with the name of the language exchanged, which the examples do not show. `PromptError` for another.
    """
    system = translation_system(to, spoken)
    return [Message("system", system), Message("human", [{"type": "audio"}]), open_answer(spoken)]


def translation_system(to: str = "zh", spoken: bool = False) -> str:
    """The system text of `translation_turns`; `PromptError` for an unknown language."""
    if to not in LANGUAGES:
        raise PromptError(f"to: expected one of {', '.join(LANGUAGES)}, found {to!r}")
    return (S2ST_SYSTEM if spoken else S2TT_SYSTEM_ZH).replace(LANGUAGES["zh"], LANGUAGES[to])


def reading_turns(text: str, tokenizer: Tokenizer) -> list[Message]:
    """The turns that have a text read aloud.

    The instruction is that of the one such example that StepFun gives, which is for the base model and has no turns:
    instruction, text, `<tts_start>`. Its chat examples have none; here the instruction is the system text and the
    text the human's. A text that spells special tokens or audio codes is refused with `PromptError`: it would be
    commands and not words.
    """
    if not isinstance(text, str) or not any(map(str.isalnum, text)):
        raise PromptError(f"text to read: expected words, found {text!r:.60}")
    first = min(tokenizer.special_ids)  # every id from here on is a token with a name of its own
    named = [i for i in tokenizer.encode(text) if i >= first]
    if named:
        raise PromptError(
            f"text to read: {tokenizer.decode(named[:1])!r} in it is a token with a meaning of its own "
            "and no word: take it out"
        )
    return [Message("system", READ_ALOUD), Message("human", text), open_answer(True)]


def open_answer(spoken: bool) -> Message:
    """The open assistant turn: the model goes on in speech, or as it likes."""
    return Message("assistant", SPOKEN, eot=False) if spoken else Message("assistant", None)


def spoken_turn(tokens: Sequence[int]) -> Message:
    """A spoken answer as a turn of the history: `<tts_start>`, then its token ids as they were.

    Text and codes stay interleaved, as StepFun's example of several turns has them.
    """
    return Message("assistant", [{"type": "text", "text": SPOKEN}, {"type": "token", "token": list(tokens)}])


def spoken_tokens(text: Sequence[int], codes: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """A spoken answer after its `<tts_start>`: a text token, four codes, a text token, four codes, …, `<tts_end>`.

    Where the text is done, `<tts_pad>` stands in its place; the last group may have fewer codes, and where the text
    has more tokens than there are groups, its last tokens stand alone. `<|EOT|>` is not part of it.

    Parameters
    ----------
    text : token ids of what is said.
    codes : audio codes, each 0 … 6560.
    tokenizer : Tokenizer
    """
    first, groups = tokenizer.first_audio_code, max(-(-len(codes) // CODES_PER_TEXT), len(text))
    answer: list[int] = []
    for k in range(groups):
        answer.append(text[k] if k < len(text) else tokenizer.tts_pad)
        answer += [first + code for code in codes[k * CODES_PER_TEXT : (k + 1) * CODES_PER_TEXT]]
    return [*answer, tokenizer.tts_end]


def prompt_around(n: int, around: tuple[Sequence[int], Sequence[int]]) -> Prompt:
    """The prompt of `n` audio embeddings between two lists of token ids; `PromptError` for anything else."""
    try:
        before, after = (tuple(map(operator.index, tokens)) for tokens in around)
    except (TypeError, ValueError):
        raise PromptError(
            f"prompt: expected a text, or two lists of ids, before and after the audio; found {around!r:.120}"
        ) from None
    filler = [*after, *before, 0][0]  # any id will do where the audio goes, its embedding is replaced
    return Prompt(before + (filler,) * n + after, (AudioSlot(len(before), n, 0),))
