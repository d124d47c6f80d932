//! The reader of lists as people write them: a CIDR or an address a line, `#` begins a comment.

use std::{fmt, mem};

use ipnet::IpNet;
use tproxy_common::limits::CIDRS;

use super::{Cidr, CidrList, prefix::Prefix};

/// How many lines are named of those that something is to be said about.
const NAMED: usize = 20;

/// A list that was read.
#[derive(Debug)]
pub struct Reading {
    /// What is in it.
    pub list: CidrList,
    /// Lines that named a CIDR that was there already.
    pub duplicates: usize,
    /// Lines whose host bits were taken out.
    pub masked: Lines,
}

/// Lines that something is to be said about: the first few, and the number of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// The first few.
    pub first: Vec<Line>,
    /// How many there are altogether.
    pub count: usize,
}

/// A line that something is to be said about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// What to say, quoting the word.
    pub text: String,
}

/// A list that cannot be taken. It says all that is wrong, up to a point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Lines that name no CIDR.
    #[error("{}", .lines.of(.name))]
    Lines {
        /// What was read.
        name: String,
        /// What is wrong with which.
        lines: Lines,
    },
    /// Over [`CIDRS`].
    #[error("{0} has more CIDRs than the limit of {CIDRS}: aggregate or remove some")]
    TooMany(String),
}

impl Lines {
    fn add(&mut self, number: usize, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(Line {
                number,
                text: text(),
            });
        }
    }

    /// Everything in one line of text; each line of the file with the file's name.
    #[must_use]
    pub fn of(&self, name: &str) -> String {
        self.each(name).join("; ")
    }

    /// A text for each line of the file that is named, with the file's name, and one for the others.
    #[must_use]
    pub fn each(&self, name: &str) -> Vec<String> {
        let lines = self.first.iter();
        let mut said: Vec<String> = lines
            .map(|line| format!("{name}:{}: {}", line.number, line.text))
            .collect();
        let more = self.count - self.first.len();
        if more > 0 {
            said.push(format!("and {more} more lines of {name}"));
        }
        said
    }
}

/// Reads a list. `name` is what messages call it, a path for example.
///
/// Blank lines, blanks around a CIDR, comments behind it, a byte order mark, line ends of DOS and a
/// last line without an end are all right. CIDRs that are there twice or lie in each other are too.
///
/// # Errors
///
/// When a line names no CIDR, or there are more than [`CIDRS`] different ones.
pub fn read(name: &str, bytes: &[u8]) -> Result<Reading, ReadError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut found = Found::default();
    let mut wrong = Lines::default();
    let mut masked = Lines::default();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let word = word_of(line);
        if word.is_empty() {
            continue;
        }
        match std::str::from_utf8(word).map(Cidr::parse) {
            Ok(Some(cidr)) => {
                if cidr.masked {
                    masked.add(number, || {
                        format!("{} has host bits set: taken as {}", Quoted(word), cidr.net)
                    });
                }
                found.add(cidr.net);
            }
            Ok(None) => wrong.add(number, || {
                format!("{} is not a CIDR or an IP address", Quoted(word))
            }),
            Err(_) => wrong.add(number, || format!("{} is not UTF-8 text", Quoted(word))),
        }
        if found.is_too_many() {
            return Err(ReadError::TooMany(name.to_owned()));
        }
    }
    if wrong.count > 0 {
        return Err(ReadError::Lines {
            name: name.to_owned(),
            lines: wrong,
        });
    }
    let (list, duplicates) = found.finish();
    if list.len() > CIDRS {
        return Err(ReadError::TooMany(name.to_owned()));
    }
    Ok(Reading {
        list,
        duplicates,
        masked,
    })
}

/// What a line says: without its comment and the blanks around.
fn word_of(line: &[u8]) -> &[u8] {
    let comment = line.iter().position(|byte| *byte == b'#');
    line[..comment.unwrap_or(line.len())].trim_ascii()
}

/// CIDRs as they were read.
#[derive(Default)]
struct Found {
    /// Address and length in one number.
    v4: Vec<u64>,
    v6: Vec<Prefix>,
    duplicates: usize,
}

impl Found {
    fn add(&mut self, net: IpNet) {
        match (net, Prefix::of(&net).1) {
            (IpNet::V4(net), _) => {
                let address = u64::from(u32::from(net.addr()));
                self.v4.push(address << 8 | u64::from(net.prefix_len()));
            }
            (IpNet::V6(_), prefix) => self.v6.push(prefix),
        }
    }

    /// Whether there are too many, whatever is yet to come. What is there twice is let go of first,
    /// now and then.
    fn is_too_many(&mut self) -> bool {
        if self.v4.len() + self.v6.len() <= 2 * CIDRS {
            return false;
        }
        self.sort();
        self.v4.len() + self.v6.len() > CIDRS
    }

    fn sort(&mut self) {
        let before = self.v4.len() + self.v6.len();
        self.v4.sort_unstable();
        self.v4.dedup();
        self.v6.sort_unstable();
        self.v6.dedup();
        self.duplicates += before - self.v4.len() - self.v6.len();
    }

