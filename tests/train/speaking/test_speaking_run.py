"""A run of speaking on seconds of noise: what nets hear of clips, a loss that falls, a model that the engine loads."""

import json
import shutil

import corpora
import mlx.core as mx
import numpy as np
import pytest

import stepaudio
from stepaudio.audio.features import log_mel
from stepaudio.checkpoints.load import load_weights
from stepaudio.errors import DataError
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet
from stepaudio.train.__main__ import main
from stepaudio.train.corpus import AnswerEncoder, Corpus
from stepaudio.train.nano import average_models
from stepaudio.train.speaking.sound import clip_codes, clip_embeddings
from stepaudio.train.token2wav.run import read_net
from stepaudio.train.token2wav.speech_tokenizer import codes_of


@pytest.fixture
def clips(tmp_path, words):
    return Corpus([corpora.write_for_speaking(tmp_path / "c")], AnswerEncoder(words))


def test_embeddings_are_those_of_the_engine(clips, start):
    sizes = StepAudioConfig.from_file(start)
    net = StepAudioNet(sizes)
    load_weights(net, start, sizes, mx.float32)
    store, heard = clip_embeddings(clips, net, variants=2, seed=0)
    samples = clips.samples(0)
    for clip, (clean, augmented) in zip(clips.clips, heard, strict=True):
        wave = samples[clip["start"] : clip["start"] + clip["n"] - 2] / np.float32(32768)
        (expected,) = net.encode_audio([log_mel(wave)])
        first, n = clean
        assert n == len(expected)
        assert np.allclose(np.array(store[first : first + n]), np.array(expected), rtol=5e-3, atol=5e-3)
        assert not np.allclose(np.array(store[augmented[0]]), np.array(expected)[0], rtol=5e-3, atol=5e-3)
    used = sorted((first, first + n) for each in heard for first, n in each)
    assert [a for a, _ in used[1:]] == [b for _, b in used[:-1]] and used[-1][1] == store.shape[0]


def test_codes_of_each_clip_are_its_part_of_the_whole(clips, codec):
    net = read_net(codec, "tokenizer")
    found = clip_codes(clips, net)
    whole = codes_of(net, mx.array(clips.samples(0)))
    assert len(np.unique(whole)) > 3
    for clip, codes in zip(clips.clips, found, strict=True):
        begin, end = clip["start"] / 16_000 * 25, (clip["start"] + clip["n"]) / 16_000 * 25
        assert len(codes) == 20 and np.array_equal(codes, whole[round(begin) : round(end)])


def test_clips_between_two_codes_are_refused(tmp_path, words, codec):
    wrong = Corpus([corpora.write_for_speaking(tmp_path / "c", 12_801)], AnswerEncoder(words))
    with pytest.raises(DataError, match="640"):
        clip_codes(wrong, read_net(codec, "tokenizer"))


def test_a_run_learns_and_its_model_speaks(tmp_path, start, codec):
    folder, out = corpora.write_for_speaking(tmp_path / "c"), tmp_path / "run"
    common = [
        *corpora.speaking_command(folder, start, codec, out),
        "--layers",
        "2",
        "--tokens",
        "256",
        "--variants",
        "1",
    ]
    main([*common, "--steps", "12", "--log-every", "4", "--rate", "0.8"])
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line["codes"] for line in lines if "codes_right" in line]
    assert losses[-1] < losses[0] - 0.5
    model = stepaudio.load(out / "model")
    answer = model.generate_text([{"role": "human", "content": "the cat"}], max_tokens=3)
    assert len(answer.tokens) <= 3
    with open(out / "log.jsonl", "a") as log:
        log.write('{"step": 12, "held_out_\n')  # as a killed run leaves it
    main([*common, "--steps", "13", "--log-every", "1", "--resume"])
    again = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines() if line.endswith("}")]
    assert again[-1] == again[-1] | {"event": "end", "step": 13}


