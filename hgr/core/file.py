"""The HGR file, `models/hgr/NAME.safetensors`. All of it is checked before use; errors name the file and the fault.

A file is read once, into memory of its own: what happens to it afterwards does not reach an HGR that was loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor

from .atomic import write_bytes
from .errors import HGRError
from .excerpt import excerpt
from .fingerprint import fingerprint
from .hgr import HGR, Encoder, Probe
from .json_text import parse_json
from .metadata import FIELDS, concepts_of, read_metadata, write_metadata
from .network import HGRNetwork, HGRUnion, parts_of
from .tensor_file import tensor_bytes

_MAX_BYTES = 2**30
_MAX_HEADER = 2**22
_PROBE = ("mean", "std", "weight", "bias")
_MAX_TOKENS = 4096  # of the empty prompt
_MAX_FEATURES = 65536  # of a probe, at one noise level
_MAX_DIMS = 4  # of a tensor
_DIGEST = "digest"
_REASON = 300  # letters of an error


def save(hgr: HGR, path: str | Path, dtype: torch.dtype = torch.float16, *, new: bool = False) -> None:
    """Write an HGR file, with the network's weights in `dtype`.

    new: never replace a file.

    Raises HGRError, before anything is written, for an HGR that `load` would refuse; FileExistsError if `path` is there
    and `new` is set; WriteError, an OSError, if the file cannot be written.
    """
    path = Path(path)
    with _named(path, f" is not saved in {str(dtype).removeprefix('torch.')}"):
        tensors, metadata = _tensors(hgr, dtype), write_metadata(hgr)
        data = tensor_bytes(tensors, metadata | {_DIGEST: _digest(metadata, tensors)})
        _decode(data, path.name)
    write_bytes(path, data, new=new)


def load(path: str | Path) -> HGR:
    """Load an HGR file on the CPU in float32.

    Raises HGRError, naming the file and what is wrong with it, for a damaged, hostile or unknown file.
    """
    path = Path(path)
    with _named(path):
        return _decode(_read(path)[0], excerpt(path.name, 255))


def describe(path: str | Path) -> dict[str, Any]:
    """The checked metadata of an HGR file, without its tensors. Raises HGRError for a bad header, as `load` does."""
    path = Path(path)
    with _named(path):
        return read_metadata(_header(*_read(path, header_only=True))[0])


@contextmanager
def _named(path: Path, what: str = "") -> Iterator[None]:
    """Every fault of a file as an HGRError that begins with the file's name, without its folder, and `what`."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise HGRError(f"{excerpt(path.name, 255)}{what}: {excerpt(error, _REASON)}") from None


def _tensors(hgr: HGR, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of an HGR's file by their names."""
    tensors = {
        f"network.{i}.{key}": value.to(dtype)
        for i, part in enumerate(parts_of(hgr.network))
        for key, value in part.state_dict().items()
    }
    tensors["empty.features"] = hgr.encoder.empty.float()
    if hgr.network.pooled_dim and hgr.encoder.empty_pooled is not None:
        tensors["empty.pooled"] = hgr.encoder.empty_pooled.float()
    if hgr.probe:
        tensors |= {f"probe.{key}": getattr(hgr.probe, key).float() for key in _PROBE}
    return tensors


def _read(path: Path, *, header_only: bool = False) -> tuple[bytes, int]:
    """A file's bytes, or only those up to the end of its header; and the file's size."""
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            raise ValueError("cannot be read (no such file).")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            end = 8 + int.from_bytes(file.read(8), "little")
            if not end <= size <= _MAX_BYTES or end > _MAX_HEADER:
                raise ValueError("not an HGR file: its size or its header's size is out of range, or it is truncated.")
            file.seek(0)
            return file.read(end if header_only else size), size
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}).") from None


