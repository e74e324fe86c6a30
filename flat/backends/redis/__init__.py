"""A store in Redis, or in whatever speaks its protocol."""
