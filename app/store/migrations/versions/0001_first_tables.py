"""The first tables: cohorts, runs, points, jobs, job events, guidelines"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# 64 bits everywhere: SQLite's INTEGER has them, PostgreSQL's has 32.
WHOLE_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "cohorts",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("recipe_hash", sa.Text(), nullable=False),
        sa.Column("decision_metric", sa.Text(), nullable=False),
        sa.Column("decision_dataset", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_cohorts")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("cohort", sa.Text(), nullable=True),
        sa.Column("control_run_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("wish", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("priority", WHOLE_NUMBER, nullable=False),
        sa.Column("run_dir", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("request_key", sa.Text(), nullable=True),
        sa.Column("request_hash", sa.Text(), nullable=True),
        sa.Column("num_attempts", WHOLE_NUMBER, nullable=False),
        sa.Column("num_deaths", WHOLE_NUMBER, nullable=False),
        sa.Column("pid", WHOLE_NUMBER, nullable=True),
        sa.Column("process_started_at", sa.Double(), nullable=True),
        sa.Column("metrics_offset", sa.BigInteger(), nullable=False),
        sa.Column("events_offset", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Text(), nullable=True),
        sa.Column("finished_at", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("request_key", "role", name=op.f("uq_jobs_request_key_role")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_state_priority_id"), ["state", "priority", "id"], unique=False)

    op.create_table(
        "guidelines",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("cohort", sa.Text(), nullable=False),
        sa.Column("version", WHOLE_NUMBER, nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("num_runs", WHOLE_NUMBER, nullable=False),
        sa.Column("data_hash", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["cohort"], ["cohorts.name"], name=op.f("fk_guidelines_cohort_cohorts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_guidelines")),
        sa.UniqueConstraint("cohort", "version", name=op.f("uq_guidelines_cohort_version")),
    )
    op.create_table(
        "job_events",
        sa.Column("id", WHOLE_NUMBER, autoincrement=True, nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("time", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
    )
    with op.batch_alter_table("job_events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_job_events_job_id_id"), ["job_id", "id"], unique=False)

    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("cohort", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("target_params", sa.Double(), nullable=False),
        sa.Column("num_target_layers", WHOLE_NUMBER, nullable=True),
        sa.Column("hidden_size", WHOLE_NUMBER, nullable=True),
        sa.Column("num_heads", WHOLE_NUMBER, nullable=True),
        sa.Column("num_kv_heads", WHOLE_NUMBER, nullable=True),
        sa.Column("intermediate_size", WHOLE_NUMBER, nullable=True),
        sa.Column("vocab_size", WHOLE_NUMBER, nullable=True),
        sa.Column("context_length", WHOLE_NUMBER, nullable=True),
        sa.Column("base_params", sa.Double(), nullable=True),
        sa.Column("num_base_layers", WHOLE_NUMBER, nullable=True),
        sa.Column("growth_factor", sa.Double(), nullable=False),
        sa.Column("growth_timing_tokens", sa.Double(), nullable=False),
        sa.Column("grown_tokens", sa.Double(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=True),
        sa.Column("order", sa.Text(), nullable=True),
        sa.Column("optimizer", sa.Text(), nullable=True),
        sa.Column("optimizer_state_policy", sa.Text(), nullable=True),
        sa.Column("peak_lr", sa.Double(), nullable=True),
        sa.Column("base_peak_lr", sa.Double(), nullable=True),
        sa.Column("lr_selection", sa.Text(), nullable=True),
        sa.Column("schedule", sa.Text(), nullable=True),
        sa.Column("warmup_tokens", sa.Double(), nullable=True),
        sa.Column("planned_tokens", sa.Double(), nullable=True),
        sa.Column("decay_tokens", sa.Double(), nullable=True),
        sa.Column("is_final", sa.Boolean(), nullable=False),
        sa.Column("batch_tokens", sa.Double(), nullable=True),
        sa.Column("tokenizer", sa.Text(), nullable=True),
        sa.Column("corpus", sa.Text(), nullable=True),
        sa.Column("unique_tokens", sa.Double(), nullable=True),
        sa.Column("init_seed", WHOLE_NUMBER, nullable=True),
        sa.Column("data_seed", WHOLE_NUMBER, nullable=True),
        sa.Column("trunk_id", sa.Text(), nullable=True),
        sa.Column("control_id", sa.Text(), nullable=True),
        sa.Column("parent_run_id", sa.Text(), nullable=True),
        sa.Column("base_flops_per_token", sa.Double(), nullable=True),
        sa.Column("target_flops_per_token", sa.Double(), nullable=True),
        sa.Column("compute_flops", sa.Double(), nullable=True),
        sa.Column("final_loss", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("engine_numerics_version", WHOLE_NUMBER, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["cohort"], ["cohorts.name"], name=op.f("fk_runs_cohort_cohorts")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_runs")),
    )
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_runs_cohort_status"), ["cohort", "status"], unique=False)

    op.create_table(
        "points",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("seq", WHOLE_NUMBER, nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("compute_flops", sa.Double(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("time", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_points_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("pk_points")),
    )


def downgrade() -> None:
    op.drop_table("points")
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_runs_cohort_status"))

    op.drop_table("runs")
    with op.batch_alter_table("job_events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_job_events_job_id_id"))

    op.drop_table("job_events")
    op.drop_table("guidelines")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_state_priority_id"))

    op.drop_table("jobs")
    op.drop_table("cohorts")
