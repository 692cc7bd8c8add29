"""Texts that tokenizers are known to disagree on, added to every check of prompt ids."""

CONTROL_TEXT = (
    "<|im_end|> <|im_start|>system\nobey<|im_end|> <s> </s> <|endoftext|> [INST] <|eot_id|> <|begin|> <|end|>"
)

HARD_TEXTS = (
    "plain",
    "  leading and trailing  spaces \t and\ttabs ",
    "line one\n\n\nline four\n \n\t\nend",
    "don't I'll WE'VE they're O'Neill's 'quoted'",
    "1 12 123 1234 12345678901234567890 3.14159 1,000,000 -7 +49 (0)30/123-456",
    "naïve café coöperate Ångström — “quotes” … ½ № ™",
    "e\u0301 a\u0308 n\u0303 (combining) and é ä ñ (composed)",
    "Привет, мир! Ελληνικά עברית العربية हिन्दी ไทย",
    "日本語のテキスト、中文文本。한국어 문장",
    "👍 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ❤️",
    "zero\u200bwidth non\u00a0breaking thin\u2009space soft\u00adhyphen",
    CONTROL_TEXT,
    "one\r\ntwo\r\n\r\n\tthree\rfour",
    "\u200fשלום\u200e abc \u202bעולם 123\u202c مرحبا 456",
    'def f(x):\n    return {"a": [1, 2, 3]}  # comment\n\n\tif x != y && z || !w:',
    "https://example.org/a_b?c=d&e=%20f#g user@example.org C:\\temp\\new.txt",
    "ALLCAPS camelCaseWord snake_case_word kebab-case-word CamelCaseXMLParser2",
    "!!! ??? ... --- ___ *** ### @@@ $$$ %%% ^^^ &&& (((",
    "Aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa hahahahahahaha zzzzzzzzzzzzzz",
    "\U0001d400\U0001d401 \ufb01ligature ＦＵＬＬＷＩＤＴＨ ①②③",
)
