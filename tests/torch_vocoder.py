"""The vocoder in PyTorch, written from its description, on published tensors: the other side of long golden files.

Every sum is PyTorch's own and in its own order, in float32, so that its waves stray from ours as the reference's do.
"""

import numpy as np
import torch
from torch.nn import functional as F


class TorchVocoder:
    """tensors : published name -> array, with weight norm. c : `HiftConfig`."""

    def __init__(self, tensors, c):
        self.t, self.c = {n: torch.from_numpy(a) for n, a in tensors.items()}, c

    def kernel(self, name):
        if f"{name}.weight" in self.t:
            return self.t[f"{name}.weight"]
        g, v = (self.t[f"{name}.parametrizations.weight.original{i}"] for i in (0, 1))
        return g * v / v.norm(dim=(1, 2), keepdim=True)

    def conv(self, name, x, dilation=1, stride=1, padding=None):
        w = self.kernel(name)
        padding = w.shape[2] // 2 * dilation if padding is None else padding
        return F.conv1d(x, w, self.t[f"{name}.bias"], stride, padding, dilation)

    def residual(self, name, x, dilations):
        def snake(x, which, i):
            a = self.t[f"{name}.activations{which}.{i}.alpha"][:, None]
            return x + torch.sin(a * x) ** 2 / (a + 1e-9)

        for i, d in enumerate(dilations):
            y = self.conv(f"{name}.convs1.{i}", snake(x, 1, i), d)
            x = x + self.conv(f"{name}.convs2.{i}", snake(y, 2, i))
        return x

    def pitch(self, mel):
        for i in range(5):
            mel = F.elu(self.conv(f"f0_predictor.condnet.{2 * i}", mel))
        w, b = (self.t[f"f0_predictor.classifier.{n}"] for n in ("weight", "bias"))
        return (mel.transpose(1, 2) @ w.T + b)[..., 0].abs()  # (1, T)

    def source(self, f0, noise):
        c, per = self.c, self.c.samples_per_frame
        turns = (f0[:, None] * torch.arange(1, c.nb_harmonics + 2)[:, None] / c.sampling_rate) % 1
        phase = torch.cumsum(turns, dim=2) * 2 * np.pi * per
        phase = F.interpolate(phase, scale_factor=per, mode="linear")  # (1, H, n)
        voiced = (f0 > c.nsf_voiced_threshold).float().repeat_interleave(per, dim=1)[:, None]
        spread = c.nsf_sigma * voiced + c.nsf_alpha / 3 * (1 - voiced)
        sines = (c.nsf_alpha * torch.sin(phase) * voiced + spread * noise.transpose(1, 2)).transpose(1, 2)
        w, b = self.t["m_source.l_linear.weight"], self.t["m_source.l_linear.bias"]
        return sines, torch.tanh(sines @ w.T + b)[..., 0]  # (1, n, H), (1, n)

    def wave(self, mel, source):
        c, size, hop = self.c, self.c.istft.n_fft, self.c.istft.hop_len
        window = torch.hann_window(size)
        spectrum = torch.stft(source, size, hop, window=window, return_complex=True)
        spectrum = torch.cat([spectrum.real, spectrum.imag], dim=1)
        x, n = self.conv("conv_pre", mel), len(c.resblock_kernel_sizes)
        for i, (rate, size_up) in enumerate(zip(c.upsample_rates, c.upsample_kernel_sizes, strict=True)):
            x = F.leaky_relu(x, c.lrelu_slope)
            bias = self.t[f"ups.{i}.bias"]
            x = F.conv_transpose1d(x, self.kernel(f"ups.{i}"), bias, rate, (size_up - rate) // 2)
            if i == len(c.upsample_rates) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            step = c.source_strides[i]
            s = self.conv(f"source_downs.{i}", spectrum, stride=step, padding=step // 2 if step > 1 else 0)
            x = x + self.residual(f"source_resblocks.{i}", s, c.source_resblock_dilation_sizes[i])
            blocks = enumerate(c.resblock_dilation_sizes)
            x = sum(self.residual(f"resblocks.{n * i + j}", x, d) for j, d in blocks) / n
        x = self.conv("conv_post", F.leaky_relu(x, c.final_lrelu_slope))
        size_bins = size // 2 + 1
        magnitude, phase = x[:, :size_bins].exp().clamp(max=c.magnitude_clip), torch.sin(x[:, size_bins:])
        wave = torch.istft(torch.polar(magnitude, phase), size, hop, window=window)
        return wave.clamp(-c.audio_limit, c.audio_limit)

    @torch.no_grad()
    def __call__(self, mel, noise, cache=None):
        """mel (1, M, T), noise (1, n, H), cache (1, 1, m) -> f0, sines, source and wav, as golden files have them."""
        mel, noise = torch.from_numpy(mel), torch.from_numpy(noise)
        f0 = self.pitch(mel)
        sines, source = self.source(f0, noise)
        if cache is not None:
            source = torch.cat([torch.from_numpy(cache)[:, 0], source[:, cache.shape[2] :]], dim=1)
        found = {"f0": f0, "sines": sines, "source": source[:, None], "wav": self.wave(mel, source)}
        return {name: array.numpy() for name, array in found.items()}
