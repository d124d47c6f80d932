//! Streams through the relay: bytes, the end of the stream, resets and failures arrive as they would without it.

mod relay_support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tproxy_tests::wait::uninterrupted;
use tproxy_user::relay::Settings;

use relay_support::{
    Harness, PATIENCE, accept, assert_reset, eventually, patient, reset, server, silent_server,
};

/// What passes over the half that is still open, a multiple of the chunks that it is sent in.
const LARGE: u64 = 100 * 1024 * 1024;

#[test]
fn bytes_go_both_ways_and_are_counted() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let mut server = accept(&listener);

    client.write_all(b"question").unwrap();
    expect(&mut server, b"question");
    server.write_all(b"the answer").unwrap();
    expect(&mut client, b"the answer");
    drop(client);
    drop(server);

    let ended = harness.ended();
    assert_eq!(
        (ended.to_upstream, ended.to_client, ended.end.as_str()),
        (8, 10, "fin")
    );
    assert_eq!(ended.destination, harness.address);
    assert_eq!(harness.policy.opened.load(Ordering::Relaxed), 1);
    assert_eq!(harness.policy.to_upstream.load(Ordering::Relaxed), 8);
    assert_eq!(harness.policy.to_client.load(Ordering::Relaxed), 10);
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let greet = || {
        let begin = Instant::now();
        let mut client = harness.connect();
        accept(&listener).write_all(b"220 ready").unwrap();
        expect(&mut client, b"220 ready");
        expect_end(&mut client);
        begin.elapsed()
    };
    // A busy machine may be slow once, but not a kernel's 200 ms of delayed ACK each time.
    let fastest = (0..5).map(|_| greet()).min().unwrap();
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

#[test]
fn bytes_of_a_running_flow_are_reported_before_it_ends() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let _server = accept(&listener);
    client.write_all(b"question").unwrap();
    eventually("a report", || {
        harness.policy.to_upstream.load(Ordering::Relaxed) == 8
    });
    assert!(harness.none_ended());
}

#[test]
fn a_client_that_half_closes_still_gets_everything() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let mut server = accept(&listener);

    client.write_all(b"GET").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    expect(&mut server, b"GET");
    expect_end(&mut server);
    let sender = std::thread::spawn(move || send_pattern(server, LARGE));
    assert_eq!(receive_pattern(&mut client), LARGE);
    sender.join().unwrap();
    drop(client);

    let ended = harness.ended();
    assert_eq!(
        (ended.to_upstream, ended.to_client, ended.end.as_str()),
        (3, LARGE, "fin")
    );
}

#[test]
fn a_server_that_half_closes_still_gets_everything() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let mut server = accept(&listener);

    server.write_all(b"go on").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    expect(&mut client, b"go on");
    expect_end(&mut client);
    let sender = std::thread::spawn(move || send_pattern(client, LARGE));
    assert_eq!(receive_pattern(&mut server), LARGE);
    sender.join().unwrap();
    drop(server);

    let ended = harness.ended();
    assert_eq!(
        (ended.to_upstream, ended.to_client, ended.end.as_str()),
        (LARGE, 5, "fin")
    );
}

#[test]
fn large_streams_cross_each_other() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let mut server = accept(&listener);
    let (up, down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let senders = [up, down].map(|stream| std::thread::spawn(move || send_pattern(stream, LARGE)));
    let receiver = std::thread::spawn(move || receive_pattern(&mut client));
    assert_eq!(receive_pattern(&mut server), LARGE);
    assert_eq!(receiver.join().unwrap(), LARGE);
    for sender in senders {
        sender.join().unwrap();
    }
    drop(server);
    let ended = harness.ended();
    assert_eq!(
        (ended.to_upstream, ended.to_client, ended.end.as_str()),
        (LARGE, LARGE, "fin")
    );
}

#[test]
fn streams_of_single_bytes_arrive_whole_in_both_directions() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let ends = [harness.connect(), accept(&listener)];
    std::thread::scope(|scope| {
        for end in &ends {
            scope.spawn(move || send_single_bytes(end));
            scope.spawn(move || receive_single_bytes(end));
        }
    });
    let ended = harness.ended();
    assert_eq!(
        (ended.to_upstream, ended.to_client, ended.end.as_str()),
        (SINGLE_BYTES.into(), SINGLE_BYTES.into(), "fin")
    );
}

const SINGLE_BYTES: u32 = 20_000;

fn send_single_bytes(mut stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    for byte in 0..SINGLE_BYTES {
        stream.write_all(&[byte.to_le_bytes()[0]]).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn receive_single_bytes(mut stream: &TcpStream) {
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    let sent = (0..SINGLE_BYTES).map(|byte| byte.to_le_bytes()[0]);
    assert!(sent.eq(received), "bytes differ");
}

#[test]
fn bytes_around_urgent_data_arrive() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let client = harness.connect();
    let mut server = accept(&listener);
    let raw = SockRef::from(&client);
    raw.send(b"before").unwrap();
    raw.send_out_of_band(b"!").unwrap();
    raw.send(b"after").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    server.read_to_end(&mut received).unwrap();
    assert_eq!(String::from_utf8_lossy(&received), "before!after");
}

#[test]
fn a_clients_reset_reaches_the_server() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let mut server = accept(&listener);
    client.write_all(b"x").unwrap();
    expect(&mut server, b"x");
    reset(client);
    assert_reset(&mut server);
    assert_eq!(harness.ended().end, "client-reset");
}

