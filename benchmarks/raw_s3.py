"""What S3 does through its client alone: numbered objects, one after the other, each created by one that tries."""

from __future__ import annotations

from typing import Any

from aiobotocore.session import get_session

from benchmarks.harness import Meter


async def by_hand(endpoint: str, objects: int, body: bytes, meter: Meter) -> None:
    """aiobotocore with the session that it has by itself. What is ready at once is one object."""
    context: Any = get_session().create_client("s3", region_name="us-east-1", endpoint_url=endpoint)
    async with context as client:
        await client.create_bucket(Bucket="raw")
        with meter:
            for number in range(objects):
                await client.put_object(Bucket="raw", Key=f"{number:020}", Body=body, IfNoneMatch="*")
