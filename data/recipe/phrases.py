"""What needs no source: everyday sentences from a small grammar, strings of digits, phrases that rightly repeat."""

from spelling import ONES, cardinal, clock, ordinal, year

NAMES = (
    "Anna Arthur Alice Ben Beatrice Clara Charles David Dora Edward Emily Ellen Frank Florence George Grace Henry "
    "Helen Hugo Irene Isaac James Jane Julia Kate Kevin Laura Lewis Lucy Margaret Martin Mary Nathan Nora Oliver "
    "Olivia Paul Peter Philip Rachel Robert Rose Samuel Sarah Simon Sophie Thomas Theresa Victor Walter William "
    "Yusuf Zoe Maria Carlos Ahmed Priya Chen Ingrid Pierre Marco Elena Hiroshi Fatima Omar"
).split()
FAMILY = (
    "Smith Brown Taylor Wilson Clark Walker Wright Hill Green Baker Carter Turner Parker Cooper Ward Bennett Gray "
    "Hughes Foster Butler Barnes Fisher Hunt Shaw Gordon Palmer Stone Knight Bishop Marsh"
).split()
PLACES = (
    "London Paris Boston Chicago Dublin Berlin Madrid Rome Vienna Prague Lisbon Oslo Cairo Tokyo Sydney Toronto "
    "Denver Seattle Houston Oxford Bristol Leeds Glasgow Geneva Athens Moscow Warsaw Bombay Cape-Town New-York "
    "Edinburgh Manchester Hamburg Naples Dallas Detroit Portland Montreal Melbourne Kyoto"
).split()
COUNTRIES = (
    "France Spain Italy Germany England Scotland Ireland Canada Mexico Brazil India China Japan Egypt Greece "
    "Turkey Norway Sweden Russia Kenya"
).split()
ROOMS = [
    "kitchen",
    "bedroom",
    "living room",
    "hall",
    "office",
    "garage",
    "bathroom",
    "garden",
    "attic",
    "cellar",
    "library",
    "study",
]
DEVICES = [
    "lights",
    "heating",
    "radio",
    "television",
    "fan",
    "oven",
    "alarm",
    "music",
    "dishwasher",
    "lamp",
    "printer",
    "camera",
    "kettle",
]
FOODS = [
    "bread",
    "cheese",
    "apples",
    "coffee",
    "tea",
    "rice",
    "soup",
    "fish",
    "chicken",
    "salad",
    "butter",
    "eggs",
    "honey",
    "potatoes",
    "onions",
    "chocolate",
    "orange juice",
    "pancakes",
    "tomatoes",
    "carrots",
    "sugar",
    "flour",
    "cherries",
    "pepper",
    "garlic",
    "yoghurt",
]
THINGS = [
    "umbrella",
    "letter",
    "key",
    "blue coat",
    "bicycle",
    "map",
    "ladder",
    "suitcase",
    "wallet",
    "violin",
    "newspaper",
    "red scarf",
    "telephone",
    "basket",
    "hammer",
    "mirror",
    "candle",
    "blanket",
    "ticket",
    "camera",
    "guitar",
    "notebook",
    "pair of shoes",
    "old clock",
    "wooden box",
    "silver spoon",
    "knife",
    "bucket",
    "rope",
    "pillow",
    "needle",
    "shovel",
    "pencil",
    "brown paper parcel",
    "glass jar",
]
PEOPLE = [
    "my brother",
    "your sister",
    "the doctor",
    "our neighbour",
    "the teacher",
    "his mother",
    "her uncle",
    "the captain",
    "the old man",
    "a young woman",
    "the children",
    "the driver",
    "my grandfather",
    "the nurse",
    "the postman",
    "their cousin",
    "the farmer",
    "the judge",
    "the two boys",
    "the cook",
    "our guide",
    "the shopkeeper",
    "the soldier",
    "the little girl",
    "the stranger",
    "the engineer",
]
SPOTS = [
    "on the table",
    "under the bed",
    "behind the door",
    "in the drawer",
    "near the window",
    "by the river",
    "at the station",
    "across the street",
    "next to the church",
    "in the cupboard",
    "on the top shelf",
    "beside the fire",
    "at the end of the road",
    "in front of the house",
    "above the fireplace",
    "between the trees",
    "inside the barn",
    "at the foot of the hill",
    "on the bridge",
]
ADJECTIVES = (
    "big small old new long short heavy light dark bright warm cold quiet noisy strange beautiful ugly clean "
    "dirty broken empty narrow wide deep shallow rough smooth sharp dull cheap expensive wooden golden ancient "
    "pleasant terrible"
).split()
PAST = [
    "found",
    "lost",
    "bought",
    "sold",
    "hid",
    "carried",
    "dropped",
    "mended",
    "borrowed",
    "forgot",
    "stole",
    "broke",
    "cleaned",
    "brought",
    "threw away",
    "gave me",
    "showed us",
    "left",
    "wanted",
    "looked for",
    "picked up",
    "painted",
]
WEATHER = ["rain", "snow", "wind", "fog", "sunshine", "thunder", "frost", "hail", "clouds", "a storm"]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
WHEN = [
    "tomorrow",
    "tonight",
    "this evening",
    "next week",
    "in the morning",
    "after lunch",
    "before dinner",
    "on Monday",
    "every day",
    "at the weekend",
    "as soon as possible",
    "later",
    "right now",
    "at noon",
    "at midnight",
    "the day after tomorrow",
    "once a month",
]
UNITS = [
    "miles",
    "metres",
    "pounds",
    "minutes",
    "hours",
    "days",
    "weeks",
    "years",
    "degrees",
    "pages",
    "kilometres",
    "inches",
    "feet",
    "gallons",
    "litres",
    "tons",
    "acres",
    "seconds",
    "people",
    "houses",
    "ships",
    "horses",
    "trees",
    "books",
]
OPENERS = [
    "",
    "",
    "",
    "",
    "",
    "Please, ",
    "Well, ",
    "Oh, ",
    "Excuse me, ",
    "Of course, ",
    "You know, ",
    "Listen, ",
    "Yes, ",
    "No, ",
    "I think ",
    "He said that ",
]


