//! What takes unsafe code: memory that is shared by mapping, of BPF array maps (`BPF_F_MMAPABLE`,
//! Linux 5.5) and of files, descriptors of pins whatever they are and of processes, and the
//! allocator.

use std::{
    ffi::CString,
    fs::File,
    io,
    marker::PhantomData,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::atomic::{AtomicU8, AtomicU64},
};

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd};
use memmap2::{Mmap, MmapOptions, MmapRaw};
use tokio::io::{Interest, unix::AsyncFd};

/// Opens a pinned program, map or link (`BPF_OBJ_GET`, bpf(2)).
///
/// # Errors
///
/// When there is no such pin or the kernel refuses.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: plain integers and addresses, for which zero is a value.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the path outlives the call.
    let descriptor = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes)? };
    // SAFETY: the kernel made this descriptor for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Detaches what a link attached, before this returns (`BPF_LINK_DETACH`, Linux 5.9). Removing the
/// last pin of a link does so some time later.
///
/// # Errors
///
/// When it is no link, or not of a kind that can be detached.
pub(crate) fn detach_link(link: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain integers and addresses, for which zero is a value.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.link_detach.link_fd = link.as_raw_fd().cast_unsigned();
    // SAFETY: the attributes refer to nothing.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// Calls bpf(2).
///
/// # Safety
///
/// What `attributes` points to is valid for the command.
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the attributes are valid up to their size, the rest is the caller's.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    match RawFd::try_from(answer).map_err(io::Error::other)? {
        ..0 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}

/// The number by which programs know the calling thread's network namespace: of all there ever were,
/// no other has it (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
///
/// When the kernel refuses.
pub(crate) fn namespace_cookie() -> io::Result<u64> {
    /// include/uapi/asm-generic/socket.h
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: value and length are on the stack, and the length is that of the value.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    match answer {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor of a process that can be read when the process has ended (`pidfd_open(2)`, Linux 5.3).
///
/// # Errors
///
/// `ESRCH` when there is no such process.
pub(crate) fn open_process(process: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(process), 0) };
    match RawFd::try_from(answer).map_err(io::Error::other)? {
        ..0 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel made this descriptor for this call.
        descriptor => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
    }
}

/// A descriptor that tokio's runtime, in which this is called, tells the readiness of.
///
/// # Errors
///
/// When the kernel cannot watch it.
pub(crate) fn watch_descriptor<T: Into<OwnedFd>>(
    descriptor: T,
    interest: Interest,
) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, and stays the same file until it is dropped, which happens
    // with the `AsyncFd` that owns it from here on.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor.into(), interest) };
    watched.map_err(Into::into)
}

/// Gives the pages of freed memory back to the kernel (`malloc_trim(3)`). Loading programs takes
/// megabytes for a moment, which the allocator would keep.
pub(crate) fn release_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and only gives back what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives every large block of memory pages of its own from now on (`M_MMAP_THRESHOLD`, mallopt(3)).
/// Unasked the allocator moves that bound up to the largest block that was ever freed, and then a table
/// that grows leaves behind all the smaller ones that it was.
pub(crate) fn keep_large_blocks_apart() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 64 * 1024;
        // SAFETY: takes numbers, and concerns only what is allocated later.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        }
    }
}

/// The elements of an array map, shared with the kernel and with other processes.
pub(crate) struct SharedArray<T> {
    memory: MmapRaw,
    elements: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> SharedArray<T> {
    /// Maps the first `elements` of the array map `map`, whose element size is that of `T`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, for instance a map that is smaller or not made for it.
    pub(crate) fn map(map: &impl AsFd, elements: usize) -> io::Result<Self> {
        // The kernel lays elements out at multiples of 8 bytes.
        assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8);
        let memory = MmapOptions::new()
            .len(elements * size_of::<T>())
            .map_raw(map.as_fd().as_raw_fd())?;
        Ok(Self {
            memory,
            elements,
            kind: PhantomData,
        })
    }

    /// How many elements there are.
    #[must_use]
    pub(crate) const fn len(&self) -> usize {
        self.elements
    }

    /// Writes elements from the first on. Only for memory that nobody reads yet.
    ///
    /// # Panics
    ///
    /// When there are more than the array has.
    pub(crate) fn fill(&mut self, elements: &[T]) {
        self.fill_from(0, elements);
    }

    /// Writes elements from the one at `place` on. Only for memory that nobody reads yet.
    ///
    /// # Panics
    ///
    /// When there are more than the array has behind that.
    pub(crate) fn fill_from(&mut self, place: usize, elements: &[T]) {
        assert!(place + elements.len() <= self.elements);
        // SAFETY: the mapping is writable, page-aligned and at least this long; `&mut self` keeps
        // this process from reading it meanwhile and plain data has no invalid values.
        unsafe {
            std::ptr::copy_nonoverlapping(
                elements.as_ptr(),
                self.memory.as_mut_ptr().cast::<T>().add(place),
                elements.len(),
            );
        }
    }

    /// An element that was written before the array, or the part that it lies in, was published, and
    /// is left alone since.
    #[must_use]
    pub(crate) fn get(&self, place: usize) -> Option<&T> {
        // SAFETY: within the mapping, which is aligned for `T` (see `map`); nobody writes it.
        (place < self.elements).then(|| unsafe { &*self.memory.as_ptr().cast::<T>().add(place) })
    }

    /// The array as bytes that several threads and processes change at once.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        let first = self.memory.as_ptr().cast::<AtomicU8>();
        // SAFETY: memory of this many bytes, which every user of the array reaches through atomics
        // only.
        unsafe { std::slice::from_raw_parts(first, self.elements * size_of::<T>()) }
    }

    /// The array as 64-bit words that several threads and processes change at once.
    #[must_use]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        let words = self.elements * size_of::<T>() / size_of::<u64>();
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
        let first = self.memory.as_ptr().cast::<AtomicU64>();
        // SAFETY: aligned memory of this many words, which every user of the array reaches through
        // atomics only.
        unsafe { std::slice::from_raw_parts(first, words) }
    }
}

// SAFETY: the mapping belongs to this value and is not tied to a thread; access is as for any
// shared slice of plain data or atomics.
unsafe impl<T: Pod> Send for SharedArray<T> {}

// SAFETY: as for `Send`.
unsafe impl<T: Pod> Sync for SharedArray<T> {}

/// Maps a file of the state directory for reading.
pub(crate) fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the file lies in a directory that only its owner may enter, and is never written again
    // once it has its name: a new one takes its place.
    unsafe { Mmap::map(file) }
}
