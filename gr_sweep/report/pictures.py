"""Pictures of a round as SVG: the tree of its blocks, and the network's units by owner and by use.

They stand in the page, whose colours they take by their CSS names, and alone in files of their own.
Hue says the domain, the shade what lies below it, the same in every picture of a sweep.
"""

import base64
import html
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gr_sweep.domains import ancestors, is_under
from gr_sweep.report.round_files import Block, Network, Place, Round

Colour = tuple[int, int, int]

CORE_COLOUR: Colour = (150, 156, 162)
"""Of what belongs to nobody in particular; reads on light and dark."""

_HUES = (
    # Lightness, chroma, hue in OKLCH: far apart in lightness too, for colour-blind readers.
    (0.56, 0.14, 255.0), (0.78, 0.14, 80.0), (0.62, 0.16, 8.0), (0.64, 0.13, 150.0),
    (0.52, 0.15, 305.0), (0.76, 0.10, 200.0),
)  # fmt: skip
_LIGHTNESS_OF_CHILDREN, _HUE_OF_CHILDREN = 0.13, 20.0
"""How far what lies below a domain may be from it."""

_THEME = {"ink": "#1b1f24", "muted": "#667079", "line": "#c9ced4", "panel": "#ffffff"}
"""Colours of the page in light, for a file that stands alone."""

_BAR, _LINK, _ROW = 170, 36, 50
"""Pixels of the tree: a block with all units at least, between two levels, between two leaves."""
_WIDTH, _GUTTER = 980, 30
"""Pixels of the network, and left of it for the numbers of layers."""
_NARROW = 130
"""Pixels of a kind of few units beside another."""
_FEW_UNITS = 64
_LETTER, _BOLD_LETTER = 6.4, 7.8
"""Pixels of a letter at most, in text of 11 and 12.5."""
_LEVELS = 15
"""Steps of how far a domain leads: more are not seen, and compress worse."""


