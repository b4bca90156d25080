"""From written to spoken: numbers in words, and the two forms of a line (to be said, to be recognised)."""

import re

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}


def cardinal(n):
    """The cardinal number n, 0 <= n < 1 000 000, in words."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + ("-" + ONES[n % 10] if n % 10 else "")
    if n < 1000:
        return ONES[n // 100] + " hundred" + (" and " + cardinal(n % 100) if n % 100 else "")
    rest = n % 1000
    joint = " and " if 0 < rest < 100 else " "
    return cardinal(n // 1000) + " thousand" + (joint + cardinal(rest) if rest else "")


def ordinal(n):
    """The ordinal number of n in words."""
    head, sep, last = re.findall(r"^(.*?)([ -]?)([a-z]+)$", cardinal(n))[0]
    if last in ORDINALS:
        last = ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return head + sep + last


def year(n):
    """The year n, 1100 <= n < 2100, as it is read."""
    if 2000 <= n < 2010:
        return cardinal(n)
    if n % 100 == 0:
        return cardinal(n // 100) + " hundred"
    if n % 100 < 10:
        return cardinal(n // 100) + " oh " + ONES[n % 100]
    return cardinal(n // 100) + " " + cardinal(n % 100)


def clock(hour, minute):
    """A time of day on the digital clock in words."""
    if minute == 0:
        return cardinal(hour) + " o'clock"
    return cardinal(hour) + " " + ("oh " if minute < 10 else "") + cardinal(minute)


def spell_numbers(line):
    """Replace the numerals of a line by words; None if some numeral cannot be read surely."""
    line = re.sub(r"(?<=\d),(?=\d{3}\b)", "", line)

    def money(match):
        whole, cents = int(match[1]), match[2]
        words = cardinal(whole) + (" dollar" if whole == 1 else " dollars")
        if cents and int(cents):
            words += " and " + cardinal(int(cents)) + (" cent" if int(cents) == 1 else " cents")
        return words

    try:
        line = re.sub(r"\$(\d{1,6})(?:\.(\d\d))?\b", money, line)
        line = re.sub(r"\b(\d{1,2}):(\d\d)\b", lambda m: clock(int(m[1]), int(m[2])), line)
        line = re.sub(r"\b(\d{1,4})(?:st|nd|rd|th)\b", lambda m: ordinal(int(m[1])), line)
        line = re.sub(r"\b(\d{1,3})%", lambda m: cardinal(int(m[1])) + " percent", line)
        line = re.sub(r"\b(1[1-9]\d\d|20\d\d)\b", lambda m: year(int(m[1])), line)
        line = re.sub(r"\b(\d{1,3})\.(\d)\b", lambda m: cardinal(int(m[1])) + " point " + ONES[int(m[2])], line)
        line = re.sub(r"(?<![\w.])(0|[1-9]\d{0,5})(?![\w])", lambda m: cardinal(int(m[1])), line)
    except IndexError:
        return None
    return None if re.search(r"\d", line) else line


SPOKEN_TITLES = (
    ("Mr.", "Mister"),
    ("Mrs.", "Missus"),
    ("Dr.", "Doctor"),
    ("Messrs.", "Messieurs"),
    ("Mr", "Mister"),
    ("Mrs", "Missus"),
    ("Dr", "Doctor"),
    ("Esq.", "Esquire"),
    ("&", "and"),
)
PLAIN = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "`": "'",
        "“": '"',
        "”": '"',
        "–": "-",
        "—": ",",
        "…": ",",
        "é": "e",
        "è": "e",
        "ê": "e",
        "ï": "i",
        "ö": "o",
        "ç": "c",
        "à": "a",
        "æ": "ae",
        "_": "",
        "*": "",
        "\u00a0": " ",
        "\u202f": " ",
    }
)
SAYABLE = re.compile(r"^[A-Za-z' ,.;:!?-]+$")


def to_say(raw):
    """Clean a raw line for speaking; None if it has characters that nobody could read aloud."""
    line = " ".join(raw.translate(PLAIN).split())
    for written, spoken in SPOKEN_TITLES:
        line = re.sub(r"(?<!\w)" + re.escape(written) + r"(?!\w)", spoken, line)
    line = spell_numbers(line)
    if line is None:
        return None
    line = re.sub(r"\s*-{2,}\s*", ", ", line)
    line = re.sub(r'["()\[\]]', "", line)
    line = re.sub(r"(?<![A-Za-z])'|'(?![A-Za-z])", "", line)  # quotation marks, not apostrophes
    line = re.sub(r"\.{2,}", ",", line)
    line = re.sub(r"\s+([,.;:!?])", r"\1", line)
    line = re.sub(r"([,;:])[,.;:]+", r"\1", line)
    line = re.sub(r"([,;:])([.!?])", r"\2", line)
    line = re.sub(r"\b[A-Z]{4,}\b", lambda m: m[0].capitalize(), line.strip(" ,;:-"))  # else spelled out
    if not line or not SAYABLE.match(line):
        return None
    if line[-1] not in ".!?":
        line += "."
    return line[0].upper() + line[1:]


def to_text(say):
    """What the recogniser must write when `say` is spoken."""
    line = say.lower().replace("-", " ")
    line = re.sub(r"[^a-z' ]", " ", line)
    return " ".join(word.strip("'") for word in line.split() if word.strip("'"))
