"""Ask Nova's own metadata handler, and write what it answers to nova_facts.json.

Run by hand when Nova changes, with an interpreter that has Nova installed:

    python -m venv /tmp/nova && /tmp/nova/bin/pip install nova
    PYTHONPATH=. /tmp/nova/bin/python tests/services/metadata/make_nova_facts.py

Instances are written down as Mooring's documents; here they become the objects that Nova loads
from its database, and Nova's real handler answers every path. Only the
database and the security group API are stood in for. EC2 ids are integers in Nova's database, so
the fake database gives it ours.
"""

import base64
import importlib.metadata
import json
import tempfile
from pathlib import Path
from unittest import mock

import nova.conf
import webob
from nova import context, objects
from nova.api.metadata import base, handler
from nova.network import model as network_model
from nova.objects import virt_device_metadata as devices
from oslo_log import log

from services.metadata import ec2
from services.metadata.model import Instance

HERE = Path(__file__).parent
CONF = nova.conf.CONF
ADDRESS = "10.77.0.9"

KEY = {"name": "mykey", "type": "ssh", "data": "ssh-ed25519 AAAAC3Nz me@laptop"}

FULL = {
    "id": "3fa85f64-5717-4562-b3fc-2c963f66afa6",
    "project_id": "4c7e8f2c2f1d4d1c9a1f0b9f1f8f0a11",
    "name": "Web 1",
    "hostname": "web-1",
    "instance_type": "m1.small",
    "image_id": "8d6f1a52-43b1-4a3c-8b07-2d9e55b6b7a1",
    "kernel_id": "kernel-1",
    "ramdisk_id": "ramdisk-1",
    "reservation_id": "r-k3x9",
    "availability_zone": "zone-b",
    "launch_index": 2,
    "keys": [KEY],
    "properties": {"role": "web", "grüße": "ja"},
    "user_data": base64.b64encode(b"#cloud-config\n\xff\x00").decode(),
    "security_groups": ["default", "web"],
    "block_device_mapping": {"ami": "vda", "root": "/dev/vda", "ebs0": "/dev/vdb",
                             "swap": "/dev/vdc"},
    "dedicated_cpus": [3, 2],
    "devices": [
        {"type": "nic", "bus": "pci", "address": "0000:00:02.0", "mac": "fa:16:3e:00:00:01",
         "tags": ["front"], "vlan": 7, "vf_trusted": True},
        {"type": "nic", "bus": "pci", "address": "0000:00:03.0", "mac": "fa:16:3e:00:00:02"},
        {"type": "nic", "bus": "usb", "address": "05c8:021e", "mac": "fa:16:3e:00:00:03",
         "vlan": 9},
        {"type": "disk", "bus": "scsi", "address": "0:0:0:1", "serial": "disk-1",
         "path": "/dev/sda", "tags": ["data", "fast"]},
        {"type": "disk", "bus": "ide", "address": "0:0"},
        {"type": "share", "share_id": "e8debdc0-447a-4376-a10a-4cd9122d7986", "tag": "shared"},
    ],
    "interfaces": [
        {"id": "aaaaaaaa-1111-4111-8111-111111111111", "network_id": "n-static",
         "mac": "fa:16:3e:00:00:01", "name": "tapaaaaaaaa-11", "type": "ovs", "mtu": 1450,
         "subnets": [
             {"cidr": "10.1.0.0/24", "gateway_ip": "10.1.0.1", "enable_dhcp": False,
              "dns_nameservers": ["192.0.2.53", "192.0.2.54"],
              "host_routes": [{"destination": "10.9.0.0/16", "nexthop": "10.1.0.2"}],
              "addresses": [{"ip_address": "10.1.0.4", "floating_ip_address": "203.0.113.7"},
                            {"ip_address": "10.1.0.5"}]},
             {"cidr": "10.3.0.0/24", "enable_dhcp": False,
              "addresses": [{"ip_address": "10.3.0.4"}]},
             {"cidr": "2001:db8:1::/64", "gateway_ip": "2001:db8:1::1",
              "enable_dhcp": False, "ipv6_address_mode": "slaac",
              "dns_nameservers": ["2001:db8::53"],
              "addresses": [{"ip_address": "2001:db8:1::4"}]}]},
        {"id": "bbbbbbbb-2222-4222-8222-222222222222", "network_id": "n-dhcp",
         "mac": "fa:16:3e:00:00:02", "name": "tapbbbbbbbb-22", "type": "phy", "mtu": 1400,
         "subnets": [
             {"cidr": "10.2.0.0/24", "gateway_ip": "10.2.0.1", "enable_dhcp": True,
              "dns_nameservers": ["192.0.2.53"], "addresses": [{"ip_address": "10.2.0.4"}]}]},
        {"id": "cccccccc-3333-4333-8333-333333333333", "network_id": "n-six",
         "mac": "fa:16:3e:00:00:03", "name": "tapcccccccc-33", "type": "bridge", "mtu": 9000,
         "subnets": [
             {"cidr": "2001:db8:3::/64", "enable_dhcp": False,
              "addresses": [{"ip_address": "2001:db8:3::4"}]}]},
        {"id": "dddddddd-4444-4444-8444-444444444444", "network_id": "n-stateful",
         "mac": "fa:16:3e:00:00:04", "name": "tapdddddddd-44", "type": "tap", "mtu": 1500,
         "subnets": [
             {"cidr": "2001:db8:4::/64", "gateway_ip": "fe80::1", "enable_dhcp": True,
              "ipv6_address_mode": "dhcpv6-stateful",
              "addresses": [{"ip_address": "2001:db8:4::4"}]}]},
        {"id": "eeeeeeee-5555-4555-8555-555555555555", "network_id": "n-none",
         "mac": "fa:16:3e:00:00:05", "name": "tapeeeeeeee-55", "type": "ovs", "mtu": 1500,
         "subnets": []},
    ],
}  # fmt: skip

