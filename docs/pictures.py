"""Draws the pictures of these pages into docs/pictures/, from plans, row groups and results:

    python docs/pictures.py

Owners, blocks and what is switched off are asked of `RoutePlan` and `row_groups`, so that a picture
cannot say something else than the code does. Colours are those of the report. Each file follows the
reader's light or dark setting by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from gr_sweep.metrics.registry import MEAN_SELECTIVITY, MEAN_TAX
from gr_sweep.model.sizes import SIZES
from gr_sweep.report.collect import Estimate, read_sweep
from gr_sweep.report.pictures import CORE_COLOUR, Colour, block_colour, colours_of
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import row_groups

FOLDER = Path(__file__).resolve().parent / "pictures"
DOMAINS = ("code", "biology", "creative")
SHAPE = SIZES["tiny"]

_STYLE = """
:root { --ink: #1b1f24; --muted: #5f6973; --line: #aab2ba; --faint: #e3e6e9; --paper: #ffffff;
  --grad: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --muted: #a3adb6; --line: #5b656e;
  --faint: #30363c; --paper: #16191d; --grad: #ff9d5c; } }
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  fill: var(--ink); }
.small { font-size: 11.5px; } .muted { fill: var(--muted); } .bold { font-weight: 650; }
.code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 12.5px; }
.mid { text-anchor: middle; } .end { text-anchor: end; }
.line { stroke: var(--line); fill: none; stroke-width: 1.6; }
.grad { stroke: var(--grad); fill: none; stroke-width: 2.2; }
.lost { stroke: var(--line); fill: none; stroke-width: 1.6; stroke-dasharray: 2 4; }
.gradtext { fill: var(--grad); } .dashed { stroke-dasharray: 3 3; }
.headline { fill: var(--line); } .headgrad { fill: var(--grad); }
.paper { fill: var(--paper); } .faint { fill: var(--faint); fill-opacity: 0.55; }
"""


class Svg:
    """A picture that is drawn from top to bottom."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def add(self, tag: str, text: str = "", /, **attributes: object) -> None:
        """An element; `class_` is its class, and `_` in a name stands for `-`."""
        said = "".join(
            f' {name.rstrip("_").replace("_", "-")}="{escape(_short(value), {chr(34): "&quot;"})}"'
            for name, value in attributes.items()
        )
        self.parts.append(f"<{tag}{said}>{escape(text)}</{tag}>" if text else f"<{tag}{said}/>")

    def text(self, x: float, y: float, text: str, class_: str = "", **more: object) -> None:
        """Text with its baseline at y."""
        self.add("text", text, x=x, y=y, **({"class_": class_} if class_ else {}), **more)

    def box(
        self, x: float, y: float, width: float, height: float, colour: Colour, **more: object
    ) -> None:
        """A box in a tint of its colour, which text can stand on in light and dark."""
        look = {"rx": 4, "fill": _hex(colour), "fill_opacity": 0.28, "stroke": _hex(colour)}
        place = {"x": x, "y": y, "width": width, "height": height}
        self.add("rect", **{**place, "stroke_width": 1.6, **look, **more})

    def path(self, points: Sequence[tuple[float, float]], class_: str, arrow: bool = True) -> None:
        """Lines through points, with rounded corners, and a head at the last."""
        self.add("path", d=_rounded(points), class_=class_)
        if arrow and class_ != "lost":
            (x0, y0), (x1, y1) = points[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            ux, uy = (x1 - x0) / length, (y1 - y0) / length
            corners = [
                (x1 + 1.5 * ux, y1 + 1.5 * uy),
                (x1 - 7 * ux - 4.2 * uy, y1 - 7 * uy + 4.2 * ux),
                (x1 - 7 * ux + 4.2 * uy, y1 - 7 * uy - 4.2 * ux),
            ]
            said = " ".join(f"{_short(x)},{_short(y)}" for x, y in corners)
            self.add("polygon", points=said, class_=f"head{class_.split()[0]}")

    def cut(self, x: float, y: float) -> None:
        """The mark where a gradient ends."""
        self.add("circle", cx=x, cy=y, r=8.5, class_="paper")
        for sign in (1, -1):
            d = f"M{_short(x - 5)} {_short(y - 5 * sign)}L{_short(x + 5)} {_short(y + 5 * sign)}"
            self.add("path", d=d, class_="grad")

    def __str__(self) -> str:
        size = f'width="{_short(self.width)}" height="{_short(self.height)}"'
        view = f'viewBox="0 0 {_short(self.width)} {_short(self.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view} role="img">'
        style = f"<style>{_STYLE}</style>"
        title = f"<title>{escape(self.title)}</title>"
        return "\n".join([head, title, style, *self.parts, "</svg>", ""])


def _short(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _rounded(points: Sequence[tuple[float, float]], radius: float = 7.0) -> str:
    """The d of a path that takes its corners in an arc."""
    said = [f"M{_short(points[0][0])} {_short(points[0][1])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        near = _towards(corner, before, radius)
        far = _towards(corner, after, radius)
        said.append(f"L{_short(near[0])} {_short(near[1])}")
        said.append(f"Q{_short(corner[0])} {_short(corner[1])} {_short(far[0])} {_short(far[1])}")
    said.append(f"L{_short(points[-1][0])} {_short(points[-1][1])}")
    return "".join(said)


def _towards(
    start: tuple[float, float], end: tuple[float, float], by: float
) -> tuple[float, float]:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    by = min(by, length / 2)
    return start[0] + by * dx / length, start[1] + by * dy / length


def colours(plan: RoutePlan) -> list[Colour]:
    """Of each block."""
    of_nodes = colours_of(plan.domains, plan.domains)
    return [block_colour(block, of_nodes) for block in plan.blocks]


def peers(mlp_shared: float = 0.4) -> RoutePlan:
    """Three domains with a block each."""
    return RoutePlan.peers(SHAPE, domains=DOMAINS, mlp_shared=mlp_shared)


# One edge, and the four choices


def edge(choice: str, *, is_explained: bool = False) -> Svg:
    """What a token of code does to a unit of biology's block, forward and back."""
    cuts_weight, cuts_act = choice in ("weight", "both"), choice in ("act", "both")
    colour = colours_of(DOMAINS, DOMAINS)["biology"]
    width, height, top = (520, 240, 10) if is_explained else (344, 214, 30)
    names = {
        "none": "nothing is cut",
        "weight": "weight edges are cut",
        "act": "activation edges are cut",
        "both": "both kinds of edges are cut",
    }
    title = "The two kinds of edges of a unit" if is_explained else f"edges={choice}"
    svg = Svg(width, height, f"{title}: {names[choice]}" if not is_explained else title)
    left = 78 if is_explained else 14
    if not is_explained:
        svg.text(14, 20, f"edges={choice}", "code bold")
        svg.text(width - 14, 20, names[choice], "small muted end")
    y, stream = top + 68, top + 158
    into, unit, out, join = left + 66, left + 155, left + 244, left + 298
    right = left + 316

    # Forward
    svg.path([(left, stream), (right, stream)], "line")
    svg.path([(left + 18, stream), (left + 18, y), (into - 27, y)], "line")
    svg.path([(into + 27, y), (unit - 19, y)], "line")
    svg.path([(unit + 19, y), (out - 27, y)], "line")
    svg.path([(out + 27, y), (join, y), (join, stream - 3)], "line")
    for x, label in ((into, "gate, up"), (out, "down")):
        svg.box(x - 27, y - 16, 54, 32, colour)
        svg.text(x, y + 4, label, "small mid")
    svg.box(unit - 18, y - 18, 36, 36, colour, rx=18)
    svg.text(unit, y + 4, "unit", "small mid")

    # Back
    low = y + 30
    svg.path([(right, stream + 13), (left, stream + 13)], "grad")
    svg.path([(join - 13, stream + 13), (join - 13, low), (into + 6, low)], "grad")
    through = [(into - 2, low), (left + 31, low), (left + 31, stream + 9)]
    svg.path(through, "lost" if cuts_act else "grad")
    for x in (into, out):
        svg.path([(x, low), (x, y + 17)], "grad", arrow=False)
        svg.path([(x, y - 17), (x, y - 44)], "lost" if cuts_weight else "grad")
        if cuts_weight:
            svg.cut(x, y - 27)
    if cuts_act:
        svg.cut(left + 41, low)
    said = ("learns", "gradtext") if not cuts_weight else ("does not learn", "muted")
    for x in (into, out):
        svg.text(x, y - 50, said[0], f"small mid {said[1]}")
    if is_explained:
        svg.text(left - 8, stream + 11, "upstream", "small end muted")
        svg.text(right + 8, stream + 11, "the loss", "small muted")
        svg.text(unit, y - 50, "weight edges", "mid bold gradtext")
        svg.text(unit + 60, stream - 6, "residual stream", "small mid muted")
        svg.text(left + 40, stream - 16, "activation edge", "bold gradtext")
        key = stream + 52
        svg.path([(left, key), (left + 34, key)], "line")
        svg.text(left + 42, key + 4, "forward", "small")
        svg.path([(left + 142, key), (left + 108, key)], "grad")
        svg.text(left + 150, key + 4, "gradient", "small")
        svg.box(left + 228, key - 8, 26, 16, colour)
        svg.text(left + 262, key + 4, "of biology's block", "small")
    return svg


# Blocks of a network


def strips(
    svg: Svg,
    x: float,
    y: float,
    width: float,
    plan: RoutePlan,
    *,
    layers: int = 4,
    height: float = 20,
    gap: float = 7,
    off: Sequence[int] = (),
    taken_out: bool = False,
) -> None:
    """The MLP units of each layer by block; what is off is hollow, or gone."""
    split = plan.splits[0, "mlp"]
    for layer in range(layers):
        at: float = x
        top = y + layer * (height + gap)
        for index, (size, colour) in enumerate(zip(split.sizes, colours(plan), strict=True)):
            long = width * size / split.num_units
            if index not in off:
                svg.box(at + 1, top, long - 2, height, colour, rx=3)
            elif not taken_out:
                svg.add("rect", x=at + 1, y=top, width=long - 2, height=height, rx=3,
                        fill="none", class_="line dashed")  # fmt: skip
            at += 0 if taken_out and index in off else long


def blocks() -> Svg:
    """A network, its blocks and the core."""
    plan = peers()
    svg = Svg(520, 372, "A network whose MLP units are shared out over a core and three blocks")
    left, width = 128, 300

    def rest(y: float, label: str) -> None:
        svg.box(left, y, width, 22, CORE_COLOUR, rx=3)
        svg.text(left + width / 2, y + 15.5, label, "small mid")

    svg.text(left - 12, 31, "embeddings", "small end muted")
    rest(16, "core: the rest")
    for layer in range(3):
        y = 52 + 84 * layer
        svg.add("rect", x=left - 8, y=y, width=width + 16, height=74, rx=7, class_="faint")
        svg.text(left - 18, y + 24, "attention", "small end muted")
        rest(y + 9, "core: the rest")
        svg.text(left - 18, y + 58, f"MLP {layer + 1}", "small end muted")
        strips(svg, left, y + 40, width, plan, layers=1, height=26)
        if not layer:
            split = plan.splits[0, "mlp"]
            at: float = left
            for block, size in zip(plan.blocks, split.sizes, strict=True):
                long = width * size / split.num_units
                svg.text(at + long / 2, y + 57, block.name, "small mid")
                at += long
    svg.text(left - 12, 322, "unembedding", "small end muted")
    rest(306, "core: the rest")
    svg.text(left, 356, "Owners: of the core all domains, of a block its own.", "small muted")
    svg.text(left + width + 18, 110, "units", "small muted")
    return svg


def keep_remove() -> Svg:
    """The full network, one without a domain, one of a domain alone, and what is exported."""
    plan = peers()
    svg = Svg(520, 176, "Blocks that are on: full, remove biology, keep biology, extract")
    off_of: Sequence[tuple[str, str, tuple[int, ...], bool]] = (
        ("full", "all blocks", (), False),
        ("remove", "biology off", plan.removed_by(["biology"]), False),
        ("keep", "biology alone", plan.kept_off(["biology"]), False),
        ("extract", "a smaller model", plan.kept_off(["biology"]), True),
    )
    for at, (name, about, off, taken_out) in enumerate(off_of):
        x = 8 + 130 * at
        svg.text(x + 56, 20, name, "mid bold")
        strips(svg, x, 34, 112, plan, off=off, taken_out=taken_out, height=22)
        svg.text(x + 56, 168, about, "small mid muted")
    return svg


# Shapes of plans


def owners(kind: str, domains: Sequence[str], forget: Sequence[str] = ()) -> Svg:
    """Which domain owns which block."""
    plan = RoutePlan.make(kind, SHAPE, domains=domains, forget=forget)
    cell, left, top = 34, 118, 118
    svg = Svg(
        max(230, left + cell * len(plan.blocks) + 62),
        top + cell * len(domains) + 12,
        f"Owners of the blocks of plan={kind}",
    )
    svg.text(10, 20, f"plan={kind}", "code bold")
    if forget:
        svg.text(10, 38, f"plan.forget=[{','.join(forget)}]", "code muted")
    for column, (block, colour) in enumerate(zip(plan.blocks, colours(plan), strict=True)):
        x = left + cell * column
        place = f"translate({x + cell / 2 + 4} {top - 8}) rotate(-45)"
        svg.text(0, 0, block.name, "small" + (" bold" if block.is_core else ""), transform=place)
        for row, domain in enumerate(domains):
            y = top + cell * row
            if plan.owns(domain, block):
                look = {"fill_opacity": 0.85}
                svg.box(x + 2, y + 2, cell - 4, cell - 4, colour, **look)
            else:
                place_of = {"x": x + 2, "y": y + 2, "width": cell - 4, "height": cell - 4}
                svg.add("rect", **place_of, rx=4, fill="none", class_="line dashed")
    for row, domain in enumerate(domains):
        svg.text(left - 10, top + cell * (row + 0.5) + 4, domain, "small end")
    return svg


# Foreign dropout


def dropout() -> Svg:
    """Which blocks are on for the sequences of a micro-batch."""
    plan = peers()
    counts = dict.fromkeys(DOMAINS, 4)
    of_blocks = colours(plan)
    wide, high, top, left = 27, 14, 66, 76
    svg = Svg(520, 300, "Blocks that are on for each sequence, at foreign dropout 0, 0.5 and 1")
    for at, share in enumerate((0.0, 0.5, 1.0)):
        x0 = left + at * 150
        svg.text(
            x0 + 2 * wide, 20, f"foreign_dropout={share:g}", "code mid bold", style="font-size:11px"
        )
        for column, block in enumerate(plan.blocks):
            x = x0 + wide * column + wide / 2
            svg.text(x, top - 10, block.name[:4] + ("." if len(block.name) > 4 else ""),
                     "small muted mid", style="font-size:9.5px")  # fmt: skip
        y: float = top
        for group in row_groups(plan, counts, share):
            if y > top and (y - top) % (4 * high + 10) == 4 * high:
                y += 10
            for _ in range(group.count):
                off = plan.off_blocks(group.off)
                for column, (block, colour) in enumerate(zip(plan.blocks, of_blocks, strict=True)):
                    x = x0 + wide * column
                    if column in off:
                        svg.add("rect", x=x + 1, y=y + 1, width=wide - 2, height=high - 2, rx=2,
                                fill="none", class_="line dashed", stroke_opacity=0.55)  # fmt: skip
                    else:
                        is_own = plan.owns(group.domain, block)
                        svg.box(x + 1, y + 1, wide - 2, high - 2, colour, rx=2,
                                fill_opacity=0.85 if is_own else 0.14)  # fmt: skip
                y += high
    for row, domain in enumerate(DOMAINS):
        y = top + row * (4 * high + 10) + 2 * high + 4
        svg.text(left - 10, y, domain, "small end")
    key, own = 284, of_blocks[1]
    for x, label, opacity in ((left, "own", 0.85), (left + 74, "foreign, on: edges are cut", 0.14)):
        svg.box(x, key - 10, wide - 2, high - 2, own, rx=2, fill_opacity=opacity)
        svg.text(x + wide + 5, key, label, "small muted")
    svg.add("rect", x=left + 274, y=key - 10, width=wide - 2, height=high - 2, rx=2, fill="none",
            class_="line dashed")  # fmt: skip
    svg.text(left + 274 + wide + 5, key, "foreign, off", "small muted")
    return svg


# The whole idea


def overview() -> Svg:
    """Text of three domains, a network with a part for each, and one part taken away."""
    plan = peers(0.34)
    of_blocks = dict(zip((block.name for block in plan.blocks), colours(plan), strict=True))
    svg = Svg(560, 300, "Each domain trains its own part and the core; a part can be removed")
    for at, domain in enumerate(DOMAINS):
        y = 52 + 82 * at
        for back in (8, 4, 0):
            svg.add("rect", x=16 + back, y=y - back, width=40, height=48, rx=4, class_="paper")
            svg.box(16 + back, y - back, 40, 48, of_blocks[domain])
        for line in range(4):
            d = f"M24 {y + 12 + 8 * line}h{(24, 18, 22, 13)[(line + at) % 4]}"
            svg.add("path", d=d, stroke=_hex(of_blocks[domain]), stroke_width=2.2, fill="none")
        svg.text(36, y + 64, domain, "small mid muted")
        svg.add("path", d=f"M72 {y + 22}C106 {y + 22} 102 156 136 156", fill="none",
                stroke=_hex(of_blocks[domain]), stroke_width=2.4)  # fmt: skip
    svg.text(50, 26, "labelled text", "mid bold")

    svg.text(235, 26, "one network", "mid bold")
    strips(svg, 144, 62, 182, plan, layers=5, height=28, gap=12)
    split = plan.splits[0, "mlp"]
    at = 144.0
    for block, size in zip(plan.blocks, split.sizes, strict=True):
        long = 182 * size / split.num_units
        name = block.name if long > 50 else block.name[:4] + "."
        svg.text(at + long / 2, 270, block.name if len(block.name) < 5 else name, "small mid muted")
        at += long
    svg.path([(336, 156), (376, 156)], "line")
    svg.text(356, 146, "remove", "small mid muted")

    svg.text(470, 26, "without biology", "mid bold")
    off = plan.removed_by(["biology"])
    strips(svg, 388, 52, 164, plan, layers=3, height=20, gap=9, off=off)
    svg.text(470, 164, "loss on held-out text", "small mid muted")
    base, before, after = 252, 28, 66
    svg.path([(394, base), (546, base)], "line", arrow=False)
    for column, domain in enumerate(DOMAINS):
        x = 404 + 51 * column
        high = after if domain == "biology" else before
        svg.box(x, base - high, 32, high, of_blocks[domain], rx=2)
        svg.text(x + 16, base + 17, domain[:4] + "." * (len(domain) > 4), "small mid muted")
    svg.path([(394, base - before), (546, base - before)], "lost")
    return svg


# What came out


@dataclass(frozen=True)
class Point:
    """A setting in a plot: tax across, selectivity up, each with its 95 % interval."""

    label: str
    tax: Estimate
    selectivity: Estimate
    colour: str
    is_hollow: bool = False
    dx: float = 9
    dy: float = 4
    """Where the label is, from the point."""


def plot(title: str, points: Sequence[Point], lines: Sequence[Sequence[Point]] = ()) -> Svg:
    """Points with their intervals; the axes begin below 0 as far as they must."""
    svg = Svg(520, 380, title)
    left, top, right, bottom = 58.0, 20.0, 504.0, 326.0
    most_x = max((p.tax.interval or (0, p.tax.value))[1] for p in points)
    most_y = max((p.selectivity.interval or (0, p.selectivity.value))[1] for p in points)
    low = -0.08
    to_x = (right - left) / (most_x - low + 0.04)
    to_y = (bottom - top) / (most_y - low + 0.04)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - low) * to_x, bottom - (y - low) * to_y

    svg.path([(left, top), (left, bottom), (right, bottom)], "line", arrow=False)
    step_x, step_y = (0.2 if most > 0.5 else 0.1 for most in (most_x, most_y))
    for n in range(int(most_x / step_x) + 1):
        x, _ = at(n * step_x, 0)
        svg.path([(x, bottom), (x, bottom + 4)], "line", arrow=False)
        svg.text(x, bottom + 18, f"{n * step_x:.1f}", "small muted mid")
    for n in range(int(most_y / step_y) + 1):
        _, y = at(0, n * step_y)
        svg.path([(left - 4, y), (left, y)], "line", arrow=False)
        svg.text(left - 8, y + 4, f"{n * step_y:.1f}", "small muted end")
    svg.path([at(0, low), at(0, most_y)], "lost")
    svg.path([at(low, 0), at(most_x, 0)], "lost")
    across = "mean tax, nats over dense  (\N{LEFTWARDS ARROW} better)"
    svg.text((left + right) / 2, bottom + 38, across, "small mid")
    up = "mean selectivity, nats  (better \N{RIGHTWARDS ARROW})"
    svg.text(0, 0, up, "small mid",
             transform=f"translate(16 {_short((top + bottom) / 2)}) rotate(-90)")  # fmt: skip
    for line in lines:
        d = "L".join(" ".join(map(_short, at(p.tax.value, p.selectivity.value))) for p in line)
        svg.add("path", d="M" + d, fill="none", stroke=line[0].colour, stroke_width=1.6)
    for point in points:
        x, y = at(point.tax.value, point.selectivity.value)
        for estimate, is_across in ((point.tax, True), (point.selectivity, False)):
            if estimate.interval is not None:
                ends = [
                    at(end, point.selectivity.value) if is_across else at(point.tax.value, end)
                    for end in estimate.interval
                ]
                d = "L".join(" ".join(map(_short, end)) for end in ends)
                look = {"stroke": point.colour, "stroke_width": 1.4, "stroke_opacity": 0.55}
                svg.add("path", d="M" + d, fill="none", **look)
        look = {"class_": "paper"} if point.is_hollow else {"fill": point.colour}
        svg.add("circle", cx=x, cy=y, r=4.5, stroke=point.colour, stroke_width=2, **look)
    for point in points:
        x, y = at(point.tax.value, point.selectivity.value)
        where = "small" if point.dx >= 0 else "small end"
        svg.text(x + point.dx, y + point.dy, point.label, where)
    return svg


EDGE_COLOURS = {"none": "#c2649b", "weight": "#d55e00", "act": "#0a9a72", "both": "#2b86c5"}
"""As in the report, a little lighter or darker where one of the backgrounds needs it."""
OTHER_COLOUR = "#8a7420"
RESULTS_FOLDER = Path(__file__).resolve().parent / "results"


def results_edges() -> Svg:
    """Every edge choice, the control and the published methods, over three seeds."""
    sweep = read_sweep(RESULTS_FOLDER / "edges_vs_baselines")
    beside = {"edges=none": (9, 15), "edges=act": (9, -4), "demix": (9, -6), "sgtm": (9, -8)}
    points = []
    for group in sweep.replicates:
        tax, selectivity = (sweep.over_seeds(group, key) for key in (MEAN_TAX, MEAN_SELECTIVITY))
        if tax is None or selectivity is None:
            continue
        name = sweep.label(group[0], seed=False)
        is_random = name.startswith("random")
        edges = name.partition("edges=")[2]
        label = {"random edges=none": "random: labels without meaning"}.get(name, name)
        dx, dy = (10, 18) if is_random else beside.get(name, (9, 15))
        colour = EDGE_COLOURS.get(edges, OTHER_COLOUR)
        label = "" if is_random and edges != "none" else label
        points.append(Point(label, tax, selectivity, colour, is_random, dx, dy))
    return plot("Tax and selectivity of every edge choice, the control and other methods", points)


def results_frontier() -> Svg:
    """From all blocks on for most to a mixture of experts, on one seed."""
    sweep = read_sweep(RESULTS_FOLDER / "peers_dropout")
    by_edges: dict[str, list[tuple[float, Point]]] = {}
    for job in sweep.compared:
        tax, selectivity = job.estimate(MEAN_TAX), job.estimate(MEAN_SELECTIVITY)
        if tax is None or selectivity is None:
            continue
        edges = str(job.settings["edges"])
        share = float(str(job.settings["route.foreign_dropout"]))
        is_same = edges == "none" and share == 1.0  # as act: nothing foreign is computed
        label, dx, dy = {
            ("none", 0.25): ("none, 0.25", -8, 14),
            ("none", 0.75): ("none, 0.75", -9, 4),
            ("none", 1.0): ("", 0, 0),
            ("act", 0.25): ("act, 0.25", 9, -3),
            ("act", 0.75): ("act, 0.75", 9, -6),
            ("act", 1.0): ("none and act, 1", -9, -9),
            ("weight", 0.25): ("0.25", 5, 44),
            ("weight", 0.75): ("0.75", 5, 44),
            ("weight", 1.0): ("weight, 1", -2, 46),
        }[edges, share]
        point = Point(label, tax, selectivity, EDGE_COLOURS[edges], is_same, dx, dy)
        by_edges.setdefault(edges, []).append((share, point))
    lines = [[p for _, p in sorted(of, key=lambda pair: pair[0])] for of in by_edges.values()]
    points = [point for line in lines for point in line]
    return plot("Tax and selectivity at foreign dropout 0.25, 0.75 and 1", points, lines)


PICTURES: dict[str, Callable[[], Svg]] = {
    "overview": overview,
    "blocks": blocks,
    "edge": lambda: edge("none", is_explained=True),
    **{f"edges-{name}": lambda name=name: edge(name) for name in ("none", "weight", "act", "both")},
    "dropout": dropout,
    "keep-remove": keep_remove,
    "plan-peers": lambda: owners("peers", DOMAINS),
    "plan-forget": lambda: owners("forget", DOMAINS, ["biology"]),
    "plan-tree": lambda: owners("tree", ("code", "biology/virology", "biology", "creative")),
    "plan-lattice": lambda: owners("lattice", DOMAINS),
}
"""Name of the file to what draws it."""

RESULTS: dict[str, Callable[[], Svg]] = {
    "results-edges": results_edges,
    "results-frontier": results_frontier,
}
"""Those that are drawn from docs/results/."""


def main() -> None:
    """Writes all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in (PICTURES | RESULTS).items():
        (FOLDER / f"{name}.svg").write_text(str(draw()), "utf-8")


if __name__ == "__main__":
    main()
