"""Text <-> ids: byte-level BPE with Qwen2's text rules, special tokens by name, a streaming detokenizer.

Reads the published files (`vocab.json`, `merges.txt`, `added_tokens.json`, `tokenizer_config.json`) or one
`tokenizer.json`, and writes the former. The merging itself is done by the `tokenizers` library.
Holds no special id as a number (each model has its own), and knows no turns and no sound.
"""

from __future__ import annotations

import codecs
import json
import operator
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, models, trainers
from tokenizers import Tokenizer as Backend

from ..constants import N_AUDIO_CODES
from ..errors import TokenizerError
from ..files import move_into_place, reason, staging_folder
from ..reading import is_file, is_folder
from .tokenizer_files import (
    ADVICE,
    BYTE_OF,
    NOT_SKIPPED,
    QWEN_TOKENS,
    SPECIAL_TOKENS,
    add_token,
    added_token,
    blank_object,
    from_parts,
    from_single,
)

N_AUDIO_TOKENS = N_AUDIO_CODES + 95  # <audio_0> ... <audio_6655>; the last 95 are padding
EOT = "<|EOT|>"
EOS_NAMES = ("<|endoftext|>", "<|im_end|>", EOT)
SAVED = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
AUDIO_NAME = re.compile(r"<audio_(0|[1-9]\d*)>")


