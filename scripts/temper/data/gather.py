"""Pieces of a buffer put behind each other in another order by Arrow, which takes a fifth of a loop's time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

INLINE = 12  # bytes up to which a view holds its text itself
_POOL = pa.system_memory_pool()  # which keeps what workers.tune() tells it to keep
KIND = pa.large_binary()


def pieces(data: bytes, begins: np.ndarray, ends: np.ndarray) -> pa.Array:
    """Return the pieces of `data` from each of `begins` up to its end, as an array of KIND; `data` is below 2 GiB."""
    sizes = ends - begins
    views = np.zeros((len(sizes), 4), np.int32)  # size, first bytes (which only comparing needs), buffer, place in it
    views[:, 0], views[:, 3] = sizes, begins
    short = np.flatnonzero(sizes <= INLINE)
    places = np.arange(INLINE)
    texts = np.take(np.frombuffer(data, np.uint8), begins[short, None] + places, mode="clip")
    views.view(np.uint8)[short, 4:] = np.where(places < sizes[short, None], texts, 0)
    buffers = [None, pa.py_buffer(views), pa.py_buffer(data)]
    found = pa.Array.from_buffers(pa.binary_view(), len(sizes), buffers)
    return pc.cast(found, KIND, memory_pool=_POOL)


def parts(texts: pa.Array) -> tuple[memoryview, np.ndarray]:
    """Return the bytes of all texts of an array of KIND, and where each ends."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64, len(texts) + 1)[1:]
    return memoryview(data or b"")[: ends[-1] if len(ends) else 0], ends


def gather(data: bytes, begins: np.ndarray, ends: np.ndarray) -> memoryview:
    """Return the bytes of pieces of `data`, in the order given."""
    if len(data) >= 1 << 31:
        cut = zip(begins.tolist(), ends.tolist(), strict=True)
        return memoryview(b"".join(data[begin:end] for begin, end in cut))
    return parts(pieces(data, begins, ends))[0]


def join(*columns: bytes | pa.Array) -> tuple[memoryview, np.ndarray]:
    """Return rows put together from columns and from bytes that all rows share, and where each row ends."""
    given = [_one(part)[0] if isinstance(part, bytes) else part for part in (*columns, b"")]
    return parts(pc.binary_join_element_wise(*given, memory_pool=_POOL))


def is_utf8(data: bytes) -> bool:
    """Say whether bytes are UTF-8."""
    try:
        _one(data).cast(pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True


def _one(text: bytes) -> pa.Array:
    """Return an array of one text; pyarrow.scalar() would load pandas, which takes longer than all else to start."""
    return pa.Array.from_buffers(KIND, 1, [None, pa.py_buffer(np.array([0, len(text)])), pa.py_buffer(text)])
