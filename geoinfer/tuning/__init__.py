"""Choosing the way of answering on validation data."""
