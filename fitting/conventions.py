"""What every room of `fitting` means by a tie, an interval, the same size and the same growth factor."""

from __future__ import annotations

# Losses this close in nats are a tie: neither side counts as better, in scores as in decisions.
TIE_NATS = 0.003
# Two-sided coverage of every interval that is reported.
INTERVAL_LEVEL = 0.80
# Two models whose parameters differ by less than this share are one size.
SAME_SIZE = 1e-3
# Two growth factors this close are one: layer counts that do not divide give 4.07 or 4.29 where 4 was meant.
SAME_FACTOR = 0.1
# With fewer pairs borrowed growth terms say more than folds of a cohort's own could.
PAIRS_TO_STAND_ALONE = 10
