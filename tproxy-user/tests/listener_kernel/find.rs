//! Which sockets are found for an address.

use std::{collections::BTreeSet, net::TcpStream};

use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, unshare};
use socket2::SockRef;
use tproxy_common::flow::Protocol;
use tproxy_user::listener::{Error, Found, MEMBERS, absence, find};

use crate::{
    holder::{Holder, ONLY_V6, Options, PLAIN, SHARED, TRANSPARENT, address, datagrams, listener},
    namespace::in_namespace,
};

fn tcp(at: &str) -> Vec<Found> {
    find(Protocol::Tcp, address(at)).unwrap()
}

/// What the sockets that are found for an address are bound to.
fn bound(protocol: Protocol, at: &str) -> Vec<String> {
    let found = find(protocol, address(at)).unwrap();
    found.iter().map(|found| found.bound.to_string()).collect()
}

#[test]
fn a_listener_of_another_process_is_found_with_all_that_is_to_know() {
    in_namespace(|| {
        let socket = listener("127.0.0.1:80", PLAIN);
        let cookie = socket.cookie().unwrap();
        let holder = Holder::of(socket);
        let [found] = <[Found; 1]>::try_from(tcp("127.0.0.1:80")).unwrap();
        assert_eq!(found.cookie, cookie);
        assert_eq!(SockRef::from(&found.socket).cookie().unwrap(), cookie);
        assert_eq!(found.process.pid, holder.pid());
        assert_eq!(found.process.command, "sleep");
        assert_eq!(found.bound, address("127.0.0.1:80"));
        assert!(found.ipv4 && !found.ipv6 && !found.transparent && found.inode != 0);
        let link = std::fs::read_link(format!("/proc/{}/fd/0", holder.pid())).unwrap();
        assert_eq!(link.to_str(), Some(&*format!("socket:[{}]", found.inode)));

        // It is the same socket: what connects there can be accepted from the duplicate.
        let client = TcpStream::connect("127.0.0.1:80").unwrap();
        let (_, peer) = SockRef::from(&found.socket).accept().unwrap();
        assert_eq!(peer.as_socket(), Some(client.local_addr().unwrap()));
        drop(found);
        for miss in ["127.0.0.1:81", "127.0.0.2:80", "0.0.0.0:80", "[::1]:80"] {
            assert!(tcp(miss).is_empty(), "{miss}");
        }
        assert!(bound(Protocol::Udp, "127.0.0.1:80").is_empty());
        holder.end();
        assert!(tcp("127.0.0.1:80").is_empty());
    });
}

#[test]
fn addresses_and_families_find_what_a_connection_reaches() {
    in_namespace(|| {
        let sockets = [
            ("0.0.0.0:80", PLAIN),
            ("127.0.0.1:81", PLAIN),
            ("[::]:82", PLAIN),
            ("[::]:83", ONLY_V6),
            ("[::1]:84", PLAIN),
            ("[::ffff:127.0.0.1]:85", PLAIN),
            ("0.0.0.0:86", PLAIN),
            ("[::]:86", ONLY_V6),
        ];
        let _sockets = sockets.map(|(address, options)| listener(address, options));
        for port in 80..=86 {
            for host in ["127.0.0.1", "127.0.0.2", "[::1]"] {
                let at = format!("{host}:{port}");
                let reachable = TcpStream::connect(&at).is_ok();
                let found = tcp(&at);
                assert_eq!(found.len(), usize::from(reachable), "{at}");
                let is_ipv4 = address(&at).is_ipv4();
                assert!(
                    found
                        .iter()
                        .all(|found| if is_ipv4 { found.ipv4 } else { found.ipv6 }),
                    "{at}"
                );
            }
        }
        for every in ["0.0.0.0", "[::]"] {
            let bound = |port| bound(Protocol::Tcp, &format!("{every}:{port}"));
            assert_eq!(bound(80), ["0.0.0.0:80"]);
            assert_eq!(bound(81), [""; 0]);
            assert_eq!(bound(82), ["[::]:82"]);
            assert_eq!(bound(83), ["[::]:83"]);
            assert_eq!(bound(84), [""; 0]);
            assert_eq!(bound(86), ["0.0.0.0:86", "[::]:86"]);
        }
        let families = |at| {
            let found = tcp(at);
            (found[0].ipv4, found[0].ipv6)
        };
        assert_eq!(families("[::]:82"), (true, true));
        assert_eq!(families("[::]:83"), (false, true));
        assert_eq!(families("[::1]:84"), (false, true));
        assert_eq!(families("127.0.0.1:85"), (true, false));
    });
}

#[test]
fn datagram_sockets_are_found_unless_they_are_connected() {
    in_namespace(|| {
        let connected = datagrams("127.0.0.1:53", SHARED);
        connected.connect(&address("127.0.0.1:9").into()).unwrap();
        assert!(bound(Protocol::Udp, "127.0.0.1:53").is_empty());
        let _open = datagrams("127.0.0.1:53", SHARED);
        let _dual = datagrams("[::]:54", PLAIN);
        assert_eq!(bound(Protocol::Udp, "127.0.0.1:53"), ["127.0.0.1:53"]);
        assert_eq!(bound(Protocol::Udp, "0.0.0.0:54"), ["[::]:54"]);
        assert!(bound(Protocol::Tcp, "127.0.0.1:53").is_empty());
    });
}

