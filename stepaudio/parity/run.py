"""Does this implementation agree with the reference? Runs every stage against recorded inputs and outputs.

A golden folder holds NAME.safetensors (`in.`, `w.`, `out.`) with NAME.json (component, config, notes) beside it,
and JSON files for the tokenizer. Sizes come from each file's own config. Every expected tensor is either compared
or listed as not compared: nothing is passed over in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from ..backend.device import float32_products, info
from ..checkpoints.tensors import read_arrays
from ..errors import DataError, StepAudioError
from ..reading import is_folder
from .decoder import llm_checks
from .encoder import encoder_checks
from .features import mel_checks
from .golden import Golden, Row
from .token2wav import flow_checks, hift_checks, token2wav_checks
from .tokenizer import special_token_checks, tokenizer_checks
from .voice import s3_checks, speaker_checks

CHECKS: dict[str, Callable[[Golden, Path], None]] = {
    "mel": mel_checks,
    "encoder_adapter": encoder_checks,
    "llm": llm_checks,
    "s3tokenizer": s3_checks,
    "campplus": speaker_checks,
    "flow": flow_checks,
    "hift": hift_checks,
    "token2wav": token2wav_checks,
    "tokenizer": tokenizer_checks,
    "special_tokens": special_token_checks,
}


def verify(folder: str | Path, tokenizer: str | Path | None = None) -> Iterator[tuple[str, list[Row]]]:
    """Check every file of a golden folder.

    Parameters
    ----------
    folder : path. tokenizer : folder of the published tokenizer; by default `Step-Audio-2-mini` beside the goldens.

    Yields
    ------
    (file name, rows); a file that cannot be used gives one row with the verdict "unusable".
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.json")) if is_folder(folder, DataError) else []
    if not files:
        raise DataError(f"{folder}: no golden files; expected a folder with NAME.json and NAME.safetensors")
    tokenizer_folder = Path(tokenizer) if tokenizer else folder.parent / "Step-Audio-2-mini"
    orphans = [p for p in sorted(folder.glob("*.safetensors")) if not p.with_suffix(".json").exists()]
    for path in orphans:
        yield path.stem, [Row("-", None, None, None, "unusable", f"{path.name} has no {path.stem}.json beside it")]
    for path in files:
        yield path.stem, _verify_file(path, tokenizer_folder)


def _verify_file(path: Path, tokenizer: Path) -> list[Row]:
    golden = None
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        kind = sidecar.get("component", path.stem) if isinstance(sidecar, dict) else path.stem
        if kind not in CHECKS:
            raise DataError(f"component {kind!r} is unknown; known are {', '.join(CHECKS)}")
        arrays, data = {}, path.with_suffix(".safetensors")
        if kind not in ("tokenizer", "special_tokens"):
            arrays = read_arrays(data)
        config = sidecar if kind in ("tokenizer", "special_tokens") else sidecar["config"]
        golden = Golden(config, arrays, path.parent)
        CHECKS[kind](golden, tokenizer)
        return golden.finish()
    except Exception as error:  # whatever a broken file provokes is a verdict on that file, the others go on
        before = golden.rows if golden else []
        return [*before, Row("-", None, None, None, "unusable", _reason(error))]


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    text = " ".join(str(error).split())
    return text if isinstance(error, StepAudioError) else f"{type(error).__name__}: {text}"


def arithmetic() -> str:
    """One line: where the comparison is computed, and how float32 is multiplied there."""
    products = float32_products()
    line = f"computed in float32 on {info()['backend']}, products {products}"
    if products == "whole":
        return line
    return f"{line} of ten bits: expect rows that are off; set MLX_ENABLE_TF32=0 before the start for whole ones"


def table(name: str, rows: list[Row]) -> str:
    """The rows of one file as aligned text."""

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.1e}" if x else "0"

    lines = [f"{name}"]
    for r in rows:
        lines.append(
            f"  {r.stage[:34]:34} abs {number(r.absolute):>8}  rel {number(r.relative):>8}  "
            f"tol {number(r.tolerance):>8}  cond {number(r.condition):>8}  {r.verdict}{'  ' + r.note if r.note else ''}"
        )
    return "\n".join(lines)
