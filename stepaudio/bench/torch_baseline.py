"""The same model in PyTorch, as a baseline and as a second opinion; only benchmarks and checks import it.

transformers' Qwen2 with its key/value cache, and the encoder and adapter written in plain torch. It runs in a
process of its own, so that the BLAS libraries and threads of the two do not interfere.
"""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..backend.blas import BLAS_VARIABLE

NEEDED = ("torch", "transformers")
MASKED = -1e10
Answer = tuple[list[int], tuple[float, float, float]]


def available() -> bool:
    """True if torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def versions() -> str:
    """Names and versions of the packages compared with."""
    from importlib.metadata import version

    return f"PyTorch {version('torch')}, transformers {version('transformers')}"


def device() -> str:
    """Where PyTorch computes: "cuda" if it can, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class TorchProcess:
    """A process that holds the model and transcribes one clip at a time.

    Parameters
    ----------
    weights : published name -> float32 array. config : `StepAudioConfig.to_dict()`.
    """

    def __init__(self, weights: dict[str, np.ndarray], config: dict):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = os.environ.get(BLAS_VARIABLE)
        os.environ[BLAS_VARIABLE] = "none"  # torch brings its own
        try:
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
        finally:
            os.environ.pop(BLAS_VARIABLE) if before is None else os.environ.update({BLAS_VARIABLE: before})
        self._pipe.send((weights, config))

    def transcribe(
        self,
        mel: np.ndarray,
        tokens: Iterable[int],
        start: int,
        stop_ids: Iterable[int],
        max_tokens: int,
        threads: int,
    ) -> Answer:
        """As `TorchModel.transcribe`, on so many threads."""
        self._pipe.send((mel, list(tokens), start, set(stop_ids), max_tokens, threads))
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _serve(pipe) -> None:
    import torch

    torch.set_grad_enabled(False)
    model = TorchModel(*pipe.recv())
    while True:
        try:
            *question, threads = pipe.recv()
        except EOFError:
            return
        torch.set_num_threads(threads)
        pipe.send(model.transcribe(*question))


