//! A link without Ethernet headers, as long as one likes: two tun devices in two namespaces, and threads that carry
//! packets between them.

use std::{
    fs::File,
    io::{PipeWriter, Read, Write, pipe},
    os::fd::AsFd,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Namespace, sys};

const LONGEST_PACKET: usize = 64 * 1024;

/// The link. Both devices vanish when it goes out of scope.
#[derive(Debug)]
pub struct Tunnel {
    /// All threads end when this is closed.
    _open: PipeWriter,
}

impl Tunnel {
    /// Makes the device `name` in both namespaces and connects them.
    #[must_use]
    #[track_caller]
    pub fn between(one: &Namespace, other: &Namespace, name: &str) -> Self {
        Self::with_delay(one, other, name, Duration::ZERO)
    }

    /// The same with packets that take `delay` in each direction, however many are on their way.
    #[must_use]
    #[track_caller]
    pub fn with_delay(one: &Namespace, other: &Namespace, name: &str, delay: Duration) -> Self {
        let open = |namespace: &Namespace| {
            let device = namespace.enter(|| sys::open_tun(name));
            Arc::new(device.unwrap_or_else(|error| panic!("make {name}: {error}")))
        };
        let (one, other) = (open(one), open(other));
        let (closed, open) = pipe().expect("make a pipe");
        for (from, to) in [(Arc::clone(&one), Arc::clone(&other)), (other, one)] {
            let closed = closed.try_clone().expect("duplicate a pipe");
            let (sent, under_way) = channel::<(Instant, Vec<u8>)>();
            thread::spawn(move || send(&from, &sent, &closed));
            thread::spawn(move || {
                for (start, packet) in under_way {
                    thread::sleep((start + delay).saturating_duration_since(Instant::now()));
                    // A device that is down loses packets, as any link does.
                    let _ = (&*to).write(&packet);
                }
            });
        }
        Self { _open: open }
    }
}

fn send(mut from: &File, under_way: &Sender<(Instant, Vec<u8>)>, closed: &impl AsFd) {
    let mut packet = vec![0; LONGEST_PACKET];
    loop {
        let mut events = [
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
            PollFd::new(closed.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut events, PollTimeout::NONE).is_err() || events[1].any() == Some(true) {
            return;
        }
        let Ok(length) = from.read(&mut packet) else {
            return;
        };
        if under_way
            .send((Instant::now(), packet[..length].to_vec()))
            .is_err()
        {
            return;
        }
    }
}