BARE = {
    "id": "11111111-2222-4333-8444-555555555555",
    "project_id": "p",
    "name": "bare",
    "hostname": "bare",
    "instance_type": "m1.tiny",
    "image_id": "cirros",
    "reservation_id": "r-bare",
    "availability_zone": "nova",
    "interfaces": [
        {"id": "aaaaaaaa-1111-4111-8111-111111111111", "network_id": "n", "mtu": 1500,
         "mac": "fa:16:3e:00:00:01", "name": "tapaaaaaaaa-11", "type": "ovs",
         "subnets": [{"cidr": "10.1.0.0/24", "enable_dhcp": True,
                      "addresses": [{"ip_address": "10.1.0.4"}]}]},
    ],
}  # fmt: skip

OFFLINE = BARE | {"interfaces": [], "keys": [KEY], "security_groups": ["default"]}


def words(text):
    return text.split()


CASES = {
    "full": {"instance": FULL, "vendor_data": {"cloud-init": "#cloud-config\n"},
             "dhcp_domain": "novalocal"},
    "bare": {"instance": BARE, "vendor_data": None, "dhcp_domain": ""},
    "offline": {"instance": OFFLINE, "vendor_data": None, "dhcp_domain": "example.org"},
}  # fmt: skip

EC2_KEYS = words("""
ami-id ami-launch-index ami-manifest-path ancestor-ami-ids block-device-mapping/
block-device-mapping/ami block-device-mapping/ebs0 block-device-mapping/ephemeral0
block-device-mapping/root block-device-mapping/swap hostname iam/ instance-action instance-id
instance-life-cycle instance-type ipv6 kernel-id local-hostname local-ipv4 mac network/
placement/ placement/availability-zone placement/region product-codes public-hostname
public-ipv4 public-keys/ public-keys/0 public-keys/0/ public-keys/0/openssh-key
public-keys/0/_name public-keys/0=mykey public-keys/1 ramdisk-id reservation-id security-groups
services/ tags/ instance-id/ instance-id/foo instance-id/foo/bar security-groups/default
security-groups/none
""")
OPENSTACK_FILES = words("""
meta_data.json user_data password vendor_data.json vendor_data2.json network_data.json version
content content/0000 meta_data.json/x unknown user_data/
""")
OTHER_PATHS = [
    "/", "/ec2", "/ec2/", "/ec2/latest", "/ec2/ec2", "/openstack", "/openstack/",
    "/openstack/content", "/openstack/content/0000", "/openstack/2099-01-01", "/openstack/LATEST",
    "/LATEST", "/latest/dynamic", "/latest/dynamic/", "/latest/x", "/2018-09-24",
    "/2018-09-24/meta-data/instance-id", "/2021-03-23/meta-data/", "/latest/meta-data/../user-data",
    "/latest/./meta-data/", "/latest//meta-data", "/../latest/meta-data/hostname",
    "/latest/meta-data/%C3%BC", "/%2e%2e", "/latest%2Fmeta-data", "/openstack/../latest/meta-data",
]  # fmt: skip


