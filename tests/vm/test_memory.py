# SPDX-License-Identifier: GPL-2.0
"""The kernel has no memory for the module: what is asked for fails as a whole and with an error, what is
there goes on, and afterwards everything is as before.

Where one thing takes several allocations, each of them in turn is the first that fails.
"""

import itertools
import os
import subprocess
import time

import pytest

from lab import kernel
from lab.both import both
from lab.control import NlError
from lab.faults import Faults
from lab.traffic import Datagrams, Stream, Wire

ENOMEM = 12
#: In milliseconds: so that nothing is slow because it is a sample.
NO_SAMPLES = 60_000


@pytest.fixture
def faults():
    made = Faults()
    yield made
    made.close()


@pytest.fixture
def one_cpu():
    """All packets are sent on one processor, which so has all routes of IPv6: each has its own."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def datagrams(router):
    return router.until_removed(Datagrams(router.lan, router.wan, router.WAN))


def moved(router, run, faults=None):
    """What the statistics say of a run, without any memory if there are `faults`."""
    before = router.control.stats()
    if faults:
        with faults.after(0):
            run()
    else:
        run()
    return router.control.stats() - before


def is_fast(router, conversation):
    """A conversation is fast; gives its statistics."""
    stats = moved(router, lambda: conversation.exchange(30))
    assert stats.fast >= 56, (stats.packets, stats.reasons())
    return stats


def refused_in_turn(faults, attempt, check=lambda: None, most=40):
    """Attempts something again and again, until it succeeds: each time with one allocation more than the
    time before. Gives how often it failed, which has to be for want of memory, and have a `check` hold."""
    for count in itertools.count():
        assert count < most, faults.refused()
        before = sum(faults.refused().values())
        succeeded = True
        with faults.after(count):
            try:
                attempt()
            except NlError as exception:
                assert exception.error == ENOMEM, exception
                succeeded = False
            except MemoryError:
                succeeded = False
        refused = sum(faults.refused().values()) - before
        assert (refused == 0) == succeeded, faults.refused()
        if succeeded:
            return count
        check()


def run(*command):
    """Runs a command.

    :raises MemoryError: if it says that there is none
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        assert "Cannot allocate memory" in done.stderr, done.stderr
        raise MemoryError


@both
def test_new_flows_stay_slow_and_old_ones_fast(router, datagrams, faults, one_cpu):
    router.control.enable(sample_interval=NO_SAMPLES)
    datagrams.warm_up()
    known = {flow["id"] for flow in router.control.flows()}
    assert len(known) == 2
    others = []

    def begin():
        for kind in (Datagrams, Datagrams, Stream):
            others.append(router.until_removed(kind(router.lan, router.wan, router.WAN, 1000 + len(others))))
            others[-1].exchange(20)
        # Late acknowledgements.
        time.sleep(0.5)

    stats = moved(router, begin, faults)
    assert stats.fast == 0 and stats.learned == 0, (stats.fast, stats.learned)
    # But for the first ones, before they were established.
    assert stats.slow["no-memory"] >= 3 * 35, stats.reasons()
    assert stats.flows == 2
    stats = moved(router, lambda: datagrams.exchange(100), faults)
    assert stats.fast >= 196 and stats.slow["no-memory"] == 0, (stats.packets, stats.reasons())
    # Samples confirm it.
    router.control.set(sample_interval=100)

    def over_samples():
        for _ in range(3):
            time.sleep(0.11)
            datagrams.exchange(30)

    stats = moved(router, over_samples, faults)
    assert stats.slow["sampled"] >= 2 and stats.slow["no-memory"] == 0, stats.reasons()
    router.control.set(sample_interval=NO_SAMPLES)
    assert {flow["id"] for flow in router.control.flows()} >= known
    for other in others:
        other.warm_up()
        is_fast(router, other)
    assert router.control.stats().flows == 8


@both
def test_a_flow_that_cannot_be_learned_anew_is_gone(router, datagrams, faults):
    """Its route has changed. Its packets take the new one."""
    router.control.enable(sample_interval=NO_SAMPLES)
    datagrams.warm_up()
    gateway = router.address("192.0.2.77")
    router.router.ip("neigh", "replace", gateway, "lladdr", router.wan.mac("eth0"), "dev", "wan0", "nud", "permanent")
    router.router.ip("route", "add", f"{router.WAN}/{router.host}", "via", gateway)
    stats = moved(router, lambda: datagrams.exchange(10), faults)
    assert stats.packets[0] == 0, stats.packets
    assert stats.slow["no-memory"] >= 8, stats.reasons()
    assert stats.gone["replaced"] >= 1, stats.departures()
    datagrams.warm_up()
    is_fast(router, datagrams)


