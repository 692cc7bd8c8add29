from __future__ import annotations

from random import Random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from contract.errors import AssayError
from evalsuite.metrics.facts import facts, facts_right, facts_right_shuffled
from evalsuite.metrics.text import METRICS, lead_3, rouge, rouge_mean, sentences, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? four", ["One.", "Two!", "Three? four"]),
        (
            "Dr. Lund met J. Smith at 9 a.m. on Friday. They left.",
            ["Dr. Lund met J. Smith at 9 a.m. on Friday.", "They left."],
        ),
        ("It costs 3.50. “Fine.” He paid", ["It costs 3.50.", "“Fine.”", "He paid"]),
        ("A line\nanother line.\n\nlast", ["A line", "another line.", "last"]),
        ("今日は晴れ。明日は雨！", ["今日は晴れ。", "明日は雨！"]),
        ("ការប្រជុំ។ថ្ងៃសុក្រ", ["ការប្រជុំ។", "ថ្ងៃសុក្រ"]),
        ("အစည်းအဝေး။ရွှေ့ပါ။", ["အစည်းအဝေး။", "ရွှေ့ပါ။"]),
        ("Élise part. Ödön reste… Où?", ["Élise part.", "Ödön reste…", "Où?"]),
        ("  ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_on_ascii_text_rouge_is_rouge_scores_own() -> None:
    reference = "Mara asked Olin to move the meetings; they take room_527 at 9:30.\nKesto's told."
    prediction = "Olin is asked to move a meeting.\nThe room 527 was taken, Kesto knows it."
    theirs = RougeScorer(list(METRICS), use_stemmer=True).score(reference, prediction)
    assert rouge([reference], prediction) == {name: 100 * theirs[name].fmeasure for name in METRICS}


ASCII_TEXT = """the meetings are moving, moved; Moves RUNNING flies die dying happily nationally conditional 3.50
    room_527 it's John's U.S. e-mail AND x y2k 9:30 -- (a) "quoted" 100% agreement agreed being cats ponies ties
    generously university universe skis skies bus buses
    """


@pytest.mark.parametrize("stemming", [True, False])
def test_on_many_ascii_texts_too(stemming: bool) -> None:
    random = Random(5)
    texts = [
        "".join(f"{word} " for word in random.choices(ASCII_TEXT.split(" "), k=k)) for k in (0, 1, 2, 3, *range(5, 60))
    ]
    theirs = RougeScorer(list(METRICS), use_stemmer=stemming)
    differ = 0
    for _ in range(300):
        reference, prediction = random.choice(texts), random.choice(texts)
        lines = ["\n".join(sentences(text)) for text in (reference, prediction)]
        expected = {name: 100 * score.fmeasure for name, score in theirs.score(*lines).items()}
        assert rouge([reference], prediction, stemming=stemming) == expected
        differ += rouge([reference], prediction, stemming=not stemming) != expected
    assert differ > 100  # the switch does something


@pytest.mark.parametrize(
    "text",
    [
        "Anna nói với Tom rằng cô sẽ không đến bữa tiệc. Tàu của cô bị trễ và cô rất mệt.",
        "बैठक कल सुबह दस बजे होगी। सभी को आना चाहिए।",
        "会议推迟到星期五下午三点。王老师会通知大家。",
        "การประชุมเลื่อนเป็นวันศุกร์ บ่ายสามโมง ทุกคนต้องมา",
        "会議は金曜日に延期されました。カレンダーを更新してください！",
        "اجتمع الفريق يوم الجمعة. سيبدأ العمل غدا؟",
        "회의는 금요일로 연기되었습니다. 모두 참석하세요.",
        "ກອງປະຊຸມເລື່ອນໄປວັນສຸກ ທຸກຄົນຕ້ອງມາ",
        "ការប្រជុំត្រូវបានពន្យារពេល។ អ្នកទាំងអស់គ្នាត្រូវមក។",
        "အစည်းအဝေးကို သောကြာနေ့သို့ ရွှေ့လိုက်သည်။",
    ],
)
@pytest.mark.parametrize("stemming", [True, False])
def test_any_script_against_itself_is_100(text: str, stemming: bool) -> None:
    assert rouge([text], text, stemming=stemming) == pytest.approx(dict.fromkeys(METRICS, 100.0))
    assert 0 < rouge([text], f"{text} xyz", stemming=stemming)["rouge1"] < 100


def test_sentences_matter_for_lsum_only() -> None:
    reference, prediction = "Alpha beta gamma. Delta eps zeta.", "Delta eps zeta. Alpha beta gamma."
    scores = rouge([reference], prediction)
    assert scores["rougeLsum"] == pytest.approx(100)
    assert scores["rougeL"] == pytest.approx(50)


def test_other_scripts_count() -> None:
    assert words("Café №5 naïve हिन्दी 東京へ") == ["café", "5", "naïve", "हिन्दी", "東", "京", "へ"]
    assert rouge(["Привет мир"], "привет, мир!")["rougeL"] == pytest.approx(100)
    assert rouge(["Привет мир"], "пока мир")["rouge1"] == pytest.approx(50)
    assert rouge(["Привет"], "")["rougeL"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("เก่ามาก น้ำไทย", ["เก่า", "มา", "ก", "น้ำ", "ไท", "ย"]),
        ("รถ30คัน ๑๒๓ครั้ง", ["ร", "ถ", "30", "คั", "น", "๑๒๓", "ค", "รั้", "ง"]),
        ("ເລື່ອນໄປ", ["ເລື່", "ອ", "ນ", "ໄປ"]),
        ("ប្រជុំថ្ងៃ", ["ប្រ", "ជុំ", "ថ្ងៃ"]),
        ("ကမ္ဘာနေ့", ["က", "မ္ဘာ", "နေ့"]),
        ("人々は2024年にデータ", ["人", "々", "は", "2024", "年", "に", "デ", "ー", "タ"]),
        ("ﾃﾞｰﾀabc", ["ﾃﾞ", "ｰ", "ﾀ", "abc"]),
        ("葛\U000e0100城", ["葛\U000e0100", "城"]),
        ("회의는 금요일로", ["회의는", "금요일로"]),
        ("नमस्ते दुनिया e\u0301t", ["नमस्ते", "दुनिया", "ét"]),
        ("\u0301 a เ b", ["\u0301", "a", "เ", "b"]),
    ],
)
def test_words_of_scripts_with_and_without_spaces(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_a_nearer_thai_summary_scores_higher() -> None:
    reference = "ประชุมเลื่อนเป็นวันศุกร์ตอนบ่ายสามโมง"
    near, far = "เลื่อนประชุมไปวันจันทร์ตอนบ่ายสามโมง", "แมวสีดำนอนบนเก้าอี้"
    for metric in METRICS:
        assert 100 > rouge([reference], near)[metric] > 50 > rouge([reference], far)[metric]


def test_the_best_reference_counts_for_each_metric() -> None:
    both = rouge(["a b c d", "x y z"], "x y d")
    assert both["rouge2"] == rouge(["x y z"], "x y d")["rouge2"]
    assert both["rouge1"] == max(rouge([r], "x y d")["rouge1"] for r in ("a b c d", "x y z"))
    with pytest.raises(AssayError, match="without a reference"):
        rouge([], "x")


def test_the_mean_over_references() -> None:
    references = ["a b c d", "x y z", "q"]
    each = [rouge([reference], "x y d") for reference in references]
    mean = rouge_mean(references, "x y d")
    assert mean == pytest.approx({metric: sum(scores[metric] for scores in each) / 3 for metric in METRICS})
    assert mean["rouge1"] < rouge(references, "x y d")["rouge1"]
    with pytest.raises(AssayError, match="without a reference"):
        rouge_mean([], "x")


def test_lead_3_of_a_dialogue() -> None:
    assert lead_3("A: Hi.\nB: Hello. How are you?\nA: Fine.") == "A: Hi.\nB: Hello.\nHow are you?"


DOCUMENT = "Mara: Shall we take the bus 84?\nOlin: Fine. It costs 1,315.50 crowns. meetings are dull."


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("Mara asks Olin's aunt about bus 84.", {"Mara", "Olin", "84"}),
        ("Meetings cost 1315.50 there.", {"1315.50"}),  # an ordinary word at the beginning
        ("Then I met Saint-Just.", {"Saint-Just"}),
        ("Kesto left.", set()),  # nothing says that it is a name
        ("Kesto left. He saw Kesto.", {"Kesto"}),
    ],
)
def test_facts_of_a_reference(reference: str, expected: set[str]) -> None:
    assert facts(reference, DOCUMENT) == expected


def test_share_right_and_the_shuffled_control() -> None:
    references = [["Mara takes bus 84."], ["Mara meets Tarvo at 9."]]
    documents = ["Mara: bus 84", "Mara: Tarvo, 9"]
    predictions = ["Mara takes bus 841.", "Tarvo meets Mara at 9"]
    assert facts_right(references, documents, predictions).share == pytest.approx(4 / 5)
    assert facts_right_shuffled(references, documents, predictions).share == pytest.approx(2 / 5)
    assert facts_right([["so it is"]], ["so"], ["x"]).share is None


def test_sentences_look_at_no_more_than_they_need() -> None:
    line = 'Dr. Lund asks "why". And so on, Mr. B. Xu. ' + "X" * 40 + "mr. No."
    assert sentences(line) == ['Dr. Lund asks "why".', "And so on, Mr. B. Xu.", "X" * 40 + "mr.", "No."]
