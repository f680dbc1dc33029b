# SPDX-License-Identifier: GPL-2.0
"""What the tests are made of: namespaces, topologies, traffic, and the module's control."""
