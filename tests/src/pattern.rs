//! A stream of bytes in which each loss, repetition and reordering shows.

use std::io::{self, Read, Write};

use crate::wait::uninterrupted;

/// The length of the block that repeats: a prime, so that it aligns with no buffer or segment size.
const BLOCK: usize = 65_521;

const CHUNK: usize = 64 * 1024;

/// Writes the first `total` bytes of the stream.
///
/// # Errors
/// Those of `sink`.
pub fn write(sink: &mut impl Write, total: u64) -> io::Result<()> {
    write_from(sink, 0, total)
}

/// Writes the bytes of the stream from offset `from` up to offset `to`.
///
/// # Errors
/// Those of `sink`.
pub fn write_from(sink: &mut impl Write, from: u64, to: u64) -> io::Result<()> {
    let block = repeated_block();
    let mut offset = from;
    while offset < to {
        let start = position(offset);
        let length = usize::try_from(to - offset).map_or(CHUNK, |left| left.min(CHUNK));
        sink.write_all(&block[start..start + length])?;
        offset += length as u64;
    }
    Ok(())
}

/// Reads to the end and returns how many bytes came.
///
/// # Errors
/// Those of `source`, and `InvalidData` with the offset at which a read first differs from the stream.
pub fn read_to_end(source: &mut impl Read) -> io::Result<u64> {
    read_up_to(source, 0, u64::MAX)
}

/// Reads from offset `from` until offset `to` or the end of `source`, and returns the offset reached.
///
/// # Errors
/// As [`read_to_end`].
pub fn read_up_to(source: &mut impl Read, from: u64, to: u64) -> io::Result<u64> {
    let block = repeated_block();
    let mut buffer = vec![0; CHUNK];
    let mut offset = from;
    while offset < to {
        let wanted = usize::try_from(to - offset).map_or(CHUNK, |left| left.min(CHUNK));
        let length = uninterrupted(|| source.read(&mut buffer[..wanted]))?;
        if length == 0 {
            break;
        }
        let start = position(offset);
        if buffer[..length] != block[start..start + length] {
            let message = format!("bytes {offset} to {} differ", offset + length as u64);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        offset += length as u64;
    }
    Ok(offset)
}

fn position(offset: u64) -> usize {
    usize::try_from(offset % BLOCK as u64).expect("smaller than the block")
}

/// The block, followed by enough of itself for any chunk that starts in it.
fn repeated_block() -> Vec<u8> {
    // xorshift64, Marsaglia, "Xorshift RNGs", 2003.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let block: Vec<u8> = (0..BLOCK)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    block.iter().copied().cycle().take(BLOCK + CHUNK).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_itself_in_any_pieces() {
        let mut bytes = Vec::new();
        write_from(&mut bytes, 0, 70_000).unwrap();
        write_from(&mut bytes, 70_000, 200_000).unwrap();
        assert_eq!(read_to_end(&mut bytes.as_slice()).unwrap(), 200_000);
    }

    #[test]
    fn refuses_a_lost_byte() {
        let mut bytes = Vec::new();
        write(&mut bytes, 200_000).unwrap();
        bytes.remove(150_000);
        assert!(read_to_end(&mut bytes.as_slice()).is_err());
    }
}
