"""The Wikipedia slice: pinned counts, and the cleaning of each kind of markup."""

import importlib.util

import pytest

from compressjax.data import wikipedia
from compressjax.data.wikipedia import (
    articles_of_dump,
    calibration_text,
    clean_wikitext,
    evaluation_text,
    wikipedia_articles,
    wikipedia_text,
)

PINNED_CHARACTERS = 2_574_114

needs_gensim = pytest.mark.skipif(
    importlib.util.find_spec("gensim") is None, reason="gensim is not installed: pip install --no-deps gensim==4.4.0"
)


@needs_gensim
def test_articles_are_pinned():
    articles = wikipedia_articles()
    assert (len(articles), sum(map(len, articles))) == (89, PINNED_CHARACTERS)
    assert articles[0].startswith("Anarchism is a political philosophy that advocates self-governed societies")
    assert min(map(len, articles)) > 2000


@needs_gensim
def test_no_markup_is_left():
    text = wikipedia_text()
    assert not any(mark in text for mark in ("}}", "{|", "|}", "'''", "<ref", "</", "[http", "\n== See also"))


@needs_gensim
def test_calibration_and_evaluation_share_no_article():
    articles = wikipedia_articles()
    assert calibration_text() == "\n\n".join(articles[:60])
    assert evaluation_text() == "\n\n".join(articles[60:])
    assert calibration_text() + "\n\n" + evaluation_text() == wikipedia_text()
    assert evaluation_text().startswith("An adventure is an exciting or unusual experience.")


@pytest.mark.parametrize(
    ("wikitext", "clean"),
    [
        ("a<!-- x\ny -->b", "ab"),
        ("a<ref name=x/>b<ref>c</ref>d<REF n='1'>e\nf</REF>g", "abdg"),
        ("a<math>x^2</math> b<gallery>\nF\n</gallery>", "a b"),
        ("H<sub>2</sub>O<br />!", "H2O!"),
        ("levels <10 ppm and\nmore > less", "levels <10 ppm and\nmore > less"),
        ("a{{b|{{c}}|{{d|{{e}}}}}}f", "af"),
        ("a\n{|\n|-\n| x {| y |} z\n|}\nb", "a\nb"),
        ("[[File:x.jpg|thumb|A [[cat|black cat]] sits]]After", "After"),
        ("[[Category:Cats]]x [[Image:y.png]]", "x"),
        ("[[cat]] and [[Felis catus|a cat]] and [[a (b)|]]", "cat and a cat and"),
        ("see [http://a.b/c the site] or [https://d.e]", "see the site or"),
        ("'''bold''' ''thin'' '''''both''''' don't", "bold thin both don't"),
        ("a\n* b\n# c\n| d\n! e\n: f\n; g\n{ h\n} i\nj", "a\nj"),
        ("a\n\n\n  b  \n", "a\nb"),
        ("a\n== Life ==\nb\n==See also==\nc", "a\n== Life ==\nb"),
        ("a\n=== Notes ===\nb", "a"),
        ("a\n==Notes on Latin==\nb", "a\n==Notes on Latin==\nb"),
        ("", ""),
    ],
)
def test_markup_is_cleaned(wikitext, clean):
    assert clean_wikitext(wikitext) == clean


def page(text: str, redirect: bool = False) -> str:
    mark = '<redirect title="x" />' if redirect else ""
    return f'<page>{mark}<text xml:space="preserve">{text}</text></page>'


def test_redirects_and_short_articles_are_left_out():
    long, short = "x" * 2001, "x" * 2000
    xml = "<mediawiki>" + page(short) + page(long) + page(long, redirect=True) + page("A &amp;lt; B " + long)
    assert articles_of_dump(xml) == (long, "A &lt; B " + long)


def test_a_text_that_is_no_export_is_refused():
    with pytest.raises(ValueError, match="no <page>"):
        articles_of_dump("<html></html>")


def test_a_missing_package_gives_the_command(monkeypatch):
    monkeypatch.setattr(wikipedia, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps gensim==4\.4\.0"):
        wikipedia.wikipedia_file()


def test_another_file_is_refused(monkeypatch, tmp_path):
    wrong = tmp_path / "slice.bz2"
    wrong.write_bytes(b"not the slice")
    monkeypatch.setattr(wikipedia, "wikipedia_file", lambda: wrong)
    with pytest.raises(ValueError, match="damaged or of another version"):
        wikipedia_articles.__wrapped__()
