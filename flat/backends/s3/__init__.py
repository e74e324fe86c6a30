"""A store in a bucket of Amazon S3."""
