"""Colours and CSS of a page. Figures are drawn in the light colours; in the page each one is a CSS variable."""

from __future__ import annotations

LIGHT = {
    "ink": "#1b1d21",
    "muted": "#5c626d",
    "grid": "#e4e6ea",
    "paper": "#fefefe",
    "mark": "#fbeed0",  # behind what is marked
    "shade": "#d3d6dc",  # what stands back
}
DARK = {
    "ink": "#e4e6ea",
    "muted": "#9ba2ae",
    "grid": "#2c3038",
    "paper": "#14161a",
    "mark": "#3d3420",
    "shade": "#454b56",
}
# (light, dark): apart in hue and in lightness, for the common kinds of colour blindness too.
PALETTE = (
    ("#0b6fb8", "#5aaef2"),  # blue
    ("#cf5210", "#ff9257"),  # vermilion
    ("#0a8a68", "#35c79b"),  # green
    ("#a2459a", "#e090d6"),  # purple
    ("#94720a", "#dcb540"),  # ochre
    ("#44505f", "#b9c3d0"),  # slate
    ("#b8325a", "#ff86a5"),  # crimson
)


def variables(index: int) -> str:
    roles = LIGHT if index == 0 else DARK
    pairs = [*roles.items(), *((f"c{i}", pair[index]) for i, pair in enumerate(PALETTE))]
    return " ".join(f"--{name}: {shade};" for name, shade in pairs)


def css() -> str:
    return f""":root {{ color-scheme: light dark; {variables(0)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(1)} }} }}
{RULES}"""


