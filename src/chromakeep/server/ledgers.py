"""Several ledgers as one."""

from __future__ import annotations

from chromakeep.server.guard import Account, Ledger


class Several:
    """Tells each of its ledgers, in their order."""

    def __init__(self, ledgers: tuple[Ledger, ...]) -> None:
        self._begun = tuple(one.begun for one in ledgers)
        self._ended = tuple(one.ended for one in ledgers)

    def begun(self, account: Account) -> None:
        """A request has come."""
        for told in self._begun:
            told(account)

    def ended(self, account: Account, now: float) -> None:
        """It is over."""
        for told in self._ended:
            told(account, now)


def several(*ledgers: Ledger | None) -> Ledger | None:
    """One ledger that is all of these; None where there is none."""
    kept = tuple(one for one in ledgers if one is not None)
    return None if not kept else kept[0] if len(kept) == 1 else Several(kept)
