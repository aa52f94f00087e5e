"""The composition root: from the settings to a running system. Only `backends.py` here names a concrete backend."""
