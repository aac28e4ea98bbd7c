"""One Wan transformer block as arithmetic: linears in every precision, attention, kernels. Knows no file and no
plan."""
