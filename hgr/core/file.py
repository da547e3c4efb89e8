"""The HGR file, `models/hgr/NAME.safetensors`. All of it is checked before use; errors name the file and the fault."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .hgr import HGR, Concept, Encoder, HGRError, Probe
from .network import HGRNetwork, HGRUnion, parts_of
from .options import SENSITIVITIES
from .tensor_file import save_tensors

FORMAT, VERSION = "hgr", 1
_MAX_BYTES = 2**30
_MAX_HEADER = 2**22
_FIELDS = ("format", "format_version", "concepts", "text_dim", "pooled_dim", "encoder", "network", "training")
_PROBE = ("mean", "std", "weight", "bias")
_MAX_NETWORKS = 64
_MAX_TOKENS = 4096  # of the empty prompt
_MAX_FEATURES = 65536  # of a probe, at one noise level
_LIMITS = {
    "text_dim": (1, 65536),
    "pooled_dim": (0, 65536),
    "concepts": (1, 1024),
    "width": (8, 4096),
    "depth": (1, 64),
    "heads": (1, 256),
}


def save(hgr: HGR, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write an HGR file, with the network's weights in `dtype`."""
    net, encoder, parts = hgr.network, hgr.encoder, parts_of(hgr.network)
    tensors = {
        f"network.{i}.{key}": value.to(dtype)
        for i, part in enumerate(parts)
        for key, value in part.state_dict().items()
    }
    tensors["empty.features"] = encoder.empty.float()
    if net.pooled_dim and encoder.empty_pooled is not None:
        tensors["empty.pooled"] = encoder.empty_pooled.float()
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "concepts": [dataclasses.asdict(c) for c in hgr.concepts],
        "text_dim": net.text_dim,
        "pooled_dim": net.pooled_dim,
        "encoder": {"family": encoder.family, "chunk": encoder.chunk, "fixed_start": encoder.fixed_start},
        "network": [
            {"concepts": len(part.anchors), "width": part.width, "depth": part.depth, "heads": part.heads}
            for part in parts
        ],
        "training": hgr.training,
    }
    if probe := hgr.probe:
        tensors |= {f"probe.{key}": getattr(probe, key).float() for key in _PROBE}
        metadata["probe"] = {
            "percents": probe.percents,
            "heads": [dataclasses.asdict(c) for c in probe.heads],
            "hed": [dataclasses.asdict(c) for c in probe.hed],
            "training": probe.training,
        }
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    save_tensors(tensors, Path(path), text)


def load(path: str | Path) -> HGR:
    """Load an HGR file on the CPU in float32.

    Raises HGRError, naming the file and what is wrong with it, for a damaged, hostile or unknown file.
    """
    path = Path(path)
    header, shapes = _open(path)
    with torch.device("meta"):
        parts = [HGRNetwork(header["text_dim"], header["pooled_dim"], **size) for size in header["network"]]
    wanted = {
        f"network.{i}.{key}": tuple(value.shape)
        for i, part in enumerate(parts)
        for key, value in part.state_dict().items()
    }
    # the empty prompt's number of tokens and the denoiser's width are known only from the tensors
    tokens = shapes.get("empty.features", (0,))[0]
    wanted["empty.features"] = (tokens, header["text_dim"])
    if not 0 < tokens <= _MAX_TOKENS:
        raise HGRError(f"{path.name}: the empty prompt has {tokens} tokens; it must have 1 to {_MAX_TOKENS}.")
    if header["pooled_dim"]:
        wanted["empty.pooled"] = (header["pooled_dim"],)
    if header["probe"]:
        levels, width, count = (
            len(header["probe"]["percents"]),
            shapes.get("probe.mean", (0, 0))[-1],
            len(header["concepts"]),
        )
        if not 0 < width <= _MAX_FEATURES:
            raise HGRError(f"{path.name}: the probe has {width} features; it must have 1 to {_MAX_FEATURES}.")
        wanted |= {
            "probe.mean": (levels, width),
            "probe.std": (levels, width),
            "probe.weight": (count, levels, width),
            "probe.bias": (count,),
        }
    for key in wanted.keys() | shapes.keys():
        if wanted.get(key) != shapes.get(key):
            raise HGRError(
                f'{path.name}: tensor "{key}" should have shape {wanted.get(key)}, but has {shapes.get(key)}.'
            )
    tensors = {}
    with safe_open(path, "pt") as file:
        for key in wanted:
            tensor = file.get_tensor(key).float()
            if not torch.isfinite(tensor).all():
                raise HGRError(f'{path.name}: tensor "{key}" holds NaN or infinity; the file is damaged.')
            tensors[key] = tensor
    # probe.std is among them
    spreads = [tensor for key, tensor in tensors.items() if key.endswith((".std", ".pooled_std"))]
    if any((spread <= 0).any() for spread in spreads) or tensors["empty.features"][0].norm() == 0:
        raise HGRError(f"{path.name}: a standard deviation or the fingerprint is zero; the file is damaged.")
    for i, part in enumerate(parts):
        prefix = f"network.{i}."
        part.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, assign=True
        )
    network = parts[0] if len(parts) == 1 else HGRUnion(parts)
    network.eval().requires_grad_(False)
    encoder = Encoder(**header["encoder"], empty=tensors["empty.features"], empty_pooled=tensors.get("empty.pooled"))
    probe = None
    if found := header["probe"]:
        heads, hed = (tuple(map(_concept, found[key])) for key in ("heads", "hed"))
        probe = Probe(
            tuple(found["percents"]),
            **{key: tensors[f"probe.{key}"] for key in _PROBE},
            heads=heads,
            hed=hed,
            training=found["training"],
        )
    return HGR(network, list(map(_concept, header["concepts"])), encoder, header["training"], path.name, probe)


