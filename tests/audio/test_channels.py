"""Speech on a channel that is not read, and a mean that cancels, are said; what is read as it should be is not."""

import warnings

import numpy as np
import pytest
import soundfile as sf

from stepaudio.audio.load import load_audio

RATE = 16_000


def speech(rate: int = RATE, seconds: float = 2.0) -> np.ndarray:
    """Bursts of noise at about -20 dBFS with pauses between them."""
    t = np.arange(round(seconds * rate)) / rate
    return (np.random.default_rng(0).normal(0, 0.1, len(t)) * (t % 0.5 < 0.35)).astype(np.float32)


def hiss(level: float, n: int, seed: int = 1) -> np.ndarray:
    """Noise at `level` dBFS."""
    return np.random.default_rng(seed).normal(0, 10 ** (level / 20), n).astype(np.float32)


def warned(source, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_audio(source, **options)
    return [str(w.message) for w in caught]


x = speech()
nothing, click = np.zeros_like(x), np.zeros_like(x)
click[5000:5020] = 0.9

WRONG = {  # channels, downmix, what the warning says of them
    "right channel only": ([nothing, x], "first", "channel 1 of 2, which is read, holds no sound"),
    "5.1, centre only": ([nothing, nothing, x, nothing, nothing, nothing], "first", "below channel 3"),
    "an offset is no sound": ([nothing + np.float32(0.2), x], "first", "holds no sound"),
    "an input without a microphone hisses": ([hiss(-62, len(x)), x], "first", "holds no sound"),
    "hiss above -60 dBFS": ([hiss(-55, len(x)), x], "first", "holds hardly any sound, 3"),
    "a click is no sound": ([click, x], "first", "holds no sound"),
    "opposite phase": ([x, -x], "mean", "the mean of its 2 channels cancels"),
    "nearly opposite": ([x, np.float32(-0.95) * x + hiss(-65, len(x))], "mean", "cancels"),
    "four that cancel": ([x, -x, x / 2, -x / 2], "mean", "the mean of its 4 channels cancels"),
}
RIGHT = {
    "left channel only": ([x, nothing], "first"),
    "both": ([x, x], "first"),
    "a quiet and a loud microphone": ([x / 10, x], "first"),
    "speakers on two channels": ([x, speech()[::-1]], "mean"),
    "mean of the right channel only": ([nothing, x], "mean"),
    "mean of a 5.1 centre": ([nothing, nothing, x, nothing, nothing, nothing], "mean"),
    "opposite phase, of which the first is read": ([x, -x], "first"),
    "nothing anywhere": ([nothing, nothing], "first"),
    "a click elsewhere": ([nothing, click], "first"),
    "hiss in both": ([hiss(-70, len(x)), hiss(-65, len(x))], "first"),
}


@pytest.mark.parametrize("form", ["array", "int16", "file", "44.1 kHz file"])
@pytest.mark.parametrize("case", WRONG)
def test_sound_that_is_not_read_is_said(case, form, tmp_path):
    channels, downmix, message = WRONG[case]
    source, options = given(channels, form, tmp_path)
    (said,) = warned(source, downmix=downmix, **options)
    other = "mean" if downmix == "first" else "first"
    assert (
        message in said
        and f"transcribe --downmix {other}" in said
        and f"downmix='{other}'" in said
        and "\n" not in said
    )


@pytest.mark.parametrize("case", RIGHT)
def test_nothing_is_said_where_the_sound_is_read(case, tmp_path):
    channels, downmix = RIGHT[case]
    for form in ("array", "file"):
        source, options = given(channels, form, tmp_path)
        assert warned(source, downmix=downmix, **options) == []


def given(channels, form: str, folder):
    """The channels as a source, and what `load_audio` needs to be told of it."""
    samples = np.stack(channels, axis=1)
    if form == "array":
        return samples, {"sr": RATE}
    if form == "int16":
        return np.round(samples.clip(-1, 1) * 32767).astype(np.int16), {"sr": RATE}
    path, rate = folder / "a.wav", RATE
    if form != "file":
        samples, rate = np.repeat(samples, 3, axis=0), 44_100
    sf.write(path, samples, rate, subtype="FLOAT")
    return path, {}


def test_blocks_of_any_size_say_the_same(monkeypatch):
    """The whole recording is judged, not its first block, and a block need not hold a frame."""
    late = np.stack([nothing, np.concatenate([nothing[: len(x) // 2], x[len(x) // 2 :]])], axis=1)
    for values in (1 << 20, 6000, 200):
        monkeypatch.setattr("stepaudio.audio.load.BLOCK_VALUES", values)
        assert "holds no sound" in warned(late, sr=RATE)[0]


def test_nan_elsewhere_is_no_sound():
    assert warned(np.stack([x, np.full_like(x, np.nan)], axis=1), sr=RATE) == []
    assert warned(np.stack([nothing, np.full_like(x, np.inf)], axis=1), sr=RATE) == []


def test_what_is_read_does_not_depend_on_the_warning():
    samples = np.stack([nothing, x], axis=1)
    with pytest.warns(UserWarning, match="channel 2"):
        assert np.array_equal(load_audio(samples, sr=RATE), nothing)
