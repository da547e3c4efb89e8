"""Draws docs/images/architecture.svg, the picture of docs/architecture.md: `python scripts/draw_architecture.py`.

Needs nothing but Python and gives the same bytes everywhere. Boxes stand in a grid of five columns; each says what
happens, in which files, and by its colour in which room.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "docs/images/architecture.svg"

WIDTH = 1000
LEFT, COLUMN = 34, 191  # of the first column; from one column to the next
BOX, HEIGHT, PAD = 168, 96, 11
ASIDE = 42  # from a box's middle, where two arrows meet one side of it

# room: (fill, line and label) on a light page, then on a dark one
ROOMS = {
    "host": ("#f4f4f5", "#63636e", "#2a2b30", "#b4b4bf"),
    "core": ("#e8f0fe", "#2458b3", "#1b2a45", "#8fb6ff"),
    "data": ("#e6f5ea", "#1d7038", "#17321f", "#7fd49a"),
    "training": ("#fdf0df", "#985400", "#3a2a14", "#f2b566"),
    "detection": ("#f5eafc", "#7a38a8", "#32203f", "#d3a2f5"),
}
INK = ("#1f2328", "#e9ebee")
SOFT = ("#57606a", "#a5adb7")
PAGE = ("#ffffff", "#16181d")
LANE = ("#fafbfc", "#1d2026")
RULE = ("#d8dee4", "#3a3f48")


@dataclass(frozen=True)
class Box:
    """One step. says: two lines at most. files: a line of file names, without their room."""

    column: int
    room: str
    title: str
    says: tuple[str, ...]
    files: str = ""


@dataclass(frozen=True)
class Lane:
    """One flow, left to right. top: of its frame."""

    top: int
    height: int
    title: str
    note: str
    boxes: tuple[Box, ...]
    box_top: int

    @property
    def middle(self) -> float:
        return self.box_top + HEIGHT / 2


GUIDE = Lane(
    top=16,
    height=204,
    title="Guide",
    note="from a prompt to a picture",
    box_top=104,
    boxes=(
        Box(0, "host", "Prompt", ("the host's own text", "encoder reads it"), "prompts.py"),
        Box(1, "host", "Conditioning", ("taken when sampling", "starts, for that run"), "guidance.py"),
        Box(2, "core", "HGR", ("a gate per concept,", "a displacement each"), "hgr.py  network.py"),
        Box(3, "core", "Redirect", ("moves what is above", "its threshold"), "redirect.py"),
        Box(4, "host", "Sampler", ("any of the host's,", "with its other patches")),
    ),
)
TRAIN = Lane(
    top=262,
    height=264,
    title="Train",
    note="from prompt pairs to a file",
    box_top=300,
    boxes=(
        Box(0, "data", "Prompt pairs", ("the library, a style,", "your words, your file"), "pairs.py  sources.py"),
        Box(1, "training", "Features", ("each text is encoded", "once and kept"), "encoded_prompts.py"),
        Box(2, "training", "Trainer", ("gates, displacements;", "one loop, resumable"), "train_hgr.py  losses.py"),
        Box(3, "training", "Calibration", ("thresholds for a", "stated false-alarm rate"), "calibration.py"),
        Box(4, "core", "HGR file", ("safetensors; checked", "before it is used"), "file.py"),
    ),
)
SECOND_ROW = (
    Box(1, "training", "Pictures", ("painted by the model;", "no data set needed"), "pictures.py"),
    Box(3, "training", "Picture probe", ("sees concepts in a", "picture alone"), "train_probe.py"),
)
SECOND_TOP = 414
JUDGE = Lane(
    top=568,
    height=150,
    title="Detect",
    note="from a picture, or a prompt, to a report",
    box_top=606,
    boxes=(
        Box(0, "host", "Picture", ("or a prompt, or both", "together"), "detection.py"),
        Box(1, "detection", "Crops", ("the whole and parts", "of it, as latents"), "crops.py"),
        Box(2, "detection", "Judge", ("gates, HED, probe: by", "the model itself"), "judge.py  hed.py"),
        Box(3, "detection", "Report", ("JSON: scores, limits,", "words, flags"), "report.py"),
        Box(4, "detection", "Filter", ("branch on it, blur,", "blank or replace"), "censor.py"),
    ),
)
LEGEND = 746
TOTAL = 770


def draw() -> str:
    """The picture as SVG."""
    lanes = (GUIDE, TRAIN, JUDGE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOTAL}" width="{WIDTH}" height="{TOTAL}" '
        'role="img" aria-labelledby="title about">',
        '<title id="title">The three flows of SafeCFG</title>',
        '<desc id="about">'
        "Guide: prompt, conditioning, HGR, redirect, sampler; where no concept fires, the conditioning goes to the "
        "sampler as it is. Train: prompt pairs, features, trainer, calibration, HGR file; pictures that the model "
        "paints serve the trainer and the picture probe. Detect: picture, crops, judge, report, filter. "
        "The HGR file serves the HGR that guides and the judge.</desc>",
        f"<style>\n{_style()}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto" '
        'markerUnits="userSpaceOnUse"><path class="tip" d="M0 0.5 8 4 0 7.5Z"/></marker></defs>',
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{TOTAL - 1}" rx="12"/>',
    ]
    parts += [_frame(lane) for lane in lanes]
    parts += _arrows(lanes)
    for lane in lanes:
        parts += [_box(box, lane.box_top) for box in lane.boxes]
    parts += [_box(box, SECOND_TOP) for box in SECOND_ROW]
    parts += [*_legend(), "</svg>\n"]
    return "\n".join(parts)


def _style() -> str:
    """The colours of a light page, and those of a dark one where the reader's system is dark."""

    def colours(k: int) -> str:
        rules = [
            f".page{{fill:{PAGE[k]};stroke:{RULE[k]}}}",
            f".lane{{fill:{LANE[k]};stroke:{RULE[k]}}}",
            f".ink{{fill:{INK[k]}}}",
            f".soft{{fill:{SOFT[k]}}}",
            f".line{{stroke:{SOFT[k]}}}",
            f".tip{{fill:{SOFT[k]}}}",
        ]
        for room, shades in ROOMS.items():
            fill, line = shades[2 * k : 2 * k + 2]
            rules += [f".{room}{{fill:{fill};stroke:{line}}}", f".{room}-ink{{fill:{line}}}"]
        return "\n".join(rules)

    return (
        "text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:13px}\n"
        ".title{font-size:15px;font-weight:600}\n"
        ".flow{font-size:17px;font-weight:600}\n"
        ".files{font-family:ui-monospace,Menlo,Consolas,'Liberation Mono',monospace;font-size:11px}\n"
        ".line{fill:none;stroke-width:1.5}\n"
        ".dashed{stroke-dasharray:5 4}\n"
        f"{colours(0)}\n@media (prefers-color-scheme:dark){{\n{colours(1)}\n}}\n"
    )


