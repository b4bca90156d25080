"""BLEU and chrF of translations, by sacrebleu: on the texts as they are written, over the whole set."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from ..errors import ConfigError, DataError
from .normalisers import INSTALL

# sacrebleu's tokenizer of BLEU by the target's language. Where it has none that needs no further download, characters
# are counted, since these scripts put no blanks between words.
TOKENIZERS = {"zh": "zh", "yue": "zh", "ja": "char", "th": "char", "lo": "char", "km": "char", "my": "char"}
DEFAULT_TOKENIZER = "13a"


def check_sacrebleu() -> None:
    """Raise `ConfigError` where sacrebleu is not installed."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise ConfigError(f"BLEU and chrF need the library sacrebleu, not installed here: {INSTALL}")


def tokenizer_of(to: str) -> str:
    """The name of the tokenizer by which BLEU counts a language."""
    return TOKENIZERS.get(to, DEFAULT_TOKENIZER)


def translation_scores(references: Sequence[str], hypotheses: Sequence[str], to: str = "en") -> dict:
    """BLEU and chrF of a set of translations.

    Parameters
    ----------
    references, hypotheses : as many texts of each; case and punctuation count.
    to : the target's language, which chooses BLEU's tokenizer: "zh" for Chinese, characters for Japanese, Thai, Lao,
        Khmer and Burmese, else sacrebleu's default, 13a.

    Returns
    -------
    dict of `bleu` and `chrf` (0 to 100, two decimals), `bleu_signature` and `chrf_signature` (how sacrebleu counted,
    for papers), and `bleu_tokenizer`.

    Raises
    ------
    ConfigError : sacrebleu is not installed. DataError : no texts, or not as many of each.
    """
    check_sacrebleu()
    if not references or len(references) != len(hypotheses):
        raise DataError(
            f"BLEU needs a hypothesis for each reference, found {len(references)} references and {len(hypotheses)} "
            "hypotheses"
        )
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    tokenizer = tokenizer_of(to)
    bleu, chrf = BLEU(tokenize=tokenizer), CHRF()
    texts = [one_line(text) for text in hypotheses], [[one_line(text) for text in references]]
    found, by_characters = bleu.corpus_score(*texts), chrf.corpus_score(*texts)
    return {
        "bleu": round(found.score, 2),
        "chrf": round(by_characters.score, 2),
        "bleu_tokenizer": tokenizer,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def one_line(text: str) -> str:
    """A text without line breaks and doubled blanks, as sacrebleu wants a segment."""
    return " ".join(text.split())
