"""`stepaudio transcribe`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.capabilities import Capabilities
from ..checkpoints.find import checkpoint_folder
from ..errors import AudioError, ConfigError
from ..files import printable_name, result_name, short_name
from ..targets import Target, check_targets
from ..text import subtitles
from .options import (
    STANDARD,
    add_decoding,
    add_lora,
    add_model,
    add_recording,
    divided,
    load_model,
    recording,
    transcription_from,
)
from .parser import add_force, add_formats, add_option, add_verb
from .progress import busy, message
from .streams import discard_output, print_json

if TYPE_CHECKING:
    from ..transcript import Transcript

FORMATS = ("json", "text", "srt", "vtt", "tsv")
SUFFIXES = {"text": ".txt"}  # of a file; every other format is its own
MOST = 0.5  # of a recording: if that much was skipped, a line on stderr says so
ALONE = ("srt", "vtt", "tsv")  # formats whose files do not join


def add_transcribe_verb(verbs) -> None:
    """Add the verb to the subparsers of the command."""
    transcribe = add_verb(
        verbs, "transcribe", run_transcribe, "speech to text, of any length", "FILE ...",
        ["stepaudio transcribe talk.mp3 --format srt",
         "stepaudio transcribe a.wav b.wav --text --sampling reference --downmix mean",
         "cat talk.flac | stepaudio transcribe - --cache pinned --max-cache-len 1024 --on-loop escape"],
        {0: "every file was transcribed", 1: "a file could not be used; the others went on"},
    )  # fmt: skip
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="recordings; - is standard input")
    add_formats(transcribe, FORMATS, "json")
    add_option(
        transcribe, "-o", "--output", metavar="DIR", shown="standard output",
        help="folder for one file per recording, named after it",
    )  # fmt: skip
    add_force(transcribe)
    transcribe.add_argument(
        "--words", action="store_true", help="give every word its times and probability, and mark doubtful ones"
    )
    transcribe.add_argument("--no-tokenizer", action="store_true", help="give token ids, no text (needs --prompt-ids)")
    add_model(transcribe)
    add_lora(transcribe)
    add_recording(transcribe)
    add_decoding(transcribe)
    transcribe.add_argument(
        "--tensor-parallel", action="store_true",
        help="divide the decoder among the processes that mlx.launch started; the first one prints",
    )  # fmt: skip


def run_transcribe(options: argparse.Namespace) -> int:
    """Transcribe files one after another; 1 if one of them could not be used."""
    Capabilities.of(options.model, options.lora).require("transcribe")
    keywords, targets, failed = transcription_from(options), _targets(options), 0
    if options.tensor_parallel and STANDARD in options.files:
        raise ConfigError("--tensor-parallel: standard input reaches one process only; name a file that all can read")
    model = load_model(options)
    if options.words:
        model.engine.require_alignment()
        keywords["words"] = True
    if options.tensor_parallel:
        model, first = divided(model, options)
        if not first:
            targets = {}
            discard_output()
    for name in options.files:
        try:
            found = _transcribed(model, name, keywords)
        except AudioError as error:  # this file only; anything else would befall every file
            failed += 1
            message(str(error))
            if options.format == "json" and not targets:
                print_json({"file": result_name(name), "error": str(error)})
            continue
        if found.skipped_seconds >= MOST * found.audio_seconds:
            message(f"{name}: {_said_of(found)}")
        if targets:
            found.save(targets[name])
        elif options.format == "json":
            print_json({"file": printable_name(name), **found.to_dict()})
        else:
            print(_shown(found, name, options), end="", flush=True)
    return 1 if failed else 0


def _transcribed(model, name: str, keywords: dict) -> Transcript:
    """One file, with a bar over its seconds if it is long, and a line that says so if it only takes long."""
    from ..audio.load import audio_seconds
    from ..transcribe import LONG

    if sys.stderr.isatty() and os.path.isfile(name) and audio_seconds(name) >= LONG:  # a pipe is read once
        return model.transcribe(name, progress=True, **keywords)
    with busy(f"transcribing {short_name(name)}"):
        return model.transcribe(recording(name), progress=False, **keywords)


def _said_of(found: Transcript) -> str:
    """What was skipped, in words."""
    skipped, whole = found.skipped_seconds, found.audio_seconds
    if skipped == whole:
        return f"no speech was found in its {whole:.1f} s, so nothing was decoded; --vad off decodes it all the same"
    return f"{skipped:.1f} of its {whole:.1f} s hold no speech and were skipped; --vad off decodes them all the same"


def _shown(found: Transcript, name: str, options: argparse.Namespace) -> str:
    if options.format == "text" and len(options.files) > 1:
        return f"{printable_name(name)}: {found.to('text')}"
    return found.to(options.format)


def _targets(options: argparse.Namespace) -> dict[str, Path]:
    """Where each recording's transcript goes, if not to standard output. What cannot be is refused before any work."""
    if options.no_tokenizer and options.format != "json":
        raise ConfigError(f"--format {options.format}: there is no text with --no-tokenizer; use --format json")
    if options.words and (options.format == "text" or options.no_tokenizer):
        found = "--no-tokenizer" if options.no_tokenizer else "--format text"
        raise ConfigError(f"--words: expected text and a format with times (json, srt, vtt or tsv), found {found}")
    if options.files.count(STANDARD) > 1:
        raise ConfigError("-: standard input can be read once; name it once")
    if options.output is None:
        if options.format in ALONE and len(options.files) > 1:
            raise ConfigError(
                f"--format {options.format}: files of this format do not join; say with --output DIR where "
                f"the {len(options.files)} of them go"
            )
        return {}
    if not Path(options.output).is_dir():
        raise ConfigError(f"--output {options.output}: expected a folder that is there; make it first")
    suffix = SUFFIXES.get(options.format, f".{options.format}")
    stems = {name: "stdin" if name == STANDARD else Path(name).stem for name in options.files}
    if len(set(stems.values())) < len(stems):
        raise ConfigError("--output: two recordings of the same name would be written to the same file")
    found = {name: Path(options.output) / f"{stem}{suffix}" for name, stem in stems.items()}
    kind = f"a transcript as {options.format} that is known as ours"
    model = checkpoint_folder(options.model)
    check_targets(
        [Target("--output", path, kind, partial(_is_ours, options.format)) for path in found.values()],
        [*(name for name in options.files if name != STANDARD), model],
        options.force,
    )
    return found


def _is_ours(form: str, path: Path) -> bool:
    """Whether a file is a transcript in this format. Plain text does not say whose it is."""
    try:
        text = path.read_text(encoding="utf-8")
        if form == "json":
            found = json.loads(text)
            return isinstance(found, dict) and {"text", "segments", "audio_seconds", "wall_seconds"} <= set(found)
    except (OSError, ValueError, RecursionError):
        return False
    looks_like = {"srt": subtitles.is_srt, "vtt": subtitles.is_vtt, "tsv": subtitles.is_tsv}
    return form in looks_like and looks_like[form](text)
