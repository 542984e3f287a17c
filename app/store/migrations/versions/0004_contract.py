"""Kept answers and the jobs that follow them, corrections and removals of runs, and requests that came with a key"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _text(*names: str, nullable: bool = False) -> list[sa.Column]:
    return [sa.Column(name, sa.Text(), nullable=nullable) for name in names]


def upgrade() -> None:
    op.create_table(
        "recommendations",
        *_text("id"),
        *_text("cohort", nullable=True),
        *_text("guideline_id"),
        sa.Column("guideline_version", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        *_text("decision", "question", "answer", "created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_recommendations"),
    )
    op.create_table(
        "removed_runs",
        *_text("run_id", "cohort", "name", "source", "reason"),
        *_text("content_hash", "request_key", nullable=True),
        *_text("removed_at"),
        sa.PrimaryKeyConstraint("run_id", name="pk_removed_runs"),
    )
    for name in ("content_hash", "request_key"):
        op.create_index(f"ix_removed_runs_{name}", "removed_runs", [name])
    op.create_table(
        "requests",
        *_text("route", "request_key", "request_hash", "answer", "created_at"),
        sa.PrimaryKeyConstraint("route", "request_key", name="pk_requests"),
    )
    # In place: a table that is copied loses what hangs on it.
    op.add_column("runs", sa.Column("corrections", sa.Text(), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("recommendation_id", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "recommendation_id")
    op.drop_column("runs", "corrections")
    for table in ("requests", "removed_runs", "recommendations"):
        op.drop_table(table)
