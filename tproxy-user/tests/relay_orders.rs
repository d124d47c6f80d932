//! Flows whose two ends send, close and reset in every order, against what each end must then see.

#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use socket2::SockRef;

use relay_support::{Harness, accept, eventually, server};

/// Something that one of the two ends does; `true` is the client.
#[derive(Debug, Clone, Copy)]
enum Step {
    Send(bool, usize),
    /// Reads what has been sent by the other end and not been read.
    Receive(bool),
    Close(bool),
    Reset(bool),
}

/// One end: its stream, what it has sent, and what it has seen.
struct End {
    stream: Option<TcpStream>,
    sent: usize,
    received: usize,
    closed: bool,
}

#[test]
fn every_order_ends_as_it_would_without_a_relay() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let step = prop_oneof![
        6 => (any::<bool>(), 1_usize..40_000).prop_map(|(end, length)| Step::Send(end, length)),
        4 => any::<bool>().prop_map(Step::Receive),
        2 => any::<bool>().prop_map(Step::Close),
        1 => any::<bool>().prop_map(Step::Reset),
    ];
    let mut runner = TestRunner::new(Config {
        cases: 2_000,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&proptest::collection::vec(step, 0..12), |steps| {
            play(&harness, &listener, &steps);
            Ok(())
        })
        .unwrap();
    eventually("no flow left", || harness.total(|stats| stats.flows) == 0);
    assert_eq!(harness.total(|stats| stats.pipes), 0);
}

fn play(harness: &Harness, listener: &TcpListener, steps: &[Step]) {
    let client = End::new(harness.connect());
    let mut ends = [End::new(accept(listener)), client];
    for &step in steps {
        match step {
            Step::Send(end, length) => ends[usize::from(end)].send(length),
            Step::Receive(end) => {
                let sent = ends[usize::from(!end)].sent;
                ends[usize::from(end)].receive(sent);
            }
            Step::Close(end) => ends[usize::from(end)].close(),
            // The flow is over already, and the ends may be in TIME_WAIT.
            Step::Reset(_) if ends.iter().all(|end| end.closed) => {}
            Step::Reset(end) => {
                ends[usize::from(end)].reset();
                ends[usize::from(!end)].expect_reset();
                let expected = if end {
                    "client-reset"
                } else {
                    "upstream-reset"
                };
                assert_eq!(harness.ended().end, expected);
                return;
            }
        }
    }
    let [server, client] = &mut ends;
    for end in [&mut *server, &mut *client] {
        end.close();
    }
    server.receive(client.sent);
    client.receive(server.sent);
    server.expect_end();
    client.expect_end();
    let ended = harness.ended();
    assert_eq!(ended.end, "fin");
    assert_eq!(
        (ended.to_upstream, ended.to_client),
        (client.sent as u64, server.sent as u64)
    );
}

impl End {
    fn new(stream: TcpStream) -> Self {
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

    fn send(&mut self, length: usize) {
        if !self.closed {
            let bytes: Vec<u8> = (self.sent..self.sent + length).map(byte).collect();
            self.stream().write_all(&bytes).unwrap();
            self.sent += length;
        }
    }

    fn receive(&mut self, until: usize) {
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

    fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.stream().shutdown(Shutdown::Write).unwrap();
        }
    }

    fn reset(&mut self) {
        let stream = self.stream.take().expect("a stream that was not reset");
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }

    /// Reads what came before the RST, then the RST.
    fn expect_reset(&mut self) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let stream = self.stream();
            match stream.read(&mut buffer) {
                // An end of the stream that came before the RST hides it from reads, and not from the socket.
                Ok(0) => return eventually("a RST", || stream_is_reset(stream)),
                Ok(_) => {}
                Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
        }
    }

    fn expect_end(&mut self) {
        assert_eq!(
            self.stream().read(&mut [0]).unwrap(),
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
