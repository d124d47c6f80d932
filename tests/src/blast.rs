//! A connection over which both ends send as fast as they can, so that it can be cut in the middle of the data.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use crate::wait::uninterrupted;

/// Sends and receives until the connection ends, and says how many bytes came before a clean end of the other side.
/// `received` counts them meanwhile.
///
/// # Errors
/// What reading ended with, if not with the end of the data.
pub fn both_ways(mut stream: TcpStream, received: &AtomicU64) -> io::Result<u64> {
    const BLOCK: usize = 64 << 10;
    let mut sending = stream.try_clone()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> io::Error {
            let block = vec![0x55; BLOCK];
            loop {
                if let Err(error) = sending.write_all(&block) {
                    return error;
                }
            }
        });
        let mut buffer = vec![0; BLOCK];
        let outcome = loop {
            match uninterrupted(|| stream.read(&mut buffer)) {
                Ok(0) => break Ok(received.load(Ordering::Relaxed)),
                Ok(length) => received.fetch_add(length as u64, Ordering::Relaxed),
                Err(error) => break Err(error),
            };
        };
        // A writer that nobody reads from any more would wait.
        let _ = stream.shutdown(Shutdown::Both);
        let unsent = sender.join().expect("sending does not panic");
        // The kernel tells of a reset once, and whoever comes later sees an end.
        match outcome {
            Ok(_) if unsent.kind() == io::ErrorKind::ConnectionReset => Err(unsent),
            outcome => outcome,
        }
    })
}
