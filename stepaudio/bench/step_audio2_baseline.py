"""The reference's own nets from codes to sound, of the package `step-audio2`, as a baseline for the benchmark.

The package installs top-level modules such as `utils`, so all of it lives in a process of its own. Install it with
`pip install --no-deps step-audio2`; of what it names it needs torch, numpy, einops and scipy here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from .own_process import OwnProcess, not_installed, stand_in

NEEDED = ("torch", "einops", "scipy", "cosyvoice2", "flashcosyvoice")
INSTALL = "pip install --no-deps step-audio2, and torch, einops, scipy"
UNNAMED = ("istft", "f0_cond_channels", "final_lrelu_slope", "magnitude_clip")  # of `HiftConfig`, alone
STEPS = 10  # of the solver
MEL_FRAMES, HELD = 8, 3840  # mel frames, and samples of source and sound, that a chunk hands to the next
RECENT, CACHED = 100, 1000  # frames that the estimator looks back on beyond the prompt, and room for frames
Tensors = dict[str, dict[str, np.ndarray]]
Voice = tuple[np.ndarray, np.ndarray, np.ndarray]  # codes (1, P), mel (1, 2 P, M), speaker (1, E)


def missing() -> list[str]:
    """What is not installed of what is needed."""
    return not_installed(NEEDED)


class ReferenceProcess(OwnProcess):
    """A process that holds flow and vocoder.

    Parameters
    ----------
    tensors : dict of str to dict
        "flow" and "hift": published name -> float32 array in PyTorch's axes.
    flow, hift : dict
        Sizes: `FlowConfig` and `HiftConfig` as dicts.
    noise : array (1, frames, M)
        What the solver starts from.
    tf32 : bool
        Whether float32 may be multiplied in TF32, on a GPU.

    Raises
    ------
    BackendError
        The nets cannot be built or filled.
    """

    def __init__(self, tensors: Tensors, flow: dict, hift: dict, noise: np.ndarray, tf32: bool):
        super().__init__("step-audio2", INSTALL, ReferenceNets, tensors, flow, hift, noise, tf32)

    def whole(self, voice: Voice, codes: np.ndarray) -> dict[str, Any]:
        """All codes (1, N) at once: seconds of "flow" and "vocoder", "peak" bytes, "mel" (1, 2 N, M), samples "n"."""
        return self.call("whole", voice, codes)

    def streamed(self, voice: Voice, chunks: list[tuple[np.ndarray, bool]]) -> dict[str, Any]:
        """Chunk by chunk: seconds of the "voice" and of each of the "chunks", "peak" bytes, samples "n"."""
        return self.call("streamed", voice, chunks)


class ReferenceNets:
    """Flow and vocoder of the package, filled with given tensors; arguments as `ReferenceProcess`."""

    def __init__(self, tensors, flow: dict, hift: dict, noise: np.ndarray, tf32: bool):
        import torch

        stand_in("onnxruntime")  # imported there, and not used
        from cosyvoice2.flow.decoder_dit import DiT
        from cosyvoice2.flow.flow import CausalMaskedDiffWithXvec
        from cosyvoice2.flow.flow_matching import CausalConditionalCFM
        from cosyvoice2.transformer.upsample_encoder_v2 import UpsampleConformerEncoderV2
        from flashcosyvoice.modules.hifigan import ConvRNNF0Predictor, HiFTGenerator
        from flashcosyvoice.modules.hifigan_components import layers

        torch.set_grad_enabled(False)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        layers.torch = _Silent(torch)
        self._torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        sizes = flow["decoder"]["estimator"]
        solver = CausalConditionalCFM(DiT(**sizes), inference_cfg_rate=flow["decoder"]["inference_cfg_rate"])
        self._make_room(solver, sizes)
        self.flow = CausalMaskedDiffWithXvec(
            **{k: flow[k] for k in ("input_size", "output_size", "spk_embed_dim", "output_type", "vocab_size")},
            encoder=UpsampleConformerEncoderV2(**flow["encoder"]),
            decoder=solver,
        )
        pitch = ConvRNNF0Predictor(in_channels=hift["in_channels"], cond_channels=hift["f0_cond_channels"])
        own = {n: list(v) if isinstance(v, tuple) else v for n, v in hift.items() if n not in UNNAMED}
        self.hift = HiFTGenerator(**own, istft_params=hift["istft"], f0_predictor=pitch)
        for name, net in (("flow", self.flow), ("hift", self.hift)):
            net.load_state_dict({n: torch.from_numpy(a) for n, a in tensors[name].items()}, strict=True)
            net.to(self.device).eval()
        solver.rand_noise = self._tensor(noise.transpose(0, 2, 1))
        self._window = self._tensor(np.hamming(2 * HELD).astype(np.float32))

    def _make_room(self, solver, sizes: dict) -> None:
        """Its buffers of a stream have the published sizes written in; these have the sizes of the net."""
        zeros, depth, heads = self._torch.zeros, sizes["depth"], sizes["num_heads"]
        keys, channels = 2 * sizes["head_dim"], 2 * sizes["hidden_size"]
        for owner, front in ((solver.estimator, ()), (solver, (16,))):
            owner.att_cache_buffer = zeros(*front, depth, 2, heads, CACHED, keys)
            owner.cnn_cache_buffer = zeros(*front, depth, 2, channels, 2)

    def _tensor(self, array: np.ndarray):
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _length(self, n: int):
        return self._torch.tensor([n], dtype=self._torch.int32, device=self.device)

    def _now(self) -> float:
        if self.device == "cuda":
            self._torch.cuda.synchronize()
        return time.perf_counter()

    def _forget_peak(self) -> None:
        if self.device == "cuda":
            self._torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> int:
        """Bytes held at most on a GPU; 0 on a CPU, where PyTorch counts none."""
        return self._torch.cuda.max_memory_allocated() if self.device == "cuda" else 0

    def whole(self, voice: Voice, codes: np.ndarray) -> dict[str, Any]:
        """As `ReferenceProcess.whole`."""
        prompt, mel, speaker = map(self._tensor, voice)
        self._forget_peak()
        clock = [self._now()]
        made = self.flow.inference(
            self._tensor(codes), self._length(codes.shape[1]), prompt, self._length(prompt.shape[1]), mel,
            self._length(mel.shape[1]), speaker, STEPS,
        )  # fmt: skip
        clock.append(self._now())
        wave, _ = self.hift(speech_feat=made)
        clock.append(self._now())
        flow, vocoder = np.diff(clock).tolist()
        said = {"flow": flow, "vocoder": vocoder, "peak": self._peak(), "n": wave.shape[1]}
        return said | {"mel": made.transpose(1, 2).cpu().numpy()}

    def streamed(self, voice: Voice, chunks: list[tuple[np.ndarray, bool]]) -> dict[str, Any]:
        """As `ReferenceProcess.streamed`."""
        self._forget_peak()
        clock, n = [self._now()], 0
        for made in self._stream(voice, chunks):
            clock.append(self._now())
            n += made
        first, *rest = np.diff(clock).tolist()
        return {"voice": first, "chunks": rest, "peak": self._peak(), "n": n}

    def _stream(self, voice: Voice, chunks: list[tuple[np.ndarray, bool]]) -> Iterator[int]:
        """Samples of each chunk, as the package's `Token2wav` joins them; first 0, when the voice is read."""
        torch = self._torch
        prompt, mel, speaker = map(self._tensor, voice)
        ahead = self.flow.pre_lookahead_len
        cache = self.flow.setup_cache(torch.cat([prompt, prompt[:, :ahead]], dim=1), mel, speaker, n_timesteps=STEPS)
        yield 0
        kept = tuple(torch.zeros(1, *size, device=self.device) for size in ((mel.shape[2], 0), (1, 0), (0,)))
        most = mel.shape[1] + RECENT
        for codes, last in chunks:
            made, cache = self.flow.inference_chunk(self._tensor(codes), speaker, cache, last, STEPS)
            past = cache["estimator_att_cache"]
            if past.shape[4] > most:
                both = past[..., : mel.shape[1], :], past[..., -RECENT:, :]
                cache["estimator_att_cache"] = torch.cat(both, dim=4)
            frames = torch.cat([kept[0], made], dim=2)
            wave, source = self.hift(frames, kept[1])
            if kept[2].shape[1]:
                wave = wave.clone()
                wave[:, :HELD] = wave[:, :HELD] * self._window[:HELD] + kept[2] * self._window[HELD:]
            kept = frames[..., -MEL_FRAMES:].clone(), source[..., -HELD:].clone(), wave[:, -HELD:].clone()
            yield (wave if last else wave[:, :-HELD]).cpu().shape[1]


class _Silent:
    """torch for the vocoder's source, but without noise, so that nothing there is random."""

    def __init__(self, torch):
        self._torch = torch

    def __getattr__(self, name: str):
        return getattr(self._torch, name)

    def randn_like(self, x):
        """Zeros."""
        return self._torch.zeros_like(x)
