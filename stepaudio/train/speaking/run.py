"""One run: clips to examples, examples to a decoder, the model written as a folder in the published layout."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from ...backend.device import on_cpu
from ...checkpoints.capabilities import FILE as CAPABILITIES
from ...checkpoints.capabilities import REPEAT, Capabilities
from ...checkpoints.load import load_weights
from ...checkpoints.lora import write_lora
from ...errors import ConfigError
from ...files import replaced_file
from ...models.speech_lm import StepAudioConfig, StepAudioNet
from ...models.token2wav.speech_tokenizer import S3Tokenizer
from ...text.tokenizer import Tokenizer
from ..corpus import AnswerEncoder, Corpus
from ..nano import export, parts_in_int8
from ..optimiser import CHECKPOINT
from ..recipe import WORDS, say
from ..token2wav.fit import Batch, Fit, Schedule
from ..token2wav.fit import run as fit_run
from ..token2wav.run import read_net
from . import decoder, low_rank
from .dialogues import OPENING, ExampleMaker, read_dialogues
from .examples import (
    READ,
    SHARES,
    TRANSCRIBE,
    Batches,
    Example,
    Rows,
    listening,
    reading,
    reading_prompts,
    sounds_of,
    spoken_answer,
)
from .sound import clip_codes, clip_embeddings

MODEL, BEST = "model", "best"
MAX_SECONDS = 12.0
HELD_OUT, HELD_OUT_BATCHES = 256, 8  # clips of the narrator that are only scored, and batches of each task
TASKS = ("transcribe", REPEAT, "speak")  # what is learnt here
CHOOSES = "held_out_loss"  # of the saved models, that with the lowest is kept beside the last one


@dataclass
class Options:
    """What a run is asked for.

    narrator : folders of one voice's clips, whose codes are learnt.
    hearing : folders of clips to transcribe and to say again; none stands for the narrator's.
    texts : JSONL of id, text and perhaps `say`, the same as a person would write it.
    tokenizer : run of a speech tokenizer, whose net may take `wait` seconds to appear.
    start : model to begin with; the codes of one whose capabilities.json does not say "speak" are drawn anew.
    dialogues : JSONL of dialogues to learn, whose sentences are among the clips' texts: of the human in `hearing`, of
        answers in `narrator`.
    shares : of the tasks among the examples, to their sum.
    layers : of the decoder, at least as many as there are.
    low_rank : if not 0, the decoder stays as it is, and a LoRA of this rank is learnt and written.
    variants : of each clip to transcribe.
    tokens : of a batch.
    """

    narrator: list[Path]
    texts: Path
    tokenizer: Path
    start: Path
    out: Path
    hearing: list[Path] | None = None
    dialogues: Path | None = None
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    layers: int = 8
    low_rank: int = 0
    variants: int = 8
    tokens: int = 32768
    wait: float = 0.0
    steps: int = 1_000_000
    seconds: float = 1e9
    rate: float = 1e-3
    seed: int = 0
    log_every: int = 100
    save_every: float = Schedule.save_every
    resume: bool = False
    elapsed: float = 0.0


def make_examples(
    options: Options, tokenizer: Tokenizer, net: StepAudioNet
) -> tuple[list[Example], dict[str, list[Example]], mx.array]:
    """Examples to learn, those of each task that are only scored, and the audio embeddings that prompts refer to.

    What needs no codes is made first: the speech tokenizer may still be in training.
    """
    encode = AnswerEncoder(tokenizer)
    dialogues = read_dialogues(options.dialogues) if options.dialogues else []
    narrator = Corpus(options.narrator, encode, options.texts, MAX_SECONDS, options.seed)
    hearing = narrator
    if options.hearing:
        hearing = Corpus(options.hearing, encode, options.texts, MAX_SECONDS, options.seed)
    store, versions = clip_embeddings(hearing, net, options.variants, options.seed)
    say(options.out, event="hearing", hours=round(hearing.hours, 3), embeddings=store.shape[0])
    written = _written(options.texts)
    clips = narrator.clips
    prompts = [
        reading_prompts(sorted({clip["text"], written.get(clip["id"]) or clip["text"]}), tokenizer) for clip in clips
    ]
    found = clip_codes(narrator, _speech_tokenizer(options.tokenizer, options.wait))
    different = len(np.unique(np.concatenate(found)))
    hours, n_codes = round(narrator.hours, 3), sum(map(len, found))
    say(options.out, event="narrator", hours=hours, codes=n_codes, different=different)
    answers = [spoken_answer(clip["tokens"], codes, tokenizer) for clip, codes in zip(clips, found, strict=True)]
    sounds = [sounds_of(clip, answer, encode, tokenizer) for clip, answer in zip(clips, answers, strict=True)]
    read = [reading(*each) for each in zip(prompts, answers, sounds, strict=True)]
    back = {turn["human"] for each in dialogues if each["held_out"] for turn in each["turns"][:1]}
    held, apart = (min(HELD_OUT, len(each) // 10) for each in (clips, hearing.clips))
    learnt = read[held:]
    scored = {READ: read[:held], REPEAT: [], TRANSCRIBE: []}
    said = {clip["id"]: k for k, clip in enumerate(clips)}
    for place, (clip, own) in enumerate(zip(hearing.clips, versions, strict=True)):
        written_down = listening(own, False, np.array([*clip["tokens"], tokenizer.eot], np.int16), tokenizer)
        kept_back = place < apart or clip["text"] in back
        (scored[TRANSCRIBE] if kept_back else learnt).append(written_down)
        if (k := said.get(clip["id"])) is not None:
            kept_back = kept_back or k < held
            (scored[REPEAT] if kept_back else learnt).append(listening(own, True, answers[k], tokenizer, sounds[k]))
    if dialogues:
        spoken = {clip["text"]: (answer, own) for clip, answer, own in zip(clips, answers, sounds, strict=True)}
        heard: dict[str, list[Rows]] = {}
        for clip, own in zip(hearing.clips, versions, strict=True):
            heard.setdefault(clip["text"], []).extend(own)
        make = ExampleMaker(tokenizer, encode, heard, spoken, options.seed)
        learnt += _of_dialogues(options, dialogues, make, scored)
    return learnt, scored, store


def _of_dialogues(
    options: Options, dialogues: Sequence[Mapping], make: ExampleMaker, scored: dict[str, list[Example]]
) -> list[Example]:
    """The examples to learn of dialogues; those kept back go to `scored`. Logs how many there are, and new words."""
    learnt: list[Example] = []
    silent = 0
    for dialogue in dialogues:
        examples = make(dialogue)
        silent += not examples
        if not dialogue["held_out"]:
            learnt.extend(examples)
            continue
        for example in examples:  # apart: of a spoken answer the codes before a word may tell which recording it is
            spoken = (example.answer >= make.tokenizer.first_audio_code).any()
            scored.setdefault(f"{example.task}{'_spoken' if spoken else ''}", []).append(example)
    counts = Counter(example.task for example in learnt)
    say(options.out, event="dialogues", without_clips=silent, **counts)
    known = options.start / WORDS
    if known.is_file():
        words = {line.split("\t")[0] for line in known.read_text(encoding="utf-8").splitlines()}
        texts = [
            text for each in dialogues for turn in each["turns"] for text in (turn.get("human"), turn.get("answer"))
        ]
        new = sorted({word for text in texts if text for word in text.split()} - words)
        if new:
            say(options.out, event="words that the model to begin with was not trained on", words=new)
    return learnt


def _written(texts: Path) -> dict[str, str]:
    """How a person would write each text, by its id."""
    lines = map(json.loads, texts.read_text(encoding="utf-8").splitlines())
    return {line["id"]: line["say"] for line in lines if line.get("say")}


def _speech_tokenizer(folder: Path, wait: float) -> S3Tokenizer:
    """The speech tokenizer of a run, for whose net to appear this waits so many seconds."""
    until = time.time() + wait
    while time.time() < until and not (folder / "tokenizer.json").is_file():
        time.sleep(0.5)
    return cast(S3Tokenizer, read_net(folder, "tokenizer"))


def train(options: Options) -> None:
    """Train a decoder to speak and write its state, its log and the whole model, or a LoRA, to `options.out`.

    `model` there is the last one, `best` the one whose loss on held-out examples was the lowest: the sum of that of
    codes in reading aloud and, of each other task, that of text. The voice may be learnt by heart.

    Raises
    ------
    DataError
        No usable corpus, or a folder without what the options say that it holds.
    ConfigError
        Fewer layers than the model begins with; more, for a LoRA.
    """
    began = time.time()
    started = StepAudioConfig.from_file(options.start)
    _check_layers(options, started.text_config.num_hidden_layers)
    tokenizer = Tokenizer.from_folder(options.start, started.text_config.vocab_size)
    net = StepAudioNet(started)
    load_weights(net, options.start, started, mx.float32)
    learnt, scored, store = make_examples(options, tokenizer, net)
    config = replace(started, text_config=replace(started.text_config, num_hidden_layers=options.layers))
    able = Capabilities.of_folder(options.start)
    learnt_to = replace(able, tasks=TASKS)
    if options.dialogues:
        learnt_to = replace(able, tasks=(*TASKS, "respond"), thinking=OPENING, thinks_unasked=False)
    dtype = mx.float32 if on_cpu() else mx.bfloat16
    if options.low_rank:
        params = low_rank.begin(net, options.low_rank, tokenizer, options.seed)
        assemble = low_rank.Added(net, dtype)
    else:
        params, assemble = decoder.begin(net, config, tokenizer, options.seed, able.allow("speak")), None
    kept_codes = options.low_rank or able.allow("speak")
    say(options.out, event="begin", codes="kept" if kept_codes else "drawn", low_rank=options.low_rank)
    kept = {name: net[name].parameters() for name in ("encoder", "adapter")}
    int8 = parts_in_int8(options.start) & set(kept)
    loss = decoder.Loss(StepAudioNet(config), store, tokenizer, dtype, net, assemble)
    fit = Fit(_schedule(options), params, loss, compiled=False)
    if options.resume:
        fit.resume(options.out / CHECKPOINT)
    batches = Batches(learnt, tokenizer, options.tokens, options.seed, shares=options.shares)
    judges = {
        task: Batches(some, tokenizer, options.tokens, options.seed, noisy=False)
        for task, some in scored.items()
        if some
    }

    log = options.out / "log.jsonl"
    least = _least_held_out(log) if options.resume and log.is_file() else math.inf

    def write(folder: Path) -> None:
        if options.low_rank:
            write_lora(folder, low_rank.pairs_of(fit.average), low_rank.SCALE, options.start.resolve().name)
        else:
            tokenizer.save(folder)
            export(kept | loss.assemble(fit.average), config, folder, int8)
        with replaced_file(folder / CAPABILITIES) as aside:
            aside.write_text(json.dumps(learnt_to.to_dict(), indent=2) + "\n", encoding="utf-8")

    def save() -> None:
        nonlocal least
        write(options.out / MODEL)
        if judges:
            found = score(loss, fit.average, judges)
            say(options.out, step=fit.step_number, **found)
            if found[CHOOSES] < least:
                least = found[CHOOSES]
                write(options.out / BEST)

    def batch(step: int) -> Batch:
        return decoder.on_device(batches(step))

    fit_run(fit, batch, options.out, save, options.elapsed + time.time() - began)


def _schedule(options: Options) -> Schedule:
    return Schedule(
        steps=options.steps,
        seconds=options.seconds,
        peak_rate=options.rate,
        warmup=500,
        weight_decay=0.03,
        average=0.9995,
        seed=options.seed,
        log_every=options.log_every,
        save_every=options.save_every,
    )


def _check_layers(options: Options, there: int) -> None:
    if options.low_rank < 0:
        raise ConfigError(f"low rank: {options.low_rank}; expected 0, for all weights, or the rank of a LoRA")
    if options.low_rank and options.layers != there:
        raise ConfigError(f"layers: {options.layers}, but a LoRA is learnt of the {there} layers of {options.start}")
    if options.layers < there:
        raise ConfigError(
            f"layers: {options.layers}, but the decoder of {options.start} has {there}; expected that many or more"
        )


def _least_held_out(log: Path) -> float:
    """The lowest loss on held-out codes in the log of a run; a line that a killed run left torn counts for nothing."""
    least = math.inf
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict) and isinstance(found.get(CHOOSES), float):
            least = min(least, found[CHOOSES])
    return least


def score(
    loss: decoder.Loss, params: dict, judges: Mapping[str, Callable[[int], dict[str, np.ndarray]]]
) -> dict[str, float]:
    """Means over a few batches of each task of what the log shows, and the loss that chooses among models.

    Named `held_out_…`; of other tasks than reading aloud `held_out_TASK_…`, of spoken answers in dialogues
    `held_out_TASK_spoken_…`.
    """
    found, total = {}, 0.0
    for task, batches in judges.items():
        metrics = [loss(params, decoder.on_device(batches(step)))[1] for step in range(HELD_OUT_BATCHES)]
        means = {name: float(np.mean([each[name].item() for each in metrics])) for name in metrics[0]}
        found |= {f"held_out_{'' if task == READ else f'{task}_'}{name}": mean for name, mean in means.items()}
        total += means["codes"] if task == READ else means["text"]
    return found | {CHOOSES: total}
