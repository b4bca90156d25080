"""`stepaudio transcribe` and `evaluate`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AudioError, ConfigError
from ..files import printable_name
from ..resources import default_checkpoint
from ..text import subtitles
from .options import STANDARD, add_decoding, add_model, add_recording, load_model, recording, transcription_from
from .parser import add_formats, add_option, add_verb
from .progress import busy, message
from .streams import print_json
from .targets import Target, add_force, check_targets

if TYPE_CHECKING:
    from ..transcribe import Transcript

FORMATS = ("json", "text", "srt", "vtt", "tsv")
SUFFIXES = {"text": ".txt"}  # of a file; every other format is its own
MOST = 0.5  # of a recording: if that much was skipped, a line on stderr says so
ALONE = ("srt", "vtt", "tsv")  # formats whose files do not join


def add_transcribe_verbs(verbs) -> None:
    """Add the verbs to the subparsers of the command."""
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
    transcribe.add_argument("--no-tokenizer", action="store_true", help="give token ids, no text (needs --prompt-ids)")
    add_model(transcribe)
    add_recording(transcribe)
    add_decoding(transcribe)

    evaluate = add_verb(
        verbs, "evaluate", run_evaluate, "word error rate, loops and speed over a table of recordings", "MANIFEST",
        ["stepaudio evaluate data/speech/manifest.tsv --text",
         "stepaudio evaluate my.csv --sampling greedy --temperature 0.7 --seed 3"],
        {0: "every recording was scored", 1: "a recording could not be used; the others went on"},
    )  # fmt: skip
    evaluate.add_argument("manifest", metavar="MANIFEST", help="TSV or CSV with columns file and text, paths beside it")
    add_formats(evaluate, ("json", "text"), "json")
    add_option(
        evaluate, "--words", metavar="FILE", shown="words.txt of the model, if there is one",
        help="one word a line: clips of these words alone are also scored apart",
    )  # fmt: skip
    evaluate.set_defaults(no_tokenizer=False)
    add_model(evaluate)
    add_recording(evaluate)
    add_decoding(evaluate)


def run_transcribe(options: argparse.Namespace) -> int:
    """Transcribe files one after another; 1 if one of them could not be used."""
    keywords, targets, failed = transcription_from(options), _targets(options), 0
    model = load_model(options)
    for name in options.files:
        try:
            found = _transcribed(model, name, keywords)
        except AudioError as error:  # this file only; anything else would befall every file
            failed += 1
            message(str(error))
            if options.format == "json" and not targets:
                print_json({"file": printable_name(name), "error": str(error)})
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
    with busy(f"transcribing {printable_name(name)}"):
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
    model = options.model or default_checkpoint()
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


def run_evaluate(options: argparse.Namespace) -> int:
    """Score a table of recordings; 1 if one of them could not be used."""
    from ..evaluation.manifest import read_manifest
    from ..evaluation.scores import Evaluation, score_clips, totals
    from ..evaluation.word_errors import read_words

    keywords, clips = transcription_from(options), read_manifest(options.manifest)
    beside = Path(options.model or default_checkpoint()) / "words.txt"
    words = options.words or (beside if beside.exists() else None)
    known = read_words(words) if words else None
    model, scores, began = load_model(options), [], time.perf_counter()
    found = score_clips(model, clips, progress=False, **keywords)
    while len(scores) < len(clips):
        with busy(f"scoring recording {len(scores) + 1} of {len(clips)}"):
            score = next(found)
        scores.append(score)
        if options.format == "json":
            print_json(score.to_dict())
        else:
            print(score, flush=True)
    last = totals(scores, known) | {"sampling": options.sampling, "wall_seconds": round(time.perf_counter() - began, 2)}
    if options.format == "json":
        print_json(last)
    else:
        print(f"\n{str(Evaluation(tuple(scores))).splitlines()[-1]}", flush=True)
    return 1 if last["failed"] else 0
