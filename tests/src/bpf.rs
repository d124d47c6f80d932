//! BPF programs that are not ours: which are attached where, and a small one that counts.
//!
//! The layouts and numbers are those of `union bpf_attr` in `include/uapi/linux/bpf.h`.

#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes of small arrays fit the 32-bit fields that take them"
)]

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    net::if_::if_nametoindex,
};
use tempfile::TempDir;

use crate::{Namespace, sys};

const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_PIN: i32 = 6;
const BPF_OBJ_GET: i32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_PROG_QUERY: i32 = 16;
const BPF_LINK_CREATE: i32 = 28;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_CGROUP_SOCK_OPS: u32 = 3;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;
const BPF_CGROUP_UDP4_SENDMSG: u32 = 14;
const BPF_CGROUP_UDP6_SENDMSG: u32 = 15;
const BPF_SK_LOOKUP: u32 = 36;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

/// A place where programs can be attached.
#[derive(Debug, Clone, Copy)]
pub enum Hook<'a> {
    /// What an interface receives.
    TcxIngress(&'a str),
    /// What an interface sends.
    TcxEgress(&'a str),
    /// Socket lookups of a namespace.
    SkLookup,
}

/// Whether this kernel has tcx hooks, as Linux has from 6.6 on.
#[must_use]
pub fn kernel_has_tcx() -> bool {
    sys::kernel_is_at_least(6, 6)
}

/// The ids of the programs attached to `hook`, in the order in which they run.
///
/// # Errors
/// Those of `BPF_PROG_QUERY`; `ENODEV` when the interface does not exist.
pub fn attached(namespace: &Namespace, hook: Hook) -> io::Result<Vec<u32>> {
    if !matches!(hook, Hook::SkLookup) && !kernel_has_tcx() {
        return Ok(Vec::new());
    }
    namespace.enter(|| {
        let (target, attach_type) = match hook {
            Hook::TcxIngress(interface) => (if_nametoindex(interface)?, BPF_TCX_INGRESS),
            Hook::TcxEgress(interface) => (if_nametoindex(interface)?, BPF_TCX_EGRESS),
            Hook::SkLookup => (descriptor(namespace.handle()), BPF_SK_LOOKUP),
        };
        match query(target, attach_type) {
            Ok(ids) => Ok(ids),
            // What tcx answers for an interface that never had a program.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    })
}

fn query(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target: u32,
        hook: u32,
        request_flags: u32,
        result_flags: u32,
        program_ids: u64,
        count: u32,
        padding: u32,
        rest: [u64; 4],
    }
    let mut ids = [0_u32; 64];
    let mut query = Query {
        target,
        hook: attach_type,
        program_ids: pointer(&mut ids),
        count: ids.len() as u32,
        ..Query::default()
    };
    sys::bpf(BPF_PROG_QUERY, &mut query)?;
    Ok(ids[..query.count as usize].to_vec())
}

/// The ids of the programs that see what processes of a control group open, those of other tests among them.
///
/// # Errors
/// Those of open(2) and `BPF_PROG_QUERY`.
pub fn process_hooks(group: &Path) -> io::Result<Vec<u32>> {
    let group = File::open(group)?;
    let hooks = [
        BPF_CGROUP_INET4_CONNECT,
        BPF_CGROUP_INET6_CONNECT,
        BPF_CGROUP_UDP4_SENDMSG,
        BPF_CGROUP_UDP6_SENDMSG,
        BPF_CGROUP_SOCK_OPS,
    ];
    let programs = hooks.map(|hook| query(descriptor(&group), hook));
    let programs: io::Result<Vec<_>> = programs.into_iter().collect();
    Ok(programs?.concat())
}

/// The id of the program that a pinned link attaches.
///
/// # Errors
/// Those of `BPF_OBJ_GET` and `BPF_OBJ_GET_INFO_BY_FD`.
pub fn program_of_link(pin: &Path) -> io::Result<u32> {
    #[repr(C)]
    struct Ask {
        object: u32,
        length: u32,
        answer: u64,
    }
    /// The beginning of `struct bpf_link_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Link {
        kind: u32,
        id: u32,
        program: u32,
        padding: u32,
    }
    let object = open_pin(pin)?;
    let mut link = Link::default();
    let mut ask = Ask {
        object: descriptor(&object),
        length: size_of::<Link>() as u32,
        answer: pointer(&mut link),
    };
    sys::bpf(BPF_OBJ_GET_INFO_BY_FD, &mut ask)?;
    Ok(link.program)
}

fn open_pin(pin: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Get {
        path: u64,
        object: u32,
        flags: u32,
    }
    let name = CString::new(pin.as_os_str().as_encoded_bytes())?;
    let mut get = Get {
        path: name.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    sys::bpf_descriptor(BPF_OBJ_GET, &mut get)
}

/// Puts a socket into a pinned sockmap.
///
/// # Errors
/// Those of `BPF_OBJ_GET` and `BPF_MAP_UPDATE_ELEM`.
pub fn set_socket(map: &Path, place: u32, socket: &impl AsRawFd) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let map = open_pin(map)?;
    let mut key = place;
    let mut value = [u64::try_from(socket.as_raw_fd()).map_err(io::Error::other)?];
    let mut update = Update {
        map: descriptor(&map),
        padding: 0,
        key: pointer(&mut key),
        value: pointer(&mut value),
        flags: 0,
    };
    sys::bpf(BPF_MAP_UPDATE_ELEM, &mut update).map(drop)
}

/// A BPF file system of the test's own, to pin objects in. It is unmounted when it goes out of scope.
#[derive(Debug)]
pub struct PinDirectory {
    directory: TempDir,
}

impl PinDirectory {
    /// Mounts it.
    #[must_use]
    pub fn mount() -> Self {
        let directory = TempDir::new().expect("make a directory");
        let none = None::<&str>;
        mount(
            Some("bpf"),
            directory.path(),
            Some("bpf"),
            MsFlags::empty(),
            none,
        )
        .expect("mount a bpffs");
        Self { directory }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        // A failure here must not hide the panic of the test that is ending.
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

/// A tc classifier that counts what it sees and lets the next program decide.
#[derive(Debug)]
pub struct CountingProgram {
    program: OwnedFd,
    counter: OwnedFd,
}

/// Before or after all programs that are attached already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    First,
    /// After all others.
    Last,
}

impl CountingProgram {
    /// Loads it.
    #[must_use]
    #[track_caller]
    pub fn load() -> Self {
        let counter = create_counter().expect("create a map");
        let program =
            load_program(&counting_instructions(&counter)).expect("load the counting program");
        Self { program, counter }
    }

    /// How many packets it has seen.
    #[must_use]
    #[track_caller]
    pub fn count(&self) -> u64 {
        #[repr(C)]
        struct Lookup {
            map: u32,
            padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let (mut key, mut value) = (0_u32, 0_u64);
        let mut lookup = Lookup {
            map: descriptor(&self.counter),
            padding: 0,
            key: pointer(&mut key),
            value: pointer(&mut value),
            flags: 0,
        };
        sys::bpf(BPF_MAP_LOOKUP_ELEM, &mut lookup).expect("read the counter");
        value
    }

    /// Attaches it with tcx to what `interface` receives. It stays until the returned link is dropped.
    #[must_use]
    #[track_caller]
    pub fn attach_tcx(&self, namespace: &Namespace, interface: &str, place: Place) -> OwnedFd {
        #[repr(C)]
        struct Create {
            program: u32,
            interface: u32,
            attach_type: u32,
            flags: u32,
            relative: u64,
            expected_revision: u64,
        }
        let link = namespace.enter(|| {
            let mut create = Create {
                program: descriptor(&self.program),
                interface: if_nametoindex(interface)?,
                attach_type: BPF_TCX_INGRESS,
                flags: if place == Place::First {
                    BPF_F_BEFORE
                } else {
                    BPF_F_AFTER
                },
                relative: 0,
                expected_revision: 0,
            };
            sys::bpf_descriptor(BPF_LINK_CREATE, &mut create)
        });
        link.unwrap_or_else(|error| panic!("attach to {interface}: {error}"))
    }

    /// Pins it at `path`, from where tc takes it with `bpf direct-action object-pinned PATH`.
    #[track_caller]
    pub fn pin(&self, path: &Path) {
        #[repr(C)]
        struct Pin {
            path: u64,
            object: u32,
            flags: u32,
        }
        let name = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path without NUL");
        let mut pin = Pin {
            path: name.as_ptr() as u64,
            object: descriptor(&self.program),
            flags: 0,
        };
        sys::bpf(BPF_OBJ_PIN, &mut pin)
            .unwrap_or_else(|error| panic!("pin at {}: {error}", path.display()));
    }
}

fn create_counter() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    let mut create = Create {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
    };
    sys::bpf_descriptor(BPF_MAP_CREATE, &mut create)
}

fn load_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
    }
    let mut load = Load {
        program_type: BPF_PROG_TYPE_SCHED_CLS,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    sys::bpf_descriptor(BPF_PROG_LOAD, &mut load)
}

/// `lock *counter += 1; return -1`. Minus one is `TCX_NEXT` as well as `TC_ACT_UNSPEC`: the next program decides.
fn counting_instructions(counter: &OwnedFd) -> [u64; 6] {
    let map = descriptor(counter).cast_signed();
    [
        // r1 = address of the map's first value; the load takes two slots, source 2 is BPF_PSEUDO_MAP_VALUE.
        instruction(0x18, 1, 2, map),
        instruction(0, 0, 0, 0),
        // r2 = 1
        instruction(0xb7, 2, 0, 1),
        // lock *(u64 *)(r1 + 0) += r2
        instruction(0xdb, 1, 2, 0),
        // r0 = -1
        instruction(0xb7, 0, 0, -1),
        // exit
        instruction(0x95, 0, 0, 0),
    ]
}

/// An instruction as in RFC 9669, section 3, with offset zero.
fn instruction(opcode: u8, destination: u8, source: u8, immediate: i32) -> u64 {
    let [b0, b1, b2, b3] = immediate.to_le_bytes();
    u64::from_le_bytes([opcode, destination | source << 4, 0, 0, b0, b1, b2, b3])
}

fn descriptor(object: &impl AsRawFd) -> u32 {
    object.as_raw_fd().cast_unsigned()
}

fn pointer<T>(target: &mut T) -> u64 {
    std::ptr::from_mut(target) as u64
}
