"""The errors a user of ``fitting`` can mend.

ValueError
└── InputError            one field is wrong: ``field`` names it, the message names the limit and the mend
"""

from __future__ import annotations


class InputError(ValueError):
    """A value from outside that cannot be used.

    Args:
        field: name of the field or column, as the user wrote it.
        problem: what is wrong with it and the limit it breaks.
        mend: what to do instead.
    """

    def __init__(self, field: str, problem: str, mend: str) -> None:
        super().__init__(f"{field} {problem}; {mend}")
        self.field = field
        self.problem = problem
        self.mend = mend