def all_paths():
    paths = list(OTHER_PATHS)
    for version in (*base.VERSIONS, "latest"):
        paths += [f"/{version}", f"/{version}/", f"/{version}/meta-data", f"/{version}/meta-data/"]
        paths += [f"/{version}/user-data", f"/{version}/user-data/", f"/{version}/user-data/x"]
        paths += [f"/{version}/meta-data/{key}" for key in EC2_KEYS]
    for version in (*base.OPENSTACK_VERSIONS, "latest"):
        paths += [f"/openstack/{version}", f"/openstack/{version}/"]
        paths += [f"/openstack/{version}/{name}" for name in OPENSTACK_FILES]
    return paths


def nova_device(device):
    buses = {
        "pci": devices.PCIDeviceBus,
        "usb": devices.USBDeviceBus,
        "scsi": devices.SCSIDeviceBus,
        "ide": devices.IDEDeviceBus,
        "xen": devices.XenDeviceBus,
    }
    given = {}
    if device.bus in buses:
        given["bus"] = buses[device.bus](address=device.address)
    if device.tags:
        given["tags"] = list(device.tags)
    for name in ("mac", "vlan", "serial", "path", "share_id", "tag"):
        if getattr(device, name) is not None:
            given[name] = getattr(device, name)
    if device.type == "nic":
        return devices.NetworkInterfaceMetadata(vf_trusted=device.vf_trusted, **given)
    return {"disk": devices.DiskMetadata, "share": devices.ShareMetadata}[device.type](**given)


def nova_ip(fixed):
    ip = network_model.FixedIP(address=str(fixed.ip_address))
    if fixed.floating_ip_address is not None:
        ip.add_floating_ip(
            network_model.IP(address=str(fixed.floating_ip_address), type="floating")
        )
    return ip


def nova_subnet(subnet):
    meta = {}
    if subnet.ipv6_address_mode is not None:
        meta["ipv6_address_mode"] = subnet.ipv6_address_mode
    if subnet.enable_dhcp:
        meta["enable_dhcp"] = True
        meta["dhcp_server"] = str(subnet.cidr[3])
    gateway = subnet.gateway_ip
    return network_model.Subnet(
        cidr=str(subnet.cidr),
        gateway=None if gateway is None else network_model.IP(address=str(gateway), type="gateway"),
        dns=[network_model.IP(address=str(a), type="dns") for a in subnet.dns_nameservers],
        ips=[nova_ip(fixed) for fixed in subnet.addresses],
        routes=[
            network_model.Route(
                cidr=str(route.destination),
                gateway=network_model.IP(address=str(route.nexthop), type="gateway"),
            )
            for route in subnet.host_routes
        ],
        version=subnet.cidr.version,
        **meta,
    )


def nova_network(instance):
    return network_model.NetworkInfo(
        [
            network_model.VIF(
                id=interface.id,
                address=interface.mac,
                type=interface.type,
                devname=interface.name,
                network=network_model.Network(
                    id=interface.network_id,
                    subnets=[nova_subnet(subnet) for subnet in interface.subnets],
                    mtu=interface.mtu,
                ),
            )
            for interface in instance.interfaces
        ]
    )


