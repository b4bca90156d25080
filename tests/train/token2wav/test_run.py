"""Runs of token2wav training: what is written is read again, and the four commands make nets that speak."""

from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file
from speech_corpus import HIFT, SPEAKER, TOKENIZER, some_sound, write_clips

from stepaudio.checkpoints.layout import TOKEN2WAV, build
from stepaudio.checkpoints.load import validate_weights
from stepaudio.checkpoints.random_weights import sizes
from stepaudio.checkpoints.token2wav import load_token2wav
from stepaudio.errors import DataError, WeightsError
from stepaudio.models.token2wav.speech_tokenizer import S3Tokenizer
from stepaudio.synthesis.synthesizer import Synthesizer
from stepaudio.train.optimiser import read_state
from stepaudio.train.token2wav import adversary, campplus, flow, run, speech_tokenizer, vocoder
from stepaudio.train.token2wav.__main__ import main
from stepaudio.train.token2wav.corpus import SpeechCorpus

FLOW_SIZE = flow.size


@pytest.mark.parametrize("component", ["tokenizer", "speaker", "flow", "hift"])
def test_a_written_net_is_read_as_it_was(tmp_path, component):
    net = build(sizes("small")[component])
    run.write_net(tmp_path, component, net)
    again = run.read_net(tmp_path, component)
    for (name, a), (other, b) in zip(tree_flatten(net.parameters()), tree_flatten(again.parameters()), strict=True):
        assert name == other and np.array_equal(np.array(a.astype(mx.float16)), np.array(b.astype(mx.float16))), name


def test_the_runs_make_a_synthesizer(tmp_path, monkeypatch):
    """All four commands on seconds of sound, then joined: the folder loads, reads codes and speaks."""
    folder = write_clips(tmp_path / "s", speakers=2, each=8)
    monkeypatch.setattr(speech_tokenizer, "SIZE", TOKENIZER)
    monkeypatch.setattr(campplus, "SIZE", SPEAKER)
    monkeypatch.setattr(vocoder, "SIZE", HIFT)
    monkeypatch.setattr(adversary, "RESOLUTIONS", ((64, 32),))
    monkeypatch.setattr(flow, "size", lambda speaker: FLOW_SIZE(speaker, 48, 32, 1, 1))
    monkeypatch.setattr(flow, "LENGTHS", ((16, 1.0),))
    monkeypatch.setattr(run, "VECTOR_SECONDS", 0.5)
    monkeypatch.setattr(run, "STATISTICS_BATCHES", 2)
    more = {
        "tokenizer": ["--codes", "12"],
        "speaker": ["--batch-size", "4"],
        "vocoder": ["--adversary", "0.5"],
        "flow": ["--tokenizer", str(tmp_path / "tokenizer"), "--speaker", str(tmp_path / "speaker")],
    }
    for net, options in more.items():
        common = ["--corpus", str(folder), "--steps", "2", "--log-every", "1", "--batch-size", "2"]
        main([net, *common, "--out", str(tmp_path / net), *options])
        assert "norm" in (tmp_path / net / "log.jsonl").read_text()
    again = ["--corpus", str(folder), "--steps", "3", "--batch-size", "2", "--out", str(tmp_path / "vocoder")]
    main(["vocoder", *again, *more["vocoder"], "--resume"])
    for saved in ("checkpoint", "opponent"):  # the adversary goes on with the vocoder, and does not begin anew
        _, step = cast(tuple, read_state(tmp_path / "vocoder" / saved))
        assert step == 3
    main(["join", "--parts", *[str(tmp_path / net) for net in run.TASKS], "--out", str(tmp_path / "joined")])
    made = Synthesizer.load(tmp_path / "joined")
    assert isinstance(made.parts.tokenizer, S3Tokenizer)
    sound = made.decode([1, 2, 3, 4], made.voice(some_sound(24_000)))
    assert sound.seconds == pytest.approx(4 / 25) and np.isfinite(sound.wave).all()
    with pytest.raises(DataError, match=r"no flow\.json in any of them"):
        run.join([tmp_path / "tokenizer", tmp_path / "speaker"], tmp_path / "none")
    assert not (tmp_path / "none" / "converted.json").exists()


def test_the_flow_needs_the_runs_whose_output_it_learns(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["flow", "--corpus", str(tmp_path), "--out", str(tmp_path / "flow")])
    assert "needs --tokenizer and --speaker" in capsys.readouterr().err
    write_clips(tmp_path / "s")
    options = run.Options([tmp_path / "s"], tmp_path / "flow", tokenizer=tmp_path, speaker=tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file; expected the folder that a run of it wrote"):
        run.train("flow", options)


def test_the_mean_of_runs_is_that_of_their_weights(tmp_path):
    nets = [build(sizes("small")["flow"]) for _ in range(2)]
    for name, net in zip("ab", nets, strict=True):
        run.write_net(tmp_path / name, "flow", net)
    main(["average", "--parts", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "mean")])
    found = dict(tree_flatten(run.read_net(tmp_path / "mean", "flow").parameters()))
    a, b = (dict(tree_flatten(net.parameters())) for net in nets)
    assert any(np.abs(np.array(a[name] - b[name])).max() > 0.01 for name in a)
    for name, value in found.items():
        assert np.allclose(np.array(value), (np.array(a[name]) + np.array(b[name])) / 2, atol=2e-3), name
    with pytest.raises(DataError, match=r"flow\.json: no such file; expected the folder"):
        run.average([tmp_path / "a", tmp_path], tmp_path / "none")
    run.write_net(tmp_path / "other", "flow", build(flow.size(8, 48, 32, 1, 1)))
    with pytest.raises(DataError, match="other sizes"):
        run.average([tmp_path / "a", tmp_path / "other"], tmp_path / "none")


