//! The real programs and maps, in a network and a mount namespace of their own.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use aya::{
    TestRun as _, TestRunOptions,
    maps::{Map, MapData, PerCpuArray},
    programs::SchedClassifier,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use socket2::{Domain, Socket, Type};
use tproxy_common::{
    agent::AgentState,
    outcome::{OUTCOMES, Outcome},
};
use tproxy_user::{
    compiler::{Source, compile},
    delivery::{Assignment, Framing, Link},
    kernel::{Generation, Maps, Settings, load, load_program_for},
    listener::{Discard, discard},
    relay::{self, Listener},
    rule::{Rule, RuleSpec},
    set::Sets,
};

use crate::answer::assert_answers;
use crate::frame::Frame;

/// The steering mark of the programs.
pub(crate) const MARK: u32 = 0x7470_0000;

/// The mark of the agent's own connections.
pub(crate) const UPSTREAM_MARK: u32 = ASSIGNMENT.upstream_mark();

/// What the instance has of its own.
pub(crate) const ASSIGNMENT: Assignment = Assignment {
    mark: MARK,
    table: 7470,
};

/// The counter slot of the first rule; the others follow.
pub(crate) const FIRST_SLOT: u32 = 100;

/// Octets by which an answer may be longer than what it answers: an IPv6 and an ICMP header.
const LONGEST_ADDITION: usize = 48;

/// Where the programs and maps are pinned: a file system that only this thread sees.
const BPFFS: &str = "/sys/fs/bpf";

/// The programs of one test.
pub(crate) struct Sandbox {
    /// Where they and their maps are pinned.
    pub(crate) directory: &'static Path,
    /// Their maps.
    pub(crate) maps: Maps,
    /// The program of interfaces with Ethernet headers.
    pub(crate) program: SchedClassifier,
    counters: PerCpuArray<MapData, u64>,
}

/// What the kernel knows of a frame beside its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Metadata {
    /// Its mark.
    pub(crate) mark: u32,
    /// Index of the interface it arrives on; 0 for `lo`.
    pub(crate) interface: u32,
}

/// What the program did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// What it returned.
    pub(crate) verdict: i32,
    /// The mark afterwards.
    pub(crate) mark: u32,
}

/// Runs a test with the programs loaded, on a new thread, in namespaces that end with it. `lo` is
/// up; nothing is attached.
pub(crate) fn in_sandbox<R: Send + 'static>(
    test: impl FnOnce(&Sandbox) -> R + Send + 'static,
) -> R {
    let test = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces need root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let none = MsFlags::empty();
        mount(Some("bpf"), BPFFS, Some("bpf"), none, None::<&str>).expect("a BPF file system");
        ip("link set lo up");
        test(&Sandbox::load())
    };
    match thread::spawn(test).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What an agent holds while it lives.
pub(crate) struct Workers {
    /// One for each worker.
    pub(crate) listeners: Vec<Listener>,
    _discard: Discard,
    _lifeline: UnixDatagram,
}

impl Sandbox {
    fn load() -> Self {
        let directory = Path::new(BPFFS);
        let loaded = load(settings(), directory).expect("the programs load");
        for framing in [Framing::Ethernet, Framing::Ip] {
            let link = Link {
                index: 0,
                name: "any".to_owned(),
                framing,
                up: true,
                controller: None,
            };
            load_program_for(directory, &link, &settings(), &loaded).expect("the program loads");
        }
        let counters = MapData::from_pin(pin("OUTCOME_COUNTERS")).and_then(Map::from_map_data);
        Self {
            directory: Path::new(BPFFS),
            maps: Maps::new(Path::new(BPFFS)),
            program: SchedClassifier::from_pin(pin("tproxy_ether")).expect("the pinned program"),
            counters: counters.and_then(TryInto::try_into).expect("the counters"),
        }
    }

    /// Puts rules in force. Those that name interfaces hold for the ones that are there.
    pub(crate) fn install(&self, rules: &[Rule]) {
        let blocks = compiled(rules);
        Generation::install(&self.maps, &blocks).expect("the rules are installed");
    }

