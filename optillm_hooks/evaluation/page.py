"""The report of an evaluation as a page, with pictures of what accuracy costs.

Pictures name models by the numbers of their lines in the table: names are too long for them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from optillm_hooks.evaluation.report import COLUMNS, Row, cells, frontier

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 380, 280, 46, 24, 12, 42

_LOGARITHMIC: Final = 20
"""How many times the least price the highest one is on a logarithmic axis, at least."""

_MOST_TICKS: Final = 7
_ACROSS, _DOWN = 15, 11
"""A label's room, to each side of its middle."""

_OFFSETS: Final = [(15, 0), (0, -13), (-15, 0), (0, 13), (11, -11), (11, 11), (-11, -11), (-11, 11)]
"""Where a label may stand, from its point, the best place first."""

_Place = tuple[float, float]


def as_html(rows: Sequence[Row], title: str, lines: Sequence[str] = ()) -> str:
    """Return a page with the table, and accuracy against seconds and, if it is known, dollars.

    `lines` follow the table.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in ("#", *COLUMNS))
    body = "".join(_line(number, row) for number, row in enumerate(rows, 1))
    pictures = [picture(rows, lambda row: row.p50_s, "seconds of a request (median)")]
    if all(row.cost_usd is not None for row in rows) and any(row.cost_usd for row in rows):
        pictures.append(picture(rows, lambda row: row.cost_usd or 0.0, "US dollars of a problem"))
    return _PAGE.format(
        title=escape(title),
        head=head,
        body=body,
        lines="\n".join(f"<p>{escape(line)}</p>" for line in lines),
        pictures="\n".join(pictures),
    )


def _line(number: int, row: Row) -> str:
    model, *figures = map(escape, cells(row))
    told = "".join(f"<td>{text}</td>" for text in figures)
    return f"<tr><td>{number}</td><th><bdi>{model}</bdi></th>{told}</tr>"


@dataclass(frozen=True, slots=True)
class _Axis:
    """The axis of prices."""

    ticks: Sequence[float]
    """The first and the last one are its ends."""

    is_logarithmic: bool

    def share(self, price: float) -> float:
        """Return where on the axis a price is, from 0 to 1."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.is_logarithmic:
            return math.log(price / low) / math.log(high / low)
        return (price - low) / (high - low)


def _axis(prices: Sequence[float]) -> _Axis:
    """Return a linear axis from 0, or a logarithmic one if prices differ much and none is 0."""
    least, most = min(prices, default=0.0), max(prices, default=0.0) or 1.0
    if 0 < least * _LOGARITHMIC < most:
        first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
        each = math.ceil((last - first) / _MOST_TICKS)
        powers = range(first, last + each, each)
        return _Axis([10.0**power for power in powers], is_logarithmic=True)
    size = 10.0 ** math.floor(math.log10(most / 5))
    step = next(size * digit for digit in (1, 2, 5, 10) if most <= 5 * size * digit)
    return _Axis([step * n for n in range(math.ceil(most / step) + 1)], is_logarithmic=False)


