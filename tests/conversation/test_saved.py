"""Files of conversations: what is kept to the bit, and every file that is none."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import tiny

import stepaudio
from stepaudio.conversation import Answer, Conversation, Recording
from stepaudio.errors import DataError


def full_talk(model) -> Conversation:
    talk = Conversation("système 你好", tools='[{"a": 1}]').ask("text", tiny.noise(0.7) * 30, "more")
    talk = talk.say_tokens([model.tokenizer.first_audio_code, 3]).ask("x").say("y").give("result")
    talk = talk.say("done").ask(audio=tiny.noise(0.5))
    return talk.answer(model, sampling="greedy", max_tokens=3)


def test_a_saved_conversation_is_the_same(tiny_model, tmp_path):
    talk = full_talk(tiny_model)
    path = talk.save(tmp_path / "talk.zip")
    again = stepaudio.Conversation.open(path)
    assert again == talk and again.tokens(tiny_model) == talk.tokens(tiny_model)
    for one, other in zip(talk.turns, again.turns, strict=True):
        for a, b in zip(one.parts, other.parts, strict=True):
            assert a == b if isinstance(a, str) else np.array_equal(a.samples, b.samples)
        if isinstance(one, Answer):
            assert replace(one, generation=None).__dict__ | {"key": 0} == other.__dict__ | {"key": 0}
    assert path.read_bytes() == again.save(tmp_path / "again.zip").read_bytes()
    more = {"sampling": "greedy", "max_tokens": 4}
    assert again.ask("?").answer(tiny_model, **more) == talk.ask("?").answer(tiny_model, **more)
    with zipfile.ZipFile(path) as file:
        assert len([n for n in file.namelist() if n.endswith(".flac")]) == 2


def test_a_recording_of_sixteen_bits_is_kept_to_the_bit():
    exact = np.round(tiny.noise(0.5) * 2**15).astype(np.float32) / 2**15
    assert np.array_equal(Recording.of(exact).samples, exact)
    loud = tiny.noise(0.5) * 7
    kept = Recording.from_flac(Recording.of(loud).flac(), Recording.of(loud).exponent, "x")
    assert np.abs(kept.samples - loud).max() <= 2.0**-23 * 8 and kept.exponent > 0


def rewritten(path, tmp_path, change):
    """The file with one member changed or left out."""
    target = tmp_path / "changed.zip"
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(target, "w") as out:
        for name in file.namelist():
            data = change(name, file.read(name))
            if data is not None:
                out.writestr(name, data)
    return target


CHANGES = {
    "no turns": lambda n, d: None if n == "turns.jsonl" else d,
    "no audio": lambda n, d: None if n.endswith(".flac") else d,
    "other audio": lambda n, d: Recording.of(tiny.noise(0.1)).flac() if n.endswith(".flac") else d,
    "no flac": lambda n, d: b"fLaC nonsense" if n.endswith(".flac") else d,
    "format": lambda n, d: d.replace(b"conversation 1", b"conversation 9"),
    "role": lambda n, d: d.replace(b'"role": "human"', b'"role": "root"'),
    "order": lambda n, d: d.replace(b'"role": "system"', b'"role": "human"'),
    "path": lambda n, d: d.replace(b'"audio": "', b'"audio": "../'),
    "ids": lambda n, d: d.replace(b'"tokens": [', b'"tokens": [-'),
    "unknown": lambda n, d: d.replace(b'"stop":', b'"exec": "x", "stop":'),
    "json": lambda n, d: d[:-9] if n == "turns.jsonl" else d,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_none_is_one_error(tiny_model, tmp_path, change):
    path = full_talk(tiny_model).save(tmp_path / "talk.zip")
    with pytest.raises(DataError) as caught:
        Conversation.open(rewritten(path, tmp_path, CHANGES[change]))
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_a_zip_program_packed_again(tiny_model, tmp_path):
    """It may be compressed; damage of what is compressed is found too."""
    talk = full_talk(tiny_model)
    path, again = talk.save(tmp_path / "talk.zip"), tmp_path / "again.zip"
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path) as file, zipfile.ZipFile(again, "w", kind) as out:
            for name in file.namelist():
                out.writestr(name, file.read(name))
        if kind == zipfile.ZIP_LZMA:
            with pytest.raises(DataError, match="compressed in a way"):
                Conversation.open(again)
            continue
        assert Conversation.open(again) == talk
        whole = again.read_bytes()
        for place in range(60, 400, 20):
            again.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            with pytest.raises(DataError):
                Conversation.open(again)


def test_no_conversation_at_all(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 broken")
    for name in ("x.zip", "absent.zip", "."):
        with pytest.raises(DataError, match="expected a conversation|no whole zip"):
            Conversation.open(tmp_path / name)
    with pytest.raises(DataError, match="cannot be written"):
        Conversation().save(tmp_path / "absent" / "x.zip")
