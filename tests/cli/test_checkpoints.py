"""`weights`: exit statuses, JSON, what cannot be read, other names."""

import json

import pytest
from commands import one_line
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file


def changed(tiny_checkpoint, folder, change):
    folder.mkdir(exist_ok=True)
    for file in tiny_checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name in [n for i, n in enumerate(sorted(tensors)) if change(i, n)]:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("change", "status"), [
    (lambda i, n: False, 0), (lambda i, n: n == "lm_head.weight", 1), (lambda i, n: i % 3 == 0, 1),
    (lambda i, n: i % 3 > 0, 2),
])  # fmt: skip
def test_weights_exit_status(run, tiny_checkpoint, tmp_path, change, status):
    folder = changed(tiny_checkpoint, tmp_path / "c", change)
    found, out, err = run("weights", folder, "--json")
    report = json.loads(out[0])
    assert (found, len(out), err) == (status, 1, "") and report["exit_status"] == status
    assert len(report["loaded"]) + len(report["missing"]) == report["expected"]
    assert {part["name"] for part in report["components"]} >= {"encoder", "adapter"}
    assert run("weights", folder)[0] == status


def test_weights_of_the_default_model(run, tiny_checkpoint):
    status, out, _ = run("weights")
    assert status == 0 and str(tiny_checkpoint) in out[0] and "whole" in out[0]


def test_weights_with_values(run, tiny_checkpoint):
    status, out, _ = run("weights", "--values", "--json")
    assert status == 0 and len(json.loads(out[0])["values"]) == json.loads(out[0])["expected"]


def test_weights_unreadable(run, tmp_path):
    for argv in (["weights", tmp_path / "none"], ["weights", tmp_path]):
        status, out, _ = run(*argv, "--json")
        assert status == 2 and json.loads(out[0])["error"]
        status, out, _ = run(*argv)
        assert status == 2 and "unreadable" in out[0]


def test_weights_of_a_name_on_a_hub(run, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, out, _ = run("weights", "stepfun-ai/Step-Audio-2-mini", "--json")
    assert status == 2 and "HF_HUB_OFFLINE forbids" in json.loads(out[0])["error"]


def test_weights_renamed(run, tiny_checkpoint, tmp_path):
    folder = changed(tiny_checkpoint, tmp_path / "c", lambda i, n: False)
    tensors = load_file(folder / "model.safetensors")
    save_file({f"net.{n}": t for n, t in tensors.items()}, folder / "model.safetensors")
    assert run("weights", folder)[0] == 2
    assert run("weights", folder, "--rename", "net.=")[0] == 0
    for wrong in ("net.", "=model."):
        status, _, err = run("weights", folder, "--rename", wrong)
        assert status == 2 and "FOUND=PUBLISHED" in one_line(err)


def test_weights_against_another(run, tiny_checkpoint, tmp_path):
    status, out, err = run("weights", tiny_checkpoint, "--against", tiny_checkpoint)
    assert (status, err) == (0, "") and any("tensors are equal" in line for line in out)
    folder = changed(tiny_checkpoint, tmp_path / "c", lambda i, n: n == "lm_head.weight")
    status, out, _ = run("weights", folder, "--against", tiny_checkpoint, "--json")
    found = json.loads(out[0])
    assert status == 1 and found["counts"]["only in the first"] == 1 and found["second"] == str(folder)
    status, _, err = run("weights", folder, "--against", tiny_checkpoint, "--values")
    assert status == 2 and "--values: describes one checkpoint" in one_line(err)
    status, _, err = run("weights", folder, "--against", tmp_path / "none")
    assert status == 2 and one_line(err)
