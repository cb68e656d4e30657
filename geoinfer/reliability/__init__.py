"""How often the truth lies within the radius, and how well the score orders predictions."""
