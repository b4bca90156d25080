"""Text <-> token ids against the published tokenizer's recorded pairs, and the logic on a small trained one."""

import json
import random

import pytest
from small_tokenizer import PARTS, TEXTS, edit, parsed

from stepaudio.constants import N_AUDIO_CODES
from stepaudio.errors import TokenizerError
from stepaudio.text.tokenizer import N_AUDIO_TOKENS, Detokenizer, Tokenizer
from stepaudio.text.tokenizer_files import QWEN_TOKENS, SPECIAL_TOKENS


@pytest.fixture(scope="module")
def published_folder(shared):
    path = shared / "Step-Audio-2-mini"
    if not (path / "vocab.json").exists():
        pytest.skip("needs the published tokenizer files")
    return path


@pytest.fixture(scope="module")
def published(published_folder):
    return Tokenizer.from_folder(published_folder, vocab_rows=158_720)


# ---- the published tokenizer ------------------------------------------------------------------------------------


def test_every_golden_pair_is_exact(published, goldens):
    data = json.loads((goldens / "tokenizer_pairs.json").read_text(encoding="utf-8"))
    for pair in data["pairs"]:
        assert published.encode(pair["text"]) == pair["ids"], pair["text"]
    for pair in data["pairs"] + data["decode_only"]:
        assert published.decode(pair["ids"]) == pair["decode"], pair
        assert published.decode(pair["ids"], skip_special=True) == pair["decode_skip_special"], pair
        for skip, text in ((False, pair["decode"]), (True, pair["decode_skip_special"])):
            stream = Detokenizer(published, skip)
            assert "".join(map(stream.push, pair["ids"])) + stream.finish() == text, pair


def test_names_flags_and_ids_are_the_published_ones(published, goldens):
    table = json.loads((goldens / "special_tokens.json").read_text(encoding="utf-8"))
    assert [entry["token"] for entry in table["tokens"]] == list(SPECIAL_TOKENS)
    for entry in table["tokens"]:
        assert published.id(entry["token"]) == entry["id"]
        assert (entry["id"] in published.special_ids) == entry["special"]
    run = table["audio_run"]
    assert (published.first_audio_code, published.n_audio) == (run["id_from"], N_AUDIO_TOKENS)
    assert published.id(f"<audio_{run['N_to']}>") == run["id_to"]
    assert (published.eot, published.n_ids) == (table["eos_id"], table["tokenizer_length"])
    assert published.eos_ids == {151643, 151645, 151665}
    assert published.text_limit == 151688


def test_codes_and_padding_of_the_published_range(published):
    assert [published.audio_code(i) for i in (0, 151695, 151696, 158256, 158257, 158351, 158352)] == [
        None,
        None,
        0,
        6560,
        None,
        None,
        None,
    ]
    assert [published.is_audio(i) for i in (151695, 151696, 158256, 158257, 158351, 158352)] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    assert [published.is_audio_padding(i) for i in (158256, 158257, 158351, 158352)] == [False, True, True, False]


def test_saved_published_files_say_the_same(published, published_folder, tmp_path):
    published.save(tmp_path)
    for name in ("vocab.json", "added_tokens.json", "special_tokens_map.json"):
        assert parsed(tmp_path / name) == parsed(published_folder / name)
    assert (tmp_path / "merges.txt").read_bytes() == (published_folder / "merges.txt").read_bytes()
    ours, theirs = (parsed(folder / "tokenizer_config.json") for folder in (tmp_path, published_folder))
    assert {key: theirs[key] for key in ours} == ours


def test_more_ids_than_rows_are_refused(published_folder):
    with pytest.raises(TokenizerError, match="158351.*only 1000 rows"):
        Tokenizer.from_folder(published_folder, vocab_rows=1000)


# ---- a small one ------------------------------------------------------------------------------------------------


def test_train_save_load_gives_the_same_ids(small, folder):
    again = Tokenizer.from_folder(folder)
    texts = [*TEXTS, "<|BOT|>human\nunseen Wörter 😀 <audio_3><|EOT|>", "", " \n\n x"]
    assert [again.encode(t) for t in texts] == [small.encode(t) for t in texts]
    assert [again.decode(small.encode(t)) for t in texts] == texts
    assert again.special_ids == small.special_ids
    assert {p.name for p in folder.iterdir()} == {*PARTS, "special_tokens_map.json"}


def test_the_order_of_the_added_tokens_in_the_file_does_not_matter(small, folder):
    def turn_round(config):
        config["added_tokens_decoder"] = dict(reversed(config["added_tokens_decoder"].items()))

    edit(folder / "tokenizer_config.json", turn_round)
    assert Tokenizer.from_folder(folder).id("<audio_5>") == small.id("<audio_5>")


def test_training_is_repeatable_and_merges(small):
    again = Tokenizer.train(TEXTS, vocab_size=300, n_audio=20)
    assert [again.encode(t) for t in TEXTS] == [small.encode(t) for t in TEXTS]
    assert len(small.encode(TEXTS[0])) < len(TEXTS[0].encode())
    assert len(Tokenizer.train(["ab", "cd cd"], 300).encode("ab")) == 2  # a pair seen once is not worth an id