def say(*parts):
    """The parts as one string."""
    return "".join(parts)


class Speaker:
    """One random source, and the small phrases that sentences are put together from."""

    def __init__(self, rng):
        self.rng, self.pick = rng, rng.choice

    def number(self, low, high):
        return cardinal(self.rng.randint(low, high))

    def time(self):
        hour = self.rng.randint(1, 12)
        minute = self.pick((0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, self.rng.randint(1, 59)))
        form = self.rng.random()
        if minute == 0 or form < 0.4:
            return clock(hour, minute)
        if minute in (15, 45):
            return "a quarter " + ("past " + cardinal(hour) if minute == 15 else "to " + cardinal(hour % 12 + 1))
        if minute == 30:
            return "half past " + cardinal(hour)
        if minute < 30:
            return cardinal(minute) + (" minutes past " if minute % 5 else " past ") + cardinal(hour)
        return cardinal(60 - minute) + (" minutes to " if minute % 5 else " to ") + cardinal(hour % 12 + 1)

    def date(self):
        day, month = ordinal(self.rng.randint(1, 31)), self.pick(MONTHS)
        base = self.pick((f"the {day} of {month}", f"{month} the {day}", f"{month} {day}"))
        return base + self.pick(("", "", ", " + year(self.rng.randint(1750, 2030))))

    def price(self):
        whole, cents = self.rng.randint(1, 120), self.pick((0, 25, 50, 75, 99, self.rng.randint(1, 99)))
        unit, small = self.pick((("dollar", "cent"), ("pound", "pence"), ("euro", "cent")))
        words = cardinal(whole) + " " + unit + ("s" if whole > 1 else "")
        if cents:
            plural = "s" if small == "cent" and cents > 1 else ""
            words += self.pick((" and ", " ")) + cardinal(cents) + " " + small + plural
        return words

    def place(self):
        return self.pick(PLACES).replace("-", " ")

    def thing(self):
        owner = self.pick(("the ", "the ", "my ", "your ", "his ", "her ", "our ", "that "))
        return owner + self.pick(("", self.pick(ADJECTIVES) + " ")) + self.pick(THINGS)

    def who(self):
        titles = ("Mister ", "Missus ", "Miss ", "Doctor ", "Captain ")
        return self.pick(
            (
                self.pick(NAMES),
                self.pick(NAMES) + " " + self.pick(FAMILY),
                self.pick(PEOPLE),
                self.pick(titles) + self.pick(FAMILY),
            )
        )


