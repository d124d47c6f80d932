//! Stalled flows, waiting flows, and the end of the relay itself.

#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::libc;
use nix::unistd::{Pid, gettid};
use tproxy_tests::wait::uninterrupted;
use tproxy_user::relay::{Admission, Settings, bind};

use relay_support::{Harness, PATIENCE, accept, assert_reset, eventually, patient, server, tag};

#[test]
fn a_receiver_that_stops_reading_stops_its_sender() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let client = harness.connect();
    let mut server = accept(&listener);

    let sent = send_until_blocked(&client);
    assert!(sent < 64 << 20, "{sent} bytes fit between two ends");
    assert!(harness.total(|stats| stats.pipes) <= 1);

    // Others are not held up.
    let other = harness.connect();
    round_trip(&other, &accept(&listener));

    client.shutdown(Shutdown::Write).unwrap();
    let received = std::io::copy(&mut server, &mut std::io::sink()).unwrap();
    assert_eq!(received, sent);
    eventually("the pipe back", || harness.total(|stats| stats.pipes) == 0);
}

#[test]
fn stalled_flows_without_a_pipe_copy() {
    const FLOWS: usize = 3;
    let (listener, upstream) = server();
    let harness = Harness::with(
        upstream,
        Settings {
            max_pipes: Some(1),
            ..Settings::default()
        },
    );
    let pairs: Vec<_> = (0..FLOWS)
        .map(|_| (harness.connect(), accept(&listener)))
        .collect();
    let sent: Vec<u64> = pairs
        .iter()
        .map(|(client, _)| send_until_blocked(client))
        .collect();
    for ((client, mut server), sent) in pairs.into_iter().zip(sent) {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            std::io::copy(&mut server, &mut std::io::sink()).unwrap(),
            sent
        );
    }
    eventually("the pipes back", || harness.total(|stats| stats.pipes) == 0);
}

/// Flows that have met at one worker part when they turn out to be long, wherever their bytes are then.
#[test]
fn long_transfers_are_spread_over_the_workers() {
    assert_long_flows_are_spread(3 << 20);
}

#[test]
fn long_conversations_are_spread_over_the_workers() {
    assert_long_flows_are_spread(2000);
}

/// The bytes of each flow are sent in pieces, the next when the last has arrived.
fn assert_long_flows_are_spread(piece: usize) {
    const FLOWS: usize = 6;
    const BEFORE: usize = 3 << 20;
    let (listener, upstream) = server();
    let listeners = bind(0, 2).unwrap();
    let harness = Harness::choosing(
        listeners,
        Settings::default(),
        Box::new(move |_, client, _| Some(Admission::direct(tag(), client, upstream))),
    );
    let port = harness.address.port();
    let flows = || harness.relay.stats().into_iter().map(|stats| stats.flows);
    let mut pairs = Vec::new();
    while pairs.len() < FLOWS {
        let before = harness.relay.stats()[0].accepted;
        let client = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
        let pair = (client, accept(&listener));
        if harness.relay.stats()[0].accepted > before {
            pairs.push(pair);
        }
    }
    eventually("only flows of the first worker", || flows().eq([6, 0]));

    let bytes: Vec<u8> = (0..=250).cycle().take(BEFORE).collect();
    for (client, server) in &mut pairs {
        for piece in bytes.chunks(piece) {
            let mut received = vec![0; piece.len()];
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| server.read_exact(&mut received));
                client.write_all(piece).unwrap();
                reader.join().unwrap().unwrap();
            });
            assert!(received == piece, "bytes are changed");
        }
    }
    eventually("as many flows at each worker", || flows().eq([3, 3]));

    // All of them go on, in both directions and to their end.
    for (mut client, mut server) in pairs {
        round_trip(&client, &server);
        client.write_all(b"the end").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        server.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "the end");
        drop(server);
        assert_eq!(uninterrupted(|| client.read(&mut [0])).unwrap(), 0);
        let mut all_ended = std::iter::from_fn(|| Some(harness.ended()));
        // The connections that were not wanted have ended too.
        let ended = all_ended.find(|ended| ended.to_upstream > 0).unwrap();
        assert!(ended.to_upstream > BEFORE as u64);
    }
    eventually("no flow", || flows().eq([0, 0]));
    eventually("no pipe in use", || harness.total(|stats| stats.pipes) == 0);
}

