"""The report as one HTML page that needs nothing else: style and charts inline, no script, no request."""

from html import escape

from compressjax._version import __version__
from compressjax.reporting.content import ReportContent, method_name
from compressjax.reporting.sections import SECTIONS, cards
from compressjax.reporting.style import CSS


def render_page(content: ReportContent) -> str:
    """The whole page.

    Args:
      content: what to show; parts that were not measured are left out.

    Returns:
      HTML, to be written as UTF-8.
    """
    summary = content.summary
    title = f"{summary.model}, compressed with {method_name(summary.method)}"
    body = "".join(section for make in SECTIONS if (section := make(content)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">Compression report</p>
<h1>{escape(title)}</h1>
<p>{summary.parameters / 1e6:.1f} million parameters, {summary.compressed_parameters / 1e6:.1f} million of them in
{len(summary.matrices)} compressed matrices</p>
</header>
{cards(content)}
{body}
<footer>Made by compressjax {escape(__version__)}. Point at a mark in a chart for its figure.</footer>
</main>
</body>
</html>
"""
