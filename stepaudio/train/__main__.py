"""Command line of training: make a tokenizer, train the nets, teach the decoder to speak, average models or states.

python -m stepaudio.train tokenizer TEXTS.jsonl FOLDER
python -m stepaudio.train run --corpus FOLDER… --tokenizer FOLDER --out FOLDER [--steps N] [--seconds S] …
python -m stepaudio.train speaking --narrator FOLDER… --texts TEXTS.jsonl --tokenizer RUN --start MODEL --out FOLDER …
python -m stepaudio.train average MODEL… OUT
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoints.capabilities import FILE as CAPABILITIES
from ..checkpoints.header import SINGLE_FILE
from ..checkpoints.layout import COMPONENTS
from ..checkpoints.lora_folder import ADAPTERS
from ..checkpoints.lora_folder import CONFIG as LORA_CONFIG
from ..text.tokenizer import SAVED, Tokenizer
from .loop import run
from .nano import NANO_ENCODER, average_models, encoder_sizes, export, nano_config, read_encoder, train_tokenizer
from .optimiser import CHECKPOINT, STATE_FILE, average_states
from .outputs import add_force, check_outputs, check_run, refusals_in_one_line
from .recipe import ALL_BUCKETS, RECIPE, WORDS, Recipe
from .speaking.examples import SHARES
from .speaking.run import BEST, MODEL
from .speaking.run import Options as SpeakingOptions
from .speaking.run import train as train_speaking
from .token2wav.fit import SCHEDULE


def parser() -> argparse.ArgumentParser:
    """The four verbs and their options."""
    root = argparse.ArgumentParser(
        prog="python -m stepaudio.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = root.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("tokenizer", help="train the vocabulary from a JSONL with a `text` key")
    make.add_argument("texts", type=Path)
    make.add_argument("folder", type=Path)
    add_force(make)
    mean = verbs.add_parser("average", help="the mean of the weights of several trained models, or of saved states")
    models = f"folders with config.json and model.safetensors, or all with {STATE_FILE}"
    mean.add_argument("models", type=Path, nargs="+", help=models)
    mean.add_argument("folder", type=Path)
    mean.add_argument("--int8", nargs="+", choices=COMPONENTS, default=[], help="parts to store in eight bits (models)")
    add_force(mean)
    _run_options(verbs.add_parser("run", help="train the nets and write a checkpoint in the published layout"))
    _speaking_options(verbs.add_parser("speaking", help="teach a trained model's decoder to read aloud and say again"))
    return root


def _run_options(train: argparse.ArgumentParser) -> None:
    train.add_argument("--corpus", type=Path, nargs="+", required=True)
    train.add_argument("--texts", type=Path, help="JSONL with id and text, for corpora whose lines only have an id")
    train.add_argument("--held-out", type=Path)
    train.add_argument("--tokenizer", type=Path, required=True)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--resume", type=Path, help=f"folder with {STATE_FILE} of an earlier run")
    train.add_argument("--start", type=Path, help="checkpoint folder whose weights a fresh run begins with")
    train.add_argument("--encoder", type=Path, help="safetensors file of an encoder that stays as it is")
    train.add_argument("--teacher", type=Path, help="checkpoint folder whose audio embeddings are learnt as well")
    train.add_argument("--width", type=int, default=256, help="channels of the decoder, a multiple of 128")
    train.add_argument("--layers", type=int, default=4, help="layers of the decoder")
    train.add_argument(
        "--dropout", type=float, default=Recipe.dropout, help="share of a kept encoder's channels left out"
    )
    train.add_argument("--steps", type=int, default=Recipe.steps)
    train.add_argument("--seconds", type=float, default=Recipe.seconds)
    train.add_argument("--rate", type=float, default=Recipe.peak_rate)
    slow = "factor on the decoder's learning rate; at 0 it stays as --start has it"
    train.add_argument("--decoder-rate", type=float, default=Recipe.decoder_rate, help=slow)
    train.add_argument("--seed", type=int, default=Recipe.seed)
    train.add_argument("--workers", type=int, default=Recipe.workers)
    train.add_argument("--elapsed", type=float, default=0.0, help="seconds of the schedule already spent")
    train.add_argument("--pause", type=float, default=float("inf"), help="save and leave after this many seconds")
    noise = "noise on the weights, as a share of each matrix's root mean square"
    train.add_argument("--weight-noise", type=float, default=Recipe.weight_noise, help=noise)
    train.add_argument("--compile", action="store_true", help="fuse forward and backward pass")
    train.add_argument("--log-every", type=int, default=Recipe.log_every, help="steps between log lines")
    train.add_argument("--block", type=int, default=Recipe.block, help="steps between changes of batch shape")
    train.add_argument("--rows", type=float, default=1.0, help="factor on the number of examples in every batch")
    train.add_argument(
        "--shares",
        type=float,
        nargs=len(ALL_BUCKETS),
        default=[b.share for b in ALL_BUCKETS],
        help="how often batches of short, middling and long examples are drawn",
    )
    train.add_argument("--empty", type=float, default=Recipe.empty, help="share of examples without speech")
    add_force(train)


def _speaking_options(one: argparse.ArgumentParser) -> None:
    d = SpeakingOptions
    one.add_argument(
        "--narrator", type=Path, nargs="+", required=True, help="clips whose codes are learnt, of one voice"
    )
    one.add_argument("--hearing", type=Path, nargs="+", help="clips to transcribe and say again (the narrator's)")
    one.add_argument("--texts", type=Path, required=True, help="JSONL with id, text and, as a person writes it, say")
    one.add_argument("--dialogues", type=Path, help="JSONL of dialogues to learn, whose sentences are among the clips")
    shares = ", ".join(f"{task}={share:g}" for task, share in SHARES.items())
    one.add_argument("--shares", type=task_share, nargs="+", default=[], help=f"of the tasks, to their sum ({shares})")
    one.add_argument("--tokenizer", type=Path, required=True, help="run of a speech tokenizer")
    one.add_argument("--wait", type=float, default=d.wait, help="seconds for which that run's net may be missing yet")
    one.add_argument("--start", type=Path, required=True, help="folder of the model to begin with")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--layers", type=int, default=d.layers, help="of the decoder, at least as many as it has")
    one.add_argument("--low-rank", type=int, default=d.low_rank, help="rank of a LoRA to learn instead of all weights")
    one.add_argument("--variants", type=int, default=d.variants, help="of each clip, all but one augmented")
    one.add_argument("--tokens", type=int, default=d.tokens, help="of a batch")
    one.add_argument("--steps", type=int, default=d.steps)
    one.add_argument("--seconds", type=float, default=d.seconds)
    one.add_argument("--rate", type=float, default=d.rate)
    one.add_argument("--seed", type=int, default=d.seed)
    one.add_argument("--log-every", type=int, default=d.log_every)
    one.add_argument("--save-every", type=float, default=d.save_every, help="seconds between saved states")
    one.add_argument("--resume", action="store_true", help="continue from the state in --out")
    one.add_argument("--elapsed", type=float, default=d.elapsed, help="seconds of the schedule already spent")
    add_force(one)


def task_share(text: str) -> tuple[str, float]:
    """`TASK=SHARE` of the command line."""
    task, _, share = text.partition("=")
    if task not in SHARES:
        raise argparse.ArgumentTypeError(f"expected TASK=SHARE with a task of {', '.join(SHARES)}, found {text!r}")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a share of 0 or more for {task}, found {share!r}")
    return task, value


def recipe_from(options: argparse.Namespace) -> Recipe:
    """The hyperparameters that the options of `run` ask for."""
    buckets = tuple(
        replace(b, rows=max(2, int(b.rows * options.rows)), share=share)
        for b, share in zip(ALL_BUCKETS, options.shares, strict=True)
    )
    return Recipe(
        steps=options.steps,
        seconds=options.seconds,
        peak_rate=options.rate,
        decoder_rate=options.decoder_rate,
        seed=options.seed,
        workers=options.workers,
        log_every=options.log_every,
        block=options.block,
        compile=options.compile,
        weight_noise=options.weight_noise,
        dropout=options.dropout,
        empty=options.empty,
        buckets=buckets,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the verb that the command line names."""
    # MLX's CUDA backend replays recorded graphs, 400 at most; a step of several shapes needs more or records anew.
    os.environ.setdefault("MLX_CUDA_GRAPH_CACHE_SIZE", "20000")
    options = parser().parse_args(arguments)
    with refusals_in_one_line("stepaudio.train"):
        _run(options)