def colours_of(domains: Sequence[str], labels: Iterable[str]) -> dict[str, Colour]:
    """A colour for every node of the tree: one hue for each branch of its first fork.

    Args:
        domains: of the partition, whose order gives the hues.
        labels: of all rounds.
    """
    nodes = dict.fromkeys(n for label in (*domains, *labels) for n in ancestors(label))
    found: dict[str, Colour] = {}

    def paint(node: str, lch: tuple[float, float, float], low: float, high: float) -> None:
        middle = (low + high) / 2
        lightness, chroma, hue = lch
        found[node] = _srgb(
            lightness + _LIGHTNESS_OF_CHILDREN * middle, chroma, hue + _HUE_OF_CHILDREN * middle
        )
        below = _children(node, nodes)
        # On both sides of the node, so that none has its shade.
        half = math.ceil(len(below) / 2)
        for side, start, stop in ((below[:half], low, middle), (below[half:], middle, high)):
            for at, child in enumerate(side):
                step = (stop - start) / len(side)
                paint(child, lch, start + at * step, start + (at + 1) * step)

    tops = _children(None, nodes)
    while len(tops) == 1 and (below := _children(tops[0], nodes)):
        found[tops[0]] = CORE_COLOUR
        tops = below
    for at, top in enumerate(tops):
        lightness, chroma, hue = _HUES[at % len(_HUES)]
        turn = 27.0 * (at // len(_HUES))
        paint(top, (lightness, chroma, hue + turn), -1.0, 1.0)
    return found


def _children(node: str | None, nodes: Iterable[str]) -> list[str]:
    return [n for n in nodes if (n.rpartition("/")[0] or None) == node]


def _hue_of(colours: Mapping[str, Colour], label: str) -> str:
    """The node that gives a label its hue."""
    path = ancestors(label)
    return next((node for node in path if colours.get(node, CORE_COLOUR) != CORE_COLOUR), path[0])


def block_colour(block: Block, colours: Mapping[str, Colour]) -> Colour:
    """Of the block's node, or the mean over its owners."""
    if block.is_core:
        return CORE_COLOUR
    if block.name in colours:
        return colours[block.name]
    own = [colours[owner] for owner in block.owners if owner in colours]
    if not own:
        return CORE_COLOUR
    red, green, blue = (round(sum(part) / len(own)) for part in zip(*own, strict=True))
    return red, green, blue


def css(colour: Colour) -> str:
    """As #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def standing_alone(svg: str) -> str:
    """The content of a file with the picture, in the page's colours for light."""
    for name, colour in _THEME.items():
        svg = svg.replace(f"var(--{name})", colour)
    font = 'font-family="system-ui, -apple-system, Helvetica, Arial, sans-serif"'
    return svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {font} ', 1) + "\n"


# The tree


def tree(found: Round, colours: Mapping[str, Colour]) -> str:
    """The blocks from left to right: of each its units, as a bar and in numbers, and the loss of
    its documents in its expert alone and in the full model."""
    parents = _parents(found.blocks)
    depths = [0] * len(found.blocks)
    for at, parent in enumerate(parents):
        depths[at] = 0 if parent is None else depths[parent] + 1
    rows = _rows(parents)
    totals: dict[str, int] = {}
    for block in found.blocks:
        for kind, size in block.units.items():
            totals[kind] = totals.get(kind, 0) + size
    bar = max([_BAR, *(math.ceil(_text_width(block)) for block in found.blocks)])
    column = bar + _LINK
    width = column * (max(depths) + 1)
    height = round(_ROW * (max(rows) + 1)) + 4
    parts = []
    for at, parent in enumerate(parents):
        if parent is None:
            continue
        # From bar to bar.
        x0, y0 = column * depths[parent] + bar + 3, _y(rows[parent]) + 3.5
        x1, y1 = column * depths[at] - 3, _y(rows[at]) + 3.5
        bend = (x0 + x1) / 2
        parts.append(
            f'<path d="M{x0} {y0:.1f}C{bend} {y0:.1f} {bend} {y1:.1f} {x1} {y1:.1f}" '
            'fill="none" style="stroke:var(--muted)" opacity=".55"/>'
        )
    for at, block in enumerate(found.blocks):
        parts.append(_node(found, block, colours, totals, column * depths[at], _y(rows[at]), bar))
    labels = ", ".join(found.labels)
    return _svg(width, height, f"round {found.number}: blocks of {labels}", parts)


def _y(row: float) -> float:
    return _ROW * (row + 0.5)


def _node(
    found: Round,
    block: Block,
    colours: Mapping[str, Colour],
    totals: Mapping[str, int],
    x: float,
    y: float,
    bar: int,
) -> str:
    own, full = found.losses(block)
    shares = [block.units[kind] / total for kind, total in totals.items() if total]
    share = sum(shares) / len(shares) if shares else 0.0
    losses = " · ".join(
        f"{name} {loss:.3f}"
        for name, loss in (("experts" if block.is_core else "expert", own), ("full", full))
        if loss is not None
    )
    title = f"{block.name}: {_units(block)}, {100 * share:.1f} % of the network's"
    if losses:
        title += f"; loss of its documents, nats per token: {losses}"
    name = html.escape(block.name)
    return (
        f"<g><title>{html.escape(title)}</title>"
        f'<text x="{x}" y="{y - 4:.1f}" font-size="12.5" style="fill:var(--ink)">'
        f'<tspan font-weight="600">{name}</tspan>'
        f'<tspan dx="7" font-size="11" style="fill:var(--muted)">{_units(block)}</tspan></text>'
        f'<rect x="{x}" y="{y + 1:.1f}" width="{bar}" height="5" rx="2.5" '
        'style="fill:var(--line)" opacity=".45"/>'
        f'<rect x="{x}" y="{y + 1:.1f}" width="{max(3.0, bar * share):.1f}" height="5" rx="2.5" '
        f'fill="{css(block_colour(block, colours))}"/>'
        f'<text x="{x}" y="{y + 18:.1f}" font-size="11" style="fill:var(--muted)">{losses}</text>'
        "</g>"
    )


def _text_width(block: Block) -> float:
    return _BOLD_LETTER * len(block.name) + 7 + _LETTER * len(_units(block))


_NAMES_OF_KINDS = {"mlp": ("unit", "units"), "attn": ("head group", "head groups")}


def _units(block: Block) -> str:
    found = []
    for kind, size in block.units.items():
        one, several = (
            name.removeprefix("head ") for name in _NAMES_OF_KINDS.get(kind, (kind, kind))
        )
        found.append(f"{size:,} {one if size == 1 else several}")
    return " + ".join(found)


def _parents(blocks: Sequence[Block]) -> list[int | None]:
    """Of each block the place of the one that it hangs from: the nearest above it by name, or the
    core."""
    places = {block.name: at for at, block in enumerate(blocks)}
    found: list[int | None] = []
    for block in blocks:
        above = block.name
        while above and not (above != block.name and above in places):
            above = above.rpartition("/")[0]
        found.append(None if block.is_core else places.get(above, 0))
    return found


def _rows(parents: Sequence[int | None]) -> list[float]:
    """Of each block its row: leaves one below the other, the others in the middle of theirs."""
    below: dict[int, list[int]] = {}
    for at, parent in enumerate(parents):
        if parent is not None:
            below.setdefault(parent, []).append(at)
    rows = [0.0] * len(parents)
    num_leaves = 0

    def put(at: int) -> None:
        nonlocal num_leaves
        children = below.get(at, [])
        for child in children:
            put(child)
        if children:
            rows[at] = (rows[children[0]] + rows[children[-1]]) / 2
        else:
            rows[at] = num_leaves
            num_leaves += 1

    for at, parent in enumerate(parents):
        if parent is None:
            put(at)
    return rows


# The network


def leading(
    shares: np.ndarray, hues: Sequence[str], num_columns: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit the domain with the largest share, and how far it leads: 0 where a domain of
    another hue has as large a share, 1 where none of them uses the unit.

    Args:
        shares: [domains, units].
        hues: of each domain.
        num_columns: units are put together to so many columns; None: none are.

    Returns:
        Index of the domain, -1 where no domain uses the unit; how far it leads, in 0..1.
    """
    if num_columns is not None and num_columns < shares.shape[1]:
        starts = np.arange(num_columns) * shares.shape[1] // num_columns
        shares = np.add.reduceat(shares, starts, axis=1)
    shares = np.nan_to_num(shares)
    first = shares.argmax(axis=0)
    top = shares.max(axis=0)
    is_other = np.array([[a != b for b in hues] for a in hues])  # [leading, domains]
    others = np.where(is_other[first].T, shares, 0.0).max(axis=0)
    safe = np.where(top > 0, top, 1.0)
    return np.where(top > 0, first, -1), np.where(top > 0, 1.0 - others / safe, 0.0)


def agreement(found: Round, colours: Mapping[str, Colour]) -> tuple[float, float] | None:
    """Share of the units outside the core whose leading domain is an owner of them, and what that
    would be by chance: then modularity would be the same."""
    network = found.network
    if network is None:
        return None
    hues = [_hue_of(colours, domain) for domain in network.domains]
    owns = np.array(
        [[domain in block.owners for domain in network.domains] for block in found.blocks]
    )
    agreeing, num_units, by_chance = 0, 0, 0.0
    for place, sizes in network.sizes.items():
        if place not in network.shares or len(sizes) != len(found.blocks):
            continue
        blocks = np.repeat(np.arange(len(sizes)), sizes)
        leader, _ = leading(network.shares[place], hues)
        chosen = (blocks > 0) & (leader >= 0)
        agreeing += int(owns[blocks[chosen], leader[chosen]].sum())
        num_units += int((blocks > 0).sum())
        by_chance += float(owns[blocks[blocks > 0]].mean(axis=1).sum())
    return (agreeing / num_units, by_chance / num_units) if num_units else None


def used_most(found: Round, colours: Mapping[str, Colour]) -> list[list[Any]]:
    """Of the units of each layer, kind and block, how many each domain uses most: names of columns,
    then rows. Empty where the round has no scores."""
    of = found.network
    if of is None or any(len(sizes) != len(found.blocks) for sizes in of.sizes.values()):
        return []
    hues = [_hue_of(colours, domain) for domain in of.domains]
    used = [f"used most by {domain}" for domain in of.domains]
    rows: list[list[Any]] = [["layer", "kind", "block", "units", *used]]
    for place in sorted(of.shares):
        sizes = _sizes(of, place, len(found.blocks))
        leader, _ = leading(of.shares[place], hues)
        ends = np.cumsum(sizes)
        for block, size, end in zip(found.blocks, sizes, ends, strict=True):
            own = leader[end - size : end]
            counts = [int((own == at).sum()) for at in range(len(of.domains))]
            if size:
                rows.append([place[0], place[1], block.name, int(size), *counts])
    return rows


def network(found: Round, colours: Mapping[str, Colour]) -> str | None:
    """Two bands a layer, a column a unit in the plan's order: above its owner, below the domain
    that uses it most. Where there are more units than columns, neighbours are put together. None
    where the round has no scores."""
    of = found.network
    if of is None or any(len(sizes) != len(found.blocks) for sizes in of.sizes.values()):
        return None
    layers = sorted({layer for layer, _ in of.shares})
    kinds = [kind for kind in _NAMES_OF_KINDS if any(kind == k for _, k in of.shares)]
    band = max(4, min(13, 300 // (2 * len(layers))))
    pitch = 2 * band + max(3, band // 2)
    top = 40
    height = top + pitch * len(layers)
    parts = []
    parts.append(
        f'<text x="0" y="{top - 4}" font-size="9.5" style="fill:var(--muted)">layer</text>'
    )
    step = 1 if pitch >= 12 else math.ceil(12 / pitch)
    for at, layer in enumerate(layers):
        if at % step == 0:
            parts.append(
                f'<text x="{_GUTTER - 7}" y="{top + at * pitch + band + 4}" font-size="10.5" '
                f'text-anchor="end" style="fill:var(--muted)">{layer}</text>'
            )
    for kind, x, width in _panels(of, kinds):
        parts += _panel(found, of, colours, kind, layers, (x, top, width, band, pitch))
    return _svg(_WIDTH, height, f"round {found.number}: units by owner and by use", parts)


def _panels(of: Network, kinds: Sequence[str]) -> list[tuple[str, int, int]]:
    """Kind, left end and width of each."""
    free = _WIDTH - _GUTTER
    num_units = {
        kind: max(shares.shape[1] for (_, k), shares in of.shares.items() if k == kind)
        for kind in kinds
    }
    if len(kinds) == 1:
        return [(kinds[0], _GUTTER, free)]
    narrow = [kind for kind in kinds if num_units[kind] <= _FEW_UNITS]
    if len(narrow) in (0, len(kinds)):
        widths = dict.fromkeys(kinds, (free - 16) // len(kinds))
    else:
        widths = {k: _NARROW if k in narrow else free - 16 - _NARROW for k in kinds}
    panels, x = [], _GUTTER
    for kind in kinds:
        panels.append((kind, x, widths[kind]))
        x += widths[kind] + 16
    return panels


def _panel(
    found: Round,
    of: Network,
    colours: Mapping[str, Colour],
    kind: str,
    layers: Sequence[int],
    frame: tuple[int, int, int, int, int],
) -> list[str]:
    x, top, width, band, pitch = frame
    places = [(layer, kind) for layer in layers if (layer, kind) in of.shares]
    num_units = max(of.shares[place].shape[1] for place in places)
    num_columns = min(num_units, width)
    rgba = np.zeros((pitch * len(layers), num_columns, 4), dtype=np.uint8)
    of_blocks = np.array([block_colour(block, colours) for block in found.blocks], dtype=np.uint8)
    of_domains = np.array(
        [colours.get(domain, CORE_COLOUR) for domain in of.domains], dtype=np.uint8
    )
    hues = [_hue_of(colours, domain) for domain in of.domains]
    lines: dict[bool, list[str]] = {True: [], False: []}
    for place in places:
        at = layers.index(place[0])
        sizes = _sizes(of, place, len(found.blocks))
        columns = (np.arange(num_columns) * sum(sizes)) // num_columns
        blocks = np.repeat(np.arange(len(sizes)), sizes)[columns]
        owners = rgba[at * pitch : at * pitch + band]
        owners[:, :, :3], owners[:, :, 3] = of_blocks[blocks], 255
        leader, lead = leading(of.shares[place], hues, num_columns)
        used = rgba[at * pitch + band : at * pitch + 2 * band]
        used[:, :, :3] = of_domains[leader]
        # The square root, as in the matrices of removal: a lead of a quarter is seen.
        used[:, :, 3] = np.round(_LEVELS * np.sqrt(lead)) * (255 / _LEVELS)
        y = top + at * pitch
        for unit, is_outer in _bounds(found.blocks, sizes, colours):
            at_x = x + width * unit / sum(sizes)
            lines[is_outer].append(f"M{at_x:.1f} {y}v{2 * band}")
    picture = base64.b64encode(png(rgba)).decode()
    parts = [
        f'<image x="{x}" y="{top}" width="{width}" height="{rgba.shape[0]}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{picture}"/>'
    ]
    for is_outer, drawn in lines.items():
        if drawn:
            look = "var(--ink)" if is_outer else "var(--panel)"
            parts.append(
                f'<path d="{"".join(drawn)}" fill="none" stroke-width="{1.2 if is_outer else 0.7}" '
                f'style="stroke:{look}"/>'
            )
    heading = "MLP units" if kind == "mlp" else _NAMES_OF_KINDS[kind][1]
    parts.append(
        f'<text x="{x}" y="11" font-size="11" style="fill:var(--muted)">'
        f"{heading}: {num_units:,} a layer</text>"
    )
    if len({_sizes(of, place, len(found.blocks)) for place in places}) == 1:
        parts += _span_names(found, _sizes(of, places[0], len(found.blocks)), colours, frame)
    return parts


def _sizes(of: Network, place: Place, num_blocks: int) -> tuple[int, ...]:
    """Units of each block; of a layer that is not split all are the core's."""
    if place in of.sizes:
        return tuple(of.sizes[place])
    return (of.shares[place].shape[1], *(0,) * (num_blocks - 1))


def _spans(
    blocks: Sequence[Block], sizes: Sequence[int], colours: Mapping[str, Colour]
) -> list[tuple[str, int, int]]:
    """Name, first and last unit of the stretches of one hue."""
    spans: list[tuple[str, int, int]] = []
    start = 0
    for block, size in zip(blocks, sizes, strict=True):
        name = block.name if "+" in block.name else _hue_of(colours, block.name)
        if block.is_core:
            name = block.name
        if size and spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1], start + size)
        elif size:
            spans.append((name, start, start + size))
        start += size
    return spans


