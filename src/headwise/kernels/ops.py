"""The operations that backends compute. Their arguments have been checked before (`headwise.attention`).

Queries are `[h, g, t, d]`, keys `[h, n, d]`, values `[h, n, e]`; the t queries are the last t of the n keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.forms import Attended, Codes, Scoring, Where
from headwise.kernels.dispatch import Op
from headwise.kernels.packed import Packed
from headwise.kernels.request import PagesRequest, PartsRequest, PoolRequest, Prepared, Request, Writer

attend: Op[[Request], Attended] = Op("attend")
attend_pages: Op[[PagesRequest], Attended] = Op("attend_pages")
READ_OUT = "decoded"  # the backend of it that reads pages out as tensors; others read them in place
# The same as a call that is made again in every step of decoding, while the pages lie where they do.
prepare_pages: Op[[PartsRequest], Prepared] = Op("prepare_pages")

# (q, k, where, scoring, first, lse): probability that each key got from the queries from `first` on, `[h, n]`; lse: of
# those queries, `[h, g, t]`, where it is known.
column_mass: Op[[Tensor, Tensor, Where, Scoring, int, Tensor | None], Tensor] = Op("column_mass")
# (q, k, where, scoring): highest probability that each key got of a query of each head, `[h, g, n]`.
column_peaks: Op[[Tensor, Tensor, Where, Scoring], Tensor] = Op("column_peaks")
# (q, k, scoring): causal probability that each key got of each query position, summed over the group, `[h, t, n]`.
group_mass: Op[[Tensor, Tensor, Scoring], Tensor] = Op("group_mass")
# (q, k, where, scoring): log-sum-exp of each query's scores, and the entropy of its probabilities, `[h, g, t]`.
row_lse: Op[[Tensor, Tensor, Where, Scoring], Tensor] = Op("row_lse")
row_entropy: Op[[Tensor, Tensor, Where, Scoring], Tensor] = Op("row_entropy")
# (q, k, scoring, block, below): highest causal score less `below [h, g, t]` of each pair of blocks, `[h, g, q blocks, k
# blocks]`.
block_maxima: Op[[Tensor, Tensor, Scoring, int, Tensor | None], Tensor] = Op("block_maxima")
# (q, codes, scoring, block, below): the same of estimated scores, of the group together, `[h, q blocks, k blocks]`.
estimated_maxima: Op[[Tensor, Codes, Scoring, int, Tensor], Tensor] = Op("estimated_maxima")
# (q, vectors [h, n, d]): the largest product of any query with each vector, `[h, n]`.
best_scores: Op[[Tensor, Tensor], Tensor] = Op("best_scores")

# (scores [h, n], counts, protect [h, n], size, stored): see `choose_blocks`.
choose_blocks: Op[[Tensor, Tensor | int, Tensor, int, int], tuple[Tensor, ...]] = Op("choose_blocks")

# Tokens to come, written to a pool by a call that is made again while the pool lies where it does.
prepare_append: Op[[PoolRequest], Writer] = Op("prepare_append")

# (x [..., n, width], bits, group, with a minimum): planes of whole numbers; (planes, width, group, dtype): back.
encode: Op[[Tensor, int, int, bool], dict[str, Tensor]] = Op("encode")
decode: Op[[dict[str, Tensor], int, int, torch.dtype], Tensor] = Op("decode")

# (x [..., inner], weight [outer, inner], packed or not, bias [outer] or None): `[..., outer]`.
linear: Op[[Tensor, Tensor | Packed, Tensor | None], Tensor] = Op("linear")
