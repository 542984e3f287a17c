"""Listings of runs read an index in the order of ids, however many runs a cohort holds"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_runs_cohort_run_id", "runs", ["cohort", "run_id"])
    op.create_index("ix_runs_cohort_status_run_id", "runs", ["cohort", "status", "run_id"])
    op.drop_index("ix_runs_cohort_status", table_name="runs")


def downgrade() -> None:
    op.create_index("ix_runs_cohort_status", "runs", ["cohort", "status"])
    op.drop_index("ix_runs_cohort_status_run_id", table_name="runs")
    op.drop_index("ix_runs_cohort_run_id", table_name="runs")
