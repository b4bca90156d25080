"""Dialogues as examples: each answer and each call of a tool behind all that came before it. No MLX here.

Prompts are made by the turns of `conversation` and by what `conversation.answering` puts behind them, so that what is
learnt is what `Conversation.answer` asks for. A dialogue is a dict as `grammar` has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...conversation.tools import CLOSES, OPENS, schemas
from ...conversation.turns import RESULT_NOTE, Answer, Role, Turn
from ...decoding.thought import END_OF_THOUGHT
from ...errors import DataError
from ...text.chat_template import SPOKEN, Message, build_prompt
from ...text.prompts import DEFAULT_SYSTEM, open_answer
from ...text.tokenizer import Tokenizer
from .examples import Example, Rows, placed
from .grammar import TOOLS

OPENING = "<think>\n"  # what opens an answer that thinks first
PROMPTS = 4  # of an example: other voices, other forms of the answers before
Spoken = tuple[np.ndarray, np.ndarray | None]  # a spoken answer and its sounds, as an Example has them


def read_dialogues(path: Path) -> list[dict]:
    """The dialogues of a JSONL; `DataError` for a line that is none."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            dialogue = json.loads(line)
            turns = dialogue["turns"]
            fine = {"task", "held_out"} <= set(dialogue) and all(
                len({"human", "call", "result", "answer"} & set(turn)) == 1 for turn in turns
            )
            fine = fine and set(dialogue.get("tools", ())) <= set(TOOLS)
        except (ValueError, TypeError, KeyError):
            fine = False
        if not fine:
            raise DataError(
                f"{path}, line {number}: expected a dialogue with task, held_out and turns (human, call, result or "
                f"answer), found {line[:80]}"
            )
        found.append(dialogue)
    return found


def call_tokens(name: str, arguments: Mapping, tokenizer: Tokenizer) -> list[int]:
    """A call of a tool as a model writes it."""
    written = json.dumps(arguments, ensure_ascii=False)
    return tokenizer.encode(f"{OPENS}function\n{name}\n{written}{CLOSES}")


def thought_text(thought: str) -> str:
    """What a thought is in an answer, up to its end."""
    return f"{OPENING} {thought}\n{END_OF_THOUGHT}"


class ExampleMaker:
    """Makes the examples of dialogues.

    Parameters
    ----------
    tokenizer : Tokenizer
    encode : text -> tokens of a transcript.
    clips : sentence -> where the embeddings of its recordings lie.
    spoken : sentence -> how it is answered in speech; an answer that is not in it is learnt in writing alone.
    seed : int
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        encode: Callable[[str], list[int]],
        clips: Mapping[str, Sequence[Rows]],
        spoken: Mapping[str, Spoken],
        seed: int = 0,
    ):
        self.tokenizer, self.encode, self.clips, self.spoken = tokenizer, encode, clips, spoken
        self.rng = np.random.default_rng(seed)

    def __call__(self, dialogue: Mapping) -> list[Example]:
        """The examples of one dialogue; none where a sentence of the human has no recording."""
        turns, found = dialogue["turns"], []
        if any(turn["human"] not in self.clips for turn in turns if "human" in turn):
            return found
        for k, turn in enumerate(turns):
            if "call" in turn:
                answer = self._written(call_tokens(turn["call"], turn["arguments"], self.tokenizer))
                found += [self._example(dialogue, k, open_answer(spoken), answer) for spoken in (False, True)]
            elif "answer" in turn:
                found += self._answers(dialogue, k)
        return found

    def _answers(self, dialogue: Mapping, k: int) -> list[Example]:
        """The answer of turn k in writing and, if it can be, in speech; each also behind its thought."""
        turn = dialogue["turns"][k]
        words = self.encode(turn["answer"])
        spoken, thought = self.spoken.get(turn["answer"]), turn.get("thought")
        found = [self._example(dialogue, k, open_answer(False), self._written(words))]
        if spoken is not None:
            found.append(self._example(dialogue, k, open_answer(True), *spoken))
        if thought is not None:
            whole = thought_text(thought)
            behind = self.tokenizer.encode_plain(whole.removeprefix(OPENING) + "\n\n")
            opened = Message("assistant", OPENING, eot=False, plain=True)
            found.append(self._example(dialogue, k, opened, self._written([*behind, *words])))
            if spoken is not None:
                opened = Message("assistant", f"{whole}\n\n{SPOKEN}", eot=False, plain=True)
                found.append(self._example(dialogue, k, opened, *spoken))
        return found

    def _written(self, tokens: Sequence[int]) -> np.ndarray:
        return np.array([*tokens, self.tokenizer.eot], np.int16)

    def _example(
        self, dialogue: Mapping, k: int, opened: Message, answer: np.ndarray, sounds: np.ndarray | None = None
    ) -> Example:
        before = dialogue["turns"][:k]
        answers = [turn["answer"] for turn in before if "answer" in turn]
        answered = any("answer" in turn or "call" in turn for turn in before)
        forms = [False, True] if answered and all(answer in self.spoken for answer in answers) else [False]
        prompts, slots = [], []
        for spoken in forms:
            messages = [turn.message(self.tokenizer) for turn in self._history(dialogue, before, spoken)]
            asked = [turn["human"] for turn in before if "human" in turn]
            empty = build_prompt([*messages, opened], self.tokenizer, [[1]] * len(asked))
            for _ in range(PROMPTS // len(forms)):
                rows = [self.clips[text][int(self.rng.integers(len(self.clips[text])))] for text in asked]
                prompt, at = placed(empty, rows, self.tokenizer)
                prompts.append(prompt)
                slots.append(at)
        return Example(dialogue["task"], tuple(prompts), tuple(slots), answer, sounds)

    def _history(self, dialogue: Mapping, before: Sequence[Mapping], spoken: bool) -> list[_Asked | Turn]:
        """The turns before an answer, whose own answers were spoken or written."""
        turns: list[_Asked | Turn] = [Turn(Role.SYSTEM, (DEFAULT_SYSTEM,))]
        if dialogue.get("tools"):
            turns.append(Turn(Role.TOOLS, (schemas([TOOLS[name] for name in dialogue["tools"]]),)))
        for turn in before:
            if "human" in turn:
                turns.append(_Asked())
            elif "result" in turn:
                turns.append(Turn(Role.RESULT, (turn["result"], RESULT_NOTE)))
            elif "call" in turn:
                tokens = call_tokens(turn["call"], turn["arguments"], self.tokenizer)
                turns.append(Answer(Role.ANSWER, ("",), tuple(tokens), spoken))
            elif spoken:
                tokens = self.spoken[turn["answer"]][0].tolist()
                turns.append(Answer(Role.ANSWER, ("",), tuple(tokens), spoken))
            else:
                turns.append(Answer(Role.ANSWER, (self.tokenizer.decode(self.encode(turn["answer"])),)))
        return turns


class _Asked:
    """A turn of the human whose recording is there as embeddings alone."""

    def message(self, _: Tokenizer) -> Message:
        return Message("human", [{"type": "audio"}], plain=True)
