"""Runs that come in: what was wasted, where a run is from, and by what a second coming is known

Columns are added and dropped in place: Alembic's batch mode would copy the table and drop the old one, and SQLite then
deletes every point that hangs on it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UNIQUE = ("content_hash", "request_key")


def upgrade() -> None:
    op.add_column("runs", sa.Column("wasted_flops", sa.Double(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("provenance", sa.Text(), nullable=False, server_default=""))
    for name in ("content_hash", "request_key", "request_hash"):
        op.add_column("runs", sa.Column(name, sa.Text(), nullable=True))
    for name in _UNIQUE:
        op.create_index(f"ix_runs_{name}", "runs", [name], unique=True)


def downgrade() -> None:
    for name in _UNIQUE:
        op.drop_index(f"ix_runs_{name}", table_name="runs")
    for name in ("request_hash", "request_key", "content_hash", "provenance", "wasted_flops"):
        op.drop_column("runs", name)
