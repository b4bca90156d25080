"""Tensor parallelism by two processes on one machine, over MLX's ring of sockets, against one process."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx.utils import tree_map

import stepaudio
from stepaudio.errors import ConfigError
from stepaudio.models import parallel
from stepaudio.models.kv_cache import FullCache
from stepaudio.models.quantization import Bits, layers_of, quantise_layers
from stepaudio.models.speech_lm import StepAudioNet

RANK = """
import sys
import stepaudio, tiny
import mlx.core as mx, numpy as np
from stepaudio.models import parallel
from test_parallel import logits, wide

folder, model = sys.argv[1], stepaudio.load(sys.argv[2])
group = mx.distributed.init()
packed = parallel.sharded(wide(), group)
held = model.sharded()
found = held.transcribe(tiny.noise(1.5), sr=tiny.RATE, max_tokens=12)
share = held.net.model.layers[0].self_attn.k_proj.weight.shape
np.savez(f"{folder}/{group.rank()}.npz", plain=logits(held.net), packed=logits(packed), share=share,
         tokens=found.segments[0].tokens, size=group.size(), seen=found.segments[0].mean_logprob)
"""


def wide() -> StepAudioNet:
    """A net whose decoder is quantised in groups that divide by two."""
    sizes = tiny.config(320)
    text = replace(sizes.text_config, hidden_size=128, intermediate_size=192)
    net = StepAudioNet(
        replace(sizes, text_config=text, audio_encoder_config=replace(sizes.audio_encoder_config, llm_dim=128))
    )
    mx.random.seed(0)
    net.update(tree_map(lambda a: mx.random.normal(a.shape) * 0.3, net.parameters()))
    layers = [path for path in layers_of(net) if path.startswith("model.layers.")]
    quantise_layers(net, dict.fromkeys(layers, Bits(8, 32)))
    return net


def logits(net: StepAudioNet) -> np.ndarray:
    """Of 20 ids in one pass, then of three one by one."""
    cache = FullCache(len(net.model.layers), net.model.rope)
    ids = (np.arange(23)[None] * 7) % 97
    parts = [ids[:, :20], *(ids[:, i : i + 1] for i in range(20, 23))]
    return np.concatenate([np.asarray(net.logits(net.embed(part), cache)) for part in parts], axis=1)


def ring(arguments: list[str], folder: Path, ranks: int = 2) -> list[subprocess.CompletedProcess]:
    """The same Python in several processes that MLX joins to a ring."""
    sockets = [socket.socket() for _ in range(ranks)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{one.getsockname()[1]}"] for one in sockets]))
    for one in sockets:
        one.close()
    paths = os.pathsep.join(
        [str(Path(stepaudio.__file__).parents[1]), str(Path(tiny.__file__).parent), str(Path(__file__).parent)]
    )
    running = [
        subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": paths, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    done = []
    for process in running:
        out, err = process.communicate(timeout=120)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


class Ranks:
    """A group of so many processes of which only this one is there."""

    def __init__(self, size: int, rank: int = 0):
        self.size, self.rank = lambda: size, lambda: rank


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.mark.skipif(not mx.distributed.is_available("ring"), reason="this MLX has no ring of sockets")
def test_two_processes_compute_what_one_does(folder, tmp_path):
    for done in ring(["-c", RANK, str(tmp_path), str(folder)], tmp_path):
        assert done.returncode == 0, done.stderr[-2000:]
    model = stepaudio.load(folder)
    alone = model.transcribe(tiny.noise(1.5), sr=tiny.RATE, max_tokens=12).segments[0]
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    for got in (first, second):
        assert got["size"] == 2 and tuple(got["share"]) == (8, 32)  # of one head of two
        for name, net in (("plain", model.net), ("packed", wide())):
            np.testing.assert_allclose(got[name], (want := logits(net)), rtol=0, atol=2e-5 * np.abs(want).max())
        assert got["tokens"].tolist() == list(alone.tokens)
        assert abs(got["seen"] - alone.mean_logprob) < 1e-4
    np.testing.assert_array_equal(first["plain"], second["plain"])  # or they would drift apart


@pytest.mark.skipif(not mx.distributed.is_available("ring"), reason="this MLX has no ring of sockets")
def test_the_command_prints_once_and_what_one_process_prints(folder, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", tiny.noise(1.0), tiny.RATE)
    words = [
        "-m",
        "stepaudio",
        "transcribe",
        str(tmp_path / "a.wav"),
        "--model",
        str(folder),
        "--max-tokens",
        "8",
        "--text",
    ]
    first, second = ring([*words, "--tensor-parallel"], tmp_path)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    paths = str(Path(stepaudio.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": paths}
    alone = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, check=True)
    assert first.stdout == alone.stdout != "" and second.stdout == ""


@pytest.mark.parametrize(
    ("net", "ranks", "said"),
    [("tiny", 3, "num_attention_heads 4"), ("tiny", 4, "num_key_value_heads 2"), ("packed", 2, "groups")],
)
def test_what_does_not_divide_is_refused(folder, net, ranks, said):
    loaded = stepaudio.load(folder).net
    if net == "packed":
        quantise_layers(loaded, {"model.layers.1.self_attn.o_proj": Bits(8, 32)})
    with pytest.raises(ConfigError, match=said):
        parallel.sharded(loaded, cast(mx.distributed.Group, Ranks(ranks)))


def test_alone_nothing_is_divided(folder):
    model = stepaudio.load(folder)
    assert model.sharded().net is model.net


@pytest.mark.parametrize(("more", "said"), [([], "found one"), (["-"], "standard input")])
def test_the_command_says_what_it_needs(folder, more, said, capsys, tmp_path):
    from stepaudio.cli.main import main

    assert main(["transcribe", *(more or ["x.wav"]), "--model", str(folder), "--tensor-parallel"]) == 2
    assert said in capsys.readouterr().err
