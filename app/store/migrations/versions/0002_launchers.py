"""Jobs belong to a launcher: engine, handle, lease and what they need; the pid moves into the local launcher's handle

Columns are added and dropped in place. Alembic's batch mode would copy the table and drop the old one, and SQLite then
deletes every event that points at it.
"""

import json
import socket

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WHOLE_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_jobs = sa.table(
    "jobs",
    sa.column("id", sa.Text()),
    sa.column("pid", sa.Integer()),
    sa.column("process_started_at", sa.Double()),
    sa.column("engine", sa.Text()),
    sa.column("handle", sa.Text()),
    sa.column("device", sa.Text()),
    sa.column("spec", sa.Text()),
)


def upgrade() -> None:
    for name in ("cause", "handle", "lease_owner", "heartbeat_at"):
        op.add_column("jobs", sa.Column(name, sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("engine", sa.Text(), nullable=False, server_default="local"))
    op.add_column("jobs", sa.Column("device", sa.Text(), nullable=False, server_default="auto"))
    op.add_column("jobs", sa.Column("num_processes", WHOLE_NUMBER, nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("num_nodes", WHOLE_NUMBER, nullable=False, server_default="1"))
    connection = op.get_bind()
    for job_id, spec in connection.execute(sa.select(_jobs.c.id, _jobs.c.spec)).all():
        device = json.loads(spec).get("device", "cpu")
        connection.execute(_jobs.update().where(_jobs.c.id == job_id).values(device=device))
    at_work = sa.select(_jobs.c.id, _jobs.c.pid, _jobs.c.process_started_at).where(_jobs.c.pid.is_not(None))
    for place, (job_id, pid, started_at) in enumerate(connection.execute(at_work.order_by(_jobs.c.id)).all()):
        handle = {
            "node": socket.gethostname(), "pid": pid, "started_at": started_at, "device": "cpu", "indices": [place],
        }  # fmt: skip
        connection.execute(_jobs.update().where(_jobs.c.id == job_id).values(handle=json.dumps(handle)))
    op.drop_column("jobs", "process_started_at")
    op.drop_column("jobs", "pid")


def downgrade() -> None:
    op.add_column("jobs", sa.Column("pid", WHOLE_NUMBER, nullable=True))
    op.add_column("jobs", sa.Column("process_started_at", sa.Double(), nullable=True))
    connection = op.get_bind()
    at_work = sa.select(_jobs.c.id, _jobs.c.handle).where(_jobs.c.engine == "local", _jobs.c.handle.is_not(None))
    for job_id, text in connection.execute(at_work).all():
        handle = json.loads(text)
        values = {"pid": handle["pid"], "process_started_at": handle["started_at"]}
        connection.execute(_jobs.update().where(_jobs.c.id == job_id).values(**values))
    for name in (
        "num_nodes", "num_processes", "device", "engine", "heartbeat_at", "lease_owner", "handle", "cause",
    ):  # fmt: skip
        op.drop_column("jobs", name)
