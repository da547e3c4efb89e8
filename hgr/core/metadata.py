"""The metadata of an HGR file: what `save` writes of an HGR beside its tensors, and the check of every field before it
is used."""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any

from .excerpt import excerpt
from .hgr import HGR, Concept
from .json_text import json_text, parse_json
from .network import parts_of
from .options import SENSITIVITIES

FORMAT, VERSION = "hgr", 3
FIELDS = ("format", "format_version", "concepts", "text_dim", "pooled_dim", "encoder", "network", "training")
_MAX_CONCEPTS = 1024
_MAX_NETWORKS = 64
_MAX_BLOCKS = 256  # of all networks together: every prompt runs through each
_MAX_LEVELS = 64  # of a probe
_LIMITS = {
    "text_dim": (1, 65536),
    "pooled_dim": (0, 65536),
    "concepts": (1, _MAX_CONCEPTS),
    "width": (8, 4096),
    "depth": (1, 64),
    "heads": (1, 256),
}
_LETTERS = {"id": 200, "label": 200, "description": 4000}
_FAMILY = 1000  # letters


def write_metadata(hgr: HGR) -> dict[str, str]:
    """The metadata of an HGR's file. Raises TypeError for a record of the training that JSON cannot hold."""
    net, encoder = hgr.network, hgr.encoder
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "concepts": [dataclasses.asdict(c) for c in hgr.concepts],
        "text_dim": net.text_dim,
        "pooled_dim": net.pooled_dim,
        "encoder": {"family": encoder.family, "chunk": encoder.chunk, "fixed_start": encoder.fixed_start},
        "network": [
            {"concepts": len(part.anchors), "width": part.width, "depth": part.depth, "heads": part.heads}
            for part in parts_of(net)
        ],
        "training": hgr.training,
    }
    if probe := hgr.probe:
        metadata["probe"] = {
            "percents": probe.percents,
            "heads": [dataclasses.asdict(c) for c in probe.heads],
            "hed": [dataclasses.asdict(c) for c in probe.hed],
            "training": probe.training,
        }
    return {key: value if isinstance(value, str) else json_text(value) for key, value in metadata.items()}


def read_metadata(metadata: dict[str, str]) -> dict[str, Any]:
    """The fields of a file's metadata; `probe` is None where there is none. Every field has its type and range, and
    every number is finite as the float32 that it becomes.

    Raises ValueError with a reason for anything else.
    """
    if metadata.get("format") != FORMAT:
        raise ValueError('not an HGR file: its metadata does not say format = "hgr".')
    version = metadata.get("format_version")
    if version in ("1", "2"):
        raise ValueError("an HGR of an older SafeCFG, whose network was another one: train it again.")
    if version != str(VERSION):
        raise ValueError(
            f"format version '{excerpt(version)}' is unknown; this SafeCFG reads version {VERSION}: update SafeCFG."
        )
    for key in FIELDS:
        if key not in metadata:
            raise ValueError(f'the metadata lacks "{key}".')
    try:
        fields = {key: parse_json(metadata[key]) for key in FIELDS if key != "format"}
        fields["probe"] = parse_json(metadata.get("probe", "null"))
        _check_network(fields)
        _check_encoder(fields["encoder"])
        _check_concepts(fields["concepts"])
        ids = [concept["id"] for concept in fields["concepts"]]
        if len(set(ids)) < len(ids):
            raise ValueError("two concepts have the same id")
        _check_training(fields["training"])
        if fields["probe"] is not None:
            _check_probe(fields["probe"], ids)
    except ValueError as error:
        raise ValueError(f"the metadata is not valid ({error}).") from None
    return fields


def concepts_of(rows: list[dict[str, Any]]) -> tuple[Concept, ...]:
    """Concepts from their checked fields."""
    return tuple(
        Concept(
            row["id"],
            row["label"],
            row["description"],
            float(row["threshold"]),
            float(row["scale"]),
            float(row["bias"]),
            tuple(map(float, row["levels"])),
        )
        for row in rows
    )


def _check_network(fields: dict[str, Any]) -> None:
    networks, concepts = fields["network"], fields["concepts"]
    if not isinstance(concepts, list) or not 1 <= len(concepts) <= _MAX_CONCEPTS:
        raise ValueError(f"concepts must be a list of 1 to {_MAX_CONCEPTS} concepts")
    if not isinstance(networks, list) or not 1 <= len(networks) <= _MAX_NETWORKS:
        raise ValueError(f"network must be a list of 1 to {_MAX_NETWORKS} networks")
    for network in networks:
        _check_keys(network, ("concepts", "width", "depth", "heads"), "a network")
        for key, (low, high) in _LIMITS.items():
            value = network[key] if key in network else fields[key]
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{key} is {excerpt(value)}, not a whole number from {low} to {high}")
        if network["width"] % network["heads"]:
            raise ValueError("a network's width must be a multiple of its heads")
    if (blocks := sum(network["depth"] for network in networks)) > _MAX_BLOCKS:
        raise ValueError(f"the networks' depths add up to {blocks}; at most {_MAX_BLOCKS} are allowed")
    if sum(network["concepts"] for network in networks) != len(concepts):
        raise ValueError("the networks' concepts must add up to the number of concepts listed")


