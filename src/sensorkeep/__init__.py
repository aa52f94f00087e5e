"""Sensorkeep keeps every sensor reading."""

__version__ = "0.1.0"
