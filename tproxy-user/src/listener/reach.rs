//! Which of the listed sockets a connection reaches.

use std::net::SocketAddr;

use super::listing::Listed;

/// The sockets of `listed` that a connection to `address` reaches, in the same order; for `0.0.0.0`
/// and `::` all that are bound to every address of either family.
pub(super) fn reached(listed: &[Listed], address: SocketAddr) -> Vec<&Listed> {
    let target = address.ip().to_canonical();
    let at_port = || {
        listed
            .iter()
            .filter(move |socket| socket.bound.port() == address.port())
    };
    if target.is_unspecified() {
        return at_port().filter(|socket| socket.is_wildcard()).collect();
    }
    let bound_to_it: Vec<&Listed> = at_port()
        .filter(|socket| socket.bound.ip() == target)
        .collect();
    if !bound_to_it.is_empty() {
        return bound_to_it;
    }
    let wildcards = || at_port().filter(move |socket| socket.is_wildcard() && socket.takes(target));
    // The kernel prefers a socket of the family to a dual-stack one (`compute_score`).
    let of_family: Vec<&Listed> = wildcards()
        .filter(|socket| socket.bound.is_ipv4() == target.is_ipv4())
        .collect();
    if of_family.is_empty() {
        wildcards().collect()
    } else {
        of_family
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(bound: &str, ipv4: bool, ipv6: bool) -> Listed {
        Listed {
            bound: bound.parse().unwrap(),
            cookie: 1,
            inode: 1,
            ipv4,
            ipv6,
            transparent: None,
        }
    }

    fn reached_at(listed: &[Listed], address: &str) -> Vec<String> {
        let reached = reached(listed, address.parse().unwrap());
        let bound = reached.iter().map(|socket| socket.bound.to_string());
        bound.collect()
    }

    #[test]
    fn a_socket_bound_to_the_address_goes_before_one_that_is_bound_to_all() {
        let listed = [
            socket("0.0.0.0:80", true, false),
            socket("127.0.0.1:80", true, false),
            socket("127.0.0.1:81", true, false),
            socket("[::]:80", false, true),
        ];
        assert_eq!(reached_at(&listed, "127.0.0.1:80"), ["127.0.0.1:80"]);
        assert_eq!(
            reached_at(&listed, "[::ffff:127.0.0.1]:80"),
            ["127.0.0.1:80"]
        );
        assert_eq!(reached_at(&listed, "127.0.0.2:80"), ["0.0.0.0:80"]);
        assert_eq!(reached_at(&listed, "[::1]:80"), ["[::]:80"]);
        assert_eq!(reached_at(&listed, "[::1]:81"), [""; 0]);
    }

    #[test]
    fn every_address_means_the_sockets_of_both_families_that_are_bound_to_all() {
        let listed = [
            socket("0.0.0.0:80", true, false),
            socket("127.0.0.1:80", true, false),
            socket("[::]:80", false, true),
        ];
        for address in ["0.0.0.0:80", "[::]:80"] {
            assert_eq!(reached_at(&listed, address), ["0.0.0.0:80", "[::]:80"]);
        }
    }

    #[test]
    fn a_dual_stack_socket_serves_ipv4_where_no_socket_of_ipv4_does() {
        let dual = [socket("[::]:80", true, true)];
        let only_ipv6 = [socket("[::]:80", false, true)];
        assert_eq!(reached_at(&dual, "127.0.0.1:80"), ["[::]:80"]);
        assert_eq!(reached_at(&dual, "0.0.0.0:80"), ["[::]:80"]);
        assert_eq!(reached_at(&only_ipv6, "127.0.0.1:80"), [""; 0]);
        let both = [socket("0.0.0.0:80", true, false), dual[0].clone()];
        assert_eq!(reached_at(&both, "127.0.0.1:80"), ["0.0.0.0:80"]);
        assert_eq!(reached_at(&both, "[::1]:80"), ["[::]:80"]);
    }
}
