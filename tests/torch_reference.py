"""The two graphs' nets in PyTorch, written from their descriptions, for its own exporter to write as ONNX.

Only for tests where torch and onnx are installed. Modules are called as the published nets call theirs, so that the
exporter's module paths and names are those of the published files.
"""

import torch
from torch import nn
from torch.nn import functional as F


def conv1(into, out, k, dilation=1, stride=1, bias=False):
    return nn.Conv1d(into, out, k, stride=stride, padding=(k - 1) // 2 * dilation, dilation=dilation, bias=bias)


class Norm(nn.Sequential):
    def __init__(self, n, plain=False):
        super().__init__()
        self.add_module("batchnorm", nn.BatchNorm1d(n, affine=not plain))
        if not plain:
            self.add_module("relu", nn.ReLU(inplace=True))


class Block(nn.Module):
    def __init__(self, C, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(C, C, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(C)
        self.conv2 = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(C)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(C, C, 1, stride=(stride, 1), bias=False), nn.BatchNorm2d(C))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Head(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)
        self.layer1, self.layer2 = (nn.Sequential(Block(C, 2), Block(C, 1)) for _ in range(2))
        self.conv2 = nn.Conv2d(C, C, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(C)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x.unsqueeze(1))))
        x = F.relu(self.bn2(self.conv2(self.layer2(self.layer1(x)))))
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])


class Unit(nn.Module):
    """A linear layer and a norm under the published names."""

    def __init__(self, linear, norm, linear_first=True):
        super().__init__()
        self.linear, self.nonlinear, self.linear_first = linear, norm, linear_first

    def forward(self, x):
        return self.nonlinear(self.linear(x)) if self.linear_first else self.linear(self.nonlinear(x))


class Dense(Unit):
    def forward(self, x):
        return self.nonlinear(self.linear(x.unsqueeze(-1)).squeeze(-1))


class Cam(nn.Module):
    def __init__(self, C, growth, kernel, dilation, pool):
        super().__init__()
        self.linear_local = conv1(C, growth, kernel, dilation)
        self.linear1, self.linear2 = conv1(C, C // 2, 1, bias=True), conv1(C // 2, growth, 1, bias=True)
        self.pool = pool

    def forward(self, x):
        seg = F.avg_pool1d(x, self.pool, self.pool, ceil_mode=True)
        seg = seg.unsqueeze(-1).expand(*seg.shape, self.pool).reshape(*seg.shape[:-1], -1)[..., : x.shape[-1]]
        gate = torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(-1, keepdim=True) + seg))))
        return self.linear_local(x) * gate


class Layer(nn.Module):
    def __init__(self, c, into, kernel, dilation):
        super().__init__()
        self.nonlinear1, self.linear1 = Norm(into), conv1(into, c.bn_channels, 1)
        self.nonlinear2 = Norm(c.bn_channels)
        self.cam_layer = Cam(c.bn_channels, c.growth_rate, kernel, dilation, c.seg_pool)

    def forward(self, x):
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))


class Layers(nn.ModuleList):
    def __init__(self, c, into, layers, kernel, dilation):
        super().__init__()
        for i in range(layers):
            self.add_module(f"tdnnd{i + 1}", Layer(c, into + i * c.growth_rate, kernel, dilation))

    def forward(self, x):
        for layer in self:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Stats(nn.Module):
    def forward(self, x):
        return torch.cat([x.mean(-1), x.std(-1, unbiased=True)], dim=-1)


class CamPlus(nn.Module):
    """(B, T, bands) -> (B, numbers), as `SpeakerConfig` c has it."""

    def __init__(self, c):
        super().__init__()
        self.head, self.xvector = Head(c.fcm_channels), nn.Sequential()
        tdnn = Unit(conv1(c.head_channels, c.init_channels, 5, stride=2), Norm(c.init_channels))
        self.xvector.add_module("tdnn", tdnn)
        for i, ((layers, kernel, dilation), (into, grown, out)) in enumerate(zip(c.blocks, c.widths(), strict=True), 1):
            self.xvector.add_module(f"block{i}", Layers(c, into, layers, kernel, dilation))
            self.xvector.add_module(f"transit{i}", Unit(conv1(grown, out, 1), Norm(grown), linear_first=False))
        self.xvector.add_module("out_nonlinear", Norm(out))
        self.xvector.add_module("stats", Stats())
        self.xvector.add_module("dense", Dense(conv1(2 * out, c.embedding_size, 1), Norm(c.embedding_size, plain=True)))

    def forward(self, x):
        return self.xvector(self.head(x.permute(0, 2, 1)))


class Attention(nn.Module):
    def __init__(self, C, heads, taps):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(C, C, bias=False), nn.Linear(C, C)
        self.out, self.heads, self.taps = nn.Linear(C, C), heads, taps
        self.fsmn_block = nn.Conv1d(C, C, taps, groups=C, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.query(x), self.key(x), self.value(x)
        left = (self.taps - 1) // 2
        memory = self.fsmn_block(F.pad(v.transpose(1, 2), (left, self.taps - 1 - left))).transpose(1, 2) + v
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        q, k = rotate(q), rotate(k)
        weights = torch.softmax(q @ k.transpose(2, 3) * (C // self.heads) ** -0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(B, T, C)) + memory


def rotate(x):
    """Rotary positions, halves turned against each other, base 10000."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2], device=x.device)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


class S3Block(nn.Module):
    def __init__(self, C, heads, taps, eps):
        super().__init__()
        self.attn, self.attn_ln = Attention(C, heads, taps), nn.LayerNorm(C, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))
        self.mlp_ln = nn.LayerNorm(C, eps=eps)

    def forward(self, x):
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))


class Quantizer(nn.Module):
    def __init__(self, C, dims):
        super().__init__()
        self.project_in = nn.Linear(C, dims)

    def forward(self, x):
        h = torch.tanh(self.project_in(x)) * 0.9990000128746033
        return ((h.round() + 1) * 3.0 ** torch.arange(h.shape[-1])).sum(-1).to(torch.int64)


class S3(nn.Module):
    """(B, mels, T) -> (B, codes), one clip without padding, as `S3Config` c has it."""

    def __init__(self, c):
        super().__init__()
        C = c.n_audio_state
        self.conv1 = nn.Conv1d(c.n_mels, C, 3, stride=c.stride, padding=1)
        self.conv2 = nn.Conv1d(C, C, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(S3Block(C, c.n_audio_head, c.fsmn_kernel, c.ln_eps)
                                    for _ in range(c.n_audio_layer))  # fmt: skip
        self.quantizer = Quantizer(C, c.n_dims)

    def forward(self, mel):
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.quantizer(x)
