"""The order of batches: complete, mixed, reproducible from an index alone."""

from collections import Counter
from itertools import pairwise

from engine.items import Item
from engine.order import Order
from presets.geometry import Bucket

SMALL, LARGE = Bucket(9, 64, 64), Bucket(9, 96, 128)


def item(name: str, bucket: Bucket = SMALL, **changes) -> Item:
    values = {
        "id": name, "repeat": 0, "dataset": 0, "path": f"/data/{name}", "kind": "video", "bucket": bucket, "sampling": "realtime", "caption": f"caption of {name}",
        "caption_dropout": 0.0, "weight": 1.0, "regularization": False, "flip_x": False, "flip_y": False,
    }  # fmt: skip
    return Item(**(values | changes))


def mixed() -> list[Item]:
    return [*(item(f"s{i}") for i in range(7)), *(item(f"l{i}", LARGE) for i in range(5)), *(item("twice", repeat=r) for r in range(2))]


def epoch(order: Order, number: int) -> list[list]:
    first = number * order.batches_per_epoch
    return [order.batch(i) for i in range(first, first + order.batches_per_epoch)]


def test_every_epoch_visits_every_item_once() -> None:
    order = Order(mixed(), 2, 42)
    for number in range(5):
        visits = Counter(draw.key for batch in epoch(order, number) for draw in batch)
        assert visits == Counter((number, i.id, i.repeat) for i in mixed())


def test_batches_keep_to_a_bucket_and_stay_short_at_its_end() -> None:
    order = Order(mixed(), 4, 42)
    assert order.batches_per_epoch == 3 + 2  # 9 small and 5 large
    for number in range(3):
        batches = epoch(order, number)
        assert all(len({draw.item.bucket for draw in batch}) == 1 for batch in batches)
        assert sorted(len(batch) for batch in batches) == [1, 1, 4, 4, 4]


def test_batches_keep_to_one_lora_weight() -> None:
    order = Order([*(item(f"a{i}") for i in range(6)), *(item(f"b{i}", weight=0.5) for i in range(6))], 4, 1)
    assert all(len({draw.item.weight for draw in batch}) == 1 for batch in epoch(order, 0))


def test_buckets_are_mixed_and_epochs_differ() -> None:
    order = Order([*(item(f"s{i}") for i in range(40)), *(item(f"l{i}", LARGE) for i in range(40))], 1, 7)
    buckets = [batch[0].item.bucket for batch in epoch(order, 0)]
    changes = sum(a != b for a, b in pairwise(buckets))
    assert changes > 20, "one bucket after the other would be 1 change"
    ids = [[batch[0].item.id for batch in epoch(order, n)] for n in (0, 1)]
    assert ids[0] != ids[1]


def test_an_index_is_all_that_a_resumed_run_needs() -> None:
    items = [item(f"s{i}", caption_dropout=0.5, flip_x=True, flip_y=True) for i in range(11)]
    walked = Order(items, 2, 3)
    draws = [walked.batch(i) for i in range(40)]
    for index in (39, 0, 17):
        assert Order(items, 2, 3).batch(index) == draws[index]
    assert [Order(items, 2, 4).batch(i) for i in range(6)] != draws[:6]


def test_choices_are_drawn_apart_from_each_other_and_at_their_rate() -> None:
    order = Order([item(f"s{i}", caption_dropout=0.25, flip_x=True, flip_y=True) for i in range(50)], 1, 5)
    draws = [order.batch(i)[0] for i in range(2000)]
    n = len(draws)
    assert abs(sum(d.dropped for d in draws) / n - 0.25) < 0.05
    assert abs(sum(d.flip_x for d in draws) / n - 0.5) < 0.05
    assert abs(sum(d.flip_x == d.flip_y for d in draws) / n - 0.5) < 0.05
    assert abs(sum(d.start for d in draws) / n - 0.5) < 0.03
    assert len({d.start for d in draws}) == n
    assert {d.caption for d in draws if d.dropped} == {""}
    assert all(d.caption == d.item.caption for d in draws if not d.dropped)


def test_nothing_is_dropped_or_flipped_unasked() -> None:
    order = Order([item(f"s{i}") for i in range(50)], 1, 5)
    draws = [order.batch(i)[0] for i in range(200)]
    assert not any(d.dropped or d.flip_x or d.flip_y for d in draws)
    order = Order([item(f"s{i}", caption_dropout=1.0) for i in range(50)], 1, 5)
    assert all(order.batch(i)[0].caption == "" for i in range(100))


def test_a_draw_says_what_to_decode() -> None:
    draw = Order([item("s", kind="video", flip_x=True)], 1, 5).batch(3)[0]
    request = draw.request
    assert (request.path, request.bucket, request.sampling, request.start, request.flip_x) == ("/data/s", SMALL, "realtime", draw.start, draw.flip_x)