def _x(column: int) -> int:
    return LEFT + column * COLUMN


def _text(x: float, y: float, text: str, *, kind: str, anchor: str = "start") -> str:
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" x="{x:g}" y="{y:g}"{at} xml:space="preserve">{escape(text)}</text>'


def _frame(lane: Lane) -> str:
    """A lane's frame with its title and what it is from and to."""
    return (
        f'<rect class="lane" x="16.5" y="{lane.top + 0.5:g}" width="{WIDTH - 33}" height="{lane.height}" rx="10"/>\n'
        f'<text x="{LEFT}" y="{lane.top + 25}"><tspan class="flow ink">{lane.title}</tspan>'
        f'<tspan class="soft" dx="12">{lane.note}</tspan></text>'
    )


def _box(box: Box, top: int) -> str:
    x = _x(box.column)
    rows = [
        f'<rect class="{box.room}" x="{x + 0.5:g}" y="{top + 0.5:g}" width="{BOX}" height="{HEIGHT}" rx="7"/>',
        _text(x + PAD, top + 23, box.title, kind="title ink"),
    ]
    rows += [_text(x + PAD, top + 43 + 17 * i, line, kind="ink") for i, line in enumerate(box.says)]
    if box.files:
        rows.append(_text(x + PAD, top + 85, box.files, kind=f"files {box.room}-ink"))
    return "\n".join(rows)


