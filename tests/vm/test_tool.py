# SPDX-License-Identifier: GPL-2.0
"""The tool and the module together, on a real kernel."""

import json
import subprocess
import time

import pytest
from scapy.layers.inet import IP

from lab import kernel, leaks
from lab.traffic import Datagrams, Stream, Wire

ESP = 50


def tool(namespace, *words):
    """Runs the tool, which has to succeed. Gives what it printed."""
    return namespace.run("fasttrack", *words)


def as_json(namespace, *words):
    """Runs the tool with `-j`; gives what is inside of its envelope, without the metainfo."""
    return [entry for entry in json.loads(tool(namespace, "-j", *words))["fasttrack"] if "metainfo" not in entry]


def test_its_own_tests_of_the_kernel():
    """Those which need rights and real nf_tables; on the build machine they may have been skipped."""
    done = subprocess.run(["/mnt/share/tool/kernel"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "SKIPPED" not in done.stdout + done.stderr, done.stdout


def test_enable_is_silent_and_makes_flows_fast(router):
    assert tool(router.router, "enable") == ""
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    before = router.control.stats()
    datagrams.exchange(20)
    assert (router.control.stats() - before).fast >= 38
    listing = tool(router.router, "list", "flows")
    assert router.LAN in listing and router.WAN_GATEWAY in listing and "lan0" in listing
    assert len(as_json(router.router, "list", "flows")) == 2


def test_enable_twice_is_as_enable_once(router):
    tool(router.router, "enable")
    rules, config = tool(router.router, "list", "ruleset"), tool(router.router, "list", "config")
    tool(router.router, "enable")
    assert tool(router.router, "list", "ruleset") == rules
    assert tool(router.router, "list", "config") == config


def test_disable_removes_exactly_what_enable_installed(router):
    rules = router.router.run("nft", "list", "ruleset")
    tool(router.router, "enable")
    assert router.router.run("nft", "list", "ruleset") != rules
    assert tool(router.router, "disable") == ""
    assert router.router.run("nft", "list", "ruleset") == rules
    assert router.control.config()["enabled"] == 0
    assert tool(router.router, "disable") == ""


def test_the_mark_can_be_chosen(router):
    tool(router.router, "enable", "--mark", "0x10/0xf0")
    config = router.control.config()
    assert (config["mark-value"], config["mark-mask"]) == (0x10, 0xf0)
    assert "0x00000010" in router.router.run("nft", "list", "table", "inet", "fasttrack")


def test_the_listed_table_loads_again(router):
    tool(router.router, "enable")
    listed = tool(router.router, "list", "ruleset")
    tool(router.router, "disable")
    router.router.nft(listed)
    again = router.router.run("nft", "-s", "list", "table", "inet", "fasttrack")
    router.router.run("nft", "delete", "table", "inet", "fasttrack")
    tool(router.router, "enable")
    assert router.router.run("nft", "-s", "list", "table", "inet", "fasttrack") == again


def test_its_table_gone_is_said(router):
    tool(router.router, "enable")
    router.router.run("nft", "flush", "ruleset")
    done = router.router.status("fasttrack", "list", "ruleset")
    assert done.returncode == 1
    assert "enable" in done.stderr


def test_config_is_listed_as_commands(router):
    tool(router.router, "enable")
    tool(router.router, "set", "udp-timeout", "45s")
    assert router.control.config()["udp-timeout"] == 45_000
    commands = tool(router.router, "list", "config")
    tool(router.router, "set", "udp-timeout", "30s")
    done = subprocess.run(["ip", "netns", "exec", router.router.name, "fasttrack", "-f", "-"], input=commands,
                          text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert router.control.config()["udp-timeout"] == 45_000


def test_stats_add_up(router):
    tool(router.router, "enable")
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    datagrams.exchange(10)
    stats = router.control.stats()
    text = json.dumps(as_json(router.router, "list", "stats"))
    assert str(stats.packets[0]) in text and str(stats.bytes[1]) in text
    assert "learning" in tool(router.router, "list", "stats")


def test_flush_and_delete(router):
    tool(router.router, "enable")
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    keep, drop = router.control.flows()
    tool(router.router, "delete", "flow", "id", drop["id"])
    assert [flow["id"] for flow in router.control.flows()] == [keep["id"]]
    tool(router.router, "flush", "flows")
    assert router.control.flows() == []
    done = router.router.status("fasttrack", "delete", "flow", "id", 999)
    assert done.returncode == 1
    assert "no flow has this id" in done.stderr and "^" in done.stderr


def test_refusals_point_at_the_word(router):
    done = router.router.status("fasttrack", "set", "table-size", "3")
    assert done.returncode in (1, 2)
    assert "16" in done.stderr and "^" in done.stderr, done.stderr


def test_monitor_shows_what_comes_and_goes(router):
    tool(router.router, "enable")
    text = router.router.start("fasttrack", "monitor", stdout=subprocess.PIPE, text=True)
    as_lines = router.router.start("fasttrack", "-j", "monitor", stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))

    def both_are_learned():
        datagrams.exchange(1)
        return len(router.control.flows()) == 2

    kernel.wait_until(both_are_learned, 10, pause=0.1)
    router.control.flush()
    time.sleep(0.3)
    for monitor in (text, as_lines):
        monitor.terminate()
    lines = text.communicate(timeout=5)[0].splitlines()
    assert sum("flushed" in line for line in lines) == 2, lines
    events = [json.loads(line) for line in as_lines.communicate(timeout=5)[0].splitlines()]
    assert len(events) >= 4


def test_without_the_module(router):
    router.control.close()
    router.control.close = lambda: None
    kernel.unload()
    with kernel.not_loading_by_itself():
        for words in (("enable",), ("list", "flows"), ("flush", "flows")):
            done = router.router.status("fasttrack", *words)
            assert done.returncode == 3, words
            assert "module is not loaded" in done.stderr
        # What `enable` would have installed has not been left behind.
        assert "fasttrack" not in router.router.run("nft", "list", "tables")
        assert router.router.status("fasttrack", "disable").returncode == 0


def test_the_module_is_loaded_when_it_is_asked_for(router):
    router.control.close()
    router.control.close = lambda: None
    kernel.unload()
    tool(router.router, "enable")
    assert kernel.loaded()


def test_without_rights(router):
    tool(router.router, "enable")
    plain = ("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "fasttrack")
    assert router.router.status(*plain, "list", "config").returncode == 0
    done = router.router.status(*plain, "flush", "flows")
    assert done.returncode == 3
    assert "not permitted" in done.stderr.lower()
    # Who talks to whom is nobody else's business.
    for words in (("list", "flows"), ("monitor",)):
        done = router.router.status(*plain, *words)
        assert done.returncode == 3, words
        assert "not permitted" in done.stderr.lower()


def test_the_other_namespace(router):
    subprocess.run(["fasttrack", "-N", router.router.name, "enable"], check=True)
    assert router.control.config()["enabled"] == 1


@pytest.fixture
def protected(tunnel):
    """The tunnel, with masquerade towards the WAN and `fasttrack enable` on gateway A."""
    tunnel.a.nft("""
        table ip nat {
            chain postrouting {
                type nat hook postrouting priority srcnat;
                oifname "wan0" masquerade
            }
        }
    """)
    tool(tunnel.a, "enable")
    wire = Wire(tunnel.wan, "porta")
    yield tunnel, wire
    wire.close()


def test_tunnel_connections_are_marked_and_stay_encrypted(protected):
    tunnel, wire = protected
    stream = Stream(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B)
    stream.warm_up()
    before = tunnel.control.stats()
    wire.frames(0.1)
    stream.exchange(10)
    assert (tunnel.control.stats() - before).fast == 0
    packets = wire.packets()
    leaks.none([packet for packet in packets if packet[IP].proto != ESP])
    assert packets
    line, = (line for line in tunnel.a.run("conntrack", "-L", "-p", "tcp").splitlines() if tunnel.LAN_B in line)
    assert f"mark={0x08000000}" in line
    stream.close()


def test_connections_that_the_other_side_begins_are_marked_too(protected):
    tunnel, wire = protected
    stream = Stream(tunnel.lan_b, tunnel.lan_a, tunnel.LAN_A)
    stream.warm_up()
    stream.exchange(10)
    assert tunnel.control.stats().fast == 0
    leaks.none([packet for packet in wire.packets() if packet[IP].src in (tunnel.LAN_A, tunnel.LAN_B)])
    assert f"mark={0x08000000}" in tunnel.a.run("conntrack", "-L", "-p", "tcp")
    stream.close()


def test_plain_connections_are_masqueraded_and_fast_beside_it(protected):
    tunnel, _ = protected
    datagrams = Datagrams(tunnel.lan_a, tunnel.stranger, tunnel.STRANGER)
    datagrams.warm_up()
    before = tunnel.control.stats()
    datagrams.exchange(20)
    assert (tunnel.control.stats() - before).fast >= 38
    assert datagrams.seen_from[0] == tunnel.A
    datagrams.close()


def test_the_other_bits_of_a_mark_are_left_alone(protected):
    tunnel, _ = protected
    tunnel.a.nft("""
        table inet others {
            chain forward {
                type filter hook forward priority raw;
                ct mark set ct mark or 0x00345600
            }
        }
    """)
    stream = Stream(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B)
    stream.warm_up()
    assert f"mark={0x08345600}" in tunnel.a.run("conntrack", "-L", "-p", "tcp")
    stream.close()
