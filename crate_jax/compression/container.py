"""The file that a code is kept in: checked before anything in it is decoded, and as it is decoded.

    magic (8)  version (2)  header length (4)  header  index  CRC-32 of all so far (4)  payloads

The index has 8 bytes for each chunk: the kind in the upper 2 of 32 bits with the payload's length in the others, and the
CRC-32 of the payload. All numbers are little-endian.
"""

import dataclasses
import hashlib
import struct
import zlib
from collections.abc import Sequence

from crate_jax import InputError

MAGIC = b"\x93CRATE\r\n"
VERSION = 1
# How a chunk is stored.
KINDS = ("raw", "lzma", "model")
MAX_PAYLOAD = (1 << 30) - 1
_FRONT = struct.Struct("<8sHI")
# Version-1 header: length of the data, of the first chunk, of the others; bytes of a symbol, window, context, lanes; digests
# of the model and of the data. The environment follows.
_HEADER = struct.Struct("<QQQBIII32s32s")
_ENTRY = struct.Struct("<II")
_CRC = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class Header:
    """What the decoder must know beside the model.

    Attributes:
      length: bytes of the data.
      lead: bytes of the first chunk, which is never coded by the model (the header of an image); 0: there is no such chunk.
      chunk: bytes of every other chunk, the last one perhaps shorter.
      width: bytes of a symbol, 1 or 2.
      window, context, lanes: see `lanes.Lanes`.
      model: SHA-256 of the model. data: SHA-256 of the data.
      environment: see `predictors.Predictor`.
    """

    length: int
    lead: int
    chunk: int
    width: int
    window: int
    context: int
    lanes: int
    model: bytes
    data: bytes
    environment: str

    @property
    def sizes(self) -> list[int]:
        """Bytes of each chunk once decoded."""
        rest = self.length - self.lead
        whole, last = divmod(rest, self.chunk)
        return [self.lead] * bool(self.lead) + [self.chunk] * whole + [last] * bool(last)

    def pack(self) -> bytes:
        """As bytes."""
        fixed = (getattr(self, field.name) for field in dataclasses.fields(self)[:-1])
        return _HEADER.pack(*fixed) + self.environment.encode()

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """From what `pack` gave."""
        return cls(*_HEADER.unpack_from(data), data[_HEADER.size :].decode())


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A stored chunk: its kind, one of KINDS, and its payload."""

    kind: str
    payload: bytes


def write(header: Header, chunks: Sequence[Chunk]) -> bytes:
    """The file."""
    packed = header.pack()
    entries = (
        _ENTRY.pack(KINDS.index(chunk.kind) << 30 | len(chunk.payload), zlib.crc32(chunk.payload))
        for chunk in chunks
    )
    front = _FRONT.pack(MAGIC, VERSION, len(packed)) + packed + b"".join(entries)
    return front + _CRC.pack(zlib.crc32(front)) + b"".join(chunk.payload for chunk in chunks)


def overhead(chunks: int, environment: str) -> int:
    """Bytes of a file with so many chunks that are not payload."""
    return _FRONT.size + _HEADER.size + len(environment.encode()) + _ENTRY.size * chunks + _CRC.size


def read(data: bytes, name: str) -> tuple[Header, list[Chunk]]:
    """What `write` was given, everything checked but the digests.

    Raises:
      InputError: no such file, one of a newer version, one that is damaged or cut short.
    """
    damaged = InputError(
        f"--input: {name} is damaged or cut short; accepted: a file as `compress encode` wrote it"
    )
    if len(data) < _FRONT.size or not data.startswith(MAGIC):
        raise InputError(f"--input: {name} was not written by `compress encode`; accepted: a file that was")
    _, version, size = _FRONT.unpack_from(data)
    if version > VERSION:
        raise InputError(
            f"--input: {name} has format {version}; accepted: up to {VERSION}, the newest that this crate_jax knows"
        )
    start = _FRONT.size + size
    if version < VERSION or size < _HEADER.size or start > len(data):
        raise damaged
    try:
        header = Header.unpack(data[_FRONT.size : start])
        plausible = header.chunk >= 1 and header.lead <= header.length
        count = -(-(header.length - header.lead) // header.chunk) + bool(header.lead) if plausible else -1
    except UnicodeDecodeError:
        raise damaged from None
    end = start + _ENTRY.size * count
    if count < 0 or end + _CRC.size > len(data):
        raise damaged
    if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        raise damaged
    place, chunks = end + _CRC.size, []
    for entry, crc in _ENTRY.iter_unpack(data[start:end]):
        kind, length = entry >> 30, entry & MAX_PAYLOAD
        payload = data[place : place + length]
        if kind >= len(KINDS) or len(payload) != length or zlib.crc32(payload) != crc:
            raise damaged
        chunks.append(Chunk(KINDS[kind], payload))
        place += length
    if place != len(data):
        raise damaged
    return header, chunks


def digest(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()
