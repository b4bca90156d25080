"""Scores made by hand: a reference and a hypothesis, no sound and no model."""

import json
from pathlib import Path

from stepaudio.evaluation.clip_score import Score
from stepaudio.evaluation.manifest import Clip
from stepaudio.evaluation.scores import Evaluation
from stepaudio.transcript import Segment, Transcript


def score(name, said, heard, loops=0, seconds=10.0, normalizer="ours", **clip):
    """One score; `heard` None for a recording that could not be used."""
    clip = Clip(Path(name), said, **clip)
    if heard is None:
        return Score(clip, None, error="no sound", name=name, normalizer=normalizer)
    segments = (
        Segment(0.0, seconds, heard, (), "eos", 0.0),
        *[Segment(seconds, seconds, "", (), "loop", 0.0, {})] * loops,
    )
    return Score.of(clip, Transcript(heard, segments, seconds, seconds / 10), name, normalizer)


def evaluation(*rows, **more):
    return Evaluation(tuple(score(*row, **more) for row in rows))


def lines(path, *objects):
    """A file of JSON lines; what is no dict is written as it is."""
    text = "".join(f"{o if isinstance(o, str) else json.dumps(o, ensure_ascii=False)}\n" for o in objects)
    path.write_text(text, encoding="utf-8")
    return path
