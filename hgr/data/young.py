"""Words for the young, and words that may stand for them. A text with one is never put beside another one by chance, as
that may be sexual."""

import re

YOUNG = re.compile(
    r"\b(young|youth|child|kid|bab(y|ies)|infant|toddler|teen|girl|boy|minor|school|pupil|student|son\b|daughter|loli|shota|"
    r"juvenile|adolescent|little|playground|nursery|kindergarten|toy|junior|innocen|virgin|petite|\dgirl|\dboy|grand(son|"
    r"daughter|child|kid)|niece|nephew|orphan|cub\b|scout|mini\b|tiny|small|uniform|class|college|prom\b|pigtail|chibi|kawaii)",
    re.IGNORECASE,
)
