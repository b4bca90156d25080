"""The speaking verbs of the command: speak, say-codes, respond, translate.

Sound goes to a file, or to standard output as raw 32-bit floats, where nothing can clip; the account of a run then goes
to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..audio.load import audio_seconds
from ..audio.save import audio_writer, check_target
from ..constants import MAX_TOKENS
from ..decoding.options import DecodingOptions
from ..decoding.sampling import Sampling
from ..errors import AudioError, ConfigError, DataError
from ..resources import VOICES, voice_clip
from ..text.prompts import DEFAULT_SYSTEM, LANGUAGES

STDOUT = "-"


def add_speaking_verbs(verbs) -> None:
    """Add the verbs to the subparsers of the command."""
    speak = verbs.add_parser("speak", help="text to speech")
    speak.add_argument("text", metavar="TEXT")
    _model_options(speak)
    _sound_options(speak, needed=True)
    speak.set_defaults(run=_speak)

    codes = verbs.add_parser("say-codes", help="audio codes to speech, without the language model")
    codes.add_argument("codes", metavar="CODES_FILE", help="whole numbers, as a JSON list or between blanks")
    codes.add_argument("--model", metavar="DIR", help="folder with a converted token2wav")
    codes.add_argument("--seed", type=int, default=0, help="of the noise that sound starts from")
    _sound_options(codes, needed=True)
    codes.set_defaults(run=_say_codes)

    respond = verbs.add_parser("respond", help="speech to speech: answer a recording")
    respond.add_argument("file", metavar="FILE")
    respond.add_argument("--system", default=DEFAULT_SYSTEM, help="system text")
    _model_options(respond)
    _sound_options(respond, needed=True)
    respond.set_defaults(run=_respond)

    turn = verbs.add_parser("translate", help="speech to text in another language; with -o, to speech")
    turn.add_argument("file", metavar="FILE")
    turn.add_argument("--to", choices=tuple(LANGUAGES), default="zh")
    turn.add_argument("--text", action="store_true", help="print plain text instead of JSON")
    _model_options(turn)
    _sound_options(turn, needed=False)
    turn.set_defaults(run=_translate)


def _model_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", metavar="DIR", help="checkpoint folder, with a converted token2wav to speak")
    verb.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="per answer")
    verb.add_argument("--sampling", choices=("reference", "planned", "greedy"), default="reference")
    verb.add_argument("--seed", type=int, default=0, help="of every draw: ids and noise")


def _sound_options(verb: argparse.ArgumentParser, needed: bool) -> None:
    verb.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=needed,
        help="16-bit sound by its suffix, .f32.wav for floats, - for raw floats on standard output",
    )
    verb.add_argument(
        "--voice",
        metavar="CLIP",
        default="female",
        help=f"3 to 10 s of one person, a saved voice, or one of {', '.join(VOICES)} (bundled)",
    )
    verb.add_argument("--stream", action="store_true", help="write sound as it comes, and tell when the first came")
    verb.add_argument("--steps", type=int, default=10, help="Euler steps of the flow")
    verb.add_argument(
        "--noise", choices=("cache", "position"), default="cache", help="of a stream: as the reference, or none twice"
    )
    verb.add_argument(
        "--fade",
        choices=("hamming", "even"),
        default="hamming",
        help="of a stream: as the reference (joints up to 8 %% louder), or even",
    )


# ---------------------------------------------------------------- the verbs


def _speak(options) -> int:
    model, speech = _loaded(options)
    return _voiced(options, model, model.reading(options.text, speech), speech)


def _respond(options) -> int:
    model, speech = _loaded(options)
    return _voiced(options, model, [model.question(options.file, options.system)], speech)


def _translate(options) -> int:
    if options.output is not None:
        if options.text:
            raise ConfigError("--text: the translation is spoken with -o; leave one of them out")
        model, speech = _loaded(options)
        return _voiced(options, model, [model.translation(options.file, options.to)], speech)
    from ..speech_model import SpeechModel

    if options.stream:
        raise ConfigError("--stream: there is no sound without -o")
    audio_seconds(options.file)
    found = SpeechModel.load(options.model, speak=False).translate(
        options.file, options.to, _speech_options(options, "translate")
    )
    print(
        found.text.strip()
        if options.text
        else json.dumps(
            {"file": options.file, "to": options.to, "text": found.text.strip(), "stop": found.stop}, ensure_ascii=False
        )
    )
    return 0


def _say_codes(options) -> int:
    from ..synthesis.synthesizer import Synthesizer

    _check_output(options.output)
    _voice(options.voice)
    codes, voicing = read_codes(options.codes), _voicing(options)
    synthesizer = Synthesizer.load(options.model)
    voice, account = synthesizer.voice(_voice(options.voice)), _Account(options.output, synthesizer.sample_rate)
    noise = {"noise": options.seed, "source_noise": options.seed}
    if options.stream:
        chunks = list(
            _watched(
                synthesizer.stream(codes, voice, options=voicing, **noise),
                options,
                account,
                synthesizer.loudest(voicing),
            )
        )
        told = chunks[-1] if chunks else synthesizer.decode(codes, voice)  # nothing but padding
    else:
        told = synthesizer.decode(codes, voice, options=voicing.flow, **noise)
        list(_watched([told], options, account))
    return account.tell(codes=told.n_codes, padding=told.n_padding, voice=voice.key)


def _voiced(options, model, conversations, speech) -> int:
    """Run conversations and write their sound; 1 if the model gave none."""
    synthesizer = model.synthesizer
    voice, account = synthesizer.voice(_voice(options.voice)), _Account(options.output, synthesizer.sample_rate)
    if options.stream:
        chunks = _watched(
            model.stream(conversations, voice, speech), options, account, synthesizer.loudest(speech.voicing)
        )
        answers = [chunk.answer for chunk in chunks if chunk.answer]
    else:
        spoken = model.speak(conversations, voice, speech)
        list(_watched(spoken.sounds, options, account))
        answers = spoken.answers
    return account.tell(
        text=" ".join(t for a in answers if (t := (a.text or "").strip())),
        codes=sum(len(a.codes) for a in answers),
        padding=sum(a.n_padding for a in answers),
        stop=[a.stop for a in answers],
        voice=voice.key,
    )


# ---------------------------------------------------------------- what they share


def _loaded(options):
    from ..speech_model import SpeechModel

    _check_output(options.output)
    speech = _speech_options(options, "chat")
    _voice(options.voice)
    if "file" in options:
        audio_seconds(options.file)  # a recording that is none is told before the model is read
    return SpeechModel.load(options.model), speech


def _speech_options(options, task: str):
    from ..speech_model import SpeechOptions

    sampling = Sampling.named(options.sampling, task).override({"seed": options.seed})
    decoding = DecodingOptions(sampling, max_tokens=options.max_tokens)
    return SpeechOptions(decoding, seed=options.seed, voicing=_voicing(options))


def _voicing(options):
    from ..models.token2wav.flow import FlowOptions
    from ..synthesis.streaming import StreamOptions

    return StreamOptions(FlowOptions(options.steps, noise=options.noise), fade=options.fade)


def _voice(name: str) -> str | Path:
    """A file if there is one of that name, else the bundled clip of that name; looked for before a model is read."""
    if Path(name).is_file():
        return name
    if name not in VOICES:
        raise AudioError(f"--voice {name}: no such file; expected a clip, a saved voice, or {' or '.join(VOICES)}")
    return voice_clip(name)


def _check_output(target: str) -> None:
    if target != STDOUT:
        check_target(target)


def read_codes(path: str) -> list[int]:
    """Codes from a file: a JSON list, or whole numbers between blanks. Raises `DataError` for anything else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    try:
        codes = json.loads(text) if text.lstrip().startswith("[") else [int(word) for word in text.split()]
    except (ValueError, RecursionError):
        raise DataError(
            f"{path}: expected whole numbers, as a JSON list or between blanks, found {text[:60]!r}"
        ) from None
    if not codes:
        raise DataError(f"{path}: holds no codes")
    return codes


