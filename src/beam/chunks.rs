//! Files in pieces that fit into a message.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use tokio::sync::mpsc::{Receiver, channel};

/// Bytes of a file in one message. Services accept messages of 4 MiB.
const CHUNK_BYTES: u64 = 1 << 20;

/// Chunks on their way: one is read while another is sent.
const CHUNKS: usize = 1;

/// The content of a file in non-empty pieces of at most 1 MiB. An error is the last element. A thread reads the file
/// while the pieces are received.
pub fn chunks(path: PathBuf) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = channel(CHUNKS);
    tokio::task::spawn_blocking(move || {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) => return drop(sender.blocking_send(Err(error))),
        };
        loop {
            let mut data = Vec::new();
            match file.by_ref().take(CHUNK_BYTES).read_to_end(&mut data) {
                Ok(0) => return,
                Ok(_) => {
                    if sender.blocking_send(Ok(data)).is_err() {
                        return;
                    }
                }
                Err(error) => return drop(sender.blocking_send(Err(error))),
            }
        }
    });
    receiver
}
