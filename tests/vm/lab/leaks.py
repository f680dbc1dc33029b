# SPDX-License-Identifier: GPL-2.0
"""What must not be seen even once: a protected packet in clear, or one that has arrived and never may."""


class Leak(AssertionError):
    """Something was seen. A test that ends with this has failed for good: no second try can undo it."""


def none(seen, *circumstances):
    """Nothing of the kind was seen: the list is empty, the number is 0."""
    if seen:
        raise Leak(f"seen, and must not be: {seen!r}", *circumstances)
