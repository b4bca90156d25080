"""Two checkpoints compared: against numpy's own singular values, and against what was done to the second."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from stepaudio import viz
from stepaudio.checkpoints import compare_checkpoints, low_rank
from stepaudio.checkpoints.compare import CHANGED, EQUAL, LEFT, LOW_RANK, RESHAPED, RIGHT, ROUNDING, UNREAD
from stepaudio.checkpoints.header import read_header
from stepaudio.checkpoints.low_rank import Pair
from stepaudio.errors import ConfigError, WeightsError

RNG = np.random.default_rng(5)
NAME = "model.layers.0.self_attn.q_proj.weight"


def bf16(array: np.ndarray) -> np.ndarray:
    return np.array(mx.array(array).astype(mx.bfloat16).astype(mx.float32))


def write(path, tensors: dict, dtype=None):
    if dtype is None:
        save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, path)
    else:
        mx.save_safetensors(str(path), {n: mx.array(a).astype(dtype) for n, a in tensors.items()})
    return path


def compared(tmp_path, first: dict, second: dict, dtypes=(None, None), **more):
    a = write(tmp_path / "a.safetensors", first, dtypes[0])
    return compare_checkpoints(a, write(tmp_path / "b.safetensors", second, dtypes[1]), **more)


def kernel(rows: int = 300, width: int = 200) -> np.ndarray:
    return RNG.normal(0, 0.05, (rows, width)).astype(np.float32)


def thin(rank: int, rows: int = 300, width: int = 200, size: float = 0.02) -> np.ndarray:
    product = RNG.normal(size=(rows, rank)) @ RNG.normal(size=(rank, width))
    return (size / np.sqrt(rank) * product).astype(np.float32)


@pytest.fixture(params=[1 << 20, 700])
def block(request, monkeypatch):
    """Whole tensors in a block, and a few rows."""
    monkeypatch.setattr(low_rank, "BLOCK", request.param)


@pytest.mark.parametrize("rank", [1, 3, 16, 60])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_merged_adapter_is_recognised_with_its_rank(tmp_path, block, rank, dtype):
    a = kernel() if dtype == mx.float32 else bf16(kernel())
    b = a + thin(rank)
    found = compared(tmp_path, {NAME: a}, {NAME: b}, (dtype, dtype))
    (change,) = found.tensors
    assert (change.outcome, change.rank) == (LOW_RANK, rank)
    assert found.verdict == "1 of 1 tensors changed by a low rank, no other did: a merged LoRA"
    assert found.adapters == {"self_attn.q_proj.weight": (rank,)} and found.exit_status == 1


def test_singular_values_and_norms_are_numpys(tmp_path, block):
    a, d = kernel(), thin(12) + RNG.normal(0, 1e-3, (300, 200)).astype(np.float32)
    b = (a + d).astype(np.float32)
    write(tmp_path / "a.safetensors", {NAME: a})
    write(tmp_path / "b.safetensors", {NAME: b})
    pair = Pair(*(read_header(tmp_path / f"{n}.safetensors")[NAME] for n in "ab"))
    exact = b.astype(np.float64) - a
    oracle = np.linalg.svd(exact, compute_uv=False)
    values = pair.singular_values(30)
    assert np.allclose(values[:12], oracle[:12], rtol=1e-6) and (values <= oracle[:30] * (1 + 1e-9)).all()
    assert np.allclose(pair.singular_values(200), oracle, rtol=1e-9)
    found = pair.measure()
    assert found.relative == pytest.approx(np.linalg.norm(exact) / np.linalg.norm(a.astype(np.float64)), rel=1e-12)
    assert found.largest == np.abs(exact).max() and found.share == (exact != 0).mean()
    assert found.squares == pytest.approx((exact**2).sum(), rel=1e-12)


def test_a_rank_is_numpys_rank_for_any_shape(tmp_path):
    for rows, width, rank in ((40, 900, 5), (900, 40, 20), (64, 64, 32), (2, 50, 1), (500, 3, 1)):
        a = kernel(rows, width)
        b = a.astype(np.float64) + thin(rank, rows, width, 0.5)
        found = compared(tmp_path, {NAME: a}, {NAME: b.astype(np.float32)})
        assert found.tensors[0].rank == rank == np.linalg.matrix_rank(thin(rank, rows, width))


def test_convolutions_are_matrices_of_their_rows(tmp_path):
    a = RNG.normal(size=(48, 20, 3)).astype(np.float32)
    b = a + thin(4, 48, 60).reshape(48, 20, 3)
    assert compared(tmp_path, {"encoder.conv1.weight": a}, {"encoder.conv1.weight": b}).tensors[0].rank == 4


@pytest.mark.parametrize("dtype", [None, mx.bfloat16])
def test_a_fine_tune_of_full_rank_has_none(tmp_path, dtype):
    a = bf16(kernel())
    for size in (1e-2, 1e-3):
        b = a + RNG.normal(0, size, a.shape).astype(np.float32)
        (change,) = compared(tmp_path, {NAME: a}, {NAME: b}, (dtype, dtype)).tensors
        assert (change.outcome, change.rank) == (CHANGED, None)
    both = a + thin(4) + RNG.normal(0, 5e-3, a.shape).astype(np.float32)  # an adapter, and more than rounding beside it
    assert compared(tmp_path, {NAME: a}, {NAME: both}, (dtype, dtype)).tensors[0].outcome == CHANGED


def test_a_rank_above_the_highest_asked_for_is_not_told(tmp_path):
    a = kernel()
    first, second = {NAME: a}, {NAME: a + thin(20)}
    assert compared(tmp_path, first, second, rank=19).tensors[0].outcome == CHANGED
    assert compared(tmp_path, first, second, rank=20).tensors[0].rank == 20
    assert compared(tmp_path, first, second, rank=0).tensors[0].outcome == CHANGED


def test_rounding_is_told_from_training(tmp_path):
    a = kernel()
    for dtype in (mx.bfloat16, mx.float16):
        (change,) = compared(tmp_path, {NAME: a}, {NAME: a}, (None, dtype)).tensors
        assert change.outcome == ROUNDING and change.dtypes == ("F32", "BF16" if dtype == mx.bfloat16 else "F16")
    exact = bf16(a)
    assert compared(tmp_path, {NAME: exact}, {NAME: exact}, (None, mx.bfloat16)).verdict == "all 1 tensors are equal"


def test_the_nets_of_token2wav_are_compared_too(speaking_checkpoint, tiny_checkpoint, tmp_path):
    other = shutil.copytree(speaking_checkpoint, tmp_path / "other")
    file = other / "token2wav" / "flow.safetensors"
    nets = mx.load(str(file))
    name = next(n for n, a in nets.items() if a.ndim == 2)
    nets[name] = nets[name] + 1.0
    mx.eval(nets)
    mx.save_safetensors(str(file), nets)
    whole = compare_checkpoints(speaking_checkpoint, other)
    alone = compare_checkpoints(speaking_checkpoint / "token2wav", other / "token2wav")
    for found in (whole, alone):
        assert [t.name for t in found.tensors if t.outcome != EQUAL] == [f"flow.{name}"] and not found.note
    model = compare_checkpoints(tiny_checkpoint, tiny_checkpoint)
    assert len(whole.tensors) == len(alone.tensors) + len(model.tensors)
    half = compare_checkpoints(tiny_checkpoint, speaking_checkpoint)
    assert len(half.tensors) == len(model.tensors) and f"beside {speaking_checkpoint} alone" in half.table()


def test_every_tensor_is_in_one_place(tmp_path):
    a = {"lm_head.weight": kernel(), "model.norm.weight": np.ones(8, np.float32), "gone.weight": kernel(4, 4),
         "turned.weight": kernel(4, 6), "counts": np.arange(4), NAME: kernel(),
         "holes": np.float32([1, np.nan, np.inf])}  # fmt: skip
    b = dict(a) | {"new.weight": kernel(4, 4), "turned.weight": kernel(6, 4), NAME: a[NAME] + thin(2),
                   "model.norm.weight": np.full(8, 1.5, np.float32)}  # fmt: skip
    del b["gone.weight"]
    found = compared(tmp_path, a, b)
    assert {t.name: t.outcome for t in found.tensors} == {
        "lm_head.weight": EQUAL, "model.norm.weight": CHANGED, "gone.weight": LEFT, "turned.weight": RESHAPED,
        "counts": UNREAD, NAME: LOW_RANK, "holes": EQUAL, "new.weight": RIGHT,
    }  # fmt: skip
    assert found.counts == {EQUAL: 2, LOW_RANK: 1, CHANGED: 1, RESHAPED: 1, LEFT: 1, RIGHT: 1, UNREAD: 1}
    assert found.verdict == "6 of 8 tensors are not equal"
    norm = next(t for t in found.tensors if t.name == "model.norm.weight")
    assert (norm.share, norm.largest, norm.relative, norm.rank) == (1.0, 0.5, 0.5, None)
    assert json.loads(json.dumps(found.to_dict()))["counts"] == found.counts
    b["holes"] = np.float32([1, 2, np.inf])
    (holes,) = (t for t in compared(tmp_path, a, b).tensors if t.name == "holes")
    assert (holes.outcome, holes.relative) == (CHANGED, None)


def test_names_are_mapped_and_bad_ranks_refused(tmp_path):
    a = {NAME: kernel()}
    found = compared(tmp_path, a, {f"net.{NAME}": a[NAME]}, rename={"net.": ""})
    assert found.exit_status == 0
    for rank in (-1, 2.5, True, "8"):
        with pytest.raises(ConfigError, match="rank: expected a whole number from 0 on"):
            compared(tmp_path, a, a, rank=rank)
    with pytest.raises(WeightsError):
        compare_checkpoints(tmp_path / "a.safetensors", tmp_path / "none")


def layers(n: int) -> dict[str, np.ndarray]:
    return {f"model.layers.{i}.self_attn.{p}_proj.weight": kernel(60, 50) for i in range(n) for p in "qk"}


def test_the_map_shows_where(tmp_path):
    a = layers(12)
    b = {name: array.copy() for name, array in a.items()}
    for i in (3, 11):
        b[f"model.layers.{i}.self_attn.q_proj.weight"] += thin(2, 60, 50)
    found = compared(tmp_path, a, b)
    assert found.map().splitlines() == [
        "model.layers (layers 0 to 11)", "  self_attn.k_proj.weight  ............",
        "  self_attn.q_proj.weight  ...L.......L", ". equal  L low rank",
    ]  # fmt: skip
    table = found.table()
    assert "self_attn.q_proj.weight: rank 2" in table and "low rank by" in table and found.verdict in table
    ax = viz.change_map(found, "Layers 3 and 11 changed")
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["equal (22)", "rounding (0)", "low rank (2)", "changed (0)", "not comparable (0)"]
    assert ax.get_title() == "Layers 3 and 11 changed"


def test_memory_does_not_grow_with_a_tensor(tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(low_rank, "BLOCK", 1 << 14)
    a = RNG.normal(size=(4000, 256)).astype(np.float32)
    write(tmp_path / "a.safetensors", {NAME: a})
    write(tmp_path / "b.safetensors", {NAME: a + thin(3, 4000, 256)})
    del a
    tracemalloc.start()
    (change,) = compare_checkpoints(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=4).tensors
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert change.rank == 3 and peak < 4000 * 256 * 8 / 2  # the difference alone, in float64, takes twice as much


def test_eight_bits_with_scales(tmp_path):
    from stepaudio.checkpoints.int8 import SCALE, quantised

    a = kernel()
    numbers, scale = quantised(a)
    found = compared(tmp_path, {NAME: a}, {NAME: numbers, NAME + SCALE: scale})
    assert [t.outcome for t in found.tensors] == [ROUNDING]
    changed = compared(tmp_path, {NAME: numbers, NAME + SCALE: scale}, {NAME: numbers, NAME + SCALE: scale * 2})
    assert changed.tensors[0].relative == pytest.approx(1.0)
