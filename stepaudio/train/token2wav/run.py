"""Runs of token2wav training: each trains one net and writes it; nets are averaged, or joined in one folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ... import __version__
from ...checkpoints.convert.manifest import FORMAT, MANIFEST, QUANTIZATION, file_of, read_manifest
from ...checkpoints.header import read_header
from ...checkpoints.int8 import in_eight_bits, with_scales
from ...checkpoints.layout import CONFIGS, TOKEN2WAV, build
from ...checkpoints.net_records import arrays_of, net_records
from ...errors import DataError
from ...files import replaced_file
from ...models.parameters import named_arrays
from ...models.token2wav.campplus import SpeakerEncoder
from ...models.token2wav.speech_tokenizer import S3Tokenizer
from ...reading import read_object
from ...schema import read_record
from ..optimiser import CHECKPOINT
from ..recipe import say
from . import campplus, flow, speech_tokenizer, vocoder
from .adversary import Adversary
from .corpus import SpeechCorpus
from .features import at_16k, flow_mels
from .fit import OPPONENT, Batch, Fit, Loss, Schedule, run

A_RUN = "expected the folder that a run of it wrote"
PEAK_RATES = {"tokenizer": 1e-3, "speaker": 4e-3, "hift": 4e-4, "flow": 1e-3}
BATCH_SIZES = {"tokenizer": 32, "speaker": 128, "hift": 48, "flow": 400}  # of the flow: seconds of speech
SPEAKER_SECONDS = 3.0  # of an example of the speaker encoder
VECTORS, VECTOR_SECONDS = 24, 4.0  # speaker vectors of each speaker that the flow is trained with
MEAN_FRAMES = 1 << 16  # of the mel that the flow's mean is taken of
ADVERSARY_RATE = 5e-4
NEVER = 1 << 30  # a step that no run reaches
STATISTICS_BATCHES = 20  # that the batch norms' running statistics are the mean of


@dataclass
class Options:
    """What a run is asked for; None stands for the net's own default."""

    corpus: list[Path]
    out: Path
    hours: float = 12.0
    steps: int = 1_000_000
    seconds: float = 1e9
    rate: float | None = None
    batch_size: int | None = None
    codes: int = 160
    layers: int | None = None
    frames: int = 36
    clip: float = Schedule.clip
    seed: int = 0
    log_every: int = 100
    start: Path | None = None
    compile: bool = False
    resume: bool = False
    elapsed: float = 0.0
    tokenizer: Path | None = None
    speaker: Path | None = None
    adversary: float = 0.0


@dataclass(frozen=True)
class Task:
    """One net in training.

    net, params : the net, and the tree of weights that are fitted. loss : of these weights and a batch.
    batches : step -> batch. weights : from the averaged tree, those that are written. after_save : called then.
    """

    net: nn.Module
    params: dict
    loss: Loss
    batches: Callable[[int], Batch]
    weights: Callable[[dict], dict] = lambda tree: tree
    after_save: Callable[[], None] = lambda: None
    opponent: Adversary | None = None


