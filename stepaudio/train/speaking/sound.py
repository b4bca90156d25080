"""What clips sound like to nets that stay as they are: codes of a speech tokenizer, embeddings of an audio encoder.

N samples of an example, D channels.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ...constants import CODES_PER_SECOND, HOP, SAMPLE_RATE, TAIL_PADDING, exact_div, n_audio_embeddings, n_mel_frames
from ...errors import DataError
from ...models.speech_lm import StepAudioNet
from ...models.token2wav.speech_tokenizer import S3Tokenizer
from ..augment import batch_mels, clean_filters, gather_wave, log_mel_batch, warped_filters
from ..batches import augmentation, breaths
from ..corpus import Corpus
from ..token2wav.features import resident
from ..token2wav.speech_tokenizer import codes_of
from .examples import Rows

CODE_SAMPLES = exact_div(SAMPLE_RATE, CODES_PER_SECOND)
AROUND = 0.5  # seconds of silence, at most, before and behind an augmented clip
BATCH_SIZE = 48  # clips that are encoded together


def clip_codes(corpus: Corpus, net: S3Tokenizer) -> list[np.ndarray]:
    """Codes of each clip, int16, in the order of all shards.

    Raises
    ------
    DataError
        A clip that is not a whole number of codes long, as `kokoro_synth.py` makes them.
    """
    found = []
    for k, shard in enumerate(corpus.shards):
        wrong = next((clip["n"] for clip in shard if clip["n"] % CODE_SAMPLES), None)
        if wrong is not None:
            raise DataError(
                f"a clip of {wrong} samples; expected a multiple of {CODE_SAMPLES}, the samples of one code"
            )
        codes = codes_of(net, mx.array(corpus.samples(k)))
        for clip in shard:
            first = clip["start"] // CODE_SAMPLES
            found.append(codes[first : first + clip["n"] // CODE_SAMPLES])
    return found


def clip_embeddings(corpus: Corpus, net: StepAudioNet, variants: int, seed: int) -> tuple[mx.array, list[list[Rows]]]:
    """Audio embeddings of each clip as it is, and of `variants` - 1 augmented versions of it.

    Returns
    -------
    store : (rows, D) float16.
    versions : for each clip, in the order of all shards, where each version's embeddings lie in the store.
    """
    blocks: list[mx.array] = []
    versions: list[list[Rows]] = [[] for shard in corpus.shards for _ in shard]
    rows = clips = 0
    for k, shard in enumerate(corpus.shards):
        pcm = resident(corpus.samples(k))
        order = np.argsort([clip["n"] for clip in shard], kind="stable")
        for variant in range(variants):
            rng = np.random.default_rng((seed, k, variant))
            for at in range(0, len(order), BATCH_SIZE):
                some = order[at : at + BATCH_SIZE]
                embeddings, sizes = _encoded(net, pcm, [shard[i] for i in some], rng if variant else None)
                index = np.concatenate([b * embeddings.shape[1] + np.arange(n) for b, n in enumerate(sizes)])
                flat = embeddings.reshape(-1, embeddings.shape[2])
                blocks.append(flat[mx.array(index.astype(np.int32))].astype(mx.float16))
                mx.eval(blocks[-1])
                for i, n in zip(some, sizes, strict=True):
                    versions[clips + int(i)].append((rows, n))
                    rows += n
        clips += len(shard)
    store = mx.concatenate(blocks)
    mx.eval(store)
    return store, versions


def _encoded(
    net: StepAudioNet, pcm: mx.array, clips: list[dict], rng: np.random.Generator | None
) -> tuple[mx.array, list[int]]:
    """Embeddings (B, R, D) of clips, and how many are each one's own; augmented if there is an `rng`."""
    B = len(clips)
    n = np.array([clip["n"] - 2 for clip in clips])
    rate, before, behind = np.ones(B), np.zeros(B, int), np.zeros(B, int)
    if rng is not None:
        rate = np.clip(np.exp(rng.normal(0, 0.1, B)), 0.75, 1.35)
        before, behind = ((rng.uniform(0, AROUND, B) * SAMPLE_RATE).astype(int) for _ in range(2))
    stop = before + (n / rate).astype(int)
    length = stop + behind
    N = -(-int(length.max()) // SAMPLE_RATE) * SAMPLE_RATE  # of few sizes
    described = {
        "begin": before[:, None].astype(np.int32),
        "stop": stop[:, None].astype(np.int32),
        "start": np.array([[clip["start"]] for clip in clips], np.int32),
        "rate": rate[:, None].astype(np.float32),
        "length": length.astype(np.int32),
    }
    if rng is not None:
        rows = [{"segments": [(a, b, None, None)], "length": c} for a, b, c in zip(before, stop, length, strict=True)]
        described |= augmentation(rng, B) | breaths(rng, rows)
    batch = {name: mx.array(value) for name, value in described.items()}
    n_mels = net.config.audio_encoder_config.n_mels
    if rng is None:
        mel = log_mel_batch(gather_wave(pcm, batch, N), batch["length"], clean_filters(n_mels))
    else:
        mel = batch_mels(pcm, batch, N, warped_filters(n_mels))
    encoded = net.encoder(mel.transpose(0, 2, 1), (batch["length"] + TAIL_PADDING) // HOP - 2, independent=True)
    return net.adapter(encoded), [n_audio_embeddings(n_mel_frames(int(size))) for size in length]
