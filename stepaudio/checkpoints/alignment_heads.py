"""Which attention heads of a checkpoint follow the speech: `alignment_heads.json` beside its weights.

Another training puts this work into other heads, so they are a fact of the weights, found on clips whose word times are
known (`data/recipe/alignment_heads.py` writes the file).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..models.decoder import TextConfig
from ..reading import is_file, read_object
from ..schema import read_record, require

FILE = "alignment_heads.json"
WIDEST = 25  # positions of a median filter: two seconds


@dataclass(frozen=True)
class AlignmentHeads:
    """Heads of the decoder whose attention says where in the audio a token is said.

    Parameters
    ----------
    heads : tuple of (layer, head)
        From 0; at least one, none twice.
    filter_width : int
        Positions of the median filter over time, odd, 1 for none.
    made : str
        How they were chosen.
    """

    heads: tuple[tuple[int, int], ...]
    filter_width: int = 1
    made: str = ""

    @classmethod
    def of_folder(cls, folder: str | Path, config: TextConfig) -> AlignmentHeads | None:
        """Read the file beside a checkpoint's weights; None where there is none.

        Raises
        ------
        ConfigError
            Not JSON, an unknown key, a value of another type, or a head that the decoder does not have.
        """
        path = Path(folder) / FILE
        if not is_file(path, ConfigError):
            return None
        expected = "expected heads as [[layer, head], ...], and filter_width"
        found = read_record(cls, read_object(path, ConfigError, expected), str(path), advice=expected)
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        require(len(found.heads) > 0, f"{path}: heads: expected at least one, found none")
        require(len(set(found.heads)) == len(found.heads), f"{path}: heads: a head stands there twice")
        for layer, head in found.heads:
            require(
                0 <= layer < layers and 0 <= head < heads,
                f"{path}: heads: the decoder has layers 0 to {layers - 1} with heads 0 to {heads - 1}, "
                f"found [{layer}, {head}]",
            )
        require(
            1 <= found.filter_width <= WIDEST and found.filter_width % 2 == 1,
            f"{path}: filter_width: expected an odd number from 1 to {WIDEST}, found {found.filter_width}",
        )
        return found
