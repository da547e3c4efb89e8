"""Encoded prompts in a file that only grows, so that an interruption or a kill loses only what was being written.

    head     16 bytes of MAGIC, then what the prompts depend on: 16 hexadecimal digits
    record   the text's digest (16 bytes); tokens T, width D, pooled width P or 0, whether there is a mask (4 bytes
             each); the CRC-32 of all that and of what follows (4 bytes); features T x D in half precision, pooled P in
             single precision, mask T as 16-bit integers

All is little-endian and lies at even positions. A record counts if it is whole and its checksum is right; what comes
after the last one that counts is cut off.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ..core.atomic import WriteError
from ..core.prompt import Prompt

MAGIC = b"SafeCFG prompts1"
_HEAD = len(MAGIC) + 16
_RECORD = struct.Struct("<16s4II")


@dataclass(frozen=True)
class Stored:
    """A prompt in the file: where its features (T, D) begin, in values of half precision, and the rest of it, pooled
    (P,) and mask (T,), or None."""

    start: int
    shape: tuple[int, int]
    pooled: Tensor | None
    mask: Tensor | None


class PromptStore:
    """The encoded prompts in `path`. made_for: the fingerprint of all that they depend on besides their texts.

    A file of another encoder, a damaged one and any other file of that name are emptied. Only one
    process may use the file: its folder's lock is the caller's. Raises WriteError if the file cannot be used.
    """

    def __init__(self, path: Path, made_for: str):
        self.path, self.head = path, MAGIC + made_for.encode()
        self.rows: dict[bytes, Stored] = {}
        self.file: IO[bytes] | None = None
        self.end = 0
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                with open(path, "rb") as file:
                    self._read_all(file)
                os.truncate(path, self.end)

    def __contains__(self, text: str) -> bool:
        return _digest(text) in self.rows

    def __getitem__(self, text: str) -> Stored:
        return self.rows[_digest(text)]

    def add(self, text: str, prompt: Prompt) -> None:
        """Append a prompt of one row: features (1, T, D) in half precision, pooled (1, P), mask (1, T), on the CPU.

        Raises WriteError if the disk is full; the prompts before it stay.
        """
        tokens, width = prompt.features.shape[1:]
        parts = [prompt.features.numpy().astype("<f2", copy=False).tobytes()]
        if prompt.pooled is not None:
            parts.append(prompt.pooled.numpy().astype("<f4", copy=False).tobytes())
        if prompt.mask is not None:
            parts.append(prompt.mask.numpy().astype("<u2").tobytes())
        body, pooled = b"".join(parts), 0 if prompt.pooled is None else prompt.pooled.shape[1]
        about = _RECORD.pack(_digest(text), tokens, width, pooled, prompt.mask is not None, 0)[:-4]
        record = about + zlib.crc32(body, zlib.crc32(about)).to_bytes(4, "little") + body
        with self._writing():
            if self.file is None:
                self.file = open(self.path, "r+b" if self.end else "wb", buffering=0)  # noqa: SIM115 (see `close`)
            self.file.seek(self.end)
            try:
                _write_all(self.file, record if self.end else self.head + record)
            except OSError:
                with suppress(OSError):
                    self.file.truncate(self.end)
                raise
        self._count(record[: _RECORD.size], body)

    def features(self) -> Tensor:
        """All that is in the file as one row of half precision, mapped into memory."""
        self.close()  # whoever maps a file cannot make it longer
        with self._writing(), open(self.path, "rb") as file:
            return torch.from_numpy(np.memmap(file, np.float16, "c"))

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def _read_all(self, file: IO[bytes]) -> None:
        size = os.fstat(file.fileno()).st_size
        if file.read(_HEAD) != self.head:
            return
        self.end = _HEAD
        while record := _next(file, size - self.end):
            self._count(*record)

    def _count(self, about: bytes, body: bytes) -> None:
        """Count a record that is in the file."""
        start = max(self.end, _HEAD) + len(about)
        digest, tokens, width, pooled, masked, _ = _RECORD.unpack(about)
        at = 2 * tokens * width
        self.rows[digest] = Stored(
            start // 2,
            (tokens, width),
            torch.from_numpy(np.frombuffer(body, "<f4", pooled, at).copy()) if pooled else None,
            torch.from_numpy(np.frombuffer(body, "<u2", tokens, at + 4 * pooled) != 0) if masked else None,
        )
        self.end = start + len(body)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(self.path.with_name("the encoded prompts"), error) from None


def is_store(path: Path) -> bool:
    """Whether a file holds encoded prompts, of whichever encoder."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _next(file: IO[bytes], left: int) -> tuple[bytes, bytes] | None:
    """The next record and what follows it, if they are whole. left: the bytes from here to the end of the file."""
    about = file.read(_RECORD.size)
    if len(about) < _RECORD.size:
        return None
    _, tokens, width, pooled, masked, checksum = _RECORD.unpack(about)
    length = 2 * tokens * width + 4 * pooled + 2 * tokens * masked
    if length > left - _RECORD.size:  # before anything is read: a damaged length may be huge
        return None
    body = file.read(length)
    return (about, body) if zlib.crc32(body, zlib.crc32(about[:-4])) == checksum else None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def _write_all(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a disk that is nearly full takes a part
        rest = rest[file.write(rest) :]
