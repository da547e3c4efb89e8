"""Shows what an HGR file contains."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.excerpt import excerpt
from ..tables import aligned

if TYPE_CHECKING:
    from ...core.hgr import Probe


def add(commands: argparse._SubParsersAction) -> None:
    info = commands.add_parser("info", help="show what an HGR file contains, and check all of it")
    info.add_argument("file", type=Path)
    info.set_defaults(run=_info)


def _info(given: argparse.Namespace) -> None:
    from ...core import file
    from ...core.metadata import VERSION
    from ...core.network import parts_of

    hgr = file.load(given.file)
    net, encoder = hgr.network, hgr.encoder
    pooled = f", pooled {net.pooled_dim}" if net.pooled_dim else ""
    print(f"{excerpt(hgr.name)}: HGR, format version {VERSION}")
    print(
        f"encoder   {_text(encoder.family)}; features {net.text_dim}{pooled}; "
        f"chunks of {encoder.chunk or 'any number of'} tokens"
    )
    sizes = Counter(f"width {part.width}, depth {part.depth}" for part in parts_of(net))
    each = "; ".join(size if count == 1 else f"{count} of {size}" for size, count in sizes.items())
    print(f"network   {each}, {sum(p.numel() for p in net.parameters()):,} parameters")
    print(
        f"probe     "
        f"{_described(hgr.probe) if hgr.probe else 'none, so it cannot judge pictures; python -m hgr probe adds one'}"
    )
    head = ("concept", "label", "threshold", "scale", "bias", "description")
    rows = [
        (
            excerpt(c.id),
            excerpt(c.label),
            f"{c.threshold:.3f}",
            f"{c.scale:.2f}",
            f"{c.bias:+.2f}",
            _text(c.description),
        )
        for c in hgr.concepts
    ]
    print("\n" + aligned([head, *rows]))
    if hgr.training:
        print("\n" + aligned(list(_flat("training", hgr.training))))


def _described(probe: Probe) -> str:
    parts = probe.training.get("merged", [probe.training])
    levels, width = probe.mean.shape
    metrics = ((id, found.get("auroc")) for part in parts for id, found in part.get("metrics", {}).items())
    aurocs = (f"{excerpt(id)} {auroc:.3f}" for id, auroc in metrics if auroc is not None)
    return (
        f"{width} features at {levels} noise levels, "
        f"trained on {sum(part.get('pictures', 0) for part in parts)} pictures\n"
        f"          AUROC on held-out pictures: {', '.join(aurocs) or 'not known'}"
    )


def _flat(name: str, value: object) -> Iterator[tuple[str, str]]:
    """A nested mapping as (path, value) rows."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{excerpt(key)}", inner)
    else:
        yield name, f"{value:.4g}" if isinstance(value, float) else _text(value)


def _text(value: object) -> str:
    """What a file says, in full unless it is very long, without what would steer a terminal."""
    return excerpt(value, 4000)
