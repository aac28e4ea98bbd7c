"""One Wan transformer block as arithmetic: linears in every precision, attention. Knows no file and no plan."""
