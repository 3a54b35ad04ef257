"""HTML without anything from outside: one document, its style, tables. Every text that comes in is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1f2328; --quiet: #57606a; --line: #d0d7de; --soft: #f3f5f8;
  --own: #2864c7; --other: #77818c; --band: #9dbdf0; --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1419; --text: #e6e9ed; --quiet: #9ba6b2; --line: #343c46;
  --soft: #1a2129; --own: #5f9df7; --other: #8b96a3; --band: #2f5591; --good: #4ac26b; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .8rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; } .quiet, figcaption { color: var(--quiet); font-size: .875rem; }
.verdict { max-width: none; margin: .5rem 0; padding: .7rem 1rem; background: var(--soft); border-left: .25rem solid var(--other);
  border-radius: .25rem; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.good strong { color: var(--good); } .bad strong, .fault { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.figures div { background: var(--soft); border-radius: .4rem; padding: .6rem .8rem; }
.figures dt, .figures dd + dd { color: var(--quiet); font-size: .8125rem; }
.figures div:only-child { max-width: 15rem; } .figures dd { margin: 0; } .figures dt + dd { font-size: 1.35rem; font-weight: 600; line-height: 1.3; }
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9375rem; }
.wide table { min-width: 100%; }
.wide th, .wide td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-weight: normal; }
.wide thead th { color: var(--quiet); font-size: .8125rem; }
.wide th:first-child, .wide td:first-child { text-align: left; padding-left: 0; }
.wide.texts td { text-align: left; white-space: normal; }
figure { margin: .75rem 0 1.25rem; } figcaption { margin-bottom: .3rem; } figure ul { list-style: none; margin: 0; padding: 0; }
figure li { display: grid; grid-template-columns: 14rem 1fr 11rem; gap: 0 .75rem; align-items: center; font-size: .9375rem;
  margin: .1rem 0; line-height: 1.4; }
figure li b { order: 3; text-align: right; font-weight: normal; font-variant-numeric: tabular-nums; }
figure li .track { order: 2; grid-column: 2; } figure li span { overflow-wrap: anywhere; }
.track { position: relative; height: 1.4rem; } .track i { position: absolute; }
.bar { top: .2rem; bottom: .2rem; min-width: 2px; background: var(--own); border-radius: 0 2px 2px 0; }
.bar.other { background: var(--other); }
.band { top: .35rem; bottom: .35rem; min-width: 2px; background: var(--band); border-radius: 2px; }
.dot { width: .7rem; height: .7rem; top: .35rem; margin-left: -.35rem; border-radius: 50%; background: var(--own); }
.mark { top: 0; bottom: 0; width: 2px; margin-left: -1px; background: var(--quiet); }
.axis { position: absolute; inset: 0; border-top: 1px solid var(--line); color: var(--quiet); font-size: .75rem; }
.axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.spreads { padding-right: 1.5rem; } .spreads p { margin: .5rem 0 .1rem; max-width: none; }
.spread { display: block; width: 100%; height: 3rem; } .spread path { fill: var(--own); }
.spread.other path { fill: var(--other); }
.spread .line { stroke: var(--text); stroke-width: 2px; vector-effect: non-scaling-stroke; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--own); }
pre { background: var(--soft); padding: .7rem 1rem; border-radius: .4rem; overflow-x: auto; font-size: .875rem; }
code { font-family: ui-monospace, monospace; }
@media (max-width: 40rem) { h2 { margin-top: 2rem; }
  figure li { grid-template-columns: 1fr auto; margin-bottom: .4rem; } figure li b { order: 1; grid-column: 2; }
  figure li .track { grid-column: 1 / 3; } }
@media print { body { max-width: none; } .wide, pre { overflow: visible; } }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A whole page; `title` is escaped here, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls inside its own box; the first column names the row."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return f'<div class="wide {kind}" tabindex="0"><table>{top}<tbody>{body}</tbody></table></div>'


def figures(rows: Iterable[tuple[str, str, str]]) -> str:
    """Key figures side by side: (what, figure, what it stands beside)."""
    return '<dl class="figures">{}</dl>'.format(
        "".join(
            f"<div><dt>{escape(what)}</dt><dd>{escape(figure)}</dd><dd>{escape(beside)}</dd></div>"
            for what, figure, beside in rows
        )
    )


def section(title: str, *parts: str) -> str:
    """A titled part of a model; nothing when there is nothing in it."""
    body = "\n".join(part for part in parts if part)
    return f"<h3>{escape(title)}</h3>\n{body}" if body else ""


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{_prose(text)}</p>' if text else ""


def verdict(state: str, word: str, text: str, about: str = "") -> str:
    """The sentence on top, `word: text`; without a word, the text alone.

    state: "good", "bad" or "" when nothing was to be judged
    about: the model, when there are several
    """
    small = f'<span class="quiet">{escape(about)}</span><br>' if about else ""
    strong = f"<strong>{escape(word)}:</strong> " if word else ""
    return f'<p class="verdict {state}">{small}{strong}{_prose(text)}</p>'


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def commands(lines: Iterable[str]) -> str:
    return f'<pre tabindex="0"><code>{escape(chr(10).join(lines))}</code></pre>'


def _prose(text: str) -> str:
    """A percent sign stays with its number."""
    return escape(text).replace(" %", "&nbsp;%")
