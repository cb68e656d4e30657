"""How a model runs fastest on this machine, found out by trying."""
