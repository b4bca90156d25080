"""Values of tensors against plain numpy, and initialisers against numbers from numpy and MLX."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from small_checkpoint import SMALL, arrays, folder_with

from stepaudio.checkpoints import statistics
from stepaudio.checkpoints.header import read_header
from stepaudio.checkpoints.layout import expected_layout
from stepaudio.checkpoints.load import validate_weights
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.checkpoints.statistics import describe_values, initialisers
from stepaudio.models.speech_lm import StepAudioNet


def stored(tmp_path, array: np.ndarray | mx.array, name="x.weight"):
    mx.save_safetensors(str(tmp_path / "v.safetensors"), {name: mx.array(array)})
    return read_header(tmp_path / "v.safetensors")[name]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("block", [7, 1 << 22])
def test_moments_equal_numpy_whatever_the_blocks(tmp_path, monkeypatch, dtype, block):
    monkeypatch.setattr(statistics, "BLOCK", block)
    array = mx.array(np.random.default_rng(0).gamma(2, size=(13, 11)).astype(np.float32) + 3).astype(dtype)
    x = np.array(array.astype(mx.float32), np.float64)
    got = describe_values(stored(tmp_path, array))
    centred = x - x.mean()
    expected = (x.mean(), x.std(), np.linalg.norm(x), (centred**4).mean() / (centred**2).mean() ** 2)
    np.testing.assert_allclose((got.mean, got.std, got.norm, got.kurtosis), expected, rtol=1e-9)
    assert (got.count, got.nan, got.inf, got.zero_share, got.constant) == (143, 0, 0, 0.0, False)


def test_bad_values_are_counted(tmp_path):
    x = np.zeros((40, 50), np.float32)
    x[0, :3], x[1, :2], x[2, 0], x[3, :4] = np.nan, np.inf, -np.inf, 2.0
    got = describe_values(stored(tmp_path, x))
    assert (got.nan, got.inf, got.zero_share) == (3, 3, pytest.approx(1990 / 2000))
    assert got.mean == pytest.approx(8 / 1994) and got.notes == ("3 NaN", "3 Inf")
    nothing = describe_values(stored(tmp_path, np.full(5, np.nan, np.float32)))
    assert (nothing.nan, nothing.mean, nothing.std, nothing.constant) == (5, None, None, False)


@pytest.mark.parametrize(
    ("name", "shape", "value", "note"),
    [
        ("x.weight", (8, 8), 0.5, "constant 0.5"),
        ("ln.weight", (8,), 1, "untouched: a norm of ones"),
        ("ln.bias", (8,), 0, "untouched: a bias of zeros"),
        ("x.weight", (8, 8), 1, "constant 1"),
    ],
)
def test_constants_are_named(tmp_path, name, shape, value, note):
    assert describe_values(stored(tmp_path, np.full(shape, value, np.float32), name)).notes == (note,)


@pytest.mark.parametrize("shape", [(96, 200), (300, 64), (48, 64, 3)])
@pytest.mark.parametrize("case", initialisers((2, 2)))
def test_fresh_kernels_are_recognised(tmp_path, case, shape):
    std, kurtosis = initialisers(shape)[case]
    rng = np.random.default_rng(len(case))
    fresh = rng.normal(0, std, shape) if kurtosis == 3 else rng.uniform(-(3**0.5) * std, 3**0.5 * std, shape)
    assert describe_values(stored(tmp_path, fresh.astype(np.float32))).initialiser == f"looks like {case}"


def test_initialisers_by_hand():
    linear, kernel = initialisers((8, 50)), initialisers((10, 30, 5))
    default = "uniform(+-1/sqrt(fan_in)), the default of Linear and Conv1d"
    assert linear[default] == (pytest.approx(50**-0.5 / 3**0.5), 1.8)  # std of a uniform is its bound / sqrt(3)
    assert kernel[default] == (pytest.approx(150**-0.5 / 3**0.5), 1.8)
    assert kernel["Xavier normal"] == (pytest.approx((2 / (150 + 50)) ** 0.5), 3.0)
    assert kernel["Kaiming uniform"] == (pytest.approx((2 / 150) ** 0.5), 1.8)


def test_one_value_beyond_the_edge_is_no_uniform(tmp_path):
    fresh = np.random.default_rng(5).uniform(-0.1, 0.1, (300, 100)).astype(np.float32)
    assert describe_values(stored(tmp_path, fresh)).initialiser
    fresh[0, 0] = 0.15
    assert describe_values(stored(tmp_path, fresh)).initialiser is None


def test_mlx_layers_fresh_from_the_shelf_are_recognised(tmp_path):
    mx.random.seed(0)
    save_checkpoint(tmp_path / "m", SMALL, dict(tree_flatten(StepAudioNet(SMALL).parameters())))
    report = validate_weights(tmp_path / "m", values=True)
    kernels = [v for v in report.values if v.count >= 1024 and len(expected_layout(SMALL)[v.name]) > 1]
    # in MLX: Linear and Conv1d uniform within 1 / sqrt(fan_in), Embedding normal with 1 / sqrt(dim)
    assert kernels and all(v.initialiser for v in kernels)
    assert report.looks_untrained and "freshly initialised" in report.table()


@pytest.mark.parametrize("change", ["heavy tails", "wider", "shifted"])
def test_moved_kernels_are_not(tmp_path, change):
    rng = np.random.default_rng(3)
    fresh = rng.normal(0, 0.02, (200, 300))
    tails = rng.laplace(0, 0.02 / 2**0.5, (200, 300))
    moved = {"heavy tails": tails, "wider": fresh * 1.1, "shifted": fresh + 0.001}
    assert describe_values(stored(tmp_path, fresh.astype(np.float32))).initialiser
    assert describe_values(stored(tmp_path, moved[change].astype(np.float32))).initialiser is None


def test_not_finite_values_fail_the_validation(tmp_path):
    tensors = arrays()
    tensors["lm_head.weight"][3, 4] = np.nan
    path = folder_with(tmp_path / "m", tensors)
    assert validate_weights(path).exit_status == 0
    report = validate_weights(path, values=True)
    assert not report.looks_untrained
    assert (report.exit_status, report.not_finite) == (1, ("lm_head.weight",))
    assert "lm_head.weight: 1 NaN" in report.table()
    json.dumps(report.to_dict(), allow_nan=False)