def _path(d: str, kind: str = "line") -> str:
    return f'<path class="{kind}" d="{d}" marker-end="url(#tip)"/>'


def _arrows(lanes: tuple[Lane, ...]) -> list[str]:
    """From each box to the next, and the ways that leave a row."""
    parts = []
    for lane in lanes:
        for left, right in zip(lane.boxes, lane.boxes[1:], strict=False):
            parts.append(_path(f"M{_x(left.column) + BOX + 1} {lane.middle:g}H{_x(right.column) - 1}"))

    # a clean prompt passes over HGR and Redirect
    start, end, over = _x(1) + BOX / 2, _x(4) + BOX / 2, GUIDE.box_top - 26
    parts.append(
        _path(
            f"M{start:g} {GUIDE.box_top - 1}V{over + 8}q0 -8 8 -8H{end - 8:g}q8 0 8 8V{GUIDE.box_top - 1}",
            "line dashed",
        )
    )
    parts.append(
        _text(
            (start + end) / 2,
            over - 9,
            "no concept fires: the same tensors, and so the same picture, bit for bit",
            kind="ink",
            anchor="middle",
        )
    )

    # the model's pictures: to the trainer above and on to the probe, whose result belongs to the file
    y, under = SECOND_TOP + HEIGHT / 2, TRAIN.box_top + HEIGHT + 2
    middle, aside = _x(2) + BOX / 2, _x(4) + BOX / 2 - ASIDE
    parts.append(_path(f"M{_x(1) + BOX + 1} {y:g}H{_x(3) - 1}"))
    parts.append(_path(f"M{middle:g} {y:g}V{under}"))
    parts.append(_text(middle + 12, y - 18, "for its losses", kind="soft"))
    parts.append(_path(f"M{_x(3) + BOX + 1} {y:g}H{aside - 8:g}q8 0 8 -8V{under}"))

    # the file, to the HGR that guides and to the judge; each runs in the gap between two lanes
    x, to = _x(4) + BOX / 2, _x(2) + BOX / 2
    up, down = ((above.top + above.height + below.top) / 2 for above, below in ((GUIDE, TRAIN), (TRAIN, JUDGE)))
    turn = f"H{to + 8:g}q-8 0 -8 "
    parts.append(_path(f"M{x:g} {TRAIN.box_top - 1}V{up + 8:g}q0 -8 -8 -8{turn}-8V{GUIDE.box_top + HEIGHT + 2}"))
    start = f"M{x + ASIDE:g} {TRAIN.box_top + HEIGHT + 1}V{down - 8:g}"
    parts.append(_path(f"{start}q0 8 -8 8{turn}8V{JUDGE.box_top - 1}"))
    parts.append(_text((x + to) / 2, up - 7, "guides", kind="soft", anchor="middle"))
    parts.append(_text((x + to) / 2, down - 7, "judges", kind="soft", anchor="middle"))
    return parts


def _legend() -> list[str]:
    names = {
        "host": (0, "the host's part, or hgr/hosts"),
        "core": (294, "hgr/core"),
        "data": (452, "hgr/data"),
        "training": (610, "hgr/training"),
        "detection": (790, "hgr/detection"),
    }
    parts = []
    for room, (offset, name) in names.items():
        x = LEFT + offset
        parts.append(f'<rect class="{room}" x="{x + 0.5:g}" y="{LEGEND - 11.5:g}" width="18" height="14" rx="3"/>')
        parts.append(_text(x + 27, LEGEND, name, kind="ink"))
    return parts


if __name__ == "__main__":
    PICTURE.write_text(draw(), "utf-8", newline="\n")
