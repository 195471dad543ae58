"""The report of an evaluation as a page, with pictures of what accuracy costs."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from optillm_hooks.evaluation.report import COLUMNS, Row, cells, frontier

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 340, 56, 150, 16, 44


def as_html(rows: Sequence[Row], title: str, lines: Sequence[str] = ()) -> str:
    """Return a page with the table, and accuracy against seconds and, if it is known, dollars.

    `lines` follow the table.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in cells(row))}</tr>" for row in rows
    )
    pictures = [picture(rows, lambda row: row.p50_s, "median seconds of a problem")]
    if all(row.cost_usd is not None for row in rows) and any(row.cost_usd for row in rows):
        pictures.append(picture(rows, lambda row: row.cost_usd or 0.0, "US dollars of a problem"))
    return _PAGE.format(
        title=escape(title),
        head=head,
        body=body,
        lines="\n".join(f"<p>{escape(line)}</p>" for line in lines),
        pictures="\n".join(pictures),
    )


def picture(rows: Sequence[Row], price: Callable[[Row], float], label: str) -> str:
    """Return an SVG of accuracy against a price, with 95 % intervals and the Pareto frontier."""
    most = max((price(row) for row in rows), default=0.0) or 1.0

    def x(value: float) -> float:
        return _LEFT + value / most * (_WIDTH - _LEFT - _RIGHT)

    def y(accuracy: float) -> float:
        return _TOP + (1 - accuracy) * (_HEIGHT - _TOP - _BOTTOM)

    steps = " ".join(f"{x(price(r)):.1f},{y(r.accuracy):.1f}" for r in frontier(rows, price))
    marks = "".join(
        f'<line class="interval" x1="{x(price(row)):.1f}" x2="{x(price(row)):.1f}" '
        f'y1="{y(row.low):.1f}" y2="{y(row.high):.1f}"/>'
        f'<circle cx="{x(price(row)):.1f}" cy="{y(row.accuracy):.1f}" r="4"/>'
        f'<text x="{x(price(row)) + 8:.1f}" y="{y(row.accuracy) + 4:.1f}">'
        f"{escape(row.model)}</text>"
        for row in rows
    )
    scale = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(share):.1f}" '
        f'y2="{y(share):.1f}"/><text class="tick" x="{_LEFT - 8}" y="{y(share) + 4:.1f}">'
        f"{100 * share:.0f} %</text>"
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    ends = "".join(
        f'<text class="end" x="{x(value):.1f}" y="{_HEIGHT - _BOTTOM + 18}">{value:.3g}</text>'
        for value in (0.0, most)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="accuracy by {label}">'
        f'{scale}{ends}<polyline points="{steps}"/>{marks}'
        f'<text class="end" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 6}">'
        f"{label}</text></svg>"
    )


_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .6rem; text-align: right; white-space: nowrap; }}
th, td {{ border-bottom: 1px solid #8884; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ width: min(100%, 40rem); font-size: 12px; fill: currentColor; }}
polyline {{ fill: none; stroke: #2a7de1; stroke-width: 2; }}
circle {{ fill: #2a7de1; }}
.interval {{ stroke: #2a7de1; stroke-opacity: .45; stroke-width: 2; }}
.grid {{ stroke: #8884; }}
.tick {{ text-anchor: end; }}
.end {{ text-anchor: middle; }}
</style>
<h1>{title}</h1>
<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p>The line joins the models that no other beats: none is as accurate for less. Bars are 95 %
intervals. <b>points</b>, <b>wins:losses</b> and <b>p</b> compare a model with the first one over
the same problems (McNemar's exact test, corrected by Holm). <b>needed</b> is how many problems
would show such a difference.</p>
{lines}
{pictures}
</html>
"""
