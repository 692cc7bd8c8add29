from __future__ import annotations

import pytest

from evalsuite.metrics.language import language, main_script, wrong_language

TEXTS = {
    "English": "Anna tells Tom that she will not come to the party because her train was late and she is tired.",
    "German": (
        "Anna sagt Tom, dass sie nicht zur Feier kommt, weil ihr Zug Verspätung hatte und sie müde ist. Er "
        "versteht das und wird mit den anderen auf sie trinken."
    ),
    "French": (
        "Anna dit à Tom qu'elle ne viendra pas à la fête parce que son train est en retard et qu'elle est fatiguée."
    ),
    "Spanish": "Anna le dice a Tom que no va a la fiesta porque su tren llegó con retraso y está muy cansada.",
    "Portuguese": "Anna diz ao Tom que não vai à festa porque o seu trem atrasou e ela está muito cansada.",
    "Italian": (
        "Anna dice a Tom che non viene alla festa perché il suo treno era in ritardo ed è molto stanca. Lui "
        "la capisce e le augura una buona notte con il cuore."
    ),
    "Dutch": "Anna zegt tegen Tom dat ze niet naar het feest komt omdat haar trein te laat was en ze moe is.",
    "Swedish": "Anna säger till Tom att hon inte kommer till festen för att hennes tåg var sent och hon är trött.",
    "Danish or Norwegian": (
        "Anna siger til Tom, at hun ikke kommer til festen, fordi hendes tog var forsinket, og hun er træt. "
        "Han forstår det og ønsker hende en god nat."
    ),
    "Polish": "Anna mówi Tomowi, że nie przyjdzie na imprezę, bo jej pociąg był spóźniony i jest zmęczona.",
    "Czech": (
        "Anna říká Tomovi, že na oslavu nepřijde, protože její vlak měl zpoždění a je unavená. On to chápe a "
        "přeje jí dobrou noc, když už byl doma."
    ),
    "Turkish": (
        "Anna Tom'a partiye gelmeyeceğini söylüyor çünkü treni gecikti ve çok yorgun. Tom bunu anlıyor ve ona"
        " iyi geceler diliyor ama daha sonra da bir mesaj yazıyor."
    ),
    "Indonesian or Malay": (
        "Anna memberi tahu Tom bahwa dia tidak akan datang ke pesta karena keretanya terlambat dan dia lelah."
    ),
    "Vietnamese": "Anna nói với Tom rằng cô sẽ không đến bữa tiệc vì tàu của cô bị trễ và cô rất mệt.",
    "Russian": (
        "Анна говорит Тому, что она не придёт на вечеринку, потому что её поезд опоздал и она устала. Он это "
        "понимает и желает ей спокойной ночи."
    ),
    "Ukrainian": (
        "Анна каже Тому, що вона не прийде на вечірку, бо її потяг запізнився і вона втомилася. Він це "
        "розуміє і бажає їй доброї ночі."
    ),
}
SCRIPTS = {
    "CJK": "会议推迟到星期五下午三点。王老师会通知大家。",
    "JAPANESE": "会議は金曜日に延期されました。カレンダーを更新してください！",
    "THAI": "การประชุมเลื่อนเป็นวันศุกร์ บ่ายสามโมง",
    "DEVANAGARI": "बैठक कल सुबह दस बजे होगी। सभी को आना चाहिए।",
    "ARABIC": "اجتمع الفريق يوم الجمعة وسيبدأ العمل غدا",
    "HANGUL": "회의는 금요일로 연기되었습니다. 모두 참석하세요.",
    "GREEK": "Η συνάντηση μεταφέρθηκε στην Παρασκευή.",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_language_is_known_and_right_for_itself_alone(name: str) -> None:
    assert language(TEXTS[name]) == name
    assert [other for other in TEXTS if not wrong_language([TEXTS[name]], TEXTS[other])] == [name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_known_and_right_for_itself_alone(script: str) -> None:
    assert main_script(SCRIPTS[script]) == script
    assert not wrong_language([SCRIPTS[script]], SCRIPTS[script])
    assert wrong_language([TEXTS["English"]], SCRIPTS[script])
    assert wrong_language([SCRIPTS[script]], TEXTS["English"])


def test_too_little_text_tells_nothing() -> None:
    assert main_script("Anna!") is None
    assert language("to be or not") is None
    assert not wrong_language([TEXTS["English"]], "Олин")
    assert not wrong_language([TEXTS["English"]], "Anna, Tom, Kasia, Zuzanna, Piotr, Jan, Ola, Ewa, Iza")
    assert not wrong_language([], "")


def test_names_in_another_script_are_no_change_of_script() -> None:
    assert not wrong_language(["OpenAI 发布了 GPT-5 API，开发者 (developers) 可以使用。"], "OpenAI 发布 GPT-5 API。")
    assert not wrong_language([TEXTS["English"]], "Anna (Анна) tells Tom that she is with Олин and will not come.")
