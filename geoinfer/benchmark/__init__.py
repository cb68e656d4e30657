"""How fast this machine answers, and what holds it back: measured on real files, told in one sentence."""
