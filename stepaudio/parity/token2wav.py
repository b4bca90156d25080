"""Golden checks of what makes a voice: flow, vocoder, and both together, whole and chunk by chunk."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoints.arrays import net_arrays
from ..checkpoints.tensors import read_arrays
from ..errors import DataError
from ..models.token2wav.flow import Flow, FlowConfig, FlowOptions, FlowState, Prompt
from ..models.token2wav.flow_matching import euler_steps, time_grid
from ..models.token2wav.hift import Hift, HiftConfig, inverse_stft
from ..synthesis import streaming as voice
from .condition import compare_sound, with_moved_pitch
from .golden import under_golden_names

MEL_TOLERANCE = 1e-3  # relative
WAVE_TOLERANCE = 2e-3  # absolute, at least: `condition` has more for long waves
PCM_TOLERANCE = 32  # counts of 32767, at least
FLOW_NAMES = {
    r"speaker": "spk",
    r"mu": "enc.mu",
    r"encoder\.(\d+)\.resid_post": r"enc.block\1",
    r"encoder\.up\.(\d+)\.resid_post": r"enc.up_block\1",
    r"encoder\.pos_embed": "enc.pos_emb",
    r"encoder\.up\.conv": "enc.up_layer",
    r"encoder\.up\.embed": "enc.up_embed",
    r"encoder\.out": "enc.after_norm",
    r"encoder\.(.*)": r"enc.\1",
    r"euler\.(\d+)\.velocity": r"euler.v_step\1",
}
DIT_NAMES = {r"(\d+)\.resid_post": r"block\1", r"time": "t_emb"}
VOCODER_NAMES = {r"(\d+)\.(up|source)": r"\2\1"}
CHAIN_SLACK = 3  # on both, from codes to sound: mels that differ by 3e-6 move the pitch, and phase adds that up


Net = TypeVar("Net", bound=nn.Module)


def _swap(a: mx.array) -> mx.array:
    return a.swapaxes(1, 2)  # (B, T, C) here, (B, C, T) in the reference


def _published(golden) -> dict[str, np.ndarray]:
    return {name: golden[f"w.{name}"] for name in golden.names("w.")}


def _filled(net: Net, weights: list) -> Net:
    try:
        net.load_weights(weights)
    except ValueError as error:
        raise DataError(f"weights do not fit the config: {error}") from None
    return net


def flow_net(golden) -> tuple[Flow, int]:
    """The flow of a golden file, and its number of Euler steps."""
    c = golden.config
    config = FlowConfig.from_dict(
        {
            "input_size": c["encoder"]["input_size"],
            "output_size": c["output_size"],
            "output_type": "mel",
            "spk_embed_dim": c["spk_embed_dim"],
            "vocab_size": c["vocab_size"],
            "encoder": c["encoder"],
            "decoder": {"inference_cfg_rate": c["cfg_rate"], "estimator": c["dit"]},
        },
        "config",
    )
    return _filled(Flow(config), net_arrays(_published(golden), config)), c["n_timesteps"]


def hift_net(golden) -> Hift:
    """The vocoder of a golden file, weight norm merged."""
    own = {k: v for k, v in golden.config.items() if not k.startswith("published_")}
    config = HiftConfig.from_dict(own, "config")
    return _filled(Hift(config), net_arrays(_published(golden), config))


def _prompt(golden) -> Prompt:
    return Prompt(golden["in.prompt_token"], mx.array(golden["in.prompt_mel"]), mx.array(golden["in.speaker"]))


def _noise(golden) -> mx.array:
    return _swap(mx.array(golden["in.rand_noise"]))


def flow_checks(golden, _tokenizer) -> None:
    """Every stage of encoder, estimator and solver; then a stream, with all that it remembers."""
    flow, n_steps = flow_net(golden)
    _check_whole(golden, flow, n_steps)
    if "in.est.x" in golden:
        _check_estimator(golden, flow)
    if "in.stream.chunk_tokens" in golden:
        _check_stream(golden, flow, n_steps)


def _check_whole(golden, flow: Flow, n_steps: int) -> None:
    stages: dict[str, mx.array] = {}
    mel = flow(golden["in.token"], _prompt(golden), _noise(golden), FlowOptions(n_steps), stages.__setitem__)
    # The golden file counts states from the noise, which is state 0.
    states = {f"euler.x_step{i + 1}": stages.pop(f"euler.{i}.x") for i in range(n_steps)}
    stages = under_golden_names(stages, FLOW_NAMES) | states
    golden.compare("spk", stages["spk"], MEL_TOLERANCE)
    _compare_all(golden, "enc.", {n: a for n, a in stages.items() if n.startswith("enc.")})
    golden.compare("t_span", time_grid(n_steps), 1e-6, absolute=True)
    solver = {n: _swap(a) for n, a in stages.items() if n.startswith("euler.") and a.ndim == 3}
    _compare_all(golden, "euler.", {**solver, "euler.times": np.array([t for t, _ in euler_steps(n_steps)])})
    golden.compare("mel", _swap(mel), MEL_TOLERANCE)


def _compare_all(golden, prefix: str, found: dict) -> None:
    """Every expectation under `prefix` that was computed; the file's last row tells what was not."""
    for name in golden.names("out."):
        if name.startswith(prefix) and name in found:
            golden.compare(name, found[name], MEL_TOLERANCE)


