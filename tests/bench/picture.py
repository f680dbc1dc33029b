# SPDX-License-Identifier: GPL-2.0
"""The results as a picture: what a packet costs on each path more than to receive and drop it, and what of that no path
can save."""

from xml.sax.saxutils import escape

import paths

WIDTH = 820
LEFT = 190
RIGHT = 130
BAR = 22
STEP = 30
TOP = 92

# Readable on a white page and on a black one.
TEXT = "#808890"
SENDING = "#8a94a6"
OURS = "#2f9e6e"
OTHERS = "#c77d33"


def draw(known, what, size=64, flows=1):
    """Bars for small packets of one flow, with NAT where there are connections. `known`: from path, family,
    NAT, bytes and flows to figures."""
    groups = {}
    for family in (4, 6):
        # What was measured without NAT only knows of none. What was measured beside the others with it is to be compared
        # with them.
        chosen = {path: known.get((path.name, family, True, size, flows), known.get((path.name, family, False, size, flows)))
                  for path in paths.ALL}
        chosen = {path: figure for path, figure in chosen.items() if figure is not None}
        names = {path.name: figure for path, figure in chosen.items()}
        if {"drop", "floor"} <= names.keys():
            drop = names["drop"]
            groups[family] = (names["floor"] - drop, {path: figure - drop for path, figure in chosen.items()
                                                      if path.name != "drop"})
    longest = max((figure for _, chosen in groups.values() for figure in chosen.values()), default=1)
    scale = (WIDTH - LEFT - RIGHT) / longest
    parts, at = [], TOP
    for family, (floor, chosen) in groups.items():
        parts.append(text(LEFT, at - 8, f"IPv{family}", weight="bold"))
        begin = at
        for path, figure in chosen.items():
            parts += bar(path, at, [min(figure, floor) * scale, max(figure - floor, 0) * scale], figure, figure - floor)
            at += STEP
        line = LEFT + floor * scale
        parts.append(f'<path d="M{line:.1f} {begin - 3}V{at - STEP + BAR + 3}" stroke="{TEXT}" stroke-dasharray="3"/>')
        at += STEP
    head = [text(0, 18, f"{what} for a packet of {size} bytes, more than to receive and drop it; "
                 f"{'one flow' if flows == 1 else f'{flows} flows'}, masquerade", weight="bold"), *legend(0, 30)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{at - STEP // 2}" '
        f'viewBox="0 0 {WIDTH} {at - STEP // 2}" font-family="sans-serif" font-size="14" fill="{TEXT}">',
        *head, *parts, "</svg>", ""])


def legend(left, top):
    """What the colours mean."""
    parts = []
    for colour, words, width in ((SENDING, "what a bare redirect takes", 215), (OURS, "fasttrack's own (+)", 165),
                                 (OTHERS, "the other paths' own (+)", 0)):
        parts += [f'<rect x="{left}" y="{top}" width="12" height="12" fill="{colour}"/>', text(left + 17, top + 11, words)]
        left += width
    return parts


def bar(path, at, lengths, figure, own):
    """A path's bar, with its name and its figure, and what of it is the path's own."""
    colours = (SENDING, OURS if path.name.startswith("fasttrack") else OTHERS)
    middle = at + BAR * 0.7
    parts, left = [text(LEFT - 8, middle, path.title, anchor="end")], LEFT
    for length, colour in zip(lengths, colours, strict=True):
        if length > 0:
            parts.append(f'<rect x="{left:.1f}" y="{at}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        left += length
    return [*parts, text(left + 6, middle, f"{figure:.0f}" + (f" ({own:+.0f})" if own > 0 else ""))]


def text(x, y, words, anchor="start", weight="normal"):
    """Words in the picture."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
