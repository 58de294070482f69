"""Keys and values kept between turns: lent to a turn, within a byte budget, least recently used out first."""

from __future__ import annotations

from collections.abc import Sequence

from helix_runners.engine.kv import BLOCK_TOKENS, Geometry, KeyValues


class _Held:
    """What is kept of one session. While it is lent, `charged_bytes` is all that the turn may need."""

    __slots__ = ("adapter", "charged_bytes", "forgotten", "kv", "lent", "tokens")

    def __init__(self, kv: KeyValues) -> None:
        self.kv = kv
        self.adapter: str | None = None
        """Keys and values of one adapter are wrong for another."""
        self.tokens: list[int] = []
        """The tokens whose keys and values are in `kv`, in order."""
        self.charged_bytes = 0
        self.lent = False
        self.forgotten = False


class SessionCache:
    """Owns the keys and values of all sessions; what is charged never exceeds the budget."""

    def __init__(self, geometry: Geometry, budget_bytes: int, *, block_tokens: int = BLOCK_TOKENS) -> None:
        self._geometry = geometry
        self._block_tokens = block_tokens
        self._held: dict[str, _Held] = {}
        """Least recently used first."""
        self.budget_bytes = budget_bytes
        self.evictions = 0

    def __len__(self) -> int:
        """Sessions of which something is in memory."""
        return sum(1 for held in self._held.values() if held.kv.length)

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(held.kv.nbytes for held in self._held.values())

    def bytes_for(self, tokens: int) -> int:
        """Bytes that a turn of `tokens` in all is charged."""
        return KeyValues(self._geometry, block_tokens=self._block_tokens).bytes_for(tokens)

    def lend(
        self, session: str, prompt: Sequence[int], total_tokens: int, adapter: str | None = None
    ) -> KeyValues | None:
        """Keys and values that hold the longest known beginning of `prompt`, at most all but one token.

        Room for `total_tokens` is charged, evicting idle sessions if need be. None if there is not enough
        room while others are lent. The session must not be lent already.
        """
        held = self._held.get(session) or _Held(KeyValues(self._geometry, block_tokens=self._block_tokens))
        # what it has is counted in any case: it may be more than this turn needs
        need = max(self.bytes_for(total_tokens), held.kv.nbytes)
        if not self._make_room(need, session):
            return None
        held.kv.crop(common_prefix(held.tokens, prompt[:-1]) if held.adapter == adapter else 0)
        held.adapter = adapter
        held.tokens = []
        held.charged_bytes = need
        held.lent = True
        self._held[session] = held
        return held.kv

    def give_back(self, session: str, tokens: Sequence[int]) -> None:
        """The turn is over; `tokens` are at least those that the keys and values hold."""
        held = self._held.pop(session)
        if held.forgotten or held.kv.length == 0:
            held.kv.drop()
            return
        held.tokens = list(tokens[: held.kv.length])
        held.charged_bytes = held.kv.nbytes
        held.lent = False
        self._held[session] = held

    def forget(self, session: str) -> None:
        """Drop what is kept of `session`, at its return if it is lent; harmless if there is nothing."""
        held = self._held.get(session)
        if held is None:
            return
        if held.lent:
            held.forgotten = True
            return
        held.kv.drop()
        del self._held[session]

    def _make_room(self, need: int, session: str) -> bool:
        """Evict idle sessions until `need` fits, except `session` itself."""
        charged = sum(held.charged_bytes for name, held in self._held.items() if name != session)
        idle = [name for name, held in self._held.items() if not held.lent and name != session]
        if charged - sum(self._held[name].charged_bytes for name in idle) + need > self.budget_bytes:
            return False  # evicting would not help: keep what is warm
        for name in idle:
            if charged + need <= self.budget_bytes:
                break
            held = self._held.pop(name)
            charged -= held.charged_bytes
            held.kv.drop()
            self.evictions += 1
        return True


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
