"""Tokenizer files, read and checked: `vocab.json` and its neighbours, or one `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ..errors import TokenizerError
from ..reading import is_file, read_object, read_text
from ..schema import shown

# Published order of names; ids follow the text vocabulary without a gap.
QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
STEP_TOKENS = (
    "<|EOT|>",
    "<|BOT|>",
    "<|CALL_START|>",
    "<|CALL_END|>",
    "<|THINK_START|>",
    "<|THINK_END|>",
    "<|IMG_START|>",
    "<|IMG_END|>",
    "<|META_START|>",
    "<|META_END|>",
    "<im_patch>",
    "<im_start>",
    "<im_end>",
    "<dream>",
    "<dream_start>",
    "<dream_end>",
    "<|MASK_1e69f|>",
    "<|UNMASK_1e69f|>",
    "<video_start>",
    "<video_end>",
    "<patch_start>",
    "<patch_end>",
    "<patch_newline>",
    "<audio_start>",
    "<audio_end>",
    "<audio_patch>",
    "<audio_patch_pad>",
    "<|SC|>",
    "<tts_start>",
    "<tts_end>",
    "<tts_pad>",
)
SPECIAL_TOKENS = QWEN_TOKENS + STEP_TOKENS
NOT_SKIPPED = frozenset(QWEN_TOKENS[QWEN_TOKENS.index("<tool_call>") :])  # stay in the text when specials go

# Qwen2's split: contractions, words with one leading mark, single digits, punctuation, line ends, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
# What is built here, as the two kinds of files spell it. A key that is absent counts as None.
TEXT_RULES: dict[str, tuple[object, ...]] = {
    "normalizer": ({"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
    "pre_tokenizer": (
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
    ),
    "decoder": ({"type": "ByteLevel"},),
}
OF_OFFSETS = frozenset({"trim_offsets"})  # say where a token lies in its text, not which it is
OF_DECODER = OF_OFFSETS | {"add_prefix_space", "use_regex"}  # idle in a decoder
MODEL: dict[str, tuple[object, ...]] = {
    "type": ("BPE",),
    "dropout": (None, 0.0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
SETTINGS: dict[str, tuple[object, ...]] = {  # of tokenizer_config.json
    "add_prefix_space": (None, False),
    "clean_up_tokenization_spaces": (None, False),
    "errors": (None, "replace"),
    "split_special_tokens": (None, False),
    "tokenizer_class": (None, "Qwen2Tokenizer", "Qwen2TokenizerFast"),
    "unk_token": (None,),
}
MAX_ID_DIGITS = 9
ADVICE = "give the folder of a published model, or tokenizer=None (--no-tokenizer) to get ids without text"


def _byte_alphabet() -> dict[str, int]:
    """The printable character by which byte-level BPE writes each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(rest)}


BYTE_OF = _byte_alphabet()


def blank_object(model: models.BPE) -> Backend:
    """A backend around `model` with Qwen2's text rules: NFC, split, bytes."""
    backend = Backend(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _read_vocab(path: Path) -> dict[str, int]:
    return _checked_vocab(read_object(path, TokenizerError, ADVICE), str(path))


def _checked_vocab(vocab: object, where: str) -> dict[str, int]:
    if not isinstance(vocab, dict) or not _are_ids(vocab.values()) or sorted(vocab.values()) != [*range(len(vocab))]:
        found = len(vocab) - 1 if isinstance(vocab, dict) else "n"
        raise TokenizerError(f"{where}: expected token: id with ids 0..{found} each once; {ADVICE}")
    lost = [c for c in BYTE_OF if c not in vocab]
    if lost:  # the library would drop such bytes from a text without a word
        raise TokenizerError(f"{where}: {len(lost)} of the 256 byte tokens are missing, first {lost[0]!r}; {ADVICE}")
    return vocab


def _are_ids(values: Iterable[object]) -> bool:
    return all(type(i) is int for i in values)


def _read_merges(path: Path) -> Iterator[tuple[str, str, str]]:
    """(where, left, right) of each line; one may itself start with '#', so only a version line is a comment."""
    lines = read_text(path, TokenizerError, ADVICE).removesuffix("\n").split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    for number, line in enumerate(lines[first:], start=first + 1):
        left, _, right = line.partition(" ")
        yield f"{path}: line {number}", left, right


def _listed_merges(merges: object, where: str) -> Iterator[tuple[str, str, str]]:
    """The same of `tokenizer.json`, where a pair is a list or, before version 0.20 of the library, one text."""
    if not isinstance(merges, list):
        raise TokenizerError(f"{where}: expected a list, found {type(merges).__name__}; {ADVICE}")
    for number, pair in enumerate(merges):
        if isinstance(pair, str):
            left, _, right = pair.partition(" ")
        elif isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair):
            left, right = pair
        else:
            raise TokenizerError(f"{where}[{number}]: expected a pair of tokens, found {shown(pair)}; {ADVICE}")
        yield f"{where}[{number}]", left, right