def _run(options: argparse.Namespace) -> None:
    if options.verb == "tokenizer":
        check_outputs([options.folder / name for name in SAVED], [options.texts], options.force)
        lines = options.texts.read_text(encoding="utf-8").splitlines()
        train_tokenizer((json.loads(line)["text"] for line in lines), options.folder)
        return
    if options.verb == "average":
        saved = (options.models[0] / STATE_FILE).exists()
        names = (STATE_FILE,) if saved else ("config.json", SINGLE_FILE)
        check_outputs([options.folder / name for name in names], options.models, options.force)
        if saved:
            average_states(options.models, options.folder)
        else:
            average_models(options.models, options.folder, options.int8)
        return
    state, weights = f"{CHECKPOINT}/{STATE_FILE}", ("config.json", SINGLE_FILE)
    if options.verb == "speaking":
        options.shares = SHARES | dict(options.shares)
        o = SpeakingOptions(**{name: value for name, value in vars(options).items() if name not in ("verb", "force")})
        model = (ADAPTERS, LORA_CONFIG) if o.low_rank else (*weights, *SAVED)
        written = [
            SCHEDULE,
            state,
            *(f"{folder}/{name}" for folder in (MODEL, BEST) for name in (*model, CAPABILITIES)),
        ]
        check_run(
            o.out, written, [*o.narrator, *(o.hearing or ()), o.texts, o.dialogues, o.tokenizer, o.start], options.force
        )
        train_speaking(o)
        return
    o = options
    inputs = [*o.corpus, o.texts, o.held_out, o.start, o.encoder, o.teacher, *(o.tokenizer / name for name in SAVED)]
    check_run(o.out, [RECIPE, WORDS, state, *(f"{MODEL}/{name}" for name in weights)], inputs, o.force)
    tokenizer = Tokenizer.from_folder(options.tokenizer)
    encoder = read_encoder(options.encoder) if options.encoder else None
    sizes = encoder_sizes(encoder) if encoder else NANO_ENCODER
    config = nano_config(-(-tokenizer.n_ids // 64) * 64, options.width, options.layers, sizes)
    run(
        recipe_from(options),
        config,
        options.corpus,
        options.tokenizer,
        options.out,
        options.texts,
        options.held_out,
        options.resume,
        options.start,
        encoder,
        options.teacher,
        on_save=lambda trainer: export(trainer.average, config, options.out / MODEL),
        elapsed=options.elapsed,
        pause=options.pause,
    )


if __name__ == "__main__":
    main()