#[test]
fn of_a_group_many_processes_go_before_many_sockets_of_one() {
    in_namespace(|| {
        let member = || listener("0.0.0.0:80", SHARED);
        let holders = [(); 3].map(|()| Holder::of_both([member(), member()]));
        let found = tcp("0.0.0.0:80");
        assert_eq!(found.len(), MEMBERS);
        let cookies: BTreeSet<u64> = found.iter().map(|found| found.cookie).collect();
        assert_eq!(cookies.len(), MEMBERS);
        let pids: BTreeSet<u32> = found.iter().map(|found| found.process.pid).collect();
        assert_eq!(pids, holders.iter().map(Holder::pid).collect());
        drop(found);
        let [first, second, _third] = holders;
        first.end();
        second.end();
        assert_eq!(tcp("0.0.0.0:80").len(), 2);
    });
}

#[test]
fn a_listener_is_transparent_by_the_option_of_either_family() {
    in_namespace(|| {
        let _sockets = [listener, datagrams].map(|make| {
            let by_name_of_ipv6 = make("[::]:83", PLAIN);
            by_name_of_ipv6.set_ip_transparent_v6(true).unwrap();
            [
                make("[::]:80", PLAIN),
                make("[::]:81", TRANSPARENT),
                make("0.0.0.0:82", TRANSPARENT),
                by_name_of_ipv6,
            ]
        });
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let transparent = [80, 81, 82, 83].map(|port| {
                let found = find(protocol, ([0, 0, 0, 0], port).into()).unwrap();
                assert_eq!(found[0].check_transparent().is_ok(), found[0].transparent);
                found[0].transparent
            });
            assert_eq!(transparent, [false, true, true, true]);
        }
        let refusal = tcp("[::]:80")[0]
            .check_transparent()
            .unwrap_err()
            .to_string();
        let named = format!(
            "(process {}) listens at [::]:80 without",
            std::process::id()
        );
        assert!(refusal.contains(&named), "{refusal}");
        assert!(refusal.ends_with("or use --scope inbound"), "{refusal}");
    });
}

#[test]
fn a_listener_of_another_namespace_is_named_and_others_of_this_one_are() {
    in_namespace(|| {
        let (holder, port) = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let socket = listener("0.0.0.0:0", PLAIN);
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            (Holder::of(socket), port)
        })
        .join()
        .unwrap();
        let at = address(&format!("127.0.0.1:{port}"));
        assert!(find(Protocol::Tcp, at).unwrap().is_empty());
        let other = format!("[::1]:{port}");
        let _other = listener(&other, PLAIN);
        let absence = || absence(Protocol::Tcp, at).unwrap();
        let elsewhere = absence();
        let pid = holder.pid();
        assert_eq!(
            elsewhere.to_string(),
            format!(
                "tcp {at} is listened at in the network namespace of sleep (process {pid}), not in this one: run tproxy there (--netns /proc/{pid}/ns/net)"
            )
        );
        assert_eq!(elsewhere.others, [address(&other)].into());
        holder.end();
        assert_eq!(
            absence().to_string(),
            format!("nobody listens at tcp {at}, only at {other}: name that address in --to")
        );
        // The search has not moved this thread.
        assert_eq!(tcp(&other).len(), 1);
    });
}

#[test]
fn a_process_that_may_not_be_looked_into_is_named() {
    in_namespace(|| {
        let holder = Holder::of_user(65_534, listener("127.0.0.1:80", Options::default()));
        assert_eq!(tcp("127.0.0.1:80").len(), 1);
        caps::drop(None, CapSet::Effective, Capability::CAP_SYS_PTRACE).unwrap();
        let error = find(Protocol::Tcp, address("127.0.0.1:80")).unwrap_err();
        // Other tests have processes of this user as well.
        let pid = holder.pid();
        assert!(
            matches!(&error, Error::NoHolder { hidden, .. } if hidden.iter().any(|it| it.pid == pid)),
            "{error}"
        );
        let said = error.to_string();
        assert!(said.contains(" may not be looked into: "), "{said}");
        assert!(
            said.ends_with("with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"),
            "{said}"
        );
        drop(holder);
    });
}

#[test]
fn two_capabilities_do_for_the_processes_of_every_user() {
    in_namespace(|| {
        let _holders = [(0, 80), (65_534, 81)].map(|(user, port)| {
            Holder::of_user(user, listener(&format!("127.0.0.1:{port}"), PLAIN))
        });
        let needed = [Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];
        let all = caps::read(None, CapSet::Effective).unwrap();
        let have = |capabilities: &[Capability]| {
            let set = capabilities.iter().copied().collect();
            caps::set(None, CapSet::Effective, &set).unwrap();
            let found =
                [80, 81].map(|port| find(Protocol::Tcp, ([127, 0, 0, 1], port).into()).is_ok());
            // It takes one of them to end the processes.
            caps::set(None, CapSet::Effective, &all).unwrap();
            found
        };
        assert_eq!(have(&needed), [true, true]);
        assert_eq!(have(&needed[1..]), [false, false]);
        assert_eq!(have(&needed[..1]), [true, false]);
    });
}
