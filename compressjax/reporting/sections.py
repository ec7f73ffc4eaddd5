"""Sections of the report. Each takes the content and returns its HTML, or nothing when there is nothing to show."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from rich.filesize import decimal

from compressjax.reporting.by_block import lay_out
from compressjax.reporting.charts import bits_chart, error_chart, faintest, heat_map
from compressjax.reporting.content import ReportContent, method_name
from compressjax.reporting.verdicts import disappointing, is_plain, mean_errors, worst

_WORST = 10


def cards(content: ReportContent) -> str:
    """The headline figures."""
    summary, shown = content.summary, []
    if content.qualities:
        own, others = content.qualities[-1], content.qualities[:-1]
        note = "; ".join(f"{_short(other.name)} {figure(other.perplexity)}" for other in others)
        shown.append(("Perplexity", figure(own.perplexity), note or "lower is better"))
    shown.append(("Bits per weight", f"{summary.bits_per_weight:.2f}", "scales and zeros included"))
    ratio = summary.dense_bytes_16bit / max(summary.bytes, 1)
    number, unit = decimal(summary.bytes).split(" ")
    before = f"{decimal(summary.dense_bytes_16bit)} at 16 bits, {ratio:.2f}x smaller"
    shown.append(("Whole model", f"{number} <small>{unit}</small>", before))
    if content.qualities and content.qualities[-1].kl is not None:
        own = content.qualities[-1]
        shown.append(
            ("Same top token", f"{100 * (own.agreement or 0):.1f} <small>%</small>", f"KL {own.kl:.3f} nats per token")
        )
    errors = mean_errors(summary.matrices)
    if errors is not None and errors[1] > 0 and not all(map(is_plain, summary.matrices)):
        better = len(summary.matrices) - len(summary.not_better)
        share = f"{100 * errors[0] / errors[1]:.0f} <small>%</small>"
        shown.append(("Error, of rounding's", share, f"{better} of {len(summary.matrices)} matrices better"))
    inside = "".join(
        f'<div class="card"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for label, value, note in shown
    )
    return f'<div class="cards">{inside}</div>'


def quality(content: ReportContent) -> str:
    """Every model on the evaluation text."""
    if not content.qualities:
        return ""
    bits = dict(content.bits)
    columns = ("Perplexity", "Bits per weight", "Bits per byte", "KL (nats)", "Same top token")
    rows = []
    for place, model in enumerate(content.qualities):
        own = ' class="self"' if place == len(content.qualities) - 1 else ""
        values = (
            figure(model.perplexity),
            f"{bits[model.name]:.2f}" if model.name in bits else "-",
            _or_dash(model.bits_per_byte, "{:.3f}"),
            _or_dash(model.kl, "{:.3f}"),
            _or_dash(None if model.agreement is None else 100 * model.agreement, "{:.1f} %"),
        )
        rows.append(f"<tr{own}><td>{escape(model.name)}</td>{''.join(map(_cell, values))}</tr>")
    text = f"Measured on {content.evaluation}. KL is the distance of the predictions from the original's."
    return _section("Quality", text, _table(("Model", *columns), rows))


def errors_by_block(content: ReportContent) -> str:
    """Error and bits by block."""
    grid = lay_out(content.summary.matrices)
    if not grid.cells:
        return ""
    compare = not all(map(is_plain, content.summary.matrices))
    name = method_name(content.summary.method)
    legend = [("method", name), *([("plain", "Round to nearest, same bits and groups")] if compare else [])]
    text = "Squared output error on the calibration text relative to the output. A dot is a matrix, the line the mean."
    body = (
        _legend(legend)
        + error_chart(grid, method=name, compare=compare)
        + "<h3>True bits per weight</h3>"
        + bits_chart(grid)
    )
    return _section("Error and bits by block", text, body)


def sensitivity(content: ReportContent) -> str:
    """Heat maps: where the error is, and where the method gained least."""
    grid = lay_out(content.summary.matrices)
    values = [row.error for row in grid.cells.values() if row.error > 0]
    if not values:
        return ""
    first = heat_map(grid, lambda row: row.error, kind="cell", label="relative error", logarithmic=True)
    spread = f"from {faintest(values):.2g} or less (faint) to {max(values):.2g} (strong), logarithmic"
    body = f"<h3>Relative output error</h3>{_legend([('method', spread)])}{first}"
    if not all(map(is_plain, content.summary.matrices)):
        share = heat_map(
            grid,
            lambda row: row.error / row.rounding_error if row.rounding_error > 0 else 0.0,
            kind="gain",
            label="share of rounding's error",
            logarithmic=False,
        )
        legend = [("plain", "from 0 (faint) to 1 (strong)"), ("bad", "over 1: worse than rounding")]
        body += f"<h3>Share of plain rounding's error that is left</h3>{_legend(legend)}{share}"
    return _section("Sensitivity", "Which matrices suffer: candidates for more bits are the strong cells.", body)


def sizes(content: ReportContent) -> str:
    """Size by component, before and after."""
    if not content.components:
        return ""
    largest = max(max(part.dense_bits, part.bits) for part in content.components) or 1
    bars = []
    for part in content.components:
        tracks = "".join(
            f'<div class="track"><span class="{kind}" style="width:{100 * bits / largest:.2f}%"></span></div>'
            for kind, bits in (("i-before", part.dense_bits), ("i-method", part.bits))
        )
        sizes = f"{decimal(part.dense_bits // 8)} <span>to</span> {decimal(part.bits // 8)}"
        bars.append(
            f'<div class="part"><div>{escape(part.name)}</div><div class="pair">{tracks}</div>'
            f'<div class="sizes">{sizes}</div></div>'
        )
    legend = _legend([("before", "at 16 bits per weight"), ("method", "as stored")])
    return _section("Size by component", None, legend + "".join(bars))


def samples(content: ReportContent) -> str:
    """What the models wrote."""
    if not content.samples:
        return ""
    prompt = f"<blockquote>{escape(content.prompt)}</blockquote>" if content.prompt else ""
    inside = "".join(
        f'<div class="sample"><h3>{escape(sample.name)}</h3><p>{escape(sample.text) or "(nothing)"}</p></div>'
        for sample in content.samples
    )
    text = "The most likely token at every step, from the same prompt."
    return _section("In their own words", text, f'{prompt}<div class="samples">{inside}</div>')


def matrices(content: ReportContent) -> str:
    """Matrices that are no better than rounding, by name, and those with the largest errors."""
    summary = content.summary
    if not summary.matrices:
        return ""
    named = disappointing(summary)
    if all(map(is_plain, summary.matrices)):
        verdict = ""
    elif named:
        verdict = f'<p class="verdict warn">{len(named)} of {len(summary.matrices)} are no better than rounding.</p>'
    else:
        verdict = '<p class="verdict">Every matrix is better than plain rounding.</p>'
    rest = [row for row in worst(summary.matrices, _WORST) if row not in named]
    rows = [_matrix_row(row, row in named) for row in (*named, *rest)]
    columns = ("Matrix", "Bits", "Relative error", "Round to nearest", "Damping", "Dead inputs", "Note")
    return _section("Matrices to look at", None, verdict + _table(columns, rows, left=("Matrix", "Note")))


def settings(content: ReportContent) -> str:
    """How the model was made."""
    summary = content.summary
    notes = [(_words(key), value) for key, value in summary.note.items() if value is not None]
    if "calibration" in summary.note and summary.note["calibration"] is None:
        notes.append(("Calibration", "none needed"))
    items = [("Method", _code(summary.method)), *((key, escape(str(value))) for key, value in notes)]
    items.append(("Time", f"{summary.seconds:.1f} s"))
    inside = "".join(f"<dt>{escape(key)}</dt><dd>{value}</dd>" for key, value in items)
    return _section("How it was made", None, f"<dl>{inside}</dl>")


SECTIONS: Sequence[Callable[[ReportContent], str]] = (
    quality,
    errors_by_block,
    sensitivity,
    sizes,
    samples,
    matrices,
    settings,
)
"""In the order of the page."""


def figure(value: float) -> str:
    """A perplexity with the digits that mean something."""
    if not math.isfinite(value):
        return "infinite"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def _matrix_row(row: Any, flagged: bool) -> str:
    values = (f"{row.bits:.2f}", f"{row.error:.5f}", f"{row.rounding_error:.5f}", f"{row.damp:g}", str(row.dead))
    note = "fell back to rounding" if row.fallback else "no better than rounding" if flagged else ""
    mark = ' class="bad"' if flagged else ""
    return f"<tr><td{mark}><code>{escape(row.path)}</code></td>{''.join(map(_cell, values))}<td{mark}>{note}</td></tr>"


def _section(title: str, text: str | None, body: str) -> str:
    lead = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{title}</h2>{lead}{body}</section>\n"


def _table(columns: Sequence[str], rows: Sequence[str], left: Sequence[str] = ("Model",)) -> str:
    heads = "".join(f"<th{_align(name not in left)}>{escape(name)}</th>" for name in columns)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _align(right: bool) -> str:
    return ' class="n"' if right else ""


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    inside = "".join(f'<span><i class="i-{kind}"></i>{escape(text)}</span>' for kind, text in entries)
    return f'<div class="legend">{inside}</div>'


def _cell(value: str) -> str:
    return f'<td class="n">{escape(value)}</td>'


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _short(name: str) -> str:
    """ "smollm2, original" -> "original", "Rounded to nearest, 3 bits" -> "rounded to nearest"; others as they are."""
    first, _, last = name.partition(", ")
    return last if last == "original" else first.lower() if last else name


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()
