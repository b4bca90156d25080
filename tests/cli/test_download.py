"""`download`, and names on a hub in the place of folders: the fake hub, the real library."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from commands import FEW, one_line
from fake_hub import REPO, git_id
from huggingface_hub import constants
from small_checkpoint import entry, raw_file

INDEX = "model.safetensors.index.json"


def test_download_says_what_moves_and_where_it_is(run, hub):
    status, out, err = run("download", REPO)
    assert status == 0 and len(out) == 2 and "every checksum is right" in out[0] and hub.commit(REPO) in out[0]
    assert (Path(out[1]) / "config.json").is_file() and all(x.startswith("stepaudio: ") for x in err.splitlines())
    served = dict(hub.served)
    status, out, err = run("download", REPO, "--json")
    told = json.loads(out[0])
    assert (status, err, dict(hub.served)) == (0, "", served) and told["fetched"] == 0
    assert told["bytes"] == sum(f["bytes"] for f in told["files"]) > 500_000


def test_download_of_no_name(run, hub):
    for name in ("nano", "a/b/c", ""):
        status, _, err = run("download", name)
        assert status == 2 and "expected ORG/NAME or ORG/NAME@REVISION" in one_line(err)
    status, _, err = run("download", "somebody/nothing")
    assert status == 2 and "neither a folder here nor a model that the hub shows" in one_line(err)
    status, _, err = run("download", REPO, "--only", "token2wav")
    assert status == 2 and "has no folder token2wav, so it cannot speak" in one_line(err)


def test_every_command_takes_a_name(run, hub, wav, offline):
    """The model is fetched by the first of them, and the others do without the network."""
    status, out, err = run("transcribe", wav, "--model", REPO, *FEW)
    assert status == 0 and json.loads(out[0])["tokens"] is not None if "tokens" in json.loads(out[0]) else status == 0
    assert "are fetched into" in err
    offline()
    (wav.parent / "m.tsv").write_text(f"file\ttext\n{wav.name}\thello\n")
    for argv in (["evaluate", wav.parent / "m.tsv", "--model", REPO, *FEW], ["weights", REPO],
                 ["weights", f"{REPO}@main"], ["download", REPO]):  # fmt: skip
        assert run(*argv)[::2] == (0, "")


def test_a_name_in_the_variable(run, hub, wav, monkeypatch):
    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", REPO)
    assert run("transcribe", wav, "--text", *FEW)[0] == 0
    assert run("weights")[0] == 0


def test_what_a_model_cannot_do_is_said_before_it_is_fetched(run, hub, wav, tmp_path):
    hub.repos["somebody/Step-Audio-R1"] = hub.repos[REPO]
    for argv in (["transcribe", wav], ["speak", "Hello.", "-o", tmp_path / "o.wav"],
                 ["respond", wav, "-o", tmp_path / "o.wav"], ["translate", wav]):  # fmt: skip
        status, _, err = run(*argv, "--model", "somebody/Step-Audio-R1")
        assert status == 2 and "Step-Audio-R1: it" in one_line(err)
    assert hub.asked == 0


# ---- the published model as the library would have it: a sparse file behind each link ----


@pytest.fixture
def published(shared, tmp_path, monkeypatch):
    """A cache with the published headers in full, and 16.6 GB of data as holes."""
    home = tmp_path / "cache" / "models--stepfun-ai--Step-Audio-2-mini"
    commit = git_id(b"a commit")
    blobs, folder = home / "blobs", home / "snapshots" / commit
    for made in (blobs, folder, home / "refs"):
        made.mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def link(name: str, blob: str) -> None:
        os.symlink(f"../../blobs/{blob}", folder / name)

    for file in (shared / "Step-Audio-2-mini").glob("*.*"):
        data = file.read_bytes()
        (blobs / git_id(data)).write_bytes(data)
        link(file.name, git_id(data))
    tensors = json.loads((shared / "published_layout.json").read_text())["main"]["tensors"]
    for n, shard in enumerate(sorted({t["shard"] for t in tensors.values()})):
        header, end = {}, 0
        for name, tensor in tensors.items():
            if tensor["shard"] == shard:
                begin, end = end, end + 2 * int(np.prod(tensor["shape"]))
                header[name] = entry(tensor["shape"], begin, end, "BF16")
        file = raw_file(blobs / f"{n:064x}", header)
        os.truncate(file, file.stat().st_size + end)
        link(shard, file.name)
    return folder


def test_the_published_model_in_a_cache_of_links(run, published):
    status, out, err = run("weights", "stepfun-ai/Step-Audio-2-mini", "--json")
    report = json.loads(out[0])
    assert (status, err, len(report["loaded"])) == (0, "", 832) and report["whole"]
    assert {note["key"] for note in report["config"]} == {
        "config.json.architectures", "config.json.auto_map", "config.json.text_config.torch_dtype",
    }  # fmt: skip
    (published / "model-00002-of-00004.safetensors").resolve().unlink()
    status, out, _ = run("weights", "stepfun-ai/Step-Audio-2-mini", "--json")
    assert status == 2 and "lacks model-00002-of-00004.safetensors" in json.loads(out[0])["error"]


# ---- generation_config.json ----


def test_weights_tells_how_tokens_are_chosen_elsewhere(run, tmp_path, tiny_checkpoint):
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(tiny_checkpoint, folder)
    assert json.loads(run("weights", folder, "--json")[1][0])["generation_config"] == []
    told = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "eos_token_id": [1, 2], "max_new_tokens": 2048,
            "transformers_version": "4.49.0", "penalty_alpha": 0.6, "bos_token_id": 3}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(told))
    lines = json.loads(run("weights", folder, "--json")[1][0])["generation_config"]
    assert lines == [
        "temperature: 0.7 there, 0.0 here", "top_k: 50 there, 0 here", "top_p: 0.9 there, 1.0 here",
        "no_repeat_ngram_size: 0 there, 3 here", "eos_token_id: [1, 2] end an answer there and not here",
        "penalty_alpha: 0.6 there, without a counterpart here",
    ]  # fmt: skip
    out = run("weights", folder)[1]
    assert "  temperature: 0.7 there, 0.0 here" in out
    told = {"temperature": 0.7, "no_repeat_ngram_size": 3, "eos_token_id": None}  # no draw: a temperature means nothing
    (folder / "generation_config.json").write_text(json.dumps(told))
    assert json.loads(run("weights", folder, "--json")[1][0])["generation_config"] == []
    (folder / "generation_config.json").write_text("{")
    status, out, _ = run("weights", folder, "--json")
    assert status == 2 and "not readable as JSON" in json.loads(out[0])["error"]
