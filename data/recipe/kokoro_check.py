"""Compare kokoro_model.py with the int8 ONNX export, or the GPU with the CPU.

    python kokoro_check.py --weights kokoro.npz --manifest speak.jsonl --onnx kokoro_int8.onnx
    python kokoro_check.py --weights kokoro.npz --manifest speak.jsonl --device cuda

Waveforms never agree with the int8 export: its rounding moves the pitch by a
fraction of a hertz, and the phase runs away within a second.  So the check
counts the durations that differ, then speaks with the export's durations and
compares band energies (mean absolute difference of logarithms: about 0.15 is
what the rounding costs; the same model on two devices stays below 0.05).
"""

import argparse
import json

import numpy as np
import torch

import kokoro_model
import kokoro_synth


def bands(audio):
    """(samples,) at 24 kHz -> (60 bands of 200 Hz, frames of 25 ms) log energy."""
    spectrum = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(audio, 600)[::300] * np.hanning(600))
    power = np.abs(spectrum[:, :300].T) ** 2
    return np.log(power.reshape(60, 5, -1).mean(1) + 1e-3)


def open_export(path):
    """An onnxruntime session that also returns the durations, which the export computes but keeps inside."""
    import onnx
    import onnxruntime

    graph = onnx.load(path)
    durations = onnx.helper.make_tensor_value_info("/encoder/Cast_output_0", onnx.TensorProto.INT64, None)
    graph.graph.output.append(durations)
    return onnxruntime.InferenceSession(graph.SerializeToString())


def ask_export(session, ids, style, entry):
    """-> audio, durations; its audio lacks the overlap-add weight of 1.5"""
    feed = {
        "tokens": np.array([ids]),
        "style": style.numpy()[None],
        "speed": np.array([entry.get("speed", 1.0)], np.float32),
    }
    audio, frames = session.run(None, feed)
    return audio.reshape(-1) / 1.5, frames.reshape(1, -1)


def speak(model, entry, forced=None):
    """-> audio, durations; spoken with `forced` durations where given"""
    device = model.device
    ids = model.ids(entry["phonemes"])
    style = model.style(entry["voice"], len(ids))[None].to(device)
    speed = torch.tensor([float(entry.get("speed", 1.0))], device=device)
    kokoro_synth.precise(True)
    frames, pitch, sound = model.durations(torch.tensor([ids], device=device), style, speed)
    kokoro_synth.precise(False)
    used = frames if forced is None else torch.from_numpy(forced).to(device)
    audio, _ = model.synthesise(kokoro_model.frame_index(used), style, pitch, sound, noise=0)
    return audio[0].cpu().numpy(), frames.cpu().numpy()


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("--weights", required=True)
    ap.add_argument("--manifest", required=True)
    ap.add_argument("--onnx", help="compare with this export instead of the CPU")
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--clips", type=int, default=4)
    args = ap.parse_args()

    model = kokoro_model.Kokoro(args.weights, args.device)
    other = open_export(args.onnx) if args.onnx else kokoro_model.Kokoro(args.weights, "cpu")
    with open(args.manifest, encoding="utf-8") as f:
        entries = [json.loads(line) for line, _ in zip(f, range(args.clips), strict=False)]
    differences = []
    for entry in entries:
        ids = model.ids(entry["phonemes"])
        style = model.style(entry["voice"], len(ids))
        theirs, durations = ask_export(other, ids, style, entry) if args.onnx else speak(other, entry)
        ours, own = speak(model, entry, durations)
        differences.append(np.abs(bands(ours) - bands(theirs)).mean())
        print(
            f"{entry['id']}: {(own != durations).sum()} of {len(ids)} durations differ (at most by "
            f"{np.abs(own - durations).max()}), levels {ours.std():.4f} {theirs.std():.4f}, "
            f"band difference {differences[-1]:.3f}",
            flush=True,
        )
    print(f"mean band difference {np.mean(differences):.3f}")


if __name__ == "__main__":
    main()