def test_names_follow_the_text_vocabulary_in_published_order(small):
    first = small.n_ids - 20 - len(SPECIAL_TOKENS)
    assert first <= 300
    assert [small.id(name) for name in SPECIAL_TOKENS] == list(range(first, first + len(SPECIAL_TOKENS)))
    assert small.first_audio_code == first + len(SPECIAL_TOKENS)
    assert small.text_limit == small.audio_start == small.id("<audio_start>")
    s = small
    marks = (s.bot, s.audio_end, s.audio_patch, s.tts_start, s.tts_end, s.tts_pad, s.eot)
    assert small.decode(marks) == "<|BOT|><audio_end><audio_patch><tts_start><tts_end><tts_pad><|EOT|>"
    assert small.decode(marks, skip_special=True) == ""
    kept = [small.id("<tool_call>"), small.first_audio_code]
    assert small.decode(kept, skip_special=True) == "<tool_call><audio_0>"


def test_nfc_and_the_split_into_single_digits(small):
    assert small.encode("cafe\u0301") == small.encode("caf\u00e9")
    assert [small.decode([i]) for i in small.encode("121212")] == list("121212")


def test_codes_of_a_small_vocabulary(small):
    first = small.first_audio_code
    assert [small.audio_code(first + n) for n in (-1, 0, 19, 20)] == [None, 0, 19, None]
    many = Tokenizer.train(TEXTS, 256)
    last = many.first_audio_code + N_AUDIO_CODES - 1
    assert (many.audio_code(last), many.audio_code(last + 1)) == (N_AUDIO_CODES - 1, None)
    assert many.is_audio(last + 1)
    assert [many.is_audio_padding(last + n) for n in (0, 1)] == [False, True]


@pytest.mark.parametrize("skip", [False, True])
def test_detokenizer_joined_equals_decode(small, skip):
    draw = random.Random(7)
    tokenizer = Tokenizer(small._backend, vocab_rows=small.n_ids + 40)
    halves = [small.encode("你")[0], *small.encode("😀"), *small.encode("é")]
    for _ in range(3000):
        any_id = draw.randrange(tokenizer.vocab_rows)
        ids = [
            draw.choice((draw.randrange(256), any_id, draw.choice(halves), small.eot))
            for _ in range(draw.randrange(14))
        ]
        stream = Detokenizer(tokenizer, skip)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip), ids


def test_added_names_outside_the_byte_alphabet_stream_like_decode():
    names = ["<|EOT|>", "<你好>", "<a b>"]
    tokenizer = Tokenizer.train(["x"], 256, special_tokens=names, n_audio=0)
    ids = [tokenizer.encode("你")[0], *map(tokenizer.id, names)]
    stream = Detokenizer(tokenizer, skip_special=False)
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids) == "\ufffd" + "".join(names)


def test_detokenizer_waits_for_the_whole_character(small):
    ids = small.encode("😀")
    stream = Detokenizer(small)
    assert len(ids) == 4
    assert [stream.push(i) for i in ids] == ["", "", "", "😀"]
    assert (stream.push(ids[0]), stream.finish(), stream.finish()) == ("", "\ufffd", "")
    # a dropped mark between two bytes of a character does not part them, a kept one does
    ids.insert(2, small.eot)
    for skip, text in ((True, "😀"), (False, "\ufffd<|EOT|>\ufffd\ufffd")):
        stream = Detokenizer(small, skip)
        assert "".join(map(stream.push, ids)) + stream.finish() == small.decode(ids, skip) == text


def test_ids_without_a_token_are_empty_and_others_refused(small):
    bounded = Tokenizer(small._backend, vocab_rows=small.n_ids + 8)
    assert bounded.decode([small.n_ids, small.n_ids + 7]) == ""
    assert small.decode([2**40]) == ""  # no rows known, so no limit
    for bad in (-1, small.n_ids + 8, 2**40, 1.0, "a"):
        with pytest.raises(TokenizerError, match="id"):
            bounded.decode([bad])
        with pytest.raises(TokenizerError, match="id"):
            Detokenizer(bounded).push(bad)


@pytest.mark.parametrize("bad", ["\ud800", None, 3, ["a"]])
def test_encode_refuses_what_is_not_text(small, bad):
    with pytest.raises(TokenizerError, match="expected text"):
        small.encode(bad)


def test_a_missing_name_is_named(small):
    with pytest.raises(TokenizerError, match="<nope>.*--no-tokenizer"):
        small.id("<nope>")
    plain = Tokenizer.train(TEXTS, 256, special_tokens=["<|EOT|>"], n_audio=0)
    assert plain.eos_ids == {plain.eot}
    assert not plain.is_audio(plain.eot) and plain.audio_code(plain.n_ids) is None
    with pytest.raises(TokenizerError, match="<audio_0>"):
        _ = plain.first_audio_code
    with pytest.raises(TokenizerError, match="EOT"):
        Tokenizer.train(TEXTS, 256, special_tokens=QWEN_TOKENS)


@pytest.mark.parametrize("wrong", [{"texts": "abc"}, {"vocab_size": 255}, {"n_audio": -1}])
def test_train_refuses(wrong):
    with pytest.raises(TokenizerError, match="expected a list of texts"):
        Tokenizer.train(**({"texts": TEXTS, "vocab_size": 300} | wrong))
