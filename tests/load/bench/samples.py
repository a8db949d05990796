"""What was measured: figures of a contender in a scenario, one of each for each repetition."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Better(StrEnum):
    """Which way a figure is good."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Metric:
    """What a figure says."""

    name: str
    title: str
    better: Better
    digits: int = 0
    """After the decimal point, in a table."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure."""

    scenario: str
    contender: str
    repetition: int
    metric: Metric
    value: float


class Samples:
    """All of a run, with what has to be said about them."""

    def __init__(self) -> None:
        self.all: list[Sample] = []
        self.notes: list[str] = []

    def add(
        self, scenario: str, contender: str, repetition: int, figures: Mapping[Metric, float]
    ) -> None:
        """Keep what one measurement gave."""
        self.all.extend(
            Sample(scenario, contender, repetition, metric, value)
            for metric, value in figures.items()
        )

    def note(self, scenario: str, contender: str, *sentences: str) -> None:
        """Keep what a reader of the figures has to know."""
        self.notes.extend(f"{scenario}, {contender}: {sentence}" for sentence in sentences)

    def values(self, scenario: str, contender: str, metric: Metric) -> dict[int, float]:
        """By repetition."""
        return {
            sample.repetition: sample.value
            for sample in self.all
            if (sample.scenario, sample.contender, sample.metric) == (scenario, contender, metric)
        }

    def median(self, scenario: str, contender: str, metric: Metric) -> float | None:
        """Over the repetitions; None where nothing was measured."""
        values = self.values(scenario, contender, metric)
        return statistics.median(values.values()) if values else None

    def ratio(self, scenario: str, contender: str, base: str, metric: Metric) -> float | None:
        """The median of the ratios to `base` within each repetition; None without one."""
        values = self.values(scenario, contender, metric)
        bases = self.values(scenario, base, metric)
        ratios = [
            values[repetition] / bases[repetition] for repetition in values if bases.get(repetition)
        ]
        return statistics.median(ratios) if ratios else None