class TorchModel:
    """Encoder, adapter and decoder in PyTorch, with weights by their published names.

    Parameters
    ----------
    weights : mapping of str to float32 array, or to tensor
        Tensors stay where and as they are, and have one type.
    config : dict
        `StepAudioConfig.to_dict()`.
    """

    def __init__(self, weights: Mapping[str, Any], config: dict):
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM
        from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

        text = config["text_config"]
        names = (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "num_hidden_layers",
            "vocab_size",
            "rms_norm_eps",
        )
        positions = text.get("max_position_embeddings") or text.get("max_seq_len") or 32_768
        qwen = Qwen2Config(
            **{n: text[n] for n in names},
            max_position_embeddings=positions,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": text["rope_theta"]},
        )
        self._w = {n: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for n, a in weights.items()}
        self._audio = config["audio_encoder_config"]
        self.device, self.dtype = self._w["model.norm.weight"].device, self._w["model.norm.weight"].dtype
        with torch.device("meta"):  # no second copy, and no time spent on values that are replaced
            self._llm = Qwen2ForCausalLM(qwen).eval()
        takes = inspect.signature(Qwen2ForCausalLM.forward).parameters
        self._cache = "cache" if "cache" in takes else "past_key_values"  # transformers renamed it
        inner = {n: a for n, a in self._w.items() if n.startswith(("model.", "lm_head."))}
        self._llm.load_state_dict(inner, assign=True)
        self._llm.model.rotary_emb = Qwen2RotaryEmbedding(config=qwen).to(self.device)

    def embeddings(self, mel: np.ndarray, tokens: list[int], start: int):
        """A prompt as embeddings (1, n, D), those of the audio from `start` on; and these (R, D)."""
        import torch

        audio = self.encode(torch.from_numpy(mel).to(self.device, self.dtype))
        x = self._llm.model.embed_tokens(torch.tensor([tokens], device=self.device))
        x[0, start : start + len(audio)] = audio
        return x, audio

    def logits(self, x):
        """Embeddings (1, n, D) -> logits (n, vocabulary)."""
        return self._llm(inputs_embeds=x).logits[0]

    def prefill(self, x):
        """Embeddings of a prompt -> its most probable next token (1, 1), and the cache."""
        return self._next(self._llm(inputs_embeds=x, use_cache=True, logits_to_keep=1))

    def step(self, token, cache):
        """One token (1, 1) more: the most probable next one, and the cache."""
        return self._next(self._llm(token, use_cache=True, **{self._cache: cache}))

    def _next(self, found):
        return found.logits[:, -1].argmax(-1, keepdim=True), getattr(found, self._cache)

    def transcribe(self, mel: np.ndarray, tokens: list[int], start: int, stop_ids: set[int], max_tokens: int) -> Answer:
        """Transcribe one clip greedily.

        Parameters
        ----------
        mel : log mel (n_mels, T). tokens : of the prompt. start : position of the audio in it.
        stop_ids, max_tokens : what ends the answer.

        Returns
        -------
        tokens of the answer, and seconds in encoder, prefill and decoding
        """
        import torch

        clock = [time.perf_counter()]
        audio = self.encode(torch.from_numpy(mel))
        clock.append(time.perf_counter())
        x = self._llm.model.embed_tokens(torch.tensor([tokens]))
        x[0, start : start + len(audio)] = audio
        token, cache = self.prefill(x)
        answer = [int(token)]
        clock.append(time.perf_counter())
        while answer[-1] not in stop_ids and len(answer) < max_tokens:
            token, cache = self.step(token, cache)
            answer.append(int(token))
        clock.append(time.perf_counter())
        encoder, prefill, decode = np.diff(clock).tolist()
        return answer, (encoder, prefill, decode)

    def _linear(self, name: str, x):
        from torch.nn.functional import linear

        return linear(x, self._w[f"{name}.weight"], self._w.get(f"{name}.bias"))

    def _conv(self, name: str, x, stride: int):
        from torch.nn.functional import conv1d, gelu

        weight = self._w[f"{name}.weight"]
        return gelu(conv1d(x, weight, self._w[f"{name}.bias"], stride=stride, padding=1))

    def _norm(self, name: str, x):
        from torch.nn.functional import layer_norm

        return layer_norm(x, x.shape[-1:], self._w[f"{name}.weight"], self._w[f"{name}.bias"])

    def encode(self, mel):
        """(n_mels, T) -> audio embeddings (R, D), as the reference computes them for a clip alone."""
        import torch
        from torch.nn.functional import avg_pool1d, relu

        T = mel.shape[1]
        x = self._conv("encoder.conv2", self._conv("encoder.conv1", mel[None], 1), 2).mT  # (1, S, C)
        S = x.shape[1]
        x = x + self._w["encoder.positional_embedding.weight"][:S]
        frame = (T + 1) % 2 + 2 * torch.arange(S, device=self.device)
        mask = torch.where(frame < T - 2, 0.0, MASKED)[None, None, None].to(self.dtype)
        for i in range(self._audio["n_audio_layer"]):
            x = self._block(f"encoder.blocks.{i}", x, mask)
        x = self._norm("encoder.after_norm", avg_pool1d(x.mT, 2).mT)
        x = self._conv("adapter.conv", x.mT, self._audio["adapter_stride"]).mT
        y = self._linear("adapter.linear2", relu(self._linear("adapter.linear1", x)))[0]
        return y[: ((T - 1) // 4 - 1) // self._audio["adapter_stride"] + 1]

    def _block(self, name: str, x, mask):
        from torch.nn.functional import gelu, scaled_dot_product_attention

        B, S, C = x.shape
        h = self._norm(f"{name}.attn_ln", x)
        q, k, v = (
            self._linear(f"{name}.attn.{part}", h).view(B, S, self._audio["n_audio_head"], -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, S, C)
        x = x + self._linear(f"{name}.attn.out", y)
        return x + self._linear(f"{name}.mlp.2", gelu(self._linear(f"{name}.mlp.0", self._norm(f"{name}.mlp_ln", x))))
