from __future__ import annotations

import pytest

from gateway.cache.control import PLAIN, Control, control_of


@pytest.mark.parametrize(
    ("header", "control"),
    [
        ("", PLAIN),
        ("no-cache", Control(no_cache=True)),
        ("No-Cache, no-store", Control(no_cache=True, no_store=True)),
        ("no-store", Control(no_store=True)),
        ("max-age=60", Control(age_s_max=60)),
        ('max-age="60" , only-if-cached', Control(age_s_max=60, only_if_cached=True)),
        ("min-fresh=5,max-stale=9", Control(fresh_s_min=5)),
        ("max-age=0", Control(no_cache=True, age_s_max=0)),
        ("max-age=99999999999999999999", Control(age_s_max=2**31)),
        ('x="no-cache, no-store", public', PLAIN),
        ("max-age=soon", Control(no_cache=True)),
        ("max-age", Control(no_cache=True)),
        ("max-age=-1", Control(no_cache=True)),
        ("min-fresh=x", Control(no_cache=True)),
        (",,; =", PLAIN),
    ],
)
def test_directives(header: str, control: Control) -> None:
    assert control_of(header) == control


@pytest.mark.parametrize(
    ("control", "age_s", "takes"),
    [
        (PLAIN, 99.9, True),
        (PLAIN, 100, False),
        (Control(no_cache=True), 0, False),
        (Control(age_s_max=10), 10, True),
        (Control(age_s_max=10), 10.1, False),
        (Control(fresh_s_min=90), 9, True),
        (Control(fresh_s_min=90), 10, False),
    ],
)
def test_how_old_an_answer_may_be(control: Control, age_s: float, takes: bool) -> None:
    assert control.takes(age_s, 100) is takes
