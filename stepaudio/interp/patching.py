"""What of a run makes the difference: patch it from another run, and measure what is left.

A measure is made along given tokens (logit difference, probability: one pass, no cache) or of what the edited model
generates (repetition loop, word error rate). Method of patching: Meng et al., "Locating and Editing Factual
Associations in GPT" (2022); Heimersheim and Nanda, "How to use and interpret activation patching" (2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Unpack

import mlx.core as mx
import numpy as np

from ..choices import Measure, is_count, is_number, shown
from ..constants import EMBEDDINGS_PER_SECOND, FRAMES_PER_SECOND, SAMPLE_RATE
from ..decoding.loop_detector import find_loop
from ..decoding.options import DecodingKeywords, DecodingOptions, merge_options
from ..errors import ConfigError
from ..evaluation.repetition import log_softmax
from ..evaluation.word_errors import wer
from ..model import StepAudio2
from ..pipeline import Layout
from ..text.messages import is_conversation
from ..text.prompts import ASR_SYSTEM
from .donor import Activations
from .edits import Edits, patch
from .names import activation_names, matching
from .placebos import placebo
from .places import Place
from .recorder import BYTE_LIMIT, Recorder
from .running import by_position, edit_tap, forced_logits, generated, lay_out

FORCED = (Measure.LOGIT_DIFFERENCE, Measure.PROBABILITY)  # measured along given tokens
NONE = Edits()
PLACEBO_RANGE = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Patched:
    """What patches from a clean run into a corrupt one have restored.

    Attributes
    ----------
    where : (n,) what was patched, one text each.
    measure : of the three numbers that follow.
    clean, corrupt : of the runs without patches.
    values : (n,) of the corrupt run with each patch.
    placebos : (n, k) the same with activations of the clean run from other positions, drawn at random.
    """

    where: tuple[str, ...]
    measure: Measure
    clean: float
    corrupt: float
    values: np.ndarray
    placebos: np.ndarray

    @property
    def recovered(self) -> np.ndarray:
        """(n,) share of the difference that each patch restores: 0 nothing, 1 all; NaN where there is none."""
        return self._share(self.values)

    @property
    def placebo_range(self) -> np.ndarray:
        """(n, 2) of the recovered share under placebos, 2.5 and 97.5 per cent; NaN without placebos."""
        if not self.placebos.size:
            return np.full((len(self.values), 2), np.nan)
        return np.percentile(self._share(self.placebos), PLACEBO_RANGE, axis=1).T

    def _share(self, values: np.ndarray) -> np.ndarray:
        whole = self.clean - self.corrupt
        return (values - self.corrupt) / whole if whole else np.full(values.shape, np.nan)

    def table(self) -> str:
        """One line a patch: what it restores, and what placebos do."""
        width = max(5, *(len(w) for w in self.where))
        rows = [f"{'patch':{width}} {self.measure:>16} {'recovered':>9} {'placebos':>17}"]
        for where, value, share, (low, high) in zip(
            self.where, self.values, self.recovered, self.placebo_range, strict=True
        ):
            spread = "" if np.isnan(low) else f"{low:+8.1%} {high:+8.1%}"
            rows.append(f"{where:{width}} {value:16.4f} {share:9.1%} {spread:>17}")
        return "\n".join([*rows, f"clean {self.clean:.4f}, corrupt {self.corrupt:.4f}"])


@dataclass(frozen=True)
class RunPair:
    """Two runs that differ, ready to be patched: `run_pair` makes it.

    Attributes
    ----------
    model : whose nets run.
    layout, embeddings : the corrupt prompt; (n, D) before any fault.
    fault : edits that corrupt the run, if the prompt alone does not.
    donor : activations of the clean run along `tokens`.
    tokens : the clean answer, along which both are led.
    step : of `tokens`, where the corrupt run would choose another; if nowhere, where its token loses most.
    instead : what the corrupt run finds best there, the clean token left out.
    clean_logits : (tokens, V).
    options : of decoding, for measures of what is generated.
    """

    model: StepAudio2
    layout: Layout
    embeddings: mx.array = field(repr=False)
    fault: Edits
    donor: Activations
    tokens: tuple[int, ...]
    step: int
    instead: int
    clean_logits: np.ndarray = field(repr=False)
    options: DecodingOptions

    def clean(self, measure: Measure) -> float:
        """The measure of the clean run."""
        return self._along(measure, self.clean_logits) if measure in FORCED else self._of_answer(measure, self.tokens)

    def corrupt(self, measure: Measure, edits: Edits = NONE) -> float:
        """The measure of the corrupt run, with edits behind its fault."""
        both = self.fault + edits
        if measure in FORCED:
            return self._along(
                measure, forced_logits(self.model, self.layout, self.tokens, both, embeddings=self.embeddings)
            )
        return self._of_answer(measure, generated(self.model, self.layout, self.options, both))

    def _along(self, measure: Measure, logits: np.ndarray) -> float:
        at, clean = logits[self.step], self.tokens[self.step]
        if measure == Measure.LOGIT_DIFFERENCE:
            return float(at[clean] - at[self.instead])
        return float(np.exp(log_softmax(at)[clean]))

    def _of_answer(self, measure: Measure, tokens: Sequence[int]) -> float:
        if measure == Measure.LOOP:
            return float(find_loop(tokens) is not None)
        decode = self.model.engine.decode
        return wer(decode(self.tokens) or "", decode(tokens) or "")


def run_pair(
    model: StepAudio2,
    clean,
    corrupt=None,
    names: str | Sequence[str] = ("*",),
    *,
    fault: Edits = NONE,
    corrupt_model: StepAudio2 | None = None,
    byte_limit: int = BYTE_LIMIT,
    prompt: str = ASR_SYSTEM,
    sample_rate: float | None = None,
    options: DecodingOptions | None = None,
    **changes: Unpack[DecodingKeywords],
) -> RunPair:
    """Run a clean source, keep its activations, and see where a corrupt run parts from it.

    Parameters
    ----------
    model : StepAudio2
    clean, corrupt : recordings, or lists of messages, whose prompts have as many positions; by default the same.
    names : activations of the clean run to keep, as patterns over `names.GLOSSARY`.
    fault : edits that corrupt the run.
    corrupt_model : model with the same nets and another pipeline, for example a wrong mel, which reads `corrupt`.
    byte_limit : most bytes kept.
    prompt, sample_rate, options, **changes : as in `record`.

    Raises
    ------
    ConfigError
        Nothing differs between the two, or the prompts differ in length.
    """
    if corrupt is None and not fault and corrupt_model is None:
        raise ConfigError("run_pair: nothing is corrupt; expected a corrupt source, a fault, or a corrupt model")
    decoding = merge_options(options, "chat" if is_conversation(clean) else "transcribe", **changes)
    sound = lay_out(model, clean, prompt, sample_rate)
    layout = lay_out(corrupt_model or model, clean if corrupt is None else corrupt, prompt, sample_rate)
    n, found = len(sound.prompt.tokens), len(layout.prompt.tokens)
    if n != found:
        raise ConfigError(
            f"run_pair: the prompts have {n} and {found} positions, so none means the same in both: cut the recordings "
            "to the same length"
        )
    tokens = generated(model, sound, decoding)
    edit_tap(model, fault, [layout], len(tokens))  # refuses what cannot apply before the long part
    recorder = Recorder(model.config, names, byte_limit=byte_limit)
    clean_logits = forced_logits(model, sound, tokens, tap=recorder)
    frames = tuple(mel.shape[1] for mel in sound.mels)
    donor = by_position(recorder, n, n + len(tokens) - 1, frames)
    embeddings = model.engine.encode_layout(layout).embeddings
    logits = forced_logits(model, layout, tokens, fault, embeddings=embeddings)
    parted = np.flatnonzero(logits.argmax(axis=1) != np.array(tokens))
    rows = np.arange(len(tokens))
    lost = log_softmax(clean_logits)[rows, list(tokens)] - log_softmax(logits)[rows, list(tokens)]
    step = int(parted[0] if len(parted) else lost.argmax())
    others = logits[step].copy()
    others[tokens[step]] = -np.inf
    return RunPair(model, layout, embeddings, fault, donor, tokens, step, int(others.argmax()), clean_logits, decoding)


def patch_between(
    model: StepAudio2,
    clean,
    corrupt,
    where: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    measure: Measure | str = Measure.LOGIT_DIFFERENCE,
    *,
    placebos: int = 0,
    **how: Any,
) -> Patched:
    """Patch a corrupt run with activations of a clean one, place by place, and measure what each restores.

    Parameters
    ----------
    model, clean, corrupt : as in `run_pair`.
    where : places, each with the arguments of `patch`: {"names": "decoder.3.z", "heads": 1, "seconds": (0.4, 0.8)}.
    measure : {"logit_difference", "probability", "loop", "wer"}
        Of the clean token against what the corrupt run would choose in its stead, in logits; of the clean token, 0 to
        1; 1 if what is generated ends in a repetition loop, else 0; word error rate against the clean answer.
    placebos : int >= 0
        Patches at each place with activations of the clean run from other positions, as `placebos.placebo` draws them.
    **how : as in `run_pair`.

    Returns
    -------
    Patched

    Raises
    ------
    ConfigError : as `run_pair`, a place that the runs do not have, or no other position for placebos; before any patch.
    """
    wanted, places = Measure.of(measure, "measure"), [where] if isinstance(where, Mapping) else list(where)
    allowed = {"names", "heads", "keys", *(f.name for f in fields(Place))}
    if not places or not all(isinstance(p, Mapping) and "names" in p and set(p) <= allowed for p in places):
        raise ConfigError(
            f"patch_between: expected places, at least one, with names each and any of {', '.join(sorted(allowed))}"
        )
    if not is_count(placebos):
        raise ConfigError(f"placebos: expected a whole number from 0, found {shown(placebos)}")
    patterns = [n for p in places for n in ([p["names"]] if isinstance(p["names"], str) else p["names"])]
    pair = run_pair(model, clean, corrupt, sorted(set(patterns)), **how)
    if np.isnan(pair.clean(wanted)):
        raise ConfigError("patch_between: the clean answer has no words, so there is no word error rate against it")
    edits = [patch(donor=pair.donor, **place) for place in places]
    most = len(pair.tokens) if wanted in FORCED else pair.options.max_tokens
    taps = [edit_tap(model, one, [pair.layout], most) for one in edits]
    known = (*pair.layout.prompt.tokens, *pair.tokens)
    draws = [partial(placebo, place, pair.donor, tap, known) for place, tap in zip(places, taps, strict=True)]
    for draw in draws if placebos else ():
        draw(0)  # whether there is anything to draw does not depend on the seed
    values = np.array([pair.corrupt(wanted, one) for one in edits])
    blind = np.array([[pair.corrupt(wanted, draw(seed)) for seed in range(placebos)] for draw in draws])
    texts = tuple(str(one).split(" ", 1)[1].rsplit("; from", 1)[0] for one in edits)
    ends = pair.clean(wanted), pair.corrupt(wanted)
    return Patched(texts, wanted, *ends, values, blind.reshape(len(places), placebos))


@dataclass(frozen=True)
class TraceMap:
    """What patching each layer at each stretch of audio restores.

    Attributes
    ----------
    names : (layers,) activations.
    edges : (stretches + 1,) seconds.
    patched : the patches, layer by layer.
    """

    names: tuple[str, ...]
    edges: np.ndarray
    patched: Patched

    @property
    def recovered(self) -> np.ndarray:
        """(layers, stretches) shares of the difference, 0 nothing, 1 all."""
        return self.patched.recovered.reshape(len(self.names), -1)


def causal_trace(
    model: StepAudio2,
    clean,
    corrupt,
    names: str | Sequence[str] = "decoder.*.resid_post",
    measure: Measure | str = Measure.LOGIT_DIFFERENCE,
    *,
    seconds: float = 0.4,
    sample_rate: float | None = None,
    **how: Any,
) -> TraceMap:
    """Patch every layer at every stretch of the first recording: where in depth and time the difference passes.

    Parameters
    ----------
    model, clean, corrupt, measure, **how : as in `patch_between`.
    names : patterns; each activation is one layer of the map, in the order in which they are computed.
    seconds : length of a stretch, at least 0.08 (one audio embedding).
    """
    if not is_number(seconds) or not seconds >= 1 / EMBEDDINGS_PER_SECOND:
        raise ConfigError(f"seconds: expected at least {1 / EMBEDDINGS_PER_SECOND:g}, found {shown(seconds)}")
    patterns = (names,) if isinstance(names, str) else tuple(names)
    meant = frozenset().union(*matching(patterns, model.config).values())
    layers = tuple(n for n in activation_names(model.config) if n in meant)
    layout = lay_out(model, clean, how.get("prompt", ASR_SYSTEM), sample_rate)
    parts = [(slot, mel) for slot, mel in zip(layout.prompt.slots, layout.mels, strict=True) if slot.clip == 0]
    if not parts:
        raise ConfigError("causal_trace: expected a prompt with a recording, found none")
    slot, mel = parts[-1]
    end = slot.piece * model.pipeline.chunk_samples / SAMPLE_RATE + mel.shape[1] / FRAMES_PER_SECOND
    length = min(end, sum(s.length for s, _ in parts) / EMBEDDINGS_PER_SECOND)  # the last may reach beyond the sound
    edges = np.append(np.arange(0, length - 1e-6, seconds), length)
    places = [{"names": name, "seconds": (float(a), float(b))} for name in layers for a, b in itertools.pairwise(edges)]
    return TraceMap(
        layers, edges, patch_between(model, clean, corrupt, places, measure, sample_rate=sample_rate, **how)
    )