def nova_instance(instance):
    ctxt = context.get_admin_context()
    key = instance.keys[0] if instance.keys else None
    user_data = instance.user_data
    mapping = instance.block_device_mapping
    made = objects.Instance(
        context=ctxt,
        id=1,
        uuid=instance.id,
        project_id=instance.project_id,
        user_id="user",
        display_name=instance.name,
        hostname=instance.hostname,
        launch_index=instance.launch_index,
        reservation_id=instance.reservation_id,
        availability_zone=instance.availability_zone,
        image_ref=instance.image_id,
        key_name=key and key.name,
        key_data=key and key.data,
        user_data=None if user_data is None else base64.b64encode(user_data).decode(),
        metadata=dict(instance.properties),
        system_metadata={},
        root_device_name=mapping.get("root"),
        default_ephemeral_device=None,
        default_swap_device=mapping.get("swap"),
        numa_topology=objects.InstanceNUMATopology(
            cells=[
                objects.InstanceNUMACell(
                    id=0, cpuset=set(), pcpuset=set(instance.dedicated_cpus), memory=1
                )
            ]
        ),
        device_metadata=objects.InstanceDeviceMetadata(
            devices=[nova_device(device) for device in instance.devices]
        ),
    )
    made.keypairs = objects.KeyPairList(
        objects=[objects.KeyPair(name=key.name, type=key.type, public_key=key.data)] if key else []
    )
    made.ec2_ids = objects.EC2Ids(
        instance_id=ec2.instance_id_of(instance.id),
        ami_id=ec2.image_id_of(instance.image_id),
        kernel_id=instance.kernel_id and ec2.image_id_of(instance.kernel_id, "aki"),
        ramdisk_id=instance.ramdisk_id and ec2.image_id_of(instance.ramdisk_id, "ari"),
    )
    made.flavor = objects.Flavor(name=instance.instance_type)
    made.info_cache = objects.InstanceInfoCache(
        context=ctxt, instance_uuid=instance.id, network_info=nova_network(instance)
    )
    return made


def bdms_of(instance):
    return objects.BlockDeviceMappingList(
        objects=[
            objects.BlockDeviceMapping(
                source_type="volume",
                destination_type="volume",
                device_name=device,
                volume_id=name,
                no_device=False,
                guest_format=None,
            )
            for name, device in instance.block_device_mapping.items()
            if name.startswith("ebs")
        ]
    )


def answers_of(case, folder):
    instance = Instance.from_document(case["instance"])
    if case["vendor_data"] is not None:
        path = Path(folder, "vendor.json")
        path.write_text(json.dumps(case["vendor_data"]))
        CONF.set_override("vendordata_jsonfile_path", str(path), "api")
    else:
        CONF.clear_override("vendordata_jsonfile_path", "api")
    CONF.set_override("dhcp_domain", case["dhcp_domain"], "api")
    groups = [{"name": name} for name in instance.security_groups]
    with (
        mock.patch.object(
            base.security_group_api, "get_instance_security_groups", return_value=groups
        ),
        mock.patch.object(objects.Instance, "get_bdms", return_value=bdms_of(instance)),
    ):
        metadata = base.InstanceMetadata(nova_instance(instance), address=ADDRESS)
    answers = {}
    app = handler.MetadataRequestHandler()
    with mock.patch.object(app, "get_metadata_by_remote_address", return_value=metadata):
        for path in all_paths():
            request = webob.Request.blank(path)
            request.remote_addr = ADDRESS
            try:
                response = request.get_response(app)
                status, kind, body = (
                    response.status_int,
                    response.headers["Content-Type"],
                    response.body,
                )
            except Exception as error:  # it is what is recorded: a 500
                status, kind, body = 500, "", type(error).__name__.encode()
            if path.endswith("meta_data.json") and status == 200:
                document = json.loads(body)
                if "random_seed" in document:
                    body = body.replace(document["random_seed"].encode(), b"SEED")
            answers[path] = [status, kind, base64.b64encode(body).decode() if status == 200 else ""]
    return answers


def main():
    log.register_options(CONF)
    CONF([], project="nova", default_config_files=[])
    objects.register_all()
    bodies = []
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            answers = answers_of(case, folder)
            for answer in answers.values():
                # Each body stands once in the file; answers name it by its number.
                if answer[2] not in bodies:
                    bodies.append(answer[2])
                answer[2] = bodies.index(answer[2])
            grouped = {}
            for path, answer in answers.items():
                grouped.setdefault(json.dumps(answer), []).append(path)
            cases[name] = case | {
                "answers": [
                    [*json.loads(answer), " ".join(paths)] for answer, paths in grouped.items()
                ]
            }
    facts = {
        "address": ADDRESS,
        "nova": importlib.metadata.version("nova"),
        "bodies": bodies,
        "cases": cases,
    }
    (HERE / "nova_facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
