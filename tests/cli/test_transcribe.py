"""`transcribe`, in this process and as one of its own: output, exit statuses, errors in one line."""

import json
import os
import shutil
import sys
import threading

import numpy as np
import pytest
import soundfile as sf
import tiny
from commands import FEW, as_process, one_line, unreadable
from safetensors.numpy import load_file, save_file

from stepaudio.constants import CHUNK_SECONDS
from stepaudio.decoding.prompt_cache import PromptCache
from stepaudio.text.prompts import asr_prompt


def test_transcribe_prints_one_object_per_file(run, wav, tiny_model):
    status, out, err = run("transcribe", wav, wav, *FEW)
    assert (status, err, len(out)) == (0, "", 2)
    found = json.loads(out[0])
    assert list(found) == [
        "file", "text", "segments", "audio_seconds", "wall_seconds", "notes", "first_token_seconds", "drafts",
        "memory", "skipped", "skipped_seconds",
    ]  # fmt: skip
    wanted = tiny_model.transcribe(wav, max_tokens=6)
    assert found["file"] == str(wav) and found["text"] == wanted.text and found["audio_seconds"] == 1
    (segment,) = found["segments"]
    assert (segment["start"], segment["end"], segment["stop"]) == (0, 1, wanted.segments[0].stop)
    assert tuple(segment["tokens"]) == wanted.segments[0].tokens and segment["mean_logprob"] < 0
    assert run("transcribe", "--json", wav, *FEW)[1][0].split('"wall')[0] == out[0].split('"wall')[0]


def test_speculative_decoding_writes_the_same(run, wav, tiny_checkpoint):
    plain = json.loads(run("transcribe", wav, "--max-tokens", "20", "--vad", "off")[1][0])
    for who in ("lookup", "off", tiny_checkpoint):
        status, out, err = run(
            "transcribe", wav, "--max-tokens", "20", "--vad", "off", "--speculate", who, "--draft-tokens", "3"
        )
        found = json.loads(out[0])
        assert (status, err, found["text"]) == (0, "", plain["text"])
        assert (found["drafts"] is None) == (who == "off") and found["first_token_seconds"] > 0
    assert found["drafts"]["accepted"] == found["drafts"]["proposed"] > 0  # the draft was the model itself


def test_a_prompt_cache_is_written_and_read(run, wav, tmp_path):
    path, same = tmp_path / "kept", ("--max-tokens", "8", "--vad", "off")
    first = json.loads(run("transcribe", wav, *same, "--prompt-cache", path)[1][0])
    kept = path.read_bytes()
    assert len(PromptCache.load(path)) == 1
    status, out, err = run("transcribe", wav, wav, *same, "--prompt-cache", path)
    assert (status, err) == (0, "") and {json.loads(line)["text"] for line in out} == {first["text"]}
    assert path.read_bytes() == kept


def test_a_prompt_cache_that_is_none(run, wav, tmp_path):
    """Nothing that is not a prompt cache of this model is read or replaced."""
    words, broken, foreign = tmp_path / "words.txt", tmp_path / "broken", tmp_path / "foreign"
    words.write_text("mine")
    store = PromptCache()
    store.belong_to("another")
    broken.write_bytes(store.save(foreign).read_bytes()[:-1])
    for path, said in (
        (words, "is not a prompt cache"), (broken, "broken"), (foreign, "another model"),
        (tmp_path / "no" / "folder", "no such folder"), (wav, "is not a prompt cache"),
    ):  # fmt: skip
        before = path.read_bytes() if path.exists() else None
        status, out, err = run("transcribe", wav, "--prompt-cache", path)
        assert status == 2 and not out and said in one_line(err) and str(path) in err
        assert before == (path.read_bytes() if path.exists() else None)


def test_an_impossible_count_of_draft_tokens(run, wav):
    status, _, err = run("transcribe", wav, "--speculate", "lookup", "--draft-tokens", "0")
    assert status == 2 and "draft_tokens: expected a whole number of at least 1" in one_line(err)


