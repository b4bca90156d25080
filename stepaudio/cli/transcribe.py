"""`stepaudio transcribe` and `evaluate`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ..errors import AudioError
from .options import decoding_from, load_model


def run_transcribe(options) -> int:
    decoding = decoding_from(options)
    model, failed = load_model(options), 0
    for name in options.files:
        try:
            found = model.transcribe(name, **decoding)
        except AudioError as error:  # this file only; anything else would befall every file
            failed += 1
            print(f"stepaudio: {error}", file=sys.stderr)
            if not options.text:
                print(json.dumps({"file": name, "error": str(error)}, ensure_ascii=False), flush=True)
            continue
        shown = (
            found.text
            if options.text and found.text is not None
            else json.dumps({"file": name, **found.to_dict()}, ensure_ascii=False)
        )
        print(shown, flush=True)
    return 1 if failed else 0


def run_evaluate(options) -> int:
    from ..evaluation.manifest import read_manifest
    from ..evaluation.scores import score_clips, totals
    from ..evaluation.word_errors import read_words
    from ..resources import default_checkpoint

    decoding, clips = decoding_from(options), read_manifest(options.manifest)
    beside = Path(options.model or default_checkpoint()) / "words.txt"
    words = options.words or (beside if beside.exists() else None)
    known = read_words(words) if words else None
    model, scores, began = load_model(options), [], time.perf_counter()
    for score in score_clips(model, clips, **decoding):
        scores.append(score)
        print(json.dumps(score.to_dict(), ensure_ascii=False), flush=True)
    last = totals(scores, known) | {"sampling": options.sampling, "wall_seconds": round(time.perf_counter() - began, 2)}
    print(json.dumps(last), flush=True)
    return 1 if last["failed"] else 0
