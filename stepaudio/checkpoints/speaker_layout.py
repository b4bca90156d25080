"""Names and shapes of every published tensor of CAM++, computed from its sizes; shapes are PyTorch's.

The counters of training batches are in the published list and not in the net: they are dropped on purpose.
Knows nothing of files or values.
"""

from __future__ import annotations

from ..models.token2wav.campplus import COUNTER, HEAD_BLOCKS, HEAD_LAYERS, REDUCTION, TDNN_TAPS, SpeakerConfig
from .layout import Shape

CONV1D_AXES, CONV2D_AXES = (0, 2, 1), (0, 2, 3, 1)  # PyTorch's (out, in, …) to MLX's (out, …, in)


def speaker_layout(config: SpeakerConfig) -> dict[str, Shape]:
    """Published name -> shape on disk; 937 entries for the published sizes, of which 122 are counters."""
    layout = _head(config) | _tdnn(config)
    for i, (block, (into, grown, out)) in enumerate(zip(config.blocks, config.widths(), strict=True), 1):
        for j in range(block[0]):
            width = into + j * config.growth_rate
            layout |= _dense_layer(f"xvector.block{i}.tdnnd{j + 1}", config, width, block[1])
        layout |= _norm(f"xvector.transit{i}.nonlinear.batchnorm", grown)
        layout[f"xvector.transit{i}.linear.weight"] = (out, grown, 1)
    layout |= _norm("xvector.out_nonlinear.batchnorm", out)
    layout["xvector.dense.linear.weight"] = (config.embedding_size, 2 * out, 1)
    return layout | _norm("xvector.dense.nonlinear.batchnorm", config.embedding_size, affine=False)


def speaker_kernels(config: SpeakerConfig) -> dict[str, tuple[int, ...]]:
    """Name -> axes of every tensor that the net holds in another order than PyTorch: `t.transpose(axes)`.

    They are the network's convolutions, by name: in `head` over pictures, elsewhere over time. Batch norms and
    biases have one axis and are alike.
    """
    kernels = [name for name, shape in speaker_layout(config).items() if len(shape) > 1]
    return {name: CONV2D_AXES if name.startswith("head.") else CONV1D_AXES for name in kernels}


def _norm(name: str, channels: int, affine: bool = True) -> dict[str, Shape]:
    kinds = ("weight", "bias", "running_mean", "running_var")[0 if affine else 2 :]
    return {f"{name}.{kind}": (channels,) for kind in kinds} | {name + COUNTER: ()}


def _conv_norm(conv: str, norm: str, out: int, into: int, size: int) -> dict[str, Shape]:
    return {f"{conv}.weight": (out, into, size, size)} | _norm(norm, out)


def _head(config: SpeakerConfig) -> dict[str, Shape]:
    C = config.fcm_channels
    layout = _conv_norm("head.conv1", "head.bn1", C, 1, 3)
    for i in range(HEAD_LAYERS):
        for j in range(HEAD_BLOCKS):
            block = f"head.layer{i + 1}.{j}"
            layout |= _conv_norm(f"{block}.conv1", f"{block}.bn1", C, C, 3)
            layout |= _conv_norm(f"{block}.conv2", f"{block}.bn2", C, C, 3)
            if j == 0:  # the block that strides over the bands
                layout |= _conv_norm(f"{block}.shortcut.0", f"{block}.shortcut.1", C, C, 1)
    return layout | _conv_norm("head.conv2", "head.bn2", C, C, 3)


def _tdnn(config: SpeakerConfig) -> dict[str, Shape]:
    C = config.init_channels
    kernel = {"xvector.tdnn.linear.weight": (C, config.head_channels, TDNN_TAPS)}
    return kernel | _norm("xvector.tdnn.nonlinear.batchnorm", C)


def _dense_layer(name: str, config: SpeakerConfig, into: int, kernel: int) -> dict[str, Shape]:
    C, growth = config.bn_channels, config.growth_rate
    inner, cam = C // REDUCTION, f"{name}.cam_layer"
    return {
        **_norm(f"{name}.nonlinear1.batchnorm", into),
        f"{name}.linear1.weight": (C, into, 1),
        **_norm(f"{name}.nonlinear2.batchnorm", C),
        f"{cam}.linear_local.weight": (growth, C, kernel),
        f"{cam}.linear1.weight": (inner, C, 1),
        f"{cam}.linear1.bias": (inner,),
        f"{cam}.linear2.weight": (growth, inner, 1),
        f"{cam}.linear2.bias": (growth,),
    }


def foldable(config: SpeakerConfig) -> dict[str, str]:
    """Convolution -> the batch norm right behind it: pairs that an exporter may fold into one kernel with a bias."""
    pairs = {"head.conv1": "head.bn1", "head.conv2": "head.bn2"}
    for i in range(1, HEAD_LAYERS + 1):
        for j in range(HEAD_BLOCKS):
            block = f"head.layer{i}.{j}"
            pairs |= {f"{block}.conv{k}": f"{block}.bn{k}" for k in (1, 2)}
            pairs |= {f"{block}.shortcut.0": f"{block}.shortcut.1"} if j == 0 else {}
    pairs["xvector.tdnn.linear"] = "xvector.tdnn.nonlinear.batchnorm"
    for i, (layers, _, _) in enumerate(config.blocks, 1):
        for j in range(1, layers + 1):
            pairs[f"xvector.block{i}.tdnnd{j}.linear1"] = f"xvector.block{i}.tdnnd{j}.nonlinear2.batchnorm"
    pairs[f"xvector.transit{len(config.blocks)}.linear"] = "xvector.out_nonlinear.batchnorm"
    return pairs | {"xvector.dense.linear": "xvector.dense.nonlinear.batchnorm"}
