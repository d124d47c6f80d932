//! Lists of CIDRs: sorted, each CIDR once, in one piece of memory that is also the content of a
//! file, so that a list of a million is opened without being read.
//!
//! | bytes | hold |
//! | --- | --- |
//! | 8 | [`MAGIC`] |
//! | 8 | the number of IPv4 records, little-endian |
//! | 8 | the number of IPv6 records, little-endian |
//! | 5 each | IPv4 records: address in network order, length |
//! | 17 each | IPv6 records: address in network order, length |
//!
//! The records of a family ascend by address and then by length.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use ipnet::IpNet;
use memmap2::Mmap;
use tproxy_common::address::Family;

use super::prefix::Prefix;
use crate::sys::map_file;

/// What such a file begins with; the last byte counts versions of the layout.
const MAGIC: [u8; 8] = *b"tpcidrs\x01";
const HEADER: usize = 24;

/// Bytes that are written at once.
const PIECE: usize = 256 << 10;

/// The content of a list is not what its layout asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list of CIDRs as this version writes it")]
pub struct Damaged;

/// A sorted list of CIDRs without duplicates.
#[derive(Debug)]
pub struct CidrList {
    memory: Memory,
    v4: usize,
}

#[derive(Debug)]
enum Memory {
    Own(Vec<u8>),
    File(Mmap),
}

impl CidrList {
    /// A list of these CIDRs.
    #[must_use]
    pub fn new(cidrs: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (family, prefix) in cidrs.into_iter().map(|net| Prefix::of(&net)) {
            match family {
                Family::V4 => v4.push(prefix),
                Family::V6 => v6.push(prefix),
            }
        }
        for prefixes in [&mut v4, &mut v6] {
            prefixes.sort_unstable();
            prefixes.dedup();
        }
        Self::from_sorted(v4.into_iter(), v6.into_iter())
    }

    /// A list of prefixes that ascend and are there once each.
    pub(super) fn from_sorted(
        v4: impl Iterator<Item = Prefix>,
        v6: impl Iterator<Item = Prefix>,
    ) -> Self {
        let expected =
            v4.size_hint().0 * record_size(Family::V4) + v6.size_hint().0 * record_size(Family::V6);
        let mut bytes = Vec::with_capacity(HEADER + expected);
        bytes.resize(HEADER, 0);
        let mut counts = [0_u64; 2];
        for prefix in v4 {
            let address = prefix.first().to_be_bytes();
            bytes.extend_from_slice(&[address[0], address[1], address[2], address[3]]);
            bytes.push(prefix.length());
            counts[0] += 1;
        }
        for prefix in v6 {
            bytes.extend_from_slice(&prefix.first().to_be_bytes());
            bytes.push(prefix.length());
            counts[1] += 1;
        }
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&counts[0].to_le_bytes());
        bytes[16..24].copy_from_slice(&counts[1].to_le_bytes());
        Self {
            memory: Memory::Own(bytes),
            v4: usize::try_from(counts[0]).unwrap_or(usize::MAX),
        }
    }

    /// Maps the list that a file holds. Its records are looked at when they are asked for.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no such file (`InvalidData`).
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let memory = map_file(&File::open(path)?)?;
        let v4 = check(&memory)
            .map_err(|damaged| io::Error::new(io::ErrorKind::InvalidData, damaged))?;
        Ok(Self {
            memory: Memory::File(memory),
            v4,
        })
    }

    /// Writes the list to a file, whole or not at all.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let unfinished = path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        // A kernel without preemption goes on with a write to its end, whoever waits for the CPU.
        for piece in self.bytes().chunks(PIECE) {
            file.write_all(piece)?;
        }
        fs::rename(&unfinished, path)
    }

    /// How many CIDRs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records(Family::V4).len() + self.records(Family::V6).len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The CIDRs, IPv4 first, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + '_ {
        [Family::V4, Family::V6].into_iter().flat_map(|family| {
            let prefixes = self.records(family).iter();
            prefixes.filter_map(move |prefix| prefix.to_net(family))
        })
    }

    /// The records of one family.
    pub(super) fn records(&self, family: Family) -> Records<'_> {
        let bytes = &self.bytes()[HEADER..];
        let (v4, v6) = bytes.split_at(self.v4 * record_size(Family::V4));
        match family {
            Family::V4 => Records { bytes: v4, family },
            Family::V6 => Records { bytes: v6, family },
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Own(bytes) => bytes,
            Memory::File(memory) => memory,
        }
    }
}

impl Default for CidrList {
    fn default() -> Self {
        Self::new([])
    }
}

