"""Phonemes as people say them (`data/recipe/ways_of_speaking.py`), held to what phonetics books say of English."""

import importlib.util
import random
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "data" / "recipe" / "ways_of_speaking.py"
SENTENCE = "ˌænd ðˈɛn, fɹʌm ðə tˈIm wˌɛn bˈʊks fˈɜɹst tˈʊk ðɛɹ pɹˈɛzᵊnt ʃˈAp, hi kʊd hæv bɪn tˈOld ðˈæt ju wɜɹ ðˈɛɹ."


@pytest.fixture(scope="module")
def ways():
    spec = importlib.util.spec_from_file_location("ways_of_speaking", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Always(random.Random):
    """Every chance is taken: 0.99 where a share of clips is left alone, and the utmost of a range."""

    def random(self):
        return 0.99

    def uniform(self, low, high):
        return high

    def choice(self, options):
        return options[0]


def test_whatever_changes_the_words_stay_as_many_and_none_is_lost(ways):
    said = {ways.as_people_say(SENTENCE, random.Random(seed)) for seed in range(400)}
    assert len(said) > 200
    for phonemes in said:
        words = phonemes.split(" ")
        assert len(words) == len(SENTENCE.split(" ")) and all(w.strip(ways.MARKS) for w in words), phonemes
        assert words[-1].endswith(".")


@pytest.mark.parametrize(("full", "weak"), [
    ("ˌænd sˈO", "ən sˈO"),        # and so
    ("kˈʌp ʌv tˈi", "kˈʌp əv tˈi"),  # cup of tea
    ("fˈɜɹst tˈIm", "fˈɜɹs tˈIm"),   # first time: t between consonants is lost
    ("dˈɪd ju nˈO", "dˈɪʤ jə nˈO"),  # did you: d and j become one
    ("ɡˈɛt ˈAt", "ɡˈɛT ˈAt"),        # get eight: t between vowels is flapped
    ("wˌʌt fɔɹ.", "wət fɔɹ."),       # what for: at the end of a sentence the full form stays
    ("ɡˈUd bˈI", "ɡˈUd bˈI"),        # nothing to be lost
])
def test_weak_forms_and_lost_sounds(ways, full, weak):
    assert ways.lax(full, Always()) == weak


def test_half_of_the_clips_are_read_as_the_dictionary_has_them(ways):
    same = sum(ways.lax(SENTENCE, random.Random(seed)) == SENTENCE for seed in range(1000))
    assert 450 < same < 550
