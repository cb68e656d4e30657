"""Pictures of an evaluation: maps of errors, and what errors go with. Matplotlib is imported when one is drawn."""

from geoinfer.evaluate.figures.draw import Figure, draw_figures

__all__ = ["Figure", "draw_figures"]
