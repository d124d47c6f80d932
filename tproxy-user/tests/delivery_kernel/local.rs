//! The prefixes that are this host's own.

use std::time::Duration;

use ipnet::IpNet;
use tproxy_user::delivery::{Assignment, Delivery, Flows, LocalAddresses, local_addresses};

use crate::namespace::{in_namespace, ip};

const OURS: Assignment = Assignment {
    mark: 0x7470_0000,
    table: 7470,
};

fn texts(prefixes: &[IpNet]) -> Vec<String> {
    prefixes.iter().map(IpNet::to_string).collect()
}

async fn changed(addresses: &mut LocalAddresses) -> Vec<String> {
    let change = tokio::time::timeout(Duration::from_secs(1), addresses.changed()).await;
    texts(change.expect("a change within a second").unwrap())
}

#[test]
fn addresses_and_anyip_prefixes_of_every_table_count_and_our_own_table_does_not() {
    in_namespace(|netlink| async move {
        ip("link add v0 type veth peer name v1");
        ip("addr add 10.1.0.1/24 dev v0");
        ip("addr add 2001:db8::1/64 dev v0 nodad");
        ip("link set v0 up");
        ip("link set v1 up");
        ip("route add local 192.0.2.0/24 dev lo");
        ip("-6 route add local 2001:db8:1::/48 dev lo table 100");
        ip("route add broadcast 198.51.100.255 dev v0 table 100");
        ip("route add default via 10.1.0.2");
        ip("route add 203.0.113.0/24 dev v0");
        // Another instance's, or the table of any other transparent proxy.
        ip("route add local default dev lo table 8000");
        ip("route add local 10.9.0.0/16 dev lo table 7470");
        Delivery::new(netlink.clone(), OURS)
            .apply(&Flows::forwarded(&["v0"]))
            .await
            .unwrap();

        let prefixes = local_addresses(&netlink, OURS.table).await.unwrap();
        let (link_local, others): (Vec<String>, Vec<String>) = texts(&prefixes)
            .into_iter()
            .partition(|prefix| prefix.starts_with("fe80:"));
        assert_eq!(
            others,
            [
                "10.1.0.1/32",
                "10.1.0.255/32",
                "127.0.0.0/8",
                "127.0.0.1/32",
                "127.255.255.255/32",
                "192.0.2.0/24",
                "198.51.100.255/32",
                "::1/128",
                "2001:db8::1/128",
                "2001:db8:1::/48",
                "ff00::/8",
            ]
        );
        assert!(
            link_local.iter().all(|prefix| prefix.ends_with("/128")),
            "{link_local:?}"
        );
    });
}

#[test]
fn changes_are_told_and_what_changes_nothing_is_not() {
    in_namespace(|netlink| async move {
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        std::fs::write("/proc/sys/net/ipv6/conf/v0/disable_ipv6", "1").unwrap();
        let mut addresses = LocalAddresses::open(&netlink, OURS.table).await.unwrap();
        let lo = [
            "127.0.0.0/8",
            "127.0.0.1/32",
            "127.255.255.255/32",
            "::1/128",
        ];
        assert_eq!(texts(addresses.prefixes()), lo);

        ip("addr add 192.0.2.1/24 dev v0");
        let mut with_address = lo.to_vec();
        with_address.splice(3..3, ["192.0.2.1/32", "192.0.2.255/32"]);
        assert_eq!(changed(&mut addresses).await, with_address);

        ip("route add local 198.51.100.0/24 dev v0");
        let mut with_prefix = with_address.clone();
        with_prefix.insert(5, "198.51.100.0/24");
        assert_eq!(changed(&mut addresses).await, with_prefix);

        // Our own, and a unicast route.
        let delivery = Delivery::new(netlink, OURS);
        delivery.apply(&Flows::forwarded(&["v0"])).await.unwrap();
        ip("route add 203.0.113.0/24 dev v0");
        let nothing = tokio::time::timeout(Duration::from_millis(200), addresses.changed()).await;
        assert!(nothing.is_err(), "{nothing:?}");

        // The kernel tells of the address that goes with the interface, and not of the prefix.
        ip("link del v0");
        assert_eq!(changed(&mut addresses).await, lo);
    });
}

#[test]
fn a_prefix_that_goes_silently_with_its_interface_is_noticed() {
    in_namespace(|netlink| async move {
        ip("tuntap add mode tun name t0");
        ip("link set t0 up");
        std::fs::write("/proc/sys/net/ipv6/conf/t0/disable_ipv6", "1").unwrap();
        let before = texts(&local_addresses(&netlink, OURS.table).await.unwrap());
        ip("route add local 198.51.100.0/24 dev t0");
        let mut addresses = LocalAddresses::open(&netlink, OURS.table).await.unwrap();
        assert_ne!(texts(addresses.prefixes()), before);
        ip("link del t0");
        assert_eq!(changed(&mut addresses).await, before);
    });
}

#[test]
fn a_broadcast_address_that_goes_silently_when_the_interface_goes_down_is_noticed() {
    in_namespace(|netlink| async move {
        ip("link add v0 type veth peer name v1");
        std::fs::write("/proc/sys/net/ipv6/conf/v0/disable_ipv6", "1").unwrap();
        ip("addr add 192.0.2.1/24 dev v0");
        ip("link set v0 up");
        let mut addresses = LocalAddresses::open(&netlink, OURS.table).await.unwrap();
        assert!(texts(addresses.prefixes()).contains(&"192.0.2.255/32".into()));
        ip("link set v0 down");
        let prefixes = changed(&mut addresses).await;
        assert!(!prefixes.contains(&"192.0.2.255/32".into()), "{prefixes:?}");
        assert!(prefixes.contains(&"192.0.2.1/32".into()), "{prefixes:?}");
    });
}
