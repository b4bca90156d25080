"""The page that tells people the names of activations says what the glossary says."""

from pathlib import Path

from stepaudio.interp.names import FORMER_NAMES, GLOSSARY, TOKEN2WAV_GLOSSARY

PAGE = (Path(__file__).parents[2] / "docs" / "looking_inside.md").read_text(encoding="utf-8")


def rows(text: str) -> list[tuple[str, ...]]:
    """The rows of the tables in a stretch of the page that begin with a name, cell by cell."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip().strip("`") for cell in line.strip("|").split(" | ")) for line in lines]


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def expected(glossary) -> list[tuple[str, ...]]:
    return [(name, " ".join(meaning.axes), meaning.text) for name, meaning in glossary.items()]


def test_the_table_of_names_is_the_glossary():
    assert rows(section("Names")) == expected(GLOSSARY)


def test_the_tables_of_token2wav_are_its_glossaries():
    text = section("Token2wav")
    for net, glossary in TOKEN2WAV_GLOSSARY.items():
        of_net = text.split(f"\n`{net}`\n")[1].split("\n\n`")[0]
        assert rows(of_net) == expected(glossary), net
    assert len(rows(text)) == sum(map(len, TOKEN2WAV_GLOSSARY.values()))


def test_the_table_of_former_names_is_complete():
    assert rows(section("Names of the version before")) == list(FORMER_NAMES.items())