#[test]
fn a_servers_reset_reaches_the_client() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let mut server = accept(&listener);
    server.write_all(b"x").unwrap();
    expect(&mut client, b"x");
    reset(server);
    assert_reset(&mut client);
    assert_eq!(harness.ended().end, "upstream-reset");
}

#[test]
fn a_reset_after_a_half_close_is_passed_on() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let mut server = accept(&listener);
    client.shutdown(Shutdown::Write).unwrap();
    expect_end(&mut server);
    reset(server);
    assert_reset(&mut client);
    assert_eq!(harness.ended().end, "upstream-reset");
}

#[test]
fn what_a_server_said_before_its_reset_is_heard() {
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    let mut client = harness.connect();
    let mut server = accept(&listener);
    // Unread bytes in its receive queue turn the server's close into a RST that follows the answer.
    client.write_all(b"a request that nobody reads").unwrap();
    uninterrupted(|| server.peek(&mut [0])).unwrap();
    server.write_all(b"413 too large").unwrap();
    drop(server);
    expect(&mut client, b"413 too large");
    assert_reset(&mut client);
    assert_eq!(harness.ended().end, "upstream-reset");
}

#[test]
fn a_refused_connection_is_told_to_the_client() {
    let (listener, upstream) = server();
    drop(listener);
    let harness = Harness::new(upstream);
    assert_reset(&mut harness.connect());
    assert_eq!(harness.ended().end, "refused");
    assert_eq!(harness.total(|stats| stats.connect_failed), 1);
}

#[test]
fn a_network_without_route_is_told_to_the_client() {
    // 240.0.0.0/4 is reserved (RFC 1112, 4): Linux refuses to connect to the broadcast address in it at once.
    let upstream: SocketAddr = "255.255.255.255:80".parse().unwrap();
    let harness = Harness::new(upstream);
    assert_reset(&mut harness.connect());
    assert_eq!(harness.ended().end, "unreachable");
}

#[test]
fn a_silent_server_is_given_up_in_time() {
    let (_full, upstream) = silent_server();
    let connect_timeout = Duration::from_secs(2);
    let harness = Harness::with(
        upstream,
        Settings {
            connect_timeout,
            ..Settings::default()
        },
    );
    let started = Instant::now();
    assert_reset(&mut harness.connect());
    let took = started.elapsed();
    assert_eq!(harness.ended().end, "timeout");
    assert!(
        took >= connect_timeout && took < connect_timeout + Duration::from_secs(2),
        "took {took:?}"
    );
}

#[test]
fn a_client_that_gives_up_on_a_silent_server_frees_the_flow() {
    let (_full, upstream) = silent_server();
    let harness = Harness::with(
        upstream,
        Settings {
            connect_timeout: PATIENCE * 4,
            ..Settings::default()
        },
    );
    let client = harness.connect();
    eventually("a flow", || harness.total(|stats| stats.flows) == 1);
    reset(client);
    assert_eq!(harness.ended().end, "client-reset");
}

#[test]
fn a_client_that_is_gone_before_it_is_accepted_is_not_connected() {
    let (listener, upstream) = server();
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    reset(TcpStream::connect(relay.local_addr().unwrap()).unwrap());
    let harness = Harness::on(vec![relay], upstream, Settings::default());
    assert_eq!(harness.ended().end, "client-reset");
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_refusal_by_the_policy_is_a_reset() {
    let harness = Harness::new(None);
    assert_reset(&mut harness.connect());
    assert_eq!(harness.total(|stats| stats.refused), 1);
    assert_eq!(harness.policy.opened.load(Ordering::Relaxed), 0);
}

#[test]
fn a_connection_that_would_come_back_to_the_relay_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap();
    let harness = Harness::on(vec![listener], own, Settings::default());
    assert_reset(&mut harness.connect());
    assert_eq!(harness.total(|stats| stats.own_port), 1);
    assert_eq!(harness.total(|stats| stats.accepted), 1);
}

fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut received = vec![0; bytes.len()];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received, bytes);
}

fn expect_end(stream: &mut TcpStream) {
    assert_eq!(
        uninterrupted(|| stream.read(&mut [0; 16])).unwrap(),
        0,
        "expected the end of the stream"
    );
}

fn send_pattern(stream: TcpStream, length: u64) {
    let mut stream = patient(stream);
    let mut chunk = vec![0; 1 << 20];
    for offset in (0..length).step_by(chunk.len()) {
        pattern(offset, &mut chunk);
        stream.write_all(&chunk).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads to the end of the stream, checks every byte, and says how many there were.
fn receive_pattern(stream: &mut TcpStream) -> u64 {
    let (mut chunk, mut expected) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let mut length = 0;
        while length < chunk.len() {
            match uninterrupted(|| stream.read(&mut chunk[length..])).unwrap() {
                0 => break,
                more => length += more,
            }
        }
        pattern(offset, &mut expected);
        assert!(
            chunk[..length] == expected[..length],
            "the chunk at {offset} differs"
        );
        offset += length as u64;
        if length < chunk.len() {
            return offset;
        }
    }
}

/// Bytes that differ at every offset within a long stretch, so that a loss, a repetition or a swap shows.
fn pattern(offset: u64, into: &mut [u8]) {
    for (index, chunk) in into.chunks_mut(8).enumerate() {
        let word = (offset / 8 + index as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}
