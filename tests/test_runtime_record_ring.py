"""Rings in shared memory: what goes in comes out, whole and in order, and what has no room is refused."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from runtime.mailbox import shared_memory
from runtime.record_ring import HEAD, Lane


@pytest.fixture
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Lane, Lane]]:
    """Producer and consumer of a small ring."""
    handle = shared_memory(Lane.size_of(1024))
    producer, consumer = Lane(handle, 0, 1024), Lane(handle, 0, 1024)
    producer.touch()
    yield producer, consumer
    producer.close()
    consumer.close()
    os.close(handle)


def _taken(lane: Lane) -> list[tuple[int, int, bytes]]:
    return [(kind, number, bytes(content)) for kind, number, content in lane.take()]


def test_a_record_is_taken_at_the_second_look(ends: tuple[Lane, Lane]) -> None:
    """At the first, another processor's writes might not all be seen."""
    producer, consumer = ends
    assert producer.put(3, 1, [b"ab", b"cde"])
    consumer.look()
    assert _taken(consumer) == []
    consumer.look()
    assert _taken(consumer) == [(3, 1, b"abcde")]
    assert consumer.waiting == 0


def test_what_has_no_room_is_refused_and_what_is_there_stays(ends: tuple[Lane, Lane]) -> None:
    """Until the consumer has taken something."""
    producer, consumer = ends
    content = bytes(range(48))
    fitting = 1024 // Lane.record_bytes(48)
    assert [producer.put(0, i, [content]) for i in range(fitting + 3)] == [True] * fitting + [False] * 3
    consumer.look()
    consumer.look()
    assert _taken(consumer) == [(0, i, content) for i in range(fitting)]
    assert producer.put(0, 99, [content])


@pytest.mark.parametrize("seed", range(20))
def test_random_records_come_out_as_they_went_in(ends: tuple[Lane, Lane], seed: int) -> None:
    """Of all sizes up to half the ring, over its end many times, taken by a consumer that stops at will."""
    producer, consumer = ends
    rng = random.Random(seed)
    put, taken = [], []
    for number in range(2000):
        content = rng.randbytes(rng.choice((0, 1, 7, 8, 30, 200, 1024 // 2 - HEAD.size)))
        if producer.put(number % 5, number, [content]):
            put.append((number % 5, number, content))
        if rng.random() < 0.4:
            consumer.look()
            for kind, number_taken, view in consumer.take():
                taken.append((kind, number_taken, bytes(view)))
                if rng.random() < 0.1:
                    break
    for _ in range(3):
        consumer.look()
        taken += _taken(consumer)
    assert len(put) > 500
    assert taken == put


def test_a_record_larger_than_the_ring_is_refused(ends: tuple[Lane, Lane]) -> None:
    """Whatever is in it."""
    assert not ends[0].put(0, 1, [bytes(1024)])
