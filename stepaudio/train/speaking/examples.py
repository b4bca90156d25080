"""Examples of the tasks as tokens in the engine's own grammar, and batches of them. No MLX here.

Reading aloud: `reading_turns`, then the spoken answer. Saying again: a recording and `DEFAULT_SYSTEM`, then the spoken
answer. Transcribing: the reference's prompt, then the text. Dialogues: `dialogues`. Every example ends with `<|EOT|>`.

B examples, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...constants import CODES_PER_SECOND
from ...errors import DataError
from ...text.chat_template import Message, Prompt, build_prompt
from ...text.prompts import DEFAULT_SYSTEM, asr_turns, open_answer, reading_turns, spoken_tokens
from ...text.tokenizer import Tokenizer
from ..batches import ALIGNMENT_SECONDS, IGNORE, token_spans
from ..token2wav.corpus import LEAD
from .grammar import REMEMBER, THINK, TOOL

LENGTHS = (
    128,
    256,
    384,
    512,
    640,
    768,
)  # positions of an example; multiples of 128, or CUDA has no fused gradient of attention
READ, REPEAT, TRANSCRIBE = "read", "repeat", "transcribe"
# of the examples drawn, to their sum over the tasks that have examples
SHARES = {READ: 0.65, REPEAT: 0.15, TRANSCRIBE: 0.2, TOOL: 0.2, THINK: 0.15, REMEMBER: 0.15}
TEXT_WEIGHTS = {
    READ: 0.3,
    REPEAT: 3.0,
    TRANSCRIBE: 2.0,
    TOOL: 2.0,
    THINK: 2.0,
    REMEMBER: 2.0,
}  # of a text token in the loss, a code having 1: few are text
WRONG_CODES, WRONG_DIGITS, WRONG_TEXT = 0.02, 0.08, 0.1  # shares of input tokens replaced; labels stay as they are
N_DIGITS, LEVELS = 8, 3  # a code is a number of eight digits, each of which is a level of the quantiser

Rows = tuple[int, int]  # first row and number of a clip's audio embeddings
AudioRows = tuple[int, int, int]  # the position where they stand, and those


@dataclass(frozen=True)
class Example:
    """One example: prompts to choose from, the embeddings that stand in each, and the answer.

    prompts : token ids, int16. slots : for each prompt (position, first row, number) of each of its recordings.
    answer : token ids, `<|EOT|>` included.
    sounds : (2, answer) int16, for each code the phoneme and the text token that it is a part of, each one higher than
        its id, `IGNORE` where nothing is known; or None.
    """

    task: str
    prompts: tuple[np.ndarray, ...]
    slots: tuple[tuple[AudioRows, ...], ...]
    answer: np.ndarray
    sounds: np.ndarray | None = None

    def __len__(self) -> int:
        """Positions that it takes with its longest prompt."""
        return max(map(len, self.prompts)) + len(self.answer)


def spoken_answer(text: Sequence[int], codes: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """What follows `<tts_start>`, the end of the turn included."""
    return np.array([*spoken_tokens(text, codes.tolist(), tokenizer), tokenizer.eot], np.int16)


def sounds_of(clip: dict, answer: np.ndarray, encode: Callable[[str], list[int]], tokenizer: Tokenizer) -> np.ndarray:
    """What each code of a spoken answer is a part of, as `Example.sounds`, by the durations that the clip came with."""
    sounds = np.full((2, len(answer)), IGNORE, np.int16)
    at = np.flatnonzero(answer >= tokenizer.first_audio_code)
    if not clip["phonemes"] or not len(at):
        return sounds
    middle = (np.arange(len(at)) + 0.5) / (CODES_PER_SECOND * ALIGNMENT_SECONDS) + LEAD  # in phoneme frames
    ends = np.cumsum(clip["frames"])
    which = np.minimum(np.searchsorted(ends, middle, "right"), len(ends) - 1)
    sounds[0, at] = np.array(clip["phonemes"])[which] + 1
    spans = token_spans(clip, encode)
    if spans is not None:
        which = np.minimum(np.searchsorted(spans[:, 2], middle, "right"), len(spans) - 1)
        inside = (middle >= spans[which, 1]) & (middle < spans[which, 2])
        sounds[1, at[inside]] = spans[which[inside], 0] + 1
    return sounds


def reading_prompts(texts: Iterable[str], tokenizer: Tokenizer) -> tuple[np.ndarray, ...]:
    """Prompts that ask for a text to be read; `texts` are ways to write the same words."""
    return tuple(np.array(build_prompt(reading_turns(text, tokenizer), tokenizer).tokens, np.int16) for text in texts)


def reading(prompts: tuple[np.ndarray, ...], answer: np.ndarray, sounds: np.ndarray | None = None) -> Example:
    """An example of reading aloud."""
    return Example(READ, prompts, ((),) * len(prompts), answer, sounds)


def listening(
    rows: Sequence[Rows], spoken: bool, answer: np.ndarray, tokenizer: Tokenizer, sounds: np.ndarray | None = None
) -> Example:
    """An example of saying again (`spoken`) or transcribing; `rows` are ways in which the same words sounded."""
    human = Message("human", [{"type": "audio"}])
    turns = [Message("system", DEFAULT_SYSTEM), human, open_answer(True)] if spoken else asr_turns()
    empty = build_prompt(turns, tokenizer, [[1]])
    prompts, slots = zip(*(placed(empty, [own], tokenizer) for own in rows), strict=True)
    return Example(REPEAT if spoken else TRANSCRIBE, prompts, slots, answer, sounds)


def placed(empty: Prompt, rows: Sequence[Rows], tokenizer: Tokenizer) -> tuple[np.ndarray, tuple[AudioRows, ...]]:
    """The tokens of a prompt of recordings of one embedding each, with as many as `rows` say; and where they stand."""
    tokens: list[int] = []
    slots, done = [], 0
    for slot, (first, n) in zip(empty.slots, rows, strict=True):
        tokens += empty.tokens[done : slot.start]
        slots.append((len(tokens), first, n))
        tokens += [tokenizer.audio_patch] * n
        done = slot.start + 1
    return np.array([*tokens, *empty.tokens[done:]], np.int16), tuple(slots)


class Batches:
    """step -> arrays of a batch; the same step gives the same batch.

    Parameters
    ----------
    examples : list of Example
        Those longer than the longest of `lengths` are left out.
    tokenizer : Tokenizer
    tokens : int
        Positions of a batch: B L is about this.
    seed : int
    noisy : bool
        Whether input tokens are replaced at random.
    lengths : ascending lengths to which examples are padded.
    shares : of the tasks among the examples drawn, to their sum.

    Raises
    ------
    DataError
        No example is short enough.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        tokens: int,
        seed: int,
        noisy: bool = True,
        lengths: Sequence[int] = LENGTHS,
        shares: Mapping[str, float] = SHARES,
    ):
        self.tokens, self.seed, self.noisy, self.lengths = tokens, seed, noisy, lengths
        self.first_code, self.text_limit, self.pad = tokenizer.first_audio_code, tokenizer.text_limit, tokenizer.eot
        sizes = np.array([len(e) for e in examples])
        kinds = np.array([e.task for e in examples])
        fits = sizes <= lengths[-1]
        if not fits.any():
            raise DataError(f"no example has {lengths[-1]} tokens or fewer; expected clips of up to about 12 s")
        share = np.array([shares[kind] / max(1, (fits & (kinds == kind)).sum()) for kind in kinds])
        if not share[fits].any():
            raise DataError("the shares of all tasks that have examples are 0; expected one above 0")
        # of each length: its examples, and the sums of their shares up to each
        self._groups: list[tuple[int, list[Example], np.ndarray]] = []
        for low, high in zip((0, *lengths), lengths, strict=False):
            chosen = np.flatnonzero((sizes > low) & (sizes <= high))
            if len(chosen):
                self._groups.append((high, [examples[i] for i in chosen.tolist()], np.cumsum(share[chosen])))
        # an example of twice the length takes twice the place of a batch
        room = [sums[-1] * n for n, _, sums in self._groups]
        self._share = np.array(room) / sum(room)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, as arrays (B, L).

        `inputs`: token ids. `place`: row of the audio embedding that stands there instead, or -1. `labels`: the token
        that follows. `weight`: of its loss, 0 where it is part of a prompt. `phonemes`, `spoken`: what that token, if
        it is a code, is a part of. `keep`: whether it is transcribed text.
        """
        rng = np.random.default_rng((self.seed, step))
        L, examples, sums = self._groups[int(rng.choice(len(self._groups), p=self._share))]
        B = max(1, self.tokens // L)
        drawn = np.searchsorted(sums, rng.random(B) * sums[-1], "right")
        return self.stack([examples[i] for i in np.minimum(drawn, len(examples) - 1).tolist()], L, rng)

    def stack(self, examples: Sequence[Example], L: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The arrays of these examples, padded to L positions."""
        B = len(examples)
        tokens = np.full((B, L + 1), self.pad, np.int32)
        weight = np.zeros((B, L + 1), np.float32)
        place = np.full((B, L), -1, np.int32)
        sounds = np.full((2, B, L + 1), IGNORE, np.int32)
        for b, example in enumerate(examples):
            k = int(rng.integers(len(example.prompts)))
            prompt, answer = example.prompts[k], example.answer
            begin, end = len(prompt), len(prompt) + len(answer)
            tokens[b, :begin], tokens[b, begin:end] = prompt, answer
            weight[b, begin:end] = np.where(answer < self.text_limit, TEXT_WEIGHTS[example.task], 1.0)
            if example.sounds is not None:
                sounds[:, b, begin:end] = example.sounds
            for at, first, n in example.slots[k]:
                place[b, at : at + n] = np.arange(first, first + n)
        answers = weight[:, :-1] > 0
        # of a call or a thought the later tokens follow from the earlier ones: these stay as they are
        loose = np.array([[example.task in (READ, REPEAT, TRANSCRIBE)] for example in examples])
        inputs = self._noise(tokens[:, :-1], answers, loose, rng) if self.noisy else tokens[:, :-1].copy()
        phonemes, spoken = sounds[:, :, 1:]
        labels = {"labels": tokens[:, 1:], "phonemes": phonemes, "spoken": spoken}
        keep = (weight[:, 1:] > 0) & np.array([[example.task == TRANSCRIBE] for example in examples])
        return {"inputs": inputs, "place": place, "weight": weight[:, 1:], "keep": keep} | labels

    def _noise(
        self, tokens: np.ndarray, answers: np.ndarray, loose: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Inputs of which some are wrong: codes altogether or in one digit, text tokens of `loose` (B, 1) answers."""
        code, draw = tokens - self.first_code, rng.random(tokens.shape)
        is_code = answers & (code >= 0) & (code < LEVELS**N_DIGITS)
        power = LEVELS ** rng.integers(0, N_DIGITS, tokens.shape)
        digit = code // power % LEVELS
        near = code + ((digit + rng.integers(1, LEVELS, tokens.shape)) % LEVELS - digit) * power
        far = rng.integers(0, LEVELS**N_DIGITS, tokens.shape)
        code = np.where(draw < WRONG_CODES, far, np.where(draw < WRONG_CODES + WRONG_DIGITS, near, code))
        text = np.where(draw < WRONG_TEXT, rng.integers(0, self.text_limit, tokens.shape), tokens)
        is_text = answers & loose & (tokens < self.text_limit)
        noisy = np.where(is_code, code + self.first_code, np.where(is_text, text, tokens))
        return noisy.astype(np.int32)