def test_plain_text(run, wav, tiny_model):
    status, out, _ = run("transcribe", "--text", wav, *FEW)
    assert status == 0 and "\n".join(out) == tiny_model.transcribe(wav, max_tokens=6).text


def test_one_bad_file_among_good_ones(run, wav, tmp_path):
    """The others go on; each bad one gets an object with its error, a line on stderr, and the status says so."""
    status, out, err = run("transcribe", unreadable(tmp_path), wav, tmp_path / "none.wav", wav, *FEW)
    found = [json.loads(line) for line in out]
    assert status == 1 and ["error" in f for f in found] == [True, False, True, False]
    assert found[0]["file"].endswith("text.wav") and "none.wav" in found[2]["error"]
    assert len(err.splitlines()) == 2 and all(line.startswith("stepaudio: ") for line in err.splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of a Mac take UTF-8 alone")
def test_a_name_that_is_not_utf_8_stops_nobody(run, wav, tmp_path):
    odd = shutil.copy(wav, tmp_path / os.fsdecode(b"caf\xe9.wav"))
    status, out, err = run("transcribe", odd, wav, *FEW)
    found = [json.loads(line) for line in out]
    assert (status, err, len(found)) == (0, "", 2) and found[0]["file"] == f"{tmp_path}/caf\\xe9.wav"
    assert found[0]["text"] == found[1]["text"] and "".join(out).encode("utf-8")
    assert "".join(run("transcribe", "--text", odd, wav, *FEW)[1]).encode("utf-8")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe(run, wav, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(wav.read_bytes()))
    writer.start()
    status, out, err = run("transcribe", tmp_path / "pipe", wav, *FEW)
    writer.join()
    first, second = map(json.loads, out)
    assert (status, err) == (0, "") and first["segments"] == second["segments"]


def test_bad_file_in_plain_text_leaves_stdout_alone(run, wav, tmp_path):
    status, out, err = run("transcribe", "--text", tmp_path / "none.wav", *FEW)
    assert (status, out) == (1, []) and "none.wav" in one_line(err)


@pytest.mark.parametrize("form", ["text", "srt", "vtt", "tsv"])
def test_formats_are_those_of_the_transcript(run, wav, tiny_model, form):
    status, out, err = run("transcribe", wav, "--format", form, *FEW)
    assert (status, err) == (0, "") and "\n".join(out).strip() == tiny_model.transcribe(wav, max_tokens=6).to(
        form
    ).strip()


def test_several_files_as_text_are_named(run, wav, tmp_path, tiny_model):
    other = tmp_path / "b.flac"
    sf.write(other, tiny.noise(1, seed=1), 16_000)
    texts = [tiny_model.transcribe(path, max_tokens=6).text for path in (wav, other)]
    assert run("transcribe", wav, other, "--text", *FEW)[1] == [f"{wav}: {texts[0]}", f"{other}: {texts[1]}"]


@pytest.mark.parametrize(("form", "suffix"), [("srt", "srt"), ("text", "txt"), ("json", "json")])
def test_one_file_per_recording(run, wav, tmp_path, tiny_model, form, suffix):
    (tmp_path / "out").mkdir()
    other = tmp_path / "b.flac"
    sf.write(other, tiny.noise(1, seed=1), 16_000)
    status, out, err = run(
        "transcribe", wav, tmp_path / "no.wav", other, "-o", tmp_path / "out", "--format", form, *FEW
    )
    assert (status, out) == (1, []) and "no.wav" in one_line(err)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"a.{suffix}", f"b.{suffix}"}
    want, found = (
        tiny_model.transcribe(wav, max_tokens=6),
        (tmp_path / "out" / f"a.{suffix}").read_text(encoding="utf-8"),
    )
    if form == "json":
        assert json.loads(found)["text"] == want.text
    else:
        assert found == want.to(form)


