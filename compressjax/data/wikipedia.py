"""The default text: 89 English Wikipedia articles of 2016 that the wheel of gensim carries (CC BY-SA 3.0).

gensim is never imported, only its test data is read, so installing it without its dependencies is enough. The articles
are the long ones, in order, from "Anarchism" to "Algorithm": 0 to 59 for calibration, 60 to 88 for evaluation.
"""

import bz2
import functools
import hashlib
import html
import re
from importlib.util import find_spec
from pathlib import Path

CALIBRATION_ARTICLES = 60
"""Articles before this one are for calibration, the others for evaluation."""

_REQUIREMENT = "gensim==4.4.0"
_FILE = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
_LONGER_THAN = 2000  # characters; shorter articles are stubs and lists

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_EMPTY_REF = re.compile(r"<ref[^<>]*/>", re.IGNORECASE)
_ELEMENT = re.compile(r"<(ref|math|gallery)\b[^<>]*>.*?</\1>", re.DOTALL | re.IGNORECASE)
# Not any "<...>": one "<10 ppm" in prose would swallow all up to the next ">".
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
_MEDIA_LINK = re.compile(r"\[\[(?:File|Image|Category):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]")
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_LABELLED_URL = re.compile(r"\[https?://\S+ ([^\]]*)\]")
_BARE_URL = re.compile(r"\[https?://[^\]]*\]")
_QUOTES = re.compile(r"'{2,}")
_TAIL = re.compile(
    r"\n==+\s*(?:See also|References|External links|Notes|Further reading|Bibliography)\s*==+.*", re.DOTALL
)
_NOT_PROSE = tuple("*#|!:;{}")


def clean_wikitext(wikitext: str) -> str:
    """Prose of an article: markup, templates, tables, lists and references dropped, headings kept.

    Args:
      wikitext: source of one page, XML entities resolved.

    Returns:
      One paragraph or heading a line, without blank lines; up to the first section of references or links.

    Example:
      >>> clean_wikitext("An '''ant''' is an [[insect]].<ref>x</ref>\\n* a\\n\\n== Life ==\\nLong.\\n== Notes ==")
      'An ant is an insect.\\n== Life ==\\nLong.'
    """
    text = _COMMENT.sub("", wikitext)
    text = _ELEMENT.sub("", _EMPTY_REF.sub("", text))
    text = _TAG.sub("", text)
    for nested in (_TEMPLATE, _TABLE, _MEDIA_LINK):
        text = _remove_nested(nested, text)
    text = _LINK.sub(r"\1", text)
    text = _BARE_URL.sub("", _LABELLED_URL.sub(r"\1", text))
    text = _TAIL.sub("", _QUOTES.sub("", text))
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line and not line.startswith(_NOT_PROSE))


def articles_of_dump(xml: str) -> tuple[str, ...]:
    """Clean articles of a MediaWiki XML export, in its order; redirects and short articles are left out.

    Args:
      xml: the export.

    Raises:
      ValueError: no page in it.
    """
    pages = xml.split("<page>")[1:]
    if not pages:
        raise ValueError("the text is not a MediaWiki export: it has no <page>")
    found = (re.search(r"<text[^>]*>(.*?)</text>", page, re.DOTALL) for page in pages if "<redirect" not in page)
    clean = (clean_wikitext(html.unescape(match[1])) for match in found if match)
    return tuple(article for article in clean if len(article) > _LONGER_THAN)


def wikipedia_file() -> Path:
    """The compressed export inside the installed package.

    Raises:
      FileNotFoundError: the package, or the file in it, is missing; the message gives the command that installs it.
    """
    spec = find_spec("gensim")
    command = f"pip install --no-deps {_REQUIREMENT}"
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the Wikipedia text needs the package gensim, which is not installed; run: {command}")
    path = Path(spec.submodule_search_locations[0]) / _FILE
    if not path.is_file():
        raise FileNotFoundError(f"the installed gensim lacks {_FILE}; run: {command}")
    return path


@functools.lru_cache(maxsize=1)
def wikipedia_articles() -> tuple[str, ...]:
    """The 89 articles, cleaned; takes a second or two, and later calls no time.

    Raises:
      FileNotFoundError: as `wikipedia_file`.
      ValueError: the file is not the one every figure was measured on.
    """
    path = wikipedia_file()
    packed = path.read_bytes()
    if (digest := hashlib.sha256(packed).hexdigest()) != _SHA256:
        raise ValueError(
            f"{path} is damaged or of another version: sha256 {digest}, expected {_SHA256}; "
            f"run: pip install --no-deps --force-reinstall {_REQUIREMENT}"
        )
    return articles_of_dump(bz2.decompress(packed).decode("utf-8"))


def wikipedia_text() -> str:
    """All articles, a blank line between; errors as `wikipedia_articles`."""
    return "\n\n".join(wikipedia_articles())


def calibration_text() -> str:
    """Articles 0 to 59, a blank line between; errors as `wikipedia_articles`."""
    return "\n\n".join(wikipedia_articles()[:CALIBRATION_ARTICLES])


def evaluation_text() -> str:
    """Articles 60 to 88, a blank line between; errors as `wikipedia_articles`."""
    return "\n\n".join(wikipedia_articles()[CALIBRATION_ARTICLES:])


def _remove_nested(pattern: re.Pattern[str], text: str) -> str:
    """Removes matches until none is left: each pass takes the innermost."""
    count = 1
    while count:
        text, count = pattern.subn("", text)
    return text
