"""Golden checks of the tokenizer and of the turn grammar: every id exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..constants import CHUNK_SAMPLES, n_mel_frames
from ..errors import DataError
from ..text.chat_template import build_base_prompt, build_prompt
from ..text.tokenizer import Tokenizer
from .golden import Row

FULL_SEGMENT = n_mel_frames(CHUNK_SAMPLES)


class _Tally:
    """Counts equalities and remembers the first inequality."""

    def __init__(self):
        self.n, self.wrong, self.first = 0, 0, ""

    def __call__(self, label: str, found, expected) -> None:
        self.n += 1
        if found != expected:
            self.wrong += 1
            self.first = self.first or f"{label}: expected {expected!r:.60}, found {found!r:.60}"

    def row(self, golden, stage: str) -> None:
        note = f"{self.n - self.wrong} of {self.n} exact" + (f"; {self.first}" if self.first else "")
        verdict = "unusable" if not self.n else "off" if self.wrong else "ok"
        golden.rows.append(Row(stage, float(self.wrong > 0), float(self.wrong > 0), 0.0, verdict, note))


def _load(folder: Path) -> Tokenizer:
    if not folder.is_dir():
        raise DataError(f"needs the published tokenizer, but {folder} is no folder: name one with --tokenizer")
    return Tokenizer.from_folder(folder)


def tokenizer_checks(golden, folder: Path) -> None:
    """Text <-> token ids, decoding of arbitrary token ids, and whole chat prompts."""
    tokenizer, data = _load(folder), golden.config
    encode, decode, chats = _Tally(), _Tally(), _Tally()
    for pair in data["pairs"]:
        encode(pair["text"], tokenizer.encode(pair["text"]), pair["ids"])
    for pair in [*data["pairs"], *data["decode_only"]]:
        decode(str(pair["ids"]), tokenizer.decode(pair["ids"]), pair["decode"])
        decode(str(pair["ids"]), tokenizer.decode(pair["ids"], skip_special=True), pair["decode_skip_special"])
    for chat in data["chats"]:
        chats(chat["name"], _chat_ids(chat, tokenizer), chat["ids"])
    for tally, stage in ((encode, "encode"), (decode, "decode"), (chats, "chat prompts")):
        tally.row(golden, stage)


def _chat_ids(chat: dict, tokenizer: Tokenizer) -> list[int]:
    """A full segment of 25 s is continued by the next one of the same recording."""
    clips: list[list[int]] = []
    open_clip = False
    for frames, n_embeddings in zip(chat["mel_frames"], chat["audio_tokens"], strict=True):
        clips[-1].append(n_embeddings) if open_clip else clips.append([n_embeddings])
        open_clip = frames == FULL_SEGMENT
    build = build_prompt if all(isinstance(m, dict) and "role" in m for m in chat["messages"]) else build_base_prompt
    return list(build(chat["messages"], tokenizer, clips).tokens)


def special_token_checks(golden, folder: Path) -> None:
    """Ids and skip flags of every special token, and the run of audio codes."""
    tokenizer, data = _load(folder), golden.config
    tally = _Tally()
    for token in data["tokens"]:
        tally(token["token"], tokenizer.id(token["token"]), token["id"])
        tally(token["token"], token["id"] in tokenizer.special_ids, token["special"])
    run = data["audio_run"]
    tally("first audio id", tokenizer.first_audio_code, run["id_from"])
    tally("audio ids", np.arange(tokenizer.n_audio).size, run["id_to"] - run["id_from"] + 1)
    tally("end of turn", tokenizer.eot, data["eos_id"])
    tally.row(golden, "special tokens")
