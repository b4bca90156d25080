"""The training loop: one compiled step, AdamW, averaged weights, checkpoints that can be resumed.

Loss: cross-entropy of the answer after the reference's own transcription prompt, with label smoothing, plus, on
clips whose synthesiser told its phoneme durations, the phoneme of every 40 ms encoder frame and the text id that
is being spoken in every 80 ms prompt row, through two heads that are thrown away. Master
weights in float32, products in bfloat16 on a GPU. A share of the answer's input
ids is replaced at random, so that the decoder trusts what it hears more than what it wrote. Noise on the weights
(Graves 2011), if asked for, drives the net to where small changes do little.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..backend.device import on_cpu
from ..checkpoints.load import load_weights
from ..constants import HOP, TAIL_PADDING
from ..errors import DataError
from ..models.kv_cache import NoCache
from ..models.speech_lm import StepAudioConfig, StepAudioNet
from ..text.tokenizer import Tokenizer
from .augment import batch_mels, clean_filters, gather_wave, log_mel_batch, warped_filters
from .batches import EMPTY, IGNORE, BatchMaker, Bucket, PromptIds, transcription_ids
from .corpus import Corpus

N_PHONEMES = 256
NOISE_SCALE_STEPS = 500  # between looks at how large the weights are
# Encoder and decoder then see 256 and 128, 512 and 256, 1280 and 512 positions: where these are no multiples of 128,
# MLX's CUDA backend has no fused gradient of attention.
ALL_BUCKETS = (Bucket(5.1, 96, 49, 0.5), Bucket(10.22, 48, 113, 0.33), Bucket(25.575, 20, 177, 0.17))


@dataclass(frozen=True)
class Recipe:
    """What a run depends on, beside the corpus. `seconds` ends the run early, with the schedule squeezed to it."""

    steps: int = 30_000
    seconds: float = 1e9
    peak_rate: float = 1.2e-3
    warmup: int = 800
    weight_decay: float = 0.03
    smoothing: float = 0.05
    phoneme_weight: float = 0.5
    spoken_weight: float = 0.5
    token_noise: float = 0.1
    weight_noise: float = 0.0  # share of each matrix's root mean square
    average: float = 0.9995
    empty: float = EMPTY  # share of rows in which nobody speaks
    seed: int = 7
    workers: int = 8
    block: int = 100  # steps between changes of bucket
    log_every: int = 250
    save_every: float = 60.0  # seconds
    compile: bool = False
    buckets: tuple[Bucket, ...] = field(default=ALL_BUCKETS)

    def rate(self, progress: float, step: int) -> float:
        """Linear warm-up, then cosine to one hundredth, over `progress` 0..1."""
        # In Python's own floats: a scalar of NumPy times an array of MLX is computed by NumPy, on the host.
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak_rate * min(1.0, (step + 1) / self.warmup) * cosine


_maker: BatchMaker | None = None


def _start_worker(maker: BatchMaker) -> None:
    global _maker
    _maker = maker


def _make(step: int) -> dict:
    return _maker(step)


class AnswerEncoder:
    """Ids of a transcript; the leading space makes a clip's ids the same wherever it stands in a row.

    The tokenizer never joins words, so a transcript's ids are its words' ids, and each word is looked up once.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._words = tokenizer, {}

    def __call__(self, text: str) -> list[int]:
        words = text.split()
        for word in words:
            if word not in self._words:
                self._words[word] = self._tokenizer.encode(" " + word)
        return [i for word in words for i in self._words[word]]


class Flat:
    """A tree of arrays as one vector and back: one optimiser step is then a dozen operations, not thousands."""

    def __init__(self, tree: dict):
        pairs = tree_flatten(tree)
        self.names, self.shapes = [n for n, _ in pairs], [v.shape for _, v in pairs]
        self.ends = np.cumsum([v.size for _, v in pairs]).tolist()

    def join(self, tree: dict) -> mx.array:
        return mx.concatenate([v.reshape(-1).astype(mx.float32) for _, v in tree_flatten(tree)])

    def split(self, vector: mx.array) -> dict:
        parts = mx.split(vector, self.ends[:-1])
        return tree_unflatten([(n, p.reshape(s)) for n, p, s in zip(self.names, parts, self.shapes, strict=True)])


