"""Run a merged folder in 8 bits with llama.cpp, as the xllamacpp wheel brings it: token ids in, logits out.

The wheel's own interface hands out texts and llama.cpp's choices only; its library also exports llama.cpp's C
functions, which are called here, so that tokenizer, template, sampling and grammars stay those of the other engine.
The layout of its two parameter structures is that of the locked version: all values set are read back.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from temper.errors import ServeError
from temper.serve import gguf_file, prefix

if TYPE_CHECKING:
    from torch import Tensor

QUANTISED = "q8_0"
CHUNK, OUTPUTS = 256, 64  # tokens in one pass, and how many of them may have logits: both cost memory
ROOM = 512  # bytes, more than either parameter structure has: what is not named here keeps its default
SPLIT = 512  # rows that a thread quantises at a time
_ERROR = 4  # llama.cpp's level of a message that is an error


class _Model(ctypes.Structure):
    _fields_ = (("rest", c_uint8 * ROOM),)


class _Context(ctypes.Structure):
    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("more", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("rest", c_uint8 * (ROOM - 36)),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    )


_LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [_LOG, c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Model, []),
    "llama_context_default_params": (_Context, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _Model]),
    "llama_init_from_model": (c_void_p, [c_void_p, _Context]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_seq_rm": (ctypes.c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, _Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(c_float), [c_void_p, c_int32]),
    "llama_n_ctx_seq": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_ubatch": (c_uint32, [c_void_p]),
    "llama_n_seq_max": (c_uint32, [c_void_p]),
    "llama_n_threads": (c_int32, [c_void_p]),
    "ggml_quantize_chunk": (c_size_t, [c_int32, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
}
_Q8_0 = 8  # ggml's number for it


class Slot:
    """The keys and values of one request, or of one that is over."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seen: list[int] = []  # the tokens whose keys and values are there
        self.room = 0
        self.busy = False

    @property
    def length(self) -> int:
        """Return how many tokens are there."""
        return len(self.seen)


