"""What the parsers of all commands have in common: defaults in the help, examples, exit statuses, suggestions."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from ..choices import alternatives, hint

NOTHING_DONE = "nothing could be done (a wrong option, no model, MLX missing); one line on stderr says why"
FLAGS = ("store_true", "store_const")


class Parser(argparse.ArgumentParser):
    """A parser that suggests what an unknown option may have meant."""

    def _print_message(self, message: str, file=None) -> None:
        """Where `argparse` would be silent about a help that nobody could read, the failure is the command's."""
        if message and file is not None and file is not sys.stderr:
            file.write(message)
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        """End with status 2, and with one line below the usage, whatever was typed."""
        super().error(one_line(message))

    def refuse(self, extra: Sequence[str]) -> NoReturn:
        """End with status 2 because of words that are neither options nor wanted."""
        word = next((w for w in extra if w.startswith("-")), extra[0])
        name, known = word.split("=")[0], set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", self.format_help()))
        suggestion = "; options come after the command" if name in known else hint(name, sorted(known))
        self.error(f"unrecognized arguments: {' '.join(extra)}{suggestion}")


def one_line(text: str, most: int = 600) -> str:
    """Text without line breaks, its middle left out beyond `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def whole(word: str) -> int:
    """A whole number of the command line: decimal digits and a sign, as written everywhere."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", word):
        raise argparse.ArgumentTypeError(f"expected a whole number, found {word!r}")
    return int(word)


def number(word: str) -> float:
    """A number of the command line, in decimal digits; whether infinity or NaN will do is for its reader to say."""
    try:
        if not word.isascii() or "_" in word:
            raise ValueError
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {word!r}") from None


def add_force(verb: argparse.ArgumentParser) -> None:
    """Add `--force`."""
    verb.add_argument("--force", action="store_true", help="replace files that this command would not have written")


def add_verb(
    verbs,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    words: str,
    examples: Sequence[str],
    statuses: Mapping[int, str],
) -> Parser:
    """Add a command.

    Parameters
    ----------
    verbs : what `Parser.add_subparsers` gave
    name : str
    run : callable
        Options -> exit status.
    summary : str
        One sentence without its full stop.
    words : str
        What the command wants besides options, for the line of usage.
    examples : sequence of str
        Commands, two at least.
    statuses : mapping of int to str
        What each exit status means; 2 is the same everywhere and need not be named.
    """
    verb = verbs.add_parser(
        name,
        help=summary,
        usage=" ".join(filter(None, ["%(prog)s [options]", words])),
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog(examples, statuses),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=run, parser=verb)
    return verb


def epilog(examples: Sequence[str], statuses: Mapping[int, str]) -> str:
    """What stands below the options: examples, and the meaning of each exit status."""
    lines = [f"  {code}  {meaning}" for code, meaning in sorted({2: NOTHING_DONE, **statuses}.items())]
    return "\n".join(["examples:", *(f"  {e}" for e in examples), "", "exit status:", *lines])


def add_option(group, *names: str, help: str, default=None, shown: str | None = None, **more) -> None:
    """Add an option whose help ends with its default.

    Parameters
    ----------
    group : a parser, or a group of its options
    *names, default, **more
        As `argparse`'s `add_argument` takes them.
    help : str
        A phrase.
    shown : str, optional
        The default in words, where `default` itself says nothing.
    """
    if more.get("required"):
        help = f"{help} (required)"
    elif more.get("action") not in FLAGS:
        help = f"{help} (default: {'%(default)s' if shown is None else shown})"
    group.add_argument(*names, default=default, help=help, **more)


def add_choice(group, *names: str, choices: Sequence[str], also: Sequence[str] = (), **more) -> None:
    """Add an option with a closed set of words; another word ends with a suggestion.

    also : words that are understood and not shown.
    """

    def checked(word: str) -> str:
        if word not in choices and word not in also:
            expected = f"expected {alternatives(tuple(choices))}, found {word!r}"
            raise argparse.ArgumentTypeError(expected + hint(word, choices))
        return word

    add_option(group, *names, type=checked, metavar="{" + ",".join(choices) + "}", **more)


def add_formats(verb: Parser, formats: Sequence[str], default: str | None, shown: str | None = None) -> None:
    """Add `--format`, and `--text` and `--json` as its short forms; `shown` as in `add_option`."""
    group = verb.add_argument_group("output")
    add_choice(group, "--format", choices=formats, default=default, shown=shown, help="what is printed")
    for name in ("json", "text"):
        if name in formats:
            group.add_argument(
                f"--{name}", dest="format", action="store_const", const=name, help=f"the same as --format {name}",
                default=argparse.SUPPRESS,
            )  # fmt: skip
