"""The most frequent words of private text: six people, each word reported once, with noise.

Run: python examples/top_words.py [FILE] [--epsilon 4] [-k 10]
The file's words (default: this project's documents) are dealt out to six people. Each word leaves
its owner as one report that says little about it: whoever sees all reports can hardly tell what any
one word was. Beside what was found stands what is true, which only this example can see.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
from pathlib import Path

import numpy as np

from federated.rounds.statistics.heavy_hitters import (
    Reports,
    Search,
    smallest_share,
    top_k_locally,
)
from federated.rounds.statistics.items import Letters

PEOPLE = 6
COPIES = 4  # as if each text were four: the noise needs many reports


def words_of(path):
    """Words of at least four letters in a file, or in this project's documents."""
    if path:
        texts = [Path(path).read_text(encoding="utf-8", errors="replace")]
    else:
        root = Path(__file__).parent.parent
        texts = [file.read_text(encoding="utf-8") for file in sorted(root.rglob("docs/**/*.md"))]
    return re.findall("[a-z]{4,}", " ".join(texts).lower()) * COPIES


def main():
    """Report, look, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", help="a text (default: this project's documents)")
    parser.add_argument("--epsilon", type=float, default=4.0, help="what a report may cost (4)")
    parser.add_argument("-k", type=int, default=10, help="how many words (10)")
    parser.add_argument("--seed", type=int, help="the same noise each time, for a comparison")
    args = parser.parse_args()
    system = random.SystemRandom().randbytes
    source = system if args.seed is None else np.random.default_rng(args.seed).bytes
    words = words_of(args.file)
    letters = Letters()
    search = Search(bits=letters.bits, k=args.k, epsilon=args.epsilon)
    share = smallest_share(search, len(words) // PEOPLE)
    print(
        f"{len(words):,} words of {PEOPLE} people; a word of one of them is seen above {share:.1%}"
    )
    people = [words[index::PEOPLE] for index in range(PEOPLE)]
    hits = top_k_locally(search, [Reports(search, letters.encode(w), source) for w in people])
    true = collections.Counter(word[:6] for word in words).most_common(args.k)
    print(f"{'found':<10}{'about':>8}      {'true':<10}{'count':>8}")
    for hit, (word, count) in zip(hits, true, strict=False):
        mark = "" if hit.sure else " ?"
        print(f"{letters.decode(hit.code):<10}{hit.count:>8.0f}{mark:<2}    {word:<10}{count:>8}")
    both = {letters.decode(hit.code) for hit in hits} & {word for word, _ in true}
    print(f"{len(both)} of {args.k} are right, at epsilon {args.epsilon:g}")


if __name__ == "__main__":
    main()
