"""Titles as parts of addresses."""


def slugify(title: str) -> str:
    """`A Walk in Brno` becomes `a-walk-in-brno`."""
    return title.lower().replace(" ", "-")
