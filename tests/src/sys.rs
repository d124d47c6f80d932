//! The system calls that neither the standard library nor nix offers safely.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "constants, sizes and descriptors of the kernel interface fit the fields that take them"
)]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::sched::{CloneFlags, setns};

/// Whether this is Linux `major.minor` or later.
pub(crate) fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let names = nix::sys::utsname::uname().expect("uname");
    let release = names.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Lets `command` enter the network namespace `namespace` between fork and exec, and die with its parent thread.
pub(crate) fn enter_before_exec(command: &mut Command, namespace: File) {
    let enter = move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes two plain system calls
    // and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// Lets bpf(2), or only `bpf_command` of it, fail with `error` in the process of `command`, by a seccomp filter.
pub(crate) fn fail_bpf_before_exec(command: &mut Command, bpf_command: Option<u32>, error: i32) {
    let filter = bpf_failing_filter(bpf_command, error);
    let install = move || {
        let program = libc::sock_fprog {
            len: filter.len() as libc::c_ushort,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the program points to its instructions, which the closure owns; the kernel copies them.
        let outcome = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        check(outcome.into()).map(drop)
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes one system call and
    // allocates nothing.
    unsafe { command.pre_exec(install) };
}

/// A filter over `struct seccomp_data` (see seccomp(2)): `nr` is at offset 0, the first argument's low half at 16.
fn bpf_failing_filter(bpf_command: Option<u32>, error: i32) -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let skip_unless = |value: u32, skipped: u8| libc::sock_filter {
        jf: skipped,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value)
    };
    let answer = |value: u32| statement(libc::BPF_RET | libc::BPF_K, value);
    let fail = answer(libc::SECCOMP_RET_ERRNO | error as u32);
    let allow = answer(libc::SECCOMP_RET_ALLOW);
    let bpf = libc::SYS_bpf as u32;
    match bpf_command {
        None => vec![load(0), skip_unless(bpf, 1), fail, allow],
        Some(command) => {
            vec![
                load(0),
                skip_unless(bpf, 3),
                load(16),
                skip_unless(command, 1),
                fail,
                allow,
            ]
        }
    }
}

/// Binds an `AF_PACKET` socket to the interface `index`, see packet(7): to capture, or only to send.
pub(crate) fn bind_packet_socket(socket: &impl AsFd, index: u32, captures: bool) -> io::Result<()> {
    let mut address = packet_address(index);
    if !captures {
        address.sll_protocol = 0;
    }
    // SAFETY: the pointer and the length describe a whole sockaddr_ll that outlives the call.
    let outcome = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    check(outcome.into()).map(drop)
}

/// Asks for `PACKET_AUXDATA` with each frame, see packet(7).
pub(crate) fn request_auxiliary_data(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    set_option(
        socket,
        libc::SOL_PACKET,
        libc::PACKET_AUXDATA,
        &on.to_ne_bytes(),
    )
}

/// Sets a socket option whose value is `value` as it is in memory.
pub(crate) fn set_option(
    socket: &impl AsFd,
    level: i32,
    name: i32,
    value: &[u8],
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which the kernel only reads.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    check(outcome.into()).map(drop)
}

/// A frame taken from an `AF_PACKET` socket: its bytes, the kind of packet (`PACKET_HOST`, ...) and its VLAN tag.
pub(crate) struct ReceivedFrame {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) vlan: Option<u16>,
}

/// Receives one frame from an `AF_PACKET` socket that has `PACKET_AUXDATA` set, without waiting.
pub(crate) fn receive_frame(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<ReceivedFrame> {
    let mut address = packet_address(0);
    let mut control = [0_u64; 16];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a valid msghdr (no name, no buffers).
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to buffers of the stated lengths, all of which outlive the call.
    let length = unsafe {
        libc::recvmsg(
            socket.as_fd().as_raw_fd(),
            &raw mut message,
            libc::MSG_DONTWAIT,
        )
    };
    let length = check(length as i64)? as usize;
    Ok(ReceivedFrame {
        length,
        kind: address.sll_pkttype,
        vlan: vlan_tag(&message),
    })
}

fn vlan_tag(message: &libc::msghdr) -> Option<u16> {
    // SAFETY: the message was filled in by recvmsg, so its control buffer holds msg_controllen valid bytes.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: a control message of this type carries one tpacket_auxdata; it may be unaligned, hence the copy.
    let auxiliary = unsafe {
        libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned()
    };
    (auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(auxiliary.tp_vlan_tci)
}

fn packet_address(index: u32) -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll consists of integers only, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as libc::c_int;
    address
}

/// How many bytes wait to be read, see `FIONREAD` in ioctl(2).
pub(crate) fn readable_bytes(descriptor: &impl AsFd) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which outlives the call.
    let outcome = unsafe {
        libc::ioctl(
            descriptor.as_fd().as_raw_fd(),
            libc::FIONREAD,
            &raw mut bytes,
        )
    };
    check(outcome.into())?;
    Ok(bytes as u64)
}

/// Makes or opens the tun device `name` without packet information headers, see
/// <https://docs.kernel.org/networking/tuntap.html>.
pub(crate) fn open_tun(name: &str) -> io::Result<File> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq consists of integers and a union of them, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let outcome = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(outcome.into())?;
    Ok(device)
}

/// The bpf(2) system call. `attributes` is the part of `union bpf_attr` that `command` uses.
pub(crate) fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes at most the given size of `attributes`; pointers in it are the callers', all
    // of whom keep what they point to alive across the call.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    check(outcome)
}

/// As [`bpf`], for commands that answer with a new descriptor.
pub(crate) fn bpf_descriptor<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)? as libc::c_int;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn check(outcome: i64) -> io::Result<i64> {
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(outcome)
    }
}
