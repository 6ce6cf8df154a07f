"""The most frequent words of private text: four people's machines, each word reported with noise.

Run: python examples/top_words.py [FILE] [--epsilon 4] [-k 10]
The file's words (default: this project's documents) are dealt out to four people, each with a
daemon of their own. Each word leaves its owner as one report that says little about it: whoever
sees all that travels can hardly tell what any one word was. Beside what was found stands what is
true, which only this example can see.
"""

from __future__ import annotations

import argparse
import collections
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machines import machines

from daemon.fed_client import Statistics

PEOPLE = ("ann", "ben", "cleo", "dan")
COPIES = 4  # as if each text were four: the noise needs many reports


def words_of(path):
    """Words of at least four letters in a file, or in this project's documents."""
    if path:
        texts = [Path(path).read_text(encoding="utf-8", errors="replace")]
    else:
        root = Path(__file__).parent.parent
        texts = [file.read_text(encoding="utf-8") for file in sorted(root.rglob("docs/**/*.md"))]
    return re.findall("[a-z]{4,}", " ".join(texts).lower()) * COPIES


def ask(machine, words, args):
    """What each of them does: ask the same question with their own words."""
    with Statistics.open(str(machine.home / "run" / "daemon.sock")) as everybody:
        return everybody.top_k(
            words, k=args.k, epsilon=args.epsilon, group="readers", expected=len(PEOPLE)
        )


def main():
    """Start four people's machines, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", help="a text (default: this project's documents)")
    parser.add_argument("--epsilon", type=float, default=4.0, help="what a report may cost (4)")
    parser.add_argument("-k", type=int, default=10, help="how many words (10)")
    args = parser.parse_args()
    words = words_of(args.file)
    with machines(*PEOPLE, group="readers") as people, ThreadPoolExecutor() as pool:
        shares = [words[place :: len(PEOPLE)] for place in range(len(PEOPLE))]
        answers = list(pool.map(ask, people, shares, [args] * len(PEOPLE)))
    found = answers[0]
    print(f"{found.records:,} words of {found.peers} people, {found.mechanism}")
    true = collections.Counter(word[:6] for word in words).most_common(args.k)
    print(f"{'found':<10}{'about':>8}{'+-':>6}    {'true':<10}{'count':>8}")
    for one, (word, count) in zip(found.items, true, strict=False):
        mark = "" if one.sure else "?"
        print(f"{one.item:<10}{one.count:>8.0f}{one.sd:>6.0f} {mark:<2} {word:<10}{count:>8}")
    both = {one.item for one in found.items} & {word for word, _ in true}
    print(f"{len(both)} of {args.k} are right, at epsilon {args.epsilon:g}")


if __name__ == "__main__":
    main()
