"""Products that are joined in memory, against a net whose layers are multiplied one by one."""

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import tiny
from reference import tiny_net

import stepaudio
from stepaudio.models import joined
from stepaudio.models.kv_cache import FullCache
from stepaudio.models.parameters import named_arrays
from stepaudio.models.quantization import Bits, layers_of, quantise_layers, quantised_layers
from stepaudio.models.speech_lm import StepAudioNet


def net(quantised: bool = False) -> StepAudioNet:
    made = tiny_net(seed=3)
    if quantised:
        wide = {
            p: Bits(8, 32) for p, (_, width) in layers_of(made).items() if p.startswith("model.") and width % 32 == 0
        }
        quantise_layers(made, wide)
        assert any(path.endswith("gate_proj") for path in quantised_layers(made))
    return made


def logits(of: StepAudioNet, rows: int = 1, as_one: bool = True) -> np.ndarray:
    """Of nine tokens, then of three one by one, as a run computes them."""
    cache, out = FullCache(len(of.model.layers), of.model.rope), []
    tokens = np.random.default_rng(0).integers(0, of.config.text_config.vocab_size, (rows, 12))
    products = of.model.products() if as_one else None
    for part in (tokens[:, :9], *(tokens[:, i : i + 1] for i in range(9, 12))):
        out.append(np.array(of.next_logits(of.embed(part), cache, products=products)))
    return np.stack(out)


def layers(of: StepAudioNet) -> list[Any]:
    return cast(list[Any], of.model.layers)


def n_joined(of: StepAudioNet) -> int:
    found = of.model.products()
    return sum(found.get(i, block) is not None for i in range(len(of.model.layers)) for block in ("self_attn", "mlp"))


@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("quantised", [False, True])
def test_one_product_has_the_bits_of_several(quantised, rows):
    made = net(quantised)
    before, names = logits(made, rows), dict(named_arrays(made.parameters()))
    made.model.join()
    assert n_joined(made) == 2 * len(made.model.layers)
    np.testing.assert_array_equal(logits(made, rows), before)
    after = dict(named_arrays(made.parameters()))
    assert list(after) == list(names)
    for name, array in after.items():
        assert array.dtype == names[name].dtype
        np.testing.assert_array_equal(array, names[name], err_msg=name)


def test_the_joined_matrix_is_used(monkeypatch):
    made, calls, compute = net(), [], joined.Joined.__call__
    made.model.join()
    monkeypatch.setattr(joined.Joined, "__call__", lambda self, x: calls.append(x.shape) or compute(self, x))
    logits(made)
    assert calls == [(1, 1, 32)] * 3 * n_joined(made)  # many positions are multiplied by each layer


def test_weights_are_held_once():
    made = net()
    decoder = made.model
    mx.eval(made.parameters())
    mx.clear_cache()
    before = mx.get_active_memory()
    decoder.join()
    assert mx.get_cache_memory() == 0
    assert mx.get_active_memory() - before < 0.05 * sum(a.nbytes for _, a in named_arrays(decoder.parameters()))


def low_rank(layer: nn.Linear) -> nn.Module:
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.more = layer, mx.ones((1, layer.weight.shape[1])) * 0.1

        def __call__(self, x):
            return self.base(x) + x @ self.more.T

    return Added()


def write(of: StepAudioNet) -> None:
    layers(of)[1].mlp.gate_proj.weight[3] = 0


def write_bias(of: StepAudioNet) -> None:
    layers(of)[0].self_attn.k_proj.bias[0] = 5


def scale(of: StepAudioNet) -> None:
    layers(of)[1].self_attn.v_proj.weight *= 2


def replace(of: StepAudioNet) -> None:
    layer = layers(of)[0].self_attn.q_proj
    layer.update({"weight": layer.weight * 0.5})


def adapt(of: StepAudioNet) -> None:
    layers(of)[0].mlp.up_proj = low_rank(layers(of)[0].mlp.up_proj)


def quantise(of: StepAudioNet) -> None:
    paths = [p for p, (_, width) in layers_of(of).items() if p.endswith("q_proj") and width % 32 == 0]
    quantise_layers(of, dict.fromkeys(paths, Bits(4, 32)))


CHANGES: list[Callable[[StepAudioNet], None]] = [write, write_bias, scale, replace, adapt, quantise]


@pytest.mark.parametrize("on_cuda", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_is_changed_in_a_layer_counts(change, on_cuda, monkeypatch):
    monkeypatch.setattr(joined, "on_cuda", lambda: on_cuda)  # where addresses are not to be seen
    made, plain = net(), net()
    made.model.join()
    logits(made)
    all_of_them = n_joined(made)
    change(made)
    change(plain)
    got = logits(made)
    np.testing.assert_array_equal(got, logits(plain, as_one=False))
    assert not np.array_equal(got, logits(net(), as_one=False))
    assert 0 < n_joined(made) < all_of_them  # the others are still one


def test_a_loaded_model_obeys_what_is_written_into_it(tmp_path):
    model = stepaudio.load(tiny.write(tmp_path))
    decoder = model.net.model
    assert n_joined(model.net) == 2 * len(decoder.layers)
    asked: Any = {"sr": tiny.RATE, "max_tokens": 4}
    weight = layers(model.net)[0].self_attn.v_proj.weight  # taken before a run and written into behind it
    first = model.transcribe(tiny.noise(1.0), **asked).segments[0]
    weight[:] = 0
    assert model.transcribe(tiny.noise(1.0), **asked).segments[0].mean_logprob != first.mean_logprob
    np.testing.assert_array_equal(logits(model.net), logits(model.net, as_one=False))
    assert not np.array(dict(named_arrays(decoder.parameters()))["layers.0.self_attn.v_proj.weight"]).any()