def test_the_model_that_predicts_held_out_codes_best_is_kept(tmp_path, start, codec):
    """A rate that ruins the weights after the first save: the best model is the first, the last another."""
    folder, out = tmp_path / "c", tmp_path / "run"
    lines = [
        line | {"id": f"{k}", "n_samples": 12_800, "offset": k * 12_800}
        for k, line in enumerate(corpora.clip_lines() * 2)
    ]
    corpora.write(folder, lines)
    texts = [{"id": line["id"], "text": line["text"]} for line in lines]
    (folder / "texts").write_text("".join(json.dumps(line) + "\n" for line in texts), encoding="utf-8")
    sizes = ["--layers", "2", "--tokens", "256", "--variants", "1", "--save-every", "0", "--steps", "3", "--rate", "50"]
    main([*corpora.speaking_command(folder, start, codec, out), *sizes])
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line["held_out_loss"] for line in log if "held_out_loss" in line]
    assert len(losses) > 2 and not losses[-1] <= np.nanmin(losses)  # a ruined net may give no number at all
    best, last = (mx.load(str(out / name / "model.safetensors")) for name in ("best", "model"))
    assert any((best[name] != last[name]).any() for name in best)
    stepaudio.load(out / "best")


def test_what_is_kept_in_eight_bits_is_kept_to_the_bit(tmp_path, start, codec):
    """An encoder of int8 numbers and scales is written as it was; the trained decoder is in half precision."""
    folder, small, out = corpora.write_for_speaking(tmp_path / "c"), tmp_path / "small", tmp_path / "run"
    shutil.copytree(start, small)
    average_models([start], small, ["encoder"])
    main(
        [
            *corpora.speaking_command(folder, small, codec, out),
            "--layers",
            "2",
            "--tokens",
            "256",
            "--variants",
            "1",
            "--steps",
            "2",
        ]
    )
    before, after = (mx.load(str(at / "model.safetensors")) for at in (small, out / "model"))
    kept = {name for name in before if name.startswith("encoder.")}
    assert any(before[name].dtype == mx.int8 for name in kept)
    assert all(before[name].dtype == after[name].dtype and (before[name] == after[name]).all() for name in kept)
    assert not any(after[name].dtype == mx.int8 for name in after if name.startswith("model."))


def test_a_model_that_speaks_goes_on_from_its_codes(tmp_path, start, codec):
    """After one step of no length the rows of the codes are those of the model it began with, but for half precision.

    One whose capabilities.json does not say that it speaks has its codes drawn anew. What a run writes says so.
    """
    folder, words = corpora.write_for_speaking(tmp_path / "c"), stepaudio.load(start).tokenizer
    codes = slice(words.first_audio_code, words.first_audio_code + 6561)
    tables = "model.embed_tokens.weight", "lm_head.weight"
    silent = tmp_path / "silent"
    shutil.copytree(start, silent)
    (silent / "capabilities.json").write_text('{"tasks": ["transcribe"], "languages": ["en"]}')
    few = ["--layers", "2", "--tokens", "256", "--variants", "1", "--steps", "1", "--rate", "0"]
    spoke = tmp_path / "first" / "model"
    for begin, out in ((silent, "first"), (spoke, "second"), (start, "third")):
        main([*corpora.speaking_command(folder, begin, codec, tmp_path / out), *few])
        before, after = (mx.load(str(at / "model.safetensors")) for at in (begin, tmp_path / out / "model"))
        for name in tables:
            apart = np.abs(np.array(before[name][codes], np.float32) - np.array(after[name][codes], np.float32))
            assert (apart.max() > 0.02) if begin == silent else (apart.max() < 2e-3), (out, name)
    said = json.loads((spoke / "capabilities.json").read_text())
    assert said["tasks"] == ["transcribe", "repeat", "speak"] and said["languages"] == ["en"]


def test_a_decoder_does_not_lose_layers(tmp_path, start, codec, capsys):
    folder = corpora.write_for_speaking(tmp_path / "c")
    with pytest.raises(SystemExit) as left:
        main([*corpora.speaking_command(folder, start, codec, tmp_path / "run"), "--layers", "0"])
    assert left.value.code == 2 and "layers: 0" in capsys.readouterr().err
