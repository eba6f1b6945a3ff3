"""Choosing tokens on vocabulary shards: every rank ends up with the same tokens, and no rank sees all logits.

The order is vLLM's, as its documentation of ``vllm.v1.sample.sampler`` gives it: allowed ids (masks, grammars) → stop
ids banned before min tokens → logit bias → repetition, frequency and presence penalties → greedy rows choose here →
temperature → min-p → top-k → top-p → draw. Log probabilities are raw, vLLM's default as well: those of the model's own
distribution. A draw is the largest of logit plus Gumbel noise, which needs no normaliser and no generator.

Integer counts (shards.py) and hashed noise (noise.py) make a token independent of sharding, gear and neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftruntime.models.logit_edits import edited
from shiftruntime.models.logprobs import likeliest, log_normalisers, token_logits
from shiftruntime.models.logprobs import token_logprobs as token_logprobs
from shiftruntime.models.noise import bases, gumbel
from shiftruntime.models.sample import Likeliest, Sample
from shiftruntime.models.shards import Functions, Gatherer, check_peaks, gather
from shiftruntime.models.truncation import floors

_NOISE_ELEMENTS = 1 << 18  # noise made at once


@dataclass(frozen=True)
class Sampled:
    """One entry per row, the same on all ranks."""

    tokens: Tensor  # [m] int64
    logprobs: Tensor  # [m] float64, NaN where a row does not want it
    likeliest: tuple[Likeliest, ...]  # empty where a row wants none


def sample(local_logits: Tensor, samples: Sequence[Sample], comm: Gatherer, ops: Functions) -> Sampled:
    """local_logits [m, padded vocabulary / P], one row per entry of ``samples``.

    Raises RankError, on all ranks alike, for a row with NaN or infinite logits and for one without a token to choose.
    """
    assert local_logits.shape[0] == len(samples), f"{local_logits.shape[0]} rows of logits, {len(samples)} samples"
    if not samples:
        return Sampled(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64), ())
    first_id = comm.rank * local_logits.shape[1]
    best, columns = local_logits.max(1)  # of this shard, the lowest id among equals
    best = best.to(torch.float64)
    edits = [i for i, s in enumerate(samples) if s.edits_logits]
    changed = edited(local_logits[edits], [samples[i] for i in edits], first_id) if edits else None
    if changed is not None:
        raw = best[edits]
        best[edits], columns[edits] = changed.max(1)
        best[edits] = torch.where(raw < float("inf"), best[edits], raw)  # no mask hides NaN
    scores = gather(best, comm)  # [P, m]
    peaks = scores.amax(0)
    check_peaks(peaks)
    noisy = [i for i, s in enumerate(samples) if s.temperature > 0]
    if noisy:
        logits = local_logits[noisy].to(torch.float64)
        for place, row in enumerate(noisy):
            if changed is not None and row in edits:
                logits[place] = changed[edits.index(row)]
        drawn = _draw(logits, peaks[noisy], [samples[i] for i in noisy], comm, ops)
        best[noisy], columns[noisy] = drawn.max(1)
        scores = gather(best, comm)
    tokens = gather(columns + first_id, comm).masked_fill(scores != scores.amax(0), torch.iinfo(torch.int64).max)
    return _with_logprobs(local_logits, samples, tokens.amin(0), comm, ops)


def _draw(logits: Tensor, peaks: Tensor, samples: Sequence[Sample], comm: Gatherer, ops: Functions) -> Tensor:
    """logits [m, width] float64, which are used up → logits / temperature + Gumbel noise, -inf where cut off."""
    temperature = torch.tensor([s.temperature for s in samples], dtype=torch.float64)
    logits /= temperature[:, None]
    width, first_id = logits.shape[1], comm.rank * logits.shape[1]
    base = bases(samples)
    cut = [i for i, s in enumerate(samples) if s.cuts]
    if cut:
        floor = floors(logits[cut], (peaks / temperature)[cut], [samples[i] for i in cut], comm, ops)
        for i, least in zip(cut, floor.tolist(), strict=True):
            kept = (logits[i] >= least).nonzero()[:, 0]
            scores = logits[i, kept] + gumbel(kept + first_id, base[i], ops)
            logits[i] = float("-inf")
            logits[i, kept] = scores
    whole = [i for i, s in enumerate(samples) if not s.cuts]
    ids = torch.arange(first_id, first_id + width)
    step = max(1, _NOISE_ELEMENTS // width)
    for start in range(0, len(whole), step):
        rows = whole[start : start + step]
        for i, noise in zip(rows, gumbel(ids, base[rows][:, None], ops), strict=True):
            logits[i] += noise
    return logits


def _with_logprobs(
    local_logits: Tensor, samples: Sequence[Sample], tokens: Tensor, comm: Gatherer, ops: Functions
) -> Sampled:
    logprobs = torch.full((len(samples),), float("nan"), dtype=torch.float64)
    alternatives: list[Likeliest] = [((), ())] * len(samples)
    wanted = [i for i, s in enumerate(samples) if s.logprob or s.top_logprobs]
    if wanted:
        logits = local_logits[wanted]
        normalisers = log_normalisers(logits, comm, ops)
        logprobs[wanted] = token_logits(logits, tokens[wanted], comm) - normalisers
        counts = [samples[i].top_logprobs for i in wanted]
        if any(counts):
            for i, found in zip(wanted, likeliest(logits, counts, normalisers, comm), strict=True):
                alternatives[i] = found
    return Sampled(tokens, logprobs, tuple(alternatives))
