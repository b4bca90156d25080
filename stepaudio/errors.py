"""Every error a user can cause. One root, one child per thing that can be wrong.

Each message says what is wrong, what was expected, what was found, and what to do next. `assert` is kept
for our own mistakes; anything that arrives from outside ends in one of these.
"""

LONGEST = 1000  # characters that a message stays below


class StepAudioError(Exception):
    """Root of all errors raised on purpose by this package.

    Messages quote what was found, and that may hold anything. So each becomes one line of printable characters, of
    fewer than `LONGEST`: a longer one loses its middle, since what is wrong opens it and what to do closes it.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    r"""Text on one line and below `LONGEST` characters, what a terminal cannot show written as Python escapes it.

    >>> one_line("a\n  b\x1b")
    'a b\\x1b'
    """
    text = " ".join(part for line in text.splitlines() if (part := line.strip()))
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) < LONGEST else f"{text[: LONGEST * 3 // 5]} … {text[-LONGEST * 3 // 10 :]}"


class ConfigError(StepAudioError):
    """A configuration file or option is unknown, missing or contradicts another."""


class AudioError(StepAudioError):
    """A recording cannot be read or cannot be used."""


class PromptError(StepAudioError):
    """A prompt, its tokens and its audio do not fit each other."""


class TokenizerError(PromptError):
    """The tokenizer files are missing, damaged, or lack a token that is needed."""


class WeightsError(StepAudioError):
    """Weights are missing, unreadable, or do not have the published layout."""


class DecodeError(StepAudioError):
    """Generation was asked for something impossible."""


class DataError(StepAudioError):
    """A manifest, a golden file or another data file cannot be used."""


class BackendError(StepAudioError, ImportError):
    """MLX, which does the computing, or another package that this one needs is not installed."""


class DownloadError(WeightsError):
    """A model that is named by its place on a hub cannot be had."""
