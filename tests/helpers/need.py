"""What a test needs of the machine, and how to get it.

`need("node22")` skips the test with a sentence that says what is missing and how to get it. With
COVEY_TEST_REQUIRE=all (as in CI) a missing tool fails the test instead, so that a green run is a
complete one. Evaluation data is the one exception: it may be missing anywhere.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from federated.jobs.handlers.confine import landlock_abi
from federated.jobs.handlers.sandbox import sandbox_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REQUIRE_VARIABLE = "COVEY_TEST_REQUIRE"
NODE_MAJOR_MIN = 22


@dataclass(frozen=True)
class Requirement:
    """One need of the machine."""

    check: Callable[[], str | None]
    """Returns None when it is there, else what is wrong."""
    remedy: str
    """How to get it: a sentence with the command."""
    optional_in_ci: bool = False
    """Evaluation data, or a second witness: missing is a skip even where everything is required."""


def _command(name: str) -> str | None:
    return None if shutil.which(name) else f"no `{name}` on PATH"


def _gmp_header() -> str | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return "no C compiler on PATH"
    probe = subprocess.run(
        [compiler, "-E", "-x", "c", "-"],
        input=b"#include <gmp.h>\n",
        capture_output=True,
        check=False,
        timeout=30,
    )
    return None if probe.returncode == 0 else "no gmp.h for the C compiler"


def _linux() -> str | None:
    return None if sys.platform == "linux" else f"this is {sys.platform}, not Linux"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _netns() -> str | None:
    unshare = shutil.which("unshare")
    if unshare is None:
        return "no `unshare` on PATH"
    probe = subprocess.run(
        [unshare, "--user", "--map-root-user", "--net", "true"],
        capture_output=True,
        check=False,
        timeout=10,
    )
    return None if probe.returncode == 0 else "network namespaces are not allowed here"


def _miniupnpd() -> str | None:
    found = shutil.which("miniupnpd") or "/usr/sbin/miniupnpd"
    try:
        uses_nftables = b"libnftnl" in Path(found).read_bytes()
    except OSError:
        return "no `miniupnpd`"
    return None if uses_nftables else "this `miniupnpd` is not the one for nftables"


def _ipv6() -> str | None:
    try:
        loopback = Path("/proc/net/if_inet6").read_text("ascii")
    except OSError:
        return None if sys.platform != "linux" else "no IPv6 in this kernel"
    return None if " lo\n" in loopback else "no IPv6 address on the loopback interface"


def _bubblewrap() -> str | None:
    return None if sandbox_kind() == "bubblewrap" else "no bubblewrap that works here"


def _landlock() -> str | None:
    return None if landlock_abi() else "no Landlock in this kernel"


def _dask() -> str | None:
    found = importlib.util.find_spec("distributed")
    return None if found is not None else "no Dask for this interpreter"


def _importable(name: str) -> str | None:
    return None if importlib.util.find_spec(name) is not None else f"no {name}"


REQUIREMENTS: Mapping[str, Requirement] = {
    "bubblewrap": Requirement(
        _bubblewrap,
        "install the sandbox, for example `apt-get install bubblewrap`, where user namespaces are"
        " allowed",
        optional_in_ci=True,
    ),
    "landlock": Requirement(
        _landlock, "run a kernel with Landlock (since 5.13), switched on", optional_in_ci=True
    ),
    "dask": Requirement(_dask, "install the extra: `pip install covey[dask]`", optional_in_ci=True),
    "pillow": Requirement(
        functools.partial(_importable, "PIL"), "install the extra: `pip install covey[chart]`"
    ),
    "scipy": Requirement(
        functools.partial(_importable, "scipy"),
        "install the extra: `pip install covey[fast]`",
        optional_in_ci=True,
    ),
    "numba": Requirement(
        functools.partial(_importable, "numba"),
        "install the extra: `pip install covey[fast]`",
        optional_in_ci=True,
    ),
    "npm": Requirement(
        functools.partial(_command, "npm"),
        "install the system's npm package, for example `apt-get install npm`",
    ),
    "gcc": Requirement(
        functools.partial(_command, "gcc"),
        "install a C compiler, for example `apt-get install gcc`",
    ),
    "gmp": Requirement(
        _gmp_header, "install GMP's headers, for example `apt-get install libgmp-dev`"
    ),
    "linux": Requirement(_linux, "run this test on Linux"),
    "root": Requirement(_root, "run the tests as root"),
    "netns": Requirement(
        _netns, "run as root, or allow user namespaces: `sysctl kernel.unprivileged_userns_clone=1`"
    ),
    "miniupnpd": Requirement(
        _miniupnpd,
        "install a router's port mapping, for example `apt-get install miniupnpd-nftables"
        " miniupnpd`; it need not run",
        optional_in_ci=True,
    ),
    "ipv6": Requirement(_ipv6, "enable IPv6: `sysctl net.ipv6.conf.lo.disable_ipv6=0`"),
}


def everything_is_required() -> bool:
    """Whether a missing tool fails the test instead of skipping it."""
    return os.environ.get(REQUIRE_VARIABLE, "") == "all"


@functools.cache
def missing(name: str) -> str | None:
    """What is wrong with requirement `name`, or None. Asked once per process."""
    return REQUIREMENTS[name].check()


def unmet(what: str, remedy: str, *, optional_in_ci: bool = False) -> None:
    """Skip, or fail where everything is required.

    Args:
        what: what is missing.
        remedy: how to get it.
        optional_in_ci: evaluation data only.
    """
    sentence = f"{what}: {remedy}"
    if everything_is_required() and not optional_in_ci:
        pytest.fail(f"{sentence} ({REQUIRE_VARIABLE}=all forbids to skip)", pytrace=False)
    pytest.skip(sentence)


def need(*names: str) -> None:
    """Go on only if the machine has all of `names`.

    Raises:
        KeyError: no such requirement: add it to `REQUIREMENTS`.
    """
    for name in names:
        requirement = REQUIREMENTS[name]
        problem = missing(name)
        if problem is not None:
            unmet(problem, requirement.remedy, optional_in_ci=requirement.optional_in_ci)
