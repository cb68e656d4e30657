"""The research layer: models, losses and training recipes.

Torch and timm are at home here and nowhere below: `geoinfer` never imports this package. It runs from a checkout
(installed editable) and is not part of the wheel, where a top-level `trainer` would overwrite another package.
"""
