# SPDX-License-Identifier: GPL-2.0
"""Tests for both versions of IP."""

import pytest

#: Has a test, or a file of tests, run for IPv4 and for IPv6.
both = pytest.mark.parametrize("family", ["ipv4", "ipv6"], indirect=True)
