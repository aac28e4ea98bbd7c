"""The backward of exact attention in two Triton kernels that add in a fixed order: gradients of keys and values, then
of queries.

The scores are computed in both, seven products where kernels that add up the gradient of the queries from all sides at
once need five; in return no two programs write to the same place, so the same inputs give the same bits, and nothing
is kept in memory but one number a row. Formulas: FlashAttention-2 (Dao 2023, arXiv 2307.08691, algorithm 2). Imported
where Triton is, on CUDA.

B batch, N heads, T query tokens, S key tokens, K head width. Inside the kernels: M rows of queries and N of keys that a
program works on at a time.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
ROWS = 64  # of one program that sums rows
MOST = 2**31  # elements that a head may span: offsets within it are 32-bit
PROGRAMS = 640  # of a kernel: with fewer than a few for each of a card's processors, some wait for the last
MOST_PARTS = 8  # that few keys' queries are cut into


class Tile(NamedTuple):
    queries: int  # rows of queries at a time
    keys: int
    warps: int
    stages: int  # loads ahead


class Tiles(NamedTuple):
    of_keys: Tile  # gradients of keys and values: a program has its keys and goes through all queries
    of_queries: Tile  # of queries: it has its queries and goes through all keys


# For heads of 128. As Triton 3.6 compiles them, the large ones need 165 KB of shared memory on Hopper, 132 before, 198
# on Blackwell data-centre cards; the small ones fit the 99 KB of other cards.
TILES = {
    "triton-large": Tiles(Tile(64, 128, 8, 3), Tile(128, 64, 8, 3)),
    "triton-small": Tiles(Tile(32, 128, 8, 2), Tile(128, 32, 8, 2)),
}


def backward(
    tiles: Tiles,
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, laid out (B, T, N, K) in memory. Tensors are (B, N, T, K), any strides, `lse` (B, N, T)
    with the natural logarithm. Raises RuntimeError for widths that are no power of two from 16, and what Triton raises
    where a tile does not fit."""
    inputs = _inputs(grad, q, k, v, out, lse)
    return _queries(tiles.of_queries, *inputs), *_keys(tiles.of_keys, *inputs)