class Model:
    """A folder's weights in 8 bits, loaded into llama.cpp."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Quantise the weights and load them; ServeError where llama.cpp cannot."""
        self.lib, self.said, self.threads = _library(), list[str](), threads
        self.log = _LOG(self._note)  # llama.cpp keeps no reference
        self.lib.llama_log_set(self.log, None)
        self.lib.llama_backend_init()
        with tempfile.TemporaryFile() as unnamed:  # whatever happens, nothing is left
            file = Path(f"/proc/self/fd/{unnamed.fileno()}")
            try:
                self.vocabulary = gguf_file.write(folder, file, self._quantise)
            except OSError as error:
                where = tempfile.gettempdir()
                raise ServeError(f"8-bit weights cannot be written in {where} ({error})", "set TMPDIR") from None
            self.model = self.lib.llama_model_load_from_file(str(file).encode(), self.lib.llama_model_default_params())
        if not self.model:
            raise self.failed(f"does not load {folder}")

    def _note(self, level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            self.said = [*self.said[-2:], " ".join(text.decode(errors="replace").split())]

    def failed(self, what: str) -> ServeError:
        """Return an error with llama.cpp's own last words."""
        return ServeError(f"llama.cpp {what}: {' '.join(self.said) or 'it says no more'}", "serve without --quantize")

    def _quantise(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return float32 [rows, columns] in 8 bits, [rows, bytes]."""
        rows, columns = values.shape
        out = np.empty((rows, columns // 32 * 34), np.uint8)

        def part(begin: int) -> None:
            given, to = values[begin:].ctypes.data, out[begin:].ctypes.data
            self.lib.ggml_quantize_chunk(_Q8_0, given, to, 0, min(SPLIT, rows - begin), columns, None)

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(part, range(0, rows, SPLIT)))
        return out

    def context(self, slots: int, room: int) -> Any:
        """Return a context with memory for so many requests of so many tokens; ServeError."""
        wanted = self.lib.llama_context_default_params()
        known = (wanted.n_ctx, wanted.n_batch, wanted.n_ubatch, wanted.n_seq_max, wanted.n_threads)
        if known != (512, 2048, 512, 1, 4):
            raise self.failed(f"has other defaults than the locked version ({known})")
        room = -(-room // 256) * 256
        wanted.n_ctx, wanted.n_seq_max = room * slots, slots
        wanted.n_batch = wanted.n_ubatch = CHUNK
        wanted.n_outputs_max = OUTPUTS
        wanted.n_threads = wanted.n_threads_batch = self.threads
        context = self.lib.llama_init_from_model(self.model, wanted)
        if not context:
            raise self.failed(f"has no room for {slots} requests of {room} tokens")
        names = ("ctx_seq", "batch", "ubatch", "seq_max", "threads")
        found = tuple(getattr(self.lib, f"llama_n_{name}")(context) for name in names)
        if found != (room, CHUNK, CHUNK, slots, self.threads):
            raise self.failed(f"took other settings than it was given ({dict(zip(names, found, strict=True))})")
        return context


class Quantised:
    """Runs a model for several requests at once: what runner.Runner is to one in transformers."""

    def __init__(self, model: Model, slots: int, room: int) -> None:
        """Take memory for `slots` requests of `room` tokens each; ServeError where there is none."""
        self.model, self.lib = model, model.lib
        self.context = model.context(slots, room)
        self.memory = self.lib.llama_get_memory(self.context)
        self.slots = [Slot(number) for number in range(slots)]

    def start(self, prompt: Sequence[int], room: int) -> Slot | None:
        """Return a slot, with what is known of the prompt's beginning filled in already; None while all are busy."""
        free = [slot for slot in self.slots if not slot.busy]
        if not free:
            return None
        # The free slot that began alike; of those that did not, the one left first.
        slot = max(free, key=lambda slot: prefix.common(slot.seen, prompt))
        self.slots.remove(slot)
        self.slots.append(slot)
        del slot.seen[prefix.common(slot.seen, prompt) :]
        slot.room, slot.busy = room, True
        self.lib.llama_memory_seq_rm(self.memory, slot.number, slot.length, -1)
        return slot

    def finish(self, slot: Slot) -> None:
        """Leave a slot."""
        slot.busy = False

    def forward(self, parts: Sequence[tuple[Slot, Sequence[int]]], every: bool = False) -> Tensor:
        """Take each slot's next tokens and return float32 logits [slots, vocabulary] behind the last of each.

        With `every` they are [tokens, vocabulary], behind each token. RuntimeError when llama.cpp fails.
        """
        import torch

        ids = np.array([token for _, given in parts for token in given], np.int32)
        at = np.array([slot.length + n for slot, given in parts for n in range(len(given))], np.int32)
        owners = np.array([slot.number for slot, given in parts for _ in given], np.int32)
        wanted = np.full(len(ids), every, np.int8)
        wanted[np.cumsum([len(given) for _, given in parts]) - 1] = 1
        found = np.empty((int(wanted.sum()), self.model.vocabulary), np.float32)
        row, step = 0, OUTPUTS if every else CHUNK
        seen = [slot.seen for slot, _ in parts]
        for slot, _ in parts:
            slot.seen = []  # of a pass that fails nothing is known
        for begin in range(0, len(ids), step):
            piece = slice(begin, begin + step)
            row = self._pass(ids[piece], at[piece], owners[piece], wanted[piece], found, row)
        for (slot, given), known in zip(parts, seen, strict=True):
            slot.seen = [*known, *given]
        return torch.from_numpy(found)

    def _pass(self, ids: Any, at: Any, owners: Any, wanted: Any, found: NDArray[np.float32], row: int) -> int:
        """Run some tokens and copy the logits that are wanted into `found` from `row` on; return the next row."""
        counts = np.ones(len(ids), np.int32)
        pointers = owners.ctypes.data + owners.itemsize * np.arange(len(ids), dtype=np.uint64)
        arrays = (ids, at, counts, pointers, wanted)
        token, pos, n_seq_id, seq_id, logits = (array.ctypes.data for array in arrays)
        status = self.lib.llama_decode(self.context, _Batch(len(ids), token, None, pos, n_seq_id, seq_id, logits))
        if status:
            raise RuntimeError(f"llama_decode returned {status}: {' '.join(self.model.said)}")
        for place in np.flatnonzero(wanted):
            values = self.lib.llama_get_logits_ith(self.context, int(place))
            found[row] = np.ctypeslib.as_array(values, (self.model.vocabulary,))
            row += 1
        return row


def _library() -> Any:
    try:
        import xllamacpp
    except ImportError:
        raise ServeError(
            "--quantize needs the package xllamacpp, which is not installed", "run: make install"
        ) from None
    lib = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    for name, (returned, taken) in _FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = returned, taken
    return lib
