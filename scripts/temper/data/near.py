"""Which questions are nearly the same: how alike two are, and the hashes that bring such pairs together.

Two texts are as alike as the Jaccard similarity of their sets of four-character pieces, once width, case, punctuation
and blanks are gone; and not alike at all where their codes (numbers, letters, signs) differ, because then they ask for
different things. bands() finds the pairs to compare among millions by MinHash: texts that are alike share a band.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

THRESHOLD = 0.85  # Jaccard similarity from which two texts are near-duplicates
BANDS, ROWS = 20, 6  # a pair at 0.85 shares a band with probability 0.99992, at 0.5 with 0.27, at 0.2 with 0.001
PIECE = 4
_EDGE = "\0" * (PIECE - 1)  # so that a name costs as much at either end of a question as inside

# A batch stays below the sizes at which rensa starts threads (256 texts, 65,536 pieces): a fork after that would hang.
_TEXTS, _PIECES = 128, 60_000

_HAN = "〇零一二两三四五六七八九十百千万亿壹贰叁肆伍陆柒捌玖拾佰仟萬億兩"
_ORDER = "半甲乙丙丁"
_SIGNS = "#%&*+/<=>^|±×÷≠≤≥−$£¥€"
_PART = re.compile(  # a word, a number with its gaps, one in Chinese, a sign, a minus; all other letters
    rf"[a-z]+|\d+(?:(?:[^\w{_SIGNS}]|_)+\d+)*|[{_HAN}{_ORDER}]+|[{_SIGNS}]|(?<![a-z\d])-(?=\d)|[^\W\d_a-z{_HAN}{_ORDER}]+"
)
_WORDS = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion half zero first "
    "second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth ii iii iv vi vii viii ix"
)
_CODES = frozenset(_WORDS.split()).union("bcdfghjklmnopqrstuvwxyz", _ORDER, _SIGNS)  # a, i and e-mail are no codes
_PLAIN = re.compile("[\x00-\x7f\u4e00-\u9fff，。？！：；、（）《》“”‘’—…]*+")  # what normalize() makes no difference to


def _number(digits: str) -> str:
    """Return a number without thousands separators; of gaps between digits without blanks and commas, or one blank."""
    plain = re.sub(r",(?=\d{3}(?!\d))", "", unicodedata.normalize("NFKC", digits))
    return re.sub(r"[\W_]+", lambda gap: re.sub(r"[\s,]", "", gap[0]) or " ", plain)


def _read(text: str) -> tuple[str, list[str]]:
    """Return the folded text and, in order, the codes in it."""
    plain = text.isascii() or _PLAIN.fullmatch(text)
    text = text.lower() if plain else unicodedata.normalize("NFKC", text).casefold()
    if "'" in text or "’" in text:
        text = re.sub("(?<=[a-z])['’](?=[a-z])", "", text)  # the s of what's is no code
    parts, codes = _PART.findall(text), []
    for place, part in enumerate(parts):
        if part in _CODES:
            codes.append(part)
        elif part == "-" or (part[0].isnumeric() and part != "一"):  # which is no number in 一下 and 一些
            if not part.isalnum():
                part = parts[place] = "−" if part == "-" else _number(part)
            codes.append(part)
    folded = "".join(parts)
    if not plain and not (unicodedata.is_normalized("NFKC", folded) and folded == folded.casefold()):
        folded = fold(folded)
    return folded, codes


def fold(text: str) -> str:
    """Return what two texts are compared by: without width, case, blanks and punctuation.

    Signs that change the meaning (C++, 5%, -5) stay, and so does what parts digits: 1.5 is not 15, but 3,000 is 3000.
    """
    return _read(text)[0]


def _pieces(folded: str) -> set[str]:
    framed = f"{_EDGE}{folded}{_EDGE}"
    return {framed[start : start + PIECE] for start in range(len(folded) + PIECE - 1)}


def likeness(one: str, other: str) -> float:
    """Return how alike two texts are, 0 to 1; 0 when the codes in them differ, or when one has nothing to compare.

    Codes are, in their order, numbers in digits or words (3,000 is 3000, but not 3 thousand or 3000.0), single letters
    (K17, plan B) and signs. Give whole texts: a folded one has lost the limits of its words.
    """
    (left, left_codes), (right, right_codes) = _read(one), _read(other)
    if left_codes != right_codes or not (left and right):
        return 0.0
    if left == right:
        return 1.0
    left_pieces, right_pieces = _pieces(left), _pieces(right)
    common = len(left_pieces & right_pieces)
    return common / (len(left_pieces) + len(right_pieces) - common)


def _batches(texts: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    """Yield the folded texts and a checksum of each one's codes."""
    folded: list[str] = []
    sums: list[int] = []
    size = 0
    for text in texts:
        letters, codes = _read(text)
        letters = letters[:_PIECES]
        size += len(letters) + PIECE
        if folded and (size > _PIECES or len(folded) == _TEXTS):
            yield folded, sums
            folded, sums, size = [], [], len(letters) + PIECE
        folded.append(letters)
        sums.append(zlib.crc32("\0".join(codes).encode("utf-8", "surrogatepass")))
    if folded:
        yield folded, sums


def bands(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Return BANDS hashes of each text; two that are alike by THRESHOLD or more share one with probability 0.9999.

    The same text gets the same hashes on every machine. Of a text beyond 60,000 characters the first 60,000 count.
    """
    import numpy as np
    from rensa import RMinHash

    odd = np.frombuffer(hashlib.shake_128(b"temper").digest(8 * (PIECE + 3 + BANDS * ROWS)), "<u8") | np.uint64(1)
    by_place, (spread, by_codes, last), by_row = odd[:PIECE], odd[PIECE : PIECE + 3], odd[PIECE + 3 :]
    found = np.empty((len(texts), BANDS), np.uint64)
    done = 0
    for folded, sums in _batches(texts):
        flat = f"{_EDGE}{_EDGE.join(folded)}{_EDGE}".encode("utf-32-le", "surrogatepass")
        points = np.frombuffer(flat, "<u4").astype(np.uint64)
        count = len(points) - PIECE + 1
        pieces = sum(points[place : place + count] * by_place[place] for place in range(PIECE))
        pieces = (pieces ^ (pieces >> np.uint64(32))) * spread
        limits = np.cumsum([0, *(len(letters) + PIECE - 1 for letters in folded)]).astype(np.uint64)
        rows = RMinHash.digest_matrix_from_flat_token_hashes(pieces, limits, num_perm=BANDS * ROWS, seed=1).to_rows()
        values = np.fromiter(chain.from_iterable(rows), np.uint64, len(folded) * BANDS * ROWS)
        mixed = (values.reshape(-1, BANDS * ROWS) * by_row).reshape(-1, BANDS, ROWS).sum(axis=2, dtype=np.uint64)
        mixed += np.array(sums, np.uint64)[:, None] * by_codes
        found[done : done + len(folded)] = (mixed ^ (mixed >> np.uint64(32))) * last
        done += len(folded)
    return found
