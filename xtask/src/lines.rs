//! What a child process prints, line by line.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::mpsc::{self, Receiver},
    thread,
};

/// Reads on a thread of its own until the end, so that the writer never waits for us, also when the
/// receiver is gone.
pub(crate) fn follow(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}
