"""Every reader of the package with a small valid file, how it is hurt, and what an accepted file must agree with.

`read` gives what was understood; `check` gives a sentence if that is silently wrong, judged by something that the
package does not use: json, struct, the length of the whole sound.
"""

from __future__ import annotations

import atexit
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import tiny

from stepaudio.audio.load import load_audio
from stepaudio.checkpoints.capabilities import FILE as CAPABILITIES
from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.checkpoints.convert.flow_yaml import read_flow_config
from stepaudio.checkpoints.convert.manifest import MANIFEST, read_manifest
from stepaudio.checkpoints.convert.onnx_file import read_onnx
from stepaudio.checkpoints.convert.torch_file import check_storages, read_pt
from stepaudio.checkpoints.header import INDEX_FILE, SINGLE_FILE, read_checkpoint, read_header
from stepaudio.checkpoints.load import validate_weights
from stepaudio.checkpoints.lora import Lora
from stepaudio.checkpoints.tensors import read_arrays, read_values
from stepaudio.cli.sound import is_ours
from stepaudio.cli.speak import read_codes
from stepaudio.conversation import Conversation
from stepaudio.decoding.options import DecodingOptions
from stepaudio.evaluation.manifest import read_manifest as read_clips
from stepaudio.evaluation.scores import Evaluation
from stepaudio.evaluation.word_errors import read_words
from stepaudio.experiments.grid import Grid, sampling_from
from stepaudio.experiments.store import is_store, read_store, read_table
from stepaudio.experiments.table import is_table
from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.parity.run import verify
from stepaudio.synthesis.voice import Voice
from stepaudio.text.chat_template import build_prompt
from stepaudio.text.subtitles import is_srt, is_tsv, is_vtt, srt
from stepaudio.text.tokenizer import Tokenizer
from stepaudio.train.nano import encoder_sizes, read_encoder
from stepaudio.train.optimiser import STATE_FILE, read_state

from . import valid
from .mutate import HEAD

SENTENCE = "the cat sat on the mat, café 你好"


@dataclass(frozen=True)
class Reader:
    """A folder of valid files, the one that is hurt, the form of its damage, and how it is read."""

    make: Callable[[Path], object]
    file: str
    form: str
    read: Callable[[Path], object]
    check: Callable[[bytes, bytes, object], str | None] = lambda whole, hurt, found: None


# ---- what is understood, and by whom else ----


def _same_leaves(whole: bytes, hurt: bytes, found) -> str | None:
    """Every number and text of the JSON that the record also names must be what the record says."""
    said = json.loads(hurt)

    def differs(a, b, path=""):
        if isinstance(a, dict) and isinstance(b, dict):
            return next((d for k in a if k in b and (d := differs(a[k], b[k], f"{path}.{k}"))), None)
        plain = isinstance(a, int | float | str) and isinstance(b, int | float | str)
        return f"{path[1:]}: the file says {a!r:.60}, the record {b!r:.60}" if plain and a != b else None

    return differs(said, found)


def _safetensors_values(path: Path) -> dict:
    read_header(path)
    return read_arrays(path)


def _same_values(whole: bytes, hurt: bytes, found) -> str | None:
    """By struct alone: the header, and each tensor's bytes."""
    n = int.from_bytes(hurt[:8], "little")
    header, data = json.loads(hurt[8 : 8 + n]), hurt[8 + n :]
    header.pop("__metadata__", None)
    if set(header) != set(found):
        return f"tensors {sorted(found)} where the file has {sorted(header)}"
    for name, array in found.items():
        begin, end = header[name]["data_offsets"]
        if header[name]["dtype"] == "F32" and np.ascontiguousarray(array).tobytes() != data[begin:end]:
            return f"values of {name} are not those of the file"
        if list(array.shape) != header[name]["shape"]:
            return f"{name}: shape {array.shape}"
    return None


def _whole_length(whole: bytes, hurt: bytes, found) -> str | None:
    """A sound that lost bytes is refused, or as long as it was; what else was hurt may sound otherwise."""
    same = next((i for i, (a, b) in enumerate(zip(whole, hurt, strict=False)) if a != b), len(hurt))
    lost = whole[same + len(whole) - len(hurt) :] == hurt[same:] and (same >= HEAD or same == len(hurt))
    n = len(load_audio(whole))
    return f"{found[0]} of {n} samples of {len(hurt)} of {len(whole)} bytes" if lost and found[0] < n else None


def _sound(path: Path):
    samples = load_audio(path)
    return len(samples), bool(np.isfinite(samples).all())


def _clips(path: Path):
    return [(clip.file.name, clip.text) for clip in read_clips(path)]