def backward_of_queries(
    tiles: Tiles,
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> torch.Tensor:
    """The gradient of q alone, as `backward` has it."""
    return _queries(tiles.of_queries, *_inputs(grad, q, k, v, out, lse))


def _inputs(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """q, k, v, grad, lse and delta, as the kernels take them."""
    _, N, T, K = q.shape
    if K < 16 or K & (K - 1):
        raise RuntimeError(f"heads of {K} are not a power of two from 16")
    grad, q, k, v, out = (t if t.stride(-1) == 1 else t.contiguous() for t in (grad, q, k, v, out))
    assert all(t.shape[2] * max(t.stride(2), N * K) < MOST for t in (grad, q, k, v, out)), (
        "a head that spans more than 32-bit offsets reach"
    )
    lse = lse.contiguous()
    delta = torch.empty_like(lse)
    grid = triton.cdiv(T, ROWS), q.shape[0] * N
    _delta[grid](out, grad, delta, T, N, *_strides(out, grad), WIDTH=K, ROWS=ROWS)
    return q, k, v, grad, lse, delta


def _keys(
    tile: Tile,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of k and v. The queries of few keys are cut into parts, each summed by a program of its own: the sums
    are kept in fp32 and added up in the order of the parts."""
    B, N, T, K = q.shape
    S = k.shape[2]
    programs = triton.cdiv(S, tile.keys) * B * N
    parts = max(1, min(PROGRAMS // programs, T // S, MOST_PARTS))
    dtype = k.dtype if parts == 1 else torch.float32
    sums = [k.new_empty(parts, B, S, N, K, dtype=dtype) for _ in range(2)]  # of k, of v
    dk, dv = (t[0].transpose(1, 2) for t in sums)
    _of_keys[(triton.cdiv(S, tile.keys), B * N, parts)](
        *(q, k, v, grad, lse, delta, *sums, T, S, N, K**-0.5),
        *_strides(q, k, v, grad, dk, dv),
        sums[0].stride(0),
        PARTS=parts,
        **_options(tile, T, S, K),
    )
    if parts > 1:
        dk, dv = (t.sum(0).to(k.dtype).transpose(1, 2) for t in sums)
    return dk, dv


def _queries(
    tile: Tile,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
) -> torch.Tensor:
    """The gradient of q."""
    B, N, T, K = q.shape
    S = k.shape[2]
    dq = q.new_empty(B, T, N, K).transpose(1, 2)
    _of_queries[(triton.cdiv(T, tile.queries), B * N)](
        *(q, k, v, grad, lse, delta, dq, T, S, N, K**-0.5),
        *_strides(q, k, v, grad, dq),
        **_options(tile, T, S, K),
    )
    return dq


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [stride for t in tensors for stride in t.stride()[:3]]


def _options(tile: Tile, T: int, S: int, K: int) -> dict[str, Any]:
    # else loads and stores at the edge are masked
    whole = {"WHOLE_M": T % tile.queries == 0, "WHOLE_N": S % tile.keys == 0}
    return {
        "WIDTH": K,
        "M": tile.queries,
        "N": tile.keys,
        **whole,
        "STAGES": tile.stages,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@triton.jit
def _rows(base, rows, stride, limit, WIDTH: tl.constexpr, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """(rows, WIDTH) of a head; zeros beyond its end."""
    at = base + rows[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    return tl.load(at) if WHOLE else tl.load(at, mask=rows[:, None] < limit, other=0.0)


@triton.jit
def _numbers(base, rows, limit, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """One number a row; zeros beyond the last."""
    return tl.load(base + rows) if WHOLE else tl.load(base + rows, mask=rows < limit, other=0.0)


@triton.jit
def _put(base, rows, stride, limit, values, WIDTH: tl.constexpr, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = base + rows[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    values = values.to(base.dtype.element_ty)
    if WHOLE:
        tl.store(at, values)
    else:
        tl.store(at, values, mask=rows[:, None] < limit)


@triton.jit
def _delta(  # type: ignore[no-untyped-def]
    out, grad, delta, T, heads, out_b, out_n, out_t, grad_b, grad_n, grad_t, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """delta = sum over the width of out * grad, in fp32: what the softmax takes off every row's gradient."""
    head = tl.program_id(1).to(tl.int64)
    b, n = head // heads, head % heads
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = _rows(out + b * out_b + n * out_n, rows, out_t, T, WIDTH, False).to(tl.float32)
    g = _rows(grad + b * grad_b + n * grad_n, rows, grad_t, T, WIDTH, False).to(tl.float32)
    tl.store(delta + head * T + rows, tl.sum(o * g, 1), mask=rows < T)


@triton.jit
def _of_keys(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    grad,
    lse,
    delta,
    dk,
    dv,
    T,
    S,
    heads,
    scale,
    q_b,
    q_n,
    q_t,
    k_b,
    k_n,
    k_t,
    v_b,
    v_n,
    v_t,
    grad_b,
    grad_n,
    grad_t,
    dk_b,
    dk_n,
    dk_t,
    dv_b,
    dv_n,
    dv_t,
    part,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    WHOLE_M: tl.constexpr,
    WHOLE_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dv = P^T grad, dk = dS^T q * scale, with P = exp(scale q k^T - lse) and dS = P * (grad v^T - delta). Transposed
    throughout: the keys are the rows. Queries beyond the last are zeros, as is their grad, and add nothing. The sums of
    each part of the queries lie `part` elements behind those of the one before."""
    head = tl.program_id(1).to(tl.int64)
    b, n = head // heads, head % heads
    keys = tl.program_id(0) * N + tl.arange(0, N)
    k_NK = _rows(k + b * k_b + n * k_n, keys, k_t, S, WIDTH, WHOLE_N)
    v_NK = _rows(v + b * v_b + n * v_n, keys, v_t, S, WIDTH, WHOLE_N)
    q += b * q_b + n * q_n
    grad += b * grad_b + n * grad_n
    lse += head * T
    delta += head * T
    dk_NK = tl.zeros([N, WIDTH], tl.float32)
    dv_NK = tl.zeros([N, WIDTH], tl.float32)
    first, last = 0, T
    if PARTS > 1:
        queries_of_each = tl.cdiv(T, M * PARTS) * M
        first = tl.program_id(2) * queries_of_each
        last = tl.minimum(first + queries_of_each, T)
    for start in tl.range(first, last, M, num_stages=STAGES):
        queries = start + tl.arange(0, M)
        q_MK = _rows(q, queries, q_t, T, WIDTH, WHOLE_M)
        grad_MK = _rows(grad, queries, grad_t, T, WIDTH, WHOLE_M)
        lse_M = _numbers(lse, queries, T, WHOLE_M)
        delta_M = _numbers(delta, queries, T, WHOLE_M)
        p_NM = tl.exp2(tl.dot(k_NK, tl.trans(q_MK)) * (scale * LOG2E) - (lse_M * LOG2E)[None, :])
        dp_NM = tl.dot(v_NK, tl.trans(grad_MK))
        dv_NK = tl.dot(p_NM.to(grad_MK.dtype), grad_MK, dv_NK)
        ds_NM = p_NM * (dp_NM - delta_M[None, :])
        dk_NK = tl.dot(ds_NM.to(q_MK.dtype), q_MK, dk_NK)
    if PARTS > 1:
        dk += tl.program_id(2).to(tl.int64) * part
        dv += tl.program_id(2).to(tl.int64) * part
    _put(dk + b * dk_b + n * dk_n, keys, dk_t, S, dk_NK * scale, WIDTH, WHOLE_N)
    _put(dv + b * dv_b + n * dv_n, keys, dv_t, S, dv_NK, WIDTH, WHOLE_N)


@triton.jit
def _of_queries(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    grad,
    lse,
    delta,
    dq,
    T,
    S,
    heads,
    scale,
    q_b,
    q_n,
    q_t,
    k_b,
    k_n,
    k_t,
    v_b,
    v_n,
    v_t,
    grad_b,
    grad_n,
    grad_t,
    dq_b,
    dq_n,
    dq_t,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    WHOLE_M: tl.constexpr,
    WHOLE_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dq = dS k * scale."""
    head = tl.program_id(1).to(tl.int64)
    b, n = head // heads, head % heads
    queries = tl.program_id(0) * M + tl.arange(0, M)
    q_MK = _rows(q + b * q_b + n * q_n, queries, q_t, T, WIDTH, WHOLE_M)
    grad_MK = _rows(grad + b * grad_b + n * grad_n, queries, grad_t, T, WIDTH, WHOLE_M)
    lse_M = _numbers(lse + head * T, queries, T, WHOLE_M)
    delta_M = _numbers(delta + head * T, queries, T, WHOLE_M)
    k += b * k_b + n * k_n
    v += b * v_b + n * v_n
    dq_MK = tl.zeros([M, WIDTH], tl.float32)
    for start in tl.range(0, S, N, num_stages=STAGES):
        keys = start + tl.arange(0, N)
        k_NK = _rows(k, keys, k_t, S, WIDTH, WHOLE_N)
        v_NK = _rows(v, keys, v_t, S, WIDTH, WHOLE_N)
        p_MN = tl.exp2(tl.dot(q_MK, tl.trans(k_NK)) * (scale * LOG2E) - (lse_M * LOG2E)[:, None])
        if not WHOLE_N:  # a key of zeros is more likely than all others where their scores are far below zero
            p_MN = tl.where((keys < S)[None, :], p_MN, 0.0)
        dp_MN = tl.dot(grad_MK, tl.trans(v_NK))
        ds_MN = p_MN * (dp_MN - delta_M[:, None])
        dq_MK = tl.dot(ds_MN.to(k_NK.dtype), k_NK, dq_MK)
    _put(dq + b * dq_b + n * dq_n, queries, dq_t, T, dq_MK * scale, WIDTH, WHOLE_M)
