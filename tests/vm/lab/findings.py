# SPDX-License-Identifier: GPL-2.0
"""Tables that tests fill, which are printed when all tests have run."""

_TABLES = {}


def note(title, row, column, text, leaked=0):
    """Writes into a table; rows and columns are in the order in which they were first written to. Of two texts for the
    same place, as a test writes that is tried again, that one stays which tells of more that has leaked."""
    cells = _TABLES.setdefault(title, {}).setdefault(row, {})
    before, _ = cells.get(column, (0, ""))
    if leaked >= before:
        cells[column] = leaked, str(text)


def tables():
    """The title of each table, and its lines."""
    for title, rows in _TABLES.items():
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        lines = [["", *columns], *([row, *(cells.get(column, (0, ""))[1] for column in columns)]
                                   for row, cells in rows.items())]
        widths = [max(map(len, column)) for column in zip(*lines)]
        yield title, ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines]