def picture(rows: Sequence[Row], price: Callable[[Row], float], label: str) -> str:
    """Return an SVG of accuracy against a price, with 95 % intervals and the Pareto frontier."""
    axis, unbeaten = _axis([price(row) for row in rows]), frontier(rows, price)

    def x(value: float) -> float:
        return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)

    def y(accuracy: float) -> float:
        return _TOP + (1 - accuracy) * (_HEIGHT - _TOP - _BOTTOM)

    points = [(x(price(row)), y(row.accuracy)) for row in rows]
    intervals = "".join(
        f'<line class="interval" x1="{at:.1f}" x2="{at:.1f}" y1="{y(row.low):.1f}" '
        f'y2="{y(row.high):.1f}"/>'
        for row, (at, _) in zip(rows, points, strict=True)
    )
    steps = " ".join(f"{x(price(row)):.1f},{y(row.accuracy):.1f}" for row in unbeaten)
    marks = "".join(
        f'<circle class="{"unbeaten" if row in unbeaten else "beaten"}" cx="{at[0]:.1f}" '
        f'cy="{at[1]:.1f}" r="4"><title>{escape(row.model)}</title></circle>'
        for row, at in zip(rows, points, strict=True)
    )
    unbeaten_first = sorted(range(len(rows)), key=lambda index: rows[index] not in unbeaten)
    labels = "".join(
        f'<text class="end" x="{at[0]:.1f}" y="{at[1] + 4:.1f}">{index + 1}</text>'
        for index, at in _label_places(points, unbeaten_first).items()
    )
    scale = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(share):.1f}" '
        f'y2="{y(share):.1f}"/><text class="tick" x="{_LEFT - 6}" y="{y(share) + 4:.1f}">'
        f"{100 * share:.0f} %</text>"
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    prices = "".join(
        f'<text class="end" x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 17}">{tick:g}</text>'
        for tick in axis.ticks
    )
    kind = f"{label}, logarithmic" if axis.is_logarithmic else label
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="right answers by {kind}">'
        f'{scale}{prices}{intervals}<polyline points="{steps}"/>{marks}{labels}'
        f'<text class="end" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 6}">'
        f"{kind}</text></svg>"
    )


def _label_places(points: Sequence[_Place], order: Sequence[int]) -> Mapping[int, _Place]:
    """Return places of labels beside points, by their indices.

    A label that would cover a point or another label, of those before it in `order`, has none.
    """
    found = dict[int, _Place]()
    for index in order:
        x, y = points[index]
        taken = [*points[:index], *points[index + 1 :], *found.values()]
        places = ((x + dx, y + dy) for dx, dy in _OFFSETS)
        if (free := next((at for at in places if _is_free(at, taken)), None)) is not None:
            found[index] = free
    return found


def _is_free(place: _Place, taken: Iterable[_Place]) -> bool:
    x, y = place
    return x > _LEFT and all(abs(x - a) >= _ACROSS or abs(y - b) >= _DOWN for a, b in taken)


_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 88rem; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
p {{ max-width: 48rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .5rem; text-align: right; white-space: nowrap; }}
th, td {{ border-bottom: 1px solid #8884; }}
th:nth-child(2) {{ text-align: left; }}
tbody th {{ font-weight: normal; white-space: normal; }}
bdi {{ display: inline-block; width: max-content; max-width: min(24rem, 45vw); }}
bdi {{ overflow-wrap: anywhere; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
svg {{ width: 30rem; max-width: 100%; font-size: 12px; fill: currentColor; }}
polyline {{ fill: none; stroke: #2a7de1; stroke-width: 2; }}
circle {{ stroke: #2a7de1; stroke-width: 2; }}
.unbeaten {{ fill: #2a7de1; }}
.beaten {{ fill: Canvas; }}
.interval {{ stroke: #2a7de1; stroke-opacity: .35; stroke-width: 2; }}
.grid {{ stroke: #8884; }}
.tick {{ text-anchor: end; }}
.end {{ text-anchor: middle; }}
</style>
<h1>{title}</h1>
<div class="wide" tabindex="0" role="region" aria-label="figures">
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p><b>points</b>, <b>wins:losses</b>, <b>p</b> and <b>verdict</b> compare a model with the first one
over the same problems (McNemar's exact test, corrected by Holm). It is <b>better</b> or
<b>worse</b> if p is at most 0.05; else these problems do not decide it. <b>needed</b> is how many
would show such a difference.</p>
{lines}
<p>In the pictures, models have the numbers of the table. The line joins those that no other beats:
none is as often right for less. Hollow points are beaten. Bars are 95 % intervals. A number that
has no room is left out; a pointer on the point shows its model.</p>
<div class="pictures">
{pictures}
</div>
</html>
"""
