"""Guidelines that refine themselves: why each version was stored, what was predicted of each run, and the refits asked for

Columns are added and dropped in place, as in the revisions before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

WHOLE_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("guidelines", sa.Column("outcome", sa.Text(), nullable=False, server_default="newest"))
    op.add_column("guidelines", sa.Column("report", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("guidelines", sa.Column("rows_hash", sa.Text(), nullable=True))
    op.add_column("guidelines", sa.Column("is_pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("guidelines", sa.Column("activated_at", sa.Text(), nullable=True))
    op.create_table(
        "predictions",
        sa.Column("cohort", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("predictor", sa.Text(), nullable=False),
        sa.Column("guideline_id", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Text(), nullable=False),
        sa.Column("design", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("control", sa.Text(), nullable=False),
        sa.Column("predicted", sa.Double(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("growth_factor", sa.Double(), nullable=True),
        sa.Column("growth_timing_tokens", sa.Double(), nullable=True),
        sa.Column("observed", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("void_reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("observed_at", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["cohort"], ["cohorts.name"], name=op.f("fk_predictions_cohort_cohorts")),
        sa.PrimaryKeyConstraint("cohort", "run_id", "predictor", "guideline_id", name=op.f("pk_predictions")),
    )
    op.create_index("ix_predictions_cohort_created_at", "predictions", ["cohort", "created_at"])
    op.create_table(
        "refits",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("cohort", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("guideline_id", sa.Text(), nullable=True),
        sa.Column("num_attempts", WHOLE_NUMBER, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Text(), nullable=True),
        sa.Column("finished_at", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["cohort"], ["cohorts.name"], name=op.f("fk_refits_cohort_cohorts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refits")),
    )
    op.create_index("ix_refits_cohort_id", "refits", ["cohort", "id"])
    op.create_index("ix_refits_owner_state", "refits", ["owner", "state"])


def downgrade() -> None:
    for name in ("ix_refits_owner_state", "ix_refits_cohort_id"):
        op.drop_index(name, table_name="refits")
    op.drop_table("refits")
    op.drop_index("ix_predictions_cohort_created_at", table_name="predictions")
    op.drop_table("predictions")
    for name in ("activated_at", "is_pinned", "rows_hash", "report", "outcome"):
        op.drop_column("guidelines", name)
