import threading

import pytest

from models.ahead import in_order


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    assert list(in_order(lambda item: item * item, range(50), threads=threads, ahead=7)) == [item * item for item in range(50)]


def test_work_goes_on_while_the_consumer_is_busy_but_not_without_end() -> None:
    begun: list[int] = []
    fifth = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 4:
            fifth.set()
        return item

    results = in_order(work, range(100), threads=1, ahead=5)
    assert next(results) == 0
    assert fifth.wait(30), "nobody worked ahead"
    assert len(begun) == 5
    assert list(results) == list(range(1, 100))


def test_an_error_comes_out_in_its_turn() -> None:
    results = in_order(lambda item: 1 // (item - 3), range(9), threads=2, ahead=9)
    assert [next(results) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
