"""Train one net of the speaking half, or put all four together.

    python -m stepaudio.train.speaking tokenizer --corpus DIR … --out RUN --seconds 600
    python -m stepaudio.train.speaking voices    --corpus DIR … --out RUN --seconds 300
    python -m stepaudio.train.speaking vocoder   --corpus DIR … --out RUN --seconds 600
    python -m stepaudio.train.speaking flow      --corpus DIR … --out RUN --seconds 900 --tokenizer RUN --voices RUN
    python -m stepaudio.train.speaking join      --parts RUN RUN RUN RUN --out data/nano/token2wav

Each run writes its net to RUN/NAME.safetensors with its sizes in NAME.json (half precision, averaged weights), the
state to go on from (`--resume`) to RUN/checkpoint, and a log. `--start RUN` begins with such a net's weights. `join`
makes the folder that `Synthesizer.load` reads. Speech comes from `data/recipe/kokoro_synth.py --pitch`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from .. import __version__
from ..errors import DataError
from ..token2wav.components import COMPONENTS, build, read_config
from ..token2wav.manifest import FORMAT, MANIFEST, file_of
from . import flow, speech_tokenizer, vocoder, voices
from .fit import Fit, Schedule, run
from .front_ends import at_16k, flow_mels
from .loop import say
from .speaking_corpus import SpeakingCorpus

RATES = {"tokenizer": 1e-3, "speaker": 4e-3, "hift": 1e-3, "flow": 1e-3}
ROWS = {"tokenizer": 32, "speaker": 128, "hift": 48, "flow": 400}  # of the flow: seconds of speech
VECTORS, VECTOR_SECONDS = 24, 4.0  # speaker vectors of each person that the flow is shown
NEVER = 1 << 30  # a step that no run reaches
SETTLING = 20  # batches that the batch norms' statistics are the mean of


def write_net(folder: Path, component: str, net: nn.Module) -> None:
    """A net's weights in half precision under the names that a converted file has, and its sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.astype(mx.float16) for name, value in tree_flatten(net.parameters())}
    mx.save_safetensors(str(folder / f".{component}.safetensors"), tensors, {"format": "mlx", "component": component})
    (folder / f".{component}.safetensors").replace(folder / file_of(component))
    (folder / f"{component}.json").write_text(json.dumps(asdict(net.config)) + "\n", encoding="utf-8")


def read_net(folder: Path, component: str) -> nn.Module:
    """A net that `write_net` wrote, in float32. Raises `DataError` where there is none."""
    path = folder / f"{component}.json"
    if not path.is_file():
        raise DataError(f"{folder}: no {component}.json; expected the folder that a run of it wrote")
    net = build(read_config(component, json.loads(path.read_text(encoding="utf-8")), str(path)))
    stored = mx.load(str(folder / file_of(component)))
    net.load_weights([(name, value.astype(mx.float32)) for name, value in stored.items()])
    mx.eval(net.parameters())
    return net


