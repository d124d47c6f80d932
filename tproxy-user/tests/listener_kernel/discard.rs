//! What is given to the discarding sockets vanishes.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use socket2::SockRef;
use tproxy_tests::wait::uninterrupted;
use tproxy_user::listener::discard;

use crate::namespace::in_namespace;

/// How long a client waits for an answer that must not come. One that comes takes microseconds.
const SILENCE: Duration = Duration::from_millis(300);

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// What becomes of a datagram: what the client's next read says.
fn send(to: SocketAddr) -> io::Error {
    let client = UdpSocket::bind((
        match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        },
        0,
    ))
    .unwrap();
    client.connect(to).unwrap();
    client.set_read_timeout(Some(SILENCE)).unwrap();
    client.send(b"x").unwrap();
    uninterrupted(|| client.recv(&mut [0; 8])).unwrap_err()
}

#[test]
fn connections_and_datagrams_vanish_without_an_answer() {
    in_namespace(|| {
        let sockets = discard().unwrap();
        assert!(SockRef::from(&sockets.tcp).ip_transparent_v4().unwrap());
        assert!(SockRef::from(&sockets.udp).ip_transparent_v4().unwrap());
        let tcp = sockets.tcp.local_addr().unwrap().port();
        let udp = sockets.udp.local_addr().unwrap().port();
        for host in LOOPBACK {
            let connect = |port| {
                let address = SocketAddr::new(host, port);
                TcpStream::connect_timeout(&address, SILENCE).unwrap_err()
            };
            assert_eq!(connect(tcp).kind(), ErrorKind::TimedOut, "{host}");
            assert_eq!(
                send(SocketAddr::new(host, udp)).kind(),
                ErrorKind::WouldBlock
            );
            // Where nobody is at all there is an answer.
            assert_eq!(connect(1).kind(), ErrorKind::ConnectionRefused);
            assert_eq!(
                send(SocketAddr::new(host, 1)).kind(),
                ErrorKind::ConnectionRefused
            );
        }
        sockets.tcp.set_nonblocking(true).unwrap();
        sockets.udp.set_nonblocking(true).unwrap();
        assert_eq!(
            sockets.tcp.accept().unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        assert_eq!(
            sockets.udp.recv(&mut [0; 8]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
    });
}
