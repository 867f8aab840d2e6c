"""Read a question: the words that say what it is about, and the kind of answer that it asks for.

English, German and French. A kind is recognised by the words of the question and by a pattern of the answer.

    asked("How long is the notice period?")                               # ["notice", "period"]
    answer_in("It is six weeks.", "How long is it?", "how long")          # (6, 15), the place of "six weeks"
"""

import re
import unicodedata


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case and with composed accents; ß stays, as in the full-text index."""
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).lower().replace("i\u0307", "i"))  # `İ` is one letter


STOP = [  # words of a question that say what is asked, or nothing: English, German, French
    frozenset(words_of(words))
    for words in (
        """a an and any are as at be been but by can could did do does for from had has have how i if in into is it
        its may me must my no not of on or our shall should so than that the their them there these they this to
        was we were what when where which who whom whose why will with would you your one get much many long often
        about""",
        """aber als am an auch auf aus bei bin bis da das dass dein dem den der des die dies diese diesem dieser du
        ein eine einem einen einer es für gibt hat haben hätte ich ihr im in ist ja kann kein keine können man mein
        mich mir mit muss müssen nach nicht noch nur ob oder ohne sein sich sie sind so soll über um und uns unser
        unsere vom von vor wann war warum was wegen welche welchem welchen welcher welches wem wen wenn wer werden
        wie wieso wird wir wo woher wohin zu zum zur viel viele lange oft""",
        """au aux avec ce ces cette combien comment dans de des doit du elle en est et faut il je la le les leur lors
        ma mais mes mon ne nous on ou où par pas peut plus pour pourquoi qu quand que quel quelle quelles quels qui
        quoi sa se ses si son sont sur un une vous y""",
    )
]
MONTH = (  # not a word that begins like a month, as `maintain`, and not the verb `may`
    r"(?:j[aä]n(?:uary?|vier|ner)?|feb(?:ruary?|er)?|f[ée]v(?:rier)?|m[aä]r(?:ch|z|s)?|apr(?:il)?|avr(?:il)?|mai"
    r"|(?-i:May)|jun[ie]?|juin|jul[iy]?|juil(?:let)?|aug(?:ust)?|ao[uû]t|sept?(?:emb(?:er|re))?"
    r"|o[ck]t(?:ob(?:er|re))?|nov(?:emb(?:er|re))?|d[ée][cz](?:emb(?:er|re))?)\b(?:\.(?= \d))?"
)
DAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?|(?:mon|diens|donners|frei|sams|sonn)tags?|mittwochs?"
ORDINAL = (
    r"(?:(?:first|second|third|fourth|fifth|last|next) (?:day|week|month|quarter|year)"
    r"|(?:ers|zwei|drit|vier|fünf|letz|nächs)ten? (?:(?:Werk|Arbeits)?tag|Woche|Monat|Quartal|Jahr))"
)
LISTED = r"\A(?:\d+(?:\.\d+)*[.)] |\d+(?:\.\d+)+ [A-ZÄÖÜ][a-zäöüé])"  # the number of an item or a section
D = r"(?:0?[1-9]|[12]\d|3[01])"
M = r"(?:0?[1-9]|1[0-2])"
DATE = (
    rf"\d{{4}}-\d\d-\d\d|(?!{LISTED})(?<![\w./]){D}\.{M}\.(?:(?:\d\d){{1,2}}\b(?![.,]\d)|(?!\d))"
    rf"|(?<![\w./])(?:{D}/{M}|{M}/{D})/(?:\d\d){{1,2}}(?![\w/])"
    rf"|(?<![\w.,])\d{{1,2}}(?:st|nd|rd|th|\.)?(?: of)? {MONTH}(?: \d{{4}}\b)?"
    rf"|\b{MONTH} (?:\d{{1,2}}(?:st|nd|rd|th)?\b(?:,? \d{{4}}\b)?|\d{{4}}\b)"
    r"|(?<![\w.,:/€$£-])(?:1[89]|20)\d\d(?:[-–/](?:\d\d){1,2})?(?![\w/-]|[.,]\d)"
)
CLOCK = (
    r"(?<![\w.,:])\d{1,2}(?:(?:[:.]\d\d)? ?(?:uhr\b|h\b|[ap]m\b(?! (?-i:[A-ZÄÖÜ]))|[ap]\.m\.|o'clock)"
    r"|h\d\d\b|:\d\d(?![\w:]))|(?:(?<=\bum )|(?<=\bab )|(?<=\bvon )|(?<=\bbis ))\d{1,2}\.[0-5]\d(?![\w.]\d)"
)
ONE_NUMBER = r"(?:[1-9]\d{0,2}(?:[ .,'’]\d{3})+(?!\d)(?:[.,]\d\d?)?|\d+(?:[.,]\d+)?)"  # 1 250,50 is French
AMOUNT = (  # also a range, 6-8; not 5.0.1, HL-24, 9:30, (1) or [1]
    rf"(?<![\w.,/])(?<!\w[-–])(?<!\d:)(?<!§ )(?!{LISTED}|(?<=[(\[])\d+[)\]])[-−]?{ONE_NUMBER}(?:[-–]{ONE_NUMBER})?"
    r"(?![.,:/]?\d|[-–]\d)(?: (?:hundred|thousand|tausend|[Mm]illi(?:on|ard)(?:en|s)?|billion|Mio\b\.?|Mrd\b\.?))?"
)
NUMBER = rf"{AMOUNT}(?:[^\W\d_]{{1,4}}\b|(?!\w))"  # 18th, 8ft
WORD_NUMBER = (
    r"two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|zwei|drei|vier|fünf|sechs|sieben|acht|neun"
    r"|zehn|elf|zwölf|zwanzig|dreißig|deux|trois|quatre|cinq|sept|huit|neuf|dix|half|once|twice|zweimal|einmal"
)
COUNT = rf"(?:{AMOUNT}|\b(?:{WORD_NUMBER}|one|an?|eine?[nmrs]?|une?)\b)"
TIME = (
    r"(?:seconds?|minutes?|min|hours?|days?|weeks?|months?|years?|quarters?|sekunden?|minuten?|stunden?|std|h|wochen?"
    r"|(?:werk|arbeits|kalender)?tage?n?|monate?n?|jahre?[ns]?|quartale?s?|jours?|semaines?|mois|années?|heures?)"
)
TITLE = r"(?:Mr|Mrs|Ms|Dr|Prof|Rev|Herrn?|Frau|Mme)\b\.?"
NAME = (
    rf"(?<!\w)(?:(?:{TITLE} )?[A-ZÄÖÜ][\w'’-]+(?: (?:[A-Z]\.|van|von|de))*(?: [A-ZÄÖÜ][\w'’-]+)+"
    rf"|{TITLE} [A-ZÄÖÜ]\w+)"
)
ADDRESS = r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
UNIT = (
    r"[€$£%]|(?:EUR|[Ee]uros?|USD|CHF|dollars?|cents?|percent|Prozent|bytes|bits)\b|°[CF]?|[kMGT]i?B\b|[kcm]?m\b"
    r"|k?g\b|l\b"
)
KINDS = {  # of an answer: what the question looks like; what the answer looks like, the best pattern first
    "how long": (
        r"how long|how (?:much|many) (?:time|days|hours|weeks|months|years)|wie lange?|dauer|frist"
        r"|combien de (?:temps|jours)",
        [rf"(?i){COUNT}[- ](?:(?:\w+ )?{TIME}|ans?)\b|\b\d+[hd]\b"],
    ),
    "when": (
        r"\bwhen\b|what (?:time|date|day|year)|which (?:day|year|date|month)|how (?:often|late|early)|deadline|\bwann\b"
        r"|welche[mnrs]? (?:tag|jahr|datum)|um wie viel uhr|wie (?:oft|früh|spät)|\bquand\b|quelle année",
        [
            rf"(?i){DATE}|{CLOCK}|\b\d{{1,2}}(?:st|nd|rd|th)\b|\b(?:{DAY}|noon|midnight)\b|\b{ORDINAL}",
            rf"(?i){COUNT} (?:{TIME}|ans?)\b|\b(?:dai|week|month|year|annual)ly\b|\b(?:täg|wöchent|monat|jähr)lich\b"
            rf"|\b(?:every|jede[mnrs]?) (?:\w+ )?(?:{TIME}|{DAY}|morning|evening|night|morgen|abend|nacht)\b"
            rf"|\b(?!sept\b)(?=\w{{4}}|ma[iy]\b){MONTH}",
        ],
    ),
    "how much": (
        r"how (?:much|expensive|big|large|high|fast|far|heavy)|what.*\b(?:fee|rate|amount|limit|maximum|size)"
        r"|\b(?:costs?|price)\b|wie (?:viel|teuer|hoch|groß|gross|schwer|weit)|wieviel\b|kostet|kosten|preis"
        r"|(?:combien )?co[uû]te|\bprix\b|prozent",
        [rf"(?:[€$£]|EUR|USD|CHF) ?{NUMBER}|(?<=EUR: |USD: |CHF: ){NUMBER}|{AMOUNT} ?(?:{UNIT})", NUMBER],
    ),
    "how many": (
        r"how many|number of|wie viele|anzahl\b|combien|at most|at least|höchstens|mindestens",
        [rf"(?i){NUMBER}|\b(?:{WORD_NUMBER})\b"],
    ),
    "who": (r"\bwho(?:m|se)?\b|\bwe[rmn]\b|\bqui\b|contact|which person|ansprechpartner", [f"{NAME}|{ADDRESS}"]),
    "where": (
        r"\bwhere\b|\bwo(?:hin|her)?\b|\boù\b|(?:which|what) (?:file|folder|directory|city|room|address|place|path)"
        r"|welche[mnrs]? (?:datei|ordner|raum|ort|stadt|adresse)",
        [
            rf"(?:https?://|www\.)[\w./#?=&~-]*[\w/]|(?<!\w)[~.]?/[\w.][\w./*-]*\w|\b\w+/[\w/.-]+\w|{ADDRESS}"
            r"|\b\w+\.(?:conf|cfg|ini|json|ya?ml|toml|txt|log|md|py|js|sh)\b",
            r"\b(?:[Ii]n|[Aa]t|[Oo]n|[Ii]m|[Aa]m|[Bb]ei|[Bb]eim|[Nn]ach|[Zz]um|under|behind|[Uu]nter|[Hh]inter)"
            r" (?:the |der |dem |den )?[A-ZÄÖÜ][\w-]+",
        ],
    ),
}


def asked(question: str) -> list[str]:
    """Return the words of a question that say what it is about; all of its words if it has no others."""
    words = list(dict.fromkeys(words_of(question)))
    stop = stop_words(question)
    about = [word for word in words if word not in stop]
    return [word for word in about if len(word) > 1 or word.isdigit()] or about or words


def stop_words(question: str) -> frozenset[str]:
    """Return the stop words of the question's language: `hat` is a word in English only."""
    words = words_of(question)
    return max(STOP, key=lambda language: len(language.intersection(words)))