def join(folders: list[Path], out: Path) -> None:
    """One folder of all four nets with a manifest, as a conversion of published files leaves it.

    Raises
    ------
    DataError : a net that is in none of the folders.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = {}
    for component in COMPONENTS:
        folder = next((f for f in folders if (f / f"{component}.json").is_file()), None)
        if folder is None:
            raise DataError(f"{', '.join(map(str, folders))}: no {component}.json in any of them")
        data = (folder / file_of(component)).read_bytes()
        (out / file_of(component)).write_bytes(data)
        parts[component] = {"file": file_of(component), "bytes": len(data), "source": "trained",
                            "config": json.loads((folder / f"{component}.json").read_text(encoding="utf-8")),
                            "tensors": []}  # fmt: skip
    manifest = {"format": FORMAT, "package": f"stepaudio {__version__}", "sources": {}, "components": parts}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def tokenizer(options, corpus: SpeakingCorpus, fit_with) -> None:
    net, params = speech_tokenizer.begin(speech_tokenizer.SIZE, options.seed)
    if options.start:
        params["net"] = read_net(options.start, "tokenizer").parameters()
    batches = speech_tokenizer.Batches(corpus, options.rows, options.codes, options.seed)
    fit_with("tokenizer", net, params, partial(speech_tokenizer.loss, net=net), batches, lambda tree: tree["net"])


def speaker(options, corpus: SpeakingCorpus, fit_with) -> None:
    batches = voices.Batches(corpus, options.rows, 3.0, options.seed)
    net, params = voices.begin(voices.SIZE, batches.n_voices, options.seed)

    def settled(tree: dict) -> dict:
        net.update(tree["net"])
        voices.settle(net, [batches(NEVER + i)["features"] for i in range(SETTLING)])
        return net.parameters()

    fit_with("speaker", net, params, partial(voices.loss, net=net), batches, settled, lambda: voices.live(net))


def hift(options, corpus: SpeakingCorpus, fit_with) -> None:
    net, params = vocoder.begin(vocoder.SIZE, options.seed)
    if options.start:
        params = read_net(options.start, "hift").parameters()
    batches = vocoder.Batches(corpus, options.rows, options.frames, options.seed)
    fit_with("hift", net, params, partial(vocoder.loss, net=net), batches, lambda tree: tree)


def flow_net(options, corpus: SpeakingCorpus, fit_with) -> None:
    heard = at_16k(corpus.pcm)
    codes = speech_tokenizer.codes_of(read_net(options.tokenizer, "tokenizer"), heard)
    who = read_net(options.voices, "speaker")
    vectors = voices.vectors_of(who, corpus, heard, VECTORS, VECTOR_SECONDS)
    mels = flow_mels(mx.array(corpus.pcm))
    say(options.out, event="codes", codes=len(codes), different=len(np.unique(codes)))
    net, params = flow.begin(flow.size(who.config.embedding_size), np.array(mels[: 1 << 16].astype(mx.float32)).mean(0),
                             options.seed)
    if options.start:
        params = read_net(options.start, "flow").parameters()
    batches = flow.Batches(corpus, codes, mels, vectors, options.rows, options.seed)
    fit_with("flow", net, params, partial(flow.loss, net=net), batches, lambda tree: tree)


NETS = {"tokenizer": ("tokenizer", tokenizer), "voices": ("speaker", speaker), "vocoder": ("hift", hift),
        "flow": ("flow", flow_net)}


def train(options) -> None:
    began = time.time()
    component, task = NETS[options.net]
    options.rows = options.rows or ROWS[component]
    corpus = SpeakingCorpus(options.corpus, options.hours, options.seed)
    say(options.out, event="corpus", hours=round(corpus.hours, 3), persons=len(corpus.persons))
    schedule = Schedule(steps=options.steps, seconds=options.seconds, peak_rate=options.rate or RATES[component],
                        seed=options.seed, log_every=options.log_every, clip=options.clip)

    def fit_with(name, net, params, loss, batches, chosen, afterwards=lambda: None) -> None:
        fit = Fit(schedule, params, loss, compiled=options.compile)
        if options.resume:
            fit.resume(options.out / "checkpoint")

        def save() -> None:
            net.update(chosen(fit.average))
            write_net(options.out, name, net)
            afterwards()

        run(fit, batches, options.out, save, options.elapsed + time.time() - began)

    task(options, corpus, fit_with)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stepaudio.train.speaking", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="net", required=True)
    together = verbs.add_parser("join")
    together.add_argument("--parts", type=Path, nargs="+", required=True)
    together.add_argument("--out", type=Path, required=True)
    for name in NETS:
        one = verbs.add_parser(name)
        one.add_argument("--corpus", type=Path, nargs="+", required=True)
        one.add_argument("--out", type=Path, required=True)
        one.add_argument("--hours", type=float, default=12.0, help="of speech, at most")
        one.add_argument("--steps", type=int, default=1_000_000)
        one.add_argument("--seconds", type=float, default=1e9)
        one.add_argument("--rate", type=float, help="highest learning rate")
        one.add_argument("--rows", type=int, help="of a batch (flow: seconds)")
        one.add_argument("--codes", type=int, default=160, help="of a row (tokenizer)")
        one.add_argument("--frames", type=int, default=36, help="of a row (vocoder)")
        one.add_argument("--clip", type=float, default=Schedule.clip, help="of the gradient's norm")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--log-every", type=int, default=100)
        one.add_argument("--start", type=Path, help="a run whose weights to begin with")
        one.add_argument("--compile", action="store_true", help="the step as a whole; takes minutes at first")
        one.add_argument("--resume", action="store_true", help="go on from the state in --out")
        one.add_argument("--elapsed", type=float, default=0.0, help="seconds of the schedule spent before")
        one.add_argument("--tokenizer", type=Path, help="flow: the run whose codes it learns")
        one.add_argument("--voices", type=Path, help="flow: the run whose speaker vectors it learns")
    options = parser.parse_args()
    if options.net == "join":
        join(options.parts, options.out)
    else:
        train(options)


if __name__ == "__main__":
    main()
