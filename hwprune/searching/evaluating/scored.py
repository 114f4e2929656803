"""A candidate of which everything but the latency is known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hwprune.common.files import Table
from hwprune.records.measurement import Measurement
from hwprune.records.recipe import Recipe
from hwprune.searching.evaluating.scorer import FileScores


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A candidate of which everything but the latency is known."""

    number: int
    recipe: Recipe
    origin: str
    scores: FileScores
    params: int
    macs: int
    size_bytes: int
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_json(), "origin": self.origin,
            **{name: value.to_json() for name, value in self.scores._asdict().items()},
            "params": self.params, "macs": self.macs, "size_bytes": self.size_bytes,
            "seconds": dict(self.seconds),
        }  # fmt: skip

    @classmethod
    def from_json(cls, number: int, data: Mapping[str, Any]) -> ScoredCandidate:
        names = (*cls.__dataclass_fields__, *FileScores._fields)
        given = {"estimated_drop": data.get("drop"), **data}  # handed over by an earlier version
        table = Table({key: given[key] for key in given if key in names}, f"trial {number}, scored")
        recipe = table.table("recipe")
        scores = FileScores(*(Measurement.from_table(table.table(name)) for name in FileScores._fields))
        made = cls(
            number, Recipe.from_table(recipe), table.text("origin"), scores, table.integer("params"),
            table.integer("macs"), table.integer("size_bytes"),
            table.free("seconds"),
        )  # fmt: skip
        recipe.close()
        table.finish()
        return made


class Stopwatch:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
