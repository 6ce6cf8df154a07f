"""The same job on this machine, on other machines, and on a Dask cluster if you have one.

Run: python examples/engines.py
     python examples/engines.py --dask dask://127.0.0.1:8786     (with the extra: covey[dask])
The engine says where rows are computed and nothing else: journal, checks and reduction are the
same, and so is the result, to the byte. A cluster is used only where the operator lists its
address.
"""

from __future__ import annotations

import argparse
import json
from hashlib import blake2b

from machines import machines

from federated.jobs.types import JobSpec, Sum

PROVERBS = (
    "Many hands make light work.",
    "Too many cooks spoil the broth.",
    "Who asks the way does not lose it.",
    "Count twice, cut once.",
)
SETTINGS = """
[jobs]
engines = {engines}
"""


def main() -> None:
    """Run one job on each engine and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="scheduler, such as dask://127.0.0.1:8786"
    )
    args = parser.parse_args()
    clusters = [args.dask] if args.dask else []
    settings = SETTINGS.format(engines=json.dumps(clusters))
    with machines("desk", "attic", "cellar", settings=settings) as (desk, *_), desk.jobs() as jobs:
        results = {engine: count(jobs, engine) for engine in ("local", "peers", *clusters)}
    print("all the same:", "yes" if len(set(results.values())) == 1 else "no")


def count(jobs, engine: str) -> bytes:
    """Count the words of 400 texts on an engine; the bytes of the result."""
    spec = JobSpec(
        handler="wordcount@1",
        rows=[{"text": f"{PROVERBS[n % 4]} {n % 10}"} for n in range(400)],
        reduce=Sum(),
        engine=engine,
        cache="off",  # or the second engine would be given the answers of the first
        title=f"proverbs on {engine}",
    )
    job = jobs.submit(spec)
    state = jobs.wait(job)
    result = json.dumps(list(jobs.reduced(job)), sort_keys=True).encode()
    mark = blake2b(result, digest_size=4).hexdigest()
    print(f"{engine}: {state.state}, {state.by_state['ok']} rows by {sorted(state.peers)}, {mark}")
    return result


if __name__ == "__main__":
    main()
