"""Networks: hosts, networks, subnets, ports, security groups, routers, floating IPs, quotas."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of the network service."""
    op.create_table(
        "host",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("agent_id", sa.String(36), nullable=False),
        sa.Column("tunnel_address", sa.String(45)),
        sa.Column("bridge_mappings", sa.Text, nullable=False),
        sa.Column("configuration", sa.Text, nullable=False),
        sa.Column("admin_state_up", sa.Boolean, nullable=False),
        sa.Column("availability_zone", sa.String(64), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_host"),
    )
    op.create_index("ix_host_agent_id", "host", ["agent_id"], unique=True)
    op.create_index("ix_host_tunnel_address", "host", ["tunnel_address"], unique=True)
    op.create_table(
        "network",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("revision_number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("updated_at", sa.String(27), nullable=False),
        sa.Column("admin_state_up", sa.Boolean, nullable=False),
        sa.Column("shared", sa.Boolean, nullable=False),
        sa.Column("external", sa.Boolean, nullable=False),
        sa.Column("is_default", sa.Boolean, nullable=False),
        sa.Column("mtu", sa.Integer, nullable=False),
        sa.Column("network_type", sa.String(16), nullable=False),
        sa.Column("physical_network", sa.String(64)),
        sa.Column("segmentation_id", sa.Integer),
        sa.Column("port_security_enabled", sa.Boolean, nullable=False),
        sa.Column("dns_domain", sa.String(255), nullable=False),
        sa.Column("availability_zone_hints", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_network"),
    )
    op.create_index("ix_network_created_at_id", "network", ["created_at", "id"])
    op.create_index("ix_network_project_id", "network", ["project_id"])
    op.create_table(
        "quota",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("resource", sa.String(64), nullable=False),
        sa.Column("limit", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("project_id", "resource", name="pk_quota"),
    )
    op.create_table(
        "resource_tag",
        sa.Column("resource_type", sa.String(32), nullable=False),
        sa.Column("resource_id", sa.String(36), nullable=False),
        sa.Column("tag", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("resource_type", "resource_id", "tag", name="pk_resource_tag"),
    )
    op.create_index("ix_resource_tag_resource_type_tag", "resource_tag", ["resource_type", "tag"])
    op.create_table(
        "security_group",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("revision_number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("updated_at", sa.String(27), nullable=False),
        sa.Column("stateful", sa.Boolean, nullable=False),
        sa.Column("is_default", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_security_group"),
    )
    op.create_index("ix_security_group_created_at_id", "security_group", ["created_at", "id"])
    op.create_index(
        "ix_security_group_default",
        "security_group",
        ["project_id"],
        unique=True,
        sqlite_where=sa.text("is_default"),
        postgresql_where=sa.text("is_default"),
    )
    op.create_index("ix_security_group_project_id", "security_group", ["project_id"])
    op.create_table(
        "host_status",
        sa.Column("host", sa.String(63), nullable=False),
        sa.Column("seen_at", sa.String(27), nullable=False),
        sa.Column("started_at", sa.String(27), nullable=False),
        sa.Column("token", sa.String(80), nullable=False),
        sa.Column("failures", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("host", name="pk_host_status"),
        sa.ForeignKeyConstraint(
            ["host"], ["host.name"], name="fk_host_status_host", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "network_segment",
        sa.Column("network_type", sa.String(16), nullable=False),
        sa.Column("physical_network", sa.String(64), nullable=False),
        sa.Column("segmentation_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("network_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint(
            "network_type", "physical_network", "segmentation_id", name="pk_network_segment"
        ),
        sa.ForeignKeyConstraint(
            ["network_id"], ["network.id"], name="fk_network_segment_network_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_network_segment_network_id", "network_segment", ["network_id"], unique=True)
    op.create_table(
        "port",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("revision_number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("updated_at", sa.String(27), nullable=False),
        sa.Column("network_id", sa.String(36), nullable=False),
        sa.Column("mac_address", sa.String(17), nullable=False),
        sa.Column("admin_state_up", sa.Boolean, nullable=False),
        sa.Column("device_id", sa.String(255), nullable=False),
        sa.Column("device_owner", sa.String(255), nullable=False),
        sa.Column("host", sa.String(63)),
        sa.Column("next_host", sa.String(63)),
        sa.Column("vnic_type", sa.String(64), nullable=False),
        sa.Column("binding_profile", sa.Text, nullable=False),
        sa.Column("port_security_enabled", sa.Boolean, nullable=False),
        sa.Column("allowed_address_pairs", sa.Text, nullable=False),
        sa.Column("extra_dhcp_opts", sa.Text, nullable=False),
        sa.Column("dns_name", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_port"),
        sa.ForeignKeyConstraint(["network_id"], ["network.id"], name="fk_port_network_id"),
    )
    op.create_index("ix_port_created_at_id", "port", ["created_at", "id"])
    op.create_index("ix_port_device_id", "port", ["device_id"])
    op.create_index("ix_port_host", "port", ["host"])
    op.create_index(
        "ix_port_network_id_mac_address", "port", ["network_id", "mac_address"], unique=True
    )
    op.create_index("ix_port_next_host", "port", ["next_host"])
    op.create_index("ix_port_project_id", "port", ["project_id"])
    op.create_table(
        "security_group_rule",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("revision_number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("updated_at", sa.String(27), nullable=False),
        sa.Column("security_group_id", sa.String(36), nullable=False),
        sa.Column("direction", sa.String(8), nullable=False),
        sa.Column("ethertype", sa.String(4), nullable=False),
        sa.Column("protocol", sa.String(40)),
        sa.Column("port_range_min", sa.Integer),
        sa.Column("port_range_max", sa.Integer),
        sa.Column("remote_ip_prefix", sa.String(64)),
        sa.Column("remote_group_id", sa.String(36)),
        sa.PrimaryKeyConstraint("id", name="pk_security_group_rule"),
        sa.ForeignKeyConstraint(
            ["remote_group_id"],
            ["security_group.id"],
            name="fk_security_group_rule_remote_group_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["security_group_id"],
            ["security_group.id"],
            name="fk_security_group_rule_security_group_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "ix_security_group_rule_created_at_id", "security_group_rule", ["created_at", "id"]
    )
    op.create_index("ix_security_group_rule_project_id", "security_group_rule", ["project_id"])
    op.create_index(
        "ix_security_group_rule_remote_group_id", "security_group_rule", ["remote_group_id"]
    )
    op.create_index(
        "ix_security_group_rule_security_group_id", "security_group_rule", ["security_group_id"]
    )
    op.create_table(
        "subnet",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("revision_number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("updated_at", sa.String(27), nullable=False),
        sa.Column("network_id", sa.String(36), nullable=False),
        sa.Column("ip_version", sa.Integer, nullable=False),
        sa.Column("cidr", sa.String(64), nullable=False),
        sa.Column("gateway_ip", sa.String(45)),
        sa.Column("enable_dhcp", sa.Boolean, nullable=False),
        sa.Column("ipv6_ra_mode", sa.String(16)),
        sa.Column("ipv6_address_mode", sa.String(16)),
        sa.Column("dns_nameservers", sa.Text, nullable=False),
        sa.Column("host_routes", sa.Text, nullable=False),
        sa.Column("allocation_pools", sa.Text, nullable=False),
        sa.Column("service_types", sa.Text, nullable=False),
        sa.Column("dns_publish_fixed_ip", sa.Boolean, nullable=False),
        sa.Column("subnetpool_id", sa.String(36)),
        sa.PrimaryKeyConstraint("id", name="pk_subnet"),
        sa.ForeignKeyConstraint(["network_id"], ["network.id"], name="fk_subnet_network_id"),
    )
    op.create_index("ix_subnet_created_at_id", "subnet", ["created_at", "id"])
    op.create_index("ix_subnet_network_id", "subnet", ["network_id"])
    op.create_index("ix_subnet_project_id", "subnet", ["project_id"])
    op.create_table(
        "ip_allocation",
        sa.Column("network_id", sa.String(36), nullable=False),
        sa.Column("ip_address", sa.String(45), nullable=False),
        sa.Column("subnet_id", sa.String(36), nullable=False),
        sa.Column("port_id", sa.String(36), nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("network_id", "ip_address", name="pk_ip_allocation"),
        sa.ForeignKeyConstraint(["network_id"], ["network.id"], name="fk_ip_allocation_network_id"),
        sa.ForeignKeyConstraint(
            ["port_id"], ["port.id"], name="fk_ip_allocation_port_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["subnet_id"], ["subnet.id"], name="fk_ip_allocation_subnet_id"),
    )
    op.create_index("ix_ip_allocation_port_id", "ip_allocation", ["port_id"])
    op.create_index("ix_ip_allocation_subnet_id", "ip_allocation", ["subnet_id"])
    op.create_table(
        "port_security_group",
        sa.Column("port_id", sa.String(36), nullable=False),
        sa.Column("security_group_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("port_id", "security_group_id", name="pk_port_security_group"),
        sa.ForeignKeyConstraint(
            ["port_id"], ["port.id"], name="fk_port_security_group_port_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["security_group_id"],
            ["security_group.id"],
            name="fk_port_security_group_security_group_id",
        ),
    )
    op.create_index(
        "ix_port_security_group_security_group_id", "port_security_group", ["security_group_id"]
    )
    op.create_table(
        "port_status",
        sa.Column("port_id", sa.String(36), nullable=False),
        sa.Column("host", sa.String(63), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("port_id", "host", name="pk_port_status"),
        sa.ForeignKeyConstraint(
            ["port_id"], ["port.id"], name="fk_port_status_port_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_port_status_host", "port_status", ["host"])
    op.create_table(
        "router",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("revision_number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("updated_at", sa.String(27), nullable=False),
        sa.Column("admin_state_up", sa.Boolean, nullable=False),
        sa.Column("external_network_id", sa.String(36)),
        sa.Column("gateway_port_id", sa.String(36)),
        sa.Column("enable_snat", sa.Boolean, nullable=False),
        sa.Column("routes", sa.Text, nullable=False),
        sa.Column("host", sa.String(63)),
        sa.Column("availability_zone_hints", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_router"),
        sa.ForeignKeyConstraint(
            ["external_network_id"], ["network.id"], name="fk_router_external_network_id"
        ),
        sa.ForeignKeyConstraint(["gateway_port_id"], ["port.id"], name="fk_router_gateway_port_id"),
    )
    op.create_index("ix_router_created_at_id", "router", ["created_at", "id"])
    op.create_index("ix_router_external_network_id", "router", ["external_network_id"])
    op.create_index("ix_router_host", "router", ["host"])
    op.create_index("ix_router_project_id", "router", ["project_id"])
    op.create_table(
        "floating_ip",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("revision_number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("updated_at", sa.String(27), nullable=False),
        sa.Column("floating_network_id", sa.String(36), nullable=False),
        sa.Column("floating_ip_address", sa.String(45), nullable=False),
        sa.Column("floating_port_id", sa.String(36), nullable=False),
        sa.Column("port_id", sa.String(36)),
        sa.Column("fixed_ip_address", sa.String(45)),
        sa.Column("router_id", sa.String(36)),
        sa.Column("dns_name", sa.String(255), nullable=False),
        sa.Column("dns_domain", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_floating_ip"),
        sa.ForeignKeyConstraint(
            ["floating_network_id"], ["network.id"], name="fk_floating_ip_floating_network_id"
        ),
        sa.ForeignKeyConstraint(
            ["floating_port_id"], ["port.id"], name="fk_floating_ip_floating_port_id"
        ),
        sa.ForeignKeyConstraint(["port_id"], ["port.id"], name="fk_floating_ip_port_id"),
        sa.ForeignKeyConstraint(["router_id"], ["router.id"], name="fk_floating_ip_router_id"),
    )
    op.create_index("ix_floating_ip_created_at_id", "floating_ip", ["created_at", "id"])
    op.create_index(
        "ix_floating_ip_floating_network_id_floating_ip_address",
        "floating_ip",
        ["floating_network_id", "floating_ip_address"],
        unique=True,
    )
    op.create_index(
        "ix_floating_ip_port_id_fixed_ip_address",
        "floating_ip",
        ["port_id", "fixed_ip_address"],
        unique=True,
    )
    op.create_index("ix_floating_ip_project_id", "floating_ip", ["project_id"])
    op.create_index("ix_floating_ip_router_id", "floating_ip", ["router_id"])
    op.create_table(
        "router_port",
        sa.Column("port_id", sa.String(36), nullable=False),
        sa.Column("router_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("port_id", name="pk_router_port"),
        sa.ForeignKeyConstraint(["port_id"], ["port.id"], name="fk_router_port_port_id"),
        sa.ForeignKeyConstraint(["router_id"], ["router.id"], name="fk_router_port_router_id"),
    )
    op.create_index("ix_router_port_router_id", "router_port", ["router_id"])
