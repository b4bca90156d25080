"""`generation_config.json`: how a checkpoint's makers would have tokens chosen, held against what is done here.

The file is another library's; nothing here obeys it. It is read so that the difference is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..reading import is_file, read_object
from ..schema import shown
from .options import DecodingOptions

FILE = "generation_config.json"
# What transformers does where the file is silent, of the values that have a counterpart here.
SILENT: dict[str, object] = {
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "max_new_tokens": None, "num_beams": 1,
}  # fmt: skip
ABOUT = {"_from_model_config", "transformers_version", "bos_token_id", "pad_token_id", "use_cache", "do_sample"}


def differences(folder: str | Path, end_ids: frozenset[int], options: DecodingOptions | None = None) -> tuple[str, ...]:
    """What the file says that is not done here, a line each; empty where there is no file, or no difference.

    Parameters
    ----------
    folder : str or Path
        Of a checkpoint.
    end_ids : frozenset of int
        Ids that end an answer here.
    options : DecodingOptions, optional
        What is done here; by default the planned values.

    Raises
    ------
    ConfigError
        The file is no JSON object.
    """
    path = Path(folder) / FILE
    if not is_file(path, ConfigError):
        return ()
    told = read_object(path, ConfigError, "take it out of the folder, it is not needed")
    theirs, ours = _of_file(told), _of_options(options or DecodingOptions())
    lines = [
        f"{name}: {shown(theirs[name])} there, {shown(ours[name])} here"
        for name in ours
        if name in theirs and theirs[name] != ours[name]
    ]
    ends = told.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if foreign := [i for i in ends if i not in end_ids]:
        lines.append(f"eos_token_id: {shown(foreign)} end an answer there and not here")
    known = {*SILENT, *ABOUT, "eos_token_id"}
    others = {key: value for key, value in told.items() if key not in known and value not in (None, False, [], {})}
    lines += [f"{key}: {shown(value)} there, without a counterpart here" for key, value in others.items()]
    return tuple(lines)


def _of_file(told: Mapping[str, Any]) -> dict[str, object]:
    """The rules that the file means: those of a draw count only where it draws."""
    said = {key: default if told.get(key) is None else told[key] for key, default in SILENT.items()}
    found = {name: said[name] for name in ("repetition_penalty", "no_repeat_ngram_size", "num_beams")}
    if said["max_new_tokens"] is not None:
        found["max_new_tokens"] = said["max_new_tokens"]
    if not told.get("do_sample"):
        return {"temperature": 0.0, **found}
    return {"temperature": said["temperature"], "top_k": said["top_k"], "top_p": said["top_p"],
            "min_p": said["min_p"] or 0.0, **found}  # fmt: skip


def _of_options(options: DecodingOptions) -> dict[str, object]:
    rules = options.rules
    return {
        "temperature": rules.temperature, "top_k": rules.top_k, "top_p": rules.top_p, "min_p": rules.min_p,
        "repetition_penalty": rules.text.repetition, "no_repeat_ngram_size": rules.text.no_repeat_ngram,
        "num_beams": 1, "max_new_tokens": options.max_tokens,
    }  # fmt: skip
