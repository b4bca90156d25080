"""Kokoro-82M in PyTorch, written for batches: many utterances, one pass.

The weights come from `kokoro_convert.py` (int8 + scale, brought back to
floating point here).  Two steps, and a batch of each must agree in one length,
so that nothing needs padding or masks and a batch gives just what single
utterances give:

    durations(ids, style, speed)      phoneme ids of equal count -> frames of 25 ms
                                      per phoneme, and two encodings of the text
    synthesise(encodings, durations)  equal total of frames -> 24 kHz audio and its pitch

Durations, pitch and sound agree with the ONNX export run in floating point (see
kokoro_check.py); beside the int8 export, which also rounds the activations, the
durations differ by a frame here and there and the sound is a little cleaner.

The network: an ALBERT text encoder and three LSTMs predict the durations; text
encodings are repeated by them, and an LSTM with two small stacks predicts the
pitch (F0) and the energy (N) curves; a decoder with style-dependent instance
norms (AdaIN) and a generator driven by a sum of harmonics of F0 produce a short
spectrum (20 points, hop 5) that one transposed convolution turns into samples.
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F

FRAME = 600  # samples of 24 kHz audio per duration frame
TWO_PI = 2 * math.pi
UNVOICED = 10.0  # Hz, at and below which a pitch means that there is none

# How a clip departs from what the network would say, and what leaves it as it is:
#   pitch, spread   factors on the pitch and on its distance from its mean, both of logarithms
#   rough           standard deviation of the pitch's logarithm from one half frame to the next
#   energy          factor on the energy's distance from its mean
#   blur            standard deviation, in frames, of a bell by which the sounds run into each other
#   breath          factor on the noise in voiced sound
PLAIN = {"pitch": 1.0, "spread": 1.0, "rough": 0.0, "energy": 1.0, "blur": 0.0, "breath": 1.0}
BLUR_REACH = 6  # frames


class Kokoro:
    def __init__(self, path, device="cpu"):
        self.device = torch.device(device)
        arrays = np.load(path)
        w = {}
        for name in arrays.files:
            if name.endswith(".scale") or name.startswith("voice/") or name == "vocab":
                continue
            value = torch.from_numpy(arrays[name]).float()
            if name + ".scale" in arrays:
                scale = torch.from_numpy(arrays[name + ".scale"])
                value = value * scale.reshape(-1, *[1] * (value.dim() - 1)) if scale.dim() else value * scale
            w[name] = value.to(self.device)
        self.w = w
        self.vocab = json.loads(bytes(arrays["vocab"]).decode())
        self.voices = {n[6:]: torch.from_numpy(arrays[n]).float() for n in arrays.files if n.startswith("voice/")}
        self.lstms = {
            n[: -len(".weight_ih_l0")]: self._lstm(n[: -len(".weight_ih_l0")]) for n in w if n.endswith(".weight_ih_l0")
        }
        k = torch.arange(20, dtype=torch.float64)
        window = 0.5 - 0.5 * torch.cos(TWO_PI * k / 20)
        angle = TWO_PI * torch.arange(11, dtype=torch.float64)[:, None] * k / 20
        analysis = torch.cat([angle.cos(), -angle.sin()]) * window
        analysis[[11, 21]] = 0  # the first and last bins have no imaginary part
        weight = torch.full((11, 1), 2.0, dtype=torch.float64)
        weight[[0, 10]] = 1
        synthesis = torch.cat([weight * angle.cos(), -weight * angle.sin()]) * window / 20
        synthesis[[11, 21]] = 0
        self.analysis = analysis.float()[:, None].to(self.device)
        self.synthesis = synthesis.float()[:, None].to(self.device)
        self.window2 = (window**2).float().reshape(1, 1, 20).to(self.device)

    # -- text ---------------------------------------------------------------

    def ids(self, phonemes):
        """Phoneme string -> ids with the padding symbol at both ends; unknown symbols are dropped."""
        return [0] + [self.vocab[p] for p in phonemes if p in self.vocab] + [0]

    def style(self, voice, n_ids, prosody=None):
        """The (256,) style of a voice, or of a mix [[voice, weight], ...], for n_ids phonemes and pads.

        Its second half, which durations, pitch and energy hang on, comes from `prosody` (likewise) if given.
        """
        mix = [[voice, 1.0]] if isinstance(voice, str) else voice
        total = sum(weight for _, weight in mix)
        style = torch.zeros_like(self.voices[mix[0][0]][n_ids - 3])
        for name, weight in mix:
            style = style + self.voices[name][n_ids - 3] * (weight / total)
        return style if prosody is None else torch.cat([style[:128], self.style(prosody, n_ids)[128:]])

    # -- layers -------------------------------------------------------------

    def _lstm(self, name):
        w = self.w
        lstm = torch.nn.LSTM(w[name + ".weight_ih_l0"].shape[1], 256, batch_first=True, bidirectional=True)
        lstm.load_state_dict({k: w[f"{name}.{k}"] for k in lstm.state_dict()})
        lstm = lstm.to(self.device).eval()
        lstm.flatten_parameters()
        return lstm

    def linear(self, name, x):
        return F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def conv(self, name, x, stride=1, padding=0, dilation=1):
        return F.conv1d(x, self.w[name + ".weight"], self.w.get(name + ".bias"), stride, padding, dilation)

    def adain(self, name, x, style):
        """Instance norm over time, scaled and shifted by the style: one batch-norm over batch x channels."""
        b, c, t = x.shape
        gamma, beta = self.linear(name + ".fc", style).chunk(2, 1)
        y = torch.batch_norm(
            x.reshape(1, b * c, t), (1 + gamma).flatten(), beta.flatten(), None, None, True, 0.0, 1e-5, False
        )
        return y.view(b, c, t)

    def albert(self, ids):
        b, t = ids.shape
        w = self.w
        emb = "bert.embeddings."
        x = w[emb + "word_embeddings.weight"][ids] + w[emb + "position_embeddings.weight"][:t]
        x = x + w[emb + "token_type_embeddings.weight"][0]
        x = F.layer_norm(x, (128,), w[emb + "LayerNorm.weight"], w[emb + "LayerNorm.bias"], 1e-12)
        x = self.linear("bert.embedding_hidden_mapping_in", x)
        for _ in range(12):
            q, k, v = (
                self.linear("albert.attention." + n, x).view(b, t, 12, 64).transpose(1, 2)
                for n in ("query", "key", "value")
            )
            a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 768)
            x = F.layer_norm(
                x + self.linear("albert.attention.dense", a),
                (768,),
                w["albert.attention.LayerNorm.weight"],
                w["albert.attention.LayerNorm.bias"],
                1e-12,
            )
            y = self.linear("albert.ffn_output", F.gelu(self.linear("albert.ffn", x), approximate="tanh"))
            x = F.layer_norm(
                x + y, (768,), w["albert.full_layer_layer_norm.weight"], w["albert.full_layer_layer_norm.bias"], 1e-12
            )
        return x

    def text_encoder(self, ids):
        w = self.w
        x = w["text_encoder.embedding.weight"][ids]
        for k in range(3):
            x = self.conv(f"text_encoder.cnn.{k}.0", x.transpose(1, 2), padding=2).transpose(1, 2)
            x = F.layer_norm(x, (512,), w[f"text_encoder.cnn.{k}.1.gamma"], w[f"text_encoder.cnn.{k}.1.beta"], 1e-5)
            x = F.leaky_relu(x, 0.2)
        return self.lstms["text_encoder.lstm"](x)[0]

    def res_block(self, name, x, style):
        """Two AdaIN + convolution layers beside a shortcut; doubles the length where it has a `pool`."""
        shortcut = x
        x = F.leaky_relu(self.adain(name + ".norm1", x, style), 0.2)
        pool = self.w.get(name + ".pool.weight")
        if pool is not None:
            shortcut = shortcut.repeat_interleave(2, dim=2)
            x = F.conv_transpose1d(
                x, pool, self.w[name + ".pool.bias"], stride=2, padding=1, output_padding=1, groups=pool.shape[0]
            )
        if name + ".conv1x1.weight" in self.w:
            shortcut = self.conv(name + ".conv1x1", shortcut)
        x = self.conv(name + ".conv1", x, padding=1)
        x = F.leaky_relu(self.adain(name + ".norm2", x, style), 0.2)
        return (self.conv(name + ".conv2", x, padding=1) + shortcut) * math.sqrt(0.5)

    def snake(self, name, x):
        """x + sin(a x)^2 / a, with a slope per channel."""
        a = self.w[name]
        s = (x * a).sin_()
        return x.addcmul_(s, s / a)

    def snake_block(self, name, x, style):
        """Three pairs of convolutions with snake activations, dilated 1, 3 and 5."""
        half = self.w[name + ".convs1.0.weight"].shape[2] // 2
        for k, dilation in enumerate((1, 3, 5)):
            y = self.snake(f"{name}.alpha1.{k}", self.adain(f"{name}.adain1.{k}", x, style))
            y = self.conv(f"{name}.convs1.{k}", y, padding=half * dilation, dilation=dilation)
            y = self.snake(f"{name}.alpha2.{k}", self.adain(f"{name}.adain2.{k}", y, style))
            x = x + self.conv(f"{name}.convs2.{k}", y, padding=half)
        return x

    # -- the two steps --------------------------------------------------------

    @torch.inference_mode()
    def durations(self, ids, style, speed):
        """(B, T) ids, (B, 256) styles, (B,) speeds -> (B, T) frames, (B, T, 640) and (B, T, 512) encodings."""
        side = style[:, None, 128:].expand(-1, ids.shape[1], -1)
        x = torch.cat([self.linear("bert_encoder", self.albert(ids)), side], 2)
        for k in (0, 2, 4):
            x = self.lstms[f"predictor.text_encoder.lstms.{k}"](x)[0]
            gamma, beta = self.linear(f"predictor.text_encoder.lstms.{k + 1}.fc", style[:, None, 128:]).chunk(2, 2)
            x = torch.cat([(1 + gamma) * F.layer_norm(x, (512,), eps=1e-5) + beta, side], 2)
        logits = self.linear("predictor.duration_proj.linear_layer", self.lstms["predictor.lstm"](x)[0])
        frames = (logits.sigmoid().sum(2) / speed[:, None]).round().clamp(min=1).long()
        return frames, x, self.text_encoder(ids)

    def source(self, f0, noise, breath=1.0):
        """Pitch curve (B, 2 per frame) -> magnitude and phase of nine harmonics' sum; `breath` is one factor or B."""
        harmonics = torch.arange(1, 10, device=f0.device, dtype=torch.float64)
        step = (f0.double()[:, None] * harmonics[:, None] / 24000).remainder(1.0)
        cycles = F.interpolate(step.cumsum(2) * 300, scale_factor=300, mode="linear")
        sines = (cycles.remainder(1.0).float() * TWO_PI).sin_().mul_(0.1)
        voiced = (f0 > UNVOICED).float()[:, None].repeat_interleave(300, dim=2)
        sines = sines * voiced
        if noise:  # as in training: faint under voiced sound, strong where there is none
            breath = torch.as_tensor(breath, device=f0.device).reshape(-1, 1, 1)
            sines = sines + torch.randn_like(sines) * (noise * (voiced * 0.003 * breath + (1 - voiced) * (0.1 / 3)))
        wave = torch.tanh(self.linear("decoder.generator.m_source.l_linear", sines.transpose(1, 2))).transpose(1, 2)
        real, imag = F.conv1d(F.pad(wave, (10, 10), mode="reflect"), self.analysis, stride=5).chunk(2, 1)
        return torch.cat([torch.hypot(real, imag), torch.atan2(imag, real)], 1)

    def generator(self, x, style, f0, noise, breath=1.0):
        g = "decoder.generator."
        w = self.w
        har = self.source(f0, noise, breath)
        for k, (stride, pad) in enumerate(((10, 5), (6, 3))):
            side = self.conv(g + f"noise_convs.{k}", har, *((6, 3) if k == 0 else (1, 0)))
            side = self.snake_block(g + f"noise_res.{k}", side, style)
            x = F.conv_transpose1d(
                F.leaky_relu(x, 0.1), w[g + f"ups.{k}.weight"], w[g + f"ups.{k}.bias"], stride=stride, padding=pad
            )
            if k == 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + side
            blocks = [self.snake_block(g + f"resblocks.{3 * k + j}", x, style) for j in range(3)]
            x = (blocks[0] + blocks[1] + blocks[2]) / 3
        x = self.conv(g + "conv_post", F.leaky_relu(x, 0.01), padding=3).float()
        magnitude, phase = x[:, :11].exp(), x[:, 11:].sin()
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], 1)
        audio = F.conv_transpose1d(spectrum, self.synthesis, stride=5)
        weight = F.conv_transpose1d(torch.ones_like(spectrum[:1, :1]), self.window2, stride=5)
        return audio[:, 0, 10:-10] / weight[0, :, 10:-10]

    def bend(self, f0, manner):
        """Pitch curves (B, 1, 2F), moved, stretched and roughened; `manner` has a (B, 1, 1) for each name of PLAIN."""
        voiced = f0 > UNVOICED
        log = f0.clamp(min=UNVOICED).log()
        mean = (log * voiced).sum(2, keepdim=True) / voiced.sum(2, keepdim=True).clamp(min=1)
        log = mean + (log - mean) * manner["spread"] + torch.randn_like(log) * manner["rough"]
        return torch.where(voiced, (log.exp() * manner["pitch"]).clamp(min=1.2 * UNVOICED), f0)

    def blur(self, text, deviation):
        """(B, C, F) encodings of the sounds, each frame a Gaussian mean of its neighbours.

        `deviation` (B, 1, 1) is the standard deviation in frames.
        """
        away = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=text.device)
        bell = (-0.5 * (away / deviation.clamp(min=1e-3)) ** 2).exp()
        bell = bell / bell.sum(2, keepdim=True)
        padded = F.pad(text, (BLUR_REACH, BLUR_REACH), mode="replicate")
        blurred = torch.zeros_like(text)
        for k in range(len(away)):
            blurred = blurred + bell[:, :, k : k + 1] * padded[:, :, k : k + text.shape[2]]
        return blurred

    @torch.inference_mode()
    def synthesise(self, index, style, for_pitch, for_sound, noise=1.0, manner=None):
        """(B, F) phoneme position of each frame, (B, 256) styles, the two encodings -> (B, 600 F) samples, and the
        pitch that they were made with, (B, 2 F) Hz, `UNVOICED` and below where there is none.

        noise=0 leaves out the random part of the source, as the ONNX export does; the network was
        trained with it, and unvoiced sounds come out smoother. `manner` gives B numbers to each name of PLAIN.
        """
        if manner is not None:
            manner = {name: style.new_tensor(values)[:, None, None] for name, values in manner.items()}

        def spread(x):
            return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))

        pitch_style, sound_style = style[:, 128:], style[:, :128]
        shared = self.lstms["predictor.shared"](spread(for_pitch))[0].transpose(1, 2)
        f0 = n = shared
        for k in range(3):
            f0 = self.res_block(f"predictor.F0.{k}", f0, pitch_style)
            n = self.res_block(f"predictor.N.{k}", n, pitch_style)
        f0 = self.conv("predictor.F0_proj", f0)
        n = self.conv("predictor.N_proj", n)
        text = spread(for_sound).transpose(1, 2)
        if manner is not None:
            f0, mean = self.bend(f0, manner), n.mean(2, keepdim=True)
            n, text = mean + (n - mean) * manner["energy"], self.blur(text, manner["blur"])
        f0_low = self.conv("decoder.F0_conv", f0, stride=2, padding=1)
        n_low = self.conv("decoder.N_conv", n, stride=2, padding=1)
        x = self.res_block("decoder.encode", torch.cat([text, f0_low, n_low], 1), sound_style)
        side = torch.cat([self.conv("decoder.asr_res.0", text), f0_low, n_low], 1)
        for k in range(4):
            x = self.res_block(f"decoder.decode.{k}", torch.cat([x, side], 1), sound_style)
        return self.generator(x, sound_style, f0[:, 0], noise, 1.0 if manner is None else manner["breath"]), f0[:, 0]


def frame_index(durations):
    """(B, T) durations of equal sums -> (B, F): which phoneme each frame belongs to."""
    total = int(durations[0].sum())
    positions = torch.arange(durations.shape[1], device=durations.device).expand_as(durations)
    return positions.flatten().repeat_interleave(durations.flatten()).view(-1, total)
