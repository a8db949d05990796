"""The medians as bars, in an SVG that stands by itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from tests.load.bench import fan_out, idle_memory, latency, storm
from tests.load.bench.contenders import Contender
from tests.load.bench.machine import Machine
from tests.load.bench.samples import Better, Metric, Samples

WIDTH: Final = 860
PANEL_WIDTH: Final = 400
PANEL_GAP: Final = 30
LABEL_WIDTH: Final = 130
VALUE_WIDTH: Final = 70
BAR_HEIGHT: Final = 16
BAR_STEP: Final = 22
TITLE_HEIGHT: Final = 44
MARGIN: Final = 15
FOOT_HEIGHT: Final = 34
OURS: Final = "#0b6e4f"
THEIRS: Final = "#9aa5b1"


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    scenario: str
    metric: Metric


PANELS: Final = (
    _Panel("Deliveries per CPU-second, a user for each connection", "fan-out", fan_out.PER_CPU_S),
    _Panel("Deliveries per CPU-second, 5 users", "one-to-many", fan_out.PER_CPU_S),
    _Panel("New connections per CPU-second", "storm", storm.PER_CPU_S),
    _Panel("KiB of memory per idle connection", "idle-memory", idle_memory.KIB),
    _Panel("Latency at fixed load, p50, ms", "latency", latency.P50_MS),
    _Panel("Latency at fixed load, p99, ms", "latency", latency.P99_MS),
)


def draw(samples: Samples, contenders: Sequence[Contender], machine: Machine) -> str:
    """The SVG's text; panels without a figure are left out."""
    titles = {contender.name: contender.title for contender in contenders}
    panels = [
        panel
        for panel in PANELS
        if any(samples.values(panel.scenario, name, panel.metric) for name in titles)
    ]
    panel_height = TITLE_HEIGHT + BAR_STEP * len(titles)
    rows = (len(panels) + 1) // 2
    height = MARGIN + rows * panel_height + FOOT_HEIGHT
    elements = [
        element
        for index, panel in enumerate(panels)
        for element in _panel(
            samples,
            titles,
            panel,
            left=MARGIN + index % 2 * (PANEL_WIDTH + PANEL_GAP),
            top=MARGIN + index // 2 * panel_height,
        )
    ]
    foot = f"{machine.cores} x {machine.cpu}, Python {machine.python}, {machine.redis}"
    elements.append(_text(MARGIN, height - MARGIN, foot, size=11, fill="#66707a"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(elements)
        + "\n</svg>\n"
    )


def _panel(
    samples: Samples, titles: Mapping[str, str], panel: _Panel, *, left: int, top: int
) -> Iterator[str]:
    better = "more is better" if panel.metric.better is Better.HIGHER else "less is better"
    yield _text(left, top + 16, panel.title, size=13, weight="bold")
    yield _text(left, top + 32, better, size=11, fill="#66707a")
    medians = {name: samples.median(panel.scenario, name, panel.metric) for name in titles}
    largest = max(median for median in medians.values() if median is not None)
    room = PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH
    for index, (name, median) in enumerate(medians.items()):
        y = top + TITLE_HEIGHT + index * BAR_STEP
        yield _text(left, y + 12, titles[name], size=12)
        if median is None:
            continue
        width = max(1.0, room * median / largest)
        fill = OURS if name.startswith("service") else THEIRS
        x = left + LABEL_WIDTH
        yield f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{fill}"/>'
        value = f"{median:,.{panel.metric.digits}f}"
        yield _text(x + width + 6, y + 12, value, size=12)


def _text(
    x: float, y: float, text: str, *, size: int, weight: str = "normal", fill: str = "#1f2933"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'fill="{fill}">{escape(text)}</text>'
    )
