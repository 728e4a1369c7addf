"""Whether an answer holds a fact, and how much of a reference's wording it keeps (ROUGE-L), in Chinese and English."""

from __future__ import annotations

import re
import unicodedata

# Written without blanks, so every character is a token: Han, kana, Hangul.
_UNSPACED = (
    "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uac00-\ud7af"
)
_NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)*"
_TOKEN = re.compile(rf"[{_UNSPACED}]|{_NUMBER}|[^\W_{_UNSPACED}]+")


def fold(text: str) -> str:
    """Return text without what does not change a fact: width, case and blanks."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()


def holds(text: str, fact: str) -> bool:
    """Say whether a fact stands in a text, whatever the width, case and blanks of either.

    A number in it is not the end or the beginning of a longer one: 5天 is not in 15天, nor 138元 in 1,138元.
    """
    wanted = fold(fact)
    before = r"(?<![0-9])(?<![0-9][.,])" if wanted[:1].isdigit() else ""
    after = r"(?!\.?[0-9])" if wanted[-1:].isdigit() else ""
    said = unicodedata.normalize("NFKC", text).casefold()
    return bool(re.search(before + r"\s*".join(map(re.escape, wanted)) + after, said))


def tokens(text: str) -> list[str]:
    """Split text after NFKC and case folding: Han, kana and Hangul by character, other letters by word, numbers whole.

    Characters and not jieba's words: two answers that differ by one character must not differ by how a dictionary of
    some version cuts the words around it; Chinese ROUGE is usually given so (Hu et al. 2015, LCSTS).
    Punctuation and symbols are dropped, % too. Not done: stemming, and words of Thai and others that write no blanks.
    """
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L, 0 to 1: the F1 of the longest common subsequence of tokens (Lin 2004, section 3, beta 1).

    The whole answer is one sequence, not split in sentences (not ROUGE-Lsum). A text without a token scores 0.
    """
    from rapidfuzz.distance import LCSseq

    said, meant = tokens(answer), tokens(reference)
    return 2 * LCSseq.similarity(said, meant) / ((len(said) + len(meant)) or 1)
