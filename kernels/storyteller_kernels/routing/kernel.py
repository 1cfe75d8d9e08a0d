"""Routing in Triton: two launches forward, two backward, no atomics, and nothing that the host must wait for.

T tokens, D model width, E experts, K choices per token, N = T * K rows, B blocks of BLOCK_T tokens, S strips of
tokens. A token chooses an expert at most once, so [T, E] flags hold the same information as [T, K] choices, and the
row of a choice is: rows of lower experts + rows of this expert in earlier blocks + its earlier tokens in this block.

The product with the router's weight keeps the accuracy of fp32 on the matrix units: a bf16 x is exact there,
and an fp32 weight is the sum of three bf16 numbers of 8 significant bits each. Other dtypes of x use fp32 products.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyteller_kernels.dispatch import LAUNCH_OPTIONS, on_device_of, processor_count
from storyteller_kernels.routing.reference import Routing


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def add_product(acc: tl.tensor, a: tl.tensor, b: tl.tensor, PARTS: tl.constexpr) -> tl.tensor:
    """acc + a b, as exact as fp32 allows, for a bf16 `a` and a `b` of PARTS bf16 parts; PARTS 0: in fp32."""
    if PARTS == 0:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        rest = b.to(tl.float32)
        for _ in tl.static_range(PARTS):
            part = rest.to(tl.bfloat16)
            acc = tl.dot(a, part, acc)
            rest -= part.to(tl.float32)
    return acc


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def choose_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    noise_ptr: tl.tensor,
    prob_ptr: tl.tensor,
    log_z_ptr: tl.tensor,
    expert_ptr: tl.tensor,
    gate_weight_ptr: tl.tensor,
    count_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    E: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """l = x W^T + noise, p = softmax(l), the K largest p, their gate weights; and the block's share of the totals.

    Writes prob [T, E] and log_z = logsumexp(l) [T] fp32, expert [T, K] int64, gate weight [T, K] fp32 and, per block,
    count [B, E] int32 and sum [B, E + 2] fp32: the sums of p, of log_z^2, and of the entropy log_z - sum p l.
    """
    block = tl.program_id(0)
    token = tl.cast(block, tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert = tl.arange(0, BLOCK_E)
    real_token, real_expert = token < T, expert < E
    logit = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        real_column = column < D
        x_mask = real_token[:, None] & real_column[None, :]
        x = tl.load(x_ptr + token[:, None] * D + column[None, :], mask=x_mask, other=0.0)
        w_mask = real_expert[:, None] & real_column[None, :]
        w = tl.load(weight_ptr + expert[:, None] * D + column[None, :], mask=w_mask, other=0.0)
        logit = add_product(logit, x, tl.trans(w), PARTS)

    place = token[:, None] * E + expert[None, :]
    mask = real_token[:, None] & real_expert[None, :]
    if noise_ptr is not None:
        logit += tl.load(noise_ptr + place, mask=mask, other=0.0).to(tl.float32)
    logit = tl.where(real_expert[None, :], logit, float("-inf"))
    largest = tl.max(logit, axis=1)
    above = tl.exp(logit - largest[:, None])
    z = tl.sum(above, axis=1)
    prob = tl.div_rn(above, z[:, None])
    log_z = largest + tl.log(z)
    tl.store(prob_ptr + place, prob, mask=mask)
    tl.store(log_z_ptr + token, log_z, mask=real_token)

    # NaN counts as the largest, as in torch.sort, so that a token with NaN still gets K valid experts. Experts already
    # taken are set below every probability; padding experts, with probability 0, come last.
    left = tl.where(prob == prob, prob, 2.0)
    choice = tl.arange(0, BLOCK_K)
    kept = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    chosen = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    flag = tl.zeros((BLOCK_T, BLOCK_E), tl.int32)
    for k in range(K):
        best = tl.max(left, axis=1)
        # The lowest expert with that probability.
        winner = tl.min(tl.where(left == best[:, None], expert[None, :], BLOCK_E), axis=1)
        won = expert[None, :] == winner[:, None]
        value = tl.sum(tl.where(won, prob, 0.0), axis=1)
        kept = tl.where(choice[None, :] == k, value[:, None], kept)
        chosen = tl.where(choice[None, :] == k, winner[:, None], chosen)
        left = tl.where(won, -1.0, left)
        flag += won.to(tl.int32)
    gate_weight = tl.div_rn(kept, tl.sum(kept, axis=1)[:, None])
    choice_place = token[:, None] * K + choice[None, :]
    choice_mask = real_token[:, None] & (choice < K)[None, :]
    tl.store(expert_ptr + choice_place, chosen.to(tl.int64), mask=choice_mask)
    tl.store(gate_weight_ptr + choice_place, gate_weight, mask=choice_mask)

    count = tl.sum(tl.where(real_token[:, None], flag, 0), axis=0)
    tl.store(count_ptr + block * E + expert, count, mask=real_expert)
    own_sums = sum_ptr + block * (E + 2)
    tl.store(own_sums + expert, tl.sum(tl.where(mask, prob, 0.0), axis=0), mask=real_expert)
    tl.store(own_sums + E, tl.sum(tl.where(real_token, log_z * log_z, 0.0), axis=0))
    entropy = log_z - tl.sum(prob * tl.where(real_expert[None, :], logit, 0.0), axis=1)
    tl.store(own_sums + E + 1, tl.sum(tl.where(real_token, entropy, 0.0), axis=0))


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def place_kernel(
    expert_ptr: tl.tensor,
    count_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    row_ptr: tl.tensor,
    token_ptr: tl.tensor,
    total_ptr: tl.tensor,
    prob_sum_ptr: tl.tensor,
    z_sum_ptr: tl.tensor,
    entropy_sum_ptr: tl.tensor,
    T: tl.tensor,
    B: tl.tensor,
    BLOCKS: tl.tensor,
    E: tl.constexpr,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """The row of each (token, choice) and the token of each row; the last program adds up the totals instead.

    Program p places the tokens of BLOCKS blocks from block p * BLOCKS on. It computes by itself how many rows come
    before them, from the small [B, E] counts: cheaper than one more launch to scan them.
    Writes row [T, K], token [N] and total [E] int64; prob_sum [E], z_sum [] and entropy_sum [] fp32.
    """
    expert = tl.arange(0, BLOCK_E)
    real_expert = expert < E
    first = tl.program_id(0) * BLOCKS
    before = tl.zeros((BLOCK_E,), tl.int32)
    total = tl.zeros((BLOCK_E,), tl.int32)
    for start in range(0, B, CHUNK):
        block = start + tl.arange(0, CHUNK)
        mask = (block < B)[:, None] & real_expert[None, :]
        count = tl.load(count_ptr + block[:, None] * E + expert[None, :], mask=mask, other=0)
        total += tl.sum(count, axis=0)
        before += tl.sum(tl.where((block < first)[:, None], count, 0), axis=0)

    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(total_ptr + expert, total.to(tl.int64), mask=real_expert)
        WIDTH: tl.constexpr = 2 * BLOCK_E
        column = tl.arange(0, WIDTH)
        partial = tl.zeros((CHUNK, WIDTH), tl.float32)
        for start in range(0, B, CHUNK):
            block = start + tl.arange(0, CHUNK)
            mask = (block < B)[:, None] & (column < E + 2)[None, :]
            partial += tl.load(sum_ptr + block[:, None] * (E + 2) + column[None, :], mask=mask, other=0.0)
        total_sum = tl.sum(partial, axis=0)
        tl.store(prob_sum_ptr + column, total_sum, mask=column < E)
        tl.store(z_sum_ptr + (column - E), total_sum, mask=column == E)
        tl.store(entropy_sum_ptr + (column - E - 1), total_sum, mask=column == E + 1)
    else:
        next_row = tl.cumsum(total, axis=0) - total + before
        for block in range(first, min(first + BLOCKS, B)):
            token = tl.cast(block, tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
            real_token = token < T
            flag = tl.zeros((BLOCK_T, BLOCK_E), tl.int32)
            for k in range(K):
                chosen = tl.load(expert_ptr + token * K + k, mask=real_token, other=-1)
                flag += (expert[None, :] == chosen[:, None]).to(tl.int32)
            row_of = next_row[None, :] + tl.cumsum(flag, axis=0) - flag
            for k in range(K):
                chosen = tl.load(expert_ptr + token * K + k, mask=real_token, other=-1)
                row = tl.sum(tl.where(expert[None, :] == chosen[:, None], row_of, 0), axis=1).to(tl.int64)
                tl.store(row_ptr + token * K + k, row, mask=real_token)
                tl.store(token_ptr + row, token, mask=real_token)
            next_row += tl.sum(flag, axis=0)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def logit_gradient_kernel(
    dgate_weight_ptr: tl.tensor,
    dprob_ptr: tl.tensor,
    dprob_sum_ptr: tl.tensor,
    dz_sum_ptr: tl.tensor,
    prob_ptr: tl.tensor,
    log_z_ptr: tl.tensor,
    expert_ptr: tl.tensor,
    gate_weight_ptr: tl.tensor,
    dlogit_ptr: tl.tensor,
    T: tl.tensor,
    E: tl.constexpr,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """dlogit [T, E] from the gradients of the gate weights, prob, prob_sum and z_sum, each of which may be None.

    With p the probabilities, w the gate weights, m = sum of the kept p:
    dp_e = dprob_e + dprob_sum_e + [e kept] (dw_e - sum_j dw_j w_j) / m
    dl_e = p_e (dp_e - sum_j p_j dp_j) + 2 dz_sum log_z p_e
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert = tl.arange(0, BLOCK_E)
    real_token = token < T
    mask = real_token[:, None] & (expert < E)[None, :]
    place = token[:, None] * E + expert[None, :]
    prob = tl.load(prob_ptr + place, mask=mask, other=0.0)
    dprob = tl.zeros_like(prob)
    if dprob_ptr is not None:
        dprob += tl.load(dprob_ptr + place, mask=mask, other=0.0)
    if dprob_sum_ptr is not None:
        dprob += tl.load(dprob_sum_ptr + expert, mask=expert < E, other=0.0)[None, :]
    if dgate_weight_ptr is not None:
        kept = tl.zeros_like(prob)
        dkept = tl.zeros_like(prob)
        mean = tl.zeros((BLOCK_T,), tl.float32)
        for k in range(K):
            chosen = tl.load(expert_ptr + token * K + k, mask=real_token, other=-1)
            gate_weight = tl.load(gate_weight_ptr + token * K + k, mask=real_token, other=0.0)
            dgate_weight = tl.load(dgate_weight_ptr + token * K + k, mask=real_token, other=0.0)
            won = expert[None, :] == chosen[:, None]
            kept += tl.where(won, prob, 0.0)
            dkept += tl.where(won, dgate_weight[:, None], 0.0)
            mean += dgate_weight * gate_weight
        # A block may end in padding tokens: their mass is 0, and so must their gradient be.
        mass = tl.where(real_token, tl.sum(kept, axis=1), 1.0)
        # p > 0 marks the kept experts; one whose p underflowed to 0 has no gradient in any case.
        dprob += tl.where(kept > 0.0, (dkept - mean[:, None]) / mass[:, None], 0.0)
    dlogit = prob * (dprob - tl.sum(prob * dprob, axis=1)[:, None])
    if dz_sum_ptr is not None:
        log_z = tl.load(log_z_ptr + token, mask=real_token, other=0.0)
        dlogit += 2.0 * tl.load(dz_sum_ptr) * log_z[:, None] * prob
    tl.store(dlogit_ptr + place, dlogit, mask=mask)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def product_gradient_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    dlogit_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    BLOCKS: tl.tensor,
    E: tl.constexpr,
    PARTS: tl.constexpr,
    WEIGHT_PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """dx = dlogit W [T, D], and a strip's part of dW = dlogit^T x in partial [S, E, D]; either may be None.

    One program owns BLOCK_D columns and BLOCKS blocks of tokens, so that x is read once and dx written once.
    """
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    expert = tl.arange(0, BLOCK_E)
    real_column, real_expert = column < D, expert < E
    w_place = expert[:, None] * D + column[None, :]
    w_mask = real_expert[:, None] & real_column[None, :]
    if dx_ptr is not None:
        w = tl.load(weight_ptr + w_place, mask=w_mask, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_D, BLOCK_E), tl.float32)
    first = tl.program_id(1) * BLOCKS
    for block in range(first, first + BLOCKS):
        token = tl.cast(block, tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        real_token = token < T
        d_mask = real_token[:, None] & real_expert[None, :]
        dlogit = tl.load(dlogit_ptr + token[:, None] * E + expert[None, :], mask=d_mask, other=0.0)
        place = token[:, None] * D + column[None, :]
        mask = real_token[:, None] & real_column[None, :]
        if partial_ptr is not None:
            x = tl.load(x_ptr + place, mask=mask, other=0.0)
            dweight = add_product(dweight, tl.trans(x), dlogit, PARTS)
        if dx_ptr is not None:
            dx = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
            if PARTS == 0:
                dx = add_product(dx, dlogit, w, 0)
            else:
                # dx is rounded to bf16: two parts of either factor, 16 bits, are twice what bf16 can hold.
                high = dlogit.to(tl.bfloat16)
                dx = add_product(dx, high, w, WEIGHT_PARTS)
                dx = add_product(dx, (dlogit - high).to(tl.bfloat16), w, 1)
            tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        own = partial_ptr + tl.program_id(1).to(tl.int64) * E * D
        tl.store(own + w_place, tl.trans(dweight), mask=w_mask)


def launch_forward(x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None) -> tuple[Routing, Tensor]:
    """Route T > 0 tokens in two launches; also returns log_z [T], for the backward pass.

    Args:
        x_TD: [T, D] contiguous, bf16, fp16 or fp32.
        weight_ED: [E, D] contiguous, any of these dtypes.
        top_k: K, between 1 and E.
        noise_TE: [T, E] contiguous, or None.
    """
    (T, D), E, K, device = x_TD.shape, weight_ED.shape[0], top_k, x_TD.device

    def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    block_e = max(LEAST_DOT, triton.next_power_of_2(E))
    block_t = token_block(T, block_e, processor_count(device))
    B = triton.cdiv(T, block_t)
    log_z_T = fresh(T)
    routing = Routing(
        weight_TK=fresh(T, K),
        expert_TK=fresh(T, K, dtype=torch.int64),
        count_E=fresh(E, dtype=torch.int64),
        row_TK=fresh(T, K, dtype=torch.int64),
        token_N=fresh(T * K, dtype=torch.int64),
        prob_TE=fresh(T, E),
        prob_sum_E=fresh(E),
        z_sum=fresh(),
        entropy_sum=fresh(),
    )
    count_BE, sum_BF = fresh(B, E, dtype=torch.int32), fresh(B, E + 2)
    with on_device_of(x_TD):
        chosen = (routing.prob_TE, log_z_T, routing.expert_TK, routing.weight_TK, count_BE, sum_BF)
        parts = parts_of(x_TD, weight_ED)
        block_d = min(128, max(32, 4096 // block_e)) if parts else 32
        choose_kernel[(B,)](
            *(x_TD, weight_ED, noise_TE, *chosen, T, D, E, K, parts),
            *(block_t, block_e, triton.next_power_of_2(K), block_d),
            num_warps=warps_for(block_e),
            num_stages=3,
            **LAUNCH_OPTIONS,
        )
        blocks = triton.cdiv(B, PLACING_PROGRAMS)
        totals = (routing.count_E, routing.prob_sum_E, routing.z_sum, routing.entropy_sum)
        place_kernel[(triton.cdiv(B, blocks) + 1,)](
            *(routing.expert_TK, count_BE, sum_BF, routing.row_TK, routing.token_N, *totals),
            *(T, B, blocks, E, K, block_t, block_e, max(16, 2048 // block_e)),
            num_warps=4,
            **LAUNCH_OPTIONS,
        )
    return routing, log_z_T


def launch_logit_gradient(
    dweight_TK: Tensor | None,
    dprob_TE: Tensor | None,
    dprob_sum_E: Tensor | None,
    dz_sum: Tensor | None,
    prob_TE: Tensor,
    log_z_T: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
) -> Tensor:
    """dlogit [T, E] fp32 from gradients that are contiguous fp32 or None, and what the forward pass wrote."""
    (T, E), K = prob_TE.shape, expert_TK.shape[1]
    dlogit_TE = torch.empty_like(prob_TE)
    block_e = triton.next_power_of_2(E)
    block_t = max(1, 2048 // block_e)
    with on_device_of(prob_TE):
        logit_gradient_kernel[(triton.cdiv(T, block_t),)](
            *(dweight_TK, dprob_TE, dprob_sum_E, dz_sum, prob_TE, log_z_T, expert_TK, weight_TK, dlogit_TE),
            *(T, E, K, block_t, block_e),
            num_warps=4,
            **LAUNCH_OPTIONS,
        )
    return dlogit_TE


def launch_product_gradient(
    dlogit_TE: Tensor, x_TD: Tensor, weight_ED: Tensor, need_dx: bool, need_dweight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx [T, D] and dW [E, D] in the dtypes of x and W, each if needed, in one launch and one sum."""
    (T, D), E = x_TD.shape, weight_ED.shape[0]
    block_e = max(LEAST_DOT, triton.next_power_of_2(E))
    split = parts_of(x_TD, weight_ED) > 0
    block_t = min(64, max(16, 4096 // block_e))
    block_d = min(128, max(32, 8192 // block_e)) if split else 32
    columns = triton.cdiv(D, block_d)
    B = triton.cdiv(T, block_t)
    blocks = triton.cdiv(B, max(1, 4 * processor_count(x_TD.device) // columns))
    strips = triton.cdiv(B, blocks)
    dx_TD = torch.empty_like(x_TD) if need_dx else None
    partial_SED = None
    if need_dweight:
        partial_SED = torch.empty(strips, E, D, dtype=torch.float32, device=x_TD.device)
    with on_device_of(x_TD):
        product_gradient_kernel[(columns, strips)](
            *(x_TD, weight_ED, dlogit_TE, dx_TD, partial_SED, T, D, blocks, E),
            *(3 if split else 0, 1 if weight_ED.dtype == torch.bfloat16 else 2),
            *(block_t, block_e, block_d),
            num_warps=warps_for(block_e),
            num_stages=2,
            **LAUNCH_OPTIONS,
        )
    return dx_TD, None if partial_SED is None else partial_SED.sum(0).to(weight_ED.dtype)


LEAST_DOT = 16
"""Smallest size of each side of a product in Triton; fewer experts are padded to it."""
PLACING_PROGRAMS = 256
"""Most programs of place_kernel; bounds how much they read, since each of them reads all block counts."""


def token_block(T: int, block_e: int, processors: int) -> int:
    """Tokens per program: as many as leave a program for each multiprocessor, and fit in registers."""
    most = max(16, min(64, 4096 // block_e))
    block = 16
    while block < most and triton.cdiv(T, 2 * block) >= processors:
        block *= 2
    return block


def warps_for(block_e: int) -> int:
    """Warps of a product: the tiles of many experts need the registers of eight warps."""
    return 4 if block_e < 64 else 8


def parts_of(x_TD: Tensor, weight_ED: Tensor) -> int:
    """Number of bf16 parts of the weight in the product with x; 0 means fp32 arithmetic."""
    if x_TD.dtype != torch.bfloat16:
        return 0
    return 1 if weight_ED.dtype == torch.bfloat16 else 3
