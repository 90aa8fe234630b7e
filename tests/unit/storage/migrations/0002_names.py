"""Sites get names; serial numbers become unique."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    op.add_column("sites", sa.Column("name", sa.String(200), nullable=False, server_default=""))
    with op.batch_alter_table("pumps") as batch:
        batch.create_unique_constraint("pumps_serial_unique", ["serial"])
    op.create_index("pumps_by_site", "pumps", ["site_id", "number"])