def describe(path: str | Path) -> dict[str, Any]:
    """The checked metadata of an HGR file, without its tensors. Raises HGRError for a bad header, as `load` does."""
    return _open(Path(path))[0]


def _concept(fields: dict[str, Any]) -> Concept:
    return Concept(**{**fields, "levels": tuple(fields["levels"])})


def _open(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The checked metadata and the shapes of all tensors."""

    def bad(why: str) -> HGRError:
        return HGRError(f"{path.name}: {why}")

    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise bad(f"cannot be read ({error.strerror}).") from None
    if size > _MAX_BYTES or header_size > min(size, _MAX_HEADER):
        raise bad("not an HGR file: its size or its header's size is out of range, or it is truncated.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            shapes = {key: tuple(s.get_shape()) for key, s in slices.items()}
            kinds = {key: s.get_dtype() for key, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise bad(f"damaged or not a safetensors file ({error}).") from None
    if metadata.get("format") != FORMAT:
        raise bad('not an HGR file: its metadata does not say format = "hgr".')
    if metadata.get("format_version") != str(VERSION):
        raise bad(
            f"format version {metadata.get('format_version')!r} is unknown; this SafeCFG reads version {VERSION}: "
            "update SafeCFG."
        )
    for key in _FIELDS:
        if key not in metadata:
            raise bad(f'the metadata lacks "{key}".')
    wrong = [key for key, kind in kinds.items() if kind not in ("F16", "BF16", "F32")]
    if wrong:
        raise bad(f'tensor "{wrong[0]}" has type {kinds[wrong[0]]}; only F16, BF16 and F32 are allowed.')
    try:
        header = {key: json.loads(metadata[key]) for key in _FIELDS if key != "format"}
        header["probe"] = json.loads(metadata.get("probe", "null"))
        _check_fields(header)
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise bad(f"the metadata is not valid ({error}).") from None
    return header, shapes


def _check_fields(header: dict[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError unless every field has its type and range."""
    networks, encoder, concepts = header["network"], header["encoder"], header["concepts"]
    if not isinstance(concepts, list) or not 1 <= len(concepts) <= 1024:
        raise ValueError("concepts must be a list of 1 to 1024 concepts")
    if not isinstance(networks, list) or not 1 <= len(networks) <= _MAX_NETWORKS:
        raise ValueError(f"network must be a list of 1 to {_MAX_NETWORKS} networks")
    for network in networks:
        if set(network) != {"concepts", "width", "depth", "heads"}:
            raise ValueError("a network must have concepts, width, depth and heads, and nothing else")
        for key, (low, high) in _LIMITS.items():
            value = network[key] if key in network else header[key]
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{key} is {value!r}, not a whole number from {low} to {high}")
        if network["width"] % network["heads"]:
            raise ValueError("a network's width must be a multiple of its heads")
    if sum(network["concepts"] for network in networks) != len(concepts):
        raise ValueError("the networks' concepts must add up to the number of concepts listed")
    if (
        set(encoder) != {"family", "chunk", "fixed_start"}
        or type(encoder["chunk"]) is not int
        or encoder["chunk"] < 0
        or type(encoder["fixed_start"]) is not bool
    ):
        raise ValueError("encoder must have family, chunk (0 or more) and fixed_start (true or false)")
    if not isinstance(header["training"], dict) or not isinstance(encoder["family"], str):
        raise ValueError("training must be an object and encoder.family a string")
    _check_concepts(concepts)
    if len({concept["id"] for concept in concepts}) < len(concepts):
        raise ValueError("two concepts have the same id")
    if (probe := header["probe"]) is not None:
        _check_probe(probe, [concept["id"] for concept in concepts])


def _check_concepts(concepts: list[dict[str, Any]]) -> None:
    for concept in concepts:
        Concept(**concept)
        id, levels = concept.get("id"), concept["levels"]
        if not isinstance(levels, list) or len(levels) not in (0, len(SENSITIVITIES)):
            raise ValueError(f"concept {id!r}: levels must be empty or {len(SENSITIVITIES)} thresholds")
        if not all(type(v) in (int, float) and 0 < v < 1 for v in (concept["threshold"], *levels)):
            raise ValueError(f"concept {id!r}: threshold and levels must lie in (0, 1)")
        if not all(type(v) in (int, float) and math.isfinite(v) for v in (concept["scale"], concept["bias"])):
            raise ValueError(f"concept {id!r}: scale and bias must be finite")
        if not all(isinstance(concept[key], str) for key in ("id", "label", "description")) or not id:
            raise ValueError("a concept's id, label and description must be strings")


def _check_probe(probe: dict[str, Any], ids: list[str]) -> None:
    percents = probe["percents"]
    if (
        not isinstance(percents, list)
        or not 1 <= len(percents) <= 64
        or not all(type(v) in (int, float) and 0 <= v <= 1 for v in percents)
    ):
        raise ValueError("the probe's percents must be 1 to 64 numbers in [0, 1]")
    for key in ("heads", "hed"):
        _check_concepts(probe[key])
        if [concept["id"] for concept in probe[key]] != ids:
            raise ValueError(f"the probe's {key} must list the file's concepts")
    if not isinstance(probe["training"], dict):
        raise ValueError("the probe's training must be an object")
