"""Draws the pictures of docs/gallery.md into docs/pictures/, from the CSV files beside this script:

    python docs/results/pictures.py

Each file follows the reader's light or dark scheme. Points are settings, bars 95 % intervals as
`tables.py` has them. Labels move out of each other's way, so new numbers need no other script.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import pandas as pd
from tables import over_seeds

FOLDER = Path(__file__).resolve().parents[1] / "pictures"

WIDTH, HEIGHT = 480.0, 380.0
LEFT, TOP, RIGHT, BOTTOM = 60.0, 14.0, 466.0, 322.0
"""The corners of the plot in the picture, in pixels."""

GREEN, PINK, ORANGE, BLUE, OLIVE = "#0a9a72", "#c2649b", "#d55e00", "#2b86c5", "#8a7420"
GREY = "#7a848d"
EDGES = {"none": PINK, "act": GREEN, "weight": ORANGE, "both": BLUE}
"""Colours that can be seen on white and on black; those of edge choices as in the report."""

STYLE = """
:root { --ink: #1b1f24; --muted: #5f6973; --line: #aab2ba; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --muted: #a3adb6; --line: #5b656e; --paper: #131416; }
}
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  fill: var(--ink); }
.muted { fill: var(--muted); } .mid { text-anchor: middle; } .end { text-anchor: end; }
.label { stroke: var(--paper); stroke-width: 3; stroke-linejoin: round; paint-order: stroke; }
.line { stroke: var(--line); fill: none; stroke-width: 1.5; }
.zero { stroke: var(--line); fill: none; stroke-width: 1.5; stroke-dasharray: 2 4; }
"""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, which is missing (nan) with one seed and no documents."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, table: pd.DataFrame, setting: str, metric: str) -> "Estimate":
        """What a table of `over_seeds` has for a setting."""
        return cls(*(float(table.loc[setting, (metric, end)]) for end in ("mean", "low", "high")))

    @property
    def ends(self) -> tuple[float, float]:
        """The interval, or twice the mean."""
        return (self.mean, self.mean) if math.isnan(self.low) else (self.low, self.high)


@dataclass(frozen=True)
class Point:
    """A setting of a plot."""

    name: str
    """Written beside it; empty where the line it is on says enough."""
    x: Estimate
    y: Estimate
    colour: str


def exactly(value: float) -> Estimate:
    """A number that was chosen and not measured."""
    return Estimate(value, math.nan, math.nan)


# Plots


def element(tag: str, text: str = "", /, **attributes: object) -> str:
    """An SVG element; `_` in the name of an attribute stands for `-`, numbers have one decimal."""
    said = ""
    for name, value in attributes.items():
        word = f"{value:.1f}" if isinstance(value, float) else str(value)
        said += f' {name.rstrip("_").replace("_", "-")}="{escape(word)}"'
    return f"<{tag}{said}>{escape(text)}</{tag}>" if text else f"<{tag}{said}/>"


def picture(title: str, height: float, parts: Sequence[str]) -> str:
    """A whole SVG file."""
    size = f'width="{WIDTH:.0f}" height="{height:.0f}" viewBox="0 0 {WIDTH:.0f} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    inside = [f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *parts]
    return "\n".join([head, *inside, "</svg>", ""])


class Axis:
    """A range of numbers along a side of the plot.

    It holds all that `estimates` reach, and 0; what lies beyond `most` is drawn at the end.
    """

    def __init__(
        self, estimates: Sequence[Estimate], start: float, end: float, most: float = math.inf
    ) -> None:
        values = [0.0, *(end for estimate in estimates for end in estimate.ends)]
        low, high = min(values), min(max(values), most)
        margin = 0.06 * (high - low)
        self.low, self.high = low - margin, high + margin
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        """Where a number is, in pixels."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """About five round numbers, and how they are written."""
        rough = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= rough)
        digits = next(n for n in range(9) if math.isclose(step, round(step, n)))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [(n * step, f"{n * step:.{digits}f}") for n in range(first, last + 1)]


def frame(x: Axis, y: Axis, across: str, up: str) -> Iterator[str]:
    """Both axes with their titles, and dotted lines where a number is 0."""
    yield element("path", d=f"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}", class_="line")
    for value, text in x.ticks():
        yield element("text", text, x=x.at(value), y=BOTTOM + 18, class_="muted mid")
    for value, text in y.ticks():
        yield element("text", text, x=LEFT - 6, y=y.at(value) + 4, class_="muted end")
    yield element("path", d=f"M{x.at(0):.1f} {BOTTOM}V{TOP}", class_="zero")
    yield element("path", d=f"M{LEFT} {y.at(0):.1f}H{RIGHT}", class_="zero")
    yield element("text", across, x=(LEFT + RIGHT) / 2, y=BOTTOM + 44, class_="mid")
    turned = f"translate(16 {(TOP + BOTTOM) / 2:.0f}) rotate(-90)"
    yield element("text", up, transform=turned, class_="mid")


def overlap(one: Box, other: Box) -> float:
    """Square pixels that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)