def _check_estimator(golden, flow: Flow) -> None:
    stages: dict[str, mx.array] = {}
    x, mu, cond = (_swap(mx.array(golden[f"in.est.{n}"])) for n in ("x", "mu", "cond"))
    flow.decoder.estimator(
        x, mu, mx.array(golden["in.est.t"]), mx.array(golden["in.est.spk"]), cond, tap=stages.__setitem__
    )
    stages = under_golden_names(stages, DIT_NAMES)
    _compare_all(golden, "est.", {f"est.{n}": _swap(a) if n == "out" else a for n, a in stages.items()})


def _conformer_cnn(state: FlowState) -> mx.array:
    return _swap(mx.concatenate([state.conformer.lookahead, state.conformer.upsample], axis=1))


def _conformer_att(state: FlowState, up: int) -> mx.array:
    """As the reference packs it: one tensor, the shorter stack repeated in time to the length of the longer."""
    first = [mx.concatenate([mx.concatenate([*pair], axis=3)] * up, axis=2) for pair in state.conformer.attention]
    return mx.stack(first + [mx.concatenate([*pair], axis=3) for pair in state.conformer.up_attention])


def _estimator_cnn(state: FlowState) -> mx.array:
    return mx.stack(
        [mx.stack([_swap(mx.concatenate([b.conv1, b.conv2], axis=2)) for b in step]) for step in state.estimator]
    )


def _estimator_att(state: FlowState, step: int) -> mx.array:
    return mx.stack([mx.concatenate([b.k, b.v], axis=3) for b in state.estimator[step]])


def _compare_state(golden, name: str, state: FlowState, up: int) -> None:
    found = {
        "conformer_cnn": _conformer_cnn(state),
        "conformer_att": _conformer_att(state, up),
        "estimator_cnn": _estimator_cnn(state),
        "estimator_att": mx.stack([_estimator_att(state, 0), _estimator_att(state, -1)]),
    }
    _compare_all(golden, f"stream.{name}.", {f"stream.{name}.{part}": a for part, a in found.items()})


