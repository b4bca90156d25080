"""Every error a user can cause. One root, one child per thing that can be wrong.

Each message says what is wrong, what was expected, what was found, and what to do next. `assert` is kept
for our own mistakes; anything that arrives from outside ends in one of these.
"""


class StepAudioError(Exception):
    """Root of all errors raised on purpose by this package."""


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
    """MLX, which does the computing, is not installed."""
