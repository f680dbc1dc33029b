# SPDX-License-Identifier: GPL-2.0
"""Memory that the kernel does not give to the module: see faults/faults.c."""

import contextlib
import subprocess
from pathlib import Path

MODULE = Path("/mnt/share/faults.ko")
PARAMETERS = Path("/sys/module/faults/parameters")

#: All by which the module asks for memory, directly: what gives a pointer, and what gives an error.
POINTERS = ["kmem_cache_alloc_noprof", "__kmem_cache_create_args", "rust_helper_krealloc_node_align",
            "rust_helper_kvrealloc_node_align", "pcpu_alloc_noprof", "__alloc_skb", "__pskb_pull_tail"]
ERRORS = ["nf_register_net_hook", "nf_ct_netns_get", "register_pernet_subsys", "register_netdevice_notifier",
          "genl_register_family", "pskb_expand_head", "skb_ensure_writable", "pskb_trim_rcsum_slow"]


class Faults:
    """What the module asks for and does not get."""

    def __init__(self):
        subprocess.run(["insmod", str(MODULE), "caller=fasttrack", f"pointers={','.join(POINTERS)}",
                        f"errors={','.join(ERRORS)}"], check=True)

    @contextlib.contextmanager
    def after(self, count):
        """In this context `count` more requests are granted, and none after those."""
        self._let_pass(count)
        try:
            yield
        finally:
            self._let_pass(-1)

    def refused(self):
        """Requests that were refused so far, by function, without the zeros."""
        numbers = (PARAMETERS / "failed").read_text(encoding="ascii").split(",")
        # The kernel has places for more pointers than these.
        half = len(numbers) // 2
        counts = zip((*POINTERS, *ERRORS), map(int, (*numbers[:len(POINTERS)], *numbers[half:half + len(ERRORS)])))
        return {name: count for name, count in counts if count}

    @contextlib.contextmanager
    def tight(self, namespace, device):
        """In this context packets that arrive on a device have no room before their link-layer header."""
        with namespace.inside():
            (PARAMETERS / "tight").write_text(device, encoding="ascii")
        try:
            yield
        finally:
            (PARAMETERS / "tight").write_text("\n", encoding="ascii")

    def close(self):
        """Has everything granted again."""
        subprocess.run(["rmmod", "faults"], check=True)

    @staticmethod
    def _let_pass(count):
        (PARAMETERS / "pass").write_text(str(count), encoding="ascii")