    fn finish(mut self) -> (CidrList, usize) {
        self.sort();
        let v4 = mem::take(&mut self.v4).into_iter().map(|packed| {
            let [.., length] = packed.to_be_bytes();
            Prefix::new(u128::from(packed >> 8) << 96, length)
        });
        let v6 = mem::take(&mut self.v6).into_iter();
        (CidrList::from_sorted(v4, v6), self.duplicates)
    }
}

/// A word of a file in quotes: on one line, not too long, whatever it is.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        let shown = &self.0[..self.0.len().min(SHOWN)];
        let text = String::from_utf8_lossy(shown);
        let more = if self.0.len() > SHOWN { "..." } else { "" };
        write!(formatter, "\"{}{more}\"", text.escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(reading: &Reading) -> Vec<String> {
        reading.list.iter().map(|net| net.to_string()).collect()
    }

    fn taken(bytes: &[u8]) -> Vec<String> {
        words(&read("list", bytes).unwrap_or_else(|error| panic!("{error}")))
    }

    #[test]
    fn everything_that_people_write_is_taken() {
        let text = "\u{feff}# a comment\r\n\r\n  10.0.0.0/8\t# ours\r\n\t192.0.2.1 \n\n2001:db8::/32\r\n#\n10.0.0.0/8\n10.1.0.0/16";
        assert_eq!(
            taken(text.as_bytes()),
            ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32", "2001:db8::/32"]
        );
        assert_eq!(read("list", text.as_bytes()).unwrap().duplicates, 1);
        for nothing in ["", "\n", "\u{feff}", "# only\n# comments", " \r\n\t\n"] {
            assert!(taken(nothing.as_bytes()).is_empty());
        }
    }

    #[test]
    fn host_bits_are_counted_and_the_first_are_named() {
        let lines: Vec<String> = (0..30).map(|index| format!("10.{index}.0.1/16")).collect();
        let reading = read("list", lines.join("\n").as_bytes()).unwrap();
        assert_eq!((reading.masked.count, reading.list.len()), (30, 30));
        let said = reading.masked.of("list");
        assert!(
            said.starts_with("list:1: \"10.0.0.1/16\" has host bits set: taken as 10.0.0.0/16; ")
        );
        assert!(said.ends_with("; and 10 more lines of list"), "{said}");
    }

    #[test]
    fn every_bad_line_is_named() {
        let text =
            b"10.0.0.0/8\nhost\n10.0.0/8 # short\n10.0.0.1 10.0.0.2\n\xff\xfe\n::1\x00\n1.1.1.1\n";
        let Err(ReadError::Lines { lines, .. }) = read("a/list", text) else {
            panic!("no error");
        };
        let numbers: Vec<usize> = lines.first.iter().map(|line| line.number).collect();
        assert_eq!(numbers, [2, 3, 4, 5, 6]);
        let said = lines.of("a/list");
        for part in [
            "a/list:2: \"host\" is not a CIDR",
            "a/list:3: \"10.0.0/8\"",
            "a/list:4: \"10.0.0.1 10.0.0.2\"",
            "a/list:5: \"\u{fffd}\u{fffd}\" is not UTF-8",
            "a/list:6: \"::1\\0\"",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert!(!said.contains('\n'));
    }

    #[test]
    fn many_bad_lines_and_long_ones_are_shortened() {
        let text = format!("{}\n", "x".repeat(1000)).repeat(1000);
        let error = read("list", text.as_bytes()).unwrap_err().to_string();
        assert!(error.ends_with("; and 980 more lines of list"));
        assert!(error.len() < 4000, "{}", error.len());
    }

    #[test]
    fn a_million_is_the_limit_and_duplicates_do_not_count() {
        let line =
            |index: usize| format!("10.{}.{}.{}\n", index >> 16, index >> 8 & 255, index & 255);
        let mut text: String = (0..CIDRS).map(line).collect();
        assert_eq!(read("list", text.as_bytes()).unwrap().list.len(), CIDRS);
        let twice = text.repeat(3);
        let reading = read("list", twice.as_bytes()).unwrap();
        assert_eq!((reading.list.len(), reading.duplicates), (CIDRS, 2 * CIDRS));
        text.push_str("192.0.2.1\n");
        let error = read("list", text.as_bytes()).unwrap_err();
        assert_eq!(error, ReadError::TooMany("list".to_owned()));
        assert!(error.to_string().contains("1000000"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            if let Err(error) = read("list", &bytes) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }

        #[test]
        fn what_is_written_a_line_each_is_read(cidrs in prop::collection::vec((any::<std::net::IpAddr>(), 0_u8..=32), 0..50)) {
            let nets: Vec<IpNet> = cidrs
                .into_iter()
                .filter_map(|(address, length)| Cidr::parse(&format!("{address}/{length}")))
                .map(|cidr| cidr.net)
                .collect();
            let lines: Vec<String> = nets.iter().map(ToString::to_string).collect();
            prop_assert_eq!(words(&read("list", lines.join("\n").as_bytes()).unwrap()), CidrList::new(nets).iter().map(|net| net.to_string()).collect::<Vec<_>>());
        }
    }
}
