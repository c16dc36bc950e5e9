"""Names of classes of different publishers, made comparable."""

import re
import unicodedata

_SYNONYMS = {
    # CUB's name -> that of the American Ornithological Society, which NABirds uses.
    "cardinal": "northern cardinal",
    "florida jay": "florida scrub jay",
    "forsters tern": "forster tern",
    "geococcyx": "greater roadrunner",
    "great gray shrike": "northern shrike",
    "le conte sparrow": "leconte sparrow",
    "mockingbird": "northern mockingbird",
    "myrtle warbler": "yellow rumped warbler",
    "nighthawk": "common nighthawk",
    "tree sparrow": "american tree sparrow",
    "white pelican": "american white pelican",
}
_SPELLINGS = {"grey": "gray", "artic": "arctic"}
_BODIES = r"sedan|coupe|convertible|hatchback|wagon|estate|suv|van|minivan|cab|crew|club|extended|regular|quad|supercab"
_MAKES = {"benz": "mercedes benz", "bwm": "bmw"}


def plain_name(name: str) -> str:
    """A class's name without number, brackets, possessive s, punctuation and capitals; empty if no word is left.

    `101.White_Pelican` and `0295 American White Pelican (Adult)` both become `american white pelican`.
    """
    text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"\([^)]*\)", " ", text).replace("_", " ")
    text = re.sub(r"['`]s\b|['`]", "", text)
    text = re.sub(r"^[\d\W]+(?=.*[a-z])", "", text)
    found: list[str] = re.findall(r"[a-z0-9]+", text)
    words = [_SPELLINGS.get(word, word) for word in found]
    text = " ".join(words)
    return _SYNONYMS.get(text, text) if re.search("[a-z]{2}", text) else ""


def plain_car(name: str) -> str:
    """Make and model of a car, without year and body.

    `Audi TTS Coupe 2012` becomes `audi tts`, and so does CompCars' `77/12 Audi Audi TTS coupe`.
    """
    text = re.sub(rf"\b(?:(?:19|20)\d\d|{_BODIES})\b", " ", plain_name(name))
    words = " ".join(text.split())
    words = re.sub(r"^(\w+(?: \w+)??) \1\b", r"\1", words)  # The make, said twice.
    make, _, model = words.partition(" ")
    return f"{_MAKES.get(make, make)} {model}" if model else ""
