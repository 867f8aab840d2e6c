"""Derive the table of real merchants, tinygpt/data/tasks/merchants.txt, from the name-suggestion-index.

    npm install --no-save name-suggestion-index@8.0.20260918
    python data/make/merchants.py node_modules/name-suggestion-index

The index lists the brands, operators and networks of OpenStreetMap with their category and countries
(https://github.com/osmlab/name-suggestion-index, BSD-3-Clause). The script copies its notice next to the table. It
selects the index's categories of `CATEGORIES` in tinygpt/data/tasks/merchants.py, and of these
  - brands of the countries where most people speak English at home, or worldwide: pretrained models of English text
    know these best. India is left out: most people there speak another language at home;
  - operators and networks of these countries only, since few of them are worldwide, whatever their entry says;
  - names in Latin letters, since a statement has ASCII capitals;
  - cafes that sell coffee, not bubble tea;
  - neither public authorities (`City of Austin` has car parks and water works) nor bus networks that have the name of
    their town: such a name does not tell what was bought;
  - no name that is vulgar.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from tinygpt.data.tasks.merchants import LABELS, TABLE, descriptor

COUNTRIES = ("au", "ca", "gb", "ie", "nz", "us")
WORLD = "001"  # the UN's code, as in the index
NAME_KEYS = {"brands": "brand", "operators": "operator", "transit": "network"}
AUTHORITY = re.compile(
    r"\b(Council|City of|Town of|Village of|Borough|County|University|Government|Department|District|National Parks?)\b"
)
TOWN = re.compile("[A-Z][a-z]+")
VULGAR = re.compile("bastard|hooters|slut", re.IGNORECASE)


def countries(item: dict[str, Any], tree: str) -> set[str]:
    """Countries of `COUNTRIES` in which an entry of the index is found, or in a part of which: `us-tx.geojson`."""
    places = [place for place in item["locationSet"]["include"] if isinstance(place, str)]  # others are circles
    found = {re.split("[-.]", place)[0] for place in places} & set(COUNTRIES)
    return found | ({WORLD} & set(places) if tree == "brands" else set())


def is_merchant(name: str, item: dict[str, Any], category: str) -> bool:
    if category == "brands/amenity/cafe" and "coffee" not in item["tags"].get("cuisine", ""):
        return False
    town = category == "transit/route/bus" and TOWN.fullmatch(name)
    return bool(descriptor(name)) and not town and not AUTHORITY.search(name) and not VULGAR.search(name)


def table(index: dict[str, Any]) -> str:
    """The text of the table, the same for the same index."""
    lines = []
    for category in LABELS:
        tree = category.split("/")[0]
        found: dict[str, set[str]] = defaultdict(set)
        for item in index[category]["items"]:
            name = item["tags"].get(NAME_KEYS[tree]) or item["displayName"]
            if is_merchant(name, item, category):
                found[name] |= countries(item, tree)
        lines += [
            f"# {category}",
            *(f"{name}\t{' '.join(sorted(found[name]))}" for name in sorted(found) if found[name]),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder of the unpacked npm package")
    package = parser.parse_args().package
    text = table(json.loads((package / "dist/json/nsi.json").read_text(encoding="utf-8"))["nsi"])
    TABLE.write_text(text, encoding="utf-8", newline="\n")
    notice = (package / "LICENSE.md").read_text(encoding="utf-8")
    TABLE.with_suffix(".LICENSE").write_text(notice, encoding="utf-8", newline="\n")
    print(f"{TABLE}: {len(text.encode()):,} bytes, {text.count(chr(10)):,} lines")
