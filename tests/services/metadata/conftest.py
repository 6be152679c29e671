"""An instance with everything, for tests of its documents."""

import copy

import pytest

from services.metadata.model import Instance

FULL = {
    "id": "3fa85f64-5717-4562-b3fc-2c963f66afa6",
    "project_id": "4c7e8f2c2f1d4d1c9a1f0b9f1f8f0a11",
    "name": "Web 1",
    "hostname": "web-1",
    "instance_type": "m1.small",
    "image_id": "8d6f1a52-43b1-4a3c-8b07-2d9e55b6b7a1",
    "reservation_id": "r-k3x9",
    "availability_zone": "zone-b",
    "launch_index": 2,
    "keys": [{"name": "mykey", "type": "ssh", "data": "ssh-ed25519 AAAAC3Nz me@laptop"}],
    "properties": {"role": "web"},
    "tags": {"team": "blue"},
    "user_data": "I2Nsb3VkLWNvbmZpZwr/AA==",
    "security_groups": ["default", "web"],
    "block_device_mapping": {"ami": "vda", "root": "/dev/vda", "ebs0": "/dev/vdb"},
    "dedicated_cpus": [3, 2],
    "devices": [
        {
            "type": "nic",
            "bus": "pci",
            "address": "0000:00:02.0",
            "mac": "fa:16:3e:00:00:01",
            "tags": ["front"],
            "vlan": 7,
        },
        {"type": "nic", "bus": "pci", "address": "0000:00:03.0", "mac": "fa:16:3e:00:00:02"},
        {
            "type": "disk",
            "bus": "scsi",
            "address": "0:0:0:1",
            "serial": "disk-1",
            "path": "/dev/sda",
            "tags": ["data"],
        },
        {"type": "share", "share_id": "e8debdc0", "tag": "shared"},
    ],
    "options": {"instance_metadata_tags": "enabled"},
    "interfaces": [
        {
            "id": "aaaaaaaa-1111-4111-8111-111111111111",
            "network_id": "6d7f2a0e-1111-4111-8111-111111111111",
            "mac": "fa:16:3e:00:00:01",
            "type": "ovs",
            "mtu": 1450,
            "security_groups": ["sg-1", "sg-2"],
            "subnets": [
                {
                    "id": "s-four",
                    "cidr": "10.1.0.0/24",
                    "gateway_ip": "10.1.0.1",
                    "dns_nameservers": ["192.0.2.53"],
                    "enable_dhcp": False,
                    "host_routes": [{"destination": "10.9.0.0/16", "nexthop": "10.1.0.2"}],
                    "addresses": [
                        {"ip_address": "10.1.0.4", "floating_ip_address": "203.0.113.7"},
                        {"ip_address": "10.1.0.5"},
                    ],
                },
                {
                    "id": "s-six",
                    "cidr": "2001:db8:1::/64",
                    "gateway_ip": "2001:db8:1::1",
                    "ipv6_address_mode": "slaac",
                    "dns_nameservers": ["2001:db8::53"],
                    "addresses": [{"ip_address": "2001:db8:1::4"}],
                },
            ],
        },
        {
            "id": "bbbbbbbb-2222-4222-8222-222222222222",
            "network_id": "6d7f2a0e-2222-4222-8222-222222222222",
            "mac": "fa:16:3e:00:00:02",
            "subnets": [
                {
                    "id": "s-dhcp",
                    "cidr": "10.2.0.0/24",
                    "gateway_ip": "10.2.0.1",
                    "enable_dhcp": True,
                    "addresses": [{"ip_address": "10.2.0.4"}],
                }
            ],
        },
    ],
}


@pytest.fixture
def instance_of():
    """Makes an instance: the full one, with top-level members changed or (None) left out."""

    def make(**changes):
        document = copy.deepcopy(FULL) | changes
        return Instance.from_document({k: v for k, v in document.items() if v is not None})

    return make


@pytest.fixture
def smallest():
    """An instance that has nothing but an id, a project and a name."""
    return Instance.from_document(
        {"id": "11111111-2222-4333-8444-555555555555", "project_id": "p", "name": "tiny"}
    )