FORMS = (
    lambda s: say(
        "Turn ",
        s.pick(("on", "off", "up", "down")),
        " the ",
        s.pick(DEVICES),
        " in the ",
        s.pick(ROOMS),
        s.pick((".", ", please.", " now.")),
    ),
    lambda s: say(
        "Set ",
        s.pick(("an alarm", "a timer", "a reminder")),
        " for ",
        s.pick((s.time(), s.number(2, 90) + " minutes", s.time() + " " + s.pick(WHEN))),
        ".",
    ),
    lambda s: say(
        s.pick(OPENERS),
        s.pick(("what time does", "when does", "where does")),
        " the ",
        s.pick(("train", "bus", "boat", "plane", "coach")),
        " ",
        s.pick(("to", "from")),
        " ",
        s.place(),
        " ",
        s.pick(("leave", "arrive", "stop")),
        "?",
    ),
    lambda s: say(
        "The ",
        s.pick(("train", "bus", "boat", "flight", "meeting", "concert", "lesson", "show")),
        " ",
        s.pick(("leaves", "starts", "begins", "ends")),
        " at ",
        s.time(),
        s.pick(("", " " + s.pick(WHEN), " on " + s.pick(DAYS))),
        ".",
    ),
    lambda s: say(
        "I would like ",
        s.pick(("some", "a little", "more", s.number(2, 9) + " pounds of", "a bag of")),
        " ",
        s.pick(FOODS),
        " and ",
        s.pick(("some ", "")),
        s.pick(FOODS),
        s.pick((".", ", please.")),
    ),
    lambda s: say("It costs ", s.price(), s.pick(("", " each", " altogether", " a piece", ", including tax")), "."),
    lambda s: say(s.who(), " was born on ", s.date(), "."),
    lambda s: say(
        s.who(),
        " lives at ",
        s.number(1, 400),
        " ",
        s.pick(("Station", "Church", "Mill", "High", "River", "Park", "Queen", "Market", "Garden", "School")),
        " ",
        s.pick(("Street", "Road", "Lane", "Avenue")),
        ", ",
        s.place(),
        ".",
    ),
    lambda s: say(s.who(), " ", s.pick(PAST), " ", s.thing(), " ", s.pick(SPOTS), "."),
    lambda s: say("Have you seen ", s.thing(), "? I left it ", s.pick(SPOTS), "."),
    lambda s: say(
        s.pick(("Will there be", "There will be", "They expect", "We had")),
        " ",
        s.pick(WEATHER),
        " in ",
        s.place(),
        " ",
        s.pick(WHEN),
        ".",
    ),
    lambda s: say(
        "It is ",
        s.number(2, 990),
        " ",
        s.pick(UNITS),
        " ",
        s.pick(("from", "away from", "north of", "south of")),
        " ",
        s.place(),
        ".",
    ),
    lambda s: say(
        "Call ",
        s.who(),
        " ",
        s.pick(WHEN),
        " and ",
        s.pick(("ask", "tell")),
        " ",
        s.pick(("him", "her", "them")),
        " about ",
        s.thing(),
        ".",
    ),
    lambda s: say(
        s.pick(("Do you know", "Can you tell me", "I wonder", "Nobody knows", "Please ask")),
        " ",
        s.pick(("where", "when", "why", "how")),
        " ",
        s.who(),
        " ",
        s.pick(PAST),
        " ",
        s.thing(),
        ".",
    ),
    lambda s: say(
        s.pick(("My", "Her", "His", "Our")),
        " ",
        s.pick(("flight", "room", "account", "order", "ticket", "house", "gate", "locker")),
        " number is ",
        " ".join(s.pick(ONES[:10]) for _ in range(s.rng.randint(2, 6))),
        ".",
    ),
    lambda s: say(
        s.pick(("We arrived in", "They sailed to", "She moved to", "He travelled through", "I have never been to")),
        " ",
        s.pick((s.place(), s.pick(COUNTRIES))),
        " ",
        s.pick(
            (
                "in " + year(s.rng.randint(1750, 2030)),
                "in " + s.pick(MONTHS),
                "last " + s.pick(("year", "winter", "spring", "summer", "autumn")),
            )
        ),
        ".",
    ),
    lambda s: say(
        s.pick(("There were", "I counted", "We saw", "He bought", "They needed")),
        " ",
        s.number(2, 2000),
        " ",
        s.pick(UNITS),
        s.pick(("", " " + s.pick(SPOTS))),
        ".",
    ),
    lambda s: say(
        s.who(),
        " and ",
        s.who(),
        " are going to ",
        s.place(),
        " ",
        s.pick(("by train", "by boat", "on foot", "by car", "together")),
        " ",
        s.pick(WHEN),
        ".",
    ),
    lambda s: say(
        s.pick(("Play", "Stop", "Pause", "Skip", "Repeat")),
        " the ",
        s.pick(("song", "story", "chapter", "track", "recording", "film")),
        s.pick(("", " please", " from the beginning", " by " + s.who())),
        ".",
    ),
    lambda s: say(
        s.pick(("Send", "Write", "Read")),
        " ",
        s.pick(("a message", "a letter", "an email", "a note")),
        " to ",
        s.who(),
        " ",
        s.pick(("saying", "to say")),
        " I will be ",
        s.number(5, 59),
        " minutes late.",
    ),
    lambda s: say(
        s.number(1, 99).capitalize(),
        " ",
        s.pick(("plus", "minus", "times", "divided by")),
        " ",
        s.number(1, 99),
        " ",
        s.pick(("is", "equals", "makes")),
        " ",
        s.number(1, 999),
        ".",
    ),
    lambda s: say(
        "Open ",
        s.pick(("page", "chapter", "door", "window", "box", "file")),
        " ",
        s.number(1, 400),
        s.pick((".", " and read it aloud.", " for me.")),
    ),
    lambda s: say(
        s.who(),
        "'s ",
        s.pick(("house", "voice", "dog", "hat", "story", "garden", "horse", "hand", "shop", "answer")),
        " ",
        s.pick(("is", "was", "seems", "looked")),
        " ",
        s.pick(("very ", "rather ", "quite ", "too ", "")),
        s.pick(ADJECTIVES),
        ".",
    ),
    lambda s: say(
        s.pick(("How much", "How many")),
        " ",
        s.pick(("are", "is", "for")),
        " the ",
        s.pick(FOODS),
        " ",
        s.pick(SPOTS),
        "?",
    ),
    lambda s: say(
        s.pick(
            (
                "If it rains",
                "When the sun sets",
                "After the war",
                "Before you go",
                "While we waited",
                "Although he was tired",
                "Because of the " + s.pick(("fog", "noise", "cold")),
            )
        ),
        ", ",
        s.who(),
        " ",
        s.pick(PAST),
        " ",
        s.thing(),
        ".",
    ),
    lambda s: say(
        s.pick(("Add", "Take", "Bring", "Mix", "Boil", "Wash")),
        " ",
        s.number(2, 12),
        " ",
        s.pick(("spoons", "cups", "pieces", "slices", "bowls")),
        " of ",
        s.pick(FOODS),
        " and ",
        s.pick(("stir", "wait", "cook it", "let it rest")),
        " for ",
        s.number(2, 60),
        " minutes.",
    ),
    lambda s: say(
        "The ",
        ordinal(s.rng.randint(1, 60)),
        " ",
        s.pick(("chapter", "street", "day", "person", "king", "letter", "attempt", "page")),
        " ",
        s.pick(("was", "is")),
        " ",
        s.pick(("the ", "")),
        s.pick(("best of all", "missing", "the last", "better than the " + ordinal(s.rng.randint(1, 30)))),
        ".",
    ),
    lambda s: say(
        s.pick(("Good morning", "Good evening", "Good night", "Hello", "Goodbye", "Thank you", "Welcome", "Come in")),
        ", ",
        s.who(),
        s.pick((".", "!", ", how are you today?", ", nice to see you.", ", please sit down.")),
    ),
    lambda s: say(
        s.pick(("Go", "Walk", "Drive", "Turn")),
        " ",
        s.pick(("left", "right", "straight on")),
        " at the ",
        s.pick(("church", "corner", "bridge", "traffic lights", "bank", "school")),
        ", then it is ",
        s.number(2, 900),
        " ",
        s.pick(("metres", "yards", "steps")),
        " on the ",
        s.pick(("left", "right")),
        ".",
    ),
    lambda s: say(
        s.pick(("She", "He", "They", "We", "You", "I")),
        " ",
        s.pick(("could not", "did not", "should", "must", "might", "will", "would never")),
        " ",
        s.pick(("find", "sell", "carry", "break", "forget", "clean", "mend", "open", "keep", "bring")),
        " ",
        s.thing(),
        " ",
        s.pick((s.pick(SPOTS), s.pick(WHEN))),
        ".",
    ),
    lambda s: say("Today is ", s.pick(DAYS), ", ", s.date(), "."),
    lambda s: say(
        s.pick(("The temperature", "The price", "The speed", "The score", "The number")),
        " ",
        s.pick(("is", "was", "rose to", "fell to")),
        " ",
        s.number(2, 300),
        " ",
        s.pick(("", "point " + s.pick(ONES[:10]))),
        ".",
    ),
    lambda s: say(
        "A ",
        s.pick(ADJECTIVES),
        ", ",
        s.pick(ADJECTIVES),
        " ",
        s.pick(THINGS),
        " ",
        s.pick(("lay", "stood", "was")),
        " ",
        s.pick(SPOTS),
        ".",
    ),
    lambda s: say(
        s.pick(OPENERS),
        s.who(),
        " ",
        s.pick(("is", "was", "will be")),
        " ",
        s.pick(SPOTS),
        s.pick(("", " " + s.pick(WHEN))),
        s.pick((".", ".", "?")),
    ),
)


