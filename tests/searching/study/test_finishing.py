"""Results of trials in the study."""

from __future__ import annotations

from hwprune.records.target import load as load_target
from hwprune.searching.space import fitting, space_file
from tests.conftest import tiny_workload


def test_a_derived_trial_that_a_kill_left_open_never_completes(tmp_path):
    """Complete without parameters it would empty the space that other samplers see."""
    from hwprune.pruning.pruner import Pruner
    from hwprune.searching.constraints import Constraints
    from hwprune.searching.study.attributes import RESULT
    from hwprune.searching.study.store import Store
    from tests.records.test_trial import measured

    pruner = Pruner(tiny_workload())
    store = Store(
        f"sqlite:///{tmp_path}/s.db",
        fitting.build(space_file.load("default"), pruner, load_target("cpu"), "default"),
        create=True,
    )
    made = store.finisher.number_of_derived("int8 of dense")
    import dataclasses

    trial = dataclasses.replace(measured(made, 0.0, 1.5), quantised={"of": "dense", "precision": "int8", "source": "0"})
    frozen = next(t for t in store._backend.frozen() if t.number == made)
    store._backend.set_attribute(frozen._trial_id, RESULT, trial.to_json())
    frozen = next(t for t in store._backend.frozen() if t.number == made)
    assert store.rescue.end_lost(frozen, Constraints().of)
    assert [t.state.name for t in store.study.get_trials()] == ["FAIL"]
    assert [t.number for t in store.trials()] == [made] and store.trials(as_searched=True) == []
    store.close()
