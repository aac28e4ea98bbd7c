"""The low-rank matrix that best makes up for what quantizing a weight lost.

With R = W - dequantized(W), find B A of the given rank with the least

    || R - B A ||_F                 plain: every input counts alike
    || (R - B A) X ||_F             weighted: by the inputs X that the layer really sees

Eckart and Young: the truncated SVD of R is the plain optimum. With C = E[x x^T] = S S^T the weighted error is
|| (R - B A) S ||_F, so the optimum is the truncated SVD of R S, taken back through the inverse of S.

N outputs, K inputs, R rank.

Which weights it is made for is engine.recovery.build's; the weighting comes from engine.recovery.input_moments.
"""

import torch

from engine.system.keyed_random import keyed_rng

EXACT_UP_TO = 512  # smaller side; above it a block Krylov method, whose cost grows with the rank and not with the side
OVERSAMPLE = 8  # columns beyond the rank
DEPTH = 6  # powers of M M^T in the Krylov space
DAMPING = 1e-2  # of the mean second moment, added to each: inputs the calibration never saw still count a little
Factors = tuple[torch.Tensor, torch.Tensor]  # A (R, K), B (N, R)


def best_correction(
    residual_NK: torch.Tensor, rank: int, *, moment: torch.Tensor | None = None, key: str = ""
) -> Factors:
    """(A, B) in fp32 with B A the best correction. `moment` is E[x x^T] (K, K), or only its diagonal (K,); None is
    plain.

    Deterministic: the Krylov method starts from numbers keyed by `key`.
    """
    r_NK = residual_NK.float()
    assert 0 < rank <= min(r_NK.shape), (rank, tuple(r_NK.shape))
    if moment is None:
        u, s, vh = truncated_svd(r_NK, rank, key=key)
        return _balanced(vh, u * s)
    damped = moment.float() if moment.ndim == 1 else moment.float().clone()
    diagonal = damped if moment.ndim == 1 else damped.diagonal()
    assert bool(torch.isfinite(diagonal).all()), key
    added = DAMPING * diagonal.mean().clamp(min=1e-20)
    if moment.ndim == 1:
        root_K = (damped + added).sqrt()
        u, s, vh = truncated_svd(r_NK * root_K, rank, key=key)
        return _balanced(vh / root_K, u * s)
    diagonal += added  # a view: of `damped` itself
    root_KK = _cholesky(damped, added)
    u, s, vh = truncated_svd(r_NK @ root_KK, rank, key=key)
    return _balanced(torch.linalg.solve_triangular(root_KK, vh, upper=False, left=False), u * s)


def _cholesky(c_KK: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """The lower factor of C; more of the diagonal is added until rounding no longer makes C indefinite."""
    while True:
        root, failed = torch.linalg.cholesky_ex(c_KK)
        if not int(failed):
            return root
        added = added * 10
        c_KK.diagonal().add_(added)


def _balanced(a_RK: torch.Tensor, b_NR: torch.Tensor) -> Factors:
    """The same product with rows of A and columns of B of equal length: neither suffers in a 16-bit file."""
    a_norm, b_norm = a_RK.norm(dim=1), b_NR.norm(dim=0)
    factor = torch.where(
        (a_norm > 0) & (b_norm > 0), (b_norm / a_norm.clamp(min=1e-30)).sqrt(), torch.ones_like(a_norm)
    )
    return a_RK * factor.unsqueeze(1), b_NR / factor.clamp(min=1e-30)


def truncated_svd(m_NK: torch.Tensor, rank: int, *, key: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading `rank` singular triplets: U (N, R), s (R,), V^T (R, K)."""
    if min(m_NK.shape) <= max(EXACT_UP_TO, (rank + OVERSAMPLE) * (DEPTH + 1)):
        u, s, vh = torch.linalg.svd(m_NK, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank]
    return krylov_svd(m_NK, rank, key=key)


def krylov_svd(m_NK: torch.Tensor, rank: int, *, key: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`truncated_svd` by Rayleigh-Ritz on the space of M G, (M M^T) M G, ..., (M M^T)^depth M G with a random G.

    Keeping all powers, not only the last, is what makes it work on flat spectra, and a quantization residual is nearly
    flat (Musco and Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate SVD", 2015).
    """
    width = rank + OVERSAMPLE
    start = keyed_rng(0, "krylov", key).standard_normal((m_NK.shape[1], width), dtype="float32")
    x_NW = torch.linalg.qr(m_NK @ torch.from_numpy(start).to(m_NK.device)).Q
    space = [x_NW]
    for _ in range(DEPTH):
        x_NW = torch.linalg.qr(m_NK @ (m_NK.T @ x_NW)).Q
        space.append(x_NW)
    q = torch.linalg.qr(torch.cat(space, dim=1)).Q
    # The SVD of the wide q^T M through a QR of its transpose: only a small square is left for it.
    basis_KS, triangle_SS = torch.linalg.qr(m_NK.T @ q)
    u, s, vh = torch.linalg.svd(triangle_SS.T)
    return q @ u[:, :rank], s[:rank], vh[:rank] @ basis_KS.T
