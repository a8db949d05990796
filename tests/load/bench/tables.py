"""The figures as Markdown."""

from collections.abc import Iterator, Sequence

from tests.load.bench.machine import Machine
from tests.load.bench.samples import Metric, Samples


def table(
    samples: Samples, scenario: str, contenders: Sequence[str], metrics: Sequence[Metric], base: str
) -> Iterator[str]:
    """A scenario's lines: medians, and beside each the median of the ratios to `base`."""
    yield f"| {scenario} | " + " | ".join(f"{metric.title} | x" for metric in metrics) + " |"
    yield "|---" * (1 + 2 * len(metrics)) + "|"
    for contender in contenders:
        cells = [contender]
        for metric in metrics:
            median = samples.median(scenario, contender, metric)
            ratio = samples.ratio(scenario, contender, base, metric)
            cells.append("" if median is None else f"{median:,.{metric.digits}f}")
            cells.append("" if ratio is None else f"{ratio:.2f}")
        yield "| " + " | ".join(cells) + " |"


def machine_lines(machine: Machine) -> Iterator[str]:
    """Where it was measured."""
    load = ", ".join(f"{average:.1f}" for average in machine.load_average)
    yield f"{machine.cores} x {machine.cpu}, Linux {machine.kernel}, load average {load}"
    packages = ", ".join(f"{name} {number}" for name, number in machine.packages.items())
    yield f"Python {machine.python}, {machine.redis}, {packages}"
