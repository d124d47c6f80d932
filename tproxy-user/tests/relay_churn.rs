//! Thousands of flows, and nothing left of them. Descriptors belong to a process, so this test has one to itself.

#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;

use relay_support::{Harness, accept, eventually, server};

const THREADS: u64 = 4;
const FLOWS: u64 = 2_500;

#[test]
fn nothing_is_left_of_ten_thousand_flows() {
    let (listener, upstream) = server();
    let server = std::thread::spawn(move || {
        for number in 0..THREADS * FLOWS {
            let mut stream = accept(&listener);
            stream.read_exact(&mut [0; 4]).unwrap();
            stream.write_all(b"pong").unwrap();
            match number % 3 {
                0 => SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap(),
                1 => stream.shutdown(Shutdown::Write).unwrap(),
                _ => {}
            }
        }
    });
    let harness = Harness::new(upstream);
    let before = open_descriptors();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..FLOWS {
                    let mut client = harness.connect();
                    client.write_all(b"ping").unwrap();
                    let mut answer = [0; 4];
                    // A RST may overtake the answer.
                    match client.read_exact(&mut answer) {
                        Ok(()) => assert_eq!(&answer, b"pong"),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
                    }
                }
            });
        }
    });
    server.join().unwrap();

    for _ in 0..THREADS * FLOWS {
        let ended = harness.ended();
        assert!(
            ["fin", "upstream-reset", "client-reset"].contains(&ended.end.as_str()),
            "{ended:?}"
        );
    }
    assert!(harness.none_ended());
    eventually("no flow left", || harness.total(|stats| stats.flows) == 0);
    assert_eq!(harness.total(|stats| stats.accepted), THREADS * FLOWS);
    assert_eq!(
        harness.policy.to_upstream.load(Ordering::Relaxed),
        THREADS * FLOWS * 4
    );
    // The server's listener is gone; the relay has a spare for the next flow's upstream socket.
    assert!(
        open_descriptors() <= before,
        "{before} descriptors before, {} after",
        open_descriptors()
    );
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
