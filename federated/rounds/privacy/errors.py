"""What can go wrong when updates are masked."""

from __future__ import annotations

from federated.errors import FederatedError


class MaskError(FederatedError):
    """A masked sum cannot be made, or must not be.

    Args:
        reason: `bad_share`, `few_shares`, `wrong_shares`: shares that give no secret; `bad_roster`,
            `bad_maskset`, `bad_set`, `out_of_turn`, `other_plan`, `revealed`, `spent`: what a
            member refuses; `below_threshold`, `unfinished`: the attempt ends; `out_of_range`: a sum
            that honest members cannot have made.
        message: what is wrong, for the log.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
