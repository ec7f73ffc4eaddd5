"""Style sheet of the report: light and dark, wide and narrow."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2330; --soft: #5b6575; --line: #e1e5eb; --track: #edf0f4;
  --method: #0f766e; --method-soft: #5fb3aa; --plain: #d9822b; --bad: #c2352b; --good: #15803d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10141b; --card: #181e27; --ink: #e6eaf0; --soft: #98a3b3; --line: #2a323e; --track: #232b36;
    --method: #3fc1b0; --method-soft: #2b7f76; --plain: #f0a04b; --bad: #ff7b6e; --good: #5fd08a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-size: 16px; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 64px; }
header p { margin: 0; color: var(--soft); }
.eyebrow { font-size: 13px; letter-spacing: .08em; text-transform: uppercase; color: var(--method); font-weight: 600; }
h1 { font-size: 34px; line-height: 1.15; margin: 4px 0 8px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 4px; letter-spacing: -.005em; }
h3 { font-size: 15px; margin: 20px 0 6px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 22px 24px;
  margin-top: 18px; min-width: 0; }
section > p { margin: 0 0 14px; color: var(--soft); max-width: 96ch; }
section > :last-child { margin-bottom: 0; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .88em;
  overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(172px, 1fr)); gap: 14px; margin-top: 24px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 16px 18px; }
.card .label { color: var(--soft); font-size: 13px; }
.card .value { font-size: 30px; font-weight: 650; line-height: 1.2; letter-spacing: -.02em; white-space: nowrap; }
.card .value small { font-size: 15px; font-weight: 500; color: var(--soft); letter-spacing: 0; }
.card .note { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 15px; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 8px 14px 8px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th.n, td.n { text-align: right; }
th:last-child, td:last-child { padding-right: 0; }
tr.self td { font-weight: 600; }
td.bad { color: var(--bad); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); margin: 6px 0 10px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; }
.i-method { background: var(--method); } .i-plain { background: var(--plain); } .i-bad { background: var(--bad); }
.i-before { background: var(--soft); opacity: .45; }
svg { display: block; width: 100%; height: auto; min-width: 760px; }
svg text { font-size: 11.5px; fill: var(--soft); font-family: inherit; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
svg .method { stroke: var(--method); } svg .plain { stroke: var(--plain); }
svg .dot-method { fill: var(--method); opacity: .45; } svg .dot-plain { fill: var(--plain); opacity: .4; }
svg .bar { fill: var(--method); } svg .cell { fill: var(--method); } svg .gain { fill: var(--plain); }
svg .bad { fill: var(--bad); } svg .empty { fill: var(--track); }
svg rect:hover, svg circle:hover { stroke: var(--ink); stroke-width: 1.2; }
.part { display: grid; grid-template-columns: 150px 1fr 160px; gap: 4px 16px; align-items: center; font-size: 14px;
  margin-top: 12px; }
.part .pair { display: grid; gap: 4px; }
.part .track { background: var(--track); border-radius: 5px; height: 11px; overflow: hidden; }
.part .track span { display: block; height: 100%; border-radius: 5px; min-width: 2px; }
.part .sizes { text-align: right; font-variant-numeric: tabular-nums; }
.part .sizes span { color: var(--soft); }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 14px; }
.sample { border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.sample h3 { margin: 0 0 6px; font-size: 14px; }
.sample p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14.5px; }
blockquote { margin: 0 0 14px; padding: 2px 0 2px 14px; border-left: 3px solid var(--method); font-style: italic; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 0; font-size: 14.5px; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.verdict { font-weight: 600; margin: 0 0 14px; color: var(--good); } .verdict.warn { color: var(--bad); }
footer { color: var(--soft); font-size: 13px; margin-top: 22px; }
@media (max-width: 560px) {
  main { padding: 24px 12px 40px; } h1 { font-size: 27px; } section { padding: 18px 16px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 10px; } .card { padding: 12px 14px; } .card .value { font-size: 25px; }
  .part { grid-template-columns: 1fr max-content; } .part .pair { grid-column: 1 / -1; grid-row: 2; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 10px; }
}
"""
