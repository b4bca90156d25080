"""The one comparison: every name in one place, against sets built by hand."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from stepaudio.checkpoints.dtypes import ITEM_BYTES, READABLE, as_values, numpy_dtype
from stepaudio.checkpoints.header import read_header
from stepaudio.checkpoints.match import match, match_stored

EXPECTED = {"a": (2, 3), "b": (4,), "c": (5, 1), "d": ()}


def test_every_name_is_in_exactly_one_place():
    found = {"b": (4,), "z": (1,), "a": (3, 2), "y": (), "d": (9,)}  # d is wrong twice, and counted once
    m = match(found, EXPECTED, {"d": "I64", "y": "I64"})
    assert (m.matched, m.missing, m.unexpected, m.misshaped, m.wrong_dtype) == (
        ("b",), ("c",), ("y", "z"), ("a",), ("d",)
    )  # fmt: skip
    assert sorted((*m.matched, *m.missing, *m.misshaped, *m.wrong_dtype)) == sorted(EXPECTED)


def test_faults_are_said_with_numbers_and_names():
    m = match({"b": (4,), "z": (1,), "a": (3, 2), "d": ()}, EXPECTED, {"d": "F64"})
    assert m.faults(lambda name: f"{name}!") == (
        "1 of 4 tensors are missing: c; 1 have no place in the net: z!; "
        "1 have other shapes: a has shape (3, 2), expected (2, 3); 1 have an unusable type: d (F64)"
    )
    assert match(EXPECTED, EXPECTED).faults() == ""


def test_stored_dtypes_decide(tmp_path):
    save_file({"a": np.zeros((2, 3), np.float16), "b": np.zeros(4, np.int8)}, tmp_path / "x.safetensors")
    m = match_stored(read_header(tmp_path / "x.safetensors"), {"a": (2, 3), "b": (4,)})
    assert (m.matched, m.wrong_dtype, m.faults()) == (("a",), ("b",), "1 have an unusable type: b (I8)")


@pytest.mark.parametrize("stored", sorted(READABLE))
def test_items_of_a_type_have_its_size(stored):
    assert numpy_dtype(stored).itemsize == ITEM_BYTES[stored]


def test_bfloat16_is_the_upper_half_of_a_float32():
    exact = np.array([1.5, -2.0, 0.0, 3.3895314e38], np.float32)  # all of them bfloat16 numbers
    bits = (exact.view(np.uint32) >> 16).astype("<u2")
    np.testing.assert_array_equal(as_values(bits, "BF16"), exact)


@pytest.mark.parametrize(("stored", "kind"), [("F16", np.float16), ("F64", np.float64), ("I32", np.int32)])
def test_other_types_are_as_stored_unless_float32_is_asked_for(stored, kind):
    items = np.array([1, 2], kind)
    assert as_values(items, stored) is items
    assert as_values(items, stored, float32=True).dtype == (np.int32 if stored == "I32" else np.float32)
