"""A tiny flow with random weights, and a voice prompt for it."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from stepaudio.models.token2wav.flow import Prompt

M = 6  # mel bands of the tiny flow
YAML = """flow: !new:cosyvoice2.flow.flow.CausalMaskedDiffWithXvec
    input_size: 16
    output_size: 6   # mel bands
    spk_embed_dim: 5
    output_type: 'mel'
    vocab_size: 30
    encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2
        input_size: 16
        output_size: 16
        input_layer: 'linear'
        pre_lookahead_len: 2
        num_blocks: 1
        num_up_blocks: 2
        up_stride: 2
        up_scale_factor: 2
        attention_heads: 2
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        key_bias: false
        linear_units: 24
        dropout_rate: 0.1
        positional_dropout_rate: 0.1
        attention_dropout_rate: 0.1
        normalize_before: True
    decoder: !new:cosyvoice2.flow.flow_matching.CausalConditionalCFM
        inference_cfg_rate: 0.7
        estimator: !new:cosyvoice2.flow.decoder_dit.DiT
            in_channels: 24
            out_channels: 6
            mlp_ratio: 1.5
            depth: 2
            num_heads: 3
            head_dim: 4
            hidden_size: 8
"""


def random_net(net, seed=0):
    rng = np.random.default_rng(seed)

    def draw(a):
        gain = np.prod(a.shape[1:]) ** -0.5 if a.ndim > 1 else 0.3
        return mx.array((rng.normal(size=a.shape) * gain + (a.ndim == 1) * 0.5).astype(np.float32))

    net.update(tree_map(draw, net.parameters()))
    return net


def make_prompt(seed=0, P=7):
    rng = np.random.default_rng(seed)
    return Prompt(
        rng.integers(0, 30, (1, P)),
        mx.array(rng.normal(size=(1, 2 * P, M)).astype(np.float32)),
        mx.array(rng.normal(size=(1, 5)).astype(np.float32)),
    )
