"""Sizes of the nets, from the shapes of their published tensors and what the graphs say beside them.

No config file is published for tokenizer, speaker encoder and vocoder. A size is what most of the tensors that have
it say, so that one wrong tensor is distinguished from another net; and a file that nearly fits the published sizes is
held against these. What no shape shows is the reference's literal: 64 channels a head, dilations 1, 3, 5, 480 samples
a frame, an inverse STFT that steps a quarter of its length. Shapes are PyTorch's.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ...audio.features import FLOW_HOP
from ...errors import ConfigError, WeightsError
from ...models.token2wav.campplus import BAND_STRIDE, COUNTER, SpeakerConfig
from ...models.token2wav.hift import HiftConfig, IstftConfig
from ...models.token2wav.speech_tokenizer import LEVELS, S3Config
from ...schema import MAX_LAYERS
from ..layout import Shape, expected_layout
from ..report import ENOUGH
from ..weight_norm import DIRECTION
from .onnx_file import Graph
from .onnx_names import attention_heads, the_one

HEAD_SIZE = 64  # of Whisper's attention, at every width
Shapes = Mapping[str, Shape]


def _size(shapes: Shapes, *witnesses: tuple[str, int]) -> int:
    """What most witnesses say; each is a pattern of names and an axis of their tensors. The first breaks a tie."""
    said = [
        shape[axis]
        for pattern, axis in witnesses
        for name, shape in shapes.items()
        if len(shape) > axis and shape[axis] > 0 and re.fullmatch(pattern, name)
    ]
    if not said:
        shown = witnesses[0][0].replace("\\", "")
        raise WeightsError(f"{shown} is missing, and sizes cannot be inferred without it; is it another model?")
    return Counter(said).most_common(1)[0][0]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that stands at the group of `pattern`; 0 where there is none.

    Raises `WeightsError` for more than there are tensors: a name may hold any number, and nets are built from these.
    """
    found = [int(match[1][:18]) for match in map(re.compile(pattern).match, shapes) if match]
    count = max(found, default=-1) + 1
    if count > min(len(shapes), MAX_LAYERS):
        raise WeightsError(
            f"a name counts up to {count - 1}, of only {len(shapes)} tensors and at most {MAX_LAYERS} layers; "
            "do not use this file"
        )
    return count


def _rounded(eps: float) -> float:
    """A float32 as it was meant: 9.99999974e-06 -> 1e-05."""
    return float(f"{eps:.6g}")


def _fits(shapes: Shapes, layout: Mapping[str, Shape]) -> bool:
    """Whether nearly all of the tensors have the names and shapes of `layout`, counters aside."""
    wanted = {name: shape for name, shape in layout.items() if not name.endswith(COUNTER)}
    return sum(shapes.get(name) == shape for name, shape in wanted.items()) >= ENOUGH * max(len(wanted), len(shapes))