/// A worker that finds several connections at once is awake and had better get the next ones too.
#[test]
fn a_worker_that_keeps_up_wants_more() {
    let (listener, upstream) = server();
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let waiting = connect_to(&own, 3);
    let harness = Harness::on(vec![own], upstream, Settings::default());
    let wanted = || harness.policy.wanted.load(Ordering::Relaxed);
    for client in &waiting {
        round_trip(client, &accept(&listener));
    }
    eventually("more is wanted", || wanted() == 1);

    for _ in 0..3 {
        round_trip(&harness.connect(), &accept(&listener));
    }
    assert_eq!(wanted(), 1, "one at a time, it goes to sleep in between");
}

#[test]
fn a_worker_that_has_many_more_flows_than_another_wants_none() {
    const MANY: usize = 70;
    let (listener, upstream) = server();
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let waiting = connect_to(&listeners[0], MANY);
    let harness = Harness::on(listeners.into(), upstream, Settings::default());
    for client in &waiting {
        round_trip(client, &accept(&listener));
    }
    let flows: Vec<_> = harness
        .relay
        .stats()
        .iter()
        .map(|stats| stats.flows)
        .collect();
    assert_eq!(flows, [MANY as u64, 0]);
    assert_eq!(harness.policy.wanted.load(Ordering::Relaxed), 0);
}

/// Connections that wait to be accepted.
fn connect_to(listener: &TcpListener, number: usize) -> Vec<TcpStream> {
    let address = listener.local_addr().unwrap();
    (0..number)
        .map(|_| patient(TcpStream::connect(address).unwrap()))
        .collect()
}

/// By its scheduling policy, a busy worker takes the CPU from nobody when it wakes up.
#[test]
fn a_busy_worker_gives_way_to_those_that_wake_it() {
    let (listener, upstream) = server();
    let (tell, told) = mpsc::channel();
    let harness = Harness::choosing(
        bind(0, 1).unwrap(),
        Settings::default(),
        Box::new(move |_, client, _| {
            tell.send(gettid()).unwrap();
            Some(Admission::direct(tag(), client, upstream))
        }),
    );
    let address = ("127.0.0.1", harness.address.port());
    let client = patient(TcpStream::connect(address).unwrap());
    let server = accept(&listener);
    let worker = told.recv().unwrap();
    assert_eq!(scheduling_policy(worker), libc::SCHED_OTHER);
    eventually("SCHED_BATCH", || {
        (0..100).any(|_| {
            round_trip(&client, &server);
            scheduling_policy(worker) == libc::SCHED_BATCH
        })
    });
}

/// The policy of a thread of this process (`policy` of `/proc/pid/stat`, proc(5)).
fn scheduling_policy(thread: Pid) -> i32 {
    const PLACE_BEHIND_THE_NAME: usize = 38;
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let policy = fields.split_whitespace().nth(PLACE_BEHIND_THE_NAME);
    policy.unwrap().parse().unwrap()
}

#[test]
fn connections_beyond_the_bound_wait_for_their_turn() {
    let (listener, upstream) = server();
    let harness = Harness::with(
        upstream,
        Settings {
            max_flows: Some(2),
            ..Settings::default()
        },
    );
    let first = (harness.connect(), accept(&listener));
    let second = (harness.connect(), accept(&listener));
    let third = harness.connect();
    eventually("a pause", || harness.total(|stats| stats.pauses) > 0);
    assert_eq!(harness.total(|stats| stats.accepted), 2);
    round_trip(&first.0, &first.1);
    assert!(harness.none_ended());

    drop(second);
    assert_eq!(harness.ended().end, "fin");
    round_trip(&third, &accept(&listener));
    assert_eq!(harness.total(|stats| stats.accepted), 3);
}

