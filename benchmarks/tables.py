"""``python -m benchmarks.tables [--check]``: committed results as tables in README.md and docs.

A section between ``<!-- results:NAME -->`` and ``<!-- /results -->`` is written by the function of that name, so no
figure of the documentation is typed by hand.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from benchmarks.provenance import RESULTS, read_result
from compressjax.catalogue import FAMILIES, METHODS, measured

ROOT = Path(__file__).resolve().parents[1]
_SECTION = re.compile(r"(<!-- results:(?P<name>[a-z0-9-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]], align: str) -> str:
    """A table; ``align`` has one letter per column, l or r."""
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(row) + " |" for row in (list(header), rule, *rows))


def number(value: float | None, unit: str = "") -> str:
    """Four significant digits, or a dash."""
    if value is None:
        return "-"
    text = f"{value:.4g}" if abs(value) < 1e5 else f"{value:.2e}"
    return f"{text} {unit}".strip()


def _source(result: dict) -> str:
    machine = result["machine"]
    found = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    cores = "one core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return f"Measured {result['date']} by `{result['command']}` on {cores} of {machine['cpu']} ({found})."


def _missing(command: str) -> str:
    return f"Not measured yet; `{command}` does."


def methods(results: Path) -> str:
    """The catalogue."""
    parts = []
    for family, about in FAMILIES.items():
        rows = []
        for entry in (entry for entry in METHODS if entry.family == family):
            row = measured(entry, results)
            figure = "" if row is None else f"{row['name']}: {number(row['ours'], row['unit'])}"
            name = f"`{entry.slug}`" if entry.state == "planned" else f"**`{entry.slug}`**"
            paper = f"[{entry.paper}]({entry.url})"
            rows.append((name, f"{entry.name}: {entry.about}", paper, entry.verb, entry.state, figure))
        header = ("method", "what it is", "paper", "called by", "state", "measured here")
        parts.append(f"### {family}: {about}\n\n{markdown(header, rows, 'llllll')}")
    done = sum(entry.state == "done" for entry in METHODS)
    built = sum(entry.state == "built" for entry in METHODS)
    counted = (
        f"Of {len(METHODS)} systems {done} are done, that is built with their claim seen to hold, and {built} are "
        "built with their claim still to be run in full or not holding."
    )
    return f"{counted}\n\n" + "\n\n".join(parts)


def claims_gptq(results: Path) -> str:
    """Asserted rows of the GPTQ claim, with its verdict."""
    claim = read_result(results / "claims_gptq.json")
    if claim is None:
        return _missing("python -m benchmarks.claims gptq")
    rows = [
        (
            row["name"],
            number(row["baseline"] * row["limit"], row["unit"]),
            number(row["ours"], row["unit"]),
            number(row["bits"]),
            "yes" if row["holds"] else "**no**",
        )
        for row in claim["rows"]
        if row["kind"] == "asserted"
    ]
    verdict = {True: "The claim holds.", False: "**The claim does not hold.**", None: "The run was not finished."}
    table = markdown(("what is asserted", "must stay under", "measured", "bits per weight", "holds"), rows, "lrrrl")
    return f"{claim['claim']}. {verdict[claim['holds']]}\n\n{table}\n\n{_source(claim)}"


def gptq_order(results: Path) -> str:
    """Relative output error of every option."""
    claim = read_result(results / "claims_gptq.json")
    values: dict[str, dict[str, float]] = {}
    for row in [] if claim is None else claim["rows"]:
        if row["name"].startswith("output error | "):
            _, option, scope = row["name"].split(" | ")
            values.setdefault(option, {})[scope] = row["ours"]
    if claim is None or not values:
        return _missing("python -m benchmarks.claims gptq --part order")
    scopes = list(dict.fromkeys(scope for line in values.values() for scope in line))
    rows = [(option, *(number(line.get(scope)) for scope in scopes)) for option, line in values.items()]
    return markdown(("option", *scopes), rows, "l" + "r" * len(scopes)) + f"\n\n{_source(claim)}"


def wikitext2(results: Path) -> str:
    """Perplexity on the WikiText-2 protocol, with the figures of others."""
    claim = read_result(results / "claims_gptq.json")
    found = (
        [] if claim is None else [row for row in claim["rows"] if row["part"].startswith(("wikitext2", "more-data"))]
    )
    if claim is None or not any(row["ours"] is not None for row in found):
        return _missing("python -m benchmarks.claims gptq --part wikitext2-3")
    notes = list(dict.fromkeys(row["why"] for row in found if row["why"]))
    rows = [
        (
            row["name"].removeprefix("WikiText-2 perplexity, "),
            row["kind"].replace("_", " "),
            f"{number(row['baseline'])} at {number(row['baseline_bits'])}" if row["baseline"] is not None else "-",
            f"{number(row['ours'])} at {number(row['bits'])}" if row["ours"] is not None else "-",
            f"({notes.index(row['why']) + 1})" if row["why"] else "",
        )
        for row in found
    ]
    header = ("row", "kind", "baseline, perplexity at bits", "ours, perplexity at bits", "note")
    legend = "\n".join(f"{place}. {note[0].upper()}{note[1:]}." for place, note in enumerate(notes, 1))
    return markdown(header, rows, "llrrl") + f"\n\n{legend}\n\n{_source(claim)}"


def quantize(results: Path) -> str:
    """Perplexity, seconds and memory by method and bits."""
    result = read_result(results / "quantize.json")
    if result is None:
        return _missing("python -m benchmarks.quantize")
    rows = [
        (
            row["name"],
            number(row["bits_per_weight"]),
            number(row["perplexity"]),
            f"{row['cpu_seconds']:.0f}",
            f"{row['peak_mb']:.0f}",
        )
        for row in result["rows"]
    ]
    speed = result["speed"]
    note = (
        f"Calibration passes run at {speed['ratio']:.2f} of the FLOP/s of a plain jitted forward pass "
        f"({speed['calibration_gflops']:.0f} and {speed['plain_gflops']:.0f} GFLOP/s)."
    )
    table = markdown(("method", "bits per weight", "perplexity", "CPU s", "peak MB"), rows, "lrrrr")
    return f"{result['setting']}.\n\n{table}\n\n{note}\n\n{_source(result)}"


def quality(results: Path) -> str:
    """Every method at about equal true bits, the best of each column in bold."""
    result = read_result(results / "quality.json")
    if result is None:
        return _missing("python -m benchmarks.quality")
    best = {
        column: min(row["perplexity"] for row in result["rows"] if row["column"] == column)
        for column in {row["column"] for row in result["rows"]}
    }
    rows = []
    for row in sorted(result["rows"], key=lambda row: (-row["column"], row["perplexity"])):
        accuracy = [value for name, value in row["tasks"].items() if not name.endswith("probability")]
        perplexity = number(row["perplexity"])
        rows.append(
            (
                row["name"] + ("" if row["within"] else " (over the limit)"),
                number(row["bits_per_weight"]),
                f"**{perplexity}**" if row["perplexity"] == best[row["column"]] else perplexity,
                number(row["kl"]),
                f"{100 * sum(accuracy) / len(accuracy):.1f}",
                f"{row['cpu_seconds']:.0f}",
            )
        )
    header = ("method", "bits per weight", "perplexity", "KL, nats", "5 tasks, %", "CPU s")
    return f"{result['setting']}.\n\n{markdown(header, rows, 'lrrrrr')}\n\n{_source(result)}"


def quality_others(results: Path) -> str:
    """The same methods on a sentence encoder and an image classifier."""
    result = read_result(results / "quality_others.json")
    if result is None:
        return _missing("python -m benchmarks.quality.other_models")
    rows = [
        (
            row["model"],
            row["family"] if row["column"] == 32 else f"{row['family']}, {row['column']} bits",
            number(row["bits_per_weight"]),
            f"{row['distance']:.4f}" if "distance" in row else "",
            f"{100 * row['agreement']:.1f}" if "agreement" in row else "",
        )
        for row in sorted(result["rows"], key=lambda row: (row["model"], -row["column"]))
    ]
    header = ("network", "method", "bits per weight", "1 - cosine", "agreement, %")
    return f"{result['setting']}.\n\n{markdown(header, rows, 'llrrr')}\n\n{_source(result)}"


def allocation(results: Path) -> str:
    """Held-out divergence of every search at equal bits, the least of each row in bold."""
    result = read_result(results / "allocation.json")
    if result is None:
        return _missing("python -m benchmarks.allocation")
    searches = list(dict.fromkeys(name for row in result["rows"] for name in row["choices"]))
    rows = []
    for row in result["rows"]:
        least = min(own["kl"] for own in row["choices"].values())
        cells = []
        for own in (row["choices"][name] for name in searches):
            kl = f"{own['kl']:.4f}"
            cells.append(f"{f'**{kl}**' if own['kl'] == least else kl} ({own['bits']:.2f})")
        rows.append((row["name"], *cells))
    table = markdown(("weights, levels, budget", *searches), rows, "l" + "r" * len(searches))
    return f"{result['setting']}.\n\n{table}\n\n{_source(result)}"


def comm(results: Path) -> str:
    """Held-out loss against compressed bytes per step, uniform levels and L-GreCo."""
    result = read_result(results / "comm.json")
    if result is None:
        return _missing("python -m benchmarks.comm")
    rows = [
        (row["family"], row["kind"], f"{row['loss']:.4f}", number(row["bytes"] / 1e3)) for row in result["training"]
    ]
    table = markdown(("family", "levels", "held-out nats a byte", "kB per step"), rows, "llrr")
    return f"{result['setting']}.\n\n{table}\n\n{_source(result)}"


def comm_links(results: Path) -> str:
    """Milliseconds of a step over slowed cables, with the bytes counted on them."""
    result = read_result(results / "comm_links.json")
    if result is None:
        return _missing("python -m benchmarks.comm.links")
    speeds = list(dict.fromkeys(row["megabits"] for row in result["rows"]))
    found = {(row["method"], row["megabits"]): row for row in result["rows"]}
    rows = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        own = [found[method, speed] for speed in speeds]
        counted = max(row["counted"] for row in own)
        cells = (number(counted / 1e3), number(own[0]["compiled"] / 1e3), *(number(row["milliseconds"]) for row in own))
        rows.append((method, *cells))
    header = ("method", "kB counted", "kB by the program", *(f"ms at {speed} Mbit/s" for speed in speeds))
    table = markdown(header, rows, "l" + "r" * (len(header) - 1))
    return f"{result['setting']}.\n\n{table}\n\n{_source(result)}"


def trace(results: Path) -> str:
    """How trace and compile time of compressed models relate to those of dense ones."""
    result = read_result(results / "trace.json")
    if result is None:
        return _missing("python -m benchmarks.trace")
    rows = [(name, f"{value:.2f}") for name, value in result["ratios"].items()]
    return f"{result['setting']}.\n\n{markdown(('ratio', 'value'), rows, 'lr')}\n\n{_source(result)}"


SECTIONS: Mapping[str, Callable[[Path], str]] = MappingProxyType(
    {
        "methods": methods,
        "claims-gptq": claims_gptq,
        "gptq-order": gptq_order,
        "wikitext2": wikitext2,
        "quality": quality,
        "quality-others": quality_others,
        "quantize": quantize,
        "allocation": allocation,
        "comm": comm,
        "comm-links": comm_links,
        "trace": trace,
    }
)
"""What can stand between markers."""


def render(text: str, results: Path) -> str:
    """``text`` with every marked section written anew.

    Raises:
      ValueError: a marker of an unknown name, or one that is never closed.
    """

    def fill(match: re.Match[str]) -> str:
        if match["name"] not in SECTIONS:
            raise ValueError(f"no results called {match['name']!r}; there are {', '.join(SECTIONS)}")
        return f"{match[1]}{SECTIONS[match['name']](results)}\n{match[3]}"

    opened, closed = text.count("<!-- results:"), len(_SECTION.findall(text))
    if opened != closed:
        raise ValueError(f"{opened} sections are opened by a marker and {closed} are closed")
    return _SECTION.sub(fill, text)


def documents(root: Path = ROOT) -> list[Path]:
    """README.md and the pages of docs."""
    return [path for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if path.is_file()]


def main(arguments: list[str] | None = None) -> int:
    """Writes the sections; with ``--check`` only says which are out of date, and ends with 1 if any is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description="Results into the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing, end with 1 if something would change")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    args = parser.parse_args(arguments)
    stale = []
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = render(before, args.results)
        if after != before:
            stale.append(path)
            if not args.check:
                path.write_text(after, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is out of date' if args.check else 'written'}")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
