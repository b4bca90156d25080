"""`flow.yaml`: hostile files end in one line, soon; what is plain YAML is read as PyYAML reads it."""

import pytest

from stepaudio.checkpoints.convert.flow_yaml import MAX_BYTES, MAX_DEPTH, parse, read_flow_config
from stepaudio.errors import ConfigError


def levels(n: int) -> str:
    return "".join(f"{' ' * k}a:\n" for k in range(n)) + " " * n + "b: 1\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (levels(MAX_DEPTH), f"nested more than {MAX_DEPTH} deep"), (levels(1000), "nested more than"),
        ("a:\n   b: 1\n  c: 2\n", "indentation"), ("a: 1\n  b: 2\n", "indentation"),
        ("a: 1\na: 2\n", "a appears twice"), ("a:1\n", "expected `key: value`"), ("- a\n", "expected `key: value`"),
        ("a: !python/object:os.system\n", "only tags of the form"), ("a: &b 1\n", "only plain numbers"),
        ("\ta: 1\n b: 2\nc: 3\n", "indentation"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named_with_its_line(text, found):
    with pytest.raises(ConfigError, match=rf"^flow\.yaml, line \d+: .*{found}"):
        parse(text, "flow.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb:\n  c: x\n  d:\n      e: 2.5\n  f: 'q r'\ng: null\n", "a:\nb: 1\n", "# c\n\na: 1 # c\nb: x#y\n",
        levels(MAX_DEPTH - 1), "a: " + " " * 50_000 + "b" + " " * 40_000 + "c\n",
        "".join(f"k{i}: {i}\n" for i in range(3000)),
    ],
    ids=["mixed", "empty value", "comments", "deep", "blanks", "many lines"],
)  # fmt: skip
def test_plain_yaml_is_read_as_pyyaml_reads_it(text):
    yaml = pytest.importorskip("yaml")
    assert parse(text, "flow.yaml") == yaml.safe_load(text)


def test_a_file_larger_than_any_such_file_is_not_read(tmp_path):
    (tmp_path / "flow.yaml").write_text("a: 1\n" * MAX_BYTES)
    with pytest.raises(ConfigError, match=f"more than {MAX_BYTES} bytes"):
        read_flow_config(tmp_path)
