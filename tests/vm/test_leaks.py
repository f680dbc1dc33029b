# SPDX-License-Identifier: GPL-2.0
"""What a second try is for, and what it is not for."""

import pytest

import conftest
from lab import findings, leaks


class Hooks:
    """Of these tests."""

    pytest_runtest_protocol = staticmethod(conftest.pytest_runtest_protocol)
    pytest_runtest_makereport = staticmethod(conftest.pytest_runtest_makereport)


TESTS = """
from lab import leaks

tries = {"late": 0, "leaked": 0}


def test_late():
    tries["late"] += 1
    assert tries["late"] == 2


def test_leaked():
    tries["leaked"] += 1
    leaks.none(2 - tries["leaked"])
"""


def test_what_was_seen_once_no_second_try_undoes(tmp_path, monkeypatch):
    monkeypatch.setattr(conftest, "tried_again", [])
    (tmp_path / "test_tries.py").write_text(TESTS, encoding="ascii")
    status = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)], plugins=[Hooks()])
    assert status == pytest.ExitCode.TESTS_FAILED
    assert [nodeid for nodeid, _ in conftest.tried_again] == ["test_tries.py::test_late"]


def test_what_a_table_says_is_the_worst_that_was_seen(monkeypatch):
    monkeypatch.setattr(findings, "_TABLES", {})
    for text, leaked in (("0 of 9", 0), ("2 of 8", 2), ("0 of 7", 0)):
        findings.note("title", "row", "column", text, leaked)
    (_, lines), = findings.tables()
    assert lines[1].split(maxsplit=1) == ["row", "2 of 8"]
    with pytest.raises(leaks.Leak):
        leaks.none(["a frame"])