@pytest.mark.parametrize(("argv", "said"), [
    (["a.wav", "b.wav", "--format", "srt"], "--output DIR where the 2 of them go"),
    (["a.wav", "-o", "nowhere"], "--output nowhere: expected a folder"),
    (["-", "-"], "standard input can be read once"),
    (["a.wav", "c/a.flac", "-o", "."], "same name"),
    (["a.wav", "--no-tokenizer", "--text", "--prompt-ids", "AUDIO"], "no text with --no-tokenizer"),
])  # fmt: skip
def test_outputs_that_cannot_be_are_refused_before_any_work(run, monkeypatch, tmp_path, argv, said):
    from stepaudio.model import StepAudio2

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StepAudio2, "load", lambda *a, **k: pytest.fail("the model was read"))
    status, out, err = run("transcribe", *argv)
    assert (status, out) == (2, []) and said in one_line(err)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_standard_input(tiny_checkpoint, tiny_model, tmp_path, form):
    """Whatever soundfile writes into a pipe; the words are those of the same bytes in a file."""
    sf.write(tmp_path / "a", tiny.noise(1), 16_000, format=form)
    data = (tmp_path / "a").read_bytes()
    done = as_process(tiny_checkpoint, "transcribe", "-", *FEW, input=data, encoding=None)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["file"] == "-"
    assert found["text"] == tiny_model.transcribe(tmp_path / "a", max_tokens=6).text


def test_standard_input_that_is_no_sound(tiny_checkpoint):
    for data, said in ((b"", b"standard input: is empty"), (b"no sound", b"standard input: is not audio")):
        done = as_process(tiny_checkpoint, "transcribe", "-", *FEW, input=data, encoding=None)
        assert done.returncode == 1 and said in done.stderr and b"Traceback" not in done.stderr


