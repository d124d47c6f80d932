//! A gigabyte each way, at once.

use std::{
    io,
    net::{Shutdown, TcpStream},
    sync::mpsc,
    thread,
};

use tproxy_tests::{Lab, address::FAMILIES, pattern, peer::Server};

const MB: u64 = 1_000_000;
const GB: u64 = 1000 * MB;

/// The client ends its half first, and the server ends its own when it has seen that.
#[test]
fn a_gigabyte_each_way_arrives_when_the_client_ends_first() {
    assert_gigabytes_arrive(true);
}

/// As before, and the server ends its half first.
#[test]
fn a_gigabyte_each_way_arrives_when_the_server_ends_first() {
    assert_gigabytes_arrive(false);
}

#[track_caller]
fn assert_gigabytes_arrive(client_ends_first: bool) {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, move |stream| {
        both_ways(stream, !client_ends_first)
    });
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let stream = lab.client.connect((family.near(), 80).into()).unwrap();
        let client = stream.local_addr().unwrap();
        assert_eq!(both_ways(stream, client_ends_first).unwrap(), GB);
        assert_eq!(server.outcome().unwrap(), GB);
        let flow = agent.flow_of(client);
        assert_eq!(
            (flow.sent, flow.received, flow.end.as_str()),
            (GB, GB, "fin")
        );
    }
    assert_eq!(agent.stop().len(), 2);
}

/// Sends and receives a gigabyte at once. Who does not end first keeps something back until the other's end has come.
fn both_ways(mut stream: TcpStream, ends_first: bool) -> io::Result<u64> {
    let kept_back = if ends_first { 0 } else { 100 * MB };
    let mut sending = stream.try_clone()?;
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            pattern::write(&mut sending, GB - kept_back)?;
            if !ends_first {
                told.recv().map_err(io::Error::other)?;
            }
            pattern::write_from(&mut sending, GB - kept_back, GB)?;
            sending.shutdown(Shutdown::Write)
        });
        let received = pattern::read_to_end(&mut stream);
        if received.is_ok() {
            // The sender of the end that ends first does not ask.
            let _ = tell.send(());
        }
        drop(tell);
        sender.join().expect("the sender does not panic")?;
        received
    })
}
