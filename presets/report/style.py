"""How the page looks: light or dark as the reader's machine is, on a phone, on a desk and on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1c1f; --faint: #63666d; --paper: #fbfbfa; --card: #ffffff; --line: #dcdde0;
  --accent: #0b6fb8; --high: #c2410c; --low: #0b6fb8; --best: #15803d; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --faint: #9a9da5; --paper: #141518; --card: #1c1e22; --line: #34373d;
    --accent: #6cb6f0; --high: #fb923c; --low: #6cb6f0; --best: #4ade80; --bad: #f97066; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 62rem; padding: 1.25rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.4rem 0 .5rem; overflow-wrap: anywhere; }
p, li, dd, td, figcaption { overflow-wrap: anywhere; }
.faint, figcaption, .about { color: var(--faint); }
.faint, figcaption { font-size: .875rem; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--card);
  border: 1px solid var(--line); border-radius: 4px; padding: 0 .3em; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .75rem; font: .8rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .75rem 0; }
dt { color: var(--faint); } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; }
th, td:first-child { overflow-wrap: break-word; }
.wide th, .wide td { overflow-wrap: normal; white-space: nowrap; font-variant-numeric: tabular-nums; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); gap: .75rem; }
figure { margin: 0; } figure img, figure video { display: block; width: 100%; height: auto; border-radius: 4px;
  background: var(--line); }
figure.best figcaption { color: var(--best); font-weight: 600; }
.error, .warning { border-left: 3px solid var(--bad); } .advice { border-left: 3px solid var(--line); }
.finding { padding: .1rem 0 .1rem .75rem; margin: .75rem 0; } .finding p { margin: 0; }
.badge { display: inline-block; border: 1px solid var(--line); border-radius: 99px; padding: 0 .6em;
  font-size: .875rem; }
.done { color: var(--best); border-color: var(--best); } .failed { color: var(--bad); border-color: var(--bad); }
svg { display: block; width: 100%; height: auto; margin: .5rem 0; }
svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
svg .grid { stroke: var(--line); } svg .mark { stroke: var(--best); stroke-dasharray: 4 3; }
svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .curve.high_noise { stroke: var(--high); } svg .curve.low_noise { stroke: var(--low); }
svg .range.high_noise, svg rect.high_noise { fill: var(--high); }
svg .range.low_noise, svg rect.low_noise { fill: var(--low); }
a { color: var(--accent); }
@media (max-width: 34rem) {
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  .strip { grid-template-columns: repeat(2, 1fr); } ol { padding-left: 1.4rem; }
  svg text { font-size: 22px; }
  .settings thead { display: none; } .settings tr, .settings td { display: block; }
  .settings tr { border-bottom: 1px solid var(--line); padding: .35rem 0; }
  .settings td { border: 0; padding: 0; } .settings td:first-child { color: var(--faint); }
}
@media print {
  :root { --ink: #000; --faint: #444; --paper: #fff; --card: #fff; --line: #bbb; --accent: #000;
    --high: #c2410c; --low: #0b6fb8; --best: #15803d; --bad: #b42318; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } h2, h3 { break-after: avoid; }
  figure, svg, tr, .finding { break-inside: avoid; }
  .wide { overflow: visible; } .wide table { font-size: 7.5pt; }
  .wide th, .wide td { white-space: normal; padding-right: .3rem; }
}
""".strip()