def _bounds(
    blocks: Sequence[Block], sizes: Sequence[int], colours: Mapping[str, Colour]
) -> Iterable[tuple[int, bool]]:
    """First unit of every block but the first, and whether another hue begins there."""
    outer = {start for _, start, _ in _spans(blocks, sizes, colours)}
    start = 0
    for size in sizes[:-1]:
        start += size
        if size and 0 < start < sum(sizes):
            yield start, start in outer


def _span_names(
    found: Round,
    sizes: Sequence[int],
    colours: Mapping[str, Colour],
    frame: tuple[int, int, int, int, int],
) -> list[str]:
    x, top, width, _, _ = frame
    parts = []
    for name, start, stop in _spans(found.blocks, sizes, colours):
        left, right = (x + width * unit / sum(sizes) for unit in (start, stop))
        is_core = name == found.blocks[0].name
        paint = css(CORE_COLOUR if is_core else _span_colour(found, name, colours))
        parts.append(
            f'<path d="M{left + 1:.1f} {top - 5}H{right - 1:.1f}" stroke="{paint}" '
            'stroke-width="3"/>'
        )
        if _LETTER * len(name) < right - left:
            parts.append(
                f'<text x="{(left + right) / 2:.1f}" y="{top - 11}" font-size="11.5" '
                f'text-anchor="middle" style="fill:var(--ink)">{html.escape(name)}</text>'
            )
    return parts


def _span_colour(found: Round, name: str, colours: Mapping[str, Colour]) -> Colour:
    if name in colours:
        return colours[name]
    return next(block_colour(b, colours) for b in found.blocks if is_under(b.name, name))


def _svg(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
    )


# Colours and files


def _srgb(lightness: float, chroma: float, hue: float) -> Colour:
    """Of OKLCH (Ottosson 2020, https://bottosson.github.io/posts/oklab/), clipped."""
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red, green, blue = (
        _encoded(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _encoded(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _encoded(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )
    return red, green, blue


def _encoded(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    value = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * value)


def png(rgba: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """A picture [height, width, 4] as a PNG file."""
    height, width, _ = rgba.shape
    rows = rgba.reshape(height, -1)
    # The filter Up: a row that repeats the one above is zeros.
    filtered = np.full((height, 1 + rows.shape[1]), 2, dtype=np.uint8)
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