#[test]
fn a_place_that_another_worker_frees_is_noticed() {
    let (listener, upstream) = server();
    let listeners = vec![
        TcpListener::bind("127.0.0.1:0").unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    ];
    let other = listeners[1].local_addr().unwrap();
    let harness = Harness::on(
        listeners,
        upstream,
        Settings {
            max_flows: Some(1),
            ..Settings::default()
        },
    );
    let first = (harness.connect(), accept(&listener));
    let second = patient(TcpStream::connect(other).unwrap());
    eventually("a pause", || harness.total(|stats| stats.pauses) > 0);
    drop(first);
    round_trip(&second, &accept(&listener));
}

#[test]
fn draining_lets_flows_end_and_takes_no_new_ones() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let (client, server) = (harness.connect(), accept(&listener));
    harness.relay.drain(PATIENCE);
    // Connections that come before the listener is closed are flows like any other; their server hangs up.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    eventually("no listener", || {
        TcpStream::connect(harness.address)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    round_trip(&client, &server);
    drop(client);
    drop(server);
    harness.relay.join().unwrap();
    for _ in 0..harness.policy.opened.load(Ordering::Relaxed) {
        assert_eq!(harness.ended().end, "fin");
    }
}

#[test]
fn draining_ends_at_its_deadline() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let (mut client, mut server) = (harness.connect(), accept(&listener));
    let within = Duration::from_millis(500);
    let started = Instant::now();
    harness.relay.drain(within);
    harness.relay.join().unwrap();
    assert!(
        started.elapsed() >= within && started.elapsed() < within * 3,
        "took {:?}",
        started.elapsed()
    );
    assert_reset(&mut client);
    assert_reset(&mut server);
    assert_eq!(harness.ended().end, "drained");
}

#[test]
fn stopping_a_drain_ends_at_once() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let (mut client, mut server) = (harness.connect(), accept(&listener));
    harness.relay.drain(PATIENCE);
    harness.relay.stop();
    let started = Instant::now();
    harness.relay.join().unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "took {:?}",
        started.elapsed()
    );
    assert_reset(&mut client);
    assert_reset(&mut server);
    assert_eq!(harness.ended().end, "drained");
}

#[test]
fn what_is_queued_when_the_relay_stops_after_a_clean_end_still_arrives() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let mut server = accept(&listener);
    // More than one segment stays in the send queue of the socket that the relay closes.
    let body = vec![7; 512 << 10];
    client.shutdown(Shutdown::Write).unwrap();
    let sender = std::thread::spawn(move || {
        server.write_all(&body).unwrap();
        body.len()
    });
    let sent = sender.join().unwrap();
    assert_eq!(harness.ended().end, "fin");
    harness.relay.stop();
    harness.relay.join().unwrap();
    assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), sent);
}

#[test]
fn a_killed_relay_resets_its_streams() {
    const UPSTREAM: &str = "RELAY_TEST_UPSTREAM";
    if let Ok(upstream) = std::env::var(UPSTREAM) {
        let harness = Harness::new(upstream.parse::<SocketAddr>().unwrap());
        println!("\naddress {}", harness.address);
        loop {
            std::thread::park();
        }
    }
    let (listener, upstream) = server();
    let mut relay = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "a_killed_relay_resets_its_streams",
        ])
        .env(UPSTREAM, upstream.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(relay.stdout.take().unwrap());
    let address = output
        .lines()
        .find_map(|line| line.unwrap().strip_prefix("address ").map(str::to_owned))
        .expect("the relay's address");
    let mut client = patient(TcpStream::connect(address).unwrap());
    let mut server = accept(&listener);
    round_trip(&client, &server);
    relay.kill().unwrap();
    relay.wait().unwrap();
    assert_reset(&mut client);
    assert_reset(&mut server);
}

/// Writes until nothing has been accepted for a while, and says how much was.
fn send_until_blocked(stream: &TcpStream) -> u64 {
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let chunk = vec![0; 1 << 20];
    let mut sent = 0;
    loop {
        let mut stream = stream;
        match uninterrupted(|| stream.write(&chunk)) {
            Ok(more) => sent += more as u64,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return sent;
            }
        }
    }
}

fn round_trip(mut client: &TcpStream, mut server: &TcpStream) {
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"y").unwrap();
    client.read_exact(&mut [0]).unwrap();
}
