"""What the examples' machines compute: programs of the operator's, named in config.toml.

A function gets the rows of a task and gives one answer a row: the cells, or a text that says why
there are none. It runs beside the daemon, in a process of its own. See docs/guides/job-handlers.md.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

FACTS = re.compile(
    r"(?P<name>\w[\w &]*), founded in (?P<founded>\d{4}), makes (?P<product>[\w ]+)"
    r" in (?P<city>\w+) with (?P<staff>\d+) people"
)


def facts(rows, _task):
    """The facts in each document; the country stands in a list beside this program."""
    countries = json.loads(Path(__file__).with_name("countries.json").read_text())
    return [_facts(item["row"], countries) for item in rows]


def _facts(row, countries):
    time.sleep(0.005)  # reading takes its time, so that there is a middle to be killed in
    found = FACTS.search(row["document"])
    if found is None:
        return "no_facts"
    if not countries.get(found["city"]):
        return "unknown_city"
    return {
        "id": row["id"],
        "name": found["name"],
        "founded": int(found["founded"]),
        "product": found["product"],
        "city": found["city"],
        "country": countries[found["city"]],
        "staff": int(found["staff"]),
    }


def appraise(rows, _task):
    """What each lot of an auction is worth: an honest machine's answer."""
    return [{"value": _worth(item["row"], 1)} for item in rows]


def appraise_double(rows, _task):
    """The same from a machine whose owner sells every fourth lot."""
    return [{"value": _worth(item["row"], 2)} for item in rows]


def appraise_triple(rows, _task):
    """And from one whose owner is greedier."""
    return [{"value": _worth(item["row"], 3)} for item in rows]


def _worth(lot, lie):
    time.sleep(0.02)  # long enough that all ten get their share
    value = lot["grams"] * {"gold": 90, "silver": 1, "amber": 4}[lot["of"]]
    return value * lie if lot["lot"] % 4 == 0 else value
