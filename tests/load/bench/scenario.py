"""What all scenarios have in common."""

from collections.abc import Sequence
from typing import Protocol

from tests.load.bench.contenders import Contender
from tests.load.bench.options import Options
from tests.load.bench.samples import Metric, Samples


class Scenario(Protocol):
    """Something to measure."""

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> Sequence[Metric]:
        """The columns of its table; samples of others go into the JSON file only."""

    @property
    def base(self) -> str | None:
        """The contender to which ratios are; None: the one that the command line names."""

    def repetitions(self, options: Options) -> int:
        """How many samples of each metric are taken of each contender."""

    def contenders(self, chosen: Sequence[Contender]) -> Sequence[Contender]:
        """Whom it measures, if these are chosen."""

    async def measure(
        self, contender: Contender, repetition: int, options: Options, samples: Samples
    ) -> None:
        """Take one sample of each metric."""
