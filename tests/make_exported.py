"""Writes `assets/exported`: files written by PyTorch, and its nets' outputs. Run by hand; needs torch and onnx.

python tests/make_exported.py
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch_reference
from safetensors.numpy import save_file

from stepaudio.models.token2wav.campplus import SpeakerConfig
from stepaudio.models.token2wav.speech_tokenizer import S3Config

FOLDER = Path(__file__).parent / "assets" / "exported"
SPEAKER = SpeakerConfig(feat_dim=16, embedding_size=6, growth_rate=4, bn_size=2, init_channels=6,
                        blocks=((2, 3, 1), (3, 3, 2)), fcm_channels=4, seg_pool=7)  # fmt: skip
TOKENIZER = S3Config(n_mels=8, n_audio_state=16, n_audio_head=2, n_audio_layer=2, n_codebook_size=81, fsmn_kernel=5)


def export(net, x, name: str, axis: int) -> np.ndarray:
    with torch.no_grad():
        y = net(x)
    torch.onnx.export(net, (x,), FOLDER / name, input_names=["input"], output_names=["output"],
                      dynamic_axes={"input": {axis: "T"}}, opset_version=17, dynamo=False)  # fmt: skip
    return y.numpy()


def shaken(net):
    """Norms away from one and zero, so that none passes for another."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if getattr(module, "weight", None) is not None and module.weight.ndim == 1:
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return net.eval()


def odd_tensors() -> OrderedDict:
    """One of everything that a state dict may hold."""
    base = torch.arange(24, dtype=torch.float32)
    found = OrderedDict(
        whole=base.clone(), row=base[4:10], turned=base.reshape(4, 6).T, strided=base.reshape(4, 6)[:, ::2],
        half=base[:5].half(), brain=base[:5].bfloat16(), scalar=torch.tensor(3.5), empty=torch.zeros(0, 3),
        counter=torch.tensor(7), parameter=torch.nn.Parameter(torch.ones(2, 2) * 0.25), epoch=3, step="done",
    )  # fmt: skip
    found._metadata = OrderedDict(version=1)
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    features, mel = torch.randn(1, 60, SPEAKER.feat_dim), torch.randn(1, TOKENIZER.n_mels, 50)
    outputs = {"speaker.in": features.numpy(), "tokenizer.in": mel.numpy()}
    outputs["speaker.out"] = export(shaken(torch_reference.CamPlus(SPEAKER)), features, "campplus.onnx", 1)
    tokenizer = shaken(torch_reference.S3(TOKENIZER))
    for norm in ("attn_ln", "mlp_ln"):  # equal parameters, which the exporter lets share one initialiser
        getattr(tokenizer.blocks[1], norm).load_state_dict(getattr(tokenizer.blocks[0], norm).state_dict())
    outputs["tokenizer.out"] = export(tokenizer, mel, "speech_tokenizer_v2_25hz.onnx", 2)
    odd = odd_tensors()
    torch.save(odd, FOLDER / "odd.pt")
    outputs |= {f"odd.{n}": t.detach().float().numpy() for n, t in odd.items() if torch.is_tensor(t)}
    save_file({name: np.ascontiguousarray(array) for name, array in outputs.items()}, FOLDER / "said.safetensors")