class Trainer:
    def __init__(self, recipe: Recipe, config: StepAudioConfig, prompt: PromptIds, n_text: int):
        self.recipe, self.config, self.prompt, self.n_text = recipe, config, prompt, n_text
        mx.random.seed(recipe.seed)
        self.net = StepAudioNet(config)
        head = nn.Linear(config.audio_encoder_config.n_audio_state, N_PHONEMES)
        rows = nn.Linear(config.text_config.hidden_size, n_text + 1)
        self.dtype = mx.float32 if on_cpu() else mx.bfloat16
        params = {"net": initialise(self.net), "head": head.parameters(), "rows": rows.parameters()}
        self.flat = Flat(params)
        start = self.flat.join(params)
        # ones where a weight is of a matrix or a kernel, which alone decay and take noise
        self._matrices = self.flat.join(tree_map(lambda p: mx.full(p.shape, float(p.ndim >= 2)), params))
        nothing = mx.zeros_like(start)
        self.state = {"params": start, "average": start + 0, "first": nothing, "second": nothing + 0}
        self._around = [mx.array(ids) for ids in (prompt.before, prompt.after)]
        self.step_number, self._bucket, self._shown, self._scales = 0, None, (), None
        self._gradient = mx.value_and_grad(self.loss)
        self._mels = [partial(batch_mels, N=b.samples, filters=warped_filters()) for b in recipe.buckets]
        if recipe.compile:
            fused = partial(mx.compile, inputs=mx.random.state, outputs=mx.random.state)
            self._gradient, self._mels = fused(self._gradient), [fused(f) for f in self._mels]

    def forward(self, params: dict, mels: mx.array, batch: dict, noise: float):
        """Logits after the last id of the prompt and every id of the answer (B, A, V), of phonemes (B, P, N) and of
        spoken ids (B, R, text ids + 1). A: `max_text` of the bucket.
        """
        self.net.update(params["net"])
        x_len = (batch["length"] + TAIL_PADDING) // HOP - 2
        heard = self.net.encoder(mels.transpose(0, 2, 1).astype(self.dtype), x_len, independent=True)
        rows = self.net.adapter(heard)
        embedding, answers, place = self.net.model.embed_tokens.weight, batch["answers"], batch["place"]
        if noise:
            wrong = mx.random.randint(0, self.n_text, answers.shape)
            answers = mx.where(mx.random.uniform(shape=answers.shape) < noise, wrong, answers)
        before, after = (
            mx.broadcast_to(embedding[ids], (rows.shape[0], ids.size, rows.shape[2])) for ids in self._around
        )
        sources = mx.concatenate([before, rows, after, one_hot(answers, embedding.shape[0], self.dtype) @ embedding], 1)
        x = self.net.model(one_hot(place, sources.shape[1], self.dtype) @ sources, NoCache(self.net.model.rope))
        asked = batch["asks"][:, None] + mx.arange(answers.shape[1])[None]
        x = one_hot(asked, x.shape[1], self.dtype) @ x
        return self.net.lm_head(x), linear(params["head"], heard), linear(params["rows"], rows)

    def loss(self, params: dict, mels: mx.array, batch: dict, noise: float, smoothing: float):
        """Sum of the three losses, and (text, phoneme, spoken, share of right ids) to show."""
        logits, phonemes, spoken = self.forward(params, mels, batch, noise)
        labels, known = mx.maximum(batch["labels"], 0), batch["labels"] >= 0
        text = mean_entropy(logits, labels, known, smoothing)
        right = ((logits.argmax(-1) == labels) & known).sum() / mx.maximum(known.sum(), 1)
        sound = mean_entropy(phonemes, *_labelled(batch["phonemes"], phonemes.shape[1]))
        words = mean_entropy(spoken, *_labelled(batch["spoken"], spoken.shape[1]))
        total = text + self.recipe.phoneme_weight * sound + self.recipe.spoken_weight * words
        return total, (text, sound, words, right)

    def _adamw(self, gradient: mx.array, rate: float) -> None:
        """AdamW (Loshchilov and Hutter 2019) on the flat vectors, gradient norm clipped to 1, then the average."""
        s, r, t = self.state, self.recipe, self.step_number + 1
        gradient = gradient * mx.minimum(1.0, 1.0 / (mx.linalg.norm(gradient) + 1e-6))
        s["first"] = 0.9 * s["first"] + 0.1 * gradient
        s["second"] = 0.98 * s["second"] + 0.02 * gradient * gradient
        step = (s["first"] / (1 - 0.9**t)) / (mx.sqrt(s["second"] / (1 - 0.98**t)) + 1e-8)
        s["params"] = s["params"] * (1 - rate * r.weight_decay * self._matrices) - rate * step
        average = min(r.average, t / (t + 10))
        s["average"] = average * s["average"] + (1 - average) * s["params"]

    def step(self, pcm: mx.array, batch: dict, progress: float):
        """One update; returns what `loss` shows.

        Asked for in stages, so that each finds the room of the one before, and without waiting: the device works on
        this step while the host builds the next one.
        """
        if batch["bucket"] != self._bucket:
            self._bucket = batch["bucket"]
            mx.eval(self.state)
            mx.clear_cache()  # or buffers of all buckets stay
        arrays = on_device(batch)
        mels = self._mels[self._bucket](pcm, arrays)
        mx.async_eval(mels)
        needed = {k: arrays[k] for k in ("place", "answers", "asks", "labels", "length", "phonemes", "spoken")}
        params = self.flat.split(self._noisy(self.state["params"]).astype(self.dtype))
        (_, shown), gradient = self._gradient(params, mels, needed, self.recipe.token_noise, self.recipe.smoothing)
        mx.async_eval(shown, gradient)
        self._adamw(self.flat.join(gradient), self.recipe.rate(progress, self.step_number))
        mx.async_eval(self.state)
        mx.eval(self._shown)  # of the step before: the host is one step ahead, never more (16 GB, and 12 if it waits)
        self._shown = shown
        self.step_number += 1
        return shown

    def _noisy(self, params: mx.array) -> mx.array:
        """The weights with this step's noise: normal, as strong as a share of their matrix's root mean square."""
        share = self.recipe.weight_noise
        if not share:
            return params
        if self.step_number % NOISE_SCALE_STEPS == 0 or self._scales is None:
            strength = tree_map(lambda p: mx.full(p.shape, mx.sqrt((p * p).mean())), self.flat.split(params))
            self._scales = share * self.flat.join(strength) * self._matrices
        return params + self._scales * mx.random.normal(params.shape)

    @property
    def average(self) -> dict:
        """The averaged weights of the nets, as a tree."""
        return self.flat.split(self.state["average"])["net"]

    def evaluate(self, maker: BatchMaker, pcm: mx.array, steps: int = 4) -> tuple[float, float]:
        """Loss and share of right ids (true history) on clean clips never trained on, with averaged weights."""
        totals = np.zeros(2)
        params = self.flat.split(self.state["average"].astype(self.dtype))
        for i in range(steps):
            batch = maker(i)
            arrays = on_device(batch)
            wave = gather_wave(pcm, arrays, self.recipe.buckets[batch["bucket"]].samples)
            mels = log_mel_batch(wave, arrays["length"], clean_filters())
            _, (text, _, _, right) = self.loss(params, mels, arrays, 0.0, 0.0)
            totals += [text.item(), right.item()]
        return tuple(totals / steps)

    def start_from(self, folder: Path) -> None:
        """Begin with the weights of a checkpoint in the published layout; the heads and the optimiser start afresh."""
        load_weights(self.net, folder, self.config, mx.float32)
        params = self.flat.split(self.state["params"]) | {"net": self.net.parameters()}
        self.state["params"] = self.flat.join(params)
        self.state["average"] = self.state["params"] + 0

    def save(self, folder: Path) -> None:
        """Everything a later run needs to go on: weights, their average, moments, step number."""
        folder.mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(folder / "new.safetensors"), self.state, {"step": str(self.step_number)})
        (folder / "new.safetensors").replace(folder / "state.safetensors")

    def resume(self, folder: Path) -> bool:
        """Take up a saved state; False if there is none."""
        path = folder / "state.safetensors"
        if not path.exists():
            return False
        arrays, meta = mx.load(str(path), return_metadata=True)
        self.state.update(arrays)
        self.step_number = int(meta["step"])
        return True


