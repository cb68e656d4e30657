"""The cross-batch memory against a deque."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from trainer.losses.memory import CrossBatchMemory  # noqa: E402

pytestmark = pytest.mark.slow


def numbered(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch whose every value tells which row it is."""
    numbers = torch.arange(first, first + count)
    return (
        torch.stack([numbers, numbers + 0.5], 1).float(),
        numbers - 2**63,
        torch.stack([numbers / 1e3, -numbers / 1e3], 1).double(),
    )


def assert_holds(memory: CrossBatchMemory, numbers: list[int]) -> None:
    assert len(memory) == len(numbers)
    expected = torch.tensor(numbers, dtype=torch.int64)
    assert torch.equal(memory.embeddings, torch.stack([expected, expected + 0.5], 1).float())
    assert torch.equal(memory.leaf_cells, expected - 2**63)
    assert torch.equal(memory.coordinates, torch.stack([expected / 1e3, -expected / 1e3], 1).double())


@settings(deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 21), max_size=14))
def test_holds_what_a_deque_holds(capacity: int, batches: list[int]) -> None:
    memory, model = CrossBatchMemory(capacity, 2), deque(maxlen=capacity)
    first = 0
    for count in batches:
        memory.add(*numbered(first, count))
        model.extend(range(first, first + count))
        first += count
        assert_holds(memory, list(model))


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(0, 7), max_size=6), st.lists(st.integers(0, 7), max_size=6))
def test_goes_on_from_its_saved_state(capacity: int, before: list[int], after: list[int]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    memory, restored = CrossBatchMemory(capacity, 2), CrossBatchMemory(capacity, 2)
    restored.add(*numbered(900, 3))  # what it held before is gone
    first = 0
    for count in before:
        memory.add(*numbered(first, count))
        first += count
    restored.load_state_dict(safetensors.load(safetensors.save(memory.state_dict())))
    for count in after:
        memory.add(*numbered(first, count))
        restored.add(*numbered(first, count))
        first += count
    for name in ("embeddings", "leaf_cells", "coordinates"):
        assert torch.equal(getattr(memory, name), getattr(restored, name))


def test_a_state_of_more_rows_keeps_the_newest() -> None:
    large, small = CrossBatchMemory(10, 2), CrossBatchMemory(4, 2)
    large.add(*numbered(0, 10))
    small.load_state_dict(large.state_dict())
    assert_holds(small, [6, 7, 8, 9])


def test_a_state_that_does_not_fit_leaves_the_memory_as_it_was() -> None:
    memory = CrossBatchMemory(4, 2)
    memory.add(*numbered(0, 3))
    state = memory.state_dict()
    with pytest.raises(ValueError, match="lacks leaf_cells"):
        memory.load_state_dict({name: state[name] for name in ("embeddings", "coordinates")})
    with pytest.raises(ValueError, match=r"embeddings has shape \(3, 1\); expected \(any, 2\)"):
        memory.load_state_dict(state | {"embeddings": state["embeddings"][:, :1]})
    assert_holds(memory, [0, 1, 2])


def test_a_saved_state_does_not_change_with_the_memory() -> None:
    memory = CrossBatchMemory(3, 2)
    memory.add(*numbered(0, 3))
    state = memory.state_dict()
    for first in range(50, 90, 3):
        memory.add(*numbered(first, 3))
    assert torch.equal(state["embeddings"], numbered(0, 3)[0])
    assert torch.equal(state["coordinates"], numbered(0, 3)[2])
    assert state["leaf_cells"].tolist() == [number - 2**63 for number in range(3)]


def test_cleared_it_is_empty_and_usable() -> None:
    memory = CrossBatchMemory(3, 2)
    memory.add(*numbered(0, 5))
    memory.clear()
    assert_holds(memory, [])
    memory.add(*numbered(7, 2))
    assert_holds(memory, [7, 8])


def test_embeddings_are_detached_copies_in_float32() -> None:
    memory = CrossBatchMemory(4, 2)
    embeddings, cells, places = numbered(0, 2)
    source = embeddings.double().requires_grad_()
    memory.add(source * 1, cells, places)
    with torch.no_grad():
        source.zero_()
    cells.zero_()
    assert not memory.embeddings.requires_grad
    assert memory.embeddings.dtype == torch.float32
    assert_holds(memory, [0, 1])
    memory.add(embeddings.bfloat16(), *numbered(0, 2)[1:])
    assert_holds(memory, [0, 1, 0, 1])


def test_moves_to_a_device_and_takes_batches_from_another() -> None:
    memory = CrossBatchMemory(4, 2)
    memory.add(*numbered(0, 3))
    assert memory.to("meta") is memory  # a device that every build has
    assert memory.embeddings.device.type == memory.leaf_cells.device.type == memory.coordinates.device.type == "meta"
    memory.add(*numbered(3, 3))
    assert memory.embeddings.shape == (4, 2)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        CrossBatchMemory(0, 2)
    with pytest.raises(ValueError, match="dim 0"):
        CrossBatchMemory(2, 0)
    memory = CrossBatchMemory(4, 2)
    embeddings, cells, places = numbered(0, 3)
    with pytest.raises(ValueError, match=r"embeddings has shape \(3, 1\); expected \(any, 2\)"):
        memory.add(embeddings[:, :1], cells, places)
    with pytest.raises(ValueError, match=r"leaf_cells has shape \(2,\); expected \(3,\)"):
        memory.add(embeddings, cells[:2], places)
    with pytest.raises(ValueError, match=r"coordinates has shape \(3, 1\); expected \(3, 2\)"):
        memory.add(embeddings, cells, places[:, :1])
    with pytest.raises(ValueError, match=r"torch\.float64; expected int64"):
        memory.add(embeddings, cells.double(), places)
    assert_holds(memory, [])