def _checked_merges(merges: Iterable[tuple[str, str, str]], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs in order, each of two tokens that join to a third."""
    pairs = []
    for where, left, right in merges:
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise TokenizerError(
                f"{where}: expected two tokens of the vocabulary that join to a third, found "
                f"{f'{left} {right}'!r:.60}; {ADVICE}"
            )
        pairs.append((left, right))
    return pairs


def _read_added(config_path: Path) -> dict[int, AddedToken]:
    """Id -> added token with its flags, from `added_tokens_decoder` of `tokenizer_config.json`."""
    config = read_object(config_path, TokenizerError, ADVICE)
    _require_settings(config, SETTINGS, str(config_path))
    table = config.get("added_tokens_decoder")
    if not isinstance(table, dict):
        raise TokenizerError(
            f"{config_path}: expected an object added_tokens_decoder, found {type(table).__name__}; {ADVICE}"
        )
    added = {}
    for key, entry in table.items():
        where = f"{config_path}: added_tokens_decoder[{key:.40}]"
        if not (key.isascii() and key.isdecimal() and len(key) <= MAX_ID_DIGITS) or int(key) in added:
            raise TokenizerError(f"{where}: expected an id as the key, each once; {ADVICE}")
        added[int(key)] = _checked_token(entry, where)
    return added


def _listed_added(entries: object, where: str) -> dict[int, AddedToken]:
    """The same from `added_tokens` of `tokenizer.json`."""
    if not isinstance(entries, list):
        raise TokenizerError(f"{where}: expected a list, found {type(entries).__name__}; {ADVICE}")
    added: dict[int, AddedToken] = {}
    for number, entry in enumerate(entries):
        own = dict(entry) if isinstance(entry, dict) else {}
        i = own.pop("id", None)
        if type(i) is not int or i in added:
            raise TokenizerError(f"{where}[{number}]: expected an id, each once, found {shown(i)}; {ADVICE}")
        added[i] = _checked_token(own, f"{where}[{number}]")
    return added


def _checked_token(entry: object, where: str) -> AddedToken:
    content = entry.get("content") if isinstance(entry, dict) else None
    flags = {name: entry.get(name) for name in FLAGS} if isinstance(entry, dict) else {}
    whole = isinstance(entry, dict) and set(entry) == {"content", *FLAGS}
    if not whole or not all(isinstance(v, bool) for v in flags.values()) or not isinstance(content, str) or not content:
        raise TokenizerError(f"{where}: expected content, {', '.join(FLAGS)}, found {shown(entry)}")
    return AddedToken(content, **cast(dict[str, bool], flags))


def _require_settings(found: dict[str, Any], known: dict[str, tuple[object, ...]], where: str) -> None:
    """Refuse settings under which a text would have other tokens, or tokens another text."""
    for name, accepted in known.items():
        value = found.get(name)
        if not any(
            type(value) in (type(one), int if type(one) is float else None) and value == one for one in accepted
        ):
            raise TokenizerError(
                f"{where}: {name}: expected {' or '.join(map(repr, accepted))}, which is how text is treated here, "
                f"found {shown(value)}; {ADVICE}"
            )


def _refuse_contradiction(path: Path, added: dict[int, AddedToken], other: str) -> None:
    """`added_tokens.json` and the table with the flags must name the same tokens with the same ids."""
    named = read_object(path, TokenizerError, ADVICE)
    if not _are_ids(named.values()):
        raise TokenizerError(f"{path}: expected names with their ids; {ADVICE}")
    found = set(named.items())
    differ = sorted(found ^ {(token.content, i) for i, token in added.items()}, key=str)
    if differ:
        cases = ", ".join(f"{name:.80} = {i}" for name, i in differ[:4])
        raise TokenizerError(
            f"{path} contradicts {other} in {len(differ)} entries (each in one of them only): "
            f"{cases}; take both files from the same model"
        )


def added_token(token: AddedToken) -> dict:
    """An added token as the published JSON has it."""
    return {"content": token.content} | {name: getattr(token, name) for name in FLAGS}


def add_token(backend: Backend, added: dict[int, AddedToken], path: str) -> None:
    """Append the added tokens in id order, all in one call (one by one costs a minute), and check their ids."""
    backend.add_tokens([added[i] for i in sorted(added)])
    table = backend.get_added_tokens_decoder()
    wrong = [i for i in sorted(added) if i not in table or added_token(table[i]) != added_token(added[i])]
    if wrong:
        n_text = backend.get_vocab_size(with_added_tokens=False)
        raise TokenizerError(
            f"{path}: {added[wrong[0]].content:.80} cannot have id {shown(wrong[0])}; expected names "
            f"that are no text tokens, with ids from {n_text} on without a gap"
        )


def from_parts(folder: Path) -> Backend:
    """Read the four published files of a folder, which must not contradict one another."""
    vocab = _read_vocab(folder / "vocab.json")
    merges = _checked_merges(_read_merges(folder / "merges.txt"), vocab)
    config_path = folder / "tokenizer_config.json"
    added = _read_added(config_path)
    _refuse_contradiction(folder / "added_tokens.json", added, config_path.name)
    return _assembled(vocab, merges, added, config_path)


def from_single(path: Path) -> Backend:
    """Read `tokenizer.json`, if its settings are those of the published tokenizer.

    The library is not asked to build what the file describes: it would take settings that change ids in silence, and
    ends the process on some. Vocabulary, merges and names are taken out, and the backend is built as from four files.
    `truncation` and `padding` would cut ids, and `post_processor` would add some; none of them is used.
    """
    data = read_object(path, TokenizerError, ADVICE)
    for part, accepted in TEXT_RULES.items():
        told = _without(data.get(part), OF_DECODER if part == "decoder" else OF_OFFSETS)
        if told not in accepted:
            raise TokenizerError(
                f"{path}: {part}: expected Qwen2's text rules (NFC, split, bytes), found {shown(told)}; {ADVICE}"
            )
    model = data.get("model")
    if not isinstance(model, dict):
        raise TokenizerError(f"{path}: model: expected a JSON object, found {type(model).__name__}; {ADVICE}")
    _require_settings(model, MODEL, f"{path}: model")
    extra = sorted(set(model) - {*MODEL, "vocab", "merges"})
    if extra:
        raise TokenizerError(f"{path}: model: unknown key {shown(extra)}; {ADVICE}")
    vocab = _checked_vocab(model.get("vocab"), f"{path}: model.vocab")
    merges = _checked_merges(_listed_merges(model.get("merges"), f"{path}: model.merges"), vocab)
    added = _listed_added(data.get("added_tokens"), f"{path}: added_tokens")
    names = path.with_name("added_tokens.json")
    if is_file(names, TokenizerError):
        _refuse_contradiction(names, added, path.name)
    return _assembled(vocab, merges, added, path)


def _without(rule: object, keys: frozenset[str]) -> object:
    """A text rule, and those in it, without `keys`."""
    if isinstance(rule, dict):
        return {key: _without(value, keys) for key, value in rule.items() if key not in keys}
    return [_without(value, keys) for value in rule] if isinstance(rule, list) else rule


def _assembled(
    vocab: dict[str, int], merges: Sequence[tuple[str, str]], added: dict[int, AddedToken], path: Path
) -> Backend:
    with _refusals(path):
        backend = blank_object(models.BPE(vocab, list(merges)))
        add_token(backend, added, str(path))
        return backend


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """What the library raises as a `TokenizerError`: plain exceptions, and panics, which are no `Exception`."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{path}: the tokenizers library cannot use it ({error!s:.200}); {ADVICE}") from None
