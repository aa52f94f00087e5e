"""Objects in a bucket of an S3 service."""

from sensorkeep.object_store.s3.store import S3ObjectStore

__all__ = ["S3ObjectStore"]
