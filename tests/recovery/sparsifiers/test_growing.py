"""Growing regularisation."""

from __future__ import annotations

from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.growing import Growing
from tests.recovery.helpers import CHANNELS, private


def test_growing_regularisation_empties_what_is_to_go_before_it_goes(stripes):
    from hwprune.recovery.loop.run import train

    own = private(stripes)
    decider = Growing(own, CHANNELS, Plan("gradual"))
    parameters = dict(own.graph.module.named_parameters())

    def left():
        return sum(float(parameters[name].detach()[goes].square().sum()) for name, goes in decider._goes.items())

    before, held = left(), []
    decider.hold = lambda module, optimizer: held.append(left())  # nothing is zeroed: what is small has become so
    train(own.graph.module, stripes.workload, Plan("gradual", 4, updates=10, task=1.0), sparsifier=decider, keep_best=False)
    assert 0.5 * before < held[3]  # it begins slowly
    assert held[-1] < 0.01 * before
