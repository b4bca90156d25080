"""Draw the picture of the README, and a thumbnail of every figure in the notebooks with a page that shows them all.

    python docs/make_gallery.py          # after the notebooks have been run
    python docs/make_gallery.py --check  # says what is out of date, changes nothing, exits with 1 if anything is

Figures are taken from the stored outputs of the notebooks, so that the page shows what a reader finds there.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
NOTEBOOKS = DOCS.parent / "notebooks"
PICTURES = DOCS / "pictures"
THUMBNAIL = 420  # pixels wide
COLORS = 64  # greys and the steps of a colour map
CLIP = "human_0880"
HEAD = """# Gallery

Every figure of the notebooks, in their order; each links to the notebook that draws and explains it. The functions are
those of `stepaudio.viz`; `viz.mel("a.wav")` draws a recording of your own. Made by `docs/make_gallery.py`.

![A mel spectrogram with the words of its transcript above it](pictures/mel_with_words.png)

The picture of the README is a bundled clip with nano's own transcript. Each word stands where the layer of the decoder
that gives most of its attention to audio attends when it is chosen: in the middle of the 80 ms with the highest weight,
in the mean over heads and over the word's tokens. Nothing was aligned by hand.
"""


class Figure(NamedTuple):
    """One figure of a notebook: where it stands, the heading above it, the function that draws it, and its PNG."""

    notebook: str
    number: int
    heading: str
    function: str
    png: bytes

    @property
    def file(self) -> str:
        """Name of its thumbnail."""
        return f"{self.notebook[:2]}_{self.number}.png"


def text_of(source: str | list[str]) -> str:
    """Text of a cell or an output, which may be stored in lines."""
    return source if isinstance(source, str) else "".join(source)


def figures(path: Path) -> Iterator[Figure]:
    """The figures that a notebook's outputs hold, in order."""
    heading, number = "", 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = text_of(cell["source"])
        heading = [heading, *re.findall(r"^#+ (.+)$", source, re.M)][-1] if cell["cell_type"] == "markdown" else heading
        drawn_by = re.findall(r"viz\.(\w+)\(", source)
        for output in cell.get("outputs", []):
            if data := output.get("data", {}).get("image/png"):
                number += 1
                yield Figure(path.stem, number, heading, drawn_by[-1], base64.b64decode(text_of(data)))


def thumbnail(png: bytes) -> bytes:
    """The figure, `THUMBNAIL` pixels wide, in few colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    small = image.resize((THUMBNAIL, round(image.height * THUMBNAIL / image.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.quantize(COLORS).save(file, format="PNG", optimize=True)
    return file.getvalue()


def page(found: list[Figure]) -> str:
    """The Markdown of the gallery."""
    lines, notebook = [HEAD], ""
    for figure in found:
        if figure.notebook != notebook:
            notebook = figure.notebook
            lines.append(f"## [{notebook}](../notebooks/{notebook}.ipynb)\n")
        link = f"[![{figure.heading}](pictures/gallery/{figure.file})](../notebooks/{notebook}.ipynb)"
        lines.append(f"{figure.heading} (`viz.{figure.function}`)\n\n{link}\n")
    return "\n".join(lines)


def mel_with_words() -> bytes:
    """The README's picture: a bundled clip, and nano's own transcript placed by nano's own attention.

    Each token stands at the 80 ms of audio with the highest weight in the layer that gives most to audio, in the mean
    over its heads, at the step that chose the token; a word stands at the mean of its tokens. Nothing was aligned
    by hand.
    """
    import stepaudio
    from stepaudio import viz
    from stepaudio.evaluation.manifest import read_manifest
    from stepaudio.interp import audio_attention, last_query, record
    from stepaudio.resources import speech_manifest
    from stepaudio.viz import style

    model = stepaudio.load()
    assert model.tokenizer is not None  # the bundled model has one
    layers, patterns = range(model.config.text_config.num_hidden_layers), "decoder.*.pattern"
    path = next(c.file for c in read_manifest(speech_manifest()) if c.file.stem == CLIP)
    trace = record(model, path, (patterns, "decoder.positions"), reduce={patterns: last_query}, sampling="reference")
    listens = max((audio_attention(trace, layers=[layer]) for layer in layers), key=lambda found: found.share.mean())
    words: list[tuple[str, list[float]]] = []
    for token, at in zip(trace.tokens[:-1], listens.peak, strict=False):
        text = model.tokenizer.decode([token])
        if text.startswith(" ") or not words:
            words.append(("", []))
        words[-1] = words[-1][0] + text.strip(), [*words[-1][1], float(at)]
    labels = [(word, sum(at) / len(at)) for word, at in words]
    return style.png(viz.mel(path, "What nano writes, over the sound that it attends to", labels=labels))


def wanted() -> dict[Path, bytes]:
    """Every file of the gallery with what it has to hold."""
    found = [figure for path in sorted(NOTEBOOKS.glob("*.ipynb")) for figure in figures(path)]
    files = {PICTURES / "gallery" / figure.file: thumbnail(figure.png) for figure in found}
    return files | {DOCS / "gallery.md": page(found).encode("utf-8")}


def main() -> int:
    """Write the files, or say which are out of date."""
    parser = argparse.ArgumentParser(description="The picture of the README, and the gallery.")
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if something is out of date")
    check, files = parser.parse_args().check, wanted()
    extra = set((PICTURES / "gallery").glob("*.png")) - set(files)
    stale = [path for path, data in files.items() if not path.is_file() or path.read_bytes() != data]
    for path in sorted([*stale, *extra]):
        print("out of date:" if check else "writing:" if path in files else "removing:", path.relative_to(DOCS.parent))
    if check:
        return int(bool(stale or extra))
    for path in extra:
        path.unlink()
    (PICTURES / "gallery").mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_bytes(files[path])
    (PICTURES / "mel_with_words.png").write_bytes(mel_with_words())
    return 0


if __name__ == "__main__":
    sys.exit(main())
