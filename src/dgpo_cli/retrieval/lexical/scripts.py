"""Words in any script: combining marks belong to their letter, and scripts without spaces are cut into characters.

Where words stand without spaces between them (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character and every
pair of neighbours is a word, as search engines do it that know no dictionary (Lucene's CJKBigramFilter). A character is
a letter with its marks. Korean puts spaces, but glues particles to its words: a word is every pair of neighbours there.

What is written or left out at will is left out: Arabic and Hebrew vowel signs, the stroke that stretches Arabic words.
Forms that differ in width or place alone (full-width digits, half-width kana, Arabic as PDF files hold it) are one.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import NamedTuple

from dgpo_cli.core.text import composed

# Letters, marks and digits of the scripts that put no spaces between words, without their punctuation.
_SPACELESS = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59"  # Thai
    "\u0e80-\u0edf"  # Lao
    "\u1000-\u1049\u1050-\u109d\ua9e0-\ua9fe\uaa60-\uaa7f"  # Burmese and its neighbours
    "\u1780-\u17d3\u17d7\u17dc-\u17e9"  # Khmer
    "\u1950-\u19da\u1a20-\u1a99\u1aa7"  # Tai Le, New Tai Lue, Tai Tham
    "\u1b00-\u1b4b\ua980-\ua9c0"  # Balinese, Javanese
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c"  # marks of repetition and numbers among Han
    "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3105-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_HANGUL = "\u1100-\u11ff\u3130-\u3163\u3165-\u318f\ua960-\ua97f\uac00-\ud7ff"
# Letters and digits that are others in another width, joined, or as they stand in a word's beginning, middle or end.
_FORMS = "\ufb00-\ufb06\ufb1d-\ufdc7\ufdf0-\ufdfc\ufe70-\ufefc\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc"
_IN_FORMS = re.compile(f"[{_FORMS}]+")
# Points and accents of Hebrew, signs of Arabic beside its letters, the stroke that stretches a word.
_OPTIONAL = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7"
    "\u06e8\u06ea-\u06ed\u08d3-\u08e1\u08e3-\u08ff]+"
)
_DOTTED = "i\u0307"  # what lower case makes of the Turkish capital
# Any character of such a script, or a mark: a quick test, as most texts hold none.
_PERHAPS = re.compile("[\u0300-\u036f\u0483-\u0489\u0591-\u1dff\u20d0-\u20ff\u2cef-\u2dff\u3005-\U0010ffff]")
_WORD = re.compile(r"\b\w\w+\b")
# Not seen, and typed or left out at will: soft hyphen, joiners, variation selectors.
_UNSEEN = re.compile("[\u00ad\u200c\u200d\u2060\ufe00-\ufe0f]+")


def undotted(text: str) -> str:
    """A text in lower case whose Turkish i has one dot, as everywhere else."""
    return text.replace(_DOTTED, "i")


def folded(text: str) -> str:
    """A text in NFC and lower case without what is written at will, and in one form of each letter."""
    if not _PERHAPS.search(text):
        return text
    plain = _IN_FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return _OPTIONAL.sub("", undotted(composed(plain)))


def cut(text: str, *, folds: bool = True) -> list[str]:
    """Words of a text in NFC and lower case, of two characters or more where words are written apart.

    Without `folds` vowel signs, forms and Korean words are left as they are, as in indexes that were built so.
    """
    text = _UNSEEN.sub("", folded(text) if folds else text)
    if not _PERHAPS.search(text):
        return _WORD.findall(text)
    found: list[str] = []
    for match in (_patterns().cut if folds else _patterns().cut_unfolded).finditer(text):
        if match[1] is not None:
            found += _characters(match[1])
        elif folds and match[2] is not None:
            found += map(str.__add__, match[2], match[2][1:]) if len(match[2]) > 1 else match[2]
        else:
            found.append(match[0])
    return found


def spaceless_runs() -> re.Pattern[str]:
    """Stretches of a script without spaces."""
    return _patterns().run


def uncut(text: str) -> int:
    """How many characters of a text in NFC are of scripts without spaces, of Korean, other forms, or marks on letters.

    Where a word is taken to be letters between anything else, the former make one word of a sentence and the latter
    cut a word into pieces.
    """
    perhaps = _PERHAPS.findall(text)
    return sum(map(len, _patterns().uncut.findall("".join(perhaps)))) if perhaps else 0


def _characters(run: str) -> list[str]:
    """Every character of a run, and every pair of neighbours."""
    single: list[str] = _patterns().character.findall(run)
    return [*single, *map(str.__add__, single, single[1:])]


class _Patterns(NamedTuple):
    cut: re.Pattern[str]  # a run of a script without spaces (group 1), Korean (group 2), or a word
    cut_unfolded: re.Pattern[str]  # a run (group 1), or a word, Korean ones too
    run: re.Pattern[str]
    uncut: re.Pattern[str]
    character: re.Pattern[str]  # a letter with its marks


@cache
def _patterns() -> _Patterns:
    """Made when first needed."""
    marks = _marks()
    run = f"[{_SPACELESS}][{_SPACELESS}{marks}]*"

    def word(without: str) -> str:
        return rf"[^\W{without}](?:[^\W{without}]|(?![{without}])[{marks}])+"

    return _Patterns(
        cut=re.compile(f"({run})|([{_HANGUL}]+)|{word(_SPACELESS + _HANGUL)}"),
        cut_unfolded=re.compile(f"({run})|{word(_SPACELESS)}"),
        run=re.compile(run),
        uncut=re.compile(f"[{_SPACELESS}{_HANGUL}{_FORMS}{marks}]+"),
        character=re.compile(f"[^{marks}][{marks}]*|[{marks}]+"),
    )


def _marks() -> str:
    """All combining marks but those that enclose a letter or choose its picture, as the inside of a character class."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x1EA00):
        if unicodedata.category(chr(code)) in ("Mn", "Mc") and not 0xFE00 <= code <= 0xFE0F:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
