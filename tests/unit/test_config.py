"""Settings: strict, with the place of each fault, and documented to the last one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon import config_text
from daemon.config import SECTIONS, Config, decode, differences, keys_of, load
from daemon.config_decode import convert, line_of
from daemon.errors import ConfigError

GUIDE = Path("docs/guides/configuration.md")


def test_an_empty_file_gives_the_defaults() -> None:
    config = decode("")
    assert config.rpc.in_flight_max == 64
    assert config.p2p.preset == "wan"
    assert config.origins == {}
    assert config.node.name


def test_the_strongest_source_wins() -> None:
    text = "[rpc]\nin_flight_max = 1\nconnections_max = 1\nwrite_burst = 1\n"
    environ = {"COVEY_RPC__IN_FLIGHT_MAX": "2", "COVEY_RPC__CONNECTIONS_MAX": "2"}
    config = decode(text, environ=environ, flags=["rpc.in_flight_max=3"])
    assert (config.rpc.in_flight_max, config.rpc.connections_max) == (3, 2)
    assert config.rpc.write_burst == 1
    assert config.origins == {
        "rpc.write_burst": "config.toml:4",
        "rpc.connections_max": "COVEY_RPC__CONNECTIONS_MAX",
        "rpc.in_flight_max": "--set rpc.in_flight_max",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [('"64MiB"', 64 * 2**20), ('"10 kB"', 10_000), ("4096", 4096), ('"1GiB"', 2**30)],
)
def test_sizes_have_units(text: str, value: int) -> None:
    assert decode(f"[rpc]\nline_bytes_max = {text}\n").rpc.line_bytes_max == value


@pytest.mark.parametrize(
    ("text", "value"), [('"10s"', 10.0), ('"2m"', 120.0), ("3", 3.0), ('"250ms"', 0.25)]
)
def test_durations_have_units(text: str, value: float) -> None:
    assert decode(f"[node]\ndrain_s = {text}\n").node.drain_s == value


def test_a_rate_is_a_plain_number() -> None:
    with pytest.raises(ConfigError, match="must be a number"):
        decode('[rpc]\nwrite_rate_per_s = "10s"\n')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[mcp]\n\nprelod = 1\n",
            r"config.toml:3: unknown key \[mcp\] prelod; did you mean preload",
        ),
        ("[rcp]\nx = 1\n", r"config.toml:2: unknown section \[rcp\]; did you mean rpc"),
        ("name = 1\n", r"config.toml:1: unknown section"),
        ("[p2p.replicaton]\npush = true\n", r"unknown key \[p2p\] replicaton"),
        ('[node]\nname = "a"\nname = "b"\n', r"config.toml: .*line 3"),
        ("[node]\nname = \n", r"config.toml: .*line 2"),
        ('[rpc]\nin_flight_max = "x"\n', r"config.toml:2: \[rpc\] in_flight_max must be a whole"),
        ("[rpc]\nin_flight_max = 1.5\n", r"must be a whole number"),
        ("[rpc]\nin_flight_max = true\n", r"must be a whole number"),
        ("[rpc]\nin_flight_max = 0\n", r"config.toml:2: \[rpc\] in_flight_max must be at least 1"),
        ("[memory]\npostings = 0\n", r"config.toml:2: \[memory\] postings must be at least 1"),
        ("[rpc]\nallow_uids = 3\n", r"must be a list"),
        ('[rpc]\nallow_uids = ["a"]\n', r"must be a whole number"),
        ('[mcp]\nprofile = "huge"\n', r"must be one of core, standard, readonly"),
        ("[p2p]\ndraw_port = 1\n", r"must be true or false"),
        (
            '[p2p]\npreset = "mars"\n',
            r"config.toml:2: \[p2p\] preset must be one of wan, lan, test",
        ),
        ("[node]\ndrain_s = nan\n", r"finite"),
        ("[node]\ndrain_s = inf\n", r"finite"),
        ('[node]\nname = "a\\u001b"\n', r"printable"),
    ],
)
def test_a_fault_names_its_place_and_what_would_fit(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(text)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"COVEY_RPC__IN_FLITE_MAX": "3"}, "COVEY_RPC__IN_FLITE_MAX: unknown key"),
        ({"COVEY_RCP__X": "3"}, "COVEY_RCP__X: unknown section"),
        ({"COVEY_RPC__IN_FLIGHT_MAX": "many"}, "COVEY_RPC__IN_FLIGHT_MAX: "),
    ],
)
def test_a_wrong_variable_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode("", environ=environ)


def test_variables_of_other_uses_are_left_alone() -> None:
    decode("", environ={"COVEY_HOME": "/x", "COVEY_AGENT": "a", "COVEY_GRANT": "t", "PATH": "p"})


def test_variables_reach_nested_sections_and_lists() -> None:
    environ = {
        "COVEY_P2P_REPLICATION__PUSH": "false",
        "COVEY_RPC__ALLOW_UIDS": "1000, 1001",
        "COVEY_P2P__LISTEN": "/ip4/127.0.0.1/tcp/0",
    }
    config = decode("", environ=environ)
    assert config.replication.push is False
    assert config.rpc.allow_uids == (1000, 1001)
    assert config.p2p.listen == ("/ip4/127.0.0.1/tcp/0",)


@pytest.mark.parametrize("flag", ["rpc.in_flight_max", "in_flight_max=3", "rpc.nope=3"])
def test_a_wrong_flag_is_named(flag: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(flag.partition("=")[0])):
        decode("", flags=[flag])


def test_a_preset_is_where_the_other_values_start() -> None:
    config = decode('[p2p]\npreset = "test"\ndial_each_s = 2.0\n')
    assert config.p2p.preset == "test"
    assert config.p2p.private_is_public is True
    assert config.p2p.dial_each_s == 2.0


def test_lines_are_found_in_every_spelling() -> None:
    text = (
        '# comment\n[rpc] # note\nin_flight_max = 3\n["p2p".replication]\npush = true\np2p.x = 1\n'
    )
    assert line_of(text, "rpc", "in_flight_max") == 3
    assert line_of(text, "p2p.replication", "push") == 5
    assert line_of(text, "rpc", "absent") is None


def test_optional_values_can_be_unset() -> None:
    assert convert("x", int | None, "", text=False) is None
    assert convert("x", int | None, "none", text=True) is None
    assert convert("x", int | None, 4, text=False) == 4


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(str(path), environ={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(tmp_path), environ={})
    assert isinstance(load(str(tmp_path / "absent.toml"), environ={}), Config)


def test_differences_name_what_a_restart_would_change() -> None:
    assert differences(decode(""), decode("[rpc]\nin_flight_max = 3\n")) == ["rpc.in_flight_max"]


def test_set_keeps_comments_and_refuses_what_a_start_would(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.toml"
    assert config_text.set_value(str(path), "node.name", "desk") == '"desk"'
    path.write_text("# mine\n[node]\nname = 'a' # short\n")
    config_text.set_value(str(path), "node.drain_s", "2m")
    config_text.set_value(str(path), "p2p.replication.push", "false")
    assert path.read_text().startswith("# mine\n[node]\nname = 'a' # short\ndrain_s = 120.0\n")
    config = load(str(path), environ={})
    assert (config.node.drain_s, config.replication.push) == (120.0, False)
    before = path.read_bytes()
    for name, value in (("node.nme", "x"), ("node.drain_s", "soon"), ("rpc.in_flight_max", "0")):
        with pytest.raises(ConfigError):
            config_text.set_value(str(path), name, value)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["config.toml"]


def test_set_writes_through_a_link(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("")
    link = tmp_path / "config.toml"
    link.symlink_to(real)
    config_text.set_value(str(link), "node.name", "desk")
    assert link.is_symlink()
    assert "desk" in real.read_text()


def test_every_setting_has_a_meaning() -> None:
    rows = list(config_text.documented())
    assert {section for section, *_ in rows} == set(SECTIONS)
    assert len(rows) == sum(len(keys_of(section)) for section in SECTIONS)
    missing = [f"{section}.{key}" for section, key, _, meaning in rows if not meaning]
    assert missing == []


def test_the_guide_lists_every_setting_as_it_is() -> None:
    text = GUIDE.read_text()
    found = re.search(r"<!-- settings -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert found is not None
    assert found[1].strip() == config_text.markdown().strip()


@pytest.mark.parametrize(
    "line", ['network = "my/lab"', 'bootstrap = ["/ip4/192.0.2.1/tcp/4001"]', 'bootstrap = ["x"]']
)
def test_a_network_or_bootstrap_that_cannot_be_meant_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml:2: \[p2p\] (network|bootstrap)"):
        decode(f"[p2p]\n{line}\n")


def test_blobs_have_a_section_of_their_own() -> None:
    config = decode('[p2p.blobs]\nunpinned_bytes_max = "2GiB"\n')
    assert config.blobs.unpinned_bytes_max == 2 * 2**30
    assert config.blobs.sources_max == decode("").blobs.sources_max
    with pytest.raises(ConfigError, match=r"config\.toml:2: \[p2p\.blobs\] .*above 0"):
        decode("[p2p.blobs]\nfetches_max = 0\n")


def test_the_dht_has_a_section_of_its_own() -> None:
    config = decode('[p2p]\npreset = "test"\n[p2p.dht]\nenabled = true\nk = 8\n')
    assert (config.p2p.dht.enabled, config.p2p.dht.k, config.p2p.dht.server) == (True, 8, True)
