"""Golden checks of the decoder, the insertion of audio embeddings, logit rules and whole greedy runs."""

from __future__ import annotations

import re

import mlx.core as mx
import numpy as np

from ..decoding.generate import Request, collect, generate
from ..decoding.logits import ban_repeated_ngrams, keep_min_p, keep_top_k, keep_top_p, penalise, seen_counts, warp
from ..decoding.options import RunOptions
from ..decoding.sampling import Penalties, Sampling
from ..models.kv_cache import NoCache
from ..models.speech_lm import Slot, StepAudioConfig, StepAudioNet
from .golden import under_golden_names

GREEDY = {
    "plain": Penalties(),
    "rep": Penalties(repetition=1.3, include_prompt=True),
    "ngram": Penalties(no_repeat_ngram=3, include_prompt=True),
    "both": Penalties(repetition=1.3, no_repeat_ngram=3, include_prompt=True),
}
THROUGH_THE_NET = 1e-3
GOLDEN_NAMES = {r"decoder\.(\d+)\.resid_post": r"layer\1", r"decoder\.out": "norm"}


def llm_checks(golden, _tokenizer) -> None:
    """Logits and layers, audio embeddings in the prompt, greedy tokens through our cache, and every logit rule."""
    c = golden.config
    audio = {**c["audio_encoder_config"], "adapter_hidden": c["adapter_hidden"]}
    net = StepAudioNet(StepAudioConfig.from_dict({"text_config": c["text_config"], "audio_encoder_config": audio}))
    golden.fill(net)
    _check_text(golden, net)
    for k in golden.names("in.audio", ".ids"):
        _check_audio(golden, net, k, c["token_ids"]["audio_start"])
    _check_rules(golden)
    golden.leave(
        [n for n in golden.names("out.") if n.startswith("ras.")],
        "repetition-aware sampling is CosyVoice's, Step-Audio 2 does not use it",
    )


def greedy_tokens(
    net: StepAudioNet, ids: np.ndarray, x: mx.array, n: int, penalties=GREEDY["plain"], eos=()
) -> list[int]:
    """Tokens of a greedy run of at most `n` through our own loop and cache."""
    options = RunOptions(
        Sampling(text=penalties, audio=penalties), max_tokens=n, stop_ids=frozenset(eos), on_loop="off"
    )
    return list(collect(generate(net, [Request(ids[0], x[0])], options), 1)[0].tokens)


def _check_text(golden, net: StepAudioNet) -> None:
    ids = golden["in.text.ids"]
    stages: dict[str, mx.array] = {}
    x = net.embed(ids)
    net.logits(x, NoCache(net.model.rope), stages.__setitem__)
    stages = under_golden_names(stages, GOLDEN_NAMES)
    for stage in golden.names("out.text."):
        if stage in stages:  # what is left uncompared shows up at the end
            golden.compare(f"text.{stage}", stages[stage])
    for name, penalties in GREEDY.items():
        golden.compare(f"greedy.{name}", greedy_tokens(net, ids, x, len(golden[f"out.greedy.{name}"]), penalties), 0)
    eos = int(golden["in.greedy.eos_id"][0])
    golden.compare("greedy.eos", greedy_tokens(net, ids, x, len(golden["out.greedy.plain"]), eos=[eos]), 0)


def _check_audio(golden, net: StepAudioNet, k: str, marker: int) -> None:
    ids, mels = golden[f"in.audio{k}.ids"], golden[f"in.audio{k}.mels"]
    lengths = golden[f"in.audio{k}.mel_lens"] + 2
    encoded = net.encode_audio([mel[:, :n] for mel, n in zip(mels, lengths, strict=True)], independent=False)
    starts = np.flatnonzero(ids[0] == marker) + 1  # the audio comes directly after each marker
    x = net.embed(ids, [Slot(0, int(s), len(h)) for s, h in zip(starts, encoded, strict=True)], encoded)
    rows = np.concatenate([np.arange(s, s + len(h)) for s, h in zip(starts, encoded, strict=True)])
    golden.compare(f"audio{k}.rows", rows, 0)
    golden.compare(f"audio{k}.embeds", x)
    golden.compare(f"audio{k}.logits", net.logits(x, NoCache(net.model.rope)), THROUGH_THE_NET)
    golden.compare(f"audio{k}.greedy", greedy_tokens(net, ids, x, len(golden[f"out.audio{k}.greedy"])), 0)


def _value(text: str) -> float:
    return float(text.replace("p", "."))


def _check_rules(golden) -> None:
    logits, history = mx.array(golden["in.proc.logits"]), mx.array(golden["in.proc.history"].astype(np.int32))
    tied = mx.array(golden["in.proc.tied_logits"])
    length = mx.full((history.shape[0],), history.shape[1])
    counts = seen_counts(history, logits.shape[1])
    pipeline = warp(penalise(logits, counts, 1.05), Sampling(temperature=0.7, top_k=50, top_p=0.9))
    rules = [
        (r"rep([\dp]+)", lambda v: penalise(logits, counts, _value(v))),
        (r"ngram(\d+)", lambda v: ban_repeated_ngrams(logits, history, length, int(v))),
        (r"temp([\dp]+)", lambda v: logits / _value(v)),
        (r"topk(\d+)", lambda v: keep_top_k(logits, int(v))),
        (r"tied_topk(\d+)", lambda v: keep_top_k(tied, int(v))),
        (r"topp([\dp]+)", lambda v: keep_top_p(logits, _value(v))),
        (r"minp([\dp]+)", lambda v: keep_min_p(logits, _value(v))),
        (r"freq(-?[\d.]+)_pres(-?[\d.]+)", lambda f, p: penalise(logits, counts, 1.0, float(f), float(p))),
        (r"counts", lambda: counts),
        (r"pipeline", lambda: pipeline),
        (r"pipeline_probs", lambda: mx.softmax(pipeline, axis=-1)),
    ]
    for name in golden.names("out.proc."):
        for pattern, rule in rules:
            if match := re.fullmatch(pattern, name):
                golden.compare(f"proc.{name}", rule(*match.groups()), 1e-6)