    /// Makes listeners for workers, and registers them with an agent that takes flows.
    #[must_use]
    pub(crate) fn start_workers(&self, workers: u32) -> Workers {
        let listeners = relay::bind(0, workers as usize).expect("listeners");
        let discard = discard().expect("sockets that discard");
        let lifeline = UnixDatagram::unbound().expect("a socket");
        self.maps
            .set_sockets(&listeners, &discard, &lifeline)
            .expect("sockets");
        let port = listeners[0].tcp.local_addr().expect("an address").port();
        let state = AgentState::accepting(workers, port);
        self.maps.set_agent(state).expect("an agent");
        Workers {
            listeners,
            _discard: discard,
            _lifeline: lifeline,
        }
    }

    /// Runs the program on a frame that arrives on `lo`, and says what the outcome was, after
    /// checking that it was one outcome, with its verdict, its mark, and an unchanged frame.
    #[track_caller]
    pub(crate) fn outcome(&self, frame: &Frame) -> Outcome {
        self.outcome_with(&frame.bytes(), Metadata::default())
    }

    /// The same for any bytes that begin with an Ethernet header, and any metadata.
    #[track_caller]
    pub(crate) fn outcome_with(&self, frame: &[u8], metadata: Metadata) -> Outcome {
        let before = self.outcomes();
        let mut after = Vec::new();
        let ran = self.run(frame, Some(&mut after), metadata);
        let moved = self.moved_since(&before);
        let of_tc: Vec<_> = moved
            .iter()
            .filter(|(name, _)| !is_of_others(*name))
            .collect();
        let [(outcome, 1)] = of_tc.as_slice() else {
            panic!("not one outcome, once: {moved:?}");
        };
        assert_eq!(ran, expected(*outcome, metadata.mark), "{outcome:?}");
        match outcome {
            Outcome::RefusedMissing | Outcome::Rejected => assert_answers(frame, &after),
            // It may have been on the way to become an answer.
            Outcome::RejectedUnanswered => {}
            _ => assert_eq!(after, frame, "{outcome:?} changed the frame"),
        }
        *outcome
    }

    /// Runs the program on a frame. `out` gets what becomes of it.
    #[track_caller]
    pub(crate) fn run(&self, frame: &[u8], out: Option<&mut Vec<u8>>, metadata: Metadata) -> Ran {
        let context = context(metadata);
        let mut context_out = context;
        let mut room = vec![0; frame.len() + LONGEST_ADDITION];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut room),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::new()
        };
        let result = self.program.test_run(options).expect("the program runs");
        if let Some(out) = out {
            room.truncate(result.data_size_out as usize);
            *out = room;
        }
        Ran {
            verdict: result.return_value.cast_signed(),
            mark: u32::from_ne_bytes(context_out[MARK_OFFSET..][..4].try_into().expect("4 bytes")),
        }
    }

    /// How often each outcome occurred, in the order of [`Outcome::ALL`].
    pub(crate) fn outcomes(&self) -> [u64; OUTCOMES] {
        std::array::from_fn(|place| self.occurred(Outcome::ALL[place].0))
    }

    /// How often one outcome occurred.
    pub(crate) fn occurred(&self, outcome: Outcome) -> u64 {
        let values = self.counters.get(&(outcome as u32), 0);
        values.expect("the counters").iter().sum()
    }

    /// The outcomes that occurred since, and how often.
    pub(crate) fn moved_since(&self, before: &[u64; OUTCOMES]) -> Vec<(Outcome, u64)> {
        let now = self.outcomes();
        Outcome::ALL
            .iter()
            .zip(before.iter().zip(now))
            .map(|((outcome, _), (before, now))| (*outcome, now - before))
            .filter(|(_, times)| *times != 0)
            .collect()
    }
}

/// What the programs of an instance in this thread's network namespace are loaded with.
pub(crate) fn settings() -> Settings {
    Settings::of_this_namespace(ASSIGNMENT).expect("the namespace has a cookie")
}

