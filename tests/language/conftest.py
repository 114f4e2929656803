from __future__ import annotations

import pytest

from hwprune.language.part_choices import PartChoices, choices_for
from hwprune.language.part_options import PartStore, Texts, solve_options
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import windows
from tests.streaming.helpers import llama, text

PLAN = SweepPlan((), "obs", "obs", multiple=16)
LENGTHS = {"self_attn": 2, "mlp": 0}
MODULES = {"attention": "self_attn", "mlp": "mlp"}


class Solved:
    """A small model whose choices have been solved."""

    def __init__(self, place):
        self.folder = llama(place / "model", depth=3)
        self.words = text(place / "words.txt", 3000)
        ids = windows(self.folder, self.words, 16)
        self.texts = Texts(ids[:8], ids[20:28].view(2, 4, -1), ids[30:33])
        self.source, self.work = LanguageFolder(self.folder), place / "work"
        self.work.mkdir()
        self.choices: PartChoices = choices_for({"neuron": 48, "kv": 2}, PLAN, "default", {})
        self.store = PartStore(place / "options", LENGTHS, MODULES)
        solve_options(self.source, self.texts.fitted, self.choices, PLAN, self.store, self.work)


@pytest.fixture(scope="session")
def solved(tmp_path_factory):
    return Solved(tmp_path_factory.mktemp("solved"))
