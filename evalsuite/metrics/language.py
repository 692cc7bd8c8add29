"""Which script a text is in, and, where its function words tell, which language.

Light on purpose: no model, no dependency. Scripts are told apart by the names of their characters. Languages are
told apart only among those whose function words are listed here, only in texts of some length, and not between near
kin that share them (Danish and Norwegian; Indonesian and Malay).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from evalsuite.metrics.text import words

FEWEST_LETTERS = 10  # a name or two in another script is no change of script
FEWEST_WORDS = 8  # below that function words are too few to tell
FEWEST_DISTINCT = 3  # of them: "to" alone is English, Polish and Czech
LEAST_SHARE = 0.15  # of the words; running text in a language has a quarter to a half from lists this long
LEAST_LEAD = 1.5  # times the runner-up's share: kin languages share some function words
LEAST_EXPECTED_SCRIPT = 0.3  # of the letters: a summary may quote names in another script

_KANA = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA")

_FUNCTION_WORDS = {
    name: frozenset(word for word in listed.split() if len(word) > 1)  # single letters stand for anything
    for name, listed in {
        "English": """the of and to a in is that it for was on are as with his they at be this from have or by had not
            but what were we when your can said there an which she do their if will how he her you who them about my me
            him after because so""",
        "German": """der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden
            aus er hat dass sie nach wird bei einer um am sind noch wie einem über so zum war haben nur oder aber""",
        "French": """le la les de des et un une du en est que qui dans pour pas au sur se ce il plus par je avec tout
            elle ne sont aux ou mais ils nous vous cette son sa ses été leur être ont comme""",
        "Spanish": """el la los las de que y en un una del se no por con para es al lo como más su sus pero le ha me si
            sin sobre este ya cuando todo esta ser son dos fue había era muy hasta desde está mi porque""",
        "Portuguese": """o a os as de que e do da em um uma para com não no na se por mais dos das como mas ao ele foi
            ela à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso são""",
        "Italian": """il la lo i gli le di che e un una in per è non del della con si da come al ma dei nel alla sono
            anche più ha dal suo questo ci o se delle su essere ho loro era""",
        "Dutch": """de het een en van ik te dat die in je is niet zijn op aan met voor als was er maar om hem dan zou
            wat haar naar heeft ook uit kan nog bij worden over door deze hij ze geen""",
        "Swedish": """och att det som en på är av för med till den har de inte om ett han men var jag sig från vi så
            kan när år under också efter eller nu sin där vid mot ska skulle hon""",
        "Danish or Norwegian": """og i det at en er til på som av de med den for ikke var jeg han har om et men fra vi
            hun så kan ved seg etter også da skal være sig af efter hvad hva eller ble blev""",
        "Polish": """i w nie na się z do to że jest o a jak po co ale tak za od czy jego tym być dla już był przez tylko
            jej ich może są było jako które który""",
        "Czech": """a se v na je že to s z do o i ve pro jako za by jsem ale po si tak jeho která který jsou od nebo už
            jen byl bylo bude při""",
        "Turkish": """ve bir bu da de için ile çok ne o daha gibi kadar ama var ben sonra en olarak olan mi diye her ya
            değil sen ki şey şu""",
        "Indonesian or Malay": """yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena ada
            mereka sudah atau bisa kami oleh lebih telah kepada adalah dia""",
        "Vietnamese": """và của là có không được cho một những trong người với các này để khi đã đến từ cũng tôi anh đó
            ra như về lại nhưng sẽ vào ở rất""",
        "Russian": """и в не на я что он с как это по но они к у из за то же все так его от она мы о только для было
            бы когда уже или если ни""",
        "Ukrainian": """і в не на що я з як це по але вони до у із за то все так його від вона ми про тільки для було
            би коли вже або якщо ні та є""",
    }.items()
}


@lru_cache(maxsize=1 << 14)
def _script_of(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    first = name.partition(" ")[0]
    return "KANA" if first in _KANA else first


def _scripts(text: str) -> Counter[str]:
    """Letters per script; Han and kana together count as Japanese where a tenth of them is kana."""
    found = Counter(script for character in text if (script := _script_of(character)))
    kana = found.pop("KANA", 0)
    if kana:
        east_asian = kana + found.pop("CJK", 0)
        found["JAPANESE" if kana >= east_asian / 10 else "CJK"] += east_asian
    return found


def main_script(text: str) -> str | None:
    """The script of most letters, by its Unicode name ("LATIN", "THAI"; "CJK" is Han), None for too few letters."""
    found = _scripts(text)
    return found.most_common(1)[0][0] if found.total() >= FEWEST_LETTERS else None


def language(text: str) -> str | None:
    """The language whose function words stand out, in English; None where none does."""
    found = words(text)
    if len(found) < FEWEST_WORDS:
        return None
    shares = {name: sum(word in listed for word in found) / len(found) for name, listed in _FUNCTION_WORDS.items()}
    best, second = sorted(shares, key=lambda name: shares[name], reverse=True)[:2]
    plain = shares[best] >= LEAST_SHARE and shares[best] >= LEAST_LEAD * shares[second]
    return best if plain and len(_FUNCTION_WORDS[best].intersection(found)) >= FEWEST_DISTINCT else None


def wrong_language(references: Sequence[str], prediction: str) -> bool:
    """Whether the prediction is plainly in another script or language than the references.

    False where too little tells: short texts, languages that are not listed, a change of language in the middle.
    """
    expected = " ".join(references)
    script = main_script(expected)
    found = _scripts(prediction)
    if script and found.total() >= FEWEST_LETTERS and found[script] < LEAST_EXPECTED_SCRIPT * found.total():
        return True
    ours, theirs = language(prediction), language(expected)
    return ours is not None and theirs is not None and ours != theirs
