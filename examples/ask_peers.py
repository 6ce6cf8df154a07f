"""Put a question to the memory of every machine of a group, and see who is surest.

Run: python examples/ask_peers.py "which node version"
Three people share the group `team`. Notes of a group travel to all its members, but each machine
answers by its own trust: it is surest of what its own people wrote. A machine that cannot be
reached in time is a gap with a reason, not an error.

To ask real machines through the daemon that runs here, name them and their group:
    python examples/ask_peers.py --group team --at ada,ben "which node version"
"""

from __future__ import annotations

import argparse

from machines import machines

from daemon.job_client import BlockingJobs
from federated.jobs.types import JobSpec

NOTES = {
    "ada": ["The build needs node 22; node 20 fails in the lexer.", "Ada is away until Monday."],
    "ben": ["Node 20 will do for the documentation's own build.", "The printer is in room 4."],
    "cleo": ["Releases are cut on Thursdays."],
}


def main() -> None:
    """Ask, on machines of our own or through the daemon that runs here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("question", nargs="?", default="which node version")
    parser.add_argument("--at", help="names of machines to ask, with commas between")
    parser.add_argument("--group", default="team", help="the group you share with them")
    args = parser.parse_args()
    if args.at:
        with BlockingJobs.open() as jobs:
            ask(jobs, args.question, args.at.split(","), args.group)
        return
    with machines(*NOTES, group="team") as made:
        for machine in made:
            for note in NOTES[machine.name]:
                machine.covey("remember", note, "--scope", "team/facts")
        with made[0].jobs() as jobs:
            ask(jobs, args.question, list(NOTES), "team")


def ask(jobs: BlockingJobs, question: str, names: list[str], group: str) -> None:
    """One row a machine, pinned to it; what each found, the surest first."""
    rows = [{"@peer": name, "query": question, "limit": 2} for name in names]
    job = jobs.submit(
        JobSpec(handler="memory.search@1", rows=rows, group=group, deadline_s=60, title=question)
    )
    state = jobs.wait(job)
    print(f"{question!r}: {state.by_state['ok']} of {state.rows} machines answered")
    found = []
    for row in jobs.rows(job):
        if row.state != "ok":
            print(f"  {row.source['@peer']} did not: {row.reason}")
            continue
        found += [(memory["trust"], row.source["@peer"], memory) for memory in row.row["memories"]]
    for trust, machine, memory in sorted(found, key=lambda one: -one[0]):
        print(f"  {machine:6} trusts it {trust:.2f}: {memory['text']}")


if __name__ == "__main__":
    main()