RULES = """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Palatino, P052, Georgia, serif;
  overflow-wrap: break-word;
}
.page { display: grid; grid-template-columns: 12.5rem minmax(0, 60rem); column-gap: 3.5rem; justify-content: center;
  padding: 0 1.5rem 5rem; }
header, main, footer { grid-column: 2; min-width: 0; }
nav { grid-column: 1; grid-row: 1 / span 4; font: 13px/1.4 var(--sans); }
nav > div { position: sticky; top: 0; padding: 3.4rem 0 1rem; max-height: 100vh; overflow-y: auto; }
nav h2 { font: inherit; font-weight: 600; margin: 0 0 .5rem; color: var(--muted); border: 0; padding: 0; }
nav ol { list-style: none; margin: 0; padding: 0; counter-reset: toc; }
nav li { counter-increment: toc; margin: .3rem 0; padding-left: 1.6rem; text-indent: -1.6rem; }
nav li::before { content: counter(toc); display: inline-block; width: 1.6rem; text-indent: 0; color: var(--muted);
  font-variant-numeric: tabular-nums; }
:root { --sans: system-ui, "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Consolas, "Liberation Mono", monospace; }
a { color: inherit; text-decoration-color: var(--shade); text-underline-offset: .18em; }
nav a { text-decoration: none; } a:hover { text-decoration: underline; text-decoration-color: currentColor; }
h1 { font-size: 1.95rem; line-height: 1.2; letter-spacing: -.01em; margin: 3rem 0 .6rem; font-weight: 600;
  text-wrap: balance; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 3.2rem 0 .7rem; padding-top: .7rem;
  border-top: 1px solid var(--shade); font-weight: 600; scroll-margin-top: .5rem; }
h2 .no { color: var(--muted); font-weight: 400; margin-right: .55em; }
h3 { font-size: 1.03rem; margin: 1.8rem 0 .4rem; font-weight: 600; }
p { margin: .55rem 0; max-width: 44rem; }
.lead { font-size: 1.06rem; }
.missing { color: var(--muted); border-left: 2px solid var(--shade); padding-left: .8rem; }
.verdict { border-left: 3px solid var(--c0); padding-left: .8rem; font-weight: 600; }
code { font: .84em/1.4 var(--mono); overflow-wrap: anywhere; }
pre { font: 12.5px/1.5 var(--mono); background: color-mix(in srgb, var(--grid) 45%, transparent); padding: .7rem .9rem;
  border-radius: 4px; overflow-x: auto; margin: .6rem 0; }
pre code { font: inherit; overflow-wrap: normal; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) minmax(0, 1fr); gap: .2rem 1.1rem; margin: .9rem 0;
  font: 13.5px/1.45 var(--sans); }
dt { color: var(--muted); } dd { margin: 0; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: .9rem 0; max-width: 100%; }
table { border-collapse: collapse; width: max-content; max-width: max(100%, 44rem);
  font: 13px/1.35 var(--sans); font-variant-numeric: tabular-nums lining-nums;
  border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink); }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: baseline; font-weight: 400; }
th:last-child, td:last-child { padding-right: .2rem; }
thead th { color: var(--muted); border-bottom: 1px solid var(--muted); vertical-align: bottom; font-weight: 500;
  max-width: 14rem; }
tbody tr + tr:not(.group) > * { border-top: 1px solid var(--grid); }
tbody th { white-space: nowrap; font-weight: 500; }
.words tbody th { white-space: normal; min-width: 15rem; } .words td { min-width: 6.5rem; }
tr.group th { padding-top: .8rem; color: var(--muted); font-style: italic; font-weight: 400; }
.n { text-align: right; white-space: nowrap; }
.heat { background: color-mix(in srgb, var(--c0) calc(var(--h) * 38%), transparent); padding: .05em .35em;
  margin-right: -.35em; border-radius: 2px; }
.sub { color: var(--muted); font-size: .92em; }
.word { white-space: nowrap; } .bad { color: var(--c6); font-weight: 600; } .warn { color: var(--c4); font-weight: 600; }
.good { color: var(--c2); font-weight: 600; }
.key { display: inline-block; width: .62em; height: .62em; border-radius: 50%; margin-right: .5em; }
figure { margin: 1.6rem 0 2rem; }
.frame { overflow-x: auto; }
svg.kava { display: block; width: 100%; min-width: 600px; max-width: 60rem; height: auto; overflow: visible;
  font-family: var(--sans); }
svg.kava * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font: 13.5px/1.5 var(--sans); color: var(--muted); max-width: 46rem; margin-top: .5rem; }
figcaption b { color: var(--ink); font-weight: 600; }
details { margin: .5rem 0; font: 13px/1.45 var(--sans); }
summary { cursor: pointer; color: var(--muted); width: max-content; max-width: 100%; }
summary:hover { color: var(--ink); }
details p { max-width: 46rem; }
footer { margin-top: 3rem; color: var(--muted); font: 13px/1.45 var(--sans); }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
@media (max-width: 1080px) {
  .page { display: block; max-width: 60rem; margin: auto; }
  nav > div { position: static; padding: .4rem 0 .8rem; max-height: none; }
  nav ol { columns: 15rem; column-gap: 2rem; } nav li { break-inside: avoid; }
}
@media (max-width: 560px) {
  body { font-size: 15px; } .page { padding: 0 1rem 3rem; } h1 { font-size: 1.5rem; margin-top: 1.8rem; }
  h2 { margin-top: 2.4rem; }
}
@media print {
  @page { size: A4; margin: 17mm 16mm; }
  :root { color-scheme: light; }
  body { font-size: 10pt; background: none; } .page { display: block; padding: 0; }
  nav > div { position: static; padding: 0 0 4mm; } nav ol { columns: 2; } h1 { margin-top: 0; font-size: 18pt; }
  h2 { margin-top: 8mm; } h2, h3, h2 + p { break-after: avoid; } p { orphans: 3; widows: 3; }
  figure, tr, .verdict, .missing, dl { break-inside: avoid; } thead { display: table-header-group; }
  .scroll, .frame { overflow: visible; } svg.kava { min-width: 0; width: 100%; }
  table { font-size: 8pt; max-width: 100%; } th, td { padding-right: .5rem; } figcaption, dl, details { font-size: 8.5pt; }
  pre { font-size: 7.5pt; white-space: pre-wrap; overflow-wrap: anywhere; }
  details:not([open]) { display: none; }
  a { text-decoration: none; }
}
"""