class _Account:
    """When sound came, counted from when model and voice were read, how much of it, and where it went."""

    def __init__(self, target: str, rate: int):
        self.target, self.rate, self.began = target, rate, time.perf_counter()
        self.n_samples, self.first = 0, None

    def add(self, n: int) -> None:
        self.n_samples += n
        if n and self.first is None:
            self.first = time.perf_counter() - self.began

    def tell(self, **more) -> int:
        """Print the run as one JSON object; the exit status."""
        found = {
            "file": self.target if self.n_samples else None,
            "seconds": round(self.n_samples / self.rate, 3),
            "sample_rate": self.rate,
            **more,
            "first_sound_seconds": None if self.first is None else round(self.first, 3),
            "wall_seconds": round(time.perf_counter() - self.began, 3),
        }
        print(json.dumps(found, ensure_ascii=False), file=sys.stderr if self.target == STDOUT else sys.stdout)
        if not self.n_samples:
            print("stepaudio: no sound: the answer holds no audio codes; nothing was written", file=sys.stderr)
        return 0 if self.n_samples else 1


def _watched(chunks: Iterable, options, account: _Account, peak: float = 1.0):
    """Pass chunks on, each once its sound is written; the file is there, whole, when they end."""
    with ExitStack() as stack:
        write = None
        for chunk in chunks:
            if len(chunk.wave):
                write = write or _writer(stack, options.output, account.rate, peak)
                write(chunk.wave)
                account.add(len(chunk.wave))
            yield chunk


def _writer(stack: ExitStack, target: str, rate: int, peak: float):
    """A function that writes samples to a file, or to standard output."""
    if target != STDOUT:
        return stack.enter_context(audio_writer(target, rate, peak=peak)).write

    def write(wave: np.ndarray) -> None:
        sys.stdout.buffer.write(wave.astype("<f4").tobytes())
        sys.stdout.buffer.flush()

    return write
