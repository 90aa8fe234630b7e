"""The registry as it begins."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "evidence_spool",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("item", sa.LargeBinary(), nullable=False),
        sa.Column("refused", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    op.create_table(
        "feed_counter",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("mark", sa.LargeBinary(), nullable=False),
        sa.Column("floor", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "feed_outbox",
        sa.Column(
            "sequence",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("scope_site", sa.String(length=63), nullable=False),
        sa.Column("previous_site", sa.String(length=63), nullable=True),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("mark", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    op.create_table(
        "feed_state",
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("scope_site", sa.String(length=63), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "key"),
    )
    with op.batch_alter_table("feed_state", schema=None) as batch_op:
        batch_op.create_index("feed_state_by_site", ["scope_site", "kind", "key"], unique=False)

    op.create_table(
        "organization",
        sa.Column("organization_id", sa.String(length=63), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("manufacturer_root_pem", sa.Text(), nullable=False),
        sa.Column("manufacturer_root_key", sa.LargeBinary(), nullable=True),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("organization_id"),
        sa.UniqueConstraint("manufacturer_root_key"),
    )
    op.create_table(
        "principal",
        sa.Column("principal_id", sa.String(length=63), nullable=False),
        sa.Column("organization_id", sa.String(length=63), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("site_ids", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_by", sa.String(length=63), nullable=False),
        sa.Column("approved_by", sa.String(length=63), nullable=False),
        sa.Column("cleared_by", sa.String(length=63), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.organization_id"],
        ),
        sa.PrimaryKeyConstraint("principal_id"),
    )
    with op.batch_alter_table("principal", schema=None) as batch_op:
        batch_op.create_index("principal_by_organization", ["organization_id", "principal_id"], unique=False)

    op.create_table(
        "site",
        sa.Column("site_id", sa.String(length=63), nullable=False),
        sa.Column("organization_id", sa.String(length=63), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.String(length=64), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.organization_id"],
        ),
        sa.PrimaryKeyConstraint("site_id"),
    )
    op.create_table(
        "credential",
        sa.Column("thumbprint", sa.String(length=64), nullable=False),
        sa.Column("principal_id", sa.String(length=63), nullable=False),
        sa.Column("organization_id", sa.String(length=63), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("site_ids", sa.Text(), nullable=False),
        sa.Column("certificate_pem", sa.Text(), nullable=False),
        sa.Column("operational_until", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("issued_by", sa.String(length=63), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.organization_id"],
        ),
        sa.ForeignKeyConstraint(
            ["principal_id"],
            ["principal.principal_id"],
        ),
        sa.PrimaryKeyConstraint("thumbprint"),
    )
    with op.batch_alter_table("credential", schema=None) as batch_op:
        batch_op.create_index("credential_by_organization", ["organization_id", "thumbprint"], unique=False)
        batch_op.create_index("credential_by_principal", ["principal_id", "thumbprint"], unique=False)

    op.create_table(
        "device",
        sa.Column("device_id", sa.String(length=63), nullable=False),
        sa.Column("udi", sa.String(length=256), nullable=False),
        sa.Column("udi_issuer", sa.String(length=16), nullable=False),
        sa.Column("udi_di", sa.String(length=64), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("asset_tag", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=63), nullable=False),
        sa.Column("site_id", sa.String(length=63), nullable=False),
        sa.Column("observed_gateway_id", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("resumes", sa.String(length=16), nullable=False),
        sa.Column("holds", sa.Integer(), nullable=False),
        sa.Column("identity_key", sa.LargeBinary(), nullable=False),
        sa.Column("attestation_key", sa.LargeBinary(), nullable=False),
        sa.Column("attestation_certificate", sa.LargeBinary(), nullable=False),
        sa.Column("attestation_chain", sa.LargeBinary(), nullable=False),
        sa.Column("enrolled_by", sa.String(length=63), nullable=False),
        sa.Column("activated_by", sa.String(length=63), nullable=False),
        sa.Column("quarantine_log", sa.BigInteger(), nullable=False),
        sa.Column("lift_log", sa.BigInteger(), nullable=False),
        sa.Column("renewed_at", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.organization_id"],
        ),
        sa.ForeignKeyConstraint(
            ["site_id"],
            ["site.site_id"],
        ),
        sa.PrimaryKeyConstraint("device_id"),
        sa.UniqueConstraint("attestation_key", name="device_attestation_key"),
        sa.UniqueConstraint("identity_key", name="device_identity_key"),
        sa.UniqueConstraint("udi_issuer", "udi_di", "serial", name="device_udi"),
    )
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.create_index("device_by_asset_tag", ["asset_tag"], unique=False)
        batch_op.create_index("device_by_organization", ["organization_id", "site_id", "state"], unique=False)
        batch_op.create_index("device_by_serial", ["serial"], unique=False)

    op.create_table(
        "enrolment",
        sa.Column("enrolment_id", sa.String(length=63), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("enroller", sa.String(length=63), nullable=False),
        sa.Column("organization_id", sa.String(length=63), nullable=False),
        sa.Column("site_id", sa.String(length=63), nullable=False),
        sa.Column("asset_tag", sa.String(length=64), nullable=False),
        sa.Column("voucher", sa.LargeBinary(), nullable=False),
        sa.Column("udi", sa.String(length=256), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("identity_key", sa.LargeBinary(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.Column("possession", sa.LargeBinary(), nullable=False),
        sa.Column("tls_chain", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.organization_id"],
        ),
        sa.ForeignKeyConstraint(
            ["site_id"],
            ["site.site_id"],
        ),
        sa.PrimaryKeyConstraint("enrolment_id"),
    )
    with op.batch_alter_table("enrolment", schema=None) as batch_op:
        batch_op.create_index("enrolment_by_expiry", ["expires"], unique=False)

    op.create_table(
        "gateway",
        sa.Column("gateway_id", sa.String(length=63), nullable=False),
        sa.Column("organization_id", sa.String(length=63), nullable=False),
        sa.Column("site_id", sa.String(length=63), nullable=False),
        sa.Column("address", sa.String(length=320), nullable=False),
        sa.Column("certificate_thumbprint", sa.String(length=64), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.organization_id"],
        ),
        sa.ForeignKeyConstraint(
            ["site_id"],
            ["site.site_id"],
        ),
        sa.PrimaryKeyConstraint("gateway_id"),
    )
    op.create_table(
        "hold",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("device_id", sa.String(length=63), nullable=False),
        sa.Column("placed_by", sa.String(length=63), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("lifted_at", sa.BigInteger(), nullable=False),
        sa.Column("log_size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["device.device_id"],
        ),
        sa.PrimaryKeyConstraint("digest"),
    )
    with op.batch_alter_table("hold", schema=None) as batch_op:
        batch_op.create_index("hold_by_device", ["device_id", "lifted_at"], unique=False)
        batch_op.create_index("hold_by_expiry", ["lifted_at", "expires"], unique=False)

    op.create_table(
        "lift",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("device_id", sa.String(length=63), nullable=False),
        sa.Column("person", sa.String(length=63), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["device.device_id"],
        ),
        sa.PrimaryKeyConstraint("digest"),
    )
