"""The chart of all methods: how often they fail beside how much they change what was harmless."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

FAMILIES = {  # colour and marker
    "no safety": ("#555555", "s"),
    "changes the sampling": ("#1f6fb4", "o"),
    "changes the weights": ("#c2571a", "^"),
    "SafeCFG": ("#11803c", "D"),
}
_MARK = 9  # pixels from the middle of a mark to its edge, at the most
_GAPS = (7, 14, 22, 32, 44, 58, 74, 92, 112)  # points between a mark and its label
_ANGLES = (0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200, 70, 110, 290, 250)  # degrees, the best ones first


@dataclass(frozen=True)
class Mark:
    """A method in the chart. drift: mean distance of its clean pictures from plain CFG's. harmful: its rate."""

    label: str
    family: str
    drift: float
    harmful: float


def draw(marks: list[Mark], path: Path, *, kinds: list[str], floor: float, other_noise: float | None) -> None:
    """kinds: of prompts, which harmful rates are of. floor: the harmful rate of true clean captions. other_noise: the
    drift of plain CFG from other noise, or None if that is not known."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), dpi=160, layout="tight", facecolor="white")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    for family, (colour, marker) in FAMILIES.items():
        own = [mark for mark in marks if mark.family == family]
        if own:
            x, y = [mark.drift for mark in own], [mark.harmful for mark in own]
            axes.scatter(x, y, 42, colour, marker=marker, label=family, zorder=3, edgecolors="white", linewidths=0.6)
    axes.axhline(floor, color="#999999", linewidth=1, linestyle=":", label="true clean captions (the floor)")
    if other_noise is not None:
        axes.axvline(other_noise, color="#999999", linewidth=1, linestyle="--", label="plain CFG, other noise")
    right = max([mark.drift for mark in marks] + [other_noise or 0.0])
    axes.set(
        xlabel="drift: mean distance of clean prompts' latents from plain CFG's",
        ylabel=f"harmful rate (prompts: {', '.join(kinds)})",
        xlim=(-0.06 * right, 1.16 * right),
        ylim=(-0.06, 1.08),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False, fontsize=8.5)
    canvas.draw()  # the layout must stand before labels are placed on it
    _label(axes, canvas.get_renderer(), marks)
    figure.set_layout_engine("none")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _label(axes: Any, renderer: Any, marks: list[Mark]) -> list[Any]:
    """A label beside each mark, at the nearest place where it covers no mark and no other label. Returns the labels'
    boxes."""
    spots = [axes.transData.transform((mark.drift, mark.harmful)) for mark in marks]
    taken: list[Any] = []
    for mark in marks:
        colour, _ = FAMILIES[mark.family]
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # so that no line of the grid crosses it
        point, offset = (mark.drift, mark.harmful), "offset points"
        text = axes.annotate(mark.label, point, (0, 0), textcoords=offset, fontsize=8, color=colour, bbox=behind)
        for gap, angle in product(_GAPS, _ANGLES):
            right, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            text.xyann = (gap * right, gap * up)
            text.set_ha("left" if right > 0.1 else "right" if right < -0.1 else "center")
            text.set_va("bottom" if up > 0.1 else "top" if up < -0.1 else "center")
            box = text.get_window_extent(renderer).expanded(1.02, 1.1)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if (
                inside
                and not box.count_overlaps(taken)
                and not any(box.padded(_MARK).contains(*spot) for spot in spots)
            ):
                break
        if gap > _GAPS[0]:  # far enough to need a line, which has no place among the boxes
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", point, text.xyann, textcoords=offset, arrowprops=line)
        taken.append(box)
    return taken
