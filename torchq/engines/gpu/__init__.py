"""The fused engine on a GPU: whole episodes of a run, or whole steps of a batch, as Triton kernels."""
