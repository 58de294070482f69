"""Who computes how many tokens in a step: decodes first, then prefills in equal shares."""

from __future__ import annotations

from collections.abc import Sequence


def share_out(needs: Sequence[int], budget_tokens: int) -> list[int]:
    """Tokens granted to each need, in the order of `needs`; the sum is at most `budget_tokens`.

    A need of 1 (a decode) comes before all others, in order. What is left is divided equally among the
    rest; what a short prompt does not use goes to the longer ones.
    """
    granted = [0] * len(needs)
    left = budget_tokens
    # shortest first, so that what they leave is known when the longer ones are served; ties keep their order
    by_need = sorted(range(len(needs)), key=lambda index: needs[index])
    decodes = [index for index in by_need if needs[index] == 1]
    prefills = [index for index in by_need if needs[index] > 1]
    for index in decodes[:left]:
        granted[index] = 1
        left -= 1
    for served, index in enumerate(prefills):
        share = -(-left // (len(prefills) - served))
        granted[index] = min(needs[index], share)
        left -= granted[index]
    return granted