def place(x: float, y: float, width: float, taken: Sequence[Box]) -> Box:
    """The box near a point for a label, which hides little of what is there and is not far."""
    boxes: list[tuple[float, Box]] = []
    for distance in (8, 16, 28, 44):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            left = x + dx * distance - (width if dx < 0 else width / 2 if dx == 0 else 0)
            middle = y + dy * (distance + 4)
            box = (left, middle - 8, left + width, middle + 8)
            if LEFT <= left <= WIDTH - width - 4 and 8 <= middle <= BOTTOM - 8:
                hidden = sum(overlap(box, other) for other in taken)
                boxes.append((hidden + distance, box))
    return min(boxes, key=lambda found: found[0])[1]


def plot(
    title: str,
    points: Sequence[Point],
    across: str,
    up: str,
    *,
    lines: Sequence[Sequence[Point]] = (),
    most: float = math.inf,
) -> str:
    """Points with their intervals and names; `lines` join points. Above `most` an arrow says so."""
    x = Axis([point.x for point in points], LEFT, RIGHT)
    y = Axis([point.y for point in points], BOTTOM, TOP, most)
    parts, taken = list(frame(x, y, across, up)), list[Box]()
    for line in lines:
        corners = [(x.at(point.x.mean), y.at(point.y.mean)) for point in line]
        for (x0, y0), (x1, y1) in pairwise(corners):
            for share in (n / 20 for n in range(21)):
                at_x, at_y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
                taken.append((at_x - 4, at_y - 4, at_x + 4, at_y + 4))
        path = "L".join(f"{at_x:.1f} {at_y:.1f}" for at_x, at_y in corners)
        look = {"stroke": line[0].colour, "stroke_width": 1.6}
        parts.append(element("path", d=f"M{path}", fill="none", **look))
    for point in points:
        at_x, at_y = x.at(point.x.mean), y.at(point.y.mean)
        (left, right), (low, high) = map(x.at, point.x.ends), map(y.at, point.y.ends)
        bars = f"M{left:.1f} {at_y:.1f}H{right:.1f}M{at_x:.1f} {low:.1f}V{high:.1f}"
        look = {"stroke": point.colour, "stroke_width": 1.4, "stroke_opacity": 0.6}
        parts.append(element("path", d=bars, fill="none", **look))
        parts.append(element("circle", cx=at_x, cy=at_y, r=4.5, fill=point.colour))
        taken += [(at_x - 7, at_y - 7, at_x + 7, at_y + 7)]
        taken += [(left, at_y - 1, right, at_y + 1), (at_x - 1, high, at_x + 1, low)]
    for point in points:
        if not point.name:
            continue
        beyond = f" ({point.y.mean:.1f} \N{UPWARDS ARROW})" if point.y.mean > y.high else ""
        name = point.name + beyond
        box = place(x.at(point.x.mean), y.at(point.y.mean), 7.1 * len(name), taken)
        taken.append(box)
        middle = (box[0] + box[2]) / 2
        parts.append(element("text", name, x=middle, y=box[3] - 4, class_="label mid"))
    return picture(title, HEIGHT, parts)


TAX = "tax, nats over dense  (\N{LEFTWARDS ARROW} better)"
SELECTIVITY = "selectivity, nats  (better \N{RIGHTWARDS ARROW})"


# Studies


def forget() -> str:
    """Removal and its cost: the settings of this project beside published methods."""
    tax, removal = "mean_served_tax", "mean_removal"
    table = over_seeds(["forget_adapters"], [tax, removal]).dropna()

    def routed(adapters: object, core: float, procedure: str = "fixed") -> str:
        words = [f"mlp_shared={core} ", f"embed={adapters} ", f"procedure={procedure} ", "lr=3.0"]
        [setting] = [s for s in table.index if all(w in s for w in words) and "eval." not in s]
        return str(setting)

    settings = {
        "full vocabulary": (routed("full", 0.909), GREEN),
        "rank 32": (routed(32, 0.909), GREEN),
        "no vocabulary": (routed(0, 0.75), GREY),
        "branch": (routed("full", 0.75, "branch"), PINK),
        "gram": ("gram", ORANGE),
        "flexolmo": ("flexolmo", OLIVE),
        "era": ("era", OLIVE),
    }
    for setting in table.index[table.index.str.startswith("sgtm")]:
        is_loose = "foreign_outputs=1" in setting
        settings["sgtm, appendix C" if is_loose else "sgtm"] = (str(setting), BLUE)
    points = [
        Point(name, Estimate.of(table, setting, tax), Estimate.of(table, setting, removal), colour)
        for name, (setting, colour) in settings.items()
    ]
    up = "removal  (1: as if never trained)"
    return plot("Served tax and removal of biology", points, f"served {TAX}", up, most=1.25)


