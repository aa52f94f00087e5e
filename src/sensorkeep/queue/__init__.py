"""The claim queue: claims wait here, durably and in order, until the worker has settled them."""