class Tokenizer:
    """Text <-> ids of one model.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        Use `from_folder` or `train` instead of building one.
    vocab_rows : int > 0, optional
        Rows of the model's embedding. Published models have more rows than tokens; ids in between decode to
        ''. Without it no upper limit of an id is known here.

    Raises
    ------
    TokenizerError
        No `<|EOT|>`; `<audio_N>` with gaps; more ids than the model has rows.
    """

    def __init__(self, backend: Backend, vocab_rows: int | None = None):
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.n_ids = max([backend.get_vocab_size(with_added_tokens=False), *(i + 1 for i in added)])
        if vocab_rows is not None and vocab_rows < self.n_ids:
            raise TokenizerError(
                f"the tokenizer has ids up to {self.n_ids - 1}, the model only {vocab_rows} rows; "
                "take both from the same model"
            )
        self.vocab_rows = vocab_rows
        self._special = frozenset(i for i, token in added.items() if token.special)
        codes = {int(m[1]): i for i, token in added.items() if (m := AUDIO_NAME.fullmatch(token.content))}
        self.n_audio = len(codes)
        self._first_audio = codes.get(0, self.n_ids)
        if any(codes.get(n) != self._first_audio + n for n in range(self.n_audio)):
            raise TokenizerError(f"expected <audio_0> to <audio_{self.n_audio - 1}> with consecutive ids; {ADVICE}")
        self._plain = Backend(backend.model)  # the same text rules, and no token that is written by its name
        self._plain.normalizer, self._plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        self.id(EOT)

    @classmethod
    def from_folder(cls, path: str | Path, vocab_rows: int | None = None) -> Tokenizer:
        """Load `tokenizer.json` if the folder has it, else the four published files.

        Raises
        ------
        TokenizerError
            A file is missing, broken, or contradicts another; the message names it.
        """
        folder = Path(path)
        if not is_folder(folder, TokenizerError):
            raise TokenizerError(f"{folder}: no such folder; {ADVICE}")
        single = folder / "tokenizer.json"
        return cls(from_single(single) if is_file(single, TokenizerError) else from_parts(folder), vocab_rows)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
        n_audio: int = N_AUDIO_TOKENS,
        vocab_rows: int | None = None,
    ) -> Tokenizer:
        """Learn a small vocabulary; same text rules as the published one, and the same names after it.

        Parameters
        ----------
        texts : iterable of str
            Plain text, without special tokens.
        vocab_size : int >= 256
            Most text tokens (256 of them are the bytes); fewer when the texts hold fewer repeated pairs.
        special_tokens : names that follow the text vocabulary
        n_audio : int >= 0
            `<audio_0>` ... that follow the special tokens.
        """
        if isinstance(texts, str) or vocab_size < 256 or n_audio < 0:
            raise TokenizerError(
                f"expected a list of texts, vocab_size >= 256 and n_audio >= 0, found "
                f"{type(texts).__name__}, {vocab_size}, {n_audio}"
            )
        backend = blank_object(models.BPE())
        backend.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocab_size, min_frequency=2, initial_alphabet=sorted(BYTE_OF), show_progress=False
            ),
        )
        tokens = [AddedToken(name, normalized=False, special=name not in NOT_SKIPPED) for name in special_tokens]
        tokens += [AddedToken(f"<audio_{n}>", normalized=True, special=False) for n in range(n_audio)]
        first = backend.get_vocab_size()
        add_token(backend, dict(enumerate(tokens, start=first)), "special_tokens")
        return cls(backend, vocab_rows)

    def save(self, folder: str | Path) -> None:
        """Write the published set: vocab, merges, added tokens, config and special-token map; overwrites.

        Raises
        ------
        TokenizerError
            The folder cannot be written; what was in it is still there.
        """
        try:
            with staging_folder(folder, ".tokenizer-") as aside:
                self._write(aside)
                move_into_place(aside, folder, SAVED)
        except Exception as error:  # the library has no class of its own for a disk that is full
            raise TokenizerError(f"{folder}: the tokenizer cannot be written ({reason(error)})") from None

    def _write(self, folder: Path) -> None:
        self._backend.model.save(str(folder))
        added = dict(sorted(self._backend.get_added_tokens_decoder().items()))
        extra = [t.content for t in added.values() if t.special and t.content not in QWEN_TOKENS]
        pad = next((t for t in added.values() if t.content == EOS_NAMES[0]), None)
        marks = {"additional_special_tokens": extra, "eos_token": EOT}
        if pad is not None:
            marks["pad_token"] = {key: value for key, value in added_token(pad).items() if key != "special"}
        table = {str(i): added_token(t) for i, t in added.items()}
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": table,
            "additional_special_tokens": extra,
            "clean_up_tokenization_spaces": False,
            "eos_token": EOT,
            "errors": "replace",
            "pad_token": pad.content if pad else None,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }
        names = {t.content: i for i, t in added.items()}
        for name, data in (("added_tokens", names), ("tokenizer_config", config), ("special_tokens_map", marks)):
            text = json.dumps(data, ensure_ascii=False, indent=0) + "\n"  # thousands of entries: two fifths were blanks
            (folder / f"{name}.json").write_text(text, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written in it become their ids, nothing is put in front or behind."""
        return _encoded(self._backend, text)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` as words alone: `<|EOT|>`, `<audio_7>` or `<tool_call>` written in it are characters.

        Without such names in it, the ids are those of `encode`. For text of a stranger: no control token comes of it.
        """
        return _encoded(self._plain, text)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of `ids`; ids without a token give '', bytes that are no UTF-8 give U+FFFD.

        `skip_special` drops tokens flagged special, which `<audio_N>` and `<tool_call>` are not.
        """
        known = [i for i in map(self.check, ids) if i < self.n_ids]
        return self._backend.decode(known, skip_special_tokens=skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; b'' for an id of the model without a token."""
        value = self.check(token_id)
        token = self._backend.id_to_token(value) if value < self.n_ids else None
        if token is None:
            return b""
        return bytes(BYTE_OF[c] for c in token) if BYTE_OF.keys() >= set(token) else token.encode()

    def check(self, token_id: int) -> int:
        """`token_id` as an int if it lies in the model's vocabulary, else TokenizerError."""
        try:
            value = operator.index(token_id)
        except TypeError:
            raise TokenizerError(f"expected an id, found {token_id!r}") from None
        if value < 0 or (self.vocab_rows is not None and value >= self.vocab_rows):
            end = "" if self.vocab_rows is None else self.vocab_rows - 1
            raise TokenizerError(f"id {value} lies outside the vocabulary 0..{end}")
        return value

    def id(self, name: str) -> int:
        """The id of the token called `name`, e.g. `<|BOT|>`; TokenizerError if there is none."""
        found = self._backend.token_to_id(name)
        if found is None:
            raise TokenizerError(f"the tokenizer has no token {name!r}, which is needed; {ADVICE}")
        return found

    bot = property(lambda self: self.id("<|BOT|>"), doc="Opens a turn.")
    eot = property(lambda self: self.id(EOT), doc="Closes a turn.")
    audio_start = property(
        lambda self: self.id("<audio_start>"), doc="Stands before the embeddings of a segment of audio."
    )
    audio_patch = property(lambda self: self.id("<audio_patch>"), doc="Stands for one audio embedding.")
    audio_end = property(lambda self: self.id("<audio_end>"), doc="Stands after the embeddings of a segment of audio.")
    tts_start = property(lambda self: self.id("<tts_start>"), doc="Opens a spoken answer.")
    tts_end = property(lambda self: self.id("<tts_end>"), doc="Closes a spoken answer.")
    tts_pad = property(lambda self: self.id("<tts_pad>"), doc="Fills a spoken answer when its text is done.")
    text_limit = property(lambda self: self.audio_start, doc="Ids below it are text, as the reference splits them.")
    first_audio_code = property(lambda self: self.id("<audio_0>"), doc="The id of code 0.")

    def same_ids(self, other: Tokenizer) -> bool:
        """Whether every token has the same id in both."""
        return self is other or self._backend.get_vocab() == other._backend.get_vocab()

    special_ids = property(lambda self: self._special, doc="Ids that `skip_special` drops.")

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer: `<|endoftext|>`, `<|im_end|>`, `<|EOT|>`, as far as the model has them."""
        return frozenset(i for name in EOS_NAMES if (i := self._backend.token_to_id(name)) is not None)

    def is_audio(self, token_id: int) -> bool:
        """Whether the id is an `<audio_N>`, a code or padding."""
        return 0 <= token_id - self._first_audio < self.n_audio

    def is_audio_padding(self, token_id: int) -> bool:
        """Whether the id is an `<audio_N>` beyond the codec's last code, which nobody may voice."""
        return self.is_audio(token_id) and token_id - self._first_audio >= N_AUDIO_CODES

    def audio_code(self, token_id: int) -> int | None:
        """The code 0..6560 that the id stands for; None for text, markers and audio padding."""
        speaks = self.is_audio(token_id) and not self.is_audio_padding(token_id)
        return token_id - self._first_audio if speaks else None


def _encoded(backend: Backend, text: str) -> list[int]:
    try:
        return backend.encode(text, add_special_tokens=False).ids
    except (TypeError, UnicodeError):
        raise TokenizerError(f"expected text without lone surrogates, found {text!r:.60}") from None


class Detokenizer:
    """Text of token ids that come one by one; all parts joined equal `Tokenizer.decode` of all ids.

    A part never ends inside a character: bytes wait until the character is whole or known to be broken.

    >>> detokenizer = Detokenizer(tokenizer)                                     # doctest: +SKIP
    >>> text = "".join(map(detokenizer.push, ids)) + detokenizer.finish()        # doctest: +SKIP
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._dropped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this id completes, '' if none."""
        data = self._tokenizer.token_bytes(token_id)
        return "" if token_id in self._dropped else self._utf8.decode(data)

    def finish(self) -> str:
        """What is left: '' or one U+FFFD for a character cut off; afterwards ready for another text."""
        return self._utf8.decode(b"", final=True)
