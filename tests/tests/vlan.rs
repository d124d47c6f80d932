//! Interfaces of a VLAN. The kernel's VLAN module is not everywhere: `cargo xtask vm vlan` has it.

use tproxy_tests::{Exchange, Family, Lab, address::FAMILIES, peer::Witness};

/// A lab whose client and gateway have a VLAN beside the untagged link, and where the client reaches [`Family::near`]
/// by the VLAN and [`Family::far`] without a tag.
fn lab_with_vlan() -> Lab {
    let lab = Lab::new();
    lab.client
        .ip("link add link eth0 name tagged0 type vlan id 5\n\
         link set tagged0 up\n\
         addr add 10.77.5.2/24 dev tagged0\n\
         addr add fd77:5::2/64 dev tagged0 nodad\n\
         route add 192.0.2.0/24 via 10.77.5.1\n\
         route add 2001:db8:1::/48 via fd77:5::1");
    lab.gateway
        .ip("link add link cl0 name tagged0 type vlan id 5\n\
         link set tagged0 up\n\
         addr add 10.77.5.1/24 dev tagged0\n\
         addr add fd77:5::1/64 dev tagged0 nodad");
    lab
}

fn ask(lab: &Lab, family: Family) -> (Exchange, Exchange) {
    (lab.ask(family.near(), 80), lab.ask(family.far(), 80))
}

/// Attached to the interface of the VLAN, the agent takes its flows and no others.
#[test]
#[ignore = "needs the 8021q module: cargo xtask vm vlan"]
fn flows_of_an_attached_vlan_are_taken() {
    let lab = lab_with_vlan();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface tagged0 --dport 80");
    for family in FAMILIES {
        let (tagged, untagged) = ask(&lab, family);
        tagged.assert_relayed(&agent);
        untagged.assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// Attached to the interface below it, the agent leaves the VLAN alone.
#[test]
#[ignore = "needs the 8021q module: cargo xtask vm vlan"]
fn flows_of_a_vlan_above_an_attached_interface_are_left_alone() {
    let lab = lab_with_vlan();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let (tagged, untagged) = ask(&lab, family);
        tagged.assert_direct(&agent);
        untagged.assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}
