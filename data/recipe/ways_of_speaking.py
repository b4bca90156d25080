"""Phonemes as people say them: weak forms, dropped sounds, other pauses and stresses, accents, slips.

A phonemiser writes every word as a dictionary has it ("and" with a full vowel, "of" with a full one), and a
synthesiser then reads it so. People do not. Each function takes the phonemes of a sentence in Kokoro's signs
(A I O Q W Y are diphthongs, T a flapped t, ᵻ a weak i; ˈ and ˌ stand before a stressed vowel, words are parted by a
space) and a `random.Random`, and keeps the number of words.

The weak forms are those that any description of English phonetics lists.
"""

MARKS, STRESSES, CONSONANTS = ',;:.!?—…"()“”', "ˈˌ", "bdfhjklmnpstvwzðŋɡɹɾʃʒʤʧθT"

# A word's full form, without stresses, and what it may shrink to; American, then British.
WEAK = {
    strong: weak.split()
    for strong, weak in (
        pair.split(":")
        for pair in [
            "ænd:ən ənd n",
            "ʌv:əv əv ə",
            "tu:tə",
            "fɔɹ:fəɹ",
            "fɹʌm:fɹəm",
            "æz:əz",
            "æt:ət",
            "hæv:əv həv",
            "hæd:əd həd",
            "hæz:əz həz",
            "kæn:kən",
            "kʊd:kəd",
            "ʃʊd:ʃəd",
            "wʊd:wəd əd",
            "mʌst:məst məs",
            "bʌt:bət",
            "ðæt:ðət",
            "ðɛm:ðəm əm",
            "wʌz:wəz",
            "wɜɹ:wəɹ",
            "ɑɹ:əɹ",
            "hɪz:ɪz",
            "hɪm:ɪm",
            "hɜɹ:əɹ",
            "hi:i",
            "hu:u",
            "ju:jə",
            "jʊɹ:jəɹ",
            "ðɛɹ:ðəɹ",
            "sʌm:səm",
            "ʌs:əs",
            "bɪn:bən",
            "dʌz:dəz",
            "du:də",
            "ɔɹ:əɹ",
            "ɐn:ən",
            "nɔɹ:nəɹ",
            "ɪt:ət t",
            "ɪz:əz z",
            "ɪn:ən n",
            "wɪð:wəð wɪ",
            "ɪf:əf",
            "ʃæl:ʃəl",
            "wɪl:əl",
            "Wəɹ:ɑɹ",
            "ʤʌst:ʤəst ʤəs",
            "wʌt:wət",
            "nɑt:nət",
            "mI:mə",
            "bi:bɪ",
            "ʃi:ʃɪ",
            "wi:wɪ",
            "mi:mɪ",
            "ðA:ðɛ",
            "sO:sə",
            "and:ən ənd n",
            "ɒv:əv əv ə",
            "fɔː:fə",
            "fɹɒm:fɹəm",
            "az:əz",
            "at:ət",
            "hav:əv həv",
            "had:əd həd",
            "haz:əz həz",
            "kan:kən",
            "ðat:ðət",
            "wɒz:wəz",
            "wɜː:wə",
            "ɑː:ə",
            "hɜː:ə",
            "hiː:i",
            "huː:u",
            "juː:jə",
            "jɔː:jə",
            "ðɛː:ðə",
            "biːn:bɪn",
            "duː:də",
            "ɔː:ə",
            "nɔː:nə",
            "ʃal:ʃəl",
            "Wə:ɑː",
            "wɒt:wət",
            "nɒt:nət",
            "biː:bɪ",
            "ʃiː:ʃɪ",
            "wiː:wɪ",
            "miː:mɪ",
        ]
    )
}

# What accents and small differences of vowels do to sounds.
HABITS = [
    tuple(pair.split(">"))
    for pair in [
        "ð>d",
        "ð>z",
        "θ>t",
        "θ>s",
        "θ>f",
        "v>w",
        "w>v",
        "h>",
        "ŋ>n",
        "ɹ>ɾ",
        "z>s",
        "d>t",
        "ʤ>ʧ",
        "ʒ>ʃ",
        "ʧ>ʃ",
        "T>t",
        "T>d",
        "b>p",
        "ɡ>k",
        "p>b",
        "l>w",
        "æ>ɛ",
        "æ>a",
        "ɛ>æ",
        "ɛ>ɪ",
        "ɪ>i",
        "i>ɪ",
        "ɪ>ɛ",
        "ʌ>ɑ",
        "ʌ>a",
        "ʌ>ə",
        "ə>ɪ",
        "ə>ʌ",
        "ə>ɛ",
        "ɑ>ɔ",
        "ɑ>a",
        "ɔ>ɑ",
        "ɔ>O",
        "ɒ>ɑ",
        "ɒ>ɔ",
        "ʊ>u",
        "u>ʊ",
        "ɜ>ɛ",
        "ɜ>ɔ",
        "ɐ>ə",
        "A>ɛ",
        "A>I",
        "O>ɔ",
        "O>u",
        "O>W",
        "I>A",
        "I>a",
        "I>ɑ",
        "W>a",
        "W>O",
        "Q>O",
        "Y>I",
        "ᵻ>ə",
        "ː>",
    ]
]
AT_ENDS = dict(zip("bdɡvzðʒʤ", "ptkfsθʃʧ", strict=True))  # voiceless at words' ends, as in German or Russian


