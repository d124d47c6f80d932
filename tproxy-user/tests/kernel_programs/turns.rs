//! How workers prolong their turns.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use tproxy_common::turn::CONNECTIONS;
use tproxy_user::kernel::Turns;

use crate::{
    neighbour::{Neighbour, attach_to_link, families, wait_until},
    sandbox::{Workers, in_sandbox, rule, words},
};

const PORT: u16 = 80;

/// How many connections are two turns that nobody prolongs.
const TWO_TURNS: usize = 2 * CONNECTIONS as usize;

/// A turn is over when no connection has come for so long.
const PAUSE: Duration = Duration::from_millis(5);

/// Opens as many connections as two turns have, after a pause and with none in between. `between` is
/// called after each. Returns how many each worker got, the larger number first.
fn shares(neighbour: &Neighbour, workers: &Workers, between: impl Fn() + Sync) -> [usize; 2] {
    let target = SocketAddr::new(families()[0].own, PORT);
    loop {
        let start = Instant::now();
        wait_until(|| start.elapsed() > 2 * PAUSE);
        let mut longest = Duration::ZERO;
        let clients: Vec<_> = neighbour.run(|| {
            let mut last = Instant::now();
            let open = || {
                let client = TcpStream::connect(target).expect("a connection");
                between();
                longest = longest.max(last.elapsed());
                last = Instant::now();
                client
            };
            std::iter::repeat_with(open).take(TWO_TURNS).collect()
        });
        let mut shares = [0, 1].map(|worker| accept_all(&workers.listeners[worker].tcp));
        assert_eq!(shares.iter().sum::<usize>(), clients.len());
        shares.sort_unstable_by(|one, other| other.cmp(one));
        // The machine may have made a pause of its own.
        if longest < PAUSE / 2 {
            return shares;
        }
    }
}

fn accept_all(listener: &TcpListener) -> usize {
    listener.set_nonblocking(true).expect("an option");
    std::iter::from_fn(|| listener.accept().ok()).count()
}

#[test]
fn a_turn_goes_on_while_its_worker_prolongs_it() {
    in_sandbox(|sandbox| {
        let neighbour = Neighbour::on_link();
        attach_to_link(sandbox);
        let workers = sandbox.start_workers(2);
        sandbox.install(&[rule(|spec| {
            spec.scope = Some("inbound".into());
            spec.dport = words(&["80"]);
        })]);
        let turns = Turns::open(&sandbox.maps).expect("the turns");

        assert_eq!(shares(&neighbour, &workers, || ()), [TWO_TURNS / 2; 2]);
        let prolong_all = || (0..2).for_each(|worker| turns.prolong(worker));
        assert_eq!(shares(&neighbour, &workers, prolong_all), [TWO_TURNS, 0]);
        assert_eq!(shares(&neighbour, &workers, || ()), [TWO_TURNS / 2; 2]);
    });
}
