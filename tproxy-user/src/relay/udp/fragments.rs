//! Datagrams of IPv6 in fragments that every link takes (RFC 8200, sections 4.5 and 5).

use std::hash::{BuildHasher as _, RandomState};

use etherparse::{IpFragOffset, IpNumber, Ipv6FragmentHeader};

/// The longest packet that every link takes.
const LEAST_MTU: usize = 1280;
const FIXED_HEADER: usize = 40;

/// What a fragment carries; all but the last carry a multiple of eight octets.
const PART: usize = (LEAST_MTU - FIXED_HEADER - Ipv6FragmentHeader::LEN) & !7;

/// Whether a datagram, with its header, may be too long for a link.
pub(super) const fn is_long(datagram: usize) -> bool {
    FIXED_HEADER + datagram > LEAST_MTU
}

/// The fragments of a datagram with its header: what each begins with, and its part.
pub(super) fn of(
    datagram: &[u8],
    identification: u32,
) -> impl Iterator<Item = ([u8; Ipv6FragmentHeader::LEN], &[u8])> {
    let parts = datagram.chunks(PART).zip((0_u16..).step_by(PART / 8));
    parts.map(move |(part, offset)| {
        let is_last = usize::from(offset) * 8 + part.len() == datagram.len();
        // In units of eight octets that of a datagram fits the 13 bits.
        let offset = IpFragOffset::try_new(offset).unwrap_or_default();
        let header = Ipv6FragmentHeader::new(IpNumber::UDP, offset, !is_last, identification);
        (header.to_bytes(), part)
    })
}

/// Numbers by which fragments of one datagram are told from those of others, hard to guess from one
/// another (RFC 7739).
#[derive(Debug, Default)]
pub(super) struct Identifications {
    key: RandomState,
    given: u64,
}

impl Identifications {
    pub(super) fn next(&mut self) -> u32 {
        self.given += 1;
        // Half of a hash is a hash.
        let [.., a, b, c, d] = self.key.hash_one(self.given).to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_fit_every_link_and_make_the_datagram_again() {
        for length in [1241, 1242, 2 * PART, 2 * PART + 1, 65_535] {
            assert!(is_long(length));
            let datagram: Vec<u8> = (0..=250).cycle().take(length).collect();
            let fragments: Vec<_> = of(&datagram, 7).collect();
            let mut whole = Vec::new();
            for (position, (header, part)) in fragments.iter().enumerate() {
                assert!(FIXED_HEADER + header.len() + part.len() <= LEAST_MTU);
                let (header, _) = Ipv6FragmentHeader::from_slice(header).unwrap();
                assert_eq!(header.next_header, IpNumber::UDP);
                assert_eq!(header.identification, 7);
                assert_eq!(usize::from(header.fragment_offset.value()) * 8, whole.len());
                assert_eq!(header.more_fragments, position + 1 < fragments.len());
                whole.extend_from_slice(part);
            }
            assert_eq!(whole, datagram);
        }
        assert!(!is_long(1240));
    }

    #[test]
    fn identifications_do_not_follow_one_another() {
        let mut identifications = Identifications::default();
        let [first, second] = [(); 2].map(|()| identifications.next());
        assert_ne!(first.wrapping_add(1), second);
    }
}
