"""`stepaudio chat`: a conversation line by line, on a terminal or from a pipe.

The history is a value that is replaced when an answer has ended: whatever interrupts one leaves it whole.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.capabilities import Capabilities
from ..checkpoints.find import checkpoint_folder
from ..checkpoints.hub_name import MODEL, TOKEN2WAV
from ..choices import hint
from ..errors import ConfigError, DecodeError, StepAudioError
from ..targets import Target, check_targets
from .devices import recorded, require_devices, speaker
from .options import add_decoding, add_lora, add_model, add_resampler, decoding_from, with_draft
from .parser import add_option, add_verb
from .progress import busy, message
from .signals import Ended
from .sound import Account, written
from .speak import voice_of

if TYPE_CHECKING:
    from ..conversation import Conversation
    from ..conversation.conversation import AnswerStream
    from ..conversation.turns import Turn
    from ..model import StepAudio2
    from ..synthesis.streaming import StreamState
    from ..synthesis.synthesizer import Synthesizer

COMMANDS = {
    "audio": "FILE [TEXT]    ask with a recording, and a text behind it",
    "voice": "[CLIP | off]   answer aloud in a voice, or in writing",
    "think": "[on | off]     think before each answer, or not; the thought is printed above it",
    "sampling": "[PRESET]       how tokens are chosen",
    "cache": "[KIND [N]]     what is kept of the history, and what an eviction would cut",
    "why": "               why the last answer ended: stop reason, loop, thought",
    "history": "               the turns so far",
    "undo": "               take the last question back",
    "save": "FILE           write the history",
    "open": "FILE           go on from a history",
    "help": "               this list",
    "quit": "               end; so does the end of the input",
}
ALONE = "each question is read alone, without those before it"
ONLY_TRANSCRIBES = f"this model transcribes and does not converse: give it recordings with /audio FILE; {ALONE}"
NO_CONVERSATION = f"this model does not converse: {ALONE}"
DIM, PLAIN = "\033[2m", "\033[0m"  # of a terminal: letters in half the brightness, and as before
INTERRUPTED = "interrupted; the question was taken back, the history is as before"


def add_chat_verb(verbs) -> None:
    """Add the verb to the subparsers of the command."""
    chat = add_verb(
        verbs, "chat", run_chat, "a conversation, line by line: text and recordings in, text and speech out", "",
        ["stepaudio chat --model Step-Audio-2-mini --history talk.zip",
         "stepaudio chat --model Step-Audio-2-mini --voice me.wav --play --mic"],
        {0: "it ended", 1: "a line could not be answered; the others went on"},
    )  # fmt: skip
    add_option(chat, "--system", metavar="TEXT", help="system text", shown="that of the reference's examples")
    add_option(
        chat, "--history", metavar="FILE", shown="none",
        help="go on from this conversation, and keep it there after every answer",
    )  # fmt: skip
    add_model(chat, "checkpoint folder, with a converted token2wav to speak")
    add_lora(chat)
    sound = chat.add_argument_group("sound")
    add_option(sound, "--voice", metavar="CLIP", help="answer aloud, in this voice", shown="answers are written")
    add_option(
        sound, "-o", "--output", metavar="DIR", help="folder for a sound file per answer", shown="no files",
    )  # fmt: skip
    sound.add_argument("--play", action="store_true", help="play answers as they come (needs the extra mic)")
    sound.add_argument(
        "--mic", action="store_true", help="an empty line records a question until the next one (needs the extra mic)"
    )
    add_resampler(sound, "what brings recordings to the rates of the nets")
    add_decoding(chat, "reference", "of every draw: tokens and noise")


def run_chat(options: argparse.Namespace) -> int:
    """Hold a conversation; 1 if a line could not be answered."""
    from ..conversation import Conversation
    from ..decoding.prompt_cache import PromptCache
    from ..model import StepAudio2
    from ..text.prompts import ASR_SYSTEM, DEFAULT_SYSTEM

    lines = Lines()
    decoding_from(options, "chat")
    capabilities, system = Capabilities.of(options.model, options.lora), options.system
    only_transcribes = not capabilities.allow("respond") and capabilities.allow("transcribe")
    if system is None:
        system = ASR_SYSTEM if only_transcribes else DEFAULT_SYSTEM
    if not capabilities.allow("respond"):
        message((ONLY_TRANSCRIBES if only_transcribes else NO_CONVERSATION) + capabilities.advice("respond"))
    _check_sound(options, capabilities)
    talk = Conversation(system)
    if options.history is not None:
        path = Path(options.history)
        check_history(path, "--history")
        talk = Conversation.open(path) if path.exists() and path.stat().st_size else talk
    folder = checkpoint_folder(options.model, (MODEL, TOKEN2WAV) if options.voice else (MODEL,))
    with busy("loading the model"):
        model = StepAudio2.load(folder, lora=options.lora)
    model = with_draft(model, options)
    if model.engine.prompt_cache is None:
        model = model.altered(prompt_cache=PromptCache())
    return Chat(model, talk, options, folder).hold(lines)


def _check_sound(options: argparse.Namespace, capabilities: Capabilities) -> None:
    """Refuse what cannot be spoken, before a model is read."""
    if options.play or options.mic:
        require_devices()
    if options.output is not None and not Path(options.output).is_dir():
        raise ConfigError(f"--output {options.output}: expected a folder that is there; make it first")
    if options.voice is not None:
        capabilities.require("speak")
        voice_of(options.voice)
        if options.output is None and not options.play:
            raise ConfigError("--voice: say where the sound goes, with --output DIR, --play or both")


def check_history(path: Path, option: str) -> None:
    """Raise `ConfigError` unless a history may be written there: a new file, an empty one, or another history."""
    check_targets([Target(option, path, "a conversation", _is_history)], [])


def _is_history(path: Path) -> bool:
    from ..conversation import Conversation

    try:
        Conversation.open(path)
    except StepAudioError:
        return False
    return True


class Lines:
    """Lines of standard input: with a prompt on a terminal, as they are from a pipe."""

    def __init__(self):
        if sys.stdin is None:
            raise ConfigError("standard input is closed, so there is nothing to answer; use < FILE")
        self.terminal = sys.stdin.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is refused as a text, line by line

    def next(self, prompt: str = "> ") -> str | None:
        """The next one without its end; None at the end."""
        if self.terminal:
            try:
                return input(prompt)
            except EOFError:
                print()
                return None
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None


class Chat:
    """A conversation that goes on. talk : its history so far."""

    def __init__(self, model: StepAudio2, talk: Conversation, options: argparse.Namespace, folder: Path):
        self.model, self.talk, self._folder, self._options = model, talk, folder, options
        self.decoding = decoding_from(options, "chat")
        self._synthesizer: Synthesizer | None = None
        self._voice: StreamState | None = None
        self._think: bool | None = None  # as the model does where nothing is asked for
        if options.voice is not None:
            self.voice(options.voice)

    def hold(self, lines: Lines) -> int:
        """Take lines until their end; 1 if one of them could not be answered."""
        failed = 0
        while (line := lines.next()) is not None:
            try:
                if line.strip() == "/quit":
                    break
                self.take(line, lines)
            except StepAudioError as error:
                failed = 1
                message(str(error))
            except KeyboardInterrupt as error:
                if isinstance(error, Ended) or not lines.terminal:
                    raise
                print()
                message(INTERRUPTED)
        return failed

    def take(self, line: str, lines: Lines) -> None:
        """Do what one line says."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].partition(" ")
            if name not in COMMANDS:
                expected = hint(name, COMMANDS) or "; /help lists them, and // begins a text with a stroke"
                raise ConfigError(f"unknown command /{name}{expected}")
            getattr(self, name)(rest.strip())
        elif line.strip():
            self._ask(line.removeprefix("/") if line.startswith("//") else line)
        elif self._options.mic:
            message("recording; an empty line ends it")
            self._ask({"array": recorded(lambda: lines.next("")), "sampling_rate": 16_000})

    # ------------------------------------------------------------ questions

    def _ask(self, *parts) -> None:
        from ..conversation import Conversation

        asked = self._read(self.talk.ask(*parts, resampler=self._options.resampler))
        steps = asked.stream(self.model, spoken=self._voice is not None, think=self._think, options=self.decoding)
        printed = self._printed(steps)
        if self._voice is None:
            for _ in printed:
                pass
        else:
            self._sounded(printed)
        self._become(Conversation(turns=(*self.talk.turns, *_since_question(steps.conversation))))

    def _read(self, talk: Conversation) -> Conversation:
        """What the model reads of a history: of one that does not converse, the opening and the last question."""
        from ..conversation import Conversation

        if self.model.capabilities.allow("respond"):
            return talk
        opening = talk.rewind(sum(turn.role == "human" for turn in talk.turns))
        return Conversation(turns=(*opening.turns, *_since_question(talk)))

    def _printed(self, steps: AnswerStream) -> Iterator[int]:
        """Print the thought before an answer, and the text of its steps as it comes; their audio codes."""
        from ..text.tokenizer import Detokenizer

        words = self.model.engine.require_tokenizer()
        detokenizer = Detokenizer(words)
        for step in steps:
            if step.index == 0 and steps.thought is not None:
                line = thought_line(steps.thought.text, steps.thought.closed)
                print(f"{DIM}{line}{PLAIN}" if sys.stdout.isatty() else line, flush=True)
            if step.token < words.text_limit:
                print(printable(detokenizer.push(step.token)), end="", flush=True)
            elif words.is_audio(step.token):
                yield step.token - words.first_audio_code
        print(printable(detokenizer.finish()), flush=True)

    def _sounded(self, codes: Iterator[int]) -> None:
        """Write and play codes as they come."""
        synthesizer, state = self._loaded(), self._voice
        assert state is not None
        with ExitStack() as stack:
            play = stack.enter_context(speaker(synthesizer.sample_rate)) if self._options.play else None
            chunks = synthesizer.stream(codes, state)
            if self._options.output is not None:
                account = Account(str(free_name(Path(self._options.output))), synthesizer.sample_rate)
                chunks = written(chunks, account, synthesizer.loudest(state.options))
            for chunk in chunks:
                if play is not None and len(chunk.wave):
                    play(chunk.wave)

    def _become(self, talk: Conversation) -> None:
        self.talk = talk
        if self._options.history is not None:
            talk.save(self._options.history)

    # ------------------------------------------------------------ commands

    def audio(self, rest: str) -> None:
        """Ask with a recording."""
        if not rest:
            raise ConfigError("/audio: expected a file, and perhaps a text behind it")
        whole = Path(rest)
        name, text = (rest, "") if whole.is_file() else rest.partition(" ")[::2]
        self._ask(Path(name), *([text.strip()] if text.strip() else []))

    def voice(self, rest: str) -> None:
        """Answer aloud from now on, or in writing."""
        from ..synthesis.streaming import StreamOptions

        if rest in ("", "off"):
            self._voice = None
            return
        if self._options.output is None and not self._options.play:
            raise ConfigError("/voice: start the chat with --output DIR, --play or both, to say where the sound goes")
        self.model.capabilities.require("speak")
        synthesizer, seed = self._loaded(), self._options.seed
        with busy("reading the voice"):
            voice = synthesizer.voice(voice_of(rest), self._options.resampler)
        even = StreamOptions(cross_fade="even")
        self._voice = synthesizer.begin(voice, noise=seed, source_noise=seed, options=even)

    def _loaded(self) -> Synthesizer:
        from ..synthesis.synthesizer import Synthesizer

        if self._synthesizer is None:
            with busy("loading token2wav"):
                self._synthesizer = Synthesizer.load(self._folder)
        return self._synthesizer

    def think(self, rest: str) -> None:
        """Think before each answer from now on, or not."""
        if rest not in ("", "on", "off"):
            raise ConfigError(f"/think: expected on or off, found {rest!r:.80}")
        if rest != "off":
            self.model.capabilities.require_thinking()
        self._think = rest != "off"

    def sampling(self, rest: str) -> None:
        """Another preset from now on."""
        from ..decoding.options import named_sampling

        if rest:
            self.decoding = replace(self.decoding, sampling=named_sampling(rest, "chat"))
        print(self.decoding.rules)

    def cache(self, rest: str) -> None:
        """Another cache from now on; what the history takes of it."""
        from ..decoding.options import merge_options

        kind, _, limit = rest.partition(" ")
        if kind:
            if limit and not limit.strip().isdecimal():
                raise DecodeError(f"/cache: expected a kind and a number of positions, found {rest!r:.80}")
            most = int(limit) if limit else self.decoding.policy.max_len
            self.decoding = merge_options(self.decoding, "chat", cache=kind, max_cache_len=most)
        print(self._read(self.talk).context(self.model, options=self.decoding))

    def why(self, _rest: str) -> None:
        """Why the last answer ended."""
        answer = self.talk.last
        found, loop = answer.generation, answer.generation.loop if answer.generation else None
        print(f"stop: {answer.stop}" + (f", {len(found.tokens)} tokens, {len(answer.codes)} codes" if found else ""))
        if found is not None:
            print(f"mean log-probability: {found.mean_logprob:.3f}")
            print(f"seconds: {found.first_token_seconds:.2f} to the first token, {found.seconds:.2f} in all")
        print(f"loop: {loop if loop else 'none'}")
        if answer.thought:
            print(thought_line(answer.thought, answer.thought_closed))

    def history(self, _rest: str) -> None:
        """The turns so far."""
        print(printable(repr(self.talk)))

    def undo(self, _rest: str) -> None:
        """Take the last question back."""
        self._become(self.talk.rewind())

    def save(self, rest: str) -> None:
        """Write the history."""
        if not rest:
            raise ConfigError("/save: expected a file")
        check_history(Path(rest), "/save")
        self.talk.save(rest)

    def open(self, rest: str) -> None:
        """Go on from another history."""
        from ..conversation import Conversation

        if not rest:
            raise ConfigError("/open: expected a file")
        self._become(Conversation.open(rest))

    def help(self, _rest: str) -> None:
        """List the commands."""
        for name, text in COMMANDS.items():
            print(f"/{name:9} {text}")


def _since_question(talk: Conversation) -> tuple[Turn, ...]:
    """The last question and what followed it."""
    asked = [n for n, turn in enumerate(talk.turns) if turn.role == "human"]
    return talk.turns[asked[-1] :] if asked else ()


def thought_line(thought: str, closed: bool) -> str:
    """A thought as it is shown, so that nobody takes it for the answer."""
    return f"thought{'' if closed else ', which was cut'}: {printable(thought)}"


def printable(text: str) -> str:
    """Text without what would steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def free_name(folder: Path) -> Path:
    """The first `answer_N.wav` that is not there yet."""
    number = 1
    while (path := folder / f"answer_{number}.wav").exists():
        number += 1
    return path
