//! One of the two ends of a flow: it sends, closes and resets, and checks what it sees of the other.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use tproxy_tests::wait::uninterrupted;

use crate::relay_support::{eventually, reset};

/// An end: its stream, what it has sent, and what it has seen.
pub(crate) struct End {
    stream: Option<TcpStream>,
    /// How many bytes it has sent.
    pub(crate) sent: usize,
    received: usize,
    /// Whether it has sent its FIN.
    pub(crate) closed: bool,
}

impl End {
    /// An end that has sent and seen nothing.
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream: Some(stream),
            sent: 0,
            received: 0,
            closed: false,
        }
    }

    fn stream(&mut self) -> &mut TcpStream {
        self.stream.as_mut().expect("a stream that was not reset")
    }

    /// Sends so many bytes more, unless it is closed.
    pub(crate) fn send(&mut self, length: usize) {
        if !self.closed {
            let bytes: Vec<u8> = (self.sent..self.sent + length).map(byte).collect();
            self.stream().write_all(&bytes).unwrap();
            self.sent += length;
        }
    }

    /// Reads up to the byte of this number that the other end has sent.
    pub(crate) fn receive(&mut self, until: usize) {
        let mut bytes = vec![0; until - self.received];
        self.stream().read_exact(&mut bytes).unwrap();
        assert!(
            bytes
                .iter()
                .zip(self.received..)
                .all(|(&got, offset)| got == byte(offset)),
            "bytes differ"
        );
        self.received = until;
    }

    /// Sends a FIN, once.
    pub(crate) fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.stream().shutdown(Shutdown::Write).unwrap();
        }
    }

    /// Sends a RST.
    pub(crate) fn reset(&mut self) {
        reset(self.stream.take().expect("a stream that was not reset"));
    }

    /// Reads what came before the RST, then the RST.
    pub(crate) fn expect_reset(&mut self) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let stream = self.stream();
            match uninterrupted(|| stream.read(&mut buffer)) {
                // An end of the stream that came before the RST hides it from reads, and not from the socket.
                Ok(0) => return eventually("a RST", || stream_is_reset(stream)),
                Ok(_) => {}
                Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
        }
    }

    /// Reads the end of the stream.
    pub(crate) fn expect_end(&mut self) {
        assert_eq!(
            uninterrupted(|| self.stream().read(&mut [0])).unwrap(),
            0,
            "bytes after the last"
        );
    }
}

fn stream_is_reset(stream: &TcpStream) -> bool {
    stream
        .peer_addr()
        .is_err_and(|error| error.kind() == ErrorKind::NotConnected)
}

fn byte(offset: usize) -> u8 {
    u8::try_from(offset % 251).expect("less than 251")
}
