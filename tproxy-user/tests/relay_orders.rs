//! Flows whose two ends send, close and reset in every order, against what each end must then see.

#[path = "relay_support/end.rs"]
mod end;
#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;

use std::net::TcpListener;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use end::End;
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
