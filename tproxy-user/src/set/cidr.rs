//! One CIDR or address, as it is typed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// What a word was taken as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The prefix, without host bits; IPv4-mapped IPv6 is IPv4 (RFC 4291, 2.5.5.2), because that is
    /// how such flows look on the wire.
    pub net: IpNet,
    /// Whether host bits were set and are gone.
    pub masked: bool,
}

impl Cidr {
    /// Reads a CIDR or an address; `None` when it is neither.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        let (address, length) = match word.split_once('/') {
            Some((address, length)) => (address, Some(parse_length(length)?)),
            None => (word, None),
        };
        // What has no colon is no IPv6: half of the parser's work is spared.
        let address: IpAddr = if address.contains(':') {
            address.parse::<Ipv6Addr>().ok()?.into()
        } else {
            address.parse::<Ipv4Addr>().ok()?.into()
        };
        let typed = match length {
            Some(length) => IpNet::new(address, length).ok()?,
            None => IpNet::from(address),
        };
        let net = typed.trunc();
        Some(Self {
            net: unmapped(net),
            masked: net != typed,
        })
    }
}

/// Up to three digits; no sign, no zero before others.
fn parse_length(digits: &str) -> Option<u8> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    if !plain || digits.len() > 1 && digits.starts_with('0') {
        return None;
    }
    digits.parse().ok()
}

fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let v4 = || {
        let length = v6.prefix_len().checked_sub(96)?;
        Ipv4Net::new(v6.addr().to_ipv4_mapped()?, length).ok()
    };
    v4().map_or(net, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(word: &str) -> (String, bool) {
        let cidr = Cidr::parse(word).unwrap_or_else(|| panic!("{word}"));
        (cidr.net.to_string(), cidr.masked)
    }

    #[test]
    fn addresses_and_cidrs_of_both_families_are_taken() {
        for (word, net, masked) in [
            ("10.0.0.0/8", "10.0.0.0/8", false),
            ("0.0.0.0/0", "0.0.0.0/0", false),
            ("10.1.2.3", "10.1.2.3/32", false),
            ("10.1.2.3/8", "10.0.0.0/8", true),
            ("2001:DB8::/32", "2001:db8::/32", false),
            ("2001:db8::1/32", "2001:db8::/32", true),
            ("::", "::/128", false),
            ("::/0", "::/0", false),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24", false),
            ("::ffff:192.0.2.1", "192.0.2.1/32", false),
            ("::ffff:192.0.2.1/96", "0.0.0.0/0", true),
            ("::ffff:0:0/95", "::fffe:0:0/95", true),
        ] {
            assert_eq!(parsed(word), (net.to_owned(), masked), "{word}");
        }
    }

    #[test]
    fn everything_else_is_not() {
        for word in [
            "",
            "/",
            "/8",
            "10.0.0/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0.0/8/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0 /8",
            "010.0.0.0/8",
            "::/129",
            "::/256",
            "fe80::1%eth0",
            "[::1]",
            "host",
            "!10.0.0.0/8",
        ] {
            assert_eq!(Cidr::parse(word), None, "{word}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(address: IpAddr, length in 0_u8..=128) {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let typed = IpNet::new(address, length % (longest + 1)).unwrap();
            let cidr = Cidr::parse(&typed.to_string()).unwrap();
            prop_assert_eq!(cidr.masked, typed != typed.trunc());
            prop_assert_eq!(Cidr::parse(&cidr.net.to_string()).map(|cidr| cidr.net), Some(cidr.net));
        }

        #[test]
        fn no_text_makes_it_panic(word in "\\PC{0,40}|[0-9a-f:./]{0,40}") {
            let _ = Cidr::parse(&word);
        }
    }
}
