"""What reads a voice, in PyTorch: the speech tokenizer of the package `s3tokenizer` and CAM++ of `chatterbox-tts`.

StepFun runs both networks from ONNX files; these two packages hold them as modules with the published names. Of the
second one file is taken, so that nothing else of it has to be installed.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .own_process import OwnProcess, not_installed

TOKENIZER, SPEAKER = "s3tokenizer", "chatterbox"  # modules, and what a row calls their side
NEEDED = {
    TOKENIZER: ("torch", "torchaudio", "onnx", "einops", "s3tokenizer"),
    SPEAKER: ("torch", "torchaudio", "chatterbox"),
}
INSTALL = "pip install s3tokenizer, pip install --no-deps chatterbox-tts, and torch, torchaudio"
NAMED = ("n_mels", "n_audio_state", "n_audio_head", "n_audio_layer", "n_codebook_size")  # of `S3Config`, there too
HEAD_DIM = 64  # channels of a head, for which its table of rotations is written in
XVECTOR = "models/s3gen/xvector.py"


def missing(side: str) -> list[str]:
    """What is not installed of what `TOKENIZER` or `SPEAKER` needs."""
    return not_installed(NEEDED[side])


class TokenizerProcess(OwnProcess):
    """A process that holds the speech tokenizer.

    Parameters
    ----------
    tensors : dict of str to float32 array
        By published name, in PyTorch's axes.
    config : dict
        `S3Config` as a dict, with heads of 64 channels.
    tf32 : bool
        Whether float32 may be multiplied in TF32, on a GPU.
    """

    def __init__(self, tensors: dict[str, np.ndarray], config: dict, tf32: bool):
        super().__init__(TOKENIZER, INSTALL, _Tokenizer, tensors, config, tf32)

    def codes(self, mel: np.ndarray) -> tuple[float, np.ndarray]:
        """Log mel (n_mels, T), 30 s at most -> seconds, and codes (N,)."""
        return self.call("codes", mel)


class SpeakerProcess(OwnProcess):
    """A process that holds CAM++ of the published sizes; arguments as `TokenizerProcess`."""

    def __init__(self, tensors: dict[str, np.ndarray], tf32: bool):
        super().__init__(SPEAKER, INSTALL, _Speaker, tensors, tf32)

    def vector(self, features: np.ndarray) -> tuple[float, np.ndarray]:
        """Features (T, F) -> seconds, and the speaker vector (E,)."""
        return self.call("vector", features)


class _Net:
    """A module on the device that is found, filled, and timed."""

    def __init__(self, net: Any, tensors: dict[str, np.ndarray], tf32: bool):
        import torch

        torch.set_grad_enabled(False)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        self._torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        counters = {n: a for n, a in net.state_dict().items() if n.endswith("num_batches_tracked")}
        net.load_state_dict(counters | {n: torch.from_numpy(a) for n, a in tensors.items()}, strict=True)
        self.net = net.to(self.device).eval()

    def _timed(self, run: Callable[[Any], Any], given: np.ndarray) -> tuple[float, np.ndarray]:
        given = self._torch.from_numpy(given).to(self.device)[None]
        self._wait()
        began = time.perf_counter()
        found = run(given)
        self._wait()
        return time.perf_counter() - began, found[0].cpu().numpy()

    def _wait(self) -> None:
        if self.device == "cuda":
            self._torch.cuda.synchronize()


class _Tokenizer(_Net):
    def __init__(self, tensors: dict[str, np.ndarray], config: dict, tf32: bool):
        from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2

        sizes = ModelConfig(**{name: config[name] for name in NAMED})
        super().__init__(S3TokenizerV2("speech_tokenizer_v2_25hz", sizes), tensors, tf32)

    def codes(self, mel: np.ndarray) -> tuple[float, np.ndarray]:
        length = self._torch.tensor([mel.shape[1]], device=self.device)
        return self._timed(lambda given: self.net.quantize(given, length)[0], mel)


class _Speaker(_Net):
    def __init__(self, tensors: dict[str, np.ndarray], tf32: bool):
        found = importlib.util.find_spec(SPEAKER)
        assert found is not None and found.submodule_search_locations, "looked for before the process was started"
        file = Path(found.submodule_search_locations[0]) / XVECTOR
        spec = importlib.util.spec_from_file_location("xvector", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        super().__init__(module.CAMPPlus(), tensors, tf32)

    def vector(self, features: np.ndarray) -> tuple[float, np.ndarray]:
        return self._timed(self.net, features)