@both
def test_packets_that_cannot_be_written_to_stay_slow(router, datagrams, faults, one_cpu):
    """A capture has them, too: they have to be copied first."""
    router.control.enable(sample_interval=NO_SAMPLES)
    datagrams.warm_up()
    wire = Wire(router.router, "lan0")
    # All of them arrive.
    stats = moved(router, lambda: datagrams.exchange(30), faults)
    wire.close()
    assert stats.packets[0] == 0, (stats.packets, stats.reasons())
    assert stats.slow["no-memory"] >= 28, stats.reasons()
    assert stats.packets[1] >= 28
    is_fast(router, datagrams)


@both
def test_devices_that_cannot_be_attached_ask_again(router, datagrams, faults):
    router.control.enable(sample_interval=NO_SAMPLES)
    stats = moved(router, datagrams.warm_up, faults)
    assert stats.devices == 0 and stats.fast == 0
    assert stats.slow["learning"] >= 8, stats.reasons()
    datagrams.warm_up()
    assert is_fast(router, datagrams).devices == 2


@both
def test_a_table_that_cannot_be_resized_stays_as_it_is(router, datagrams, faults):
    router.control.enable(sample_interval=NO_SAMPLES)
    datagrams.warm_up()
    config = router.control.config()
    known = {flow["id"] for flow in router.control.flows()}

    def check():
        assert router.control.config() == config
        is_fast(router, datagrams)
        assert {flow["id"] for flow in router.control.flows()} == known

    assert refused_in_turn(faults, lambda: router.control.set(table_size=4096), check) >= 2
    assert router.control.config() == {**config, "table-size": 4096}
    datagrams.warm_up()
    is_fast(router, datagrams)


@both
def test_enabling_fails_as_a_whole(router, datagrams, faults):
    """And so does what is to be changed with it."""
    config = router.control.config()

    def check():
        assert router.control.config() == config
        datagrams.exchange(5)
        stats = router.control.stats()
        assert (stats.fast, stats.flows, stats.devices, sum(stats.slow.values())) == (0, 0, 0, 0)

    def enable():
        router.control.enable(sample_interval=NO_SAMPLES, udp_timeout=7000)

    assert refused_in_turn(faults, enable, check) >= 4
    assert router.control.config()["udp-timeout"] == 7000
    datagrams.warm_up()
    is_fast(router, datagrams)


def test_questions_that_cannot_be_answered(router, datagrams, faults):
    router.control.enable(sample_interval=NO_SAMPLES)
    datagrams.warm_up()
    for ask in (router.control.stats, router.control.config):
        assert refused_in_turn(faults, ask) >= 1
    is_fast(router, datagrams)


def test_events_that_cannot_be_told(router, datagrams, faults):
    """There is one missing, and nothing else."""
    router.control.enable(sample_interval=NO_SAMPLES)
    router.control.listen()
    datagrams.warm_up()
    kernel.wait_until(lambda: len(router.control.flows()) == 2)
    router.control.events()
    with faults.after(0):
        router.control.flush()
    assert not [name for name, _ in router.control.events() if name == "flow-gone-ntf"]
    assert faults.refused()["__alloc_skb"] == 2
    datagrams.warm_up()
    is_fast(router, datagrams)
    assert len(router.control.events()) == 2


def test_a_namespace_that_cannot_be_made(faults):
    spaces = kernel.namespaces()
    assert refused_in_turn(faults, lambda: run("unshare", "--net", "true")) >= 3
    kernel.wait_until(lambda: kernel.namespaces() <= spaces, 15, "the end of all of them", pause=0.3)


def test_the_module_cannot_be_loaded(faults):
    kernel.unload()

    def check():
        assert not kernel.loaded()

    assert refused_in_turn(faults, lambda: run("modprobe", "fasttrack"), check) >= 6
    assert kernel.loaded()


@both
def test_packets_without_room_for_a_link_layer_header(router, faults, datagrams):
    """As it is written before a packet in whole words, it needs a little more than it is long. No device of the kernel's
    own gives so little; a packet that has it is copied, and slow only if there is no memory for that."""
    router.know_neighbours()
    router.control.enable(sample_interval=NO_SAMPLES)
    datagrams.warm_up()
    with faults.tight(router.router, "lan0"):
        stats = moved(router, lambda: datagrams.exchange(30))
        assert stats.packets == (30, 30) and not stats.reasons(), (stats.packets, stats.reasons())
        stats = moved(router, lambda: datagrams.exchange(30), faults)
    assert stats.packets == (0, 30) and stats.reasons() == {"no-memory": 30}, (stats.packets, stats.reasons())
    assert faults.refused() == {"pskb_expand_head": 30}
    stats = moved(router, lambda: datagrams.exchange(30), faults)
    assert stats.packets == (30, 30) and not stats.reasons(), (stats.packets, stats.reasons())
