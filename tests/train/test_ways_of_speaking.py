"""How training speech is said and by whom: phonemes held to what phonetics books say, voices to what is kept back."""

import csv
import importlib.util
import math
import random
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
SENTENCE = "ˌænd ðˈɛn, fɹʌm ðə tˈIm wˌɛn bˈʊks fˈɜɹst tˈʊk ðɛɹ pɹˈɛzᵊnt ʃˈAp, hi kʊd hæv bɪn tˈOld ðˈæt ju wɜɹ ðˈɛɹ."


def script(name):
    spec = importlib.util.spec_from_file_location(name, DATA / "recipe" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ways():
    return script("ways_of_speaking")


class Always(random.Random):
    """Leaves no clip alone, takes the upper end of every range, and the first of every choice."""

    def random(self):
        return 0.99

    def uniform(self, low, high):
        return high

    def choice(self, options):
        return options[0]


class Careless(random.Random):
    """Does whatever has a chance, with the last of every choice and no habits."""

    def random(self):
        return 0.0

    def choice(self, options):
        return options[-1]

    def sample(self, population, k):
        return []


def test_whatever_changes_the_words_stay_as_many_and_none_is_lost(ways):
    said = {ways.as_people_say(SENTENCE, random.Random(seed)) for seed in range(400)}
    assert len(said) > 200
    for phonemes in said:
        words = phonemes.split(" ")
        assert len(words) == len(SENTENCE.split(" ")) and all(w.strip(ways.MARKS) for w in words), phonemes
        assert words[-1].endswith(".")


@pytest.mark.parametrize(
    ("full", "weak"),
    [
        ("ˌænd sˈO", "ən sˈO"),  # and so
        ("kˈʌp ʌv tˈi", "kˈʌp əv tˈi"),  # cup of tea
        ("fˈɜɹst tˈIm", "fˈɜɹs tˈIm"),  # first time: t between consonants is lost
        ("dˈɪd ju nˈO", "dˈɪʤ jə nˈO"),  # did you: d and j become one
        ("ɡˈɛt ˈAt", "ɡˈɛT ˈAt"),  # get eight: t between vowels is flapped
        ("wˌʌt fɔɹ.", "wət fɔɹ."),  # what for: at the end of a sentence the full form stays
        ("ɡˈUd bˈI", "ɡˈUd bˈI"),  # nothing to be lost
    ],
)
def test_weak_forms_and_lost_sounds(ways, full, weak):
    assert ways.lax(full, Always()) == weak


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        ("lax", 450, 550),
        ("other_stresses", 120, 220),
        ("with_accent", 230, 430),  # two in five, but not every habit has its sound in the sentence
        ("slips", 250, 360),
    ],
)
def test_the_stated_share_of_clips_is_changed(ways, change, least, most):
    changed = sum(getattr(ways, change)(SENTENCE, random.Random(seed)) != SENTENCE for seed in range(1000))
    assert least < changed < most


@pytest.mark.parametrize(
    ("said", "slipped"),
    [
        ("pɹˈɛzᵊnt", "ˈɪsᵊ"),  # sounds in clusters are lost, the others come out as neighbours
        ("ə mˈæn", "ə mˈan"),  # a word of one sound is not lost
        ("əbˈWt", "pˈOt"),  # an unstressed vowel is lost, a stressed one is not
        ("tˈu, mˈi", "tˈʊ, mˈɪ"),  # a lone consonant stays, and so do marks and stresses
    ],
)
def test_slips(ways, said, slipped):
    assert ways.slips(said, Careless()) == slipped


def test_an_accent_may_make_words_end_voicelessly(ways):
    assert ways.with_accent("bˈædz ænd dˈɔɡ, ʤˈʌʤ.", Careless()) == "bˈæds ænt dˈɔk, ʤˈʌʧ."


def test_some_clips_read_over_commas_and_some_pause_elsewhere(ways):
    commas = [ways.other_pauses(SENTENCE, random.Random(seed)).count(",") for seed in range(1000)]
    assert 160 < commas.count(0) < 240 and 100 < sum(n > SENTENCE.count(",") for n in commas) < 180


@pytest.mark.parametrize(("change", "of"), [("other_pauses", ","), ("other_stresses", "ˈˌ")])
def test_pauses_and_stresses_leave_the_sounds_alone(ways, change, of):
    bare = str.maketrans("", "", of)
    for seed in range(100):
        assert getattr(ways, change)(SENTENCE, random.Random(seed)).translate(bare) == SENTENCE.translate(bare)


@pytest.fixture(scope="module")
def kokoro():
    pytest.importorskip("torch", reason="Kokoro's net needs PyTorch")
    return script("kokoro_model")


def test_blur_is_a_bell_and_none_is_none(kokoro):
    torch = kokoro.torch
    net, impulse = kokoro.Kokoro.__new__(kokoro.Kokoro), torch.zeros(3, 1, 41)
    impulse[:, :, 20] = 1
    found = net.blur(impulse, torch.tensor([0.0, 0.8, 1.5])[:, None, None])[:, 0]
    away = torch.arange(41) - 20.0
    assert torch.equal(found[0], impulse[0, 0])
    for bell, deviation in zip(found[1:], (0.8, 1.5), strict=True):
        moments = [(bell * away**k).sum().item() for k in range(3)]
        assert moments == pytest.approx([1, 0, deviation**2], rel=0.02, abs=1e-5)


def test_bend_moves_stretches_and_roughens_what_is_voiced(kokoro):
    torch = kokoro.torch
    net = kokoro.Kokoro.__new__(kokoro.Kokoro)
    f0 = torch.cat([torch.zeros(1, 1, 50), 200 * torch.exp(0.2 * torch.sin(torch.arange(400.0) / 9))[None, None]], 2)
    bent = {}
    for name, value in (("pitch", 1.3), ("spread", 0.5), ("rough", 0.05)):
        manner = {key: torch.full((1, 1, 1), v) for key, v in (kokoro.PLAIN | {name: value}).items()}
        bent[name] = net.bend(f0, manner)
        assert torch.equal(bent[name][..., :50], f0[..., :50])
    log = f0[..., 50:].log()
    moved, stretched, roughened = (bent[name][..., 50:].log() - log for name in bent)
    assert moved.mean().item() == pytest.approx(math.log(1.3), abs=1e-4) and moved.std() < 1e-4
    assert stretched.std().item() == pytest.approx(0.5 * log.std().item(), rel=1e-3) and abs(stretched.mean()) < 1e-4
    assert roughened.std().item() == pytest.approx(0.05, rel=0.15)


def test_each_manner_that_is_chosen_is_one_that_is_applied(kokoro):
    sys.path.insert(0, str(DATA / "recipe"))
    try:
        chosen = [script("kokoro_manifest").pick_manner(random.Random(seed)) for seed in range(200)]
    finally:
        sys.path.remove(str(DATA / "recipe"))
    assert set().union(*chosen) == {*kokoro.PLAIN, "jitter"}  # jitter is of lengths: kokoro_synth sees to it


def test_voices_of_the_recordings_train_nothing():
    voices = script("kokoro_voices")
    for manifest in (DATA / "speech" / "manifest.tsv", DATA / "sweeps" / "clips" / "manifest.tsv"):
        with open(manifest, encoding="utf-8", newline="") as file:
            scored = {row["voice"] for row in csv.DictReader(file, delimiter="\t")}
        assert scored & set(voices.RESERVED) and not scored & set(voices.VOICES)
    assert not set(voices.VOICES) & {*voices.RESERVED, *voices.RESERVED_OTHER}