/// The number of IPv4 records, when header and length of these bytes agree.
fn check(bytes: &[u8]) -> Result<usize, Damaged> {
    let header = bytes.first_chunk::<HEADER>().ok_or(Damaged)?;
    let number = |at: usize| {
        let word = header[at..].first_chunk().copied().map(u64::from_le_bytes);
        word.and_then(|number| usize::try_from(number).ok())
            .ok_or(Damaged)
    };
    let (v4, v6) = (number(8)?, number(16)?);
    let size = |records: usize, family| records.checked_mul(record_size(family)).ok_or(Damaged);
    let length = size(v4, Family::V4)?
        .checked_add(size(v6, Family::V6)?)
        .and_then(|records| records.checked_add(HEADER));
    if header[..8] == MAGIC && length == Some(bytes.len()) {
        Ok(v4)
    } else {
        Err(Damaged)
    }
}

const fn record_size(family: Family) -> usize {
    match family {
        Family::V4 => 5,
        Family::V6 => 17,
    }
}

/// The records of one family, as prefixes.
#[derive(Clone, Copy)]
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    family: Family,
}

impl<'a> Records<'a> {
    pub(super) fn len(self) -> usize {
        self.bytes.len() / record_size(self.family)
    }

    pub(super) fn iter(self) -> impl ExactSizeIterator<Item = Prefix> + 'a {
        self.bytes
            .chunks_exact(record_size(self.family))
            .map(decode)
    }

    /// The records from the first that is not below `prefix`.
    pub(super) fn from(self, prefix: Prefix) -> Self {
        let size = record_size(self.family);
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if decode(&self.bytes[middle * size..][..size]) < prefix {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Self {
            bytes: &self.bytes[low * size..],
            family: self.family,
        }
    }

    /// Whether this very prefix is one of them.
    pub(super) fn contains(self, prefix: Prefix) -> bool {
        self.from(prefix).iter().next() == Some(prefix)
    }

    /// Whether they ascend and have lengths of their family.
    pub(super) fn check(self) -> Result<(), Damaged> {
        let longest = match self.family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let mut before = None;
        for prefix in self.iter() {
            if prefix.length() > longest || before.is_some_and(|before| before >= prefix) {
                return Err(Damaged);
            }
            before = Some(prefix);
        }
        Ok(())
    }
}

/// The prefix of a record.
fn decode(record: &[u8]) -> Prefix {
    let (address, length) = record.split_at(record.len() - 1);
    let mut octets = [0; 16];
    octets[..address.len()].copy_from_slice(address);
    Prefix::new(u128::from_be_bytes(octets), length[0])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn list(words: &[&str]) -> CidrList {
        CidrList::new(words.iter().map(|word| word.parse().unwrap()))
    }

    fn words(list: &CidrList) -> Vec<String> {
        list.iter().map(|net| net.to_string()).collect()
    }

    const MIXED: [&str; 4] = ["10.0.0.0/8", "10.0.0.0/9", "192.0.2.0/24", "2001:db8::/32"];

    #[test]
    fn a_list_is_sorted_and_has_each_cidr_once() {
        let list = list(&[
            "2001:db8::/32",
            "192.0.2.0/24",
            "10.0.0.0/9",
            "10.0.0.0/8",
            "10.0.0.0/9",
        ]);
        assert_eq!(words(&list), MIXED);
        assert_eq!(list.len(), 4);
        assert!(!list.is_empty() && CidrList::default().is_empty());
    }

    #[test]
    fn a_file_holds_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set-1");
        for words_in in [&MIXED[..], &[], &MIXED[..1], &MIXED[3..]] {
            list(words_in).write(&path).unwrap();
            let opened = CidrList::open(&path).unwrap();
            assert_eq!(words(&opened), words_in);
            opened.records(Family::V4).check().unwrap();
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn records_are_found_by_search() {
        let list = list(&MIXED);
        let records = list.records(Family::V4);
        let prefix = |word: &str| Prefix::of(&word.parse().unwrap()).1;
        for word in &MIXED[..3] {
            assert!(records.contains(prefix(word)), "{word}");
        }
        for word in ["0.0.0.0/0", "10.0.0.0/10", "255.255.255.255/32"] {
            assert!(!records.contains(prefix(word)), "{word}");
        }
        assert_eq!(records.from(prefix("10.0.0.0/9")).len(), 2);
        assert_eq!(records.from(prefix("0.0.0.0/0")).len(), 3);
        assert_eq!(records.from(prefix("193.0.0.0/8")).len(), 0);
    }

    /// Whatever bytes a file has: it is refused, or can be asked anything.
    #[test]
    fn damaged_files_are_refused_and_never_panic() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set-1");
        let whole = list(&MIXED);
        let whole = whole.bytes();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let error = CidrList::open(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{cut}");
        }
        let mut refused_late = 0;
        for place in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[place] ^= 0x80;
            fs::write(&path, &bytes).unwrap();
            if let Ok(list) = CidrList::open(&path) {
                assert!(place >= HEADER);
                let _ = list.iter().count();
                let checked = [Family::V4, Family::V6].map(|family| list.records(family).check());
                refused_late += usize::from(checked.contains(&Err(Damaged)));
            }
        }
        assert!(refused_late > 0);
    }
}
