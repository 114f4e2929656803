"""Plans of trainings."""

from __future__ import annotations

import math

import pytest

from hwprune.errors import UsageError
from hwprune.recovery.plan import Plan, parse


def test_plans():
    assert parse("obs+sequential") is None
    assert parse("distill:0.5") == Plan("distill", 0.5) and parse("finetune").text() == "finetune:1"
    assert not Plan("finetune").taught and Plan("distill").taught and Plan("finetune", features=1.0).taught
    for wrong in ("finetune:x", "distill:0", "gradual:-1", "finetune:nan"):
        with pytest.raises(UsageError):
            parse(wrong)
    with pytest.raises(UsageError) as told:
        Plan("fine", epochs=0, warmup=1, accumulate=0, schedule="cubik", norms="some", temperature=0)
    assert len(str(told.value).splitlines()) >= 8  # all faults at once


@pytest.mark.parametrize(
    "wrong", [{"patience": -1}, {"epochs": "2"}, {"seed": 1.5}, {"temperature": math.inf}, {"rate": True}, {"updates": 2.5}]
)
def test_plans_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Plan(**wrong)
