"""Tokenizer files, read and checked: `vocab.json` and its neighbours, or one `tokenizer.json`."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ..errors import TokenizerError

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
PROBE = "It's  WE'LL\tcafe\u0301 12\n\n 3a, <x> \u4f60\u597d!\r\n  "  # treated alike by equal text rules only
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
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
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines[first:], start=first + 1):
        left, _, right = line.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise TokenizerError(
                f"{path}: line {number}: expected two tokens of vocab.json that join to a third, "
                f"found {line[:60]!r}; {ADVICE}"
            )
        merges.append((left, right))
    return merges


def _read_added(config_path: Path) -> dict[int, AddedToken]:
    """Id -> added token with its flags, from `added_tokens_decoder` of `tokenizer_config.json`."""
    table = _read_object(config_path).get("added_tokens_decoder")
    if not isinstance(table, dict):
        raise TokenizerError(
            f"{config_path}: expected an object added_tokens_decoder, found {type(table).__name__}; {ADVICE}"
        )
    added = {}
    for key, entry in table.items():
        flags = {name: entry.get(name) for name in FLAGS} if isinstance(entry, dict) else {}
        whole = set(entry) == {"content", *FLAGS} and all(isinstance(v, bool) for v in flags.values())
        if not (whole and key.isdecimal() and isinstance(entry["content"], str) and entry["content"]):
            raise TokenizerError(
                f"{config_path}: added_tokens_decoder[{key}]: expected content, "
                f"{', '.join(FLAGS)}, found {str(entry)[:120]}"
            )
        added[int(key)] = AddedToken(entry["content"], **flags)
    return added


def _refuse_contradiction(path: Path, named: dict, added: dict[int, AddedToken], other: str) -> None:
    """`added_tokens.json` and the table with the flags must name the same tokens with the same ids."""
    found = set(named.items())
    differ = sorted(found ^ {(token.content, i) for i, token in added.items()}, key=str)
    if differ:
        shown = ", ".join(f"{name} = {i}" for name, i in differ[:4])
        raise TokenizerError(
            f"{path} contradicts {other} in {len(differ)} entries (each in one of them only): "
            f"{shown}; take both files from the same model"
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
            f"{path}: {added[wrong[0]].content} cannot have id {wrong[0]}; expected names "
            f"that are no text tokens, with ids from {n_text} on without a gap"
        )


def from_parts(folder: Path) -> Backend:
    """Read the four published files of a folder, which must not contradict one another."""
    vocab = _read_vocab(folder / "vocab.json")
    merges = _read_merges(folder / "merges.txt", vocab)
    config_path, names_path = folder / "tokenizer_config.json", folder / "added_tokens.json"
    added = _read_added(config_path)
    _refuse_contradiction(names_path, _read_object(names_path), added, config_path.name)
    backend = blank_object(models.BPE(vocab, merges))
    add_token(backend, added, str(config_path))
    return backend


def from_single(path: Path) -> Backend:
    """`tokenizer.json`, if it treats text alike: checked by behaviour, since the rules can be written many ways."""
    try:
        backend = Backend.from_str(_read(path))
    except TokenizerError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(
            f"{path}: expected a tokenizer of the `tokenizers` library, found {error}; {ADVICE}"
        ) from None
    kinds = [type(part).__name__ for part in (backend.model, backend.decoder)]
    if kinds != ["BPE", "ByteLevel"] or _pieces(backend) != _pieces(blank_object(models.BPE())):
        raise TokenizerError(
            f"{path}: expected BPE, ByteLevel and Qwen2's text rules (NFC, split, bytes), found "
            f"{', '.join(kinds)}, or other rules; {ADVICE}"
        )
    backend.no_truncation()  # either would change ids in silence
    backend.no_padding()
    names = path.with_name("added_tokens.json")
    if names.exists():
        _refuse_contradiction(names, _read_object(names), backend.get_added_tokens_decoder(), path.name)
    return backend


def _pieces(backend: Backend) -> list[str]:
    text = backend.normalizer.normalize_str(PROBE) if backend.normalizer else PROBE
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
