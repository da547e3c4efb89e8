"""One HGR with the concepts of several."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .hgr import FINGERPRINT_TOLERANCE, HGR, SCORE_TOLERANCE, HGRError, Probe
from .network import HGRUnion, parts_of

log = logging.getLogger("safecfg")


def merge_hgrs(hgrs: list[HGR]) -> HGR:
    """One HGR with the concepts of several that were trained for the same text encoder. Each concept keeps its gates,
    displacements and thresholds; if several fire, their displacements are added.

    Raises HGRError, naming both HGRs, for different encoders and for a concept id that two of them have.
    """
    first = hgrs[0]
    owner: dict[str, HGR] = {}
    for hgr in hgrs:
        _check_encoder(first, hgr)
        for id in hgr.ids:
            if id in owner:
                raise HGRError(
                    f'both {owner[id].name} and {hgr.name} have the concept "{id}": an HGR can have it only once. '
                    "Train one of them under another concept name."
                )
            owner[id] = hgr
    network = HGRUnion([part for hgr in hgrs for part in parts_of(hgr.network)])
    return HGR(
        network,
        [concept for hgr in hgrs for concept in hgr.concepts],
        first.encoder,
        {"merged": [part for hgr in hgrs for part in hgr.training.get("merged", [{"name": hgr.name, **hgr.training}])]},
        " + ".join(hgr.name for hgr in hgrs),
        _probe(hgrs),
    )


def _probe(hgrs: list[HGR]) -> Probe | None:
    """One probe with the heads of all; None, with a warning, unless every HGR has one, made alike for one denoiser."""
    probes = [hgr.probe for hgr in hgrs if hgr.probe]
    if not probes:
        return None
    if len(probes) < len(hgrs):
        without = ", ".join(hgr.name for hgr in hgrs if hgr.probe is None)
        log.warning("%s has no picture probe: the merged HGR does not detect concepts in pictures.", without)
        return None
    first, sizes = probes[0], [probe.training.get("latent") for probe in probes]
    if sizes != [sizes[0]] * len(sizes):
        log.warning(
            "the picture probes were made for pictures of different sizes: "
            "the merged HGR does not detect concepts in pictures."
        )
        return None
    if any(
        p.percents != first.percents
        or p.mean.shape != first.mean.shape
        or ((p.mean - first.mean) / first.std).square().mean() > SCORE_TOLERANCE
        for p in probes
    ):
        log.warning(
            "the picture probes were made for different denoisers: the merged HGR does not detect concepts in pictures."
        )
        return None
    return Probe(
        first.percents,
        first.mean,
        first.std,
        torch.cat([p.weight for p in probes]),
        torch.cat([p.bias for p in probes]),
        tuple(head for p in probes for head in p.heads),
        tuple(head for p in probes for head in p.hed),
        {"merged": [part for p in probes for part in p.training.get("merged", [p.training])], "latent": sizes[0]},
    )


def _check_encoder(first: HGR, other: HGR) -> None:
    def distance(a: Tensor, b: Tensor) -> float:
        return ((a - b.to(a)).norm() / a.norm()).item()

    a, b = first.encoder, other.encoder
    widths = [(hgr.network.text_dim, hgr.network.pooled_dim) for hgr in (first, other)]
    if (
        widths[0] != widths[1]
        or a.chunk != b.chunk
        or distance(a.first, b.first) > FINGERPRINT_TOLERANCE
        or distance(a.mean, b.mean) > FINGERPRINT_TOLERANCE
    ):
        raise HGRError(
            f"{first.name} was made for {a.family}, {other.name} for {b.family}, which is another text encoder: "
            "only HGRs of one encoder can be merged."
        )
