"""The text that monitoring reads."""

from __future__ import annotations

from daemon.metrics import Family, Sample, render


def test_a_family_is_told_once_and_its_figures_by_label() -> None:
    text = render([
        Family("peers", "gauge", "Connected peers by path.", [
            Sample(2, path="direct"), Sample(1, path="relay"),
        ])
    ])  # fmt: skip
    assert text == (
        "# HELP covey_peers Connected peers by path.\n"
        "# TYPE covey_peers gauge\n"
        'covey_peers{path="direct"} 2\n'
        'covey_peers{path="relay"} 1\n'
    )


def test_figures_keep_their_digits() -> None:
    text = render([Family("b", "counter", "x", [Sample(12_345_678_901), Sample(0.0625)])])
    assert "covey_b 12345678901\n" in text
    assert "covey_b 0.0625\n" in text


def test_a_label_cannot_break_out_of_its_quotes() -> None:
    text = render([Family("b", "gauge", "x", [Sample(1, name='a"} 9\nevil 1\\')])])
    assert text.splitlines()[-1] == 'covey_b{name="a\\"} 9\\nevil 1\\\\"} 1'


def test_a_family_without_figures_is_left_out() -> None:
    assert render([Family("b", "gauge", "x", [])]) == ""
