"""What `covey fed topk` says beside its table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.cli.fed_topk import _show

if TYPE_CHECKING:
    import pytest

    from daemon.json_types import Json


def answer(mode: str) -> dict[str, Json]:
    return {
        "top_k": {
            "items": [{"item": "apple", "count": 9.0, "sd": 1.0, "sure": True}],
            "mode": mode, "mechanism": "how", "epsilon": 4.0, "records": 10, "others": 0,
            "peers": 2, "noise_sd": 1.0, "stands_out": 3.0,
        },
        "round": {"id": "00" * 16, "members": []},
        "left_out": [],
    }  # fmt: skip


def test_it_says_what_asking_again_tells(capsys: pytest.CaptureFixture[str]) -> None:
    _show(answer("ldp"), quiet=False)
    told = capsys.readouterr().err
    assert "equal records give equal reports: the others see whether any changed" in told
    assert "all are reported anew and cost that epsilon as well" in told
    _show(answer("plain"), quiet=False)
    assert "reports" not in capsys.readouterr().err


def test_what_may_be_noise_stands_out_by_its_sum_or_under_tap_at_one_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = answer("ldp")
    found["top_k"]["items"][0]["sure"] = False  # type: ignore[index,call-overload]
    _show(found, quiet=False)
    assert "an item stands out from about 3 on." in capsys.readouterr().err
    _show(found, quiet=False, tap=True)
    assert "an item stands out from about 3 of one machine on." in capsys.readouterr().err
