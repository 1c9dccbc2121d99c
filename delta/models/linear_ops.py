"""Which PyTorch operations are linear in the values that depend on a record, given what else they take.

Linear means: two parties who hold additive shares of those values and know the rest get shares of the result
without a comparison or a product of two shared values. Names are of the ATen schema, without a trailing `_`
of an in-place form. An operation that is in none of these sets is not taken for linear.
"""

from __future__ import annotations

__all__ = ["BILINEAR", "CHOOSING", "LINEAR", "NORMALISING", "SHAPE_ONLY", "WEIGHTED"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


WEIGHTED = _names(
    "convolution mm addmm bmm baddbmm addbmm mv addmv linear matmul mkldnn_convolution cudnn_convolution"
)
"""Products with weights: a network's linear layers."""

BILINEAR: dict[str, tuple[str, ...]] = {
    "convolution": ("input", "weight"),
    "mkldnn_convolution": ("self", "weight"),
    "cudnn_convolution": ("self", "weight"),
    "mm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "bmm": ("self", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "dot": ("self", "tensor"),
    "linear": ("input", "weight"),
    "matmul": ("self", "other"),
    "mul": ("self", "other"),
    "addcmul": ("tensor1", "tensor2"),
    "lerp": ("end", "weight"),
}
"""Linear in each of two arguments, by name: linear while one of them alone depends on a record."""

CHOOSING: dict[str, str] = {
    "index": "indices",
    "index_select": "index",
    "gather": "index",
    "scatter": "index",
    "scatter_add": "index",
    "index_put": "indices",
    "index_add": "index",
    "index_copy": "index",
    "masked_fill": "mask",
    "masked_select": "mask",
    "where": "condition",
    "take": "index",
    "embedding": "indices",
    "div": "other",
}
"""Linear while one argument, by name, does not depend on a record."""

NORMALISING = _names(
    "native_batch_norm cudnn_batch_norm batch_norm _native_batch_norm_legit _batch_norm_with_update "
    "_batch_norm_no_update _native_batch_norm_legit_no_training"
)
"""Batch normalisations: linear with stored statistics, not with those of the batch."""

SHAPE_ONLY = _names(
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty new_zeros new_ones "
    "new_full new_empty_strided sym_size sym_numel"
)
"""They read a tensor's shape and not its values: their result depends on no record."""

LINEAR = _names(
    "add sub rsub neg sum mean nansum cumsum trace copy clone detach alias lift lift_fresh contiguous positive "
    "_to_copy to avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa view _unsafe_view _reshape_alias _reshape_copy reshape "
    "as_strided permute transpose t expand slice select squeeze unsqueeze flatten unflatten narrow split "
    "split_with_sizes unsafe_split unsafe_chunk chunk unbind unfold im2col col2im cat stack repeat "
    "repeat_interleave roll flip rot90 "
    "diagonal diag_embed diag tril triu constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle "
    "slice_scatter select_scatter zero fill movedim swapaxes view_as_real resize"
)
"""Linear in all of their arguments, or mere movement of values."""
