# SPDX-License-Identifier: GPL-2.0
"""The results as a picture: what a packet costs more than to be received and dropped."""

from xml.sax.saxutils import escape

import paths
import report

WIDTH = 760
LEFT = 190
RIGHT = 60
BAR = 22
STEP = 32
TOP = 64

# Readable on a white page and on a black one.
TEXT = "#808890"
SENDING = "#8a94a6"
OURS = "#2f9e6e"
OTHERS = "#c77d33"


def draw(results, size=64, flows=1):
    """Bars for one flow of small packets, with NAT where there are connections."""
    known = report.figures(results)
    parts = []
    at = TOP
    longest = max((figure - drop(known, key) for key, figure in known.items()
                   if figure is not None and key[3:] == (size, flows) and drop(known, key) is not None), default=1)
    scale = (WIDTH - LEFT - RIGHT) / max(longest, 1)
    for family in sorted({key[1] for key in known}):
        floor = known.get(("floor", family, False, size, flows))
        base = known.get(("drop", family, False, size, flows))
        if floor is None or base is None:
            continue
        parts.append(text(LEFT, at - 8, f"IPv{family}", weight="bold"))
        for path in paths.ALL[1:]:
            figure = known.get((path.name, family, path.tracked, size, flows))
            if figure is None:
                continue
            parts += bar(path, at, (floor - base) * scale, (figure - floor) * scale, figure - base)
            at += STEP
        at += STEP
    head = [text(0, 18, "Instructions for a packet, more than to receive and drop it", anchor="start", weight="bold"),
            text(0, 38, f"{size} bytes, {'one flow' if flows == 1 else f'{flows} flows'}, masquerade; "
                 "grey: sending it, which nothing can save", anchor="start")]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{at - STEP // 2}" '
        f'viewBox="0 0 {WIDTH} {at - STEP // 2}" font-family="sans-serif" font-size="14" fill="{TEXT}">',
        *head, *parts, "</svg>", ""])


def drop(known, key):
    """What it costs to receive and drop a packet of the cell."""
    return known.get(("drop", key[1], False, *key[3:]))


def bar(path, at, sending, own, figure):
    """A path's bar, with its name and its figure."""
    colour = OURS if path.name.startswith("fasttrack") else OTHERS
    middle = at + BAR * 0.7
    return [
        text(LEFT - 8, middle, path.title, anchor="end"),
        f'<rect x="{LEFT}" y="{at}" width="{sending:.1f}" height="{BAR}" fill="{SENDING}"/>',
        f'<rect x="{LEFT + sending:.1f}" y="{at}" width="{own:.1f}" height="{BAR}" fill="{colour}"/>',
        text(LEFT + sending + own + 6, middle, f"{figure:.0f}"),
    ]


def text(x, y, words, anchor="start", weight="normal"):
    """Words in the picture."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
