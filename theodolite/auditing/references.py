"""References out of ``refs.bib``, written as people write them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).resolve().parent.parent / "refs.bib"
_ENTRY = re.compile(r"@(\w+)\s*\{\s*([^,\s]+)\s*,(.*?)\n\s*\}\s*(?=@|\Z)", re.DOTALL)
_FIELD = re.compile(r"(\w+)\s*=\s*(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}|\"[^\"]*\"|\w+)")
_ACCENTS = {
    "'": "\u0301",
    "`": "\u0300",
    "^": "\u0302",
    '"': "\u0308",
    "~": "\u0303",
    "=": "\u0304",
    ".": "\u0307",
}
_ACCENTS |= {"c": "\u0327", "v": "\u030c", "u": "\u0306", "H": "\u030b", "k": "\u0328", "r": "\u030a"}
_LETTERS = {
    "o": "ø",
    "O": "Ø",
    "l": "ł",
    "L": "Ł",
    "ss": "ß",
    "ae": "æ",
    "AE": "Æ",
    "aa": "å",
    "AA": "Å",
    "i": "i",
    "j": "j",
}


@dataclass(frozen=True)
class Reference:
    """One source, in words, with a link if it has one."""

    key: str
    text: str
    url: str = ""


def resolve(keys: str) -> list[Reference]:
    """Return the references behind one or more keys.

    Parameters
    ----------
    keys : str
        Keys of ``refs.bib``, separated by commas.

    Returns
    -------
    list of Reference
        A key that the file lacks stands for itself.
    """
    known = bibliography()
    return [known.get(key, Reference(key, key)) for key in (k.strip() for k in keys.split(",")) if key]


@cache
def bibliography(path: Path = _FILE) -> dict[str, Reference]:
    """Return every reference of a BibTeX file by its key."""
    found = {}
    for _, key, body in _ENTRY.findall(path.read_text(encoding="utf-8") + "\n"):
        fields = {name.lower(): _clean(raw) for name, raw in _FIELD.findall(body)}
        found[key] = Reference(key, _sentence(fields), _url(fields))
    return found


def _sentence(fields: dict[str, str]) -> str:
    venue = next(
        (fields[k] for k in ("journal", "booktitle", "publisher", "school", "howpublished") if k in fields),
        "",
    )
    if fields.get("volume") and venue:
        venue += f" {fields['volume']}" + (f"({fields['number']})" if fields.get("number") else "")
    eprint = fields.get("eprint", "")
    if eprint and "arxiv" not in venue.lower():
        venue = ", ".join(filter(None, (venue, f"arXiv:{eprint}")))
    when = ", ".join(filter(None, (venue, fields.get("year", ""))))
    parts = (_people(fields.get("author", "")), fields.get("title", ""), when, fields.get("note", ""))
    return " ".join(part if part.endswith((".", "?", "!")) else f"{part}." for part in parts if part)


def _people(authors: str) -> str:
    names = []
    for author in re.split(r"\s+and\s+", authors):
        family, comma, given = author.partition(",")
        if not comma:
            given, _, family = author.rpartition(" ")
        initials = " ".join(f"{word[0]}." for word in re.split(r"[\s-]+", given.strip()) if word)
        names.append(f"{initials} {family.strip()}".strip())
    if len(names) > 4:
        return f"{names[0]} et al."
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _url(fields: dict[str, str]) -> str:
    if fields.get("doi"):
        return f"https://doi.org/{fields['doi']}"
    if fields.get("eprint"):
        return f"https://arxiv.org/abs/{fields['eprint']}"
    found = re.search(r"arXiv:\s*(\d{4}\.\d{4,5})", " ".join(fields.values()))
    return f"https://arxiv.org/abs/{found[1]}" if found else fields.get("url", "")


def _clean(raw: str) -> str:
    text = raw[1:-1] if raw[:1] in '{"' else raw
    accented = r"\{?\\(['`^\"~=.]|[cvuHkr](?=[\s{]))\s*\{?\\?([a-zA-Z])\}?\}?"
    text = re.sub(accented, lambda m: unicodedata.normalize("NFC", m[2] + _ACCENTS[m[1]]), text)
    text = re.sub(r"\{?\\(ss|ae|AE|aa|AA|o|O|l|L|i|j)(?![a-zA-Z])\}?\s?", lambda m: _LETTERS[m[1]], text)
    text = (
        re.sub(r"\\([&%$#_])", r"\1", text)
        .replace("{", "")
        .replace("}", "")
        .replace("$", "")
        .replace("~", " ")
    )
    return " ".join(text.replace("---", "—").replace("--", "–").split())
