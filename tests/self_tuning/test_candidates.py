from __future__ import annotations

import pytest

from geoinfer.backends.cpu_settings import CpuSettings
from geoinfer.self_tuning.candidates import candidates, combined, needs_own_session


@pytest.mark.parametrize("cores", [1, 2, 4, 6, 64])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_each_differs_from_the_default_in_one_respect(cores: int, all_of_them: bool) -> None:
    found = candidates(cores, all_of_them=all_of_them)
    assert found[0] == CpuSettings()
    assert len(set(found)) == len(found)
    layouts = {("threads_per_call",), ("calls_at_once", "threads_per_call")}
    for settings in found[1:]:
        names = tuple(sorted(n for n, v in settings.as_dict().items() if v != CpuSettings().as_dict()[n]))
        assert len(names) == 1 or names in layouts


def test_one_core_has_nothing_to_share_out() -> None:
    assert all(s.threads_per_call == 1 and not s.pinned for s in candidates(1))


def test_layouts_of_more_cores() -> None:
    def layouts(cores: int) -> set[tuple[int, int]]:
        return {(s.threads_per_call, s.calls_on(cores)) for s in candidates(cores)}

    assert layouts(2) == {(1, 2), (2, 1)}
    assert layouts(4) == {(1, 4), (4, 1), (2, 2)}
    assert layouts(16) == {(1, 16), (16, 1), (2, 8), (8, 2)}


def test_the_narrow_graph_is_for_the_whole_table() -> None:
    assert CpuSettings(graph="extended") in candidates(2)
    assert CpuSettings(graph="extended") not in candidates(2, all_of_them=False)


def test_winners_together() -> None:
    batches, quiet, pinned = CpuSettings(batch_size=4), CpuSettings(arena=False), CpuSettings(pinned=True)
    assert combined([batches, quiet]) == CpuSettings(batch_size=4, arena=False)
    assert combined([CpuSettings(batch_size=2), batches, pinned]) == CpuSettings(batch_size=2, pinned=True)
    # A layout of threads and pinning are one respect: the faster is taken.
    assert combined([CpuSettings(threads_per_call=2), pinned, quiet]) == CpuSettings(threads_per_call=2, arena=False)
    assert combined([pinned, CpuSettings(threads_per_call=2), quiet]) == CpuSettings(pinned=True, arena=False)
    assert combined([]) is None
    assert combined([batches]) is None
    assert combined([batches, CpuSettings(batch_size=2)]) is None


def test_what_needs_the_model_loaded_once_more() -> None:
    assert not needs_own_session(CpuSettings(batch_size=8))
    assert not needs_own_session(CpuSettings(pinned=True))
    assert not needs_own_session(CpuSettings(calls_at_once=1))
    assert needs_own_session(CpuSettings(threads_per_call=2))
    assert needs_own_session(CpuSettings(arena=False))
    assert needs_own_session(CpuSettings(graph="extended"))
