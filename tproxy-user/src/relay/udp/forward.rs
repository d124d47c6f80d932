//! Passes received datagrams on, as few messages as they fit in.
//!
//! Datagrams of equal length are handed to the kernel as one message with their length as its
//! segment size: they take the way through the network stack once, and become datagrams again at its
//! end (`UDP_SEGMENT`, udp(7)).

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;

use nix::libc;

use super::sys::{BATCH, Inbox, Message, send};

/// The most datagrams in one message: `UDP_MAX_SEGMENTS` of Linux before 6.9.
const MOST_SEGMENTS: usize = 64;
/// The most bytes in one message: what a UDP datagram over IPv4 can hold (RFC 768, RFC 791).
const MOST_BYTES: usize = 65_507;

/// What became of some datagrams.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Bytes of those that were sent.
    pub(super) bytes: u64,
    /// How many were not.
    pub(super) dropped: u64,
    /// The last error that may say something about the other end.
    pub(super) error: Option<io::Error>,
}

/// Sends datagrams of the inbox over a connected socket. What its send buffer has no room for is
/// dropped.
///
/// `segmentation` says whether this socket takes messages of several datagrams, and is cleared for
/// good when it does not: when they are longer than the path's MTU, or the device cannot compute
/// checksums.
pub(super) fn pass(
    inbox: &Inbox,
    range: Range<usize>,
    socket: &impl AsFd,
    segmentation: &mut bool,
) -> Passed {
    let mut passed = Passed::default();
    let mut rest = range.clone();
    while *segmentation && !rest.is_empty() {
        let sent = Batch::joined(inbox, rest.clone()).send(socket, &mut passed);
        match sent {
            Sent::All => return passed,
            Sent::Refused { datagram } => {
                *segmentation = false;
                rest.start = datagram;
            }
        }
    }
    Batch::single(inbox, rest).send(socket, &mut passed);
    passed
}

/// Messages made of received ones.
struct Batch<'a> {
    slices: Vec<IoSlice<'a>>,
    messages: Vec<Message>,
    /// For each message, the first of the received ones that it was made of.
    origins: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Everything was sent or dropped.
    All,
    /// The kernel did not take the message with this received one as several datagrams.
    Refused { datagram: usize },
}

impl<'a> Batch<'a> {
    /// Each received message as it is, together with those before it if they are of one length.
    fn joined(inbox: &'a Inbox, range: Range<usize>) -> Self {
        let mut batch = Self::with_room_for(range.len());
        let mut run = Run::default();
        for index in range {
            let payload = inbox.payload(index);
            let segment = inbox.segment(index);
            if !run.takes(payload.len(), segment) {
                run = Run::begin(payload.len(), segment);
                batch.begin(index, segment);
            }
            batch.extend(payload);
            if run.number > 1 {
                batch.set_segment(run.segment);
            }
        }
        batch
    }

    /// Each datagram as a message of its own.
    fn single(inbox: &'a Inbox, range: Range<usize>) -> Self {
        let mut batch = Self::with_room_for(range.len());
        for index in range {
            for datagram in datagrams(inbox.payload(index), inbox.segment(index)) {
                batch.begin(index, None);
                batch.extend(datagram);
            }
        }
        batch
    }

    fn with_room_for(number: usize) -> Self {
        Self {
            slices: Vec::with_capacity(number),
            messages: Vec::with_capacity(number),
            origins: Vec::with_capacity(number),
        }
    }

    fn begin(&mut self, origin: usize, segment: Option<u16>) {
        let start = self.slices.len();
        self.messages.push(Message {
            slices: start..start,
            segment,
        });
        self.origins.push(origin);
    }

    fn extend(&mut self, payload: &'a [u8]) {
        self.slices.push(IoSlice::new(payload));
        if let Some(message) = self.messages.last_mut() {
            message.slices.end = self.slices.len();
        }
    }

    fn set_segment(&mut self, segment: u16) {
        if let Some(message) = self.messages.last_mut() {
            message.segment = Some(segment);
        }
    }

