"""One run: clips to examples, examples to a decoder, the model written as a folder in the published layout."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from ...backend.device import on_cpu
from ...checkpoints.capabilities import FILE as CAPABILITIES
from ...checkpoints.capabilities import REPEAT, Capabilities
from ...checkpoints.load import load_weights
from ...errors import ConfigError
from ...files import replaced_file
from ...models.speech_lm import StepAudioConfig, StepAudioNet
from ...models.token2wav.speech_tokenizer import S3Tokenizer
from ...text.tokenizer import Tokenizer
from ..corpus import AnswerEncoder, Corpus
from ..nano import export, parts_in_int8
from ..optimiser import CHECKPOINT
from ..recipe import say
from ..token2wav.fit import Batch, Fit, Schedule
from ..token2wav.fit import run as fit_run
from ..token2wav.run import read_net
from . import decoder
from .examples import Batches, Example, listening, reading, reading_prompts, sounds_of, spoken_answer
from .sound import clip_codes, clip_embeddings

MODEL, BEST = "model", "best"
MAX_SECONDS = 12.0
HELD_OUT, HELD_OUT_BATCHES = 256, 4  # clips of the narrator that are only scored, and batches of them
TASKS = ("transcribe", REPEAT, "speak")  # what is learnt here
CHOOSES = "held_out_codes"  # of the saved models, that with the lowest is kept beside the last one


@dataclass
class Options:
    """What a run is asked for.

    narrator : folders of one voice's clips, whose codes are learnt.
    hearing : folders of clips to transcribe and to say again; none stands for the narrator's.
    texts : JSONL of id, text and perhaps `say`, the same as a person would write it.
    tokenizer : run of a speech tokenizer, whose net may take `wait` seconds to appear.
    start : model to begin with; the codes of one whose capabilities.json does not say "speak" are drawn anew.
    layers : of the decoder, at least as many as there are.
    variants : of each clip to transcribe.
    tokens : of a batch.
    """

    narrator: list[Path]
    texts: Path
    tokenizer: Path
    start: Path
    out: Path
    hearing: list[Path] | None = None
    layers: int = 8
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
) -> tuple[list[Example], list[Example], mx.array]:
    """Examples to learn, examples of reading that are only scored, and the audio embeddings that prompts refer to.

    What needs no codes is made first: the speech tokenizer may still be in training.
    """
    encode = AnswerEncoder(tokenizer)
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
    held = min(HELD_OUT, len(read) // 10)
    said = {clip["id"]: k for k, clip in enumerate(clips[held:], held)}
    learnt = read[held:]
    for clip, own in zip(hearing.clips, versions, strict=True):
        learnt.append(listening(own, False, np.array([*clip["tokens"], tokenizer.eot], np.int16), tokenizer))
        if (k := said.get(clip["id"])) is not None:
            learnt.append(listening(own, True, answers[k], tokenizer, sounds[k]))
    return learnt, read[:held], store


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
    """Train a decoder to speak and write its state, its log and the whole model to `options.out`.

    `model` there is the last one, `best` the one that predicted held-out codes best: the voice may be learnt by heart.

    Raises
    ------
    DataError
        No usable corpus, or a folder without what the options say that it holds.
    ConfigError
        Fewer layers than the model begins with.
    """
    began = time.time()
    started = StepAudioConfig.from_file(options.start)
    if options.layers < started.text_config.num_hidden_layers:
        raise ConfigError(
            f"layers: {options.layers}, but the decoder of {options.start} has "
            f"{started.text_config.num_hidden_layers}; expected that many or more"
        )
    tokenizer = Tokenizer.from_folder(options.start, started.text_config.vocab_size)
    net = StepAudioNet(started)
    load_weights(net, options.start, started, mx.float32)
    learnt, scored, store = make_examples(options, tokenizer, net)
    config = replace(started, text_config=replace(started.text_config, num_hidden_layers=options.layers))
    able = Capabilities.of_folder(options.start)
    params = decoder.begin(net, config, tokenizer, options.seed, able.allow("speak"))
    say(options.out, event="begin", codes="kept" if able.allow("speak") else "drawn")
    kept = {name: net[name].parameters() for name in ("encoder", "adapter")}
    int8 = parts_in_int8(options.start) & set(kept)
    loss = decoder.Loss(StepAudioNet(config), store, tokenizer, mx.float32 if on_cpu() else mx.bfloat16, net)
    schedule = Schedule(
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
    fit = Fit(schedule, params, loss, compiled=False)
    if options.resume:
        fit.resume(options.out / CHECKPOINT)
    batches = Batches(learnt, tokenizer, options.tokens, options.seed)
    judges = Batches(scored, tokenizer, options.tokens, options.seed, noisy=False) if scored else None

    log = options.out / "log.jsonl"
    least = _least_held_out(log) if options.resume and log.is_file() else math.inf

    def write(folder: Path) -> None:
        tokenizer.save(folder)
        export(kept | decoder.whole(fit.average, loss.digits), config, folder, int8)
        with replaced_file(folder / CAPABILITIES) as aside:
            aside.write_text(json.dumps(replace(able, tasks=TASKS).to_dict(), indent=2) + "\n", encoding="utf-8")

    def save() -> None:
        nonlocal least
        write(options.out / MODEL)
        if judges is not None:
            found = score(loss, fit.average, judges)
            say(options.out, step=fit.step_number, **found)
            if found[CHOOSES] < least:
                least = found[CHOOSES]
                write(options.out / BEST)

    def batch(step: int) -> Batch:
        return decoder.on_device(batches(step))

    fit_run(fit, batch, options.out, save, options.elapsed + time.time() - began)


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


def score(loss: decoder.Loss, params: dict, batches: Callable[[int], dict[str, np.ndarray]]) -> dict[str, float]:
    """Means over a few batches of what the log shows, each named `held_out_…`."""
    found = [loss(params, decoder.on_device(batches(step)))[1] for step in range(HELD_OUT_BATCHES)]
    return {f"held_out_{name}": float(np.mean([metrics[name].item() for metrics in found])) for name in found[0]}
