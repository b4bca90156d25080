"""Text <-> ids: byte-level BPE with Qwen2's text rules, special tokens by name, a streaming detokenizer.

Reads the published files (`vocab.json`, `merges.txt`, `added_tokens.json`, `tokenizer_config.json`) or one
`tokenizer.json`, and writes the former. The merging itself is done by the `tokenizers` library.
Refuses to know: any special id as a number (each model has its own), turns and prompts, sound.
"""

from __future__ import annotations

import codecs
import json
import operator
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from .errors import TokenizerError
from .units import N_AUDIO_CODES

# Published order of names; ids follow the text vocabulary without a gap.
QWEN_TOKENS = tuple(
    """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
    <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
    <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>
    <|file_sep|>""".split()
)
STEP_TOKENS = tuple(
    """<|EOT|> <|BOT|> <|CALL_START|> <|CALL_END|> <|THINK_START|> <|THINK_END|> <|IMG_START|> <|IMG_END|>
    <|META_START|> <|META_END|> <im_patch> <im_start> <im_end> <dream> <dream_start> <dream_end>
    <|MASK_1e69f|> <|UNMASK_1e69f|> <video_start> <video_end> <patch_start> <patch_end> <patch_newline>
    <audio_start> <audio_end> <audio_patch> <audio_patch_pad> <|SC|> <tts_start> <tts_end> <tts_pad>""".split()
)
SPECIAL_TOKENS = QWEN_TOKENS + STEP_TOKENS
NOT_SKIPPED = frozenset(QWEN_TOKENS[QWEN_TOKENS.index("<tool_call>"):])  # stay in the text when specials go
N_AUDIO_TOKENS = N_AUDIO_CODES + 95  # <audio_0> ... <audio_6655>; the last 95 are padding
EOT = "<|EOT|>"
EOS_NAMES = ("<|endoftext|>", "<|im_end|>", EOT)
AUDIO_NAME = re.compile(r"<audio_(0|[1-9]\d*)>")

# Qwen2's split: contractions, words with one leading mark, single digits, punctuation, line ends, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROBE = "It's  WE'LL\tcafe\u0301 12\n\n 3a, <x> \u4f60\u597d!\r\n  "  # treated alike by equal text rules only
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
ADVICE = "give the folder of a published model, or tokenizer=None (--no-tokenizer) to get ids without text"


