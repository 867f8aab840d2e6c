"""Read a question: the words that say what it is about, and the kind of answer that it asks for.

English, German and French. A kind is recognised by the words of the question and by a pattern of the answer.

    asked("How long is the notice period?")                               # ["notice", "period"]
    answer_in("It is six weeks.", "How long is it?", "how long")          # (6, 15), the place of "six weeks"
"""

import itertools
import re
import unicodedata


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case and with composed accents; ß stays, as in the full-text index."""
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())


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
MONTH = r"(?:jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|d[ée][cz]|f[ée]v|avr|juin|juil|ao[uû]t)[a-zéû]*\.?"
DAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?|(?:mon|diens|donners|frei|sams|sonn)tags?|mittwochs?"
ORDINAL = (
    r"(?:(?:first|second|third|fourth|fifth|last|next) (?:day|week|month|quarter|year)"
    r"|(?:ers|zwei|drit|vier|fünf|letz|nächs)ten? (?:(?:Werk|Arbeits)?tag|Woche|Monat|Quartal|Jahr))"
)
NUMBER = r"(?<![\w.,])\d+(?:[.,'\u202f]\d+)*"
WORD_NUMBER = (
    r"two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|zwei|drei|vier|fünf|sechs|sieben|acht|neun"
    r"|zehn|elf|zwölf|zwanzig|dreißig|deux|trois|quatre|cinq|sept|huit|neuf|dix|half|once|twice|zweimal|einmal"
)
COUNT = rf"(?:{NUMBER}|\b(?:{WORD_NUMBER}|one|an?|eine?[nmrs]?|une?)\b)"
TIME = (
    r"(?:seconds?|minutes?|min|hours?|days?|weeks?|months?|years?|quarters?|sekunden?|minuten?|stunden?|std|h|wochen?"
    r"|(?:werk|arbeits|kalender)?tage?n?|monate?n?|jahre?[ns]?|quartale?s?|jours?|semaines?|mois|ans?|années?|heures?)"
)
TITLE = r"(?:Mr|Mrs|Ms|Dr|Prof|Rev|Herrn?|Frau|Mme)\b\.?"
NAME = rf"(?:{TITLE} )?[A-ZÄÖÜ][\w'’-]+(?: (?:[A-Z]\.|van|von|de))*(?: [A-ZÄÖÜ][\w'’-]+)+|{TITLE} [A-ZÄÖÜ]\w+"
ADDRESS = r"[\w.+-]+@[\w-]+\.\w+"
UNIT = r"[€$£%]|EUR|Euro|USD|CHF|dollars?|cents?|percent|Prozent|[kMGT]i?B\b|[kcm]?m\b|k?g\b|l\b|bytes|bits"
KINDS = {  # of an answer: what the question looks like; what the answer looks like, the best pattern first
    "how long": (
        r"how long|how (?:much|many) (?:time|days|hours|weeks|months|years)|wie lange?|dauer|frist"
        r"|combien de (?:temps|jours)",
        [rf"(?i){COUNT}[- ](?:\w+ )?{TIME}\b|\d+[hd]\b"],
    ),
    "when": (
        r"\bwhen\b|what (?:time|date|day|year)|which (?:day|year|date|month)|how (?:often|late|early)|deadline|\bwann\b"
        r"|welche[mnrs]? (?:tag|jahr|datum)|um wie viel uhr|wie (?:oft|früh|spät)|\bquand\b|quelle année",
        [
            rf"(?i)\d{{4}}-\d\d-\d\d|\d{{1,2}}[./]\d{{1,2}}[./](?:\d{{2,4}})?|\b{MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b"
            rf"(?:,? \d{{4}})?|\d{{1,2}}(?:st|nd|rd|th|\.)? {MONTH}(?: \d{{4}})?|\b(?:1[89]|20)\d\d\b"
            rf"|\d{{1,2}}(?:[:.]\d\d)? ?(?:uhr|h|a\.?m|p\.?m|o'clock)\b"
            rf"|\d{{1,2}}:\d\d|\b\d{{1,2}}(?:st|nd|rd|th)\b|\b(?:{DAY}|noon|midnight)\b|\b{ORDINAL}",
            rf"(?i){COUNT} {TIME}\b|\b(?:dai|week|month|year|annual)ly\b|\bevery \w+|\b(?:täg|wöchent|monat|jähr)lich\b"
            rf"|\bjeden \w+|\b{MONTH}\b",
        ],
    ),
    "how much": (
        r"how (?:much|expensive|big|large|high|fast|far|heavy)|what.*\b(?:fee|rate|amount|limit|maximum|size)"
        r"|\b(?:costs?|price)\b|wie (?:viel|teuer|hoch|groß|gross|schwer|weit)|kostet|kosten|preis|co[uû]te|\bprix\b"
        r"|prozent",
        [rf"(?:[€$£]|EUR|USD|CHF) ?{NUMBER}|{NUMBER} ?(?:{UNIT})", NUMBER],
    ),
    "how many": (
        r"how many|number of|wie viele|anzahl|combien|at most|at least|höchstens|mindestens",
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
    stop = max(STOP, key=lambda language: len(language.intersection(words)))  # `hat` is a word in English only
    return [word for word in words if word not in stop and (len(word) > 1 or word.isdigit())] or words


def kind_of(question: str) -> str:
    """Return what kind of answer a question asks for, one of KINDS; empty if it is not clear."""
    return next((kind for kind, (pattern, _) in KINDS.items() if re.search(pattern, question, re.IGNORECASE)), "")


def answer_in(text: str, question: str, kind: str) -> tuple[int, int] | None:
    """Return the place of the number, date, name or place in a text that a question asks for; None without one.

    What the question itself contains is no answer to it. Of several, the nearest to a word of the question is taken.
    """
    known, spans = set(words_of(question)), list[tuple[int, int]]()
    for found in itertools.chain.from_iterable(re.finditer(pattern, text) for pattern in KINDS[kind][1]):
        words = words_of(found[0])
        if not set(words) <= known and not (kind == "who" and any(words[0] in stop for stop in STOP)):
            spans.append(found.span())
    about = set(asked(question))
    places = [word.span() for word in re.finditer(r"\w+", text) if word[0].lower() in about]

    def distance(span: tuple[int, int]) -> int:
        return min((max(span[0] - end, start - span[1], 0) for start, end in places), default=0)

    return min(spans, key=distance, default=None)