    fn send(&self, socket: &impl AsFd, passed: &mut Passed) -> Sent {
        let mut next = 0;
        while let Some(message) = self.messages.get(next) {
            let end = self.messages.len().min(next + BATCH);
            match send(socket, &self.slices, &self.messages[next..end]) {
                Ok(sent) => {
                    let sent = &self.messages[next..next + sent];
                    passed.bytes += sent.iter().map(|message| self.bytes(message)).sum::<u64>();
                    next += sent.len();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let rest = &self.messages[next..];
                    passed.dropped += rest.iter().map(|message| self.number(message)).sum::<u64>();
                    return Sent::All;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if message.segment.is_some() && is_refusal(&error) => {
                    return Sent::Refused {
                        datagram: self.origins[next],
                    };
                }
                Err(error) => {
                    passed.dropped += self.number(message);
                    passed.error = Some(error);
                    next += 1;
                }
            }
        }
        Sent::All
    }

    fn bytes(&self, message: &Message) -> u64 {
        let slices = &self.slices[message.slices.clone()];
        slices.iter().map(|slice| slice.len() as u64).sum()
    }

    fn number(&self, message: &Message) -> u64 {
        message
            .segment
            .map_or(1, |segment| self.bytes(message).div_ceil(segment.into()))
    }
}

/// The datagrams of a message under construction.
#[derive(Debug, Default)]
struct Run {
    segment: u16,
    number: usize,
    bytes: usize,
    /// A shorter datagram has ended it, or it began as one of several.
    closed: bool,
}

impl Run {
    fn begin(length: usize, segment: Option<u16>) -> Self {
        match (segment, u16::try_from(length)) {
            (None, Ok(length @ 1..)) => Self {
                segment: length,
                number: 1,
                bytes: length.into(),
                closed: false,
            },
            _ => Self {
                closed: true,
                ..Self::default()
            },
        }
    }

    /// Takes a datagram in if it may follow the others.
    fn takes(&mut self, length: usize, segment: Option<u16>) -> bool {
        let fits = !self.closed
            && self.number > 0
            && segment.is_none()
            && (1..=usize::from(self.segment)).contains(&length)
            && self.number < MOST_SEGMENTS
            && self.bytes + length <= MOST_BYTES;
        if fits {
            self.number += 1;
            self.bytes += length;
            self.closed = length < usize::from(self.segment);
        }
        fits
    }
}

/// The datagrams that a received message consists of.
pub(super) fn datagrams(payload: &[u8], segment: Option<u16>) -> impl Iterator<Item = &[u8]> {
    let length = segment.map_or(payload.len(), usize::from).max(1);
    // An empty datagram is one, too.
    let empty = payload.is_empty().then_some(payload);
    empty.into_iter().chain(payload.chunks(length))
}

/// Whether the error is that a message cannot be sent as several datagrams (`udp_send_skb` of Linux):
/// too long for the path, or not over this device.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO | libc::EOPNOTSUPP)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How received messages (length and segment) are put together: how many in each message, and its
    /// segment.
    fn runs(received: &[(usize, Option<u16>)]) -> Vec<(usize, Option<u16>)> {
        let mut runs: Vec<(usize, Option<u16>)> = Vec::new();
        let mut run = Run::default();
        for &(length, segment) in received {
            if run.takes(length, segment) {
                let last = runs.last_mut().unwrap();
                *last = (last.0 + 1, Some(run.segment));
            } else {
                run = Run::begin(length, segment);
                runs.push((1, segment));
            }
        }
        runs
    }

    #[test]
    fn equal_datagrams_are_joined_and_a_shorter_one_ends_them() {
        let plain = |length| (length, None);
        let joined = runs(&[100, 100, 40, 100, 200, 200].map(plain));
        assert_eq!(joined, [(3, Some(100)), (1, None), (2, Some(200))]);
    }

    #[test]
    fn empty_datagrams_stay_alone() {
        let joined = runs(&[0, 0, 5, 0, 5].map(|length| (length, None)));
        assert_eq!(joined, [(1, None); 5]);
    }

    #[test]
    fn what_the_kernel_has_joined_stays_as_it_is() {
        let joined = runs(&[(100, None), (250, Some(100)), (100, None), (100, None)]);
        assert_eq!(joined, [(1, None), (1, Some(100)), (2, Some(100))]);
    }

    #[test]
    fn no_message_is_longer_than_the_kernel_takes() {
        let joined = runs(&[(1, None); 100]);
        assert_eq!(joined, [(64, Some(1)), (36, Some(1))]);
        let joined = runs(&[(1472, None); 64]);
        assert_eq!(joined, [(44, Some(1472)), (20, Some(1472))]);
    }

    #[test]
    fn a_message_falls_apart_into_its_datagrams() {
        let lengths = |payload: &[u8], segment| -> Vec<usize> {
            datagrams(payload, segment).map(<[u8]>::len).collect()
        };
        assert_eq!(lengths(&[0; 250], Some(100)), [100, 100, 50]);
        assert_eq!(lengths(&[0; 250], None), [250]);
        assert_eq!(lengths(&[], None), [0]);
    }
}
