"""The command `stepaudio`: thin verbs over the package.

Errors go to stderr in one line; the exit status says how it went. `--help` and `--version` need no MLX.
"""

from __future__ import annotations

import argparse
import sys
import warnings

from .. import __version__
from ..choices import alternatives, hint
from ..errors import StepAudioError
from .importing import INTERRUPTED
from .parser import NOTHING_DONE, Parser, add_formats, add_verb
from .progress import message
from .signals import Ended, ends_by_exception
from .streams import discard_output, open_streams, print_json

EPILOG = f"""examples:
  stepaudio transcribe talk.mp3 --text
  stepaudio COMMAND --help

exit status:
  0  it went well
  1  it went on, and part of it did not go well; the command's own help says which
  2  {NOTHING_DONE}
  130 interrupted (143 by SIGTERM); 141 nobody reads what is printed"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        with ends_by_exception():
            open_streams()
            try:
                return _run(sys.argv[1:] if argv is None else argv)
            finally:
                sys.stdout.flush()  # here, where a failure can still be told
    except StepAudioError as error:
        message(str(error))
        return 2
    except KeyboardInterrupt as error:
        message(str(error) or "interrupted")
        return error.status if isinstance(error, Ended) else INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return 141
    except (OSError, ImportError, MemoryError) as error:
        message(_failure(error))
        discard_output()
        return 2


def _run(argv: list[str]) -> int:
    """Read the options and run the command that they name."""
    options = parsed(argv)
    from ..backend.device import require_mlx

    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        require_mlx()
        status = options.run(options)
        if (last := getattr(options, "at_the_end", None)) is not None:
            last()
        return status


def _failure(error: OSError | ImportError | MemoryError) -> str:
    """One line for what the system refused."""
    if isinstance(error, MemoryError):
        return "out of memory; a smaller --batch or shorter recordings need less"
    if isinstance(error, ImportError):
        return f"{error.name or 'a package'} is not installed, or not whole ({error}): pip install stepaudio again"
    return f"{error.filename or 'standard output or a file'}: {error.strerror or error}"


def _show_warning(text, *_args, **_more) -> None:
    """A warning is for the user: one line, without the source line that raised it."""
    message(f"warning: {text}")


def parsed(argv: list[str]) -> argparse.Namespace:
    """The options; a word that is none of the commands or options ends with a suggestion and status 2."""
    parser, verbs = _parser()
    command = next((word for word in argv if not word.startswith("-")), None)
    if command is not None and command not in verbs:
        parser.error(
            f"unknown command {command!r}" + (hint(command, verbs) or f"; expected {alternatives(tuple(verbs))}")
        )
    options, extra = parser.parse_known_args(argv)
    if extra:
        options.parser.refuse(extra)
    if command is None:
        parser.error(f"expected a COMMAND: {alternatives(tuple(verbs))}")
    return options


def _parser() -> tuple[Parser, list[str]]:
    """The parser, and the names of its commands."""
    from .chat import add_chat_verb
    from .checkpoints import add_checkpoint_verbs
    from .demo import add_demo_verb
    from .download import add_download_verb
    from .evaluate import add_evaluate_verb
    from .experiments import add_experiment_verbs
    from .export import add_export_verb
    from .plan import add_plan_verb
    from .quantize import add_quantize_verb
    from .speak import add_speaking_verbs
    from .transcribe import add_transcribe_verb

    parser = Parser(
        prog="stepaudio", description="Workbench for Step-Audio 2 mini on MLX.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "-V", "--version", action="version", version=f"%(prog)s {__version__}", help="print the version"
    )
    parser.set_defaults(parser=parser)
    verbs = parser.add_subparsers(metavar="COMMAND")
    add_transcribe_verb(verbs)
    add_evaluate_verb(verbs)
    add_speaking_verbs(verbs)
    add_chat_verb(verbs)
    add_download_verb(verbs)
    add_checkpoint_verbs(verbs)
    add_quantize_verb(verbs)
    add_export_verb(verbs)
    add_plan_verb(verbs)
    add_experiment_verbs(verbs)
    about = add_verb(
        verbs, "info", _info, "backend, BLAS, dtype, versions", "", ["stepaudio info", "stepaudio info --json"],
        {0: "printed"},
    )  # fmt: skip
    add_formats(about, ("text", "json"), "text")
    add_demo_verb(verbs)
    return parser, list(verbs.choices)


def _info(options: argparse.Namespace) -> int:
    from ..backend.device import info

    found = info()
    if options.format == "json":
        print_json(found)
        return 0
    for key, value in found.items():
        print(f"{key:9} {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}")
    return 0