def _same_cells(whole: bytes, hurt: bytes, found) -> str | None:
    """A table of tabs has no quoting: cells are what stands between tabs, and no line may be lost or come twice."""
    text = hurt.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    head, *rows = [line.split("\t") for line in text.split("\n") if line]
    if len(head) == 1:
        return None  # no tab, so a table of commas
    column = head.index("text")
    said = [row[column] for row in rows]
    return None if said == [text for _, text in found] else f"texts {found} where the table has {said}"


def _same_rows(whole: bytes, hurt: bytes, found) -> str | None:
    """The first row of each run, in whatever order, as json alone reads them; the last line may be torn."""
    said = {}
    for line in hurt.split(b"\n")[:-1]:
        said.setdefault(json.loads(line)["run"], json.loads(line))
    rows = {row["run"]: dict(row) for row in found}
    return None if rows == said else f"{len(rows)} rows are not the {len(said)} of the file"


def _verdicts(file: Path):
    return [row for _, rows in verify(file.parent) for row in rows]


def _short_notes(whole: bytes, hurt: bytes, found) -> str | None:
    """A verdict is one line, as an error is."""
    return next((f"{row.note!r:.80}" for row in found if len(row.note) >= 1000 or "\n" in row.note), None)


def _codes(path: Path):
    return read_codes(str(path))


def _same_codes(whole: bytes, hurt: bytes, found) -> str | None:
    """What Python itself makes of the words; of a JSON list, whatever stands in it."""
    said = json.loads(hurt) if hurt.strip().startswith(b"[") else [int(w) for w in hurt.decode("utf-8-sig").split()]
    return None if said == found else f"{found!r:.60} where the file has {said!r:.60}"


def _recognised(path: Path):
    """Whether a transcript's file may be replaced; a hurt one must be judged, whatever it holds."""
    text = path.read_bytes().decode("utf-8", "replace")
    return [bool(judge(text)) for judge in (is_srt, is_vtt, is_tsv)] + [is_ours(path), is_store(path), is_table(path)]


def _tokenizer(folder: Path):
    tokenizer = Tokenizer.from_folder(folder)
    return tokenizer.decode(tokenizer.encode(SENTENCE))


def _round_trip(whole: bytes, hurt: bytes, found) -> str | None:
    return None if found == SENTENCE else f"a text becomes {found!r:.80}"


# ---- how it is read ----


def _totals(path: Path) -> dict:
    found = Evaluation.read(path)
    return found.totals() | {"shown": len(str(found) + found.listing())}


def _same_turns(whole: bytes, hurt: bytes, found) -> str | None:
    """What is in the zip has checksums: what is understood at all is the whole history."""
    return None if found == valid.talk().key else "another history"


@cache
def _tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(tiny.SENTENCES, vocab_size=300, n_audio=tiny.N_AUDIO)


def _options(path: Path):
    spec = json.loads(path.read_bytes())
    if not isinstance(spec, dict):
        return None
    spec["sampling"] = sampling_from(spec.get("sampling", {}))
    return asdict(DecodingOptions(**{k: v for k, v in spec.items() if k in valid.OPTIONS}))


def _prompt(path: Path):
    turns = json.loads(path.read_bytes())
    return build_prompt(turns, _tiny_tokenizer(), [[4]]).tokens if isinstance(turns, list) else None


