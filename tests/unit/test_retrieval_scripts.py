"""Words of every script: what a corpus needs of the tokenizer, how it is chosen, recorded and told; and NFC."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.check import self_recall, uncut_share
from dgpo_cli.retrieval.index.manifest import read_manifest
from dgpo_cli.retrieval.lexical import scripts
from dgpo_cli.retrieval.lexical.bm25 import BM25Config
from dgpo_cli.retrieval.lexical.words import WordTokenizer, words_of
from dgpo_cli.retrieval.open import open_index

# Two passages each, and a question that shares words with the first one alone.
LANGUAGES = {
    "Chinese": ("奥斯陆是挪威的首都，位于峡湾的北端。", "卑尔根以雨水和鱼市场闻名。", "哪个城市是挪威的首都？"),
    "Japanese": (
        "オスロはノルウェーの首都で、フィヨルドの北にある。",
        "京都は多くの寺院で知られている。",
        "ノルウェーの首都はどこ？",
    ),
    "Thai": ("ออสโลเป็นเมืองหลวงของประเทศนอร์เวย์", "เชียงใหม่มีวัดมากมาย", "เมืองหลวงของนอร์เวย์คือที่ไหน"),
    "Khmer": ("ភ្នំពេញជារាជធានីនៃប្រទេសកម្ពុជា", "សៀមរាបមានប្រាសាទបុរាណ", "រាជធានីនៃកម្ពុជា"),
    "Lao": ("ວຽງຈັນເປັນນະຄອນຫຼວງຂອງລາວ", "ຫຼວງພະບາງມີວັດຫຼາຍ", "ນະຄອນຫຼວງຂອງລາວ"),
    "Burmese": ("နေပြည်တော်သည်မြန်မာနိုင်ငံ၏မြို့တော်ဖြစ်သည်", "ပုဂံတွင်ဘုရားများရှိသည်", "မြန်မာနိုင်ငံ၏မြို့တော်"),
    "Hindi": ("ओस्लो नॉर्वे की राजधानी है।", "बर्गन बारिश के लिए मशहूर है।", "नॉर्वे की राजधानी"),
    "Korean": ("오슬로는 노르웨이의 수도이다.", "베르겐에는 어시장이 있다.", "노르웨이 수도가 어디인가?"),
    "Arabic": ("أُوسْلُو هِيَ عَاصِمَةُ النُّرْوِيج", "بِيرْغِن مَدِينَةُ المَطَر", "عاصمة النرويج"),
    "Arabic of a PDF": (
        "\ufecb\ufe8e\ufebb\ufee4\ufe94 \ufe8d\ufedf\ufee8\ufeae\ufeed\ufef3\ufe9e",
        "\ufee3\ufeaa\ufef3\ufee8\ufe94 \ufe8d\ufedf\ufee4\ufec4\ufeae",
        "عاصمة النرويج",
    ),
    "Hebrew": ("אוֹסְלוֹ הִיא בִּירַת נוֹרְבֶגְיָה", "בֶּרְגֶן הִיא עִיר הַגֶּשֶׁם", "נורבגיה"),
    "full width": ("ｶﾞﾃﾞｨは１８５２年に生まれた。", "ｵｽﾛは首都である。", "ガディ 1852"),
    "Tamil": ("சென்னை தமிழ்நாட்டின் தலைநகரம்", "மதுரை கோயில்களுக்கு பெயர் பெற்றது", "தலைநகரம் எது"),
}


def corpus(path: Path, *texts: str) -> Path:
    rows = [{"id": str(n), "contents": f'"{n}"\n{text}'} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def built(folder: Path, *texts: str, retriever: str = "bm25", **options: Any) -> Any:
    build_index(corpus(folder / "c.jsonl", *texts), folder / retriever, retriever=retriever, settings=options)
    return open_index(folder / retriever)


def found(index: Any, query: str) -> list[str]:
    return [hit.passage.id for hit in index.retriever.search([query], 5)[0]]


@pytest.mark.parametrize("retriever", ["bm25", "rank-bm25"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_question_finds_its_passage(tmp_path: Path, language: str, retriever: str) -> None:
    first, second, question = LANGUAGES[language]
    options = {"idf": "lucene"} if retriever == "rank-bm25" else {}
    index = built(tmp_path, first, second, second[: len(second) // 2], retriever=retriever, **options)
    assert found(index, question)[0] == "0"
    assert index.manifest.state["tokenizer"] == "unicode" and index.manifest.state["uncut_share"] > 0.1
    assert self_recall(index, [2])[1][2] == 1.0, "by a part of its words, not by the whole sentence"
    assert uncut_share(index) == 0.0
    (tmp_path / "p").mkdir()
    plain = built(tmp_path / "p", first, second, retriever=retriever, tokenizer="words")
    assert uncut_share(plain) > 0.1, "the share that the words of bm25s leave out"


@pytest.mark.parametrize("language", ["Chinese", "Japanese"])  # the others are cut into pieces at their marks
def test_check_counts_honestly_where_words_are_not_cut(tmp_path: Path, language: str) -> None:
    index = built(tmp_path, *LANGUAGES[language][:2], tokenizer="words")
    assert self_recall(index, [5])[1][5] == 0.0


def test_english_is_cut_alike_and_stays_with_words(tmp_path: Path) -> None:
    texts = [
        "The Café Zoë’s 1st “naïve” river-town",
        "Oslo (Norwegian: [ˈʊ̂ʂlʊ]; 奥斯陆) is the capital." + " Norway" * 200,
    ]
    index = built(tmp_path, *texts)
    assert index.manifest.state == {
        "tokenizer": "words", "uncut_share": pytest.approx(4 / sum(4 + len(t) for t in texts), abs=1e-6),
        "uncut_passages": 0,
    }  # fmt: skip
    assert WordTokenizer(cut="unicode").words(texts[0]) == WordTokenizer(cut="words").words(texts[0])


# U+0130 is left out: lowered it is two characters, so that alone it is a word of plain text and one letter of others.
@given(st.text(st.characters(max_codepoint=0x2FF, exclude_characters="\u00ad\u0130"), max_size=60))
@settings(deadline=None)
def test_latin_text_has_the_same_words_by_every_tokenizer(text: str) -> None:
    plain = WordTokenizer(cut="plain").words(text)
    assert WordTokenizer(cut="words").words(text) == plain == WordTokenizer(cut="unicode").words(text)


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_has_the_same_words_in_every_form_of_unicode(text: str) -> None:
    words = WordTokenizer(cut="unicode")
    assert words.words(unicodedata.normalize("NFD", text)) == words.words(unicodedata.normalize("NFC", text))
    assert all(len(word) >= 1 and not word.isspace() for word in words.words(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("猫", ["猫"]),
        ("猫と犬", ["猫", "と", "犬", "猫と", "と犬"]),
        ("dgpo検索 v2", ["dgpo", "検", "索", "検索", "v2"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("กำ", ["ก", "ำ", "กำ"]),
        ("ที่นี่", ["ที่", "นี่", "ที่นี่"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("co\u00adoperate", ["cooperate"]),
        ("東京。大阪", ["東", "京", "東京", "大", "阪", "大阪"]),
        ("x ё й", []),
        ("שָׁלוֹם", ["שלום"]),
        ("مُحَمَّد", ["محمد"]),
        ("كتـــاب", ["كتاب"]),
        ("آب", ["آب"]),  # a letter of its own
        ("２０２４年 ＯＳＬＯ", ["2024", "年", "oslo"]),
        ("ｶﾞｲﾄﾞ", ["ガ", "イ", "ド", "ガイ", "イド"]),
        ("ﬁnland", ["finland"]),
        ("수도는 강", ["수도", "도는", "강"]),
        ("İstanbul", ["istanbul"]),
        ("ﷲ", ["الله"]),
    ],
)
def test_words_by_hand(text: str, words: list[str]) -> None:
    assert WordTokenizer(cut="unicode").words(text) == [unicodedata.normalize("NFC", word) for word in words]


def test_uncut_characters_by_hand() -> None:
    assert scripts.uncut("Oslo 奥斯陆 หลวง") == 7
    assert scripts.uncut("की") == 1, "the mark, not the letter"
    assert scripts.uncut("café ёлка αβγ ❤️ 1️⃣ שלום") == 0
    assert scripts.uncut("수도, ２０ ﬁ！") == 5


def test_a_query_of_an_index_by_words_may_be_written_with_signs_or_in_other_forms(tmp_path: Path) -> None:
    """Passages without them are cut by words, and stay with them."""
    index = built(tmp_path, "محمد كاتب", "İstanbul is a city", "Finland in 2024", "weavers of Tarn")
    assert index.manifest.state["tokenizer"] == "words"
    for query, row in (("مُحَمَّد", "0"), ("istanbul", "1"), ("İSTANBUL", "1"), ("ﬁnland", "2"), ("２０２４", "2")):
        assert found(index, query) == [row], query
    words = WordTokenizer(cut="words")
    assert words.query("Finland Finland — café") == words.words("Finland Finland — café"), "a word counts as often"


def test_an_index_of_every_script_that_did_not_fold_is_asked_as_it_was_built(tmp_path: Path) -> None:
    texts = ("שָׁלוֹם רב", "수도는 서울", "東京 ２０２４")
    index = built(tmp_path, *texts, tokenizer="unicode")
    assert index.manifest.state["folds"] is True
    old = words_of(BM25Config(), {"tokenizer": "unicode"})
    assert [old.query(text) for text in texts] == [["שָׁלוֹם", "רב"], ["수도는", "서울"], ["東", "京", "東京", "２０２４"]]
    assert words_of(BM25Config(), index.manifest.state).query("수도는") == ["수도", "도는"]


@pytest.mark.parametrize("retriever", ["bm25", "rank-bm25"])
@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_accents_match_in_either_form(tmp_path: Path, stored: str, asked: Any, retriever: str) -> None:
    text = unicodedata.normalize(stored, "Đường Nguyễn Huệ là một con phố ở Sài Gòn")  # type: ignore[arg-type]
    index = built(tmp_path, text, "Bến Thành là một khu chợ", "Hà Nội", retriever=retriever)
    assert found(index, unicodedata.normalize(asked, "Nguyễn Huệ")) == ["0"]
    assert index.manifest.state["uncut_share"] == 0.0, "every letter of it exists in one piece"


def test_a_setting_chooses_the_words(tmp_path: Path) -> None:
    chinese, other, question = LANGUAGES["Chinese"]
    english = "Oslo is the capital of Norway. " * 100
    mixed = built(tmp_path, chinese, other, english * 4)
    assert mixed.manifest.state["tokenizer"] == "words" and mixed.manifest.state["uncut_passages"] == 2
    assert found(mixed, question) == []
    (tmp_path / "u").mkdir()
    chosen = built(tmp_path / "u", chinese, other, english * 4, tokenizer="unicode")
    assert found(chosen, question)[0] == "0" and found(chosen, "the capital of Norway") == ["2"]
    with pytest.raises(ConfigError, match="with another tokenizer"):
        build_index(tmp_path / "c.jsonl", tmp_path / "bm25", settings={"tokenizer": "unicode"})
    with pytest.raises(ConfigError, match="tokenizer"):
        built(tmp_path / "u", chinese, tokenizer="jieba")


def test_an_index_of_an_earlier_version_opens_and_searches_as_it_did(tmp_path: Path) -> None:
    first, second, question = LANGUAGES["Chinese"]
    texts = ["Oslo is the capital of Norway", "Bergen has a fish market", first + second]
    index = built(tmp_path, *texts, tokenizer="words")
    file = tmp_path / "bm25" / "manifest.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    del record["settings"]["tokenizer"], record["sha256"]
    file.write_text(json.dumps(record | {"state": {}}), encoding="utf-8")
    old = open_index(tmp_path / "bm25")
    for query in ("capital of Norway", "fish", question):
        assert old.retriever.search([query], 3) == index.retriever.search([query], 3)
    assert uncut_share(old) > 0.2
    _, reused = build_index(tmp_path / "c.jsonl", tmp_path / "bm25")
    assert reused and "tokenizer" not in read_manifest(tmp_path / "bm25").settings
    assert "tokenizer" not in read_manifest(tmp_path / "bm25").rebuild_command(tmp_path / "bm25")


@pytest.mark.parametrize(
    ("retriever", "options"),
    [
        ("rank-bm25", {}),
        ("rank-bm25", {"idf": "lucene"}),
        ("rank-bm25", {"k1": 0}),
        ("rank-bm25", {"k1": 0, "b": 1}),
        ("bm25", {"k1": 0}),
        ("bm25", {"variant": "robertson"}),
        ("bm25", {"variant": "atire"}),
        ("bm25", {}),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_passage_matches_where_it_shares_a_word(
    tmp_path: Path, retriever: str, options: dict[str, Any], count: int
) -> None:
    passages = [
        "Oslo capital Norway",
        "Bergen market Norway",
        "Tromsø north Norway",
        "Bodø coast Norway",
        "Voss Norway",
    ]
    index = built(tmp_path, *passages[:count], retriever=retriever, **options)
    for row, text in enumerate(passages[:count]):
        title = text.split()[0]
        assert found(index, title) == [str(row)], "its own title and nothing else"
        assert found(index, f"{title} {text.split()[1]} Norway")[0] == str(row)
    assert sorted(found(index, "Norway")) == [str(n) for n in range(count)], "a word in every passage"
    if count > 1:
        assert sorted(found(index, "Bergen Oslo")) == ["0", "1"], "each holds one of the words"
    assert found(index, "Stockholm") == [] and found(index, "the") == []
    best = index.retriever.search(["Norway Oslo"], 1)[0]
    assert [hit.rank for hit in best] == [1]


def test_passages_that_score_nothing_come_after_those_that_do() -> None:
    import numpy as np

    from dgpo_cli.retrieval.lexical.ranking import with_unscored

    scores = np.array([0.0, 2.0, 0.0, -1.0, 0.0, 0.0])
    held, shared = np.array([0, 1, 3, 4, 5]), np.array([1, 1, 2, 2, 1])
    rows = with_unscored(np.array([1]), scores, 5, held, shared)
    assert rows.tolist() == [1, 4, 0, 5, 3], "row 2 shares nothing"
    assert with_unscored(np.array([1]), scores, 2, held, shared).tolist() == [1, 4]
