# SPDX-License-Identifier: GPL-2.0
"""The module's control interface, through the kernel's own YNL client.

The client knows nothing of fasttrack but `fasttrack.yaml`: that it works is a test of that file.
"""

import functools
import pickle
import sys
from pathlib import Path

import yaml

SHARE = Path("/mnt/share")
sys.path.insert(0, str(SHARE / "ynl"))

from pyynl.lib import NlError, YnlFamily  # noqa: E402  (found through the path above)
from pyynl.lib.ynl import GenlProtocol  # noqa: E402

SPECIFICATION = SHARE / "checkout" / "fasttrack.yaml"

__all__ = ["Control", "NlError"]


@functools.cache
def _parsed(text):
    return pickle.dumps(yaml.load(text, Loader=YnlFamily._yaml_loader))  # pylint: disable=protected-access


class _Once:
    """What reads a specification for the client: each only once, since that takes as long as all the rest of a test's
    beginning."""

    def __init__(self, stream):
        self._text = stream.read()

    def get_single_data(self):
        """All of it."""
        return pickle.loads(_parsed(self._text))

    def dispose(self):
        """There is nothing left."""


class _Client(YnlFamily):
    """The kernel's own client."""

    _yaml_loader = _Once


class Control:
    """fasttrack in one namespace."""

    def __init__(self, namespace):
        self._namespace = namespace
        # The client remembers the numbers of families for ever; ours gets another one with each load.
        GenlProtocol.genl_family_name_to_id = {}
        with namespace.inside():
            self._family = _Client(str(SPECIFICATION), schema="")

    def enable(self, **config):
        """Switches it on. Unless something else is asked for, a flow is learned with the first packet that can be:
        nobody has to count those that come before."""
        self.set(enabled=1, **{"learn_after": 1} | config)

    def disable(self):
        """Switches it off."""
        self.set(enabled=0)

    def set(self, **config):
        """Changes the configuration."""
        self._family.do("config-set", {key.replace("_", "-"): value for key, value in config.items()})

    def config(self):
        """The configuration."""
        return self._family.do("config-get", {})

    def flush(self, **which):
        """Drops flows."""
        self._family.do("flow-flush", which)

    def flows(self, **wanted):
        """The flows for which every given attribute has the given value."""
        flows = self._family.dump("flow-get", {})
        return [flow for flow in flows
                if all(flow.get(key.replace("_", "-")) == value for key, value in wanted.items())]

    def stats(self):
        """The statistics."""
        return Stats(self._family.do("stats-get", {}))

    def listen(self):
        """Begins to collect events; see `events`."""
        with self._namespace.inside():
            self._listener = _Client(str(SPECIFICATION), schema="")
        self._listener.ntf_subscribe("events")

    def events(self):
        """The events since the last call: pairs of a name and a dictionary."""
        self._listener.check_ntf()
        events = []
        while not self._listener.async_msg_queue.empty():
            message = self._listener.async_msg_queue.get()
            events.append((message["name"], message["msg"]))
        return events

    def close(self):
        """Gives the sockets back."""
        self._family.sock.close()
        if hasattr(self, "_listener"):
            self._listener.sock.close()


class Stats:
    """A reading of the statistics, from which another one can be subtracted."""

    def __init__(self, raw):
        self.flows = raw["flows"]
        self.learned = raw["learned"]
        self.devices = raw["devices"]
        self.flow_bytes = raw["flow-bytes"]
        self.index_bytes = raw["index-bytes"]
        self.packets = (raw["packets-original"], raw["packets-reply"])
        self.bytes = (raw["bytes-original"], raw["bytes-reply"])
        self.slow = {entry["reason"]: entry["packets"] for entry in raw["slow"]}
        self.gone = {entry["reason"]: entry["flows"] for entry in raw["gone"]}

    @property
    def fast(self):
        """Packets that took the fast path, in both directions."""
        return sum(self.packets)

    def __sub__(self, before):
        after = object.__new__(Stats)
        after.flows = self.flows
        after.devices = self.devices
        after.flow_bytes = self.flow_bytes
        after.index_bytes = self.index_bytes
        after.learned = self.learned - before.learned
        after.packets = tuple(a - b for a, b in zip(self.packets, before.packets))
        after.bytes = tuple(a - b for a, b in zip(self.bytes, before.bytes))
        after.slow = {key: self.slow[key] - before.slow[key] for key in self.slow}
        after.gone = {key: self.gone[key] - before.gone[key] for key in self.gone}
        return after

    def reasons(self):
        """The slow packets by reason, without the zeros."""
        return {key: count for key, count in self.slow.items() if count}

    def departures(self):
        """The flows that have gone by reason, without the zeros."""
        return {key: count for key, count in self.gone.items() if count}