def is_empty(question: str) -> bool:
    """Return whether a question says nothing about what it asks, such as "What is it?"."""
    return stop_words(question).issuperset(words_of(question))


def kind_of(question: str) -> str:
    """Return what kind of answer a question asks for, one of KINDS; empty if it is not clear.

    Of several, the question's first words say it: "How much did it cost when it was new?"
    """
    found = [(re.search(pattern, question, re.IGNORECASE), kind) for kind, (pattern, _) in KINDS.items()]
    return min(((match.start(), kind) for match, kind in found if match), key=lambda one: one[0], default=(0, ""))[1]


def answer_in(text: str, question: str, kind: str) -> tuple[int, int] | None:
    """Return the place of the number, date, name or place in a text that a question asks for; None without one.

    What the question itself contains is no answer to it. Of several, one next to a word of the question is taken, then
    one of the better pattern, then the nearest.
    """
    known = set(words_of(question))
    spans = list[tuple[int, tuple[int, int]]]()
    for quality, pattern in enumerate(KINDS[kind][1]):
        for found in re.finditer(pattern, text):
            words = words_of(found[0])
            if not set(words) <= known and not (kind == "who" and any(words[0] in stop for stop in STOP)):
                spans.append((quality, found.span()))
    about = set(asked(question))
    places = [word.span() for word in re.finditer(r"\w+", text) if word[0].lower() in about]

    def order(candidate: tuple[int, tuple[int, int]]) -> tuple[int, int]:
        quality, span = candidate
        distance = min((max(span[0] - end, start - span[1], 0) for start, end in places), default=0)
        return (quality if distance > 1 else 0), distance

    return min(spans, key=order, default=(0, None))[1]
