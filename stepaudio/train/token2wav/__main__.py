"""Command line of token2wav training: train one of its nets, take the mean of several, or join the four in one folder.

python -m stepaudio.train.token2wav tokenizer --corpus FOLDER… --out RUN --seconds 600
python -m stepaudio.train.token2wav speaker   --corpus FOLDER… --out RUN --seconds 300
python -m stepaudio.train.token2wav vocoder   --corpus FOLDER… --out RUN --seconds 600
python -m stepaudio.train.token2wav flow      --corpus FOLDER… --out RUN --seconds 900 --tokenizer RUN --speaker RUN
python -m stepaudio.train.token2wav average   --parts RUN RUN --out RUN
python -m stepaudio.train.token2wav join      --parts RUN RUN RUN RUN --out data/nano/token2wav

Each run writes its net to RUN/NAME.safetensors with its sizes in NAME.json (half precision, averaged weights), the
state that `--resume` continues from to RUN/checkpoint, and a log. `--start RUN` begins with the weights of such a net.
`average` is for runs that began with the same net, `join` makes the folder that `Synthesizer.load` reads. The speech
comes from `data/recipe/kokoro_synth.py --pitch`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from ...checkpoints.convert.convert import is_converted
from ...checkpoints.convert.manifest import MANIFEST, file_of
from ...checkpoints.layout import TOKEN2WAV
from ..optimiser import CHECKPOINT, STATE_FILE
from ..outputs import add_force, check_outputs, check_run, refusals_in_one_line
from .fit import OPPONENT, SCHEDULE, Schedule
from .run import TASKS, Options, average, join, train

JOINING = {"join": join, "average": average}


def parser() -> argparse.ArgumentParser:
    """One verb for each net, and those of `JOINING`."""
    root = argparse.ArgumentParser(
        prog="python -m stepaudio.train.token2wav",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = root.add_subparsers(dest="net", required=True)
    for name, what in (("join", "the nets of four runs as one folder"), ("average", "the mean of a net's runs")):
        together = verbs.add_parser(name, help=what)
        together.add_argument("--parts", type=Path, nargs="+", required=True)
        together.add_argument("--out", type=Path, required=True)
        if name == "join":
            what = "nets to store in eight bits"
            together.add_argument("--int8", nargs="+", choices=TOKEN2WAV, default=[], help=what)
        add_force(together)
    for name in TASKS:
        _run_options(verbs.add_parser(name, help=f"train the {name}"))
    return root


def _run_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("--corpus", type=Path, nargs="+", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--hours", type=float, default=Options.hours, help="of speech, at most")
    one.add_argument("--steps", type=int, default=Options.steps)
    one.add_argument("--seconds", type=float, default=Options.seconds)
    one.add_argument("--rate", type=float, help="highest learning rate")
    one.add_argument("--batch-size", type=int, help="examples of a batch (flow: seconds of speech)")
    one.add_argument("--codes", type=int, default=Options.codes, help="of an example (tokenizer)")
    one.add_argument("--layers", type=int, help="blocks of the encoder (tokenizer); those that --start lacks are added")
    one.add_argument("--frames", type=int, default=Options.frames, help="of an example (vocoder)")
    what = "weight of a net that learns beside the vocoder to tell made from true sound; 0 for none"
    one.add_argument("--adversary", type=float, default=Options.adversary, help=what)
    one.add_argument("--clip", type=float, default=Schedule.clip, help="of the gradient's norm")
    one.add_argument("--seed", type=int, default=Options.seed)
    one.add_argument("--log-every", type=int, default=Options.log_every)
    one.add_argument("--start", type=Path, help="a run whose weights to begin with")
    one.add_argument("--compile", action="store_true", help="compile the step as a whole; takes minutes at first")
    one.add_argument("--resume", action="store_true", help="continue from the state in --out")
    one.add_argument("--elapsed", type=float, default=Options.elapsed, help="seconds of the schedule already spent")
    one.add_argument("--tokenizer", type=Path, help="flow: the run whose codes it learns")
    one.add_argument("--speaker", type=Path, help="flow: the run whose speaker vectors it learns")
    add_force(one)


def _is_a_net(path: Path) -> bool:
    """Whether a file was written by a run, a join or a conversion; sizes are, if the weights beside them are."""
    return is_converted(path if path.name == MANIFEST else path.with_suffix(".safetensors"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the verb that the command line names."""
    root = parser()
    chosen = vars(root.parse_args(arguments))
    net = chosen.pop("net")
    if net in JOINING:
        with refusals_in_one_line("stepaudio.train.token2wav"):
            written = [chosen["out"] / name for c in TOKEN2WAV for name in (file_of(c), f"{c}.json")]
            check_outputs([*written, chosen["out"] / MANIFEST], chosen["parts"], chosen.pop("force"), _is_a_net)
            JOINING[net](chosen.pop("parts"), **chosen)
        return
    if net == "flow" and (chosen["tokenizer"] is None or chosen["speaker"] is None):
        root.error("flow: needs --tokenizer and --speaker, the runs whose codes and speaker vectors it learns")
    if chosen["adversary"] and (net != "vocoder" or not 0 < chosen["adversary"] < math.inf):
        given = f"--adversary {chosen['adversary']:g} for the {net}"
        root.error(f"{given}: expected a weight above 0, and the vocoder; leave it out for none")
    with refusals_in_one_line("stepaudio.train.token2wav"):
        force, component = chosen.pop("force"), TASKS[net][0]
        written = [file_of(component), f"{component}.json", SCHEDULE, f"{CHECKPOINT}/{STATE_FILE}"]
        written += [f"{OPPONENT}/{STATE_FILE}"] * (chosen["adversary"] > 0)
        inputs = [*chosen["corpus"], *(chosen[name] for name in ("start", "tokenizer", "speaker"))]
        check_run(chosen["out"], written, inputs, force)
        train(net, Options(**chosen))


if __name__ == "__main__":
    main()
