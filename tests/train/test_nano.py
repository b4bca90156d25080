"""Export and average of trained models."""

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten

from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.errors import ConfigError
from stepaudio.text.tokenizer import SAVED
from stepaudio.train import __main__ as verbs
from stepaudio.train import nano

RATE = 16_000


def test_export_is_the_average_in_half_precision(trainer, tmp_path):
    nano.export(trainer.average, trainer.config, tmp_path)
    arrays = mx.load(str(tmp_path / "model.safetensors"))
    wanted = dict(tree_flatten(trainer.average))
    assert set(arrays) == set(wanted) and all(a.dtype == mx.float16 for a in arrays.values())
    name = "model.embed_tokens.weight"
    np.testing.assert_allclose(np.array(arrays[name]), np.array(wanted[name]), rtol=1e-3, atol=1e-6)


def test_the_mean_of_two_models(tmp_path):
    def tensors(folder):
        return {k: np.array(v.astype(mx.float32)) for k, v in mx.load(str(folder / "model.safetensors")).items()}

    a, b = tiny.write(tmp_path / "a", seed=1), tiny.write(tmp_path / "b", seed=2)
    nano.average_models([a, b], tmp_path / "mean")
    one, two, mean = tensors(a), tensors(b), tensors(tmp_path / "mean")
    assert set(mean) == set(one)
    for name, value in mean.items():
        assert np.allclose(value, (one[name] + two[name]) / 2, rtol=1e-3, atol=1e-6), name
        assert not np.allclose(value, one[name], rtol=1e-3, atol=1e-6) or np.allclose(one[name], two[name]), name


def test_models_of_other_sizes_have_no_mean(tmp_path):
    a, b = tiny.write(tmp_path / "a"), tiny.write(tmp_path / "b")
    sizes = tiny.config(512)
    save_checkpoint(b, sizes, tiny.weights(sizes))
    with pytest.raises(ConfigError, match="b: its sizes are not those of .*a"):
        nano.average_models([a, b], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_nano_sizes():
    config = nano.nano_config(8384)
    from stepaudio.checkpoints.layout import expected_layout

    count = sum(int(np.prod(s)) for s in expected_layout(config).values())
    assert 10e6 <= count <= 15e6 and 2 * count <= 30e6


# ---- what the verbs may write ----


@pytest.fixture
def verb(monkeypatch, capsys):
    """Status and stderr of `python -m stepaudio.train …`; status 0 for a verb that came to its end."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["train", *map(str, words)])
        try:
            verbs.main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def test_a_mean_replaces_nothing_that_it_reads(verb, tmp_path):
    a, b = tiny.write(tmp_path / "a", seed=1), tiny.write(tmp_path / "b", seed=2)
    before = (b / "model.safetensors").read_bytes()
    for force in ([], ["--force"]):
        status, err = verb("average", *force, a, b, b)
        assert status == 2 and "is read by this command" in err and len(err.splitlines()) == 1
    assert (b / "model.safetensors").read_bytes() == before


def test_a_mean_replaces_another_model_only_by_force(verb, tmp_path):
    a, b = tiny.write(tmp_path / "a", seed=1), tiny.write(tmp_path / "b", seed=2)
    before = (b / "model.safetensors").read_bytes()
    status, err = verb("average", a, a, b)
    assert status == 2 and "is there already" in err and (b / "model.safetensors").read_bytes() == before
    assert verb("average", "--force", a, a, b) == (0, "")
    assert (b / "model.safetensors").read_bytes() != before


def test_a_tokenizer_replaces_another_only_by_force(verb, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "the cat sat on the mat"}\n' * 3)
    (tmp_path / "vocab.json").write_text("published")
    status, err = verb("tokenizer", tmp_path / "texts.jsonl", tmp_path)
    assert status == 2 and "vocab.json: is there already" in err
    assert (tmp_path / "vocab.json").read_text() == "published" and not (tmp_path / "merges.txt").exists()
    assert verb("tokenizer", "--force", tmp_path / "texts.jsonl", tmp_path)[0] == 0
    assert set(SAVED) <= {path.name for path in tmp_path.iterdir()}


OURS = '{"event": "corpus"}\n{"step": 250, "lo'  # the log of a run that was killed


@pytest.mark.parametrize("name", ["words.txt", "recipe.json", "log.jsonl", "checkpoint/state.safetensors",
                                  "model/model.safetensors", "model/config.json"])  # fmt: skip
@pytest.mark.parametrize("log", [None, "", "my notes\n", '{"text": "a"}\n', OURS])
def test_a_run_replaces_only_what_a_run_wrote(verb, monkeypatch, tmp_path, tokenizer, name, log):
    tokenizer.save(tmp_path / "words")
    out, began = tmp_path / "out", []
    monkeypatch.setattr(verbs, "run", lambda *a, **k: began.append(1))
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine\n")
    if log is not None:
        (out / "log.jsonl").write_text(log)
    words = ("run", "--corpus", tmp_path / "none", "--tokenizer", tmp_path / "words", "--out", out)
    status, err = verb(*words)
    if log == OURS or (name == "log.jsonl" and log == ""):
        assert (status, err, began) == (0, "", [1])
    else:
        assert status == 2 and "is there already" in err and len(err.splitlines()) == 1 and not began
        assert verb(*words, "--force") == (0, "") and began


def test_a_run_keeps_what_it_reads_and_needs_a_folder(verb, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "words")
    tiny.write(tmp_path / "out" / "model")
    (tmp_path / "out" / "log.jsonl").write_text(OURS)
    words = ("run", "--corpus", tmp_path / "none", "--tokenizer", tmp_path / "words", "--force", "--out")
    status, err = verb(*words, tmp_path / "out", "--start", tmp_path / "out" / "model")
    assert status == 2 and "is read by this command" in err and len(err.splitlines()) == 1
    status, err = verb(*words, tmp_path / "out" / "log.jsonl")
    assert status == 2 and "expected a folder" in err and len(err.splitlines()) == 1
