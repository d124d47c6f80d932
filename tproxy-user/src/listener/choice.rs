//! Which sockets of a group are used where there are more than fit.

use std::cmp::Reverse;

use super::listing::Listed;

/// How many sockets one address can have at most: what has room in the kernel's table of sockets for
/// each rule and protocol.
pub const MEMBERS: usize = 4;

/// A socket that may be chosen.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) socket: &'a Listed,
    /// The process that has it, where it is known.
    pub(super) holder: Option<u32>,
}

/// What is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) holder: Option<u32>,
    pub(super) ipv4: bool,
    pub(super) ipv6: bool,
}

/// Chooses `room` candidates at most: first such that both families are served, as far as there are
/// sockets for them, and then of the processes that have the fewest.
pub(super) fn choose<'a>(
    candidates: impl IntoIterator<Item = Candidate<'a>>,
    there: &[Chosen],
    room: usize,
) -> Vec<&'a Listed> {
    let mut candidates: Vec<Candidate<'a>> = candidates.into_iter().collect();
    let mut there = there.to_vec();
    let mut chosen = Vec::new();
    while chosen.len() < room {
        let families = [
            there.iter().filter(|member| member.ipv4).count(),
            there.iter().filter(|member| member.ipv6).count(),
        ];
        let rank = |candidate: &Candidate<'a>| {
            let of_holder = there
                .iter()
                .filter(|member| member.holder == candidate.holder)
                .count();
            let served = [candidate.socket.ipv4, candidate.socket.ipv6];
            let fewest = served.iter().zip(families).filter(|(serves, _)| **serves);
            (
                fewest.map(|(_, count)| count).min(),
                of_holder,
                Reverse(served.iter().filter(|serves| **serves).count()),
                candidate.socket.cookie,
            )
        };
        let Some(best) = (0..candidates.len()).min_by_key(|place| rank(&candidates[*place])) else {
            break;
        };
        let best = candidates.swap_remove(best);
        there.push(Chosen {
            holder: best.holder,
            ipv4: best.socket.ipv4,
            ipv6: best.socket.ipv6,
        });
        chosen.push(best.socket);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(cookie: u64, bound: &str) -> Listed {
        let bound: std::net::SocketAddr = bound.parse().unwrap();
        Listed {
            bound,
            cookie,
            inode: 1,
            ipv4: bound.is_ipv4(),
            ipv6: bound.is_ipv6(),
            transparent: None,
        }
    }

    fn cookies(sockets: &[(u32, Listed)], there: &[Chosen], room: usize) -> Vec<u64> {
        let candidates = sockets.iter().map(|(holder, socket)| Candidate {
            socket,
            holder: Some(*holder),
        });
        let chosen = choose(candidates, there, room);
        chosen.iter().map(|socket| socket.cookie).collect()
    }

    #[test]
    fn many_processes_go_before_many_sockets_of_one() {
        let any = "0.0.0.0:80";
        let sockets: Vec<_> = [(7, 1), (7, 2), (7, 3), (8, 4), (9, 5)]
            .map(|(holder, cookie)| (holder, socket(cookie, any)))
            .into();
        assert_eq!(cookies(&sockets, &[], 4), [1, 4, 5, 2]);
        assert_eq!(cookies(&sockets, &[], 9).len(), 5);
        let there = Chosen {
            holder: Some(7),
            ipv4: true,
            ipv6: false,
        };
        assert_eq!(cookies(&sockets, &[there], 2), [4, 5]);
    }

    #[test]
    fn both_families_have_their_share() {
        let sockets: Vec<_> = (1..=8)
            .map(|cookie| {
                (
                    7,
                    socket(cookie, if cookie < 5 { "0.0.0.0:80" } else { "[::]:80" }),
                )
            })
            .collect();
        assert_eq!(cookies(&sockets, &[], 4), [1, 5, 2, 6]);
    }
}
