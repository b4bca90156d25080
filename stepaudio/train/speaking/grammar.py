"""A small grammar of what a model may be told and asked: three tools, sums to think about, things to remember.

A dialogue is its turns in order, each a dict of one of these keys: `human` (a sentence that is spoken), `call` (the
name of a tool) with `arguments`, `result` (what the tool gave), `answer` with perhaps a `thought` before it. One in
eight combinations of words is kept back for scoring.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any

TOOL, THINK, REMEMBER = "tool", "think", "remember"


def _words(text: str) -> list[str]:
    return text.split()


CITIES = _words(
    "paris london berlin rome madrid vienna moscow cairo tokyo boston chicago dublin athens oxford cambridge venice "
    "naples geneva prague lisbon warsaw delhi sydney montreal toronto denver dallas houston seattle miami atlanta "
    "brussels hamburg munich florence milan stockholm oslo copenhagen jerusalem damascus istanbul bombay shanghai "
    "singapore edinburgh glasgow liverpool manchester birmingham bristol philadelphia baltimore detroit lima"
)
NAMES = _words(
    "anna tom mary john peter paul emma jane alice henry william george james robert charles david daniel michael "
    "sarah ruth martha laura helen julia kate lucy rose susan nancy betty frank jack joe sam ben max oscar felix "
    "victor simon adam thomas philip edward arthur walter richard harry fanny rebecca rachel esther diana clara "
    "sophia maria linda lisa eva nina"
)
COLORS = _words("red blue green yellow black white brown purple orange gray pink")
SKIES = _words("rain sun snow wind fog clouds")
ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = _words("zero ten twenty thirty forty fifty sixty seventy eighty ninety")

ASKS_TIME = ("what time is it in {}", "what is the time in {}", "tell me the time in {}", "how late is it in {}")
ASKS_WEATHER = (
    "what is the weather in {}",
    "how is the weather in {}",
    "tell me the weather in {}",
    "what is the weather like in {}",
)
ASKS_TIMER = ("set a timer for {}", "start a timer for {}", "wake me in {}", "remind me in {}")
ASKS_SUM = ("what is {}", "how much is {}")
TELLS = {
    "name": ("my name is {}", "i am called {}"),
    "city": ("i live in {}", "my home is in {}"),
    "color": ("my favorite color is {}", "the color i like best is {}"),
}
QUESTIONS = {
    "name": ("what is my name", "do you know my name"),
    "city": ("where do i live", "do you know where i live"),
    "color": ("what is my favorite color", "do you know my favorite color"),
}
RECALLS = {"name": "your name is {}", "city": "you live in {}", "color": "your favorite color is {}"}
VALUES = {"name": NAMES, "city": CITIES, "color": COLORS}


def time_in(city: str) -> str:
    """The time in a city."""
    at = _number(city, 144)
    return f"{at // 12 + 1}:{at % 12 * 5:02}"


def weather_in(city: str) -> str:
    """The weather in a city."""
    return f"{SKIES[_number(city, len(SKIES))]}, {_number(city, 30) + 1} degrees"


def set_timer(minutes: int) -> str:
    """Set a timer."""
    return f"set, {minutes} minutes"


TOOLS: dict[str, Callable[..., str]] = {f.__name__: f for f in (time_in, weather_in, set_timer)}


def _number(word: str, below: int) -> int:
    """A number that belongs to a word: what these tools tell is made up."""
    return zlib.crc32(f"{below} {word}".encode()) % below


def in_words(number: int) -> str:
    """A number from 0 to 99 in words: twenty one."""
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")


def said(name: str, arguments: dict[str, Any], result: str) -> str:
    """The answer to a request whose tool gave a result."""
    if name == "time_in":
        hour, minutes = map(int, result.split(":"))
        past = "o'clock" if not minutes else f"oh {ONES[minutes]}" if minutes < 10 else in_words(minutes)
        return f"it is {in_words(hour)} {past} in {arguments['city']}"
    if name == "weather_in":
        sky, degrees = result.removesuffix(" degrees").split(", ")
        return f"{sky} and {_count(int(degrees), 'degree')} in {arguments['city']}"
    return f"the timer is set for {_count(arguments['minutes'], 'minute')}"


def _count(number: int, unit: str) -> str:
    return f"{in_words(number)} {unit}{'' if number == 1 else 's'}"


def _tool(rng: random.Random) -> list[dict]:
    name = rng.choice(list(TOOLS))
    arguments: dict[str, Any]
    if name == "set_timer":
        arguments = {"minutes": rng.randint(1, 60)}
        request = rng.choice(ASKS_TIMER).format(_count(arguments["minutes"], "minute"))
        result = set_timer(**arguments)
    else:
        arguments = {"city": rng.choice(CITIES)}
        request = rng.choice(ASKS_TIME if name == "time_in" else ASKS_WEATHER).format(arguments["city"])
        result = TOOLS[name](str(rng.random()))  # not always the same of one city: the result is to be read
    call = {"call": name, "arguments": arguments}
    return [{"human": request}, call, {"result": result}, {"answer": said(name, arguments, result)}]


def _think(rng: random.Random) -> list[dict]:
    """A sum of two or three numbers; the thought is each step of it."""
    many = rng.random() < 0.7
    total = rng.randint(1, 9 if many else 20)
    task, steps = in_words(total), []
    for _ in range(2 if many else 1):
        number = rng.randint(1, 9 if many else 20)
        less = number <= total and rng.random() < 0.4
        found = total - number if less else total + number
        part = f"{'minus' if less else 'plus'} {in_words(number)}"
        steps.append(f"{in_words(total)} {part} is {in_words(found)}")
        task, total = f"{task} {part}", found
    thought, answer = " and ".join(steps), f"the answer is {in_words(total)}"
    return [{"human": rng.choice(ASKS_SUM).format(task)}, {"answer": answer, "thought": thought}]


def _remember(rng: random.Random) -> list[dict]:
    """One or two things told, an answer that shows that they were understood, then a question about one."""
    kinds = rng.sample(list(TELLS), 2 if rng.random() < 0.5 else 1)
    value = {kind: rng.choice(VALUES[kind]) for kind in kinds}
    told = " and ".join(rng.choice(TELLS[kind]).format(value[kind]) for kind in kinds)
    reply = f"nice to meet you {value['name']}" if "name" in kinds else "i will remember that"
    asked = rng.choice(kinds)
    question = rng.choice(QUESTIONS[asked])
    return [{"human": told}, {"answer": reply}, {"human": question}, {"answer": RECALLS[asked].format(value[asked])}]


MAKERS = {TOOL: _tool, THINK: _think, REMEMBER: _remember}


def kept_back(turns: list[dict]) -> bool:
    """Whether a dialogue is for scoring alone: one in eight, by the words of its first turn."""
    return zlib.crc32(turns[0]["human"].encode()) % 8 == 0


def dialogues(task: str, number: int, seed: int, held_out: bool) -> list[dict]:
    """Dialogues of one task, all of them kept back or none: {"task", "held_out", "turns"} and, of tools, "tools".

    Six in ten are shown all tools, the others some, that which is called among them.
    """
    rng, found = random.Random(f"{task} {seed}"), []
    while len(found) < number:
        turns = MAKERS[task](rng)
        offered = set(rng.sample(list(TOOLS), rng.randint(0, 2)) if rng.random() < 0.4 else TOOLS)
        if kept_back(turns) != held_out:
            continue
        line = {"task": task, "held_out": held_out, "turns": turns}
        if task == TOOL:
            line["tools"] = [name for name in TOOLS if name in offered or name == turns[1]["call"]]
        found.append(line)
    return found