def _byte_alphabet() -> dict[str, int]:
    """The printable character by which byte-level BPE writes each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(rest)}


BYTE_OF = _byte_alphabet()


def _blank(model: models.BPE) -> Backend:
    """A backend around `model` with Qwen2's text rules: NFC, split, bytes."""
    backend = Backend(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.decoder = decoders.ByteLevel()
    return backend


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerError(f"{path}: no such file; {ADVICE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: expected UTF-8 text, found {error}; {ADVICE}") from None


def _read_object(path: Path) -> dict:
    try:
        data = json.loads(_read(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path}: expected JSON, found {error}; {ADVICE}") from None
    if not isinstance(data, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(data).__name__}; {ADVICE}")
    return data


def _read_vocab(path: Path) -> dict[str, int]:
    vocab = _read_object(path)
    if any(type(i) is not int for i in vocab.values()) or sorted(vocab.values()) != list(range(len(vocab))):
        raise TokenizerError(f"{path}: expected token: id with ids 0..{len(vocab) - 1} each once; {ADVICE}")
    lost = [c for c in BYTE_OF if c not in vocab]
    if lost:  # the library would drop such bytes from a text without a word
        raise TokenizerError(f"{path}: {len(lost)} of the 256 byte tokens are missing, first {lost[0]!r}; {ADVICE}")
    return vocab


def _read_merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs in order; a line may itself start with '#', so only a version line is taken for a comment."""
    lines = _read(path).removesuffix("\n").split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    merges = [tuple(line.split(" ")) for line in lines[first:]]
    for number, pair in enumerate(merges, start=first + 1):
        if len(pair) != 2 or pair[0] not in vocab or pair[1] not in vocab or pair[0] + pair[1] not in vocab:
            raise TokenizerError(f"{path}: line {number}: expected two tokens of vocab.json that join to a third, "
                                 f"found {' '.join(pair)[:60]!r}; {ADVICE}")
    return merges


def _read_added(config_path: Path) -> dict[int, AddedToken]:
    """id -> added token with its flags, from `added_tokens_decoder` of `tokenizer_config.json`."""
    table = _read_object(config_path).get("added_tokens_decoder")
    if not isinstance(table, dict):
        raise TokenizerError(f"{config_path}: expected an object added_tokens_decoder, found "
                             f"{type(table).__name__}; {ADVICE}")
    added = {}
    for key, entry in table.items():
        flags = {name: entry.get(name) for name in FLAGS} if isinstance(entry, dict) else {}
        whole = set(entry) == {"content", *FLAGS} and all(isinstance(v, bool) for v in flags.values())
        if not (whole and key.isdecimal() and isinstance(entry["content"], str) and entry["content"]):
            raise TokenizerError(f"{config_path}: added_tokens_decoder[{key}]: expected content, "
                                 f"{', '.join(FLAGS)}, found {str(entry)[:120]}")
        added[int(key)] = AddedToken(entry["content"], **flags)
    return added


def _refuse_contradiction(path: Path, named: dict, added: dict[int, AddedToken], other: str) -> None:
    """`added_tokens.json` and the table with the flags must name the same tokens with the same ids."""
    found = {(name, i) for name, i in named.items()}
    differ = sorted(found ^ {(token.content, i) for i, token in added.items()}, key=str)
    if differ:
        shown = ", ".join(f"{name} = {i}" for name, i in differ[:4])
        raise TokenizerError(f"{path} contradicts {other} in {len(differ)} entries (each in one of them only): "
                             f"{shown}; take both files from the same model")


def _entry(token: AddedToken) -> dict:
    return {"content": token.content} | {name: getattr(token, name) for name in FLAGS}


def _add(backend: Backend, added: dict[int, AddedToken], path: str) -> None:
    """Append the added tokens in id order, all in one call (one by one costs a minute), and check their ids."""
    backend.add_tokens([added[i] for i in sorted(added)])
    table = backend.get_added_tokens_decoder()
    wrong = [i for i in sorted(added) if i not in table or _entry(table[i]) != _entry(added[i])]
    if wrong:
        n_text = backend.get_vocab_size(with_added_tokens=False)
        raise TokenizerError(f"{path}: {added[wrong[0]].content} cannot have id {wrong[0]}; expected names "
                             f"that are no text tokens, with ids from {n_text} on without a gap")


def _from_parts(folder: Path) -> Backend:
    vocab = _read_vocab(folder / "vocab.json")
    merges = _read_merges(folder / "merges.txt", vocab)
    config_path, names_path = folder / "tokenizer_config.json", folder / "added_tokens.json"
    added = _read_added(config_path)
    _refuse_contradiction(names_path, _read_object(names_path), added, config_path.name)
    backend = _blank(models.BPE(vocab, merges))
    _add(backend, added, str(config_path))
    return backend


def _from_single(path: Path) -> Backend:
    """`tokenizer.json`, if it treats text alike: checked by behaviour, since the rules can be written many ways."""
    try:
        backend = Backend.from_str(_read(path))
    except TokenizerError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{path}: expected a tokenizer of the `tokenizers` library, found {error}; "
                             f"{ADVICE}") from None
    kinds = [type(part).__name__ for part in (backend.model, backend.decoder)]
    if kinds != ["BPE", "ByteLevel"] or _pieces(backend) != _pieces(_blank(models.BPE())):
        raise TokenizerError(f"{path}: expected BPE, ByteLevel and Qwen2's text rules (NFC, split, bytes), found "
                             f"{', '.join(kinds)}, or other rules; {ADVICE}")
    backend.no_truncation()  # either would change ids in silence
    backend.no_padding()
    names = path.with_name("added_tokens.json")
    if names.exists():
        _refuse_contradiction(names, _read_object(names), backend.get_added_tokens_decoder(), path.name)
    return backend


def _pieces(backend: Backend) -> list[str]:
    text = backend.normalizer.normalize_str(PROBE) if backend.normalizer else PROBE
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]


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
            raise TokenizerError(f"the tokenizer has ids up to {self.n_ids - 1}, the model only {vocab_rows} rows; "
                                 "take both from the same model")
        self.vocab_rows = vocab_rows
        self._special = frozenset(i for i, token in added.items() if token.special)
        codes = {int(m[1]): i for i, token in added.items() if (m := AUDIO_NAME.fullmatch(token.content))}
        self.n_audio = len(codes)
        self._first_audio = codes.get(0, self.n_ids)
        if any(codes.get(n) != self._first_audio + n for n in range(self.n_audio)):
            raise TokenizerError(f"expected <audio_0> to <audio_{self.n_audio - 1}> with consecutive ids; {ADVICE}")
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
        if not folder.is_dir():
            raise TokenizerError(f"{folder}: no such folder; {ADVICE}")
        single = folder / "tokenizer.json"
        return cls(_from_single(single) if single.exists() else _from_parts(folder), vocab_rows)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = SPECIAL_TOKENS,
              n_audio: int = N_AUDIO_TOKENS, vocab_rows: int | None = None) -> Tokenizer:
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
            raise TokenizerError(f"expected a list of texts, vocab_size >= 256 and n_audio >= 0, found "
                                 f"{type(texts).__name__}, {vocab_size}, {n_audio}")
        backend = _blank(models.BPE())
        backend.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, initial_alphabet=sorted(BYTE_OF), show_progress=False))
        tokens = [AddedToken(name, normalized=False, special=name not in NOT_SKIPPED) for name in special_tokens]
        tokens += [AddedToken(f"<audio_{n}>", normalized=True, special=False) for n in range(n_audio)]
        first = backend.get_vocab_size()
        _add(backend, dict(enumerate(tokens, start=first)), "special_tokens")
        return cls(backend, vocab_rows)

    def save(self, folder: str | Path) -> None:
        """Write the published set: vocab, merges, added tokens, config and special-token map; overwrites."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.model.save(str(folder))
        added = dict(sorted(self._backend.get_added_tokens_decoder().items()))
        extra = [t.content for t in added.values() if t.special and t.content not in QWEN_TOKENS]
        pad = next((t for t in added.values() if t.content == EOS_NAMES[0]), None)
        marks = {"additional_special_tokens": extra, "eos_token": EOT}
        if pad is not None:
            marks["pad_token"] = {key: value for key, value in _entry(pad).items() if key != "special"}
        table = {str(i): _entry(t) for i, t in added.items()}
        config = {"add_prefix_space": False, "added_tokens_decoder": table, "additional_special_tokens": extra,
                  "clean_up_tokenization_spaces": False, "eos_token": EOT, "errors": "replace",
                  "pad_token": pad.content if pad else None, "split_special_tokens": False,
                  "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
        names = {t.content: i for i, t in added.items()}
        for name, data in (("added_tokens", names), ("tokenizer_config", config), ("special_tokens_map", marks)):
            text = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
            (folder / f"{name}.json").write_text(text, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written in it become their ids, nothing is put in front or behind."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError):
            raise TokenizerError(f"expected text without lone surrogates, found {text!r:.60}") from None

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
        marks = [BYTE_OF.get(c) for c in token]
        return token.encode() if None in marks else bytes(marks)

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
    audio_start = property(lambda self: self.id("<audio_start>"), doc="Stands before the rows of a piece of audio.")
    audio_patch = property(lambda self: self.id("<audio_patch>"), doc="Stands for one row of audio.")
    audio_end = property(lambda self: self.id("<audio_end>"), doc="Stands after the rows of a piece of audio.")
    tts_start = property(lambda self: self.id("<tts_start>"), doc="Opens a spoken answer.")
    tts_end = property(lambda self: self.id("<tts_end>"), doc="Closes a spoken answer.")
    tts_pad = property(lambda self: self.id("<tts_pad>"), doc="Fills a spoken answer when its text is done.")
    text_limit = property(lambda self: self.audio_start, doc="Ids below it are text, as the reference splits them.")
    first_audio_code = property(lambda self: self.id("<audio_0>"), doc="The id of code 0.")
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


class Detokenizer:
    """Text of ids that come one by one; all pieces joined equal `Tokenizer.decode` of all ids.

    A piece never ends inside a character: bytes wait until the character is whole or known to be broken.

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