def eight_bits(tmp_path):
    """Four small nets, and a folder of them in which tokenizer and flow are in eight bits, by the command."""
    for component in TOKEN2WAV:
        run.write_net(tmp_path / "nets", component, build(sizes("small")[component]))
    main(["join", "--parts", str(tmp_path / "nets"), "--int8", "tokenizer", "flow", "--out", str(tmp_path / "joined")])
    return tmp_path / "joined"


def test_nets_in_eight_bits_are_their_products(tmp_path):
    """Against numpy's products of what lies in the file, and within half a step of what was to be stored."""
    folder = eight_bits(tmp_path)
    nets, few = load_token2wav(folder), {"tokenizer", "flow"}
    for component in TOKEN2WAV:
        stored, before = (load_file(f / f"{component}.safetensors") for f in (folder, tmp_path / "nets"))
        assert {name for name, value in stored.items() if value.dtype == np.int8} == {
            name for name, value in before.items() if component in few and value.ndim > 1
        }
        for read in (getattr(nets, component), run.read_net(folder, component)):
            found = dict(tree_flatten(read.parameters()))
            assert found.keys() == before.keys()
            for name, value in found.items():
                wanted, half_a_step = before[name].astype(np.float32), 0.0
                if stored[name].dtype == np.int8:
                    scale = stored[f"{name}_scale"].reshape(-1, *[1] * (wanted.ndim - 1))
                    half_a_step = np.abs(wanted).max(tuple(range(1, wanted.ndim)), keepdims=True) / 253
                    np.testing.assert_array_equal(np.array(value), stored[name] * scale, err_msg=name)
                assert (np.abs(np.array(value) - wanted) <= half_a_step).all(), name
    report = validate_weights(folder)
    assert report.whole and not report.unexpected


def test_what_is_in_eight_bits_is_joined_again_as_it_is(tmp_path):
    folder = eight_bits(tmp_path)
    for k, more in enumerate(([], ["--int8", "tokenizer", "flow"])):
        main(["join", "--parts", str(folder), "--out", str(tmp_path / str(k)), *more])
        for component in TOKEN2WAV:
            again, before = (load_file(f / f"{component}.safetensors") for f in (tmp_path / str(k), folder))
            assert again.keys() == before.keys()
            for name, value in before.items():
                assert again[name].dtype == value.dtype and np.array_equal(again[name], value), name


def test_numbers_without_scales_are_refused(tmp_path):
    folder = eight_bits(tmp_path)
    stored = load_file(folder / "flow.safetensors")
    del stored["encoder_proj.weight_scale"]
    save_file(stored, folder / "flow.safetensors")
    with pytest.raises(WeightsError, match=r"unusable type: encoder_proj.weight \(I8\)"):
        load_token2wav(folder)


def test_a_speaker_encoder_goes_on_from_another(tmp_path):
    """Its weights are the other's at the first step, though the statistics are not among them."""
    corpus = SpeechCorpus([write_clips(tmp_path / "s")])
    net, _ = campplus.begin(campplus.SIZE, 2, 5)
    run.write_net(tmp_path / "before", "speaker", net)
    options = run.Options([tmp_path / "s"], tmp_path / "after", start=tmp_path / "before")
    task = run.speaker_task(options, corpus, 2)
    before = dict(tree_flatten(campplus.learnt(net)))
    after = dict(tree_flatten(task.params["net"]))
    assert before.keys() == after.keys() and not any("running" in name for name in after)
    assert all(np.allclose(np.array(before[name]), np.array(after[name]), atol=2e-3) for name in before)


def test_a_mean_replaces_nothing_but_a_net(tmp_path, capsys):
    for name in "ab":
        run.write_net(tmp_path / name, "flow", build(sizes("small")["flow"]))
    words = ["average", "--parts", str(tmp_path / "a"), str(tmp_path / "b"), "--out"]
    before = (tmp_path / "b" / "flow.safetensors").read_bytes()
    for out, said in (("b", "is read by this command"), ("c", "is there already")):
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / "flow.safetensors").write_bytes(b"an afternoon of work")
        with pytest.raises(SystemExit) as end:
            main([*words, str(tmp_path / out)])
        assert end.value.code == 2 and said in capsys.readouterr().err
    assert (tmp_path / "b" / "flow.safetensors").read_bytes() == before
    assert (tmp_path / "c" / "flow.safetensors").read_bytes() == b"an afternoon of work"
    for _ in range(2):  # a mean of before is replaced
        main([*words, str(tmp_path / "mean")])


@pytest.mark.parametrize("name", ["flow.safetensors", "flow.json", "schedule.json", "checkpoint/state.safetensors"])
def test_a_run_replaces_nothing_but_a_run(tmp_path, capsys, name):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    words = ["flow", "--corpus", tmp_path / "no", "--tokenizer", tmp_path, "--speaker", tmp_path, "--out"]
    for out, said in ((tmp_path / "out", "is there already"), (tmp_path / "new", "no")):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in (*words, out)])
        err = capsys.readouterr().err
        assert end.value.code == 2 and said in err and len(err.splitlines()) == 1
    assert (tmp_path / "out" / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("net", "weight"), [("flow", "1"), ("tokenizer", "0.5"), ("vocoder", "-1"), ("vocoder", "nan")]
)
def test_an_adversary_is_the_vocoders_and_weighs_something(tmp_path, capsys, net, weight):
    options = ["--tokenizer", "a", "--speaker", "b"] if net == "flow" else []
    with pytest.raises(SystemExit) as end:
        main([net, "--corpus", str(tmp_path), "--out", str(tmp_path / "out"), "--adversary", weight, *options])
    assert end.value.code == 2 and "--adversary" in capsys.readouterr().err and not (tmp_path / "out").exists()
