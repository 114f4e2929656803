"""The process that measures gets the user's environment, whatever the command line sets for itself."""

from __future__ import annotations

from hwprune.common import environment
from hwprune.latency.host import LocalHost


def test_waiting_threads_sleep_but_not_in_what_is_measured(monkeypatch):
    ours = {}
    environment.prepare(ours)
    assert ours["OMP_WAIT_POLICY"] == "PASSIVE" and ours["TQDM_DISABLE"] == "1"
    environment.as_the_user_has_it(ours)
    assert "OMP_WAIT_POLICY" not in ours
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", environment.OWN):
        monkeypatch.delenv(name, raising=False)
    environment.prepare()
    _, worker = LocalHost().command(1, 0)
    assert "OMP_WAIT_POLICY" not in worker


def test_what_the_user_has_set_stays(monkeypatch):
    for theirs in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "100"}):
        mine = dict(theirs)
        environment.prepare(mine)
        assert theirs.items() <= mine.items() and environment.OWN not in mine
        environment.as_the_user_has_it(mine)
        assert theirs.items() <= mine.items()
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv(environment.OWN, raising=False)
    assert LocalHost().command(1, 0)[1]["OMP_WAIT_POLICY"] == "ACTIVE"
