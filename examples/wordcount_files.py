"""Count the words of files that lie on several machines, without moving a file.

Run: python examples/wordcount_files.py
A first job asks each machine which files it has; a second has each count its own. The rows of both
are pinned: the input column `@peer` names the machine that must do the row.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

from machines import machines

from federated.jobs.types import JobSpec, TopK

# What lies on which machine: the documentation of these modules of Python's.
LIBRARY = {
    "desk": ["json", "csv", "shelve", "configparser"],
    "attic": ["threading", "queue", "selectors", "subprocess"],
    "cellar": ["random", "statistics", "fractions", "heapq"],
}
# A machine reads what its operator names, for its owner's machines: see job-handlers.md.
SETTINGS = """
[jobs.files]
papers = "{folder}"
"""


def main() -> None:
    """Put files on three machines and count."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {}
        for name, modules in LIBRARY.items():
            papers = Path(folder) / name
            for module in modules:
                target = papers / "library" / f"{module}.txt"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text_of(module))
            settings[name] = SETTINGS.format(folder=papers)
        with machines(*LIBRARY, settings=settings) as (desk, *_), desk.jobs() as jobs:
            count(jobs)


def text_of(module: str) -> str:
    """All documentation strings of a module."""
    found = importlib.import_module(module)
    members = [getattr(found, name) for name in sorted(vars(found))]
    texts = [found.__doc__, *(member.__doc__ for member in members)]
    return "\n\n".join(text for text in texts if isinstance(text, str))


def count(jobs) -> None:
    """Ask who has what, then let each count."""
    ask = [{"@peer": name, "root": "papers", "pattern": "**/*.txt"} for name in LIBRARY]
    listing = jobs.submit(JobSpec(handler="files.list@1", rows=ask, title="who has what"))
    jobs.wait(listing)
    files = [
        {"@peer": row.source["@peer"], "root": "papers", "path": file["path"]}
        for row in jobs.rows(listing)
        for file in row.row["files"]
    ]
    print(f"{len(files)} files on {len(LIBRARY)} machines")

    counting = jobs.submit(
        JobSpec(handler="files.wordcount@1", rows=files, reduce=TopK(n=20), title="their words")
    )
    state = jobs.wait(counting)
    print(f"{state.state}: files counted by machine {dict(sorted(state.peers.items()))}")
    print("word     times")
    for pair in jobs.reduced(counting):
        print(f"{pair['key']:8} {pair['sum']:5}")

    # The same words, counted here from the texts themselves.
    texts = [{"text": text_of(module)} for modules in LIBRARY.values() for module in modules]
    here = jobs.submit(
        JobSpec(handler="wordcount@1", rows=texts, engine="local", reduce=TopK(n=20))
    )
    jobs.wait(here)
    same = list(jobs.reduced(here)) == list(jobs.reduced(counting))
    print(f"a count on one machine says the same: {'yes' if same else 'no'}")


if __name__ == "__main__":
    main()