def _check_stream(golden, flow: Flow, n_steps: int) -> None:
    state = flow.begin(_prompt(golden), _noise(golden), FlowOptions(n_steps))
    _compare_state(golden, "setup", state, flow.up)
    lengths, offsets, at = [], [], 0
    sizes = golden["in.stream.chunk_tokens"].tolist()
    for i, n in enumerate(sizes):
        last = i == len(sizes) - 1
        codes = golden["in.token"][:, at : at + n]
        at += n - (0 if last else flow.look_ahead)
        offsets.append(state.cache_frames)
        mel, state = flow.step(codes, state, last)
        lengths.append([offsets[-1] + mel.shape[1], state.cache_frames])
        golden.compare(f"stream.chunk{i}.mel", _swap(mel), MEL_TOLERANCE)
        _compare_state(golden, f"after{i}", state, flow.up)
    golden.compare("stream.cache_len", np.array(lengths), 0)
    golden.compare("stream.noise_offset", np.array(offsets), 0)
    if "out.stream.final_att_sample" in golden:  # step 3, block 1, as the reference data chose
        golden.compare(
            "stream.final_att_sample",
            _estimator_att(state, min(3, n_steps - 1))[min(1, len(state.estimator[0]) - 1)],
            MEL_TOLERANCE,
        )


def hift_checks(golden, _tokenizer) -> None:
    """Pitch, source, every stage of the vocoder, its inverse STFT, a second streaming call and the cross-fade.

    The stages behind the source are fed the reference's source: phases are sums over all frames before, so two
    float32 pitches that agree to 1e-6 give sources that agree to 1e-4 only, which would hide errors in the stages.
    """
    hift = hift_net(golden)
    moved, c = with_moved_pitch(hift), hift.config
    stages: dict[str, mx.array] = {}
    mel, noise = _swap(mx.array(golden["in.mel"])), mx.array(golden["in.noise"])
    hift(mel, noise, tap=stages.__setitem__)
    sounds, *others = (_sounds(net, mel, noise) for net in (hift, *moved))
    hift.decode(mel, mx.array(golden["out.source"])[:, 0], stages.__setitem__)
    stages = under_golden_names(stages, VOCODER_NAMES)
    found = {n: _swap(a) if a.ndim == 3 else a for n, a in stages.items() if n not in sounds}
    for stage in golden.names("out."):
        if stage in sounds:
            axis = 1 if stage == "sines" else -1
            moved_sounds = [other[stage] for other in others]
            compare_sound(golden, stage, sounds[stage], sounds[stage], moved_sounds, WAVE_TOLERANCE, axis=axis)
        elif stage in found:
            golden.compare(stage, found[stage], MEL_TOLERANCE)
    golden.leave(["rand_ini_effect"], "says that initial phases have no effect; they are not an input here")
    _check_second_call(golden, hift, moved)
    if "in.istft.magnitude" in golden:
        magnitude, phase = (_swap(mx.array(golden[f"in.istft.{n}"])) for n in ("magnitude", "phase"))
        wave = inverse_stft(magnitude, phase, c.istft.n_fft, c.istft.hop_len, c.magnitude_clip)
        golden.compare("istft.wav", wave, MEL_TOLERANCE)


def _sounds(hift: Hift, mel: mx.array, noise: mx.array) -> dict[str, mx.array]:
    """What hangs on the phase of the source, under the names of golden files."""
    stages: dict[str, mx.array] = {}
    wave, source = hift(mel, noise, tap=stages.__setitem__)
    quiet, quiet_source = hift(mel, None)
    return {
        "sines": stages["sines"],
        "source": source[:, None],
        "wav": wave,
        "wav_no_noise": quiet,
        "source_no_noise": quiet_source[:, None],
    }


def _check_second_call(golden, hift: Hift, moved: tuple[Hift, Hift]) -> None:
    m = golden["in.stream.cache_source"].shape[2]
    found, *others = (_second_call(golden, net, m) for net in (hift, *moved))
    golden.compare("fade_window", np.concatenate(voice.fade_halves(m)), 1e-6, absolute=True)
    for name, sound in found.items():
        compare_sound(golden, name, sound, sound, [other[name] for other in others], WAVE_TOLERANCE)