/// Rules as they would be typed: `rule(|spec| spec.dport = words(&["443"]))`.
pub(crate) fn rule(edit: impl FnOnce(&mut RuleSpec)) -> Rule {
    let mut spec = RuleSpec {
        name: Some("web".into()),
        ..RuleSpec::default()
    };
    edit(&mut spec);
    spec.validate().expect("a valid rule")
}

/// A list of words of a rule.
pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// The tables of rules whose counter slots begin at [`FIRST_SLOT`].
pub(crate) fn compiled(rules: &[Rule]) -> Vec<tproxy_common::tables::Block> {
    let sources: Vec<Source<'_>> = rules
        .iter()
        .zip(FIRST_SLOT..)
        .map(|(rule, slot)| Source {
            rule,
            slot,
            interfaces: rule
                .interfaces
                .iter()
                .filter_map(|name| index_of(name))
                .collect(),
            cgroups: rule
                .cgroups
                .iter()
                .filter_map(|group| group.id().expect("control groups"))
                .collect(),
        })
        .collect();
    let compiled = compile(&sources, &Sets::new(), 1).expect("the rules compile");
    compiled.blocks
}

/// The index of an interface of this thread's network namespace.
pub(crate) fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// What follows from an outcome, written down a second time: in the programs it is the table from
/// outcome to verdict.
pub(crate) const fn expected(outcome: Outcome, mark: u32) -> Ran {
    const TC_ACT_UNSPEC: i32 = -1;
    const TC_ACT_SHOT: i32 = 2;
    const TC_ACT_REDIRECT: i32 = 7;
    match outcome {
        Outcome::Dropped
        | Outcome::FragmentDropped
        | Outcome::DroppedMissing
        | Outcome::RejectedUnanswered => Ran {
            verdict: TC_ACT_SHOT,
            mark,
        },
        Outcome::RefusedMissing | Outcome::Rejected => Ran {
            verdict: TC_ACT_REDIRECT,
            mark,
        },
        Outcome::Taken
        | Outcome::FragmentTaken
        | Outcome::Established
        | Outcome::EstablishedUdp
        | Outcome::SynCookie
        | Outcome::Orphaned
        | Outcome::IcmpError => Ran {
            verdict: TC_ACT_UNSPEC,
            mark: mark | MARK,
        },
        _ => Ran {
            verdict: TC_ACT_UNSPEC,
            mark,
        },
    }
}

/// Whether another program than that of tc counts this outcome.
pub(crate) const fn is_of_others(outcome: Outcome) -> bool {
    outcome as u32 >= Outcome::NotOurs as u32
}

/// A TCP connection between two addresses that are made local for it: the client's end and the
/// server's.
pub(crate) fn connection(client: SocketAddr, server: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(server).expect("a listener");
    let connecting = bound(client);
    connecting.connect(&server.into()).expect("a connection");
    let (accepted, _) = listener.accept().expect("a connection");
    (connecting.into(), accepted)
}

/// A TCP socket with an address of its own.
pub(crate) fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.bind(&address.into()).expect("a free address");
    socket
}

/// Makes an address this namespace's own, for sockets to bind to.
pub(crate) fn make_local(address: IpAddr) {
    // An address of an interface would do for both, but IPv6 routes to it only a while later.
    let family = match address {
        IpAddr::V4(_) => "-4",
        IpAddr::V6(_) => "-6",
    };
    ip(&format!("{family} route add local {address} dev lo"));
    fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").expect("a sysctl");
}

/// Runs `ip ARGUMENTS` in the namespace of the calling thread.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
}

fn pin(name: &str) -> PathBuf {
    Path::new(BPFFS).join(name)
}

// Offsets in struct __sk_buff and its size, include/uapi/linux/bpf.h.
const MARK_OFFSET: usize = 8;
const IFINDEX_OFFSET: usize = 40;
const CONTEXT_SIZE: usize = 192;

fn context(metadata: Metadata) -> [u8; CONTEXT_SIZE] {
    let mut context = [0; CONTEXT_SIZE];
    context[MARK_OFFSET..][..4].copy_from_slice(&metadata.mark.to_ne_bytes());
    context[IFINDEX_OFFSET..][..4].copy_from_slice(&metadata.interface.to_ne_bytes());
    context
}
