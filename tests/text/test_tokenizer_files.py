"""Files of a tokenizer: damaged folders, and the single file that says the same."""

import pytest
from small_tokenizer import PARTS, TEXTS, edit

from stepaudio.errors import TokenizerError
from stepaudio.text.tokenizer import Tokenizer


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("break_it", ["missing", "empty", "binary", "other"])
def test_missing_and_broken_files_are_named(folder, name, break_it):
    path = folder / name
    if break_it == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "binary": b"\xff\x00\xfe", "other": b"[1, 2]"}[break_it])
    with pytest.raises(TokenizerError, match=name.replace(".", r"\.")) as caught:
        Tokenizer.from_folder(folder)
    if break_it != "other":
        assert "--no-tokenizer" in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere: no such folder.*--no-tokenizer"):
        Tokenizer.from_folder(tmp_path / "nowhere")


def test_contradicting_added_tokens_are_refused(folder):
    edit(folder / "added_tokens.json", lambda d: d.update({"<|EOT|>": d["<|BOT|>"], "<|BOT|>": d["<|EOT|>"]}))
    with pytest.raises(TokenizerError, match=r"added_tokens\.json contradicts tokenizer_config\.json in 4 entries"):
        Tokenizer.from_folder(folder)


def test_an_added_token_in_one_file_only_is_refused(folder):
    edit(folder / "added_tokens.json", lambda d: d.pop("<audio_19>"))
    with pytest.raises(TokenizerError, match="contradicts.*<audio_19>"):
        Tokenizer.from_folder(folder)


def shift_added(folder, by):
    edit(folder / "added_tokens.json", lambda d: d.update({k: v + by for k, v in d.items()}))

    def move(config):
        table = config["added_tokens_decoder"]
        config["added_tokens_decoder"] = {str(int(k) + by): v for k, v in table.items()}

    edit(folder / "tokenizer_config.json", move)


def test_added_ids_with_a_gap_are_refused(folder):
    shift_added(folder, 5)
    with pytest.raises(TokenizerError, match="cannot have id"):
        Tokenizer.from_folder(folder)


