"""Find the attention heads of a model that follow the speech, or score the ones that are stored.

    python alignment_heads.py choose MODEL CLIPS --write
    python alignment_heads.py score MODEL CLIPS

CLIPS is a folder with `words.tsv` as `timed_clips.py` writes it. `choose` ranks every head by the mean error of the
starts that it gives alone, tries the best 1 to 6 together, and with --write puts the best set into the model's folder;
score it on other clips than those. `score` prints the median and the 90th percentile of the absolute error of starts
and ends, with 95 % intervals from clips drawn again, and the same with the positions of the audio shuffled. Only words
that were transcribed as they were said count.
"""

import argparse
import csv
import difflib
import itertools
import json
import pathlib

import numpy as np

import stepaudio
from stepaudio.audio.load import load_audio
from stepaudio.checkpoints.alignment_heads import FILE, AlignmentHeads, weights_of
from stepaudio.constants import SAMPLE_RATE
from stepaudio.decoding.word_times import timed_words
from stepaudio.model import StepAudio2
from stepaudio.text.prompts import ASR_SYSTEM

WIDTHS, MOST = (1, 3, 5), 6


class Clip:
    """A transcribed clip with the attention of all heads and the words that are known."""

    def __init__(self, model, path, known):
        engine, samples = model.engine, load_audio(path)
        request = engine.transcription_request(engine.encode_audio([engine.log_mel(samples)])[0], ASR_SYSTEM)
        self.run = engine.run([request], stepaudio.DecodingOptions())[0]
        self.attention, self.seconds = engine.audio_attention(request, self.run.tokens), len(samples) / SAMPLE_RATE
        self.known, self.tokenizer = known, engine.tokenizer

    def errors(self, heads, width, rng=None):
        """(n, 2): start and end, found - known, of the words that were transcribed as they were said."""
        attention = np.stack([self.attention[layer][head] for layer, head in heads])
        if rng is not None:
            attention = attention[:, :, rng.permutation(attention.shape[2])]
        found = timed_words(self.run.tokens, self.run.logprobs, attention, self.tokenizer, width, self.seconds)
        texts = [word.text for word in found], [text for text, _, _ in self.known]
        same = difflib.SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
        pairs = [(found[b.a + k], self.known[b.b + k]) for b in same for k in range(b.size)]
        return np.array([(w.start - start, w.end - end) for w, (_, start, end) in pairs]).reshape(-1, 2)


def read_clips(model, folder):
    """The clips of a folder, transcribed."""
    with open(folder / "words.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    grouped = itertools.groupby(rows, lambda row: row["clip"])
    known = {name: [(r["word"], float(r["start"]), float(r["end"])) for r in words] for name, words in grouped}
    return [Clip(model, folder / name, words) for name, words in known.items()]


def choose(model, clips, count):
    """The heads and the filter width of the least mean error of starts."""
    config = model.config.text_config

    def error(heads, width):
        return float(np.abs(np.concatenate([clip.errors(heads, width) for clip in clips])[:, 0]).mean())

    every = itertools.product(range(config.num_hidden_layers), range(config.num_attention_heads))
    ranked = sorted(every, key=lambda head: error([head], 3))
    tried = {(n, width): error(ranked[:n], width) for n in range(1, MOST + 1) for width in WIDTHS}
    n, width = min(tried, key=lambda key: tried[key])
    made = (
        f"data/recipe/alignment_heads.py choose, {len(clips)} clips, {count} words; mean error {tried[n, width]:.3f} s"
    )
    return {"heads": ranked[:n], "filter_width": width, "made": made}


def score(clips, chosen: AlignmentHeads, seed=0, draws=2000):
    """Print the errors of starts and ends, and those of the control."""
    rng = np.random.default_rng(seed)
    for name, shuffle in (("found", None), ("positions shuffled", rng)):
        errors = [np.abs(clip.errors(chosen.heads, chosen.filter_width, shuffle)) for clip in clips]
        picks = rng.integers(len(clips), size=(draws, len(clips)))
        for column, what in enumerate(("start", "end")):
            for share, word in ((0.5, "median"), (0.9, "90th percentile")):
                drawn = [np.quantile(np.concatenate([errors[k] for k in pick])[:, column], share) for pick in picks]
                low, high = np.quantile(drawn, (0.025, 0.975))
                value = np.quantile(np.concatenate(errors)[:, column], share)
                print(f"{name}: {what}, {word} {value:.3f} s [{low:.3f}, {high:.3f}]")


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("what", choices=("choose", "score"))
    ap.add_argument("model", type=pathlib.Path)
    ap.add_argument("clips", type=pathlib.Path)
    ap.add_argument("--write", action="store_true", help="put the heads into the model's folder")
    args = ap.parse_args()
    model = StepAudio2.load(args.model)
    clips = read_clips(model, args.clips)
    count = sum(len(clip.errors([(0, 0)], 1)) for clip in clips)
    print(
        f"{len(clips)} clips, {sum(len(c.known) for c in clips)} words, {count} of them transcribed as they were said"
    )
    if args.what == "score":
        score(clips, model.engine.require_alignment())
        return
    chosen = choose(model, clips, count) | {"weights": weights_of(args.model)}
    found = json.dumps(chosen, indent=2) + "\n"
    print(found, end="")
    if args.write:
        (args.model / FILE).write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
