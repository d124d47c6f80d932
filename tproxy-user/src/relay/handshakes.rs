//! Handshakes with servers whose last ACK waits for the client's first bytes to go with it.
//!
//! A worker with other flows to serve meanwhile lets the ACK wait, and most need no packet of their
//! own. One that would sleep sends them first.

use std::collections::VecDeque;
use std::time::Duration;

/// How long an ACK waits at a worker that does not sleep: the server may be the one to speak first.
const LONGEST: Duration = Duration::from_micros(500);

/// The flows whose handshakes are not complete, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Handshakes(VecDeque<Handshake>);

#[derive(Debug)]
struct Handshake {
    key: usize,
    serial: u32,
    since: Duration,
}

impl Handshakes {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets the ACK of a flow wait from `since` on, which is since the relay's epoch.
    pub(super) fn defer(&mut self, key: usize, serial: u32, since: Duration) {
        self.0.push_back(Handshake { key, serial, since });
    }

    /// The key and the serial number of a flow whose ACK is due, if bytes have not taken it along. All
    /// of them are when the worker is idle.
    pub(super) fn next_due(&mut self, now: Duration, idle: bool) -> Option<(usize, u32)> {
        let is_due = |handshake: &mut Handshake| idle || now >= handshake.since + LONGEST;
        let Handshake { key, serial, .. } = self.0.pop_front_if(is_due)?;
        Some((key, serial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1);

    #[test]
    fn an_ack_waits_while_its_worker_is_busy() {
        let mut handshakes = Handshakes::default();
        handshakes.defer(3, 30, START);
        handshakes.defer(4, 40, START + LONGEST / 2);
        assert_eq!(handshakes.next_due(START + LONGEST / 2, false), None);
        assert_eq!(handshakes.next_due(START + LONGEST, false), Some((3, 30)));
        assert_eq!(handshakes.next_due(START + LONGEST, false), None);
        assert_eq!(
            handshakes.next_due(START + 2 * LONGEST, false),
            Some((4, 40))
        );
        assert!(handshakes.is_empty());
    }

    #[test]
    fn an_idle_worker_owes_none() {
        let mut handshakes = Handshakes::default();
        handshakes.defer(3, 30, START);
        handshakes.defer(4, 40, START);
        assert!(!handshakes.is_empty());
        assert_eq!(handshakes.next_due(START, true), Some((3, 30)));
        assert_eq!(handshakes.next_due(START, true), Some((4, 40)));
        assert_eq!(handshakes.next_due(START, true), None);
    }
}
