import dataclasses
import re
from html.parser import HTMLParser

import pytest

from compressjax.reporting.content import ReportContent, method_name
from compressjax.reporting.page import render_page

VOID = {"meta", "i/"}


class Checker(HTMLParser):
    """Collects tags, attributes and text, and complains about tags that are not closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f" {data}"


def test_page_is_well_formed_and_needs_nothing_else(content):
    page = render_page(content)
    checked = Checker(page)
    assert page.startswith("<!DOCTYPE html>")
    names = {name for _, attributes in checked.tags for name in attributes}
    assert not names & {"src", "href", "xlink:href", "data", "action", "onclick"}
    assert not {tag for tag, _ in checked.tags} & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?://|url\(|@import|@font-face", page)


def test_page_holds_the_figures(content):
    text = Checker(render_page(content)).text
    for figure in ("26.89", "79.38", "34.21", "3.25", "0.271", "74.3", "1.234", "12.3 s", "2.0 kB", "1.92x smaller"):
        assert figure in text, figure
    assert "some text, 3 windows of 32 tokens" in text and "text & more" in text
    assert "GPTQ(bits=3, group=64)" in text


def test_what_others_wrote_is_text_and_not_markup(content):
    page = render_page(content)
    assert "<script>" not in page and "<b>" not in page and "model <1>" not in page
    assert "Because <script>alert(1)</script>\n& so on." in Checker(page).text


def test_matrices_no_better_than_rounding_are_named(content):
    text = Checker(render_page(content)).text
    assert "2 of 6 are no better than rounding." in text
    assert "blocks/1/attn/q/kernel" in text and "blocks/2/mlp/up/kernel" in text
    assert "fell back to rounding" in text and "no better than rounding" in text


def test_every_matrix_has_a_mark_in_every_chart(content, rows):
    titles = [d for d in re.findall(r"<title>(.*?)</title>", render_page(content)) if d.startswith("blocks/")]
    # Two dots (method and rounding) and two cells.
    assert {row.path: sum(title.startswith(row.path + ":") for title in titles) for row in rows} == {
        row.path: 4 for row in rows
    }


def test_parts_that_were_not_measured_are_left_out(summary):
    page = render_page(ReportContent(summary=summary, components=()))
    text = Checker(page).text
    assert "Perplexity" not in text and "own words" not in text and "by component" not in text
    assert "Error and bits by block" in text


def test_plain_rounding_is_not_compared_with_itself(content, make_row):
    rows = tuple(make_row(f"blocks/{b}/attn/q/kernel", 0.04) for b in range(2))
    plain = dataclasses.replace(content.summary, matrices=rows, method="RTN(bits=3)")
    text = Checker(render_page(dataclasses.replace(content, summary=plain))).text
    assert "no better than rounding" not in text and "better than plain rounding" not in text
    assert "compressed with RTN" in text


@pytest.mark.parametrize("rows", [(), ("rest",)])
def test_models_without_blocks_have_a_page(summary, make_row, rows):
    matrices = tuple(make_row(path, 0.01) for path in rows)
    Checker(render_page(ReportContent(summary=dataclasses.replace(summary, matrices=matrices), components=())))


def test_errors_of_zero_and_infinite_perplexities_are_drawn(content, make_row):
    rows = (make_row("blocks/0/attn/q/kernel", 0.0, 0.0), make_row("blocks/1/attn/q/kernel", 0.0, 0.01))
    qualities = (dataclasses.replace(content.qualities[0], perplexity=float("inf")),)
    changed = dataclasses.replace(
        content, summary=dataclasses.replace(content.summary, matrices=rows), qualities=qualities
    )
    page = render_page(changed)
    Checker(page)
    assert "infinite" in page and "nan" not in page.lower().replace("nanum", "")


def test_method_name():
    assert method_name("several (nested) things") == "several methods"
