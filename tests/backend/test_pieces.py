"""Long passes end in pieces: the numbers stay, and an interrupt is seen long before the end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten

from stepaudio.backend import pieces

# Each takes minutes if it is let be, and says "begin" when its work begins.
LONG = {
    "encode": "mx.eval(model.net.encode_audio([np.zeros((128, 2900), np.float32)] * 500))",
    "transcribe": "model.transcribe(np.tile(sound, 4000), sr=16000, on_loop='off', sampling='greedy')",
    "decode": "for _ in model.stream([{'role': 'human', 'content': 'a'}], max_tokens=10**7, cache='window'): pass",
    "whole": "synthesizer.decode(np.arange(4000) % 81, voice, options=FlowOptions(1000))",
    "streamed": "for _ in synthesizer.stream(np.arange(200_000) % 81, voice): pass",
    "voice": "for _ in range(10_000): synthesizer.voice(np.tile(sound, 20))",
    "load": "for _ in range(10_000): stepaudio.load(sys.argv[1])",
}


@pytest.mark.parametrize("what", LONG)
def test_an_interrupt_ends_every_long_call(speaking_checkpoint, what):
    code = f"""
import stepaudio, sys
import mlx.core as mx, numpy as np
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.synthesis.synthesizer import Synthesizer
sound = np.random.default_rng(0).normal(0, 0.1, 16000)
model, synthesizer = stepaudio.load(sys.argv[1]), Synthesizer.load(sys.argv[1])
model.engine.stop_ids = lambda: frozenset()
voice = synthesizer.voice(sound)
print("begin", flush=True)
try:
    {LONG[what]}
except KeyboardInterrupt:
    print("interrupted")
"""
    env = os.environ | {"PYTHONPATH": str(Path(pieces.__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code, speaking_checkpoint], stdout=subprocess.PIPE, text=True,
                          env=env) as run:  # fmt: skip
        assert run.stdout is not None and run.stdout.readline() == "begin\n"
        try:
            run.wait(0.3)  # well into the work
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGINT)
        try:
            assert run.communicate(timeout=60)[0] == "interrupted\n" and run.returncode == 0
        finally:
            run.kill()


def test_pieces_change_no_number(tiny_model, synthesizer, voices, monkeypatch):
    def results():
        return [
            tiny_model.transcribe(tiny.noise(3.0), sr=tiny.RATE, max_tokens=20),
            *synthesizer.decode(range(30), voices[0]).wave,
            *synthesizer.voice(tiny.noise(1.5, 1)).prompt.codes.ravel(),
        ]

    want, ended = results(), []
    evaluate = mx.async_eval
    monkeypatch.setattr(pieces, "ENOUGH_ON_CPU", 1.0)
    monkeypatch.setattr(pieces, "ENOUGH_ON_GPU", 1.0)
    monkeypatch.setattr(pieces.mx, "async_eval", lambda *a: ended.append(a) or evaluate(*a))
    assert results() == want and len(ended) > 50


def test_pieces_end_when_enough_has_come_together(monkeypatch):
    """The end of a piece is asked for, and that of the one before waited for: no more than two are on their way."""
    calls = []
    monkeypatch.setattr(pieces, "ENOUGH_ON_CPU", 100.0)
    monkeypatch.setattr(pieces, "ENOUGH_ON_GPU", 100.0)
    monkeypatch.setattr(pieces.mx, "async_eval", lambda x: calls.append(("asked", int(x[0, 0]))))
    monkeypatch.setattr(pieces.mx, "eval", lambda x: calls.append(("waited", int(np.array(x)[0, 0]))))
    found = pieces.Pieces()
    layers = [mx.array(np.full((2, 3), i)) for i in range(9)]
    for x in layers:
        found.end(x, 2)  # 2 x 3 elements, 3 channels, twice: 36
    assert calls == [("asked", 2), ("asked", 5), ("waited", 2), ("asked", 8), ("waited", 5)]


@pytest.mark.parametrize("transform", [mx.compile, mx.vmap, mx.grad, lambda f: mx.compile(mx.grad(f))])
def test_nets_can_still_be_transformed(monkeypatch, transform):
    monkeypatch.setattr(pieces, "ENOUGH_ON_CPU", 1.0)
    monkeypatch.setattr(pieces, "ENOUGH_ON_GPU", 1.0)

    def total(x):
        found = pieces.Pieces()
        for _ in range(3):
            x = found.end(mx.sin(x), 1)
        return x.sum()

    x = mx.array(np.ones((2, 4), np.float32))
    got = np.array(transform(total)(x))
    monkeypatch.setattr(pieces.Pieces, "end", lambda self, x, cost=0: x)
    assert np.array_equal(got, np.array(transform(total)(x)))


def test_a_layer_over_many_positions_is_computed_in_parts(monkeypatch):
    layer, x, sizes = nn.Linear(8, 6), mx.random.normal((3, 100, 8), key=mx.random.key(0)), []
    want = np.array(x) @ np.array(layer.weight).T + np.array(layer.bias)

    class Watched(nn.Linear):
        def __call__(self, x):
            sizes.append(x.size // 8)
            return super().__call__(x)

    layer.__class__ = Watched
    for name in ("ENOUGH_ON_CPU", "ENOUGH_ON_GPU"):
        monkeypatch.setattr(pieces, name, 80 * 54 / pieces.PART)  # 54 weights
    np.testing.assert_allclose(pieces.by_positions(layer, x), want, rtol=1e-5, atol=1e-6)
    assert sizes == [75, 75, 75, 75]
    sizes.clear()
    np.testing.assert_allclose(mx.compile(lambda x: pieces.by_positions(layer, x))(x), want, rtol=1e-5, atol=1e-6)
    pieces.by_positions(layer, x[:, :1])
    assert sizes[-1] == 3  # few positions go as they are


def test_weights_are_counted_as_parameters_have_them():
    layer = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4, bias=False))
    layer.mlp, layer._own = [nn.Linear(4, 2), nn.relu, nn.LayerNorm(3)], mx.zeros((99,))
    assert pieces.n_weights(layer) == sum(a.size for _, a in tree_flatten(layer.parameters())) == 54 + 24 + 10 + 6
