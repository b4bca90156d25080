"""What a researcher tries first. Each guess works, or ends in one sentence that shows the right call."""

import contextlib
import io
import json
import pathlib
import pickle
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
import soundfile as sf
import tiny
from mlx.utils import tree_flatten

import stepaudio
from stepaudio.errors import AudioError, DecodeError, PromptError, StepAudioError, WeightsError

HUB = "stepfun-ai/Step-Audio-2-mini"
FEW = {"max_tokens": 6}
SOUND = tiny.noise(2)


@pytest.fixture
def wav(tmp_path) -> pathlib.Path:
    path = tmp_path / "a.wav"
    sf.write(path, SOUND, 16_000, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def nano_model(nano):
    return stepaudio.load(nano)


def answers(transcript):
    return [(s.start, s.end, s.tokens, s.stop) for s in transcript.segments]


def run_python(code: str, *options: str, **more) -> subprocess.CompletedProcess:
    folder = pathlib.Path(__file__).resolve().parents[1]
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, **more)


# ---- importing and loading ----


def test_everything_public_is_there():
    for name in stepaudio.__all__:
        assert getattr(stepaudio, name) is not None and name in dir(stepaudio), name
    assert stepaudio.StepAudio2.__module__ == "stepaudio.model" and stepaudio.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        stepaudio.laod  # noqa: B018


def test_importing_is_quick_and_leaves_mlx_alone():
    done = run_python("import sys, stepaudio; print(*[m for m in ('mlx.core', 'matplotlib', 'tokenizers') "
                      "if m in sys.modules], len(sys.modules))")  # fmt: skip
    plain = run_python("import sys; print(len(sys.modules))")
    (count,) = map(int, done.stdout.split())  # no name before it
    assert done.stderr == "" and count - int(plain.stdout) < 200


def test_load_takes_the_bundled_model(nano, monkeypatch):
    monkeypatch.delenv("STEPAUDIO_CHECKPOINT", raising=False)
    assert pathlib.Path(stepaudio.load().report.path) == nano
    assert stepaudio.load(str(nano)).config == stepaudio.load(nano).config


@pytest.mark.parametrize("load", [stepaudio.load, stepaudio.StepAudio2.load, stepaudio.SpeechModel.load])
def test_the_name_of_a_model_on_a_hub(load, tmp_path, monkeypatch):
    """Looked up in the cache, and here forbidden to be fetched."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="stepfun-ai/Step-Audio-2-mini: the cache .* HF_HUB_OFFLINE") as stop:
        load(HUB)
    assert "no such file" not in str(stop.value) and "\n" not in str(stop.value)
    (tmp_path / "stepfun-ai").mkdir()
    with pytest.raises(StepAudioError, match="no such"):  # a path after all
        load(HUB)


def test_without_mlx_one_sentence_says_what_to_install(tmp_path):
    """A module that cannot be found stands for one that is not installed."""
    hide = """
