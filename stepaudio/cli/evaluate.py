"""`stepaudio evaluate`: scores over a table of recordings, or over the results of an earlier evaluation."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.capabilities import Capabilities
from ..checkpoints.find import checkpoint_folder, meant
from ..evaluation.manifest import TASKS
from ..evaluation.normalisers import NORMALIZERS, OURS
from .options import add_decoding, add_lora, add_model, add_recording, load_model, transcription_from
from .parser import add_choice, add_formats, add_option, add_verb
from .progress import busy, message
from .streams import print_json

if TYPE_CHECKING:
    from ..evaluation.against import Against
    from ..evaluation.clip_score import Score
    from ..evaluation.scores import Evaluation

FORMATS = ("table", "json", "text")
SHOW = ("errors", "all")


def add_evaluate_verb(verbs) -> None:
    """Add the verb to the subparsers of the command."""
    verb = add_verb(
        verbs, "evaluate", run, "error rates, loops and speed over a table of recordings, with intervals", "MANIFEST",
        ["stepaudio evaluate data/speech/manifest.tsv --show errors",
         "stepaudio evaluate my.csv --sampling greedy --json --against before.jsonl"],
        {0: "every recording was scored", 1: "a recording could not be used; the others went on"},
    )  # fmt: skip
    verb.add_argument(
        "manifest", metavar="MANIFEST",
        help="TSV or CSV with columns file and text, or JSON lines with these keys, paths beside it; or the JSON lines "
        "of an earlier evaluation, which are scored again without a model",
    )  # fmt: skip
    add_formats(verb, FORMATS, None, "table on a terminal or with --show, else json")
    add_choice(
        verb, "--show", choices=SHOW, default=None, shown="no clips",
        help="clips aligned with what was said, worst first: those with errors, or all",
    )  # fmt: skip
    verb.add_argument("--listing", dest="show", action="store_const", const="errors", help="the same as --show errors")
    add_choice(
        verb, "--normalizer", "--normaliser", choices=NORMALIZERS, default=None, shown="ours",
        help="what is made alike before errors are counted; whisper needs the extra scoring",
    )  # fmt: skip
    add_choice(verb, "--task", choices=TASKS, default=None, shown="what the table says", help="what is scored")
    add_option(
        verb, "--against", metavar="FILE", shown="none",
        help="JSON lines of another evaluation of these recordings: say what moved, clip by clip",
    )  # fmt: skip
    add_option(
        verb, "--words", metavar="FILE", shown="words.txt of the model, if there is one",
        help="one word a line: clips of these words alone are also scored apart",
    )  # fmt: skip
    verb.set_defaults(no_tokenizer=False)
    add_model(verb)
    add_lora(verb)
    add_recording(verb)
    add_decoding(verb)


def run(options: argparse.Namespace) -> int:
    """Score a table of recordings; 1 if one of them could not be used."""
    from ..evaluation.against import check_pairs
    from ..evaluation.results import are_results, read_results
    from ..evaluation.scores import Evaluation, totals

    form = options.format or ("table" if options.show or sys.stdout.isatty() else "json")
    there = None if options.against is None else read_results(options.against)
    began = time.perf_counter()
    if are_results(options.manifest):
        scores, more, named = read_results(options.manifest, options.normalizer), {}, meant()
        known = _known_words(options.words, named if isinstance(named, Path) else None)  # nothing is fetched for it
        if there is not None:
            check_pairs([s.clip for s in scores], scores[0].normalizer, there)
        for score in scores:
            _print_clip(score, form, options.show)
    else:
        scores, known, more = _decoded(options, form, there)
    last = totals(scores, known) | more | {"wall_seconds": round(time.perf_counter() - began, 2)}
    found = Evaluation(tuple(scores))
    moved = None if there is None else found.against(Evaluation(tuple(there)))
    if form == "json":
        print_json(last if moved is None else last | {"against": {"file": options.against, **moved.to_dict()}})
    else:
        _print_totals(found, last, options.show, moved)
    return 1 if last["failed"] else 0


def _decoded(options: argparse.Namespace, form: str, there: list[Score] | None):
    """The scores of a table, printed one by one as the format wants them; its known words; what else the totals say."""
    from ..evaluation.against import check_pairs
    from ..evaluation.manifest import TRANSLATE, one_task, read_manifest
    from ..evaluation.normalisers import check_normalizer
    from ..evaluation.scores import require_task, score_clips
    from ..evaluation.translation import check_sacrebleu

    keywords, clips = transcription_from(options), read_manifest(options.manifest, options.task)
    normalizer, task = check_normalizer(options.normalizer or OURS), one_task(clips)
    require_task(Capabilities.of(options.model, options.lora), task)
    if task == TRANSLATE:
        check_sacrebleu()
    if there is not None:
        check_pairs(clips, normalizer, there)
    known = _known_words(options.words, checkpoint_folder(options.model))
    model, scores = load_model(options), []
    found = score_clips(model, clips, normalizer=normalizer, progress=False, **keywords)
    while len(scores) < len(clips):
        with busy(f"scoring recording {len(scores) + 1} of {len(clips)}"):
            score = next(found)
        scores.append(score)
        _print_clip(score, form, options.show)
    return scores, known, {"sampling": options.sampling} | ({"lora": options.lora} if options.lora else {})


def _known_words(path: str | None, model: Path | None) -> set[str] | None:
    """The words of a file, else those that lie beside a model, if there are any."""
    from ..evaluation.word_errors import read_words

    beside = model and model / "words.txt"
    words = path or (beside if beside and beside.exists() else None)
    return read_words(words) if words else None


def _print_clip(score: Score, form: str, show: str | None) -> None:
    """What is printed as soon as a clip is scored; the listing waits for all, since it begins with the worst."""
    from ..evaluation.manifest import TRANSLATE

    if form == "json":
        line = score.to_dict()
        if show and score.transcript is not None and score.clip.task != TRANSLATE:
            line["alignment"] = score.alignment().to_list()
        print_json(line)
    elif form == "text" and not show:
        print(score, flush=True)
    elif score.transcript is None:
        message(f"{score.label}: {score.error}")


def _print_totals(found: Evaluation, last: dict, show: str | None, moved: Against | None) -> None:
    from ..evaluation.listing import listing
    from ..evaluation.summary import sentence, summary

    if show:
        print(f"{listing(found, everything=show == 'all')}\n")
    table, _, _ = summary(last).rpartition("\n\n")
    print(table)
    if moved is not None:
        print(f"\nagainst the other evaluation (here - there, 95 % interval)\n{moved}")
    print(f"\n{sentence(last)}", flush=True)