def s3_sizes(shapes: Shapes, graph: Graph | None = None) -> S3Config:
    """Of the speech tokenizer; heads, stride and epsilon as the graph has them, where it says so."""
    stated = {}
    if graph is not None:
        stride, eps = the_one(graph, "Conv", "strides", "conv1"), the_one(graph, "LayerNormalization", "epsilon")
        stated = {"stride": stride[0]} if stride else {}
        stated |= {"ln_eps": _rounded(eps)} if eps else {}
    published = replace(S3Config(), **stated)
    if _fits(shapes, expected_layout(published)):
        return published
    block = r"encoder\.blocks\.\d+\."
    C = _size(shapes, (r"encoder\.conv1\.weight", 0), (block + r"attn_ln\..*", 0), (block + r"attn\.query\..*", 0))
    narrow = r"quantizer\._codebook\.project_down\."
    return S3Config(
        n_mels=_size(shapes, (r"encoder\.conv1\.weight", 1)), n_audio_state=C,
        n_audio_head=(graph and attention_heads(graph)) or max(1, C // HEAD_SIZE),
        n_audio_layer=_count(shapes, r"encoder\.blocks\.(\d+)\."),
        n_codebook_size=LEVELS ** _size(shapes, (narrow + "weight", 0), (narrow + "bias", 0)),
        fsmn_kernel=_size(shapes, (block + r"attn\.fsmn_block\.weight", 2)), **stated)  # fmt: skip


def speaker_sizes(shapes: Shapes, graph: Graph | None = None) -> SpeakerConfig:
    """Of CAM++; dilations, epsilon and the pooled segment as the graph has them, else the published ones."""
    published, stated = SpeakerConfig(), {}
    if graph is not None:
        eps, pool = the_one(graph, "BatchNormalization", "epsilon"), the_one(graph, "AveragePool", "kernel_shape")
        stated = ({"bn_eps": _rounded(eps)} if eps else {}) | ({"seg_pool": pool[0]} if pool else {})
    published = replace(published, blocks=_blocks(shapes, graph) or published.blocks, **stated)
    if _fits(shapes, expected_layout(published)):
        return published
    layer, head = r"xvector\.block\d+\.tdnnd\d+\.", r"head\.layer\d+\.\d+\.conv\d\.weight"
    fcm = _size(shapes, (head, 0), (r"head\.conv1\.weight", 0))
    growth = _size(shapes, (layer + r"cam_layer\.linear_local\.weight", 0), (layer + r"cam_layer\.linear2\..*", 0))
    wide = _size(shapes, (layer + r"linear1\.weight", 0), (layer + r"cam_layer\.linear_local\.weight", 1))
    return replace(
        published, growth_rate=growth, bn_size=max(1, wide // growth), fcm_channels=fcm,
        feat_dim=BAND_STRIDE * _size(shapes, (r"xvector\.tdnn\.linear\.weight", 1)) // fcm,
        init_channels=_size(shapes, (r"xvector\.tdnn\.linear\.weight", 0), (r"xvector\.tdnn\.nonlinear\..*", 0),
                            (r"xvector\.block1\.tdnnd1\.nonlinear1\..*", 0)),
        embedding_size=_size(shapes, (r"xvector\.dense\.linear\.weight", 0), (r"xvector\.dense\.nonlinear\..*", 0)),
    )  # fmt: skip


def _blocks(shapes: Shapes, graph: Graph | None) -> tuple[tuple[int, int, int], ...]:
    """(layers, kernel, dilation) of each dense block; the published dilation where no graph says it."""
    published, found = SpeakerConfig().blocks, []
    for i in range(1, _count(shapes, r"xvector\.block(\d+)\.")):
        layers = _count(shapes, rf"xvector\.block{i}\.tdnnd(\d+)\.") - 1
        if layers + sum(known for known, _, _ in found) > MAX_LAYERS:
            raise WeightsError(f"xvector: more than {MAX_LAYERS} layers; do not use this file")
        local = rf"xvector\.block{i}\.tdnnd\d+\.cam_layer\.linear_local\.weight"
        stated = [the_one(graph, "Conv", "dilations", f"block{i}.tdnnd{j}.cam_layer.linear_local")
                for j in range(1, layers + 1)] if graph else []  # fmt: skip
        dilations = {d[0] for d in stated if d} or {published[min(i, len(published)) - 1][2]}
        if len(dilations) > 1:
            raise WeightsError(f"xvector.block{i}: dilations {sorted(dilations)}; expected one for all its layers")
        found.append((layers, _size(shapes, (local, 2)), dilations.pop()))
    return tuple(found)


def hift_sizes(shapes: Shapes) -> HiftConfig:
    """Of the vocoder, weight norm not merged; names without "generator."."""
    if _fits(shapes, expected_layout(HiftConfig())):
        return HiftConfig()
    v, stages = re.escape(DIRECTION), _count(shapes, r"ups\.(\d+)\.")
    istft = _istft(shapes)
    kernels, dilations = _resblocks(shapes, "resblocks", -(-_count(shapes, r"resblocks\.(\d+)\.") // max(stages, 1)))
    source_kernels, source_dilations = _resblocks(shapes, "source_resblocks", stages)
    return HiftConfig(
        in_channels=_size(shapes, (f"conv_pre{v}", 1), (rf"f0_predictor\.condnet\.0{v}", 1)),
        base_channels=_size(shapes, (f"conv_pre{v}", 0), (r"conv_pre\.bias", 0), (rf"ups\.0{v}", 0)),
        f0_cond_channels=_size(shapes, (rf"f0_predictor\.condnet\.\d+{v}", 0)),
        nb_harmonics=_size(shapes, (r"m_source\.l_linear\.weight", 1)) - 1,
        upsample_rates=_rates(shapes, stages, istft.hop_len), istft=istft,
        upsample_kernel_sizes=tuple(_size(shapes, (rf"ups\.{i}{v}", 2)) for i in range(stages)),
        resblock_kernel_sizes=kernels, resblock_dilation_sizes=dilations,
        source_resblock_kernel_sizes=source_kernels, source_resblock_dilation_sizes=source_dilations,
    )  # fmt: skip


def _istft(shapes: Shapes) -> IstftConfig:
    n_fft = _size(shapes, (r"source_downs\.\d+\.weight", 1), (r"conv_post\.bias", 0)) - 2
    return IstftConfig(n_fft, max(1, n_fft // 4))


def _rates(shapes: Shapes, stages: int, hop: int) -> tuple[int, ...]:
    """From how far each stage thins the source: its kernel is twice as long as that stride, or 1 where that is 1."""
    strides = [max(1, _size(shapes, (rf"source_downs\.{i}\.weight", 2)) // 2) for i in range(stages)]
    first, rest = divmod(FLOW_HOP, strides[0] * hop) if strides else (0, 1)
    if rest or any(a % b for a, b in itertools.pairwise(strides)):
        raise ConfigError(
            f"hift: source strides {strides} and hop {hop} do not make {FLOW_HOP} samples a mel frame; "
            "is it the vocoder of another model?"
        )
    return (first, *(a // b for a, b in itertools.pairwise(strides)))


def _resblocks(shapes: Shapes, name: str, n: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    v = re.escape(DIRECTION)
    kernels = tuple(_size(shapes, (rf"{name}\.{i}\.convs[12]\.\d+{v}", 2)) for i in range(n))
    depths = [_count(shapes, rf"{name}\.{i}\.convs[12]\.(\d+)\.") for i in range(n)]
    return kernels, tuple(tuple(2 * j + 1 for j in range(depth)) for depth in depths)