def average_states(folders: list[Path], out: Path) -> None:
    """Write the mean of saved states, for a run to go on from: of their averaged weights, their moments, their steps.

    Raises
    ------
    DataError : a folder without a saved state, or states of nets of different sizes.
    """
    states, steps = [], []
    for folder in folders:
        path = folder / "state.safetensors"
        if not path.exists():
            raise DataError(f"{folder}: no state.safetensors in it; expected the `checkpoint` folder of a run")
        arrays, meta = mx.load(str(path), return_metadata=True)
        states.append(arrays | {"params": arrays["average"]})
        steps.append(int(meta["step"]))
    sizes = {state["params"].size for state in states}
    if len(sizes) > 1:
        raise DataError(f"{', '.join(map(str, folders))}: states of {sizes} weights have no mean")
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    out.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(out / "state.safetensors"), mean, {"step": str(sum(steps) // len(steps))})


def on_device(batch: dict) -> dict:
    """The arrays of a batch, sent to the accelerator as one."""
    arrays = {k: v for k, v in batch.items() if isinstance(v, np.ndarray)}
    words = mx.array(np.concatenate([v.reshape(-1).view(np.int32) for v in arrays.values()]))
    parts = mx.split(words, np.cumsum([v.size for v in arrays.values()])[:-1].tolist())
    return {
        k: (part.view(mx.float32) if v.dtype == np.float32 else part).reshape(v.shape)
        for (k, v), part in zip(arrays.items(), parts, strict=True)
    }


def one_hot(index: mx.array, n: int, dtype: mx.Dtype) -> mx.array:
    """(…) indices -> (…, n), zero where an index lies outside. Products with it look things up, and their gradients
    are products too, where a lookup's gradient adds position after position into one row.
    """
    return (index[..., None] == mx.arange(n)).astype(dtype)


def linear(head: dict, x: mx.array) -> mx.array:
    return x @ head["weight"].T + head["bias"]


def _labelled(labels: mx.array, n: int) -> tuple[mx.array, mx.array]:
    """Labels cut or padded to n positions, and which of them say something."""
    labels = mx.pad(labels, [(0, 0), (0, max(0, n - labels.shape[1]))])[:, :n]
    return labels, labels != IGNORE


def mean_entropy(logits: mx.array, labels: mx.array, known: mx.array, smoothing: float = 0.0) -> mx.array:
    """Mean cross-entropy over the known positions, in float32."""
    each = nn.losses.cross_entropy(logits.astype(mx.float32), labels, label_smoothing=smoothing)
    return (each * known).sum() / mx.maximum(known.sum(), 1)


def initialise(net: StepAudioNet) -> dict:
    """Fresh weights: narrow normals, residual outputs narrower still, sinusoids for the audio positions."""
    config = net.config
    depth = {"encoder": config.audio_encoder_config.n_audio_layer, "model": config.text_config.num_hidden_layers}
    fresh = []
    for name, value in tree_flatten(net.parameters()):
        if name == "encoder.positional_embedding.weight":
            value = sinusoids(*value.shape)
        elif value.ndim >= 2:
            fan_in = value.size // value.shape[0]
            std = 0.02 if "embed_tokens" in name or "lm_head" in name else fan_in**-0.5
            if name.endswith(("attn.out.weight", "mlp.2.weight", "o_proj.weight", "down_proj.weight")):
                std /= (2 * depth[name.split(".")[0]]) ** 0.5
            value = mx.random.normal(value.shape) * std
        elif name.endswith("bias"):
            value = mx.zeros(value.shape)
        fresh.append((name, value))
    return tree_unflatten(fresh)


def sinusoids(length: int, channels: int) -> mx.array:
    """Fixed position table of Vaswani et al. 2017 in Whisper's arrangement, the starting point of a learned one."""
    rate = np.exp(-np.log(10_000) / (channels // 2 - 1) * np.arange(channels // 2))
    angle = np.arange(length)[:, None] * rate[None, :]
    return mx.array(np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32))


def run(
    recipe: Recipe,
    config: StepAudioConfig,
    folders: list[Path],
    tokenizer_folder: Path,
    out: Path,
    texts: Path | None = None,
    held_out: Path | None = None,
    resume: Path | None = None,
    start: Path | None = None,
    on_save=lambda trainer: None,
    elapsed: float = 0.0,
    pause: float = float("inf"),
) -> Trainer:
    """Train, log to `out`/log.jsonl, save to `out`. Stops at `recipe.steps` or `recipe.seconds`.

    resume : folder with a saved state to go on from; `elapsed` seconds of its schedule are then already spent.
    start : folder of a checkpoint whose weights a fresh run begins with.
    pause : seconds after which to save and leave, wherever the schedule stands.
    """
    began = time.time()
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    prompt, encode = transcription_ids(tokenizer), AnswerEncoder(tokenizer)
    corpus = Corpus(folders, encode, texts)
    pool = _workers(recipe, BatchMaker(corpus, prompt, list(recipe.buckets), recipe.seed, recipe.block, recipe.empty))
    _record(out, recipe, config, corpus)
    shards = [_on_device(corpus.samples(i)) for i in range(len(corpus.shards))]
    say(
        out,
        event="corpus",
        hours=round(corpus.hours, 2),
        clips=sum(map(len, corpus.shards)),
        shards=len(shards),
        seconds=round(time.time() - began, 1),
    )
    trainer = Trainer(recipe, config, prompt, tokenizer.text_limit)
    if resume and trainer.resume(resume):
        say(out, event="resumed", step=trainer.step_number)
    elif start:
        trainer.start_from(start)
    judge = None
    if held_out:
        quiet = Corpus([held_out], encode, texts)
        judge = BatchMaker(quiet, prompt, list(recipe.buckets[:2]), 1), _on_device(quiet.samples(0))
    queue = deque(pool.apply_async(_make, (trainer.step_number + i,)) for i in range(4 * recipe.workers))
    ahead, recent, mark, last_save = trainer.step_number + len(queue), [], time.time(), time.time()
    while trainer.step_number < recipe.steps and time.time() - began < pause:
        progress = max(trainer.step_number / recipe.steps, (time.time() - began + elapsed) / recipe.seconds)
        if progress >= 1:
            break
        batch = queue.popleft().get()
        queue.append(pool.apply_async(_make, (ahead,)))
        ahead += 1
        recent.append(trainer.step(shards[batch["shard"]], batch, progress))
        if len(recent) == recipe.log_every:
            means = np.array([[float(x) for x in shown] for shown in recent]).mean(0)
            say(
                out,
                step=trainer.step_number,
                text=means[0],
                phoneme=means[1],
                spoken=means[2],
                right=means[3],
                per_second=recipe.log_every / (time.time() - mark),
                progress=progress,
                peak_gb=mx.get_peak_memory() / 1e9,
            )
            recent, mark = [], time.time()
            if judge and trainer.step_number % 1000 == 0:
                loss, right = trainer.evaluate(*judge)
                say(out, step=trainer.step_number, held_out=loss, held_out_right=right)
            if time.time() - last_save > recipe.save_every:
                trainer.save(out / "checkpoint")
                on_save(trainer)
                last_save = time.time()
    pool.terminate()
    trainer.save(out / "checkpoint")
    on_save(trainer)
    return trainer


def _workers(recipe: Recipe, maker: BatchMaker):
    """Processes that describe batches. On Linux they inherit the corpus, and must start before MLX wakes the GPU."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    return context.Pool(recipe.workers, _start_worker, (maker,))


def _on_device(samples: np.ndarray) -> mx.array:
    """The samples in the accelerator's own memory: what comes from numpy would lie in memory shared with the host."""
    array = mx.concatenate([mx.array(samples), mx.zeros(1, mx.int16)])
    mx.eval(array)
    return array


def _record(out: Path, recipe: Recipe, config: StepAudioConfig, corpus: Corpus) -> None:
    """Write down what the run rests on: recipe, sizes, hours, and every training word with its count."""
    out.mkdir(parents=True, exist_ok=True)
    clips = [clip for shard in corpus.shards for clip in shard]
    words = Counter(word for clip in clips for word in clip["text"].split())
    lines = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    (out / "words.txt").write_text("".join(f"{word}\t{count}\n" for word, count in lines), encoding="utf-8")
    facts = {
        "recipe": asdict(recipe),
        "config": config.to_dict(),
        "hours": round(corpus.hours, 2),
        "clips": len(clips),
        "words": sum(words.values()),
        "distinct_words": len(words),
    }
    (out / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def say(out: Path, **record) -> None:
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()})
    print(line, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "log.jsonl", "a") as file:
        file.write(line + "\n")
