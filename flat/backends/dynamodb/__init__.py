"""A store in a table of Amazon DynamoDB."""
