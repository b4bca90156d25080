"""Which attention heads of a checkpoint follow the speech: `alignment_heads.json` beside its weights.

Another training puts this work into other heads, so they are a fact of the weights, found on clips whose word times are
known (`data/recipe/alignment_heads.py` writes the file). The file says which weights these are; beside others it is not
used, and nothing that writes other weights copies it.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, WeightsError
from ..models.decoder import TextConfig
from ..reading import is_file, read_object, why
from ..schema import read_record, require
from .header import read_checkpoint

FILE = "alignment_heads.json"
WIDEST = 25  # positions of a median filter: two seconds
ENDS = 1024  # bytes at either end of a tensor: no training leaves all of them as they were


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
    weights : str
        Those on which they were chosen, as `weights_of` has them.
    """

    heads: tuple[tuple[int, int], ...]
    filter_width: int = 1
    made: str = ""
    weights: str = ""

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

    @classmethod
    def of_weights(cls, path: str | Path, config: TextConfig) -> AlignmentHeads | None:
        """The heads of these weights, a folder or a file in it; None, with a warning, where they are those of others.

        Raises
        ------
        ConfigError, WeightsError
            As `of_folder` and `weights_of`.
        """
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        found = cls.of_folder(folder, config)
        if found is not None and found.weights != weights_of(path):
            warnings.warn(
                f"{folder / FILE}: names heads of other weights than those beside it, so words get no times; find the "
                "heads of these (data/recipe/alignment_heads.py), or take the file away",
                stacklevel=3,
            )
            return None
        return found


def weights_of(path: str | Path) -> str:
    """Fingerprint (hex) of stored weights, a folder or a file in it, however they are divided into files.

    SHA-256 over name, type, shape and both ends of every tensor: fast at any size, and other after any training,
    quantising or conversion.

    Raises
    ------
    WeightsError
        As `read_checkpoint`.
    """
    found = hashlib.sha256()
    for name, info in sorted(read_checkpoint(path).items()):
        found.update(f"{name} {info.dtype} {info.shape}\n".encode())
        try:
            with info.file.open("rb") as stream:
                for start in (0, max(0, info.nbytes - ENDS)):
                    stream.seek(info.offset + start)
                    found.update(stream.read(min(ENDS, info.nbytes)))
        except OSError as error:
            raise WeightsError(f"{info.file}: {why(error)}") from None
    return found.hexdigest()
