"""How well a model transcribes: error rates, repetition loops and speed over a table of recordings."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ..checkpoints.capabilities import Capabilities
from ..choices import Resampler
from ..constants import SAMPLE_RATE
from ..decoding.options import merge_options
from ..errors import DataError, PromptError, StepAudioError
from ..files import replaced_file
from ..text.prompts import ASR_SYSTEM, translation_system
from ..transcribe import batch_size, timed
from .against import Against, compare_evaluations
from .clip_score import Score
from .listing import listing, listing_html
from .manifest import TRANSLATE, Clip, distinct_names, one_task, read_manifest
from .normalisers import OURS, check_normalizer
from .results import read_results
from .summary import summary, totals, worst_first
from .translation import check_sacrebleu


@dataclass(frozen=True)
class Evaluation(Sequence[Score]):
    """The scores of a table of recordings, in its order. Printed, it shows each clip and the totals below."""

    scores: tuple[Score, ...]

    @overload
    def __getitem__(self, index: int) -> Score: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Score, ...]: ...
    def __getitem__(self, index: int | slice) -> Score | tuple[Score, ...]:
        return self.scores[index]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def wer(self) -> float | None:
        """Word error rate, all errors over all words; None where no words were spoken in what could be scored."""
        return self.totals()["wer"]

    @property
    def cer(self) -> float | None:
        """Character error rate, as `wer`."""
        return self.totals()["cer"]

    @property
    def mixed(self) -> float | None:
        """Mixed error rate, as `wer`: characters of scripts without blanks between words, words elsewhere."""
        return self.totals()["mixed"]

    def totals(self, known_words: set[str] | None = None) -> dict:
        """As the function `totals`."""
        return totals(self.scores, known_words)

    def worst(self) -> list[Score]:
        """The clips that could be scored, those with most errors first."""
        return worst_first(self.scores)

    def listing(self) -> str:
        """The clips with errors, the worst first, reference and hypothesis aligned, with times."""
        return listing(self.scores)

    def against(self, other: Evaluation | str | Path) -> Against:
        """Compare with another evaluation of the same recordings, or with its JSON lines: what moved, and how much.

        Raises
        ------
        DataError : as in `against.compare_evaluations` and `results.read_results`.
        """
        there = list(other) if isinstance(other, Evaluation) else read_results(other)
        return compare_evaluations(self.scores, there)

    @classmethod
    def read(cls, path: str | Path, normalizer: str | None = None) -> Evaluation:
        """An evaluation from its JSON lines; parameters and errors as in `results.read_results`."""
        return cls(tuple(read_results(path, normalizer)))

    def save(self, path: str | Path) -> Path:
        """Write the clips as JSON lines, which `read` and `--against` understand. `DataError` where nothing can be."""
        path = Path(path)
        lines = [json.dumps(score.to_dict(), ensure_ascii=False, allow_nan=False) for score in self.scores]
        try:
            with replaced_file(path) as aside:
                aside.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n", errors="backslashreplace")
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from None
        return path

    def __str__(self) -> str:
        return "\n".join([*map(str, self.scores), "", summary(self.totals())])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(summary(self.totals()))}</pre>{listing_html(self.scores)}"


def evaluate(
    model,
    clips: str | Path | Iterable[Clip],
    *,
    downmix: str = "first",
    resampler: str = Resampler.REFERENCE,
    normalizer: str = OURS,
    task: str | None = None,
    **options: Any,
) -> Evaluation:
    """Transcribe and score all recordings of a table.

    Parameters
    ----------
    model : a `StepAudio2` with a tokenizer.
    clips : path of a manifest (TSV, CSV or JSON lines with `file` and `text`), or `Clip`s.
    downmix : "first" channel or "mean", where a recording has several.
    resampler : "reference" or "soxr", for recordings that are not at 16 kHz.
    normalizer : "ours", "whisper" (needs the library whisper-normalizer) or "none".
    task : "transcribe", "translate", or None for what the manifest says; see `read_manifest`.
    options : as in `StepAudio2.transcribe`.

    Returns
    -------
    Evaluation: a sequence of `Score`s with `wer`, `cer`, `mixed` and `totals()`. A recording that cannot be used gives
    a `Score` with `error`, and the others go on.

    Raises
    ------
    DataError : the model has no tokenizer, or the manifest cannot be read or lacks a text.
    ConfigError : an unknown normaliser, or a library that is not installed.
    PromptError : the model was not trained to translate.
    """
    asked = {"downmix": downmix, "resampler": resampler, "normalizer": normalizer, "task": task}
    return Evaluation(tuple(score_clips(model, clips, **asked, **options)))


def score_clips(
    model,
    clips: str | Path | Iterable[Clip],
    *,
    downmix: str = "first",
    resampler: str = Resampler.REFERENCE,
    normalizer: str = OURS,
    task: str | None = None,
    **options: Any,
) -> Iterator[Score]:
    """Scores as they are finished, a batch of recordings at a time; parameters and errors as in `evaluate`."""
    if model.tokenizer is None:
        raise DataError("word errors need text, and the model was loaded with tokenizer=None: load it with one")
    check_normalizer(normalizer)
    clips = read_manifest(clips, task) if isinstance(clips, str | Path) else list(clips)
    if odd := [clip for clip in clips if not isinstance(clip, Clip)]:
        raise DataError(f"clips to score: expected a manifest or Clip(file, text)s, found {type(odd[0]).__name__}")
    if one_task(clips) == TRANSLATE:
        options = _translating(model, clips, options)
    named = list(zip(clips, distinct_names([clip.file for clip in clips]), strict=True))
    given = {key: options[key] for key in ("batch",) if key in options}
    batch = batch_size(merge_options(options.get("options"), "transcribe", **given))
    for i in range(0, len(clips), batch):  # no more than that: what is not handed on yet is lost with an interrupt
        reading = {"downmix": downmix, "resampler": resampler}
        yield from _score_batch(model, named[i : i + batch], reading, normalizer, options)


def require_task(capabilities: Capabilities, task: str) -> None:
    """Raise `PromptError` where a model was not trained for the task of a table."""
    try:
        capabilities.require(task)
    except PromptError as error:
        other = "; or have what is said scored, by the task transcribe (--task transcribe)" if task == TRANSLATE else ""
        raise PromptError(f"{error}{other}") from None


def _translating(model, clips: list[Clip], options: dict[str, Any]) -> dict[str, Any]:
    """The options with the prompt for a translation, unless they have one of their own."""
    check_sacrebleu()
    require_task(model.capabilities, TRANSLATE)
    targets = {clip.target for clip in clips if clip.has_speech or clip.language}
    if len(targets) > 1:
        raise DataError(f"translations into {', '.join(sorted(targets))}: score each language as a table of its own")
    own = options.get("prompt", ASR_SYSTEM)
    return options | {"prompt": translation_system(min(targets, default="zh")) if own == ASR_SYSTEM else own}


def _score_batch(
    model, named: list[tuple[Clip, str]], reading: dict[str, str], normalizer: str, options: dict[str, Any]
) -> Iterator[Score]:
    samples, failed, began = {}, {}, time.perf_counter()
    for k, (clip, _) in enumerate(named):
        try:
            samples[k] = model.pipeline.load(clip.file, **reading)
        except StepAudioError as error:
            failed[k] = str(error)
    per_sample = (time.perf_counter() - began) / max(1, sum(map(len, samples.values())))  # seconds
    transcripts = model.transcribe(list(samples.values()), sr=SAMPLE_RATE, **options) if samples else []
    done = dict(zip(samples, transcripts, strict=True))
    for k, (clip, name) in enumerate(named):
        if k in failed:
            yield Score(clip, None, error=failed[k], name=name, normalizer=normalizer)
            continue
        transcript = timed(done[k], done[k].wall_seconds + per_sample * len(samples[k]))
        yield Score.of(clip, transcript, name, normalizer)
