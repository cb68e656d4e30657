"""Embedders: a timm backbone, a two-layer head that answers with unit embeddings, and coordinates where asked for."""

from trainer.models.backbones import Backbone, create_backbone
from trainer.models.embedder import GeoModel, create_model
from trainer.models.freezing import freeze

__all__ = ["Backbone", "GeoModel", "create_backbone", "create_model", "freeze"]
