"""Models by their name on a hub: a hub on this machine, the library as it is, and a cache of links."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fake_hub
import pytest
import tiny
from fake_hub import REPO
from huggingface_hub import constants

import stepaudio
from stepaudio.checkpoints import fetch
from stepaudio.checkpoints import hub as ours
from stepaudio.checkpoints.checksums import RECORD
from stepaudio.checkpoints.find import checkpoint_folder, meant
from stepaudio.checkpoints.hub_name import MODEL, TOKEN2WAV, HubName, repository_of
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError, DownloadError

NAME = HubName(REPO)


def test_load_fetches_what_is_needed_says_so_and_then_asks_nobody(hub, capsys, tiny_model):
    model = stepaudio.load(REPO)
    err = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"stepaudio: {REPO}: ") for line in err) and len(err) == 2
    assert "free" in err[0] and "this machine has" in err[1]
    assert not {"README.md", "modeling_step_audio_2.py", "pytorch_model.bin"} & set(hub.served)
    asked, clip = hub.asked, tiny.noise(1)
    again = stepaudio.load(REPO)
    assert f"{REPO}, whole" in repr(again)
    assert hub.asked == asked and capsys.readouterr().err == ""
    assert again.transcribe(clip).text == model.transcribe(clip).text == tiny_model.transcribe(clip).text


def test_the_cache_is_made_of_links_and_its_checksums_are_kept(hub):
    folder = checkpoint_folder(REPO)
    assert (folder / "config.json").is_symlink() and repository_of(folder) == REPO
    record = json.loads((folder / RECORD).read_text())
    assert record["repository"] == REPO and record["commit"] == folder.name == hub.commit(REPO)
    kept = {f["name"]: f for f in record["files"]}
    assert set(kept) == set(hub.served)
    for name, data in hub.repos[REPO].items():
        if name in kept and kept[name]["sha256"]:
            assert kept[name]["sha256"] == hashlib.sha256(data).hexdigest()
        elif name in kept:
            assert kept[name]["git"] == fake_hub.git_id(data)


def test_without_the_network_the_cache_serves(hub, offline):
    folder = checkpoint_folder(REPO)
    offline()
    asked = hub.asked
    assert checkpoint_folder(REPO) == checkpoint_folder(f"{REPO}@main") == folder
    assert checkpoint_folder(f"{REPO}@{folder.name}") == folder
    assert ours.download(NAME).fetched == 0 and hub.asked == asked
    assert stepaudio.load(REPO).report.whole


def test_a_link_to_nothing_counts_as_lacking(hub, offline):
    folder = checkpoint_folder(REPO)
    (folder / "model.safetensors").resolve().unlink()
    assert ours.lacking(folder, [MODEL]) == ["model.safetensors"]
    offline()
    with pytest.raises(DownloadError, match=r"lacks model.safetensors, and HF_HUB_OFFLINE forbids .* its folder$"):
        checkpoint_folder(REPO)


def test_offline_and_never_fetched(hub, offline):
    offline()
    for call in (checkpoint_folder, stepaudio.load, stepaudio.StepAudio2.load):
        with pytest.raises(DownloadError, match=f"^{REPO}: the cache .* lacks all of it, and HF_HUB_OFFLINE"):
            call(REPO)
    assert hub.asked == 0


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"the hub cannot be reached .* give its folder$") as stop:
        stepaudio.load(REPO)
    assert "\n" not in str(stop.value) and len(str(stop.value)) < 500


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("somebody/else", None, "neither a folder here nor a model that the hub shows"),
        (f"{REPO}@no-such-branch", None, "not this revision"),
        (REPO, 503, "answered with status 503"),
        ("somebody/double--dash", None, "no name that a hub can have"),
    ],
)
def test_the_hub_says_no(hub, name, status, said, monkeypatch):
    if status:
        hub.status[REPO] = status
    with pytest.raises(DownloadError, match=f"^{name}: .*{said}") as stop:
        checkpoint_folder(name)
    assert "\n" not in str(stop.value) and len(str(stop.value)) < 500


def test_no_room_is_said_before_anything_moves(hub, monkeypatch, capsys):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"needs .* has 1.0 kB free: make room, or let HF_HUB_CACHE"):
        checkpoint_folder(REPO)
    assert not hub.served and "1.0 kB are free" in capsys.readouterr().err


@pytest.fixture
def ranges(monkeypatch):
    """The weights of the tiny model are large, and come in ranges of this many bytes."""
    monkeypatch.setattr(ours, "LARGE", 100_000)
    monkeypatch.setattr(fetch, "RANGE_BYTES", 50_000)
    monkeypatch.setattr(fetch, "PAUSE", 0.0)


def test_a_large_file_that_broke_off_goes_on_where_it_stopped(hub, ranges):
    data = hub.repos[REPO]["model.safetensors"]
    hub.fail_after["model.safetensors"] = 120_000
    with pytest.raises(DownloadError, match=r"the hub answered with status 503|cannot be reached"):
        checkpoint_folder(REPO)
    kept = list((Path(constants.HF_HUB_CACHE) / f"models--{REPO.replace('/', '--')}" / "blobs").glob("*.part"))
    assert [part.stat().st_size for part in kept] == [100_000] and kept[0].read_bytes() == data[:100_000]
    hub.fail_after.clear()
    before = hub.served["model.safetensors"]
    folder = checkpoint_folder(REPO)
    assert (folder / "model.safetensors").read_bytes() == data and (folder / "model.safetensors").is_symlink()
    assert hub.served["model.safetensors"] - before == len(data) - 100_000
    assert not kept[0].exists()


def test_a_connection_that_breaks_is_tried_again(hub, ranges):
    hub.cut["model.safetensors"] = 20_000
    folder = checkpoint_folder(REPO)
    data = hub.repos[REPO]["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == data
    assert hub.served["model.safetensors"] == len(data) + 20_000


def test_a_server_without_ranges(hub, ranges):
    hub.no_ranges = True
    assert stepaudio.load(REPO).report.whole


def test_damage_on_the_way_is_mended_once_and_then_refused(hub, ranges):
    data = hub.repos[REPO]["model.safetensors"]
    wrong = data[:60_000] + bytes([data[60_000] ^ 1]) + data[60_001:]
    hub.changed["model.safetensors"] = [wrong, wrong]  # of two of the ranges
    folder = checkpoint_folder(REPO)
    assert (folder / "model.safetensors").read_bytes() == data
    (folder / "model.safetensors").resolve().unlink()
    hub.changed["model.safetensors"] = [wrong] * 1000
    with pytest.raises(DownloadError, match="its SHA-256 is .*, expected .*, twice: look at the disk"):
        checkpoint_folder(REPO)


def test_damage_of_a_small_file_on_the_way(hub):
    hub.changed["vocab.json"] = [hub.repos[REPO]["vocab.json"][:-1] + b" "]
    with pytest.raises(DownloadError, match="vocab.json: its git's id is .* look at the disk"):
        checkpoint_folder(REPO)
    ours.download(NAME)
    assert ours.snapshot(NAME).joinpath("vocab.json").read_bytes() == hub.repos[REPO]["vocab.json"]


def test_damage_on_the_disk_is_found_and_mended(hub, offline, monkeypatch):
    folder = checkpoint_folder(REPO)
    for name in ("model.safetensors", "vocab.json"):
        blob = (folder / name).resolve()
        blob.chmod(0o644)
        blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
        offline()
        with pytest.raises(DownloadError, match=f"{name}: its .* unset HF_HUB_OFFLINE"):
            ours.download(NAME)
        (folder / RECORD).rename(folder / "aside")  # the library's own names of blobs say it too
        with pytest.raises(DownloadError, match=f"{name}: its .* unset HF_HUB_OFFLINE"):
            ours.download(NAME)
        (folder / "aside").rename(folder / RECORD)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        ours.download(NAME)
        assert (folder / name).read_bytes() == hub.repos[REPO][name]


def test_download_brings_what_is_new_and_a_named_revision_stays(hub, tmp_path):
    old = checkpoint_folder(REPO)
    tiny.write(tmp_path / "source", seed=1)
    hub.put(REPO, tmp_path / "source")
    assert checkpoint_folder(REPO) == old  # nobody asked whether there is something newer
    hub.served.clear()
    done = ours.download(NAME)
    assert done.commit == hub.commit(REPO) != old.name and set(hub.served) == {"model.safetensors"}
    assert checkpoint_folder(REPO) == done.folder and checkpoint_folder(f"{REPO}@{old.name}") == old


def test_token2wav_is_fetched_when_it_is_needed(hub, tmp_path, speaking_checkpoint, offline):
    shutil.copytree(speaking_checkpoint, tmp_path / "speaking")
    published = tmp_path / "speaking" / "token2wav"
    for file in published.iterdir():
        if file.name == "converted.json" or file.suffix == ".safetensors":
            file.unlink()
    hub.put(REPO, tmp_path / "speaking")
    folder = checkpoint_folder(REPO)
    assert not (folder / "token2wav").exists()
    assert checkpoint_folder(REPO, (TOKEN2WAV,)) == folder
    assert {p.name for p in (folder / "token2wav").iterdir()} == {p.name for p in published.iterdir()}
    offline()
    assert {"flow.yaml", "flow.pt"} <= {Path(f.name).name for f in ours.download(NAME).files}


def test_token2wav_alone(hub, tmp_path, speaking_checkpoint):
    with pytest.raises(DownloadError, match="has no folder token2wav, so it cannot speak"):
        checkpoint_folder(REPO, (TOKEN2WAV,))
    hub.put(REPO, speaking_checkpoint)
    hub.served.clear()
    folder = checkpoint_folder(REPO, (TOKEN2WAV,))
    assert all(name.startswith("token2wav/") for name in hub.served)
    assert {Path(name).suffix for name in hub.served} == {".json", ".safetensors", ".yaml"}  # converted: no sources
    assert stepaudio.SpeechModel.load(REPO).synthesizer and (folder / "config.json").is_file()


def test_shards_are_those_of_the_index(hub, tmp_path, tiny_checkpoint):
    from stepaudio.checkpoints import parameters_of, save_checkpoint

    model = stepaudio.load(tiny_checkpoint)
    shutil.rmtree(tmp_path / "source")
    shutil.copytree(tiny_checkpoint, tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    files = save_checkpoint(tmp_path / "source", model.config, parameters_of(model.net), max_shard_bytes=40_000)
    (tmp_path / "source" / "consolidated.safetensors").write_bytes(b"another copy")
    hub.put(REPO, tmp_path / "source")
    assert stepaudio.load(REPO).report.whole
    assert {n for n in hub.served if n.endswith("tensors")} == {f.name for f in files if f.name.endswith("tensors")}
    (tmp_path / "source" / files[0].name).unlink()
    hub.put(REPO, tmp_path / "source")
    if files[0].name.endswith("tensors"):
        with pytest.raises(DownloadError, match=f"names {files[0].name}, which it has not got"):
            ours.download(NAME)


def test_other_models_have_no_such_weights(hub, tmp_path):
    (tmp_path / "source" / "model.safetensors").unlink()
    hub.put(REPO, tmp_path / "source")
    with pytest.raises(DownloadError, match="neither model.safetensors nor .*; is it a Step-Audio model"):
        checkpoint_folder(REPO)


# ---- names ----


@pytest.mark.parametrize(
    "text", ["nano", "a/b/c", "/a/b", "./a", "../a", "~/a", "a/", "/", "", "a b/c", "a/b@", None, 3]
)
def test_what_is_no_name_on_a_hub(text):
    assert HubName.of(text) is None


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("https://huggingface.co/stepfun-ai/Step-Audio-2-mini", HubName("stepfun-ai/Step-Audio-2-mini")),
        ("http://www.huggingface.co/a/b/", HubName("a/b")),
        ("https://hf.co/a/b/tree/refs/pr/1", HubName("a/b", "refs/pr/1")),
        ("https://huggingface.co/a/b/tree/main/", HubName("a/b", "main")),
        ("https://huggingface.co/datasets/a/b", None),
        ("https://huggingface.co/a", None),
        ("https://elsewhere.org/a/b", None),
        ("https://huggingface.co/a/b/blob/main/config.json", None),
    ],
)
def test_the_address_of_a_page_names_its_model(page, name):
    assert HubName.of(page) == name and meant(page) == (name or Path(page))


def test_the_name_of_a_published_model_alone_is_told_its_organisation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="stepfun-ai/Step-Audio-R1 is the model of this name on a hub"):
        checkpoint_folder("Step-Audio-R1")
    assert main(["download", "Step-Audio-2-mini"]) == 2
    assert "did you mean stepfun-ai/Step-Audio-2-mini?" in capsys.readouterr().err
    (tmp_path / "Step-Audio-R1").mkdir()
    assert checkpoint_folder("Step-Audio-R1") == Path("Step-Audio-R1")


def test_a_folder_is_no_name_on_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert meant("a/b") == HubName("a/b") and meant("a/b@refs/pr/1") == HubName("a/b", "refs/pr/1")
    assert str(meant("a/b@v1")) == "a/b@v1" and meant(Path("a/b")) == Path("a/b")
    (tmp_path / "a").mkdir()
    assert meant("a/b") == Path("a/b") and meant("a/b@v1") == HubName("a/b", "v1")
    assert meant("a/b", tmp_path / "elsewhere") == HubName("a/b")
    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", "c/d@v2")
    assert meant() == HubName("c/d", "v2")


def test_the_variables_of_the_library_hold(tmp_path, tiny_checkpoint):
    """In a process of its own, since they are read when the library is imported."""
    blobs, snapshot = (
        tmp_path / "hub" / "models--a--b" / "blobs",
        tmp_path / "hub" / "models--a--b" / "snapshots" / "1a",
    )
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1a")
    for file in tiny_checkpoint.iterdir():
        shutil.copy(file, blobs / f"blob of {file.name}")
        os.symlink(f"../../blobs/blob of {file.name}", snapshot / file.name)
    code = "import stepaudio; print(stepaudio.load('a/b').report.whole)"
    for variables in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | variables
        done = subprocess.run([sys.executable, "-c", code], env=environment | {"HF_HUB_OFFLINE": "1"}, cwd=tmp_path,
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stdout == "True\n"