def write_net(folder: Path, component: str, net: nn.Module) -> None:
    """Write a net's weights in half precision, under the names that a converted file has, and its sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.astype(mx.float16) for name, value in named_arrays(net.parameters())}
    with replaced_file(folder / file_of(component)) as aside:
        mx.save_safetensors(str(aside), tensors, {"format": "mlx", "component": component})
    config = asdict(cast(Any, net).config)
    with replaced_file(folder / f"{component}.json") as aside:
        aside.write_text(json.dumps(config) + "\n", encoding="utf-8")


def _sizes(folder: Path, component: str) -> tuple[object, Path] | None:
    """Sizes of a net in the folder of a run or in one of all four, and the file that says them; None for none."""
    path = folder / f"{component}.json"
    if path.is_file():
        return read_object(path, DataError, A_RUN), path
    path = folder / MANIFEST
    return (asdict(read_manifest(folder).configs[component]), path) if path.is_file() else None


def _arrays(folder: Path, component: str) -> dict[str, mx.array]:
    """The weights of a net, as they are stored but for those of fewer bits."""
    file, of_a_run = folder / file_of(component), (folder / f"{component}.json").is_file()
    records = with_scales(read_header(file)) if of_a_run else net_records(read_manifest(folder), component)
    return dict(arrays_of(file, records))


def _bits(folder: Path, component: str) -> dict:
    """What the manifest of a folder of all four nets says of fewer bits, as an entry of another one."""
    if (folder / f"{component}.json").is_file():
        return {}
    said = read_manifest(folder).quantization_of(component)
    return {} if said is None else {QUANTIZATION: said.to_dict()}


def read_net(folder: Path, component: str) -> nn.Module:
    """Read a net that `write_net` or `join` wrote, in float32.

    Raises
    ------
    DataError
        There is none in the folder, or its weights are not those of its sizes.
    """
    found = _sizes(folder, component)
    if found is None:
        raise DataError(f"{folder / component}.json: no such file; {A_RUN}")
    net = build(read_record(CONFIGS[component], found[0], str(found[1])))
    arrays = _arrays(folder, component)
    try:
        net.load_weights([(name, value.astype(mx.float32)) for name, value in arrays.items()])
    except ValueError as error:
        raise DataError(f"{folder / file_of(component)}: is not of the sizes beside it ({error})") from None
    mx.eval(net.parameters())
    return net


def join(folders: list[Path], out: Path, int8: Collection[str] = ()) -> None:
    """Make one folder of all four nets with a manifest, as a conversion of published files leaves it.

    Parameters
    ----------
    folders : list of Path
        Of runs, or made by this; a net comes from the first that holds it.
    out : Path
        Folder to write.
    int8 : collection of str
        Nets whose matrices and kernels are stored in eight bits, with a scale for each row.

    Raises
    ------
    DataError
        A net is in none of the folders.
    """
    parts = {}
    for component in TOKEN2WAV:
        folder, found = next(((f, found) for f in folders if (found := _sizes(f, component))), (None, None))
        if folder is None or found is None:
            raise DataError(f"{', '.join(map(str, folders))}: no {component}.json in any of them")
        out.mkdir(parents=True, exist_ok=True)
        with replaced_file(out / file_of(component)) as aside:
            if component in int8:
                arrays = _arrays(folder, component)
                held = in_eight_bits(arrays, [name for name, value in arrays.items() if value.ndim > 1])
                mx.save_safetensors(str(aside), held, {"format": "mlx", "component": component})
            else:
                aside.write_bytes((folder / file_of(component)).read_bytes())
        parts[component] = {
            "file": file_of(component),
            "bytes": (out / file_of(component)).stat().st_size,
            "source": "trained",
            "config": found[0],
            "tensors": [],  # where each tensor of a published file went: there is no such file
            **({} if component in int8 else _bits(folder, component)),
        }
    manifest = {"format": FORMAT, "package": f"stepaudio {__version__}", "sources": {}, "components": parts}
    with replaced_file(out / MANIFEST) as aside:
        aside.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def average(folders: list[Path], out: Path) -> None:
    """Write the mean of the nets of several runs, which began with the same weights.

    Raises
    ------
    DataError
        A run that holds no net, or nets of different kinds or sizes.
    """
    component = next((c for c in TOKEN2WAV if (folders[0] / f"{c}.json").is_file()), None)
    if component is None:
        raise DataError(f"{folders[0]}: holds no net; expected the folder that a run wrote")
    nets = [read_net(folder, component) for folder in folders]
    for folder, net in zip(folders, nets, strict=True):
        if cast(Any, net).config != cast(Any, nets[0]).config:
            raise DataError(f"{folder}: its {component} has other sizes than that of {folders[0]}; no mean of the two")
    mean = tree_map(lambda *each: sum(each) / len(each), *[net.parameters() for net in nets])
    nets[0].update(mean)
    write_net(out, component, nets[0])


def tokenizer_task(options: Options, corpus: SpeechCorpus, batch_size: int) -> Task:
    """Training of the speech tokenizer.

    Raises
    ------
    DataError
        More layers in the net to begin with than are asked for.
    """
    config = replace(speech_tokenizer.SIZE, n_audio_layer=options.layers or speech_tokenizer.SIZE.n_audio_layer)
    net, params = speech_tokenizer.begin(config, options.seed)
    if options.start:
        params["net"] = speech_tokenizer.deepened(read_net(options.start, "tokenizer").parameters(), params["net"])
    ahead = speech_tokenizer.GROWN_AT if options.start else 0
    batches = speech_tokenizer.Batches(corpus, batch_size, options.codes, options.seed, ahead)
    return Task(net, params, partial(speech_tokenizer.loss, net=net), batches, lambda tree: tree["net"])


def speaker_task(options: Options, corpus: SpeechCorpus, batch_size: int) -> Task:
    """Training of the speaker encoder; its classes always begin with random directions."""
    batches = campplus.Batches(corpus, batch_size, SPEAKER_SECONDS, options.seed)
    net, params = campplus.begin(campplus.SIZE, batches.n_classes, options.seed)
    if options.start:
        params["net"] = campplus.learnt(cast(SpeakerEncoder, read_net(options.start, "speaker")))

    def with_statistics(tree: dict) -> dict:
        net.update(tree["net"])
        held_out = [batches(NEVER + i)["features"] for i in range(STATISTICS_BATCHES)]
        campplus.estimate_statistics(net, held_out)
        return net.parameters()

    def continue_training() -> None:
        campplus.use_batch_statistics(net)

    return Task(net, params, partial(campplus.loss, net=net), batches, with_statistics, continue_training)


def vocoder_task(options: Options, corpus: SpeechCorpus, batch_size: int) -> Task:
    """Training of the vocoder."""
    net, params = vocoder.begin(vocoder.SIZE, options.seed)
    if options.start:
        params = cast(dict, read_net(options.start, "hift").parameters())
    batches = vocoder.Batches(corpus, batch_size, options.frames, options.seed)
    adversary = None
    if options.adversary:
        schedule = replace(_schedule(options, "hift"), peak_rate=ADVERSARY_RATE)
        made = partial(vocoder.sound, net=net)
        adversary = Adversary(
            schedule, options.adversary, lambda p, b: vocoder.inner(made(p, b)), lambda b: vocoder.inner(b["wave"])
        )
    return Task(net, params, partial(vocoder.loss, net=net, adversary=adversary), batches, opponent=adversary)


def flow_task(options: Options, corpus: SpeechCorpus, batch_size: int) -> Task:
    """Training of the flow, on the codes and speaker vectors of nets that earlier runs wrote.

    Raises
    ------
    DataError
        The runs of the speech tokenizer and the speaker encoder are not named, or hold no net.
    """
    if options.tokenizer is None or options.speaker is None:
        raise DataError("flow: expected the runs of a speech tokenizer and a speaker encoder, whose output it learns")
    pcm = at_16k(corpus.pcm)
    codes = speech_tokenizer.codes_of(cast(S3Tokenizer, read_net(options.tokenizer, "tokenizer")), pcm)
    encoder = cast(SpeakerEncoder, read_net(options.speaker, "speaker"))
    vectors = campplus.speaker_vectors(encoder, corpus, pcm, VECTORS, VECTOR_SECONDS)
    mels = flow_mels(mx.array(corpus.pcm))
    say(options.out, event="codes", codes=len(codes), different=len(np.unique(codes)))
    mean = np.array(mels[:MEAN_FRAMES].astype(mx.float32)).mean(0)
    net, params = flow.begin(flow.size(encoder.config.embedding_size), mean, options.seed)
    if options.start:
        params = cast(dict, read_net(options.start, "flow").parameters())
    batches = flow.Batches(corpus, codes, mels, vectors, batch_size, options.seed)
    return Task(net, params, partial(flow.loss, net=net), batches)


def _schedule(options: Options, component: str) -> Schedule:
    return Schedule(
        steps=options.steps,
        seconds=options.seconds,
        peak_rate=options.rate or PEAK_RATES[component],
        seed=options.seed,
        log_every=options.log_every,
        clip=options.clip,
    )


TASKS: dict[str, tuple[str, Callable[[Options, SpeechCorpus, int], Task]]] = {
    "tokenizer": ("tokenizer", tokenizer_task),
    "speaker": ("speaker", speaker_task),
    "vocoder": ("hift", vocoder_task),
    "flow": ("flow", flow_task),
}  # name on the command line: name of the component's files, and what makes the task


def train(name: str, options: Options) -> None:
    """Train the net `name` of `TASKS` and write it, its state and its log to `options.out`.

    Raises
    ------
    DataError
        No usable corpus, or a run that the options name holds no net.
    """
    began = time.time()
    component, make = TASKS[name]
    corpus = SpeechCorpus(options.corpus, options.hours, options.seed)
    say(options.out, event="corpus", hours=round(corpus.hours, 3), speakers=len(corpus.speakers))
    task = make(options, corpus, options.batch_size or BATCH_SIZES[component])
    schedule = _schedule(options, component)
    fit = Fit(schedule, task.params, task.loss, compiled=options.compile)
    if options.resume:
        fit.resume(options.out / CHECKPOINT)
        if task.opponent is not None:
            task.opponent.fit.resume(options.out / OPPONENT)

    def save() -> None:
        task.net.update(task.weights(fit.average))
        write_net(options.out, component, task.net)
        task.after_save()

    run(fit, task.batches, options.out, save, options.elapsed + time.time() - began, task.opponent)