def unstressed(word: str) -> str:
    return word.translate(dict.fromkeys(map(ord, STRESSES)))


def lax(phonemes: str, rng) -> str:
    """Half of the clips: weak forms, and t and d lost, flapped or softened at words' ends; now and then or mostly."""
    if rng.random() < 0.5:
        return phonemes
    often = rng.uniform(0.3, 1.0)
    words = phonemes.split(" ")
    for i, word in enumerate(words):
        core = word.rstrip(MARKS)
        mark, weak = word[len(core) :], WEAK.get(unstressed(core))
        if not core or rng.random() > often:
            continue
        if weak and i + 1 < len(words) and not mark:
            core = rng.choice(weak)
        elif core[-1] in "td" and len(core) > 2 and i + 1 < len(words) and not mark:
            before, after = core[-2], unstressed(words[i + 1]).lstrip(MARKS)[:1]
            if after == "j":
                core = core[:-1] + ("ʧ" if core[-1] == "t" else "ʤ")
            elif before in CONSONANTS and after in CONSONANTS:
                core = core[:-1]
            elif before not in CONSONANTS and after not in CONSONANTS:
                core = core[:-1] + "T"
        words[i] = core + mark
    return " ".join(words)


def other_pauses(phonemes: str, rng) -> str:
    """One clip in five reads over its commas, one in seven pauses where there is none."""
    words, chance = phonemes.split(" "), rng.random()
    if chance < 0.2:
        words[:-1] = [word.rstrip(MARKS) or word for word in words[:-1]]
    elif chance < 0.34:
        words[:-1] = [word + "," if word[-1:] not in MARKS and rng.random() < 0.15 else word for word in words[:-1]]
    return " ".join(words)


def other_stresses(phonemes: str, rng) -> str:
    """One clip in six is read more flatly: weak stresses gone, and some of the strong ones."""
    if rng.random() > 1 / 6:
        return phonemes
    return "".join(p for p in phonemes if not (p == "ˌ" or (p == "ˈ" and rng.random() < 0.3)))


def with_accent(phonemes: str, rng) -> str:
    """Two clips in five get a few habits of one speaker: sounds said otherwise, mostly or now and then."""
    if rng.random() > 0.4:
        return phonemes
    habits, often = dict(rng.sample(HABITS, rng.randint(1, 4))), rng.uniform(0.4, 1.0)
    ends = AT_ENDS if rng.random() < 0.15 else {}
    out = []
    for p, after in zip(phonemes, phonemes[1:] + " ", strict=True):
        change = ends if p in ends and after in " " + MARKS else habits
        out.append(change[p] if p in change and rng.random() < often else p)
    return "".join(out)


def slips(phonemes: str, rng) -> str:
    """One clip in three is careless: here and there a sound comes out as a neighbour, or not at all.

    Lost are only h, length, consonants beside others and unstressed short vowels, and never the one sound of a word.
    """
    if rng.random() > 1 / 3:
        return phonemes
    often, words = rng.uniform(0.01, 0.1), []
    for word in phonemes.split(" "):
        sounds = list(word)
        for i, p in enumerate(word):
            if rng.random() > often:
                continue
            near = [other for sound, other in HABITS if sound == p]
            before, after = word[max(0, i - 1) : i], word[i + 1 : i + 2]
            crowded = p in CONSONANTS and any(beside in CONSONANTS for beside in before + after)
            weak = p in "əɪᵻ" and not (before and before in STRESSES)
            if crowded or weak:
                near.append("")
            if near:
                sounds[i] = rng.choice(near)
        said = "".join(sounds)
        words.append(said if said.strip(MARKS + STRESSES) else word)
    return " ".join(words)


def as_people_say(phonemes: str, rng) -> str:
    """All of the above, in the order in which one leads to another."""
    for change in (lax, other_pauses, other_stresses, with_accent, slips):
        phonemes = change(phonemes, rng)
    return phonemes
