import unittest

from slugs import slugify


class Slugs(unittest.TestCase):
    def test_blanks_become_dashes(self):
        self.assertEqual(slugify("A Walk in Brno"), "a-walk-in-brno")

    def test_punctuation_is_dropped(self):
        self.assertEqual(slugify("Why, oh why?"), "why-oh-why")

    def test_accents_are_dropped(self):
        self.assertEqual(slugify("Crème brûlée"), "creme-brulee")


if __name__ == "__main__":
    unittest.main()