def edges() -> str:
    """Every edge choice, the control with random labels, and published methods."""
    tax, selectivity = "mean_served_tax", "mean_selectivity"
    table = over_seeds(["edges_vs_baselines"], [tax, selectivity]).dropna()
    points = []
    for setting in map(str, table.index):
        method, _, choice = setting.removeprefix("method=").partition(" edges=")
        is_random = method == "random"
        name = ("random labels" if choice == "none" else "") if is_random else choice or method
        colour = GREY if is_random else EDGES.get(choice, OLIVE)
        at = [Estimate.of(table, setting, metric) for metric in (tax, selectivity)]
        points.append(Point(name, *at, colour))
    title = "Served tax and selectivity of edge choices and methods"
    return plot(title, points, f"served {TAX}", SELECTIVITY)


def frontier() -> str:
    """More and more foreign dropout, with and without a vocabulary of each block's own."""
    tax, removal = "mean_served_tax", "mean_served_removal"
    table = over_seeds(["edges_vs_baselines", "peers_seeds"], [tax, removal]).dropna()

    def at(name: str, setting: str, colour: str) -> Point:
        estimates = [Estimate.of(table, setting, metric) for metric in (tax, removal)]
        return Point(name, *estimates, colour)

    def routed(dropout: str, adapters: str) -> str:
        return f"route.foreign_dropout={dropout} plan.adapters={adapters}"

    full = "{embed:full,unembed:full}"
    plain = [
        at("0.5", "method=routed edges=act", EDGES["act"]),
        at("0.75", routed("0.75", "{}"), EDGES["act"]),
        at("1", routed("1", "{}"), EDGES["act"]),
    ]
    own = [
        at("vocabulary, 0.75", routed("0.75", full), ORANGE),
        at("vocabulary, 1", routed("1", full), ORANGE),
    ]
    others = [at(name, f"method={name}", OLIVE) for name in ("demix", "gram")]
    title = "Served tax and removal at foreign dropout 0.5, 0.75 and 1"
    up = "served removal  (better \N{RIGHTWARDS ARROW})"
    return plot(title, [*plain, *own, *others], f"served {TAX}", up, lines=[plain, own])


def overlaps() -> str:
    """What domains have in common, and what is left to separate."""
    metrics = {"mean_selectivity": "selectivity", "mean_tax": "tax"}
    table = over_seeds(["overlap"], list(metrics)).dropna()
    shares = {float(s.rpartition("=")[2]): s for s in table.index if s.startswith("edges=weight")}
    lines = []
    for (metric, name), colour in zip(metrics.items(), (ORANGE, BLUE), strict=True):
        lines.append(
            [
                Point(name if share == 0 else "", exactly(share), estimate, colour)
                for share, setting in sorted(shares.items())
                for estimate in [Estimate.of(table, setting, metric)]
            ]
        )
    points = [point for line in lines for point in line]
    across = "overlap: share of the features that domains have in common"
    return plot("Selectivity and tax by overlap", points, across, "nats", lines=lines)


def removable() -> str:
    """What removing each of three domains adds to the loss on every domain."""
    removed, read = ["code", "biology", "creative"], ["code", "biology", "creative", "general"]
    keys = {(r, c): f"separability/served_matrix/{r}/{c}" for r in removed for c in read}
    table = over_seeds(["removable"], list(keys.values()))
    cells = {of: Estimate.of(table, "edges=weight", key) for of, key in keys.items()}
    most = max(cell.mean for cell in cells.values())
    left, top, width, height = 92.0, 52.0, 96.0, 58.0
    parts = [element("text", "loss added on", x=left + 2 * width, y=16.0, class_="muted mid")]
    for at, domain in enumerate(read):
        parts.append(element("text", domain, x=left + (at + 0.5) * width, y=top - 12, class_="mid"))
    for row, domain in enumerate(removed):
        y = top + row * height
        parts.append(element("text", "without", x=left - 10, y=y + 26, class_="muted end"))
        parts.append(element("text", domain, x=left - 10, y=y + 42, class_="end"))
        for column, other in enumerate(read):
            cell, x = cells[domain, other], left + column * width
            look = {"fill": ORANGE, "fill_opacity": f"{max(0.6 * cell.mean / most, 0.04):.2f}"}
            box = {"x": x + 1, "y": y + 1, "width": width - 2, "height": height - 2, "rx": 4}
            parts.append(element("rect", **box, **look))
            middle = x + width / 2
            mean, low, high = (round(value, 2) + 0.0 for value in (cell.mean, *cell.ends))
            parts.append(element("text", f"{mean:.2f}", x=middle, y=y + 26, class_="mid"))
            interval = f"{low:.2f} to {high:.2f}"  # without + 0.0, -0.00
            parts.append(element("text", interval, x=middle, y=y + 43, class_="mid"))
    return picture("Served loss that a removal adds, nats a token", top + 3 * height + 4, parts)


PICTURES: dict[str, Callable[[], str]] = {
    "forget": forget,
    "removable": removable,
    "edges": edges,
    "frontier": frontier,
    "overlap": overlaps,
}
"""Name in `results-NAME.svg` to what draws it."""


def main() -> None:
    """Writes all of them."""
    for name, draw in PICTURES.items():
        (FOLDER / f"results-{name}.svg").write_text(draw(), "utf-8")


if __name__ == "__main__":
    main()
