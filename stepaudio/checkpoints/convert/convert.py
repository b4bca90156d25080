"""Published `token2wav` files -> safetensors that the nets load as they are, and a manifest of where each came from.

Needs neither PyTorch nor ONNX: the files are read as data (see `torch_file`, `onnx_file`). Everything is written aside
and moved into place with the manifest last, so an interrupted conversion leaves nothing that could be loaded. Values
become float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ... import __version__
from ...errors import ConfigError, WeightsError
from ...files import move_into_place, reason, sha256, staging_folder
from ...models.token2wav.campplus import SpeakerConfig
from ...reading import is_file, is_folder
from ..header import listed, read_header
from ..layout import SOURCES, TOKEN2WAV, kernel_axes, to_net
from ..match import match_stored
from ..tensors import lazy_arrays_with_metadata, read_values
from ..weight_norm import DIRECTION, MAGNITUDE, merge_weight_norm
from .batch_norm import unfolded
from .manifest import FORMAT, MANIFEST, Manifest, file_of, read_manifest
from .published import FLOW_YAML, FOLDER, PublishedPart, describe, published_folder
from .torch_file import check_storages

ASIDE = ".converting-"
KEPT, RENAMED, TRANSPOSED, MERGED, FOLDED, DROPPED = (
    "kept", "renamed", "transposed", "weight norm merged", "batch norm folded before", "dropped")  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """What `convert` did. `fresh` is False where an earlier conversion of the same files was found whole."""

    manifest: Manifest
    fresh: bool

    def table(self) -> str:
        """Text for a terminal: one line a component, with how many tensors went through which steps."""
        folder = self.manifest.folder
        lines = [f"{folder}: {'converted' if self.fresh else 'converted already from these files; nothing to do'}"]
        for component, part in self.manifest.raw["components"].items():
            steps = [step for tensor in part["tensors"] for step in tensor["steps"]]
            counts = ", ".join(f"{steps.count(step)} {step}" for step in dict.fromkeys(steps))
            lines.append(f"  {component:9}  {part['bytes']:>13,} bytes  {len(part['tensors']):4} tensors: {counts}")
        return "\n".join(lines)


def convert(model_dir: str | Path, out: str | Path | None = None) -> Conversion:
    """Convert the published files once.

    Parameters
    ----------
    model_dir : str or Path
        A model's folder, or the `token2wav` folder in it: `flow.yaml`, `flow.pt`, `hift.pt`, `campplus.onnx` and
        `speech_tokenizer_v2_25hz.onnx`.
    out : str or Path, optional
        Where to write, made if need be; by default beside the published files. One conversion at a time.

    Raises
    ------
    WeightsError
        A file that is missing, unreadable, hostile or of another model, by name; a tensor that is missing, unexpected
        or mis-shaped, by name; or a folder that cannot be written.
    ConfigError
        `flow.yaml`, or sizes that contradict each other.
    """
    folder = _published(model_dir)
    names = (FLOW_YAML, *SOURCES.values())
    missing = [name for name in names if not is_file(folder / name, WeightsError)]
    if len(missing) == len(names) and out is None and is_file(folder / MANIFEST, WeightsError):
        return Conversion(read_manifest(folder), False)  # as the bundled one: the published files need not be there
    if missing:
        raise WeightsError(
            f"{folder}: {listed(missing)} missing; expected a published model's folder with "
            f"{FOLDER}/ in it, or that folder itself"
        )
    target = Path(out) if out is not None else folder
    sources = {name: _fingerprint(folder / name) for name in names}
    found = _earlier(target, sources)
    if found is not None:
        return Conversion(found, False)
    try:
        with staging_folder(target, ASIDE) as aside:
            _write(folder, aside, sources)
            move_into_place(aside, target, [*map(file_of, TOKEN2WAV), MANIFEST], retire=[MANIFEST])
    except (OSError, RuntimeError) as error:  # RuntimeError: how mlx reports a failed write
        raise WeightsError(
            f"{target}: the conversion could not be written ({reason(error)}); `--out` names another folder"
        ) from None
    return Conversion(read_manifest(target), True)


def _published(model_dir: str | Path) -> Path:
    inner = Path(model_dir) / FOLDER
    return published_folder(model_dir) or (inner if is_folder(inner, WeightsError) else Path(model_dir))


def converted_files(model_dir: str | Path, out: str | Path | None = None) -> list[Path]:
    """Files that `convert` with these arguments writes."""
    target = Path(out) if out is not None else _published(model_dir)
    return [target / name for name in (*map(file_of, TOKEN2WAV), MANIFEST)]


def is_converted(path: Path) -> bool:
    """Whether `convert` wrote a file: weights that name their component, or the manifest of a conversion."""
    try:
        if path.name == MANIFEST:
            found = json.loads(path.read_text(encoding="utf-8"))
            return isinstance(found, dict) and {"format", "sources", "components"} <= set(found)
        read_header(path)
        return lazy_arrays_with_metadata(path)[1].get("component") == path.stem
    except (WeightsError, OSError, ValueError, RuntimeError, RecursionError):
        return False


def _fingerprint(path: Path) -> dict:
    try:
        return {"sha256": sha256(path), "bytes": path.stat().st_size}
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None


def _earlier(target: Path, sources: dict) -> Manifest | None:
    """The manifest of a whole conversion of the same files."""
    if not is_file(target / MANIFEST, WeightsError):
        return None
    try:
        found = read_manifest(target)
        for component in TOKEN2WAV:
            read_header(target / file_of(component))
            if (target / file_of(component)).stat().st_size != found.bytes_of(component):
                return None
    except (WeightsError, ConfigError, OSError):
        return None
    return found if found.sources == sources else None


# ---- one component ----


def check_part(part: PublishedPart) -> None:
    """Refuse with `WeightsError` what is not exactly the published layout, naming every fault once."""

    def with_own_name(name: str) -> str:
        own = part.tensors[name].name
        return name if name == own else f"{name} (there {own})"

    faults = match_stored(part.tensors, part.layout).faults(with_own_name)
    if faults:
        raise WeightsError(f"{part.file}: {faults}")


def _converted(part: PublishedPart, provenance: list[dict]) -> Iterator[tuple[str, np.ndarray]]:
    """(name in the net, values as the net holds them); what became of each tensor of the file goes to `provenance`."""
    axes = kernel_axes(part.config)
    for name, tensor in part.tensors.items():
        if name.endswith(MAGNITUDE):
            continue
        values, new, steps = read_values(tensor), name, []
        if name.endswith(DIRECTION):
            new, steps = f"{name.removesuffix(DIRECTION)}.weight", [MERGED]
            magnitude = part.tensors[name.replace(DIRECTION, MAGNITUDE)]
            values = _merged(part, new, read_values(magnitude), values)
            provenance.append({"tensor": magnitude.name, "steps": [MERGED], "as": new})
        elif isinstance(part.config, SpeakerConfig) and name.removesuffix(".bias") in part.folded:
            norm = part.folded[name.removesuffix(".bias")]
            provenance.append({"tensor": tensor.name, "steps": [FOLDED], "as": f"{norm}.*"})
            yield from unfolded(norm, values, part.config)
            continue
        elif tensor.name != name:
            steps = [RENAMED]
        turned = axes.get(new)
        steps += [TRANSPOSED] if turned or tensor.strides else []
        said = {"tensor": tensor.name, "steps": steps or [KEPT], "as": new}
        provenance.append(said | ({"axes": turned} if turned else {}))
        yield new, to_net(values, turned)
    provenance += [{"tensor": name, "steps": [DROPPED], "why": why} for name, why in part.dropped.items()]


def _merged(part: PublishedPart, name: str, magnitude: np.ndarray, direction: np.ndarray) -> np.ndarray:
    try:
        return merge_weight_norm(magnitude, direction)
    except WeightsError as error:
        raise WeightsError(f"{part.file}: {name}: {error}") from None


# ---- files ----


def _write(folder: Path, aside: Path, sources: dict) -> None:
    parts = {}
    for component in TOKEN2WAV:
        part, provenance = describe(folder, component), []
        check_part(part)
        if part.file.suffix == ".pt":
            check_storages(part.file)
        tensors = {name: mx.array(values) for name, values in _converted(part, provenance)}
        path = aside / file_of(component)
        mx.save_safetensors(str(path), tensors, metadata={"format": "mlx", "component": component})
        parts[component] = {"file": path.name, "bytes": path.stat().st_size, "source": SOURCES[component],
                            "config": asdict(part.config), "tensors": provenance}  # fmt: skip
    manifest = {"format": FORMAT, "package": f"stepaudio {__version__}", "sources": sources, "components": parts}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
