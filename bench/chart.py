"""The bar chart: how many times as long as natively, lodge and TCG, on a logarithmic scale."""
import math
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 860, 220, 60, 84, 30, 11
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500)

STYLE = """
  text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; }
  .small { font-size: 11px; fill: #59636e; }
  .mean { font-weight: 600; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .native { stroke: #1a7f37; stroke-width: 2; }
  .lodge { fill: #0969da; }
  .tcg { fill: #bf8700; }
  .failed { fill: #cf222e; }
  .ground { fill: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .small { fill: #9198a1; }
    .grid { stroke: #3d444d; }
    .native { stroke: #3fb950; }
    .lodge { fill: #4493f8; }
    .tcg { fill: #d29922; }
    .failed { fill: #f85149; }
    .ground { fill: #0d1117; }
  }
"""


def _plain(title):
    return escape(title.replace("`", ""))


class Chart:
    """Rows of (title, {machine: ratio or None}); the last row is the mean."""

    def __init__(self, rows, caption):
        self.rows, self.caption = rows, caption
        most = max([v for _, values in rows for v in values.values() if v] + [10])
        least = min([v for _, values in rows for v in values.values() if v] + [1])
        self.low = math.log(min(1, least) * 0.9)
        self.high = math.log(most * 1.05)
        self.height = TOP + ROW * len(rows) + 34
        self.out = []

    def x(self, value):
        share = (math.log(value) - self.low) / (self.high - self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def text(self, x, y, content, kind="", anchor="start"):
        self.out.append('<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>' % (
            x, y, kind, anchor, content))

    def line(self, x, kind):
        self.out.append('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" class="%s"/>' % (
            x, TOP - 6, x, self.height - 28, kind))

    def bar(self, y, value, kind):
        if not value:
            self.text(self.x(1) + 4, y + BAR - 2, "failed", "failed")
            return
        start, end = sorted((self.x(1), self.x(value)))
        self.out.append('<rect x="%.1f" y="%.1f" width="%.1f" height="%d" rx="1.5" class="%s"/>' % (
            start, y, max(end - start, 1.5), BAR, kind))
        self.text(end + 4, y + BAR - 2, "%.*f" % (0 if value >= 99.5 else 1, value), "small")

    def legend(self):
        x = LEFT
        for kind, title in (("lodge", "lodge, soft engine"), ("tcg", "QEMU TCG")):
            self.out.append('<rect x="%d" y="46" width="12" height="12" class="%s"/>' % (x, kind))
            self.text(x + 18, 56, title)
            x += 160
        self.out.append('<line x1="%d" y1="52" x2="%d" y2="52" class="native"/>' % (x, x + 12))
        self.text(x + 18, 56, "native = 1")

    def draw(self):
        self.out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img">' % (
            WIDTH, self.height), "<title>Time as a multiple of native</title>",
            "<style>%s</style>" % STYLE,
            '<rect width="100%" height="100%" class="ground"/>']
        self.text(16, 26, "Time as a multiple of native (logarithmic; shorter is better)", "title")
        self.legend()
        for tick in TICKS:
            if math.log(tick) < self.high:
                self.line(self.x(tick), "grid")
                self.text(self.x(tick), TOP - 10, str(tick), "small", "middle")
        y = TOP
        for number, (title, values) in enumerate(self.rows):
            self.text(LEFT - 10, y + 15, _plain(title),
                      "mean" if number == len(self.rows) - 1 else "", "end")
            self.bar(y, values.get("lodge"), "lodge")
            self.bar(y + BAR + 1, values.get("tcg"), "tcg")
            y += ROW
        self.line(self.x(1), "native")
        self.text(16, self.height - 10, _plain(self.caption), "small")
        return "\n".join(self.out + ["</svg>"]) + "\n"
