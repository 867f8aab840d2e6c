"""Mask likely personal data in a text: e-mail addresses, IBANs, payment cards and telephone numbers.

masked("call 030 1234567")  # -> ("call 03x xxxxxxx", ["telephone numbers"])

The telephone numbers are international, or those of Germany, Switzerland, the United Kingdom and the United States. No
pattern finds names or postal addresses. Sources: ISO 13616 (IBAN), ISO/IEC 7812 (payment cards and their Luhn sum).
"""

import re

LENGTHS = """AD24 AE23 AT20 BE16 BG22 CH21 CY28 CZ24 DE22 DK18 EE20 ES24 FI18 FR27 GB22 GR27 HR21 HU28 IE22 IS26 IT27
LI21 LT20 LU20 LV21 MC27 MT31 NL18 NO15 PL28 PT25 RO24 SA24 SE24 SI19 SK24 SM27 TR26"""  # of IBANs
IBAN = "|".join(rf"{item[:2]}\d\d(?:[ \xa0-]?[A-Z0-9]){{{int(item[2:]) - 4}}}" for item in LENGTHS.split())
CARD = r"""(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6011|65\d\d|35\d\d)(?P<a>[ -]?)\d{4}(?P=a)\d{4}(?P=a)\d{4}
    |3[47]\d\d(?P<b>[ -]?)\d{6}(?P=b)\d{5}"""
PHONE = r"""\+[2-9]\d[ /-]?(?:\(\d{1,5}\))?(?:[ /-]?\d){7,13} | (?<!\d[ ])004[1349][ /-]?(?:\(0\))?(?:[ /-]?\d){9,11}
    |(?:\+?1[ .-]?)?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d(?P<d>[.-])(?=\d{3}(?P=d)))[2-9]\d\d[.-]\d{4}
    | \+1[ ]?[2-9]\d\d[ ]?[2-9]\d\d[ ]?\d{4}
    |(?:\(0[1-9]\d{1,4}\)[ ]?|0[1-9]\d{1,4}[ ]?/[ ]?)\d{2,8}(?:[ -]\d{1,6}){0,4}  # (030) 123456, 030/123456
    |(?<!\d[ ])(?=\d+(?:[ -]?\d){8})0[1-9]\d{1,4}[ ]\d{2,8}(?:[ -]\d{1,6}){0,4}  # 030 1234567, 044 668 18 00
    |01[5-7]\d-?\d{7,8} | 07[1-9]\d{8} | 07[5-9]\d{7}  # mobile: Germany, the United Kingdom, Switzerland
    |(?:tel|telefon\w*|telephone|phone|mobil|mobile|fax)(?:[ .:-]|nr|no|number){0,4}\(?0[1-9][\d /()-]{6,14}\d"""
NO_PHONE = r"""(?i)\b(?:order|invoice|ref|rechnung|bestell|auftrag|kunden|vertrag|artikel|konto|account|policy|ticket
    |case|customer|contract|item|sku|version)\w*\W*(?:nr|no|number|nummer|id)?\W*$""".replace("\n    ", "")


def valid(kind: str, text: str, before: str) -> bool:
    """Check IBANs modulo 97 (letters count from 10, the first four come last), the Luhn sum of cards, and lengths."""
    letters = "".join(filter(str.isalnum, text))
    digits = [int(letter) for letter in letters if letter.isdigit()]
    if kind == "IBANs":
        return int("".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])) % 97 == 1
    if kind == "payment cards":
        return sum(digits[-1::-2] + [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]) % 10 == 0
    most = 12 if digits[:2] == [0, 1] else 11
    if "+" in text or digits[:2] == [0, 0]:
        most = 15
    return 9 <= len(digits) <= most and ("+" in text or not re.search(NO_PHONE, before[-40:]))


EMAIL = re.compile(r"(?<![\w.+%-])((?:[\w.+%-](?=[\w.+%-]))?)[\w.+%-]{1,64}@((?:[\w-]{1,63}\.)+[^\W\d_]{2,})")
NUMBERS = {  # kind: pattern, which starts or ends neither in a word nor in a longer number or a date
    kind: re.compile(rf"(?<![\w+/-])(?<!\d[.,:])(?:{body})(?![\w/-]|[.,:]\d)", re.IGNORECASE | re.VERBOSE)
    for kind, body in {"IBANs": IBAN, "payment cards": CARD, "telephone numbers": PHONE}.items()
}


def masked(text: str) -> tuple[str, list[str]]:
    """Mask likely personal data: the digits after the first two; e-mail addresses but a letter and the domain.

    Returns the text, and the kinds of data that were masked.
    """
    text, n_emails = EMAIL.subn(r"\1…@\2", text) if "@" in text else (text, 0)
    kinds = ["e-mail addresses"] * bool(n_emails)
    for kind, regex in NUMBERS.items() if sum(map(str.isdigit, text)) >= 9 else ():
        for match in reversed([*regex.finditer(text)]):
            if valid(kind, match[0], text[: match.start()]):
                _, first, others = re.split(r"^(\D*\d\D*\d)", match[0])
                text = text[: match.start()] + first + re.sub(r"\w", "x", others) + text[match.end() :]
                kinds.append(kind)
    return text, kinds
