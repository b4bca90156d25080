"""LoRAs against the libraries whose formats they have: mlx-lm and PEFT compute what is computed here."""

import json

import adapters
import mlx.core as mx
import numpy as np
import pytest
import quantised
from mlx.utils import tree_flatten

from stepaudio.checkpoints.decoder_folder import plan_decoder, write_export
from stepaudio.checkpoints.lora import write_lora
from stepaudio.checkpoints.quantize import quantise
from stepaudio.checkpoints.recipe import Recipe, parse_rules
from stepaudio.model import StepAudio2
from stepaudio.models.kv_cache import NoCache
from stepaudio.models.quantization import Bits

TOKENS = np.random.default_rng(0).integers(0, 300, (1, 40))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return quantised.write(tmp_path_factory.mktemp("source"))


def ours(folder, lora=None) -> np.ndarray:
    net = StepAudio2.load(folder, dtype=mx.float32, lora=lora).net
    return np.array(net.logits(net.embed(TOKENS), NoCache(net.model.rope)))


def check(source, lora, theirs) -> None:
    found, before = ours(source, lora), ours(source)
    np.testing.assert_allclose(found, theirs, atol=2e-4 * np.abs(theirs).max())
    assert np.abs(theirs - before).max() > 0.1 * np.abs(theirs).max()


@pytest.mark.parametrize("rules", [None, ["encoder=off"]], ids=["float", "4"])
def test_mlx_lm_reads_what_is_written_and_computes_the_same(source, tmp_path, rules):
    """The head and the embeddings too, in floats and in four bits."""
    utils = pytest.importorskip("mlx_lm.tuner.utils", reason="needs mlx-lm, the extra `mlx-lm`")
    from mlx_lm.utils import load_model

    model = source
    if rules is not None:
        model = tmp_path / "small"
        quantise(source, model, parse_rules(rules, Recipe(Bits(4, 32)), "--layer"))
    pairs = adapters.pairs_of(adapters.layers_of(source))
    write_lora(tmp_path / "lora", {name: tuple(map(mx.array, pair)) for name, pair in pairs.items()}, 0.5)
    write_export(plan_decoder(model), tmp_path / "decoder")
    theirs, _ = load_model(tmp_path / "decoder")
    utils.load_adapters(theirs, str(tmp_path / "lora"))
    check(model, tmp_path / "lora", np.array(theirs(mx.array(TOKENS))))


def test_what_mlx_lm_trains_is_read(source, tmp_path):
    """Its own layers, names and config, of the last layer alone."""
    utils = pytest.importorskip("mlx_lm.tuner.utils", reason="needs mlx-lm, the extra `mlx-lm`")
    from mlx_lm.utils import load_model

    write_export(plan_decoder(source), tmp_path / "decoder")
    theirs, _ = load_model(tmp_path / "decoder")
    theirs.freeze()
    about = {"rank": 8, "scale": 20.0, "dropout": 0.0}
    utils.linear_to_lora_layers(theirs, 1, about)
    theirs.eval()
    mx.random.seed(0)
    trained = {name: mx.random.normal(x.shape) * 0.05 for name, x in tree_flatten(theirs.trainable_parameters())}
    theirs.load_weights(list(trained.items()), strict=False)
    (tmp_path / "lora").mkdir()
    mx.save_safetensors(str(tmp_path / "lora" / "adapters.safetensors"), trained)
    said = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": about, "model": "decoder", "seed": 0}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(said))
    check(source, tmp_path / "lora", np.array(theirs(mx.array(TOKENS))))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True, "alpha_pattern": {"mlp.up_proj": 3}},
        {"target_modules": ["q_proj", "up_proj", "lm_head", "embed_tokens"],
         "rank_pattern": {"up_proj": 3, r"layers\.1\.self_attn\.q_proj": 2}},
    ],
    ids=["attention", "rslora", "head and embeddings"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:::transformers", "ignore:::peft", "ignore:Setting `save_embedding_layers`")
def test_peft_computes_the_same(source, tmp_path, options):
    peft = pytest.importorskip("peft", reason="needs PEFT, of the extra `parity`")
    import torch
    from transformers import AutoModelForCausalLM

    write_export(plan_decoder(source, float32=True), tmp_path / "decoder")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder", dtype=torch.float32)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM", **options)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, values in theirs.named_parameters():
            if "lora_" in name:
                values.normal_(0, 0.1)
        theirs.save_pretrained(tmp_path / "lora")
        logits = theirs(torch.tensor(TOKENS)).logits.numpy()
    check(source, tmp_path / "lora", logits)