def test_audio_names_with_a_gap_are_refused(small, folder):
    edit(folder / "added_tokens.json", lambda d: d.update({"<audio_99>": d.pop("<audio_7>")}))
    key = str(small.id("<audio_7>"))
    edit(folder / "tokenizer_config.json", lambda d: d["added_tokens_decoder"][key].update(content="<audio_99>"))
    with pytest.raises(TokenizerError, match="consecutive"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("entry", ["text", {"content": "<x>"}, {"special": "yes"}, {"extra": 1}])
def test_an_added_token_without_its_flags_is_refused(small, folder, entry):
    key = str(small.eot)

    def change(config):
        old = config["added_tokens_decoder"][key]
        whole = isinstance(entry, dict) and "content" not in entry
        config["added_tokens_decoder"][key] = old | entry if whole else entry

    edit(folder / "tokenizer_config.json", change)
    with pytest.raises(TokenizerError, match=rf"added_tokens_decoder\[{key}\]"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("value", ["32", 32.0, True, None])
def test_vocab_with_other_values_than_ids_is_refused(folder, value):
    edit(folder / "vocab.json", lambda d: d.update(A=value))
    with pytest.raises(TokenizerError, match=r"vocab\.json: expected token: id"):
        Tokenizer.from_folder(folder)


def test_vocab_with_a_hole_or_without_a_byte_is_refused(folder):
    original = (folder / "vocab.json").read_text("utf-8")
    edit(folder / "vocab.json", lambda d: d.pop("A"))
    with pytest.raises(TokenizerError, match="each once"):
        Tokenizer.from_folder(folder)
    (folder / "vocab.json").write_text(original, "utf-8")
    edit(folder / "vocab.json", lambda d: d.update({"AAAA": d.pop("A")}))
    with pytest.raises(TokenizerError, match="byte tokens are missing, first 'A'"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("line", ["a", "a b c", "", "zz qq"])
def test_a_bad_merge_is_named_with_its_line(folder, line):
    path = folder / "merges.txt"
    lines = path.read_text("utf-8").split("\n")
    lines.insert(3, line)
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(TokenizerError, match=r"merges\.txt: line 4"):
        Tokenizer.from_folder(folder)


def test_a_merge_of_number_signs_is_no_comment(tmp_path):
    tokenizer = Tokenizer.train(["## ## ##"] * 4, 258, n_audio=0)
    tokenizer.save(tmp_path)
    assert "\n# #\n" in (tmp_path / "merges.txt").read_text("utf-8")
    assert Tokenizer.from_folder(tmp_path).encode("##") == tokenizer.encode("##")
    assert len(tokenizer.encode("##")) == 1
    (tmp_path / "merges.txt").write_text("# #\n", "utf-8")  # no version line: the first line is a merge
    assert Tokenizer.from_folder(tmp_path).encode("##") == tokenizer.encode("##")


def test_single_file_equals_the_parts_and_ignores_its_truncation_and_padding(small, folder):
    cutting = Tokenizer.from_folder(folder)._backend
    cutting.enable_truncation(3)
    cutting.enable_padding(length=3)
    cutting.save(str(folder / "tokenizer.json"))
    names = (folder / "added_tokens.json").read_text("utf-8")
    for name in PARTS:
        (folder / name).unlink()
    for text in (None, names):  # alone, and with a list of names beside it
        if text:
            (folder / "added_tokens.json").write_text(text, "utf-8")
        again = Tokenizer.from_folder(folder)
        assert [again.encode(t) for t in [*TEXTS, "a"]] == [small.encode(t) for t in [*TEXTS, "a"]]
        assert (again.special_ids, again.n_audio) == (small.special_ids, small.n_audio)
    edit(folder / "added_tokens.json", lambda d: d.update({"<|EOT|>": 1}))
    with pytest.raises(TokenizerError, match=r"contradicts tokenizer\.json"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("text", ["", "{}", '{"version": "1.0", "model": 3}'])
def test_a_broken_single_file_is_named(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json.*--no-tokenizer"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
def test_a_single_file_with_other_text_rules_is_refused(small, folder, part):
    small._backend.save(str(folder / "tokenizer.json"))
    edit(folder / "tokenizer.json", lambda d: d.update({part: None}))
    with pytest.raises(TokenizerError, match="text rules"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dropout", 0.5), ("unk_token", "<|endoftext|>"), ("continuing_subword_prefix", "##"),
        ("end_of_word_suffix", "</w>"), ("fuse_unk", True), ("byte_fallback", True), ("ignore_merges", True),
        ("type", "WordPiece"), ("cache_of_mine", 1),
    ],
)  # fmt: skip
def test_a_single_file_whose_model_treats_text_otherwise_is_refused(small, folder, setting, value):
    """The library writes the file and takes most of these settings, some in silence with other ids."""
    small._backend.save(str(folder / "tokenizer.json"))
    Tokenizer.from_folder(folder)
    edit(folder / "tokenizer.json", lambda d: d["model"].update({setting: value}))
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json: model: .*{setting}.*--no-tokenizer"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda d: d["model"]["vocab"].pop("!"), "expected token: id with ids"),
        (lambda d: d["model"]["vocab"].update({"x!x": d["model"]["vocab"].pop("!")}), "byte tokens are missing"),
        (lambda d: d["model"]["vocab"].update({"!": 1}), "each once"),
        (lambda d: d["model"]["merges"].append(["a"]), "expected a pair of tokens"),
        (lambda d: d["model"]["merges"].append(["a", "?!?"]), "join to a third"),
        (lambda d: d["added_tokens"].append(d["added_tokens"][0]), "expected an id, each once"),
        (lambda d: d["added_tokens"][0].pop("special"), "expected content"),
        (lambda d: d["added_tokens"].pop(3), "cannot have id"),
        (lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update({"Regex": r"\s+"}), "text rules"),
    ],
)
def test_a_single_file_with_other_tokens_is_refused(small, folder, change, found):
    small._backend.save(str(folder / "tokenizer.json"))
    (folder / "added_tokens.json").unlink()
    edit(folder / "tokenizer.json", change)
    with pytest.raises(TokenizerError, match=found):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("add_prefix_space", True), ("split_special_tokens", True), ("errors", "strict"), ("tokenizer_class", "Llama")],
)
def test_settings_that_treat_text_otherwise_are_refused(folder, setting, value):
    edit(folder / "tokenizer_config.json", lambda d: d.update({setting: value}))
    with pytest.raises(TokenizerError, match=rf"tokenizer_config\.json: {setting}: expected"):
        Tokenizer.from_folder(folder)
