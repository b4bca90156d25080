"""The verbs that give sound: speak, say-codes, respond, translate.

Sound goes to a file, or to standard output as raw 32-bit floats, where nothing can clip; the account of a run then goes
to stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..audio.load import audio_seconds
from ..audio.save import check_target
from ..audio.sources import open_bytes
from ..checkpoints.capabilities import Capabilities
from ..checkpoints.find import checkpoint_folder
from ..checkpoints.hub_name import MODEL, TOKEN2WAV
from ..errors import AudioError, ConfigError, DataError
from ..reading import read_text
from ..resources import VOICES, voice_clip
from ..targets import Target, check_targets
from ..text.scripts import join_texts
from .options import STANDARD, add_decoding, add_lora, add_model, add_resampler, decoding_from, recording, with_draft
from .parser import Parser, add_choice, add_force, add_formats, add_option, add_verb, whole
from .progress import busy
from .sound import Account, is_ours, written
from .streams import print_json

if TYPE_CHECKING:
    from ..speech_model import SpeechModel, SpeechOptions
    from ..synthesis.synthesizer import Synthesizer
    from ..synthesis.voice import Voice

CODES = "expected whole numbers, as a JSON list or between blanks"
NO_SOUND = "the model gave no sound; nothing was written"


def add_speaking_verbs(verbs) -> None:
    """Add the verbs to the subparsers of the command."""
    from ..text.prompts import DEFAULT_SYSTEM, LANGUAGES

    speak = add_verb(
        verbs, "speak", _speak, "text to speech, in the voice of a clip", "TEXT -o FILE",
        ['stepaudio speak "Good morning." -o morning.wav --model Step-Audio-2-mini --voice me.wav',
         'stepaudio speak "Good morning." -o - --stream --model Step-Audio-2-mini | aplay -f FLOAT_LE -r 24000'],
        {0: "the text was spoken", 1: NO_SOUND},
    )  # fmt: skip
    speak.add_argument("text", metavar="TEXT", help="what is to be read aloud")
    _add_options(speak, needed=True)

    codes = add_verb(
        verbs, "say-codes", _say_codes, "audio codes to speech, without the language model", "CODES_FILE -o FILE",
        ["stepaudio say-codes codes.json -o out.wav",
         "stepaudio say-codes codes.txt -o out.f32.wav --voice male --steps 20 --model Step-Audio-2-mini"],
        {0: "the codes were spoken", 1: "all codes were padding; nothing was written"},
    )  # fmt: skip
    codes.add_argument("codes", metavar="CODES_FILE", help="whole numbers, as a JSON list or between blanks")
    add_model(codes, "folder with a converted token2wav")
    add_option(codes, "--seed", type=whole, default=0, metavar="N", help="of the noise that sound starts from")
    _add_sound(codes, needed=True)

    respond = add_verb(
        verbs, "respond", _respond, "speech to speech: answer a recording", "FILE -o FILE",
        ["stepaudio respond question.wav -o answer.wav --model Step-Audio-2-mini",
         "stepaudio respond - -o - --stream --model Step-Audio-2-mini < question.wav > answer.f32"],
        {0: "the answer was spoken", 1: NO_SOUND},
    )  # fmt: skip
    respond.add_argument("file", metavar="FILE", help="the question; - is standard input")
    add_option(respond, "--system", default=DEFAULT_SYSTEM, metavar="TEXT", help="system text",
               shown="that of the reference's examples")  # fmt: skip
    _add_options(respond, needed=True)

    translate = add_verb(
        verbs, "translate", _translate, "speech to text in another language; with -o, to speech", "FILE",
        ["stepaudio translate talk.flac --to en --text --model Step-Audio-2-mini",
         "stepaudio translate talk.flac --to zh -o translated.wav --model Step-Audio-2-mini"],
        {0: "translated", 1: f"with -o: {NO_SOUND}"},
    )  # fmt: skip
    translate.add_argument("file", metavar="FILE", help="a recording; - is standard input")
    add_choice(translate, "--to", choices=tuple(LANGUAGES), default="zh", help="language of the translation")
    add_formats(translate, ("json", "text"), "json")
    _add_options(translate, needed=False)


def _add_options(verb: Parser, needed: bool) -> None:
    add_model(verb, "checkpoint folder, with a converted token2wav to speak")
    add_lora(verb)
    _add_sound(verb, needed)
    add_decoding(verb, "reference", "of every draw: tokens and noise")


def _add_sound(verb: Parser, needed: bool) -> None:
    if needed:
        add_formats(verb, ("json",), "json")
    sound = verb.add_argument_group("sound")
    add_option(
        sound, "-o", "--output", metavar="FILE", required=needed, shown="none, the translation is written",
        help="16-bit sound by its suffix, .f32.wav for floats, - for raw floats on standard output",
    )  # fmt: skip
    add_force(verb)
    add_option(
        sound, "--voice", metavar="CLIP", default="female",
        help=f"3 to 10 s of one person, a saved voice, or one of {', '.join(VOICES)} (bundled)",
    )  # fmt: skip
    add_resampler(sound, "what brings a recording, or a clip of a voice, to the rates of the nets")
    sound.add_argument("--stream", action="store_true", help="write sound as it comes, and report when the first came")
    add_option(
        sound, "--steps", type=whole, metavar="N", shown="10, or what token2wav's config says",
        help="Euler steps of the flow",
    )  # fmt: skip
    add_choice(
        sound, "--noise", choices=("cache", "position"), shown="cache",
        help="of --stream: as the reference, or none twice",
    )  # fmt: skip
    add_choice(
        sound, "--cross-fade", "--fade", choices=("hamming", "even"), shown="hamming",
        help="of --stream: as the reference (chunk boundaries up to 8 %% louder), or even",
    )  # fmt: skip


# ---------------------------------------------------------------- the verbs


def _speak(options: argparse.Namespace) -> int:
    Capabilities.of(options.model, options.lora).require_text(options.text)
    model, speech = _loaded(options, "speak")
    return _voiced(options, model, model.reading(options.text, speech), speech)


def _respond(options: argparse.Namespace) -> int:
    source = _recording(options.file)
    model, speech = _loaded(options, "respond")
    with busy("thinking"):
        conversation = model.thought(model.question(source, options.system), speech)
    return _voiced(options, model, [conversation], speech)


def _translate(options: argparse.Namespace) -> int:
    if options.output is not None:
        if options.format == "text":
            raise ConfigError("--text: the translation is spoken with -o; leave one of them out")
        source = _recording(options.file)
        model, speech = _loaded(options, "translate")
        return _voiced(options, model, [model.translation(source, options.to)], speech)
    from ..speech_model import SpeechModel

    if options.stream:
        raise ConfigError("--stream: there is no sound without -o")
    source, speech = _recording(options.file), _speech_options(options, "translate")
    _require(options, "translate")
    folder = checkpoint_folder(options.model)
    with busy("loading the model"):
        model = SpeechModel.load(folder, speak=False, lora=options.lora)
    model = model.altered(with_draft(model.model, options))
    with busy("translating"):
        found = model.translate(source, options.to, speech)
    text = (found.text or "").strip()
    line = {"file": options.file, "to": options.to, "text": text, "stop": found.stop}
    line["first_token_seconds"] = round(found.first_token_seconds, 3)
    if options.format == "text":
        print(text)
    else:
        print_json(line)
    return 0


def _say_codes(options: argparse.Namespace) -> int:
    from ..synthesis.synthesizer import Synthesizer

    folder = _check_output(options, (TOKEN2WAV,), options.codes)
    codes, voicing = read_codes(options.codes), _voicing(options)
    with busy("loading token2wav"):
        synthesizer = Synthesizer.load(folder)
    voice, account = _read_voice(synthesizer, options), Account(options.output, synthesizer.sample_rate)
    noise = {"noise": options.seed, "source_noise": options.seed}
    with busy("speaking"):
        if options.stream:
            stream = synthesizer.stream(codes, voice, options=voicing, **noise)
            chunks = list(written(stream, account, synthesizer.loudest(voicing)))
            last = chunks[-1] if chunks else synthesizer.decode(codes, voice)  # nothing but padding
        else:
            last = synthesizer.decode(codes, voice, options=voicing.flow, **noise)
            list(written([last], account))
    return account.report(codes=last.n_codes, padding=last.n_padding, voice=voice.key)


def _voiced(options: argparse.Namespace, model: SpeechModel, conversations, speech: SpeechOptions) -> int:
    """Run conversations and write their sound; 1 if the model gave none."""
    synthesizer = model.synthesizer
    voice, account = _read_voice(synthesizer, options), Account(options.output, synthesizer.sample_rate)
    with busy("speaking"):
        if options.stream:
            stream = model.stream(conversations, voice, speech)
            chunks = written(stream, account, synthesizer.loudest(speech.voicing))
            answers = [chunk.answer for chunk in chunks if chunk.answer]
        else:
            spoken = model.speak(conversations, voice, speech)
            list(written(spoken.sounds, account))
            answers = spoken.answers
    return account.report(
        text=join_texts((a.text or "").strip() for a in answers),
        codes=sum(len(a.codes) for a in answers),
        padding=sum(a.n_padding for a in answers),
        stop=[a.stop for a in answers],
        voice=voice.key,
        first_token_seconds=next((round(a.first_token_seconds, 3) for a in answers), None),
    )


# ---------------------------------------------------------------- what they share


def _loaded(options: argparse.Namespace, task: str) -> tuple[SpeechModel, SpeechOptions]:
    """The model and its options, after what can be refused without reading the model."""
    from ..speech_model import SpeechModel

    speech = _speech_options(options, "chat")
    for needed in (task, "speak"):
        _require(options, needed)
    folder = _check_output(options, (MODEL, TOKEN2WAV), *([options.file] if "file" in options else []))
    with busy("loading the model"):
        model = SpeechModel.load(folder, lora=options.lora)
    return model.altered(with_draft(model.model, options)), speech


def _require(options: argparse.Namespace, task: str) -> None:
    """Raise `PromptError` if the checkpoint says that it was not trained for a task; warn of an answer that is none."""
    capabilities = Capabilities.of(options.model, options.lora)
    if task == "respond":
        capabilities.require_answer()
    else:
        capabilities.require(task)


def _recording(name: str) -> Any:
    """The recording, found to be one before the model is read; standard input and pipes are read to their end."""
    once = name == STANDARD or (os.path.exists(name) and not os.path.isfile(name))
    with open_bytes(recording(name)) as file:
        source = io.BytesIO(file.read()) if once else name
    audio_seconds(source)
    return source


def _speech_options(options: argparse.Namespace, task: str) -> SpeechOptions:
    from ..speech_model import SpeechOptions

    return SpeechOptions(
        decoding_from(options, task), seed=options.seed, voicing=_voicing(options), resampler=options.resampler
    )


def _voicing(options: argparse.Namespace):
    from ..models.token2wav.flow import FlowOptions
    from ..synthesis.streaming import StreamOptions

    if not options.stream and (options.noise or options.cross_fade):
        raise ConfigError(f"--{'noise' if options.noise else 'cross-fade'}: is of --stream; give that too")
    return StreamOptions(
        FlowOptions(options.steps, noise=options.noise or "cache"), cross_fade=options.cross_fade or "hamming"
    )


def voice_of(name: str) -> str | Path:
    """A file if there is one of that name, else the bundled clip of that name; looked for before a model is read."""
    if Path(name).is_file():
        return name
    if name not in VOICES:
        raise AudioError(f"--voice {name}: no such file; expected a clip, a saved voice, or {' or '.join(VOICES)}")
    return voice_clip(name)


def _read_voice(synthesizer: Synthesizer, options: argparse.Namespace) -> Voice:
    with busy("reading the voice"):
        return synthesizer.voice(voice_of(options.voice), options.resampler)


def read_codes(path: str) -> list[int]:
    """Codes from a file: a JSON list, or whole numbers between blanks. Raises `DataError` for anything else."""
    text = read_text(path, DataError, CODES)
    try:
        codes = json.loads(text) if text.lstrip().startswith("[") else [int(word) for word in text.split()]
    except (ValueError, RecursionError):
        raise DataError(f"{path}: {CODES}, found {text[:60]!r}") from None
    if not codes:
        raise DataError(f"{path}: holds no codes")
    return codes


def _check_output(options: argparse.Namespace, parts: tuple[str, ...], *inputs: str) -> Path:
    """The model's folder, with these parts of it, after a sound file that cannot be written, or may not, is refused.

    `inputs` are read besides voice and model.
    """
    if options.output == STANDARD:
        return checkpoint_folder(options.model, parts)
    check_target(options.output)
    target = Target("--output", Path(options.output), "sound as this command writes it", is_ours)
    read = [name for name in (*inputs, voice_of(options.voice)) if name != STANDARD]
    check_targets([target], read, options.force)  # before a model is fetched
    folder = checkpoint_folder(options.model, parts)
    check_targets([target], [*read, folder], options.force)
    return folder
