"""Run a grid: every trial once, each row on disk as soon as it is finished, resumable, shared among ranks.

Killed and started again with the same grid and store, it goes on where it stopped. Under `mlx.launch` each rank
takes every size-th trial and appends to a file of its own; the table joins them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from ..constants import SAMPLE_RATE, n_audio_embeddings, n_mel_frames
from ..decoding.generate import Run
from ..decoding.options import merge_options
from ..errors import AudioError, ConfigError, DataError, DecodeError
from ..evaluation.manifest import Clip
from ..evaluation.repetition import loop_period_onset, seq_rep_4
from ..evaluation.word_errors import count_char_errors, count_errors
from ..interp.edits import Edits
from ..interp.running import run_with_edits
from ..model import StepAudio2
from ..text.prompts import asr_turns
from ..transcribe import transcribe_recordings
from ..transcript import Segment, Transcript
from .faults import BITS, FAULTS, LOST, MELS, faulty, unknown_faults
from .grid import NO_FAULT, Grid, Setting, Trial
from .inputs import Models, SharedInputs, WithFault, check_names, donor_faults
from .provenance import file_hash, json_hash, provenance
from .store import Store, rank_file, read_store, store_files
from .table import SHARED, Table

EDITED_TOGETHER = 16  # recordings whose edits take from runs of their own, which stay in memory meanwhile
TOGETHER = 64  # recordings that are transcribed in one call, and lost with it if the process is killed
RunOne = Callable[..., dict]


def run_sweep(
    grid: Grid,
    store: str | Path,
    *,
    run_one: RunOne | None = None,
    load: Callable[[Grid], StepAudio2] | None = None,
    with_fault: WithFault = faulty,
    progress: bool = True,
) -> Table:
    """Run what the store does not hold yet, and return the table of the whole grid.

    Parameters
    ----------
    grid : what to run. store : a .jsonl file, made if need be; other grids of the same model may share it.
    run_one : (model, clip, setting, seed) -> columns of `table.COLUMNS` that it measured; of a run with edits it gets
        these behind them; by default what `transcribe_one` gives, many clips at a time.
    load : makes the model from the grid, called only if something is left to run; by default `StepAudio2.load`.
    with_fault : (model, name) -> the model with that fault, for the names in `grid.faults` other than "none"; by
        default `faults.faulty`, which also takes several joined by "+".
    progress : show a bar (rank 0 only).

    Returns
    -------
    Table with one row per trial. A recording that cannot be used gives a row with `error`.

    Raises
    ------
    ConfigError : no such fault, or an edit that the model or one of the recordings has no place for; nothing has run
        then.
    DataError : a recording is missing, or the store is being written to, is broken, or holds a row for the same
        clip, setting name, seed, fault and edits that was made under other conditions.
    """
    if with_fault is faulty:
        _check_faults((*grid.faults, *donor_faults(grid)))
    check_names(grid)
    group = mx.distributed.init()
    shared = provenance(grid.model, grid.dtype, grid.lora)
    fixed = {run_id(trial, shared): trial for trial in grid.trials()}
    with Store(rank_file(store, group.rank(), group.size())) as out:
        done = _finished(store, fixed)
        mine = list(fixed.items())[group.rank() :: group.size()]
        todo = [(run, trial) for run, trial in mine if run not in done]
        models = Models(grid, load or _load, with_fault)
        if not run_one:
            models.check_places([trial for _, trial in todo if trial.edits])
        hidden = True if not progress or group.rank() > 0 else None  # None: tqdm looks for a terminal
        bar = tqdm(total=len(mine), initial=len(mine) - len(todo), unit="run", disable=hidden)
        with bar:
            for alike in _alike(todo, 1 if run_one else TOGETHER):
                rows = _run(alike[0][1], models, run_one) if run_one else _run_together([t for _, t in alike], models)
                for (run, trial), row in zip(alike, rows, strict=True):
                    out.append({**row, "run": run, **_identity(trial), **shared})
                    bar.update()
    _wait_for_all(group)
    return table_of(grid, store, shared)


def is_first_rank() -> bool:
    """Whether this process is the one to print: rank 0 under `mlx.launch`, or the only one there is."""
    return mx.distributed.init().rank() == 0


def table_of(grid: Grid, store: str | Path, shared: dict | None = None) -> Table:
    """The rows of this grid that a store holds; all of them, or a part if its sweep is not finished."""
    shared = shared or provenance(grid.model, grid.dtype, grid.lora)
    wanted = {run_id(trial, shared) for trial in grid.trials()}
    return Table.of(row for row in read_store(store).rows if row["run"] in wanted)


def run_id(trial: Trial, shared: dict) -> str:
    """16 hex digits that change with all that may change the outcome: recording, text, setting, seed, model, ..."""
    return json_hash([_identity(trial), shared])[:16]


def _identity(trial: Trial) -> dict:
    said = {
        "clip": trial.clip_name,
        "clip_hash": file_hash(trial.clip.file),
        "expected": trial.clip.text,
        "setting": trial.setting_name,
        "setting_json": trial.setting.to_dict(),
        "seed": trial.seed,
        "defect": trial.fault,
    }
    if trial.edits:  # runs without edits keep the name that they had before there were any
        said |= {"edits": trial.edits_name, "edits_json": trial.edits.to_list()}
    return said


def _finished(store: str | Path, wanted: dict[str, Trial]) -> set[str]:
    """Runs the store holds. Refuses rows that bear the name of a wanted trial but were made otherwise."""
    if not store_files(store):
        return set()
    run_of = {trial.key: run for run, trial in wanted.items()}
    rows = read_store(store).rows
    for row in rows:
        run = run_of.get((row["clip"], row["setting"], row["seed"], row["defect"], row["edits"]))
        if run not in (None, row["run"]):
            _refuse(store, row, wanted[run])
    return {row["run"] for row in rows}


def _refuse(store: str | Path, row: dict, trial: Trial) -> None:
    now = _identity(trial)
    differs = [name for name, value in now.items() if row[name] != value] or [f"one of {', '.join(SHARED)}"]
    raise DataError(
        f"{store}: holds clip {row['clip']!r}, setting {row['setting']!r}, seed {row['seed']}, fault "
        f"{row['defect']!r}, edits {row['edits']!r} from another sweep (different: {', '.join(differs)}); a table must "
        "not mix them: name another store"
    )


def _check_faults(faults: Sequence[str]) -> None:
    """A misspelt name must be noticed before the first run, not at its turn."""
    names = [name for fault in faults if fault != NO_FAULT for name in fault.split("+")]
    unknown = unknown_faults(names)
    if unknown:
        raise ConfigError(
            f"no fault is called {unknown[0]!r}; expected {NO_FAULT} or names joined by +, of: "
            f"{', '.join((*FAULTS, *MELS))}, {LOST}PREFIX, {BITS}PATTERN=BITS"
        )


def _alike(todo: Sequence[tuple[str, Trial]], most: int) -> Iterator[list[tuple[str, Trial]]]:
    """At most so many runs at a time, in the order of the first of each kind.

    They differ in their clip alone. Where edits take from other runs, few clips get all their edits before the next
    ones, so that these runs are made once.
    """
    kinds: dict[tuple, list] = defaultdict(list)
    clips: dict[str, int] = {}
    for run, trial in todo:
        few = clips.setdefault(trial.clip_name, len(clips)) // EDITED_TOGETHER if trial.edits.donors else None
        kinds[trial.fault, trial.setting_name, trial.seed, few, trial.edits_name].append((run, trial))
    for kind in kinds.values():
        yield from (kind[i : i + most] for i in range(0, len(kind), most))


def _load(grid: Grid) -> StepAudio2:
    return StepAudio2.load(grid.model, dtype=getattr(mx, grid.dtype) if grid.dtype else None, lora=grid.lora)


def _run(trial: Trial, models: Models, run_one: RunOne) -> list[dict]:
    model, edits, hashes = models.of(trial.fault), [], {}
    began = time.perf_counter()
    try:
        if trial.edits:
            edits = _edits_of([trial], models)
            hashes = {"edits_hash": edits[0].digest}
        row = run_one(model, trial.clip, trial.setting, trial.seed, *edits)
    except (AudioError, DecodeError) as error:  # of this recording, setting or donor: the others can go on
        row = {"error": str(error)}
    return [{"wall_seconds": round(time.perf_counter() - began, 4)} | hashes | row]


def _run_together(trials: Sequence[Trial], models: Models) -> list[dict]:
    """Rows of trials that differ in their clip alone; where one cannot be used, each is run by itself."""
    first = trials[0]
    model, inputs = models.of(first.fault), cast(SharedInputs, models.inputs)

    def alone(model: StepAudio2, clip: Clip, setting: Setting, seed: int, edits: Edits | None = None) -> dict:
        return transcribe_together(model, inputs, [clip], setting, seed, [edits] if edits else None)[0]

    edits = None
    try:
        if first.edits:
            edits = _edits_of(trials, models)
        rows = transcribe_together(model, inputs, [t.clip for t in trials], first.setting, first.seed, edits)
    except (AudioError, DecodeError):
        return [row for trial in trials for row in _run(trial, models, alone)]
    return [{"edits_hash": one.digest} | row for one, row in zip(edits, rows, strict=True)] if edits else rows


def _edits_of(trials: Sequence[Trial], models: Models) -> list[Edits]:
    """The edits of each run; `DecodeError` where one cannot be made of the run that it takes from."""
    try:
        return [models.edits_of(trial) for trial in trials]
    except ConfigError as error:
        raise DecodeError(str(error)) from None


def _wait_for_all(group: mx.distributed.Group) -> None:
    """Return when every rank has written its last row."""
    if group.size() > 1:
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))


# ---------------------------------------------------------------- what is measured in a run


def transcribe_together(
    model: StepAudio2,
    inputs: SharedInputs,
    clips: Sequence[Clip],
    setting: Setting,
    seed: int,
    edits: Sequence[Edits] | None = None,
) -> list[dict]:
    """The rows of several clips under one setting and seed, decoded in batches: the tokens are those of each alone.

    `edits` are those of each clip, which is then one segment.
    """
    options = merge_options(setting.options, seed=seed)
    samples = [inputs.samples(clip.file, setting) for clip in clips]

    left = list(zip(samples, edits, strict=True)) if edits else []

    def edited(segments: list[np.ndarray]) -> list[Run]:
        mine = [left.pop(next(i for i, (x, _) in enumerate(left) if np.array_equal(x, s)))[1] for s in segments]
        same = mine[0] if len(set(mine)) == 1 else mine
        audio = None if setting.sampling.contrasts else inputs.encode(segments)
        return run_with_edits(model, segments, same, prompt=setting.prompt, audio=audio, options=options)

    transcripts = transcribe_recordings(
        model.engine,
        samples,
        options,
        setting.prompt,
        progress=False,
        vad=setting.vad,
        encode=inputs.encode,
        run=edited if edits else None,
    )
    return [
        {"wall_seconds": round(t.wall_seconds, 4), **measured(t, clip.text), "kv_bytes": kv_bytes(model, t, setting)}
        for t, clip in zip(transcripts, clips, strict=True)
    ]


def transcribe_one(model: StepAudio2, clip: Clip, setting: Setting, seed: int, edits: Edits | None = None) -> dict:
    """Transcribe a clip under a setting with this seed, and with edits; the measured columns of a row."""
    if edits:
        return transcribe_together(model, SharedInputs(model), [clip], setting, seed, [edits])[0]
    transcript = model.transcribe(
        clip.file,
        options=setting.options,
        seed=seed,
        prompt=setting.prompt,
        downmix=setting.downmix,
        vad=setting.vad,
        resampler=setting.resampler,
        progress=False,
    )
    return measured(transcript, clip.text) | {"kv_bytes": kv_bytes(model, transcript, setting)}


def measured(transcript: Transcript, expected: str) -> dict:
    """Columns that follow from a transcript. Loops are detected here again: `on_loop` must not decide them."""
    text = transcript.text or ""
    (words, errors), (chars, wrong) = count_errors(expected, text), count_char_errors(expected, text)
    runs = [list(s.tokens) for s in transcript.segments]
    loops = [found for tokens in runs if (found := loop_period_onset(tokens))[0] is not None]
    period, onset = loops[0] if loops else (None, None)
    return {
        "text": text,
        "words": words,
        "errors": errors,
        "chars": chars,
        "char_errors": wrong,
        "ids": runs,
        "stops": [s.stop for s in transcript.segments],
        "n_ids": sum(map(len, runs)),
        "loops": len(loops),
        "period": period,
        "onset": onset,
        "rep_4": _or_none(seq_rep_4(runs)),
        "mean_logprob": _mean_logprob(transcript.segments),
        "audio_seconds": transcript.audio_seconds,
    }


def _mean_logprob(segments: tuple[Segment, ...]) -> float | None:
    """Natural log, over all generated tokens, the end of the turn among them."""
    n = np.array([_n_given(s) for s in segments])
    return float(n @ [s.mean_logprob for s in segments] / n.sum()) if n.sum() else None


def _n_given(segment: Segment) -> int:
    return len(segment.tokens) + (segment.stop == "eos")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def kv_bytes(model: StepAudio2, transcript: Transcript, setting: Setting) -> int:
    """Bytes of keys and values held at the end of the longest segment: prompt and answer, up to the cache's limit.

    Counted from sizes, in the dtype of the weights: what the positions cost, without the slack of a growing buffer;
    twice where a second run is contrasted with.
    """
    limit = setting.cache.limit(model.config.max_cache_len)
    most = 0
    for s in transcript.segments:
        if s.stop != "silence":
            rows = n_audio_embeddings(n_mel_frames(round((s.end - s.start) * SAMPLE_RATE)))
            prompt = model.pipeline.build_prompt(asr_turns(setting.prompt), model.tokenizer, [[rows]])
            most = max(most, len(prompt.tokens) + _n_given(s))
    held, contrast = most if limit is None else min(most, limit), setting.sampling.contrasts
    held *= 1 if contrast is None or contrast.early else 2
    return held * model.config.text_config.kv_bytes_per_position(model.net.dtype.size, setting.cache.bits)