def test_standard_input_that_is_closed(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # what Python makes of it
    status, _, err = run("transcribe", "-", "--text")
    assert status == 1 and "".join(err).strip() == (
        "stepaudio: standard input: is closed, so there is nothing to read; use < FILE, or name the file"
    )


def test_silence(run, tmp_path):
    sf.write(tmp_path / "q.wav", np.zeros(32_000), 16_000)
    status, out, _ = run("transcribe", tmp_path / "q.wav")
    assert status == 0 and json.loads(out[0])["text"] == "" and json.loads(out[0])["segments"][0]["stop"] == "silence"
    status, out, said = run("transcribe", "--text", tmp_path / "q.wav")
    assert (status, out) == (0, [""]) and "q.wav: no speech was found in its 2.0 s" in "".join(said)
    assert json.loads(run("transcribe", "--vad", "off", tmp_path / "q.wav")[1][0])["skipped"] == []


def test_silence_that_was_skipped_is_said(run, tmp_path):
    sf.write(tmp_path / "s.wav", np.concatenate([np.zeros(9 * 16_000), tiny.noise(1)]), 16_000)
    status, out, said = run("transcribe", tmp_path / "s.wav", *FEW)
    found = json.loads(out[0])
    assert status == 0 and found["skipped"] == [[0.0, found["segments"][1]["start"]]]
    assert f"s.wav: {found['skipped_seconds']:.1f} of its 10.0 s hold no speech" in "".join(said)
    sf.write(tmp_path / "t.wav", np.concatenate([np.zeros(2 * 16_000), tiny.noise(3)]), 16_000)
    assert "speech" not in "".join(run("transcribe", tmp_path / "t.wav", *FEW)[2])


def test_ids_without_a_tokenizer(run, wav, tiny_model):
    prompt = asr_prompt(tiny_model.tokenizer, [1])
    start = prompt.slots[0].start
    ids = f"{' '.join(map(str, prompt.tokens[:start]))} AUDIO {','.join(map(str, prompt.tokens[start + 1 :]))}"
    wanted = list(tiny_model.transcribe(wav, max_tokens=6).segments[0].tokens)
    for flags in (["--no-tokenizer"], ["--no-tokenizer", "--text", "--json"], []):
        status, out, _ = run("transcribe", *flags, "--prompt-ids", ids, wav, *FEW)
        found = json.loads(out[0])
        assert status == 0 and found["segments"][0]["tokens"] == wanted and (found["text"] is None) == bool(flags)


@pytest.mark.parametrize(
    "ids", [[], ["--prompt-ids", "1 2"], ["--prompt-ids", "1 AUDIO x"], ["--prompt-ids", "AUDIO 1 AUDIO"]]
)
def test_ids_need_a_prompt_of_ids(run, wav, ids):
    status, out, err = run("transcribe", "--no-tokenizer", *ids, wav)
    assert (status, out) == (2, []) and "--prompt-ids" in one_line(err)


def test_the_prompt_matters(run, wav):
    a, b = (
        json.loads(run("transcribe", "--prompt", p, wav, "--max-tokens", "20")[1][0])["segments"][0]["tokens"]
        for p in ("what is the time", "café")
    )
    assert a != b


def test_downmix(run, tmp_path):
    x = np.stack([tiny.noise(1), tiny.noise(1, seed=1) * 4], axis=1)
    sf.write(tmp_path / "s.wav", x, 16_000, subtype="FLOAT")
    sf.write(tmp_path / "m.wav", x.mean(1), 16_000, subtype="FLOAT")
    sf.write(tmp_path / "l.wav", x[:, 0], 16_000, subtype="FLOAT")

    def ids(*argv):
        return json.loads(run("transcribe", *argv, *FEW)[1][0])["segments"][0]["tokens"]

    assert ids(tmp_path / "s.wav") == ids(tmp_path / "l.wav")
    assert ids("--downmix", "mean", tmp_path / "s.wav") == ids(tmp_path / "m.wav")


def sampled(run, wav, *options):
    out = run("transcribe", wav, "--max-tokens", "40", *options)[1]
    return json.loads(out[0])["segments"][0]["tokens"]


def test_sampling_reaches_the_decoder(run, wav, tiny_model):
    from stepaudio.decoding.sampling import Penalties, Sampling

    def direct(sampling):
        return list(tiny_model.transcribe(wav, max_tokens=40, sampling=sampling).segments[0].tokens)

    assert sampled(run, wav) == direct(Sampling.planned()) == direct(None)
    assert (
        sampled(run, wav, "--sampling", "greedy")
        == sampled(run, wav, "--sampling", "reference")
        == direct(Sampling.greedy())
    )
    seeded = ["--temperature", "1.3", "--top-k", "20", "--seed", "4"]
    assert (
        sampled(run, wav, *seeded) == sampled(run, wav, *seeded) == direct(Sampling(temperature=1.3, top_k=20, seed=4))
    )
    one = Penalties(repetition=1.5, frequency=0.7, presence=0.2, no_repeat_ngram=2, window=9, include_prompt=True)
    found = sampled(
        run,
        wav,
        "--sampling",
        "greedy",
        "--repetition",
        "1.5",
        "--frequency",
        "0.7",
        "--presence",
        "0.2",
        "--no-repeat-ngram",
        "2",
        "--window",
        "9",
        "--penalise-prompt",
    )
    assert found == direct(Sampling(text=one, audio=one))


def test_cache_reaches_the_decoder(run, wav, tiny_model):
    from stepaudio.models.kv_cache import CachePolicy

    options = ["--sampling", "greedy", "--cache", "window", "--max-cache-len", "50", "--positions", "renumbered"]
    found = json.loads(run("transcribe", wav, *options, "--max-tokens", "60")[1][0])["segments"][0]["tokens"]
    from stepaudio.decoding.sampling import Sampling

    policy = CachePolicy("window", 50, positions="renumbered")
    wanted = tiny_model.transcribe(wav, cache=policy, sampling=Sampling.greedy(), max_tokens=60)
    assert found == list(wanted.segments[0].tokens)


@pytest.mark.parametrize("options", [
    ["--max-tokens", "0"], ["--batch", "0"], ["--batch", "-2"], ["--temperature", "-1"], ["--top-p", "0"],
    ["--cache", "full", "--positions", "renumbered"], ["--max-cache-len", "0"], ["--no-repeat-ngram", "-1"],
    ["--draft-tokens", "3"], ["--sinks", "2", "--cache", "window"], ["--cache", "full", "--max-cache-len", "9"],
])  # fmt: skip
def test_impossible_options(run, wav, options):
    status, out, err = run("transcribe", wav, wav, *options)
    assert (status, out) == (2, []) and one_line(err)  # once, not once per file


def test_stop_strings_and_both_spellings_reach_the_decoder(run, wav, tiny_model):
    whole = tiny_model.transcribe(wav, max_tokens=40).text
    found = json.loads(run("transcribe", wav, "--max-tokens", "40", "--stop", whole[:3])[1][0])["segments"][0]
    assert found["stop"] == "stop string" and len(found["text"]) < len(whole)
    one, other = (
        sampled(run, wav, "--sampling", "greedy", "--repetition", "1.5", spelling)
        for spelling in ("--include-prompt", "--penalise-prompt")
    )
    assert one == other != sampled(run, wav, "--sampling", "greedy", "--repetition", "1.5")


def test_a_missing_model_is_named(run, wav, tmp_path):
    status, out, err = run("transcribe", wav, "--model", tmp_path / "nowhere")
    assert (status, out) == (2, []) and "nowhere" in one_line(err)


@pytest.mark.filterwarnings("default::UserWarning")
def test_an_incomplete_model_is_refused_once(run, wav, tmp_path, tiny_checkpoint):
    for file in tiny_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    status, out, err = run("transcribe", wav, wav, "--model", tmp_path)
    warning, refusal = err.splitlines()
    assert (status, out) == (2, []) and "will not run on random weights" in refusal
    assert warning.startswith("stepaudio: warning: ") and "model.norm.weight" in warning


def test_no_bar_in_a_pipe(run, tmp_path):
    sf.write(tmp_path / "long.wav", tiny.noise(65), 16_000)
    status, out, err = run("transcribe", tmp_path / "long.wav", "--max-tokens", "2")
    assert status == 0 and err == ""
    segments = json.loads(out[0])["segments"]
    assert segments[-1]["end"] == 65 and all(s["end"] - s["start"] <= CHUNK_SECONDS for s in segments)


def test_as_a_process(tiny_checkpoint, wav, tmp_path, tiny_model):
    done = as_process(tiny_checkpoint, "transcribe", wav, unreadable(tmp_path), *FEW)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and "error" in lines[1]
    assert lines[0]["text"] == tiny_model.transcribe(wav, max_tokens=6).text


@pytest.mark.parametrize("verb", [["transcribe"], ["weights"], ["weights", "--json"]])
@pytest.mark.parametrize("name", ["a" * 3000, "a/" * 1500 + "b.wav"])
def test_a_very_long_name_of_no_file_is_quoted_short(run, verb, name):
    """Nothing printed for it is long; it begins and ends as the name does."""
    status, out, err = run(*verb, name)
    assert status != 0 and sum(map(len, [*out, err])) < 2000
    assert name[:100] in out[0] and name[-100:] in out[0]


def test_the_name_of_a_file_that_cannot_be_read_is_whole_in_json(run, tmp_path):
    folder = tmp_path.joinpath(*["d" * 200] * 3)
    folder.mkdir(parents=True)
    (folder / "a.wav").write_bytes(b"no sound")
    status, out, err = run("transcribe", folder / "a.wav")
    assert status == 1 and json.loads(out[0])["file"] == str(folder / "a.wav") and len(err) < 1000