import sys
class Hiding:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, *rest): return None if name.split(".")[0] == "mlx" else self.finder.find_spec(name, *rest)
sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
import stepaudio
"""
    for use in (
        "stepaudio.load()",
        "from stepaudio.model import StepAudio2",
        "stepaudio.Sampling; stepaudio.CachePolicy",
    ):
        done = run_python(hide + use)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1 and "pip install" in last and "stepaudio" in last and "BLAS" not in done.stderr, use


def test_print_says_what_a_model_is(tiny_model, nano_model):
    text = str(nano_model)
    assert text.startswith("StepAudio2\n") and repr(nano_model) == text
    size = f"{sum(v.size for _, v in tree_flatten(nano_model.net.parameters())) / 1e6:.2f} M"
    for part in ("nano, whole", size, "encoder", "decoder", "float32", "8245 tokens", "transcribe", "en", "cpu"):
        assert part in text, part
    n = sum(v.size for _, v in mx.utils.tree_flatten(tiny_model.net.parameters())) if hasattr(mx, "utils") else None
    assert n is None or f"{n / 1e6:.2f} M" in str(tiny_model)
    assert "/" not in text  # it can be printed in a notebook that others read


# ---- sources of sound ----


def test_all_that_holds_a_recording(tiny_model, wav):
    torch = pytest.importorskip("torch", reason="needs torch to make a tensor")
    x = SOUND
    wanted = answers(tiny_model.transcribe(wav, **FEW))
    data = wav.read_bytes()
    with open(wav, "rb") as file:
        for source in (str(wav), data, io.BytesIO(data), file, x, mx.array(x), torch.from_numpy(x), list(map(float, x)),
                       {"array": x, "sampling_rate": 16_000}):  # fmt: skip
            assert answers(tiny_model.transcribe(source, **FEW)) == wanted, type(source)


def test_a_list_of_files_gives_a_list(tiny_model, wav, tmp_path):
    sf.write(tmp_path / "b.wav", tiny.noise(2, seed=3), 16_000, subtype="FLOAT")
    both = tiny_model.transcribe([wav, str(tmp_path / "b.wav")], **FEW)
    assert isinstance(both, list) and len(both) == 2
    assert [answers(t) for t in both] == [answers(tiny_model.transcribe(f, **FEW)) for f in (wav, tmp_path / "b.wav")]
    assert tiny_model.transcribe([], **FEW) == [] and all(t.wall_seconds > 0 for t in both)
    assert answers(tiny_model.transcribe((wav, tiny.noise(1)), **FEW)[0]) == answers(both[0])


def test_a_missing_file_in_a_list_is_named(tiny_model, wav):
    with pytest.raises(AudioError, match="none.wav: no such file"):
        tiny_model.transcribe([wav, "none.wav"])


def test_sr_and_sample_rate_are_one_thing(tiny_model):
    x = np.repeat(tiny.noise(1), 2)
    a, b = (tiny_model.transcribe(x, **{name: 32_000}, **FEW) for name in ("sr", "sample_rate"))
    assert answers(a) == answers(b) and a.audio_seconds == 1 and a.notes == ()
    with pytest.raises(AudioError, match="mean the same and differ"):
        tiny_model.transcribe(x, sr=32_000, sample_rate=16_000)


def test_an_array_without_a_rate_says_what_was_assumed(tiny_model, wav):
    found = tiny_model.transcribe(tiny.noise(1), **FEW)
    assert len(found.notes) == 1 and "16000 Hz was assumed" in found.notes[0] and "16000 Hz" in found._repr_html_()
    assert found.to_dict()["notes"] == found.notes
    assert tiny_model.transcribe(wav, **FEW).notes == tiny_model.transcribe(tiny.noise(1), sr=16_000, **FEW).notes == ()
    assert tiny_model.transcribe([wav, tiny.noise(1)], **FEW)[1].notes == found.notes


def test_an_array_whose_shape_contradicts_16_khz_is_doubted(tiny_model):
    stereo = np.stack([tiny.noise(1), tiny.noise(1)], axis=1).astype(np.float64)  # what soundfile gives for most files
    with pytest.warns(UserWarning, match="16 kHz is assumed, but 2 channels of float64.*sr="):
        tiny_model.transcribe(stereo, **FEW)


# ---- options by their short names ----


ONE = stepaudio.Penalties(repetition=1.3, window=8)


@pytest.mark.parametrize(("words", "flags", "record"), [
    ({"temperature": 0.7}, ["--temperature", "0.7"], {"sampling": stepaudio.Sampling(temperature=0.7)}),
    ({"sampling": "reference"}, ["--sampling", "reference"], {"sampling": stepaudio.Sampling.greedy()}),
    ({"sampling": "greedy", "repetition": 1.3, "window": 8},
     ["--sampling", "greedy", "--repetition", "1.3", "--window", "8"],
     {"sampling": stepaudio.Sampling(text=ONE, audio=ONE)}),
    ({"cache": "full"}, ["--cache", "full"], {"cache": stepaudio.CachePolicy("full")}),
    ({"cache": "window", "max_cache_len": 30}, ["--cache", "window", "--max-cache-len", "30"],
     {"cache": stepaudio.CachePolicy("window", 30)}),
    ({"on_loop": "stop", "seed": 3, "temperature": 1.2, "top_k": 5},
     ["--on-loop", "stop", "--seed", "3", "--temperature", "1.2", "--top-k", "5"],
     {"on_loop": "stop", "sampling": stepaudio.Sampling(temperature=1.2, top_k=5, seed=3)}),
])  # fmt: skip
def test_the_command_line_and_the_api_mean_the_same(
    tiny_model, tiny_checkpoint, wav, words, flags, record, monkeypatch, capsys
):
    from stepaudio.cli.main import main

    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", str(tiny_checkpoint))
    assert main(["transcribe", str(wav), "--max-tokens", "24", *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    found = tiny_model.transcribe(wav, max_tokens=24, **words)
    assert [tuple(s["tokens"]) for s in said["segments"]] == [s.tokens for s in found.segments]
    meant = stepaudio.DecodingOptions(**record, max_tokens=24)
    assert answers(tiny_model.transcribe(wav, options=meant)) == answers(found)


def test_one_override_means_one_thing(tiny_model, wav):
    """By keyword, as a record, in a grid of experiments: on top of the planned defaults."""
    from stepaudio.decoding.options import merge_options
    from stepaudio.experiments.grid import Setting

    meant = stepaudio.Sampling(temperature=0.7)
    assert merge_options(temperature=0.7).sampling == meant == Setting.of({"sampling": {"temperature": 0.7}}).sampling
    assert merge_options(sampling=meant) == stepaudio.DecodingOptions(meant)
    a, b = (tiny_model.transcribe(wav, max_tokens=24, **w) for w in ({"temperature": 0.7}, {"sampling": meant}))
    assert answers(a) == answers(b)


VALUES = {
    "temperature": 0.7, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 9, "repetition": 1.5, "frequency": 0.3,
    "presence": 0.2, "no_repeat_ngram": 5, "window": 7, "include_prompt": True,
}  # fmt: skip


@pytest.mark.parametrize("preset", ["planned", "literal", "reference", "greedy"])
@pytest.mark.parametrize("name", VALUES)
def test_one_value_keeps_the_same_others_wherever_it_is_given(preset, name):
    """Command line, keyword, grid, preset: each changes this value of the preset and keeps the rest, loops included."""
    from stepaudio.cli.main import parsed
    from stepaudio.cli.options import decoding_from
    from stepaudio.decoding.options import RULE_FIELDS, merge_options
    from stepaudio.experiments.grid import Setting

    assert set(VALUES) == set(RULE_FIELDS) - {"contrast", "processors"}  # records and functions: for Python alone
    value, flag = VALUES[name], f"--{name.replace('_', '-')}"
    words = [flag] if value is True else [flag, str(value)]
    typed = decoding_from(parsed(["transcribe", "a.wav", "--sampling", preset, *words]))
    called = merge_options(sampling=preset, **{name: value})
    assert typed == called and typed.loop_action == called.loop_action
    assert called.rules == stepaudio.Sampling.named(preset).override({name: value})
    if name != "seed":  # the grid's own
        grid = Setting.of({"sampling": {"base": preset, name: value}})
        assert (grid.sampling, grid.on_loop) == (called.rules, called.loop_action)


def test_two_equal_runs_compare_equal(tiny_model, wav):
    a, b = (tiny_model.transcribe(wav, **FEW) for _ in range(2))
    assert a == b and a.wall_seconds != b.wall_seconds and a != tiny_model.transcribe(wav, max_tokens=5)
    assert tiny_model.generate_text("Hello", **FEW) == tiny_model.generate_text("Hello", **FEW)
    assert pickle.loads(pickle.dumps(a)) == a


@pytest.mark.parametrize(("words", "message"), [
    ({"temprature": 1}, "unknown option 'temprature'; did you mean 'temperature'"),
    ({"samplerate": 8000}, "did you mean 'sample_rate'"),
    ({"language": "en"}, "unknown option 'language'"),
    ({"sampling": "refernce"}, "planned, literal, reference or greedy.*did you mean 'reference'"),
    ({"cache": "sink"}, "did you mean 'sinks'"), ({"on_loop": "halt"}, "off, report, stop or escape"),
    ({"temperature": "hot"}, "temperature"), ({"temperature": None}, "temperature"), ({"top_p": 2}, "top_p"),
    ({"batch": "all"}, "batch"), ({"stop": "word"}, "list of non-empty strings"), ({"positions": "here"}, "reindexed"),
    ({"cache": 4096}, "CachePolicy"), ({"options": {"top_k": 1}}, "DecodingOptions"),
    ({"max_tokens": True}, "max_tokens"),
])  # fmt: skip
def test_options_that_are_none_end_in_one_error_class(tiny_model, wav, words, message):
    with pytest.raises(DecodeError, match=message) as stop:
        tiny_model.transcribe(wav, **words)
    assert "\n" not in str(stop.value)


def test_the_old_name_of_reindexed_positions_still_works(tiny_model, wav):
    old, new = (tiny_model.transcribe(wav, cache="window", max_cache_len=30, positions=p, **FEW)
                for p in ("renumbered", "reindexed"))  # fmt: skip
    assert answers(old) == answers(new) and stepaudio.CachePolicy(positions="renumbered").positions == "reindexed"


# ---- what comes back ----


def test_stream_a_recording(tiny_model, wav):
    steps = list(tiny_model.stream(str(wav), max_tokens=8))
    assert [s.index for s in steps] == list(range(8)) and steps[-1].stop == stepaudio.StopReason.LENGTH == "length"
    whole = tiny_model.transcribe(wav, max_tokens=8).segments[0]
    assert tuple(s.token for s in steps) == whole.tokens  # one segment: the reference's prompt and ours are the same
    x = SOUND
    assert [s.token for s in tiny_model.stream(x, sr=16_000, max_tokens=8)] == [s.token for s in steps]


def test_top_lists_the_most_probable_tokens(tiny_model, wav):
    """Against log-softmax of the recorded logits, in float64."""
    from stepaudio.interp import record

    trace = record(tiny_model, str(wav), "logits", max_tokens=5, sampling="greedy")
    steps = list(tiny_model.stream(wav, max_tokens=5, sampling="greedy", top=3))
    for step, logits in zip(steps, trace.writing("logits"), strict=True):
        p = np.exp(logits[0].astype(np.float64) - logits[0].max())
        p /= p.sum()
        order = np.argsort(-p)[:3]
        assert [a.token for a in step.top] == order.tolist() and step.top[0].token == step.token
        np.testing.assert_allclose([a.probability for a in step.top], p[order], rtol=1e-4)
        assert step.top[0].probability == pytest.approx(np.exp(step.logprob), rel=1e-4)
    assert [len(s.top) for s in tiny_model.stream(wav, max_tokens=2)] == [5, 5]
    assert [s.top for s in tiny_model.stream(wav, max_tokens=1, top=0)] == [()]
    vocabulary = tiny_model.config.text_config.vocab_size
    (all_of_them,) = tiny_model.stream(wav, max_tokens=1, top=10**6)
    assert len(all_of_them.top) == vocabulary and sum(a.probability for a in all_of_them.top) == pytest.approx(
        1, abs=1e-4
    )


def test_record_a_recording(tiny_model, wav):
    from stepaudio.interp import record

    assert record(tiny_model, wav, "logits", **FEW).tokens == tuple(s.token for s in tiny_model.stream(wav, **FEW))


def test_generate_from_a_text(tiny_model, nano_model, wav):
    message = [{"role": "human", "content": "Hello"}]
    for ask in (tiny_model.generate_text, tiny_model.generate_with_audio, tiny_model.generate_audio_tokens):
        assert ask("Hello", **FEW) == ask(message, **FEW)
    with pytest.raises(PromptError, match="is a file: .*model.transcribe"):
        tiny_model.generate_text(str(wav))
    with pytest.raises(AudioError, match="model.stream"):
        tiny_model.transcribe(message)
    with pytest.raises(PromptError, match="cannot respond: it was trained to transcribe"):
        nano_model.generate_text("Hello")


def test_reference_means_the_task_at_hand(tiny_model):
    chat = tiny_model.generate_text("Hello", sampling=stepaudio.Sampling.reference("chat"), seed=3, max_tokens=12)
    assert tiny_model.generate_text("Hello", sampling="reference", seed=3, max_tokens=12) == chat


# ---- what a model cannot do ----


def test_nano_says_what_it_cannot_do(nano, wav):
    speech = stepaudio.SpeechModel.load(nano, speak=False)
    with pytest.raises(PromptError, match="cannot translate: it was trained to transcribe .*en.*capabilities.json"):
        speech.translate(wav)
    with pytest.raises(PromptError, match="cannot respond: it was trained to transcribe and repeat and speak"):
        speech.model.generate_text("Hello")


@pytest.mark.parametrize(("content", "message"), [
    ("[]", "expected a JSON object, found list"), ('{"task": []}', "unknown key task; known are languages, tasks"),
    ('{"tasks": "all"}', "tasks: expected a list of str, found 'all'"),
    ('{"tasks": ["sing"]}', "unknown task 'sing'"), ("{", "not readable"),
])  # fmt: skip
def test_capabilities_that_are_none(tmp_path, content, message):
    from stepaudio.checkpoints.capabilities import Capabilities
    from stepaudio.errors import ConfigError

    assert Capabilities.of_folder(tmp_path).allow("translate")
    (tmp_path / "capabilities.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Capabilities.of_folder(tmp_path)


def test_viz_draws_a_file(wav):
    pytest.importorskip("matplotlib")
    from stepaudio import viz

    with contextlib.closing(io.BytesIO()) as picture:
        axes = viz.mel(str(wav))
        axes.figure.savefig(picture)
        assert "Hz" in axes.get_ylabel() and picture.tell() > 1000