def _header(data: bytes, size: int) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The metadata, and the shapes of all tensors by name. data: the bytes of a file of `size` bytes, of which only the
    header is read."""
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        entries = parse_json(data[8:end].decode())
        metadata = entries.pop("__metadata__", None) or {}
        kinds = {key: entry["dtype"] for key, entry in entries.items()}
        shapes = {key: tuple(entry["shape"][: _MAX_DIMS + 1]) for key, entry in entries.items()}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata holds something other than text")
        if end + max((entry["data_offsets"][1] for entry in entries.values()), default=0) != size:
            raise ValueError("it is cut short or has bytes too many")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"damaged or not a safetensors file ({excerpt(error, _REASON // 2)}).") from None
    for key, kind in kinds.items():
        if kind not in ("F16", "BF16", "F32"):
            raise ValueError(f'tensor "{excerpt(key)}" has type {excerpt(kind)}; only F16, BF16 and F32 are allowed.')
    return metadata, shapes


def _decode(data: bytes, name: str) -> HGR:
    """The HGR of a file's bytes. Raises ValueError with a reason for anything unsound."""
    metadata, shapes = _header(data, len(data))
    fields = read_metadata(metadata)
    with torch.device("meta"):
        parts = [HGRNetwork(fields["text_dim"], fields["pooled_dim"], **size) for size in fields["network"]]
    wanted = _wanted(fields, parts, shapes)
    for key in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(key) != shapes.get(key):
            raise ValueError(
                f'tensor "{excerpt(key)}" should have shape {wanted.get(key)}, but has {excerpt(shapes.get(key))}.'
            )
    try:
        stored = from_bytes(data)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"damaged or not a safetensors file ({excerpt(error, _REASON // 2)}).") from None
    tensors = {key: stored[key].to(torch.float32, copy=True) for key in wanted}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f'tensor "{key}" holds NaN or infinity.')
    # probe.std is among them
    spreads = [tensor for key, tensor in tensors.items() if key.endswith((".std", ".pooled_std"))]
    start = tensors["empty.features"][0].norm()
    if any((spread <= 0).any() for spread in spreads) or start == 0 or not start.isfinite():
        raise ValueError("a standard deviation or the fingerprint is zero or too large.")
    if _DIGEST not in metadata and metadata.keys() - {*FIELDS, "probe"}:
        raise ValueError("its digest is missing or its name is damaged, so get, train or save it again.")
    if metadata.get(_DIGEST, digest := _digest(metadata, tensors)) != digest:
        raise ValueError(
            "its content does not match its digest: the file was damaged or changed, so get, train or save it again."
        )
    for i, part in enumerate(parts):
        prefix = f"network.{i}."
        part.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, assign=True
        )
    network = parts[0] if len(parts) == 1 else HGRUnion(parts)
    network.eval().requires_grad_(False)
    encoder = Encoder(**fields["encoder"], empty=tensors["empty.features"], empty_pooled=tensors.get("empty.pooled"))
    return HGR(
        network, list(concepts_of(fields["concepts"])), encoder, fields["training"], name, _probe(fields, tensors)
    )


def _wanted(
    fields: dict[str, Any], parts: list[HGRNetwork], shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes that the tensors of a file with these fields must have."""
    wanted = {
        f"network.{i}.{key}": tuple(value.shape)
        for i, part in enumerate(parts)
        for key, value in part.state_dict().items()
    }
    # the empty prompt's number of tokens and the denoiser's width are known only from the tensors
    tokens = _size(shapes.get("empty.features"))
    if not 0 < tokens <= _MAX_TOKENS:
        raise ValueError(f"the empty prompt must have 1 to {_MAX_TOKENS} tokens.")
    wanted["empty.features"] = (tokens, fields["text_dim"])
    if fields["pooled_dim"]:
        wanted["empty.pooled"] = (fields["pooled_dim"],)
    if fields["probe"]:
        levels, count = len(fields["probe"]["percents"]), len(fields["concepts"])
        width = _size(shapes.get("probe.mean"), -1)
        if not 0 < width <= _MAX_FEATURES:
            raise ValueError(f"the probe must have 1 to {_MAX_FEATURES} features.")
        wanted |= {
            "probe.mean": (levels, width),
            "probe.std": (levels, width),
            "probe.weight": (count, levels, width),
            "probe.bias": (count,),
        }
    return wanted


def _size(shape: tuple[Any, ...] | None, dim: int = 0) -> int:
    """One size of a tensor's shape; 0 without such a tensor."""
    return shape[dim] if shape and type(shape[dim]) is int else 0


def _probe(fields: dict[str, Any], tensors: dict[str, Tensor]) -> Probe | None:
    if not (found := fields["probe"]):
        return None
    return Probe(
        tuple(map(float, found["percents"])),
        **{key: tensors[f"probe.{key}"] for key in _PROBE},
        heads=concepts_of(found["heads"]),
        hed=concepts_of(found["hed"]),
        training=found["training"],
    )


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """The digest of a file's content, wherever in the file it lies; of the metadata, only SafeCFG's own."""
    own = [(key, metadata.get(key)) for key in (*FIELDS, "probe")]
    return fingerprint(*own, *(part for key in sorted(tensors) for part in (key, tensors[key])))