def _check_encoder(encoder: Any) -> None:
    _check_keys(encoder, ("family", "chunk", "fixed_start"), "encoder")
    _check_text(encoder["family"], _FAMILY, "encoder.family")
    if type(encoder["chunk"]) is not int or encoder["chunk"] < 0 or type(encoder["fixed_start"]) is not bool:
        raise ValueError("encoder must have family, chunk (0 or more) and fixed_start (true or false)")


def _check_concepts(concepts: Any) -> None:
    if not isinstance(concepts, list):
        raise ValueError("concepts must be a list")
    for concept in concepts:
        _check_keys(concept, [field.name for field in dataclasses.fields(Concept)], "a concept")
        for key, most in _LETTERS.items():
            _check_text(concept[key], most, f"a concept's {key}")
        id, levels = excerpt(concept["id"]), concept["levels"]
        if not id:
            raise ValueError("a concept's id must not be empty")
        if not isinstance(levels, list) or len(levels) not in (0, len(SENSITIVITIES)):
            raise ValueError(f'concept "{id}": levels must be empty or {len(SENSITIVITIES)} thresholds')
        if not all(0 < _float32(value) < 1 for value in (concept["threshold"], *levels)):
            raise ValueError(f'concept "{id}": threshold and levels must lie in (0, 1), also when rounded to float32')
        if not all(math.isfinite(_float32(value)) for value in (concept["scale"], concept["bias"])):
            raise ValueError(f'concept "{id}": scale and bias must be finite float32 numbers')


def _check_probe(probe: Any, ids: list[str]) -> None:
    _check_keys(probe, ("percents", "heads", "hed", "training"), "probe")
    percents = probe["percents"]
    if (
        not isinstance(percents, list)
        or not 1 <= len(percents) <= _MAX_LEVELS
        or not all(0 <= _float32(value) <= 1 for value in percents)
    ):
        raise ValueError(f"the probe's percents must be 1 to {_MAX_LEVELS} numbers in [0, 1]")
    for key in ("heads", "hed"):
        _check_concepts(probe[key])
        if [concept["id"] for concept in probe[key]] != ids:
            raise ValueError(f"the probe's {key} must list the file's concepts")
    for part in _check_training(probe["training"]):
        latent, metrics = part.get("latent", []), part.get("metrics", {})
        if not isinstance(latent, list) or len(latent) > 8 or any(type(size) is not int for size in latent):
            raise ValueError("the latent of a probe's training must be at most 8 whole numbers")
        if not isinstance(metrics, dict) or not all(isinstance(found, dict) for found in metrics.values()):
            raise ValueError("the metrics of the probe's training must be an object for each concept")
        if not all(found.get("auroc") is None or math.isfinite(_float32(found["auroc"])) for found in metrics.values()):
            raise ValueError("the AUROC of a probe must be a number")


def _check_training(training: Any) -> list[dict[str, Any]]:
    """The records of an HGR's training, or a probe's: one, or those of the parts that were merged."""
    if not isinstance(training, dict):
        raise ValueError("training must be an object")
    parts = training.get("merged", [training])
    if not isinstance(parts, list) or not 1 <= len(parts) <= _MAX_NETWORKS:
        raise ValueError(f"training.merged must be a list of 1 to {_MAX_NETWORKS} objects")
    for part in parts:
        if not isinstance(part, dict):
            raise ValueError(f"training.merged must be a list of 1 to {_MAX_NETWORKS} objects")
        rate = part.get("false_positive_rate")
        if rate is not None and not 0 <= _float32(rate) <= 1:
            raise ValueError("a training's false_positive_rate must lie in [0, 1]")
        for key, default in (("seed", None), ("pictures", 0)):
            if type(part.get(key, default)) not in (int, type(default)):
                raise ValueError(f"a training's {key} must be a whole number")
    return parts


def _check_keys(value: Any, wanted: Any, what: str) -> None:
    if not isinstance(value, dict) or set(value) != set(wanted):
        raise ValueError(f"{what} must have {', '.join(wanted)}, and nothing else")


def _check_text(value: Any, most: int, what: str) -> None:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{what} must be a text of at most {most} letters")


def _float32(value: Any) -> float:
    """A number as a tensor holds it. NaN, which is in no range, for anything else."""
    if type(value) not in (int, float):
        return math.nan
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.inf
