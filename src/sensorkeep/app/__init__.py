"""The composition root: the only folder that names a concrete backend (`backends.py`)."""

from sensorkeep.app.accounts import open_administration
from sensorkeep.app.application import Application

__all__ = ["Application", "open_administration"]