def grammar(rng):
    """One everyday sentence."""
    return FORMS[rng.randrange(len(FORMS))](Speaker(rng))


def digits(rng):
    """A string of one to twelve digits, as people read them out."""
    length = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12))
    zero = rng.choice(("zero", "oh"))
    words = [zero if d == 0 else ONES[d] for d in (rng.randrange(10) for _ in range(length))]
    if rng.random() < 0.15:
        spot = rng.randrange(length)
        words[spot] = words[max(0, spot - 1)]
    if length > 3 and rng.random() < 0.5:
        group = rng.choice((2, 3, 4))
        return ", ".join(" ".join(words[i : i + group]) for i in range(0, length, group)).capitalize() + "."
    return " ".join(words).capitalize() + "."


ECHOES = [
    "no",
    "yes",
    "go",
    "very",
    "well",
    "never",
    "now",
    "come",
    "wait",
    "stop",
    "please",
    "ha",
    "ho",
    "bye",
    "there",
    "really",
    "again",
    "more",
    "far",
    "round",
    "on",
    "hear",
    "run",
    "hurry",
    "look",
    "knock",
    "tick",
    "drip",
    "row",
    "day",
    "so",
    "too",
    "quick",
    "slowly",
    "higher",
    "down",
    "up",
    "left",
    "right",
    "hello",
    "thank you",
    "good night",
    "come on",
    "all right",
    "not yet",
    "over and",
    "step by",
]
TAILS = [
    "good",
    "cold",
    "late",
    "far away",
    "slowly",
    "small",
    "old",
    "tired",
    "happy",
    "dark",
    "much",
    "strange",
    "sad",
    "deep",
    "kind",
]


