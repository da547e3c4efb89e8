"""One HGR with the concepts of several."""

from __future__ import annotations

from torch import Tensor

from .network import HGRUnion, parts_of
from .redirector import FINGERPRINT_TOLERANCE, HGR, HGRError


def merge(hgrs: list[HGR]) -> HGR:
    """The union of the concepts of HGRs that were trained for one text encoder. Each concept keeps its gates, displacements and
    thresholds; where several fire, their displacements are added.

    Raises HGRError, naming both, for HGRs of different encoders and for a concept id that two of them have.
    """
    first = hgrs[0]
    owner: dict[str, HGR] = {}
    for hgr in hgrs:
        _check_encoder(first, hgr)
        for id in hgr.ids:
            if id in owner:
                raise HGRError(f"both {owner[id].name} and {hgr.name} have the concept \"{id}\": an HGR can have it once. "
                               "Train one of them under another concept name.")
            owner[id] = hgr
    network = HGRUnion([part for hgr in hgrs for part in parts_of(hgr.network)])
    return HGR(network, [concept for hgr in hgrs for concept in hgr.concepts], first.encoder,
               {"merged": [{"name": hgr.name, **hgr.training} for hgr in hgrs]}, " + ".join(hgr.name for hgr in hgrs))


def _check_encoder(first: HGR, other: HGR) -> None:
    def distance(a: Tensor, b: Tensor) -> float:
        return ((a - b.to(a)).norm() / a.norm()).item()

    a, b = first.encoder, other.encoder
    widths = [(hgr.network.text_dim, hgr.network.pooled_dim) for hgr in (first, other)]
    if widths[0] != widths[1] or a.chunk != b.chunk or distance(a.first, b.first) > FINGERPRINT_TOLERANCE \
            or distance(a.mean, b.mean) > FINGERPRINT_TOLERANCE:
        raise HGRError(f"{first.name} was made for {a.family}, {other.name} for {b.family}, which is another text encoder: "
                       "only HGRs of one encoder can be merged.")
