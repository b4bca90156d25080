"""Speak the sentences of `manifest.tsv` with espeak-ng: one Ogg Vorbis file each, 16 kHz mono; empty texts are silence.

python data/mandarin/make_clips.py        # needs espeak-ng on the PATH
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf

from stepaudio.audio.load import load_audio
from stepaudio.constants import SAMPLE_RATE
from stepaudio.evaluation.manifest import read_manifest

HERE = Path(__file__).resolve().parent
VOICE, SPEED, SILENCE = "cmn", "140", 2.0  # words a minute; seconds


def main() -> None:
    for clip in read_manifest(HERE / "manifest.tsv"):
        sound = np.zeros(round(SILENCE * SAMPLE_RATE), np.float32)
        if clip.has_speech:
            with tempfile.NamedTemporaryFile(suffix=".wav") as spoken:
                command = ["espeak-ng", "-v", VOICE, "-s", SPEED, "-w", spoken.name, clip.text]
                subprocess.run(command, check=True)
                sound = load_audio(spoken.name)
        sf.write(clip.file, sound, SAMPLE_RATE, format="OGG", subtype="VORBIS")


if __name__ == "__main__":
    main()