def repeats(rng, plain):
    """A phrase in which words or sentences rightly come back; `plain` are sentences to say twice."""
    form, pick = rng.randrange(10), rng.choice
    if form == 0:
        word, times = pick(ECHOES[:43]), rng.randint(2, 6)
        return (pick((", ", " ")).join([word] * times) + pick(".!.")).capitalize()
    if form == 1:
        return say(
            pick(("It was", "That is", "He felt", "She looked", "We are", "You are", "The night was")),
            " ",
            " ".join([pick(("very", "so", "far too", "really"))] * rng.randint(2, 3)),
            " ",
            pick(TAILS),
            ".",
        )
    if form == 2:
        run = [ONES[rng.randrange(1, 10)] for _ in range(rng.randint(1, 4))]
        return " ".join(word for word in run for _ in range(rng.choice((2, 2, 3)))).capitalize() + "."
    if form == 3:
        sentence = pick(plain)
        return sentence + " " + sentence
    if form == 4:
        word = pick(ECHOES[:43])
        return say(
            pick(NAMES),
            " said, ",
            word,
            ", ",
            word,
            ", ",
            word,
            ", and ",
            pick(("then left", "laughed", "went away", "closed the door", "said no more")),
            ".",
        )
    if form == 5:
        first, second = pick(ECHOES[:43]), pick(ECHOES[:43])
        return say(
            first, ", ", second, ", ", first, ", ", second, pick((".", say(", ", first, ", ", second, ".")))
        ).capitalize()
    if form == 6:
        word = pick(("day", "year", "night", "hour", "week", "mile", "page", "door", "step", "time"))
        return say(
            pick(("They waited", "He worked", "She walked on", "It went on", "We tried")),
            " ",
            word,
            " after ",
            word,
            ", ",
            pick(("again and again", "over and over", "on and on", "more and more", word + " after " + word)),
            ".",
        )
    if form == 7:
        name, times = pick(NAMES), rng.randint(2, 4)
        return say(
            ", ".join([name] * times),
            ", ",
            pick(("come here", "where are you", "wake up", "listen to me", "look at this", "do not go")),
            pick("!?"),
        )
    if form == 8:
        word = pick(TAILS[:8] + ADJECTIVES)
        return say(pick(("A", "The")), " ", word, ", ", word, ", ", word, " ", pick(THINGS), " ", pick(SPOTS), ".")
    low = rng.randint(1, 90)
    unit = pick(("one", "two", "three", "ready", "left, right"))
    return say(
        unit.capitalize(),
        ", ",
        unit,
        ", ",
        cardinal(low),
        ", ",
        cardinal(low),
        ", ",
        cardinal(low + 1),
        ", ",
        cardinal(low + 1),
        ".",
    )