def _parsed_first(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """For values of Python that stand as JSON here: what json itself refuses never arrives at the reader."""

    def reader(path: Path):
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return None
        return read(path)

    return reader


def _pt(path: Path):
    content = read_pt(path)
    check_storages(path)
    return {name: read_values(tensor) for name, tensor in content.tensors.items()}


def _onnx(path: Path):
    return {name: read_values(tensor) for name, tensor in read_onnx(path).initialisers.items()}


def _array(path: Path):
    try:
        array = np.load(path, allow_pickle=False)
    except Exception:
        return None  # what numpy refuses never arrives
    return len(load_audio(array, sr=16_000))


def _text(folder: Path) -> str:
    return _tokenizer(folder.parent)


def _report(file: Path):
    return validate_weights(file.parent).to_dict()


def _report_of_values(file: Path):
    return validate_weights(file.parent, values=True).table()


def _lora(file: Path):
    return asdict(Lora(file.parent, tiny.config(64)).report({}))


READERS = {
    "config.json": Reader(
        valid.small, "config.json", "json", lambda f: StepAudioConfig.from_file(f).to_dict(), _same_leaves),
    "checkpoint, its config": Reader(valid.small, "config.json", "json", _report),
    "checkpoint, its tensors": Reader(valid.small, SINGLE_FILE, "safetensors", _report_of_values),
    "safetensors": Reader(valid.small, SINGLE_FILE, "safetensors", _safetensors_values, _same_values),
    "index of shards": Reader(valid.shards, INDEX_FILE, "json", lambda f: len(read_checkpoint(f.parent))),
    "tokenizer.json": Reader(valid.single_tokenizer, "tokenizer.json", "json", _text, _round_trip),
    "vocab.json": Reader(valid.tokenizer_files, "vocab.json", "json", _text, _round_trip),
    "merges.txt": Reader(valid.tokenizer_files, "merges.txt", "lines", _text, _round_trip),
    "tokenizer_config.json": Reader(valid.tokenizer_files, "tokenizer_config.json", "json", _text, _round_trip),
    "capabilities.json": Reader(
        valid.written(CAPABILITIES, {"tasks": ["transcribe"]}), CAPABILITIES, "json",
        lambda f: asdict(Capabilities.of_folder(f.parent))),
    "LoRA of PEFT, its config": Reader(valid.peft, "adapter_config.json", "json", _lora),
    "LoRA of mlx-lm, its config": Reader(valid.mlx_lm, "adapter_config.json", "json", _lora),
    "LoRA, its tensors": Reader(valid.peft, "adapter_model.safetensors", "safetensors", _lora),
    "converted.json": Reader(
        valid.converted, f"token2wav/{MANIFEST}", "json", lambda f: str(read_manifest(f.parent).configs)),
    "flow.yaml": Reader(valid.converted, "token2wav/flow.yaml", "lines", lambda f: str(read_flow_config(f))),
    "hift.pt": Reader(valid.converted, "token2wav/hift.pt", "bytes", _pt),
    "odd.pt": Reader(lambda f: shutil.copy(valid.EXPORTED, f), "odd.pt", "bytes", _pt),
    "campplus.onnx": Reader(valid.converted, "token2wav/campplus.onnx", "bytes", _onnx),
    "voice": Reader(valid.voice, "v.safetensors", "safetensors", lambda f: str(Voice.load(f))),
    "conversation": Reader(
        lambda f: valid.talk().save(f / "t.zip"), "t.zip", "bytes", lambda f: Conversation.open(f).key, _same_turns),
    "grid": Reader(valid.written("g.json", valid.GRID), "g.json", "json", lambda f: len(Grid.from_file(f))),
    "store": Reader(valid.store, "s.jsonl", "lines", lambda f: read_store(f).rows, _same_rows),
    "table": Reader(valid.table, "t.csv", "lines", lambda f: len(read_table(f).rows)),
    "manifest": Reader(valid.written("m.tsv", valid.TABS), "m.tsv", "lines", _clips, _same_cells),
    "manifest with commas": Reader(valid.written("m.csv", valid.COMMAS), "m.csv", "lines", _clips),
    "manifest of JSON lines": Reader(valid.written("m.jsonl", valid.LINES), "m.jsonl", "lines", _clips),
    "results": Reader(valid.results, "r.jsonl", "lines", _totals),
    "a result": Reader(valid.written("r.jsonl", valid.RESULT), "r.jsonl", "json", _totals),
    "words.txt": Reader(valid.written("w.txt", "the\t12\nDon't\t3\n"), "w.txt", "lines", lambda f: len(read_words(f))),
    "decoding options": Reader(valid.written("o.json", valid.OPTIONS), "o.json", "json", _parsed_first(_options)),
    "chat turns": Reader(valid.written("t.json", valid.TURNS), "t.json", "json", _parsed_first(_prompt)),
    "array": Reader(valid.npz, "x.npy", "bytes", _array),
    "golden, its sizes": Reader(valid.golden, "encoder_adapter.json", "json", _verdicts, _short_notes),
    "golden, its tensors": Reader(valid.golden, "encoder_adapter.safetensors", "safetensors", _verdicts, _short_notes),
    "codes": Reader(valid.written("c.txt", "17 4 80\n3 3\n"), "c.txt", "lines", _codes, _same_codes),
    "codes as JSON": Reader(valid.written("c.json", [17, 4, 80, 3]), "c.json", "json", _codes, _same_codes),
    "state of a run": Reader(valid.state, STATE_FILE, "safetensors", lambda f: read_state(f.parent)),
    "encoder of a run": Reader(valid.encoder, "e.safetensors", "safetensors", lambda f: encoder_sizes(read_encoder(f))),
    "subtitles": Reader(
        valid.written("t.srt", srt([(0.0, 1.5, "one"), (2.0, 3.0, "two")])), "t.srt", "lines", _recognised),
    **{f"sound without a stretch: {name}": Reader(valid.write_sound(name), "x", "stretch", _sound, _whole_length)
       for name in valid.SOUNDS},
    **{f"sound: {name}": Reader(valid.write_sound(name), "x", "bytes", _sound, _whole_length) for name in valid.SOUNDS},
}  # fmt: skip


@cache
def prepared(name: str) -> tuple[Path, bytes]:
    """(Path of the file that is hurt, its valid bytes), made once in a process."""
    folder = Path(mkdtemp(prefix="fuzz_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        READERS[name].make(folder)
    path = folder / READERS[name].file
    return path, path.read_bytes()
