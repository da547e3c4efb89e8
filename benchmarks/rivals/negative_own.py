"""A negative prompt for each prompt."""

from __future__ import annotations

from hgr.demo.captions import Caption

from .method import Guide, Method, guided


class NegativeOwn(Method):
    """`n + g (p - n)`, n for the words of those concepts that the prompt really has: it is told the truth. A clean
    prompt has none, so its n is the empty prompt's."""

    label = "negative prompt, told which concepts"

    def guide(self, captions: list[Caption]) -> Guide:
        own = [", ".join(self.given.words[name] for name in caption.concepts) for caption in captions]
        return guided(self.pipe, self.encode([c.text for c in captions]), self.encode(own), cfg=self.given.cfg)
