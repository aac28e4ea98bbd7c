"""`python -m engine.memory.measure_link`: how fast the GPUs of this machine copy to each other, each to the next one,
as JSON for `wanlora doctor`. What one card does alone is measure_card's.
"""

import json
import time

import torch

SIZE, ROUNDS = 2**28, 5  # bytes of a copy, and how often; the best counts


def measured() -> list[dict[str, object]]:
    """{from, to, gbps (10^9 bytes a second, one way), direct (not through the host's memory)} of each GPU and the next;
    none where there is but one."""
    count = torch.cuda.device_count()
    pairs = [(n, (n + 1) % count) for n in range(count)] if count > 1 else []
    return [
        {"from": a, "to": b, "gbps": _rate(a, b), "direct": torch.cuda.can_device_access_peer(a, b)} for a, b in pairs
    ]


def _rate(a: int, b: int) -> float:
    source = torch.empty(SIZE, dtype=torch.uint8, device=f"cuda:{a}")
    target = torch.empty(SIZE, dtype=torch.uint8, device=f"cuda:{b}")
    best = float("inf")
    for _ in range(ROUNDS):
        torch.cuda.synchronize(a)
        torch.cuda.synchronize(b)
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(a)
        torch.cuda.synchronize(b)
        best = min(best, time.perf_counter() - began)
    return SIZE / best / 1e9


if __name__ == "__main__":
    print(json.dumps(measured()))
