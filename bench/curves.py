"""Latency curves: microseconds by percentile, both logarithmic (percentiles by what is left to 100)."""
import math
from xml.sax.saxutils import escape

import chart

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 460, 80, 24, 96, 44
MARKS = (0, 50, 90, 99, 99.9, 99.99)
STYLE = """
  .curve { fill: none; stroke-width: 2.5; }
  .c0 { stroke: #bf8700; } .c1 { stroke: #0969da; }
  .c2 { stroke: #bf8700; stroke-dasharray: 7 4; } .c3 { stroke: #0969da; stroke-dasharray: 7 4; }
  @media (prefers-color-scheme: dark) {
    .c0, .c2 { stroke: #d29922; } .c1, .c3 { stroke: #4493f8; }
  }
"""


def _time(us):
    return "%g µs" % us if us < 1000 else "%g ms" % (us / 1e3) if us < 1e6 else "%g s" % (us / 1e6)


def draw(title, curves):
    """curves: {name: {percentile: microseconds}}, at most four. The picture as text."""
    low = min(min(c.values()) for c in curves.values())
    high = max(max(c.values()) for c in curves.values())
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))

    def x(percentile):
        return LEFT + math.log10(100 / max(100 - percentile, 0.01)) / 4 * (WIDTH - LEFT - RIGHT)

    def y(us):
        return HEIGHT - BOTTOM - (math.log10(us) - first) / (last - first) * (HEIGHT - TOP - BOTTOM)

    def text(at_x, at_y, content, kind="", anchor="start"):
        return '<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>' % (at_x, at_y, kind, anchor,
                                                                                escape(content))

    def line(points, kind):
        return '<polyline points="%s" class="%s"/>' % (" ".join("%.1f,%.1f" % p for p in points), kind)

    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img">' % (WIDTH, HEIGHT),
           "<title>%s</title>" % escape(title), "<style>%s%s</style>" % (chart.STYLE, STYLE),
           '<rect width="100%" height="100%" class="ground"/>', text(16, 26, title, "title")]
    for decade in range(first, last + 1):
        out += [line([(LEFT, y(10 ** decade)), (WIDTH - RIGHT, y(10 ** decade))], "grid"),
                text(LEFT - 8, y(10 ** decade) + 4, _time(10 ** decade), "small", "end")]
    for mark in MARKS:
        out += [line([(x(mark), TOP), (x(mark), HEIGHT - BOTTOM)], "grid"),
                text(x(mark), HEIGHT - BOTTOM + 18, "%g %%" % mark, "small", "middle")]
    out.append(text(WIDTH - RIGHT, HEIGHT - 8, "of requests took no longer", "small", "end"))
    for number, (name, curve) in enumerate(curves.items()):
        kind = "curve c%d" % number
        at = LEFT + number % 2 * 330
        out += [line([(at, 48 + number // 2 * 22), (at + 30, 48 + number // 2 * 22)], kind),
                text(at + 38, 52 + number // 2 * 22, name),
                line([(x(p), y(us)) for p, us in sorted(curve.items())], kind)]
    return "\n".join(out + ["</svg>"]) + "\n"
