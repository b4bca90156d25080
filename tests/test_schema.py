"""One reader for all that comes from outside: what each type of field takes, and what it refuses by its path."""

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum

import pytest

from stepaudio.errors import ConfigError
from stepaudio.schema import read_record, read_value, require_keys, require_positive


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    more: Inner | None = None
    sizes: tuple[int, ...] = (1,)
    grid: tuple[tuple[int, ...], ...] = ()
    triple: tuple[int, int, float] = (1, 2, 3.0)
    colour: Colour = Colour.RED
    either: int | str = 0
    anything: object = None
    sure: bool = False
    made: tuple[str, ...] = field(default_factory=tuple)


LEAST = {"name": "a", "inner": {"size": 3}}


def test_json_and_record_say_the_same():
    text = (
        '{"name": "a", "inner": {"size": 3, "share": 1}, "more": {"size": 4}, "sizes": [5, 6], "grid": [[1], [2, 3]], '
        '"triple": [1, 2, 3], "colour": "blue", "either": "x", "anything": {"b": [null]}, "sure": true, "made": ["c"]}'
    )
    expected = Outer(
        "a", Inner(3, 1.0), Inner(4), (5, 6), ((1,), (2, 3)), (1, 2, 3.0), Colour.BLUE, "x", {"b": [None]}, True, ("c",)
    )
    found = read_record(Outer, json.loads(text), "f")
    assert found == expected and type(found.inner.share) is float and type(found.triple[2]) is float
    assert read_record(Outer, LEAST, "f") == Outer("a", Inner(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nome": 1}, r"^f: unknown key nome; known are anything, colour, either, grid, inner"),
        ({"inner": {"size": 1, "depth": 2}}, r"^f\.inner: unknown key depth; known are share, size$"),
        ({"inner": {}}, r"^f\.inner: missing key size; the published file has it$"),
        ({"inner": 3}, r"^f\.inner: expected a JSON object, found int"),
        ({"more": [1]}, r"^f\.more: expected a JSON object, found list"),
        ({"inner": {"size": True}}, r"^f\.inner\.size: expected int, found True"),
        ({"inner": {"size": 3.0}}, r"^f\.inner\.size: expected int, found 3\.0"),
        ({"inner": {"size": None}}, r"^f\.inner\.size: expected int, found None"),
        ({"inner": {"size": 1, "share": False}}, r"^f\.inner\.share: expected float, found False"),
        ({"inner": {"size": 1, "share": math.nan}}, r"^f\.inner\.share: expected a finite float, found nan"),
        ({"inner": {"size": 1, "share": -math.inf}}, r"^f\.inner\.share: expected a finite float, found -inf"),
        ({"inner": {"size": 1, "share": 10**400}}, r"^f\.inner\.share: expected a finite float, found 1000"),
        ({"sizes": 3}, r"^f\.sizes: expected a list of int, found 3"),
        ({"sizes": "345"}, r"^f\.sizes: expected a list of int, found '345'"),
        ({"sizes": [1, True]}, r"^f\.sizes: expected a list of int, found \[1, True\]"),
        ({"made": "abc"}, r"^f\.made: expected a list of str, found 'abc'"),
        ({"grid": [[1], ["a"]]}, r"^f\.grid: expected a list of lists of int, found \[\[1\], \['a'\]\]"),
        ({"triple": [1, 2]}, r"^f\.triple: expected a list of 3 int, found \[1, 2\]"),
        ({"colour": "green"}, r"^f\.colour: expected one of red, blue, found 'green'"),
        ({"either": 2.5}, r"^f\.either: expected int or str, found 2\.5"),
        ({"either": None}, r"^f\.either: expected int or str, found None"),
        ({"sure": 1}, r"^f\.sure: expected bool, found 1"),
        ({"name": None}, r"^f\.name: expected str, found None"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(change, message):
    with pytest.raises(ConfigError, match=message):
        read_record(Outer, LEAST | change, "f")


def test_numbers_that_json_writes_and_its_standard_forbids_are_refused():
    for text in ('{"size": 1, "share": NaN}', '{"size": 1, "share": Infinity}', '{"size": 1, "share": 1e999}'):
        with pytest.raises(ConfigError, match="finite"):
            read_record(Inner, json.loads(text), "f")


def test_start_stands_for_what_is_left_out_at_every_depth():
    start = Outer("s", Inner(7, 0.25), sizes=(9,))
    found = read_record(Outer, {"inner": {"share": 0.75}}, "f", start=start)
    assert found == Outer("s", Inner(7, 0.75), sizes=(9,))


def test_own_readers_and_finished_records_go_before_the_rules():
    found = read_record(Outer, LEAST | {"inner": "three"}, "f", readers={Inner: lambda v, path: Inner(len(v))})
    assert found.inner == Inner(5)
    assert read_record(Outer, LEAST | {"inner": Inner(8)}, "f").inner == Inner(8)
    assert read_value(Inner(8), Inner, "f") == Inner(8)


def test_keys_may_be_no_text():
    with pytest.raises(ConfigError, match="unknown key 3; known are a"):
        require_keys({3: 1, "a": 2}, ["a"], "f")


@pytest.mark.parametrize("sizes", [(), (1, 0), (2, -1), (True,), [1], "1", None, math.nan])
def test_sizes_are_at_least_one_and_above_zero(sizes):
    with pytest.raises(ConfigError, match=r"net\.sizes: must be positive, found "):
        require_positive(Outer("a", Inner(1), sizes=sizes), "net", ["sizes"])
    require_positive(Outer("a", Inner(1), grid=((1, 2), (3,))), "net", ["sizes", "grid"])