def _second_call(golden, hift: Hift, m: int) -> dict[str, mx.array]:
    before, _ = hift(_swap(mx.array(golden["in.mel"])), mx.array(golden["in.noise"]))
    cache = mx.array(golden["in.stream.cache_source"])[:, 0]
    wave, source = hift(_swap(mx.array(golden["in.stream.mel"])), mx.array(golden["in.stream.noise"]), cache)
    faded = voice.cross_fade(wave, before[:, before.shape[1] - m :])
    return {"stream.source": source[:, None], "stream.wav": wave, "stream.faded": faded}


def _sister(golden, kind: str):
    """The golden file of another component in the same folder, for its weights; those named in the config first."""
    if golden.folder is None:
        raise DataError(f"needs the {kind} file of the same folder, and the folder is unknown")
    named = re.findall(r"[\w-]+(?=\.safetensors)", str(golden.config.get("weights", "")))
    for path in sorted(Path(golden.folder).glob("*.json"), key=lambda p: (p.stem not in named, p.stem)):
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(sidecar, dict) and sidecar.get("component") == kind:
            return type(golden)(sidecar["config"], read_arrays(path.with_suffix(".safetensors")))
    raise DataError(f"needs the weights of a {kind} file in the same folder, and there is none")


def token2wav_checks(golden, _tokenizer) -> None:
    """Codes to sound with the nets of the flow and hift files beside this one, whole and as a stream of PCM."""
    flow_file, c = _sister(golden, "flow"), golden.config
    (flow, n_steps), hift = flow_net(flow_file), hift_net(_sister(golden, "hift"))
    noise, prompt, codes = _noise(flow_file), _prompt(golden), golden["in.token"]
    beyond = re.fullmatch(r"prompt_frames\+(\d+)", c["cache_limit"])
    if not beyond:
        raise DataError(f"config cache_limit: expected prompt_frames+N, found {c['cache_limit']!r}")
    options = FlowOptions(n_steps, recent_frames=int(beyond[1]))
    vocoders = (hift, *with_moved_pitch(hift))
    mel, wave = voice.speak(flow, hift, codes, prompt, noise, None, options)
    golden.compare("offline.mel", _swap(mel), MEL_TOLERANCE)
    given = [net(_swap(mx.array(golden["out.offline.mel"])), None)[0] for net in vocoders]
    _compare_both(golden, "offline.wav", given, wave, WAVE_TOLERANCE)
    cutting = voice.StreamOptions(options, c["chunk_tokens"], c["mel_cache_frames"])
    state, ours, theirs = flow.begin(prompt, noise, options), voice.VocoderState(), [voice.VocoderState()] * 3
    for i, (chunk, last) in enumerate(voice.chunked(codes[0].tolist(), cutting.chunk_codes, c["look_ahead"])):
        mel, state = flow.step(chunk, state, last)
        golden.compare(f"stream{i}.mel", _swap(mel), MEL_TOLERANCE)
        wave, ours, raw = voice.vocode(hift, mel, ours, cutting, None, last)
        expected = _swap(mx.array(golden[f"out.stream{i}.mel"]))
        given, theirs, given_raw = zip(
            *(voice.vocode(net, expected, s, cutting, None, last) for net, s in zip(vocoders, theirs, strict=True)),
            strict=True,
        )
        if f"out.stream{i}.vocoder_wav" in golden:
            _compare_both(golden, f"stream{i}.vocoder_wav", given_raw, raw, WAVE_TOLERANCE)
        _compare_both(golden, f"stream{i}.pcm", [_pcm(g) for g in given], _pcm(wave), PCM_TOLERANCE)


def _pcm(wave: mx.array) -> np.ndarray:
    return voice.to_pcm(np.array(wave))[0].astype(np.int32)


def _compare_both(golden, name: str, given: Sequence, own, floor: float) -> None:
    """One row for the sound of the reference's mel, and one for that of our own mel.

    given : sounds of the reference's mel: ours, and those with the pitch moved.
    """
    sound, *moved = given
    compare_sound(golden, name, sound, sound, moved, floor)
    compare_sound(golden, name, own, sound, moved, CHAIN_SLACK * floor, stage=f"{name}, from codes")
